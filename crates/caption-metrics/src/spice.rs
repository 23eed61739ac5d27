//! SPICE (Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation", ECCV 2016).
//! Runs the authors' Java program as pycocoevalcap's `spice.py` does.
//!
//! The program is `spice-1.0.jar`, with the libraries and the Stanford models
//! (`stanford-corenlp-3.6.0.jar` and `stanford-corenlp-3.6.0-models.jar`) in the folder `lib`
//! beside it. Their licences do not allow this repository to contain them. The tests replace Java
//! with a script; they check how the program is called and how its output is parsed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::ptb_tokenizer::tokenize;
use crate::{Error, Item, Scores};

/// The time limit of the program. It takes minutes for thousands of captions.
const TIME_LIMIT: Duration = Duration::from_secs(3600);
/// The interval at which to check whether the program has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Files that the jar needs beside it and that its distribution does not contain.
const REQUIRED_FILES: [&str; 2] = ["lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar"];

/// Runs the SPICE program.
#[derive(Debug, Clone)]
pub struct Spice {
    java: PathBuf,
    jar: PathBuf,
    time_limit: Duration,
}

/// An item in the program's input file.
#[derive(Serialize)]
struct SpiceInput {
    /// The index of the item.
    image_id: usize,
    /// The candidate.
    test: String,
    refs: Vec<String>,
}

/// An item in the program's output file.
#[derive(Deserialize)]
struct SpiceOutput {
    image_id: usize,
    scores: ScoresByCategory,
}

/// The scores of an item by category of tuples; `All` is SPICE.
#[derive(Deserialize)]
struct ScoresByCategory {
    #[serde(rename = "All")]
    all: FMeasure,
}

/// An F-measure; none if it is undefined.
#[derive(Deserialize)]
struct FMeasure {
    f: Option<f64>,
}

impl Spice {
    /// Checks that `jar` and the files of the Stanford models exist; `java` is the command that
    /// runs the jar.
    ///
    /// # Errors
    /// One of these files does not exist.
    pub fn open(java: &Path, jar: &Path) -> Result<Self, Error> {
        // The program is run in the jar's folder.
        let jar = jar.canonicalize().map_err(|source| Error::file(jar, source))?;
        if let Some(missing) = REQUIRED_FILES.iter().map(|name| jar.with_file_name(name)).find(|path| !path.exists()) {
            let problem = "no such file; SPICE needs it from stanford-corenlp-full-2015-12-09.zip (nlp.stanford.edu)";
            return Err(Error::invalid(missing, problem));
        }
        let java = if java.components().count() > 1 {
            std::path::absolute(java).map_err(|source| Error::file(java, source))?
        } else {
            java.to_owned()
        };
        Ok(Self { java, jar, time_limit: TIME_LIMIT })
    }

    /// SPICE (0 to 1): the F-measure over the tuples of scene graphs. The program gets tokenized
    /// captions, as from pycocoevalcap. The corpus value is the mean over items. An item without
    /// references, or for which the program has no value, scores 0.
    ///
    /// # Errors
    /// Java cannot be started, fails, takes more than an hour, or has no output for an item.
    pub fn score(&self, items: &[Item]) -> Result<Scores, Error> {
        let tokenized = |caption: &String| tokenize(caption).join(" ");
        let with_references = items.iter().enumerate().filter(|(_, item)| !item.references.is_empty());
        let inputs: Vec<SpiceInput> = with_references
            .map(|(image_id, item)| SpiceInput {
                image_id,
                test: tokenized(&item.candidate),
                refs: item.references.iter().map(tokenized).collect(),
            })
            .collect();
        let mut values: Vec<Option<f64>> = items.iter().map(|item| item.references.is_empty().then_some(0.0)).collect();
        if !inputs.is_empty() {
            for SpiceOutput { image_id, scores } in self.run(&inputs)? {
                let value = values.get_mut(image_id);
                *value
                    .ok_or_else(|| Error::Spice(format!("its output has a score of an unknown image {image_id}")))? =
                    Some(scores.all.f.unwrap_or(0.0));
            }
        }
        let missing = values.iter().filter(|value| value.is_none()).count();
        let values: Option<Vec<f64>> = values.into_iter().collect();
        values.map(Scores::mean).ok_or_else(|| Error::Spice(format!("its output lacks scores of {missing} captions")))
    }

    fn run(&self, inputs: &[SpiceInput]) -> Result<Vec<SpiceOutput>, Error> {
        let folder = tempfile::tempdir().map_err(|source| Error::file(std::env::temp_dir(), source))?;
        let [input, output, cache, messages] =
            ["input.json", "output.json", "cache", "messages.txt"].map(|name| folder.path().join(name));
        let text = serde_json::to_vec_pretty(inputs).map_err(|error| Error::Spice(error.to_string()))?;
        std::fs::write(&input, text).map_err(|source| Error::file(&input, source))?;
        std::fs::create_dir(&cache).map_err(|source| Error::file(&cache, source))?;
        // A file, because the program would block on a full pipe.
        let stderr = File::create(&messages).map_err(|source| Error::file(&messages, source))?;

        let mut command = Command::new(&self.java);
        command.args(["-jar", "-Xmx8G"]).arg(self.jar.file_name().unwrap_or_default()).arg(&input);
        command.arg("-cache").arg(&cache).arg("-out").arg(&output).args(["-subset", "-silent"]);
        command.current_dir(self.jar.parent().unwrap_or(Path::new("/")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let status = self.run_to_end(command)?;
        if !status.success() {
            let messages = std::fs::read(&messages).unwrap_or_default();
            let messages = String::from_utf8_lossy(&messages);
            // Java prints the stack trace of an exception in indented lines after its message.
            let is_not_indented = |line: &&str| line.starts_with(|c: char| !c.is_whitespace());
            let last = messages.lines().rfind(is_not_indented).unwrap_or("it printed no message");
            return Err(Error::Spice(format!("{} failed ({status}): {}", self.jar.display(), last.trim_end())));
        }
        let output = std::fs::read(&output).map_err(|_| Error::Spice("the program wrote no output file".into()))?;
        serde_json::from_slice(&output).map_err(|error| Error::Spice(format!("its output cannot be parsed: {error}")))
    }

    /// Starts the program, waits for its end, and kills it at the time limit.
    fn run_to_end(&self, mut command: Command) -> Result<ExitStatus, Error> {
        let start_failed = |source| {
            Error::Spice(format!("{} cannot be started: {source}; install Java 8 or newer", self.java.display()))
        };
        let start = Instant::now();
        let mut child = command.spawn().map_err(start_failed)?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if start.elapsed() < self.time_limit => std::thread::sleep(POLL_INTERVAL),
                unfinished => {
                    // Killing fails if the program has just ended.
                    let _ = child.kill();
                    let _ = child.wait();
                    let limit = self.time_limit.as_secs();
                    let timed_out = || Error::Spice(format!("the program was stopped: it took more than {limit} s"));
                    return Err(unfinished.map_or_else(start_failed, |_| timed_out()));
                }
            }
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::item;

    /// A folder with empty jars, and a shell script that `tests/java` runs instead of Java. The
    /// script reads the input file `$4` and writes the output file `$8`.
    fn fake_spice(script: &str) -> (TempDir, Spice) {
        let folder = tempfile::tempdir().unwrap();
        let jar = folder.path().join("spice-1.0.jar");
        std::fs::write(&jar, "").unwrap();
        create_required_files(folder.path());
        std::fs::write(folder.path().join("fake-spice.sh"), script).unwrap();
        let java = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/java");
        let spice = Spice::open(&java, &jar).unwrap();
        (folder, spice)
    }

    fn create_required_files(folder: &Path) {
        std::fs::create_dir(folder.join("lib")).unwrap();
        REQUIRED_FILES.iter().for_each(|name| std::fs::write(folder.join(name), "").unwrap());
    }

    fn items() -> Vec<Item> {
        vec![item("A dog's bowl.", &["The dog, and \"its\" bowl.", "A bowl"]), item("a", &[]), item("", &["A cat."])]
    }

    fn error_message(script: &str) -> String {
        fake_spice(script).1.score(&items()).unwrap_err().to_string()
    }

    #[test]
    fn the_program_is_called_as_in_pycocoevalcap() {
        let (folder, spice) = fake_spice(
            r#"cp "$4" given.json && [ -d "$6" ] && dirname "$4" > input-folder && echo "$1 $2 $3 $5 $7 $9 ${10} $#" > arguments
               echo '[{"image_id": 2, "scores": {"All": {"f": null}, "Color": {"f": null}}},
                      {"image_id": 0, "scores": {"All": {"pr": 1.0, "re": 0.1, "f": 0.25}}}]' > "$8""#,
        );
        let scores = spice.score(&items()).unwrap();
        assert_eq!(scores, Scores { corpus: 0.25 / 3.0, items: vec![0.25, 0.0, 0.0] });
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("arguments"), "-jar -Xmx8G spice-1.0.jar -cache -out -subset -silent 10\n");
        let given: serde_json::Value = serde_json::from_str(&read("given.json")).unwrap();
        let expected = serde_json::json!([
            {"image_id": 0, "test": "a dog 's bowl", "refs": ["the dog and its bowl", "a bowl"]},
            {"image_id": 2, "test": "", "refs": ["a cat"]},
        ]);
        assert_eq!(given, expected);
        assert!(!Path::new(read("input-folder").trim()).exists());
    }

    #[test]
    fn failures_are_reported() {
        let trace =
            r"printf 'Exception in main\n\tat a.b\nCaused by: no memory\n\tat c.d\n\t... 3 more\n\n' >&2; exit 3";
        let failed = error_message(trace);
        assert!(failed.ends_with("spice-1.0.jar failed (exit status: 3): Caused by: no memory"), "{failed}");
        assert!(error_message("exit 1").ends_with("(exit status: 1): it printed no message"));
        assert_eq!(error_message("exit 0"), "SPICE: the program wrote no output file");
        assert!(
            error_message("echo '[{]' > \"$8\"")
                .contains("its output cannot be parsed: key must be a string at line 1")
        );
        assert_eq!(error_message("echo '[]' > \"$8\""), "SPICE: its output lacks scores of 2 captions");
        let unknown = error_message(r#"echo '[{"image_id": 9, "scores": {"All": {"f": 1}}}]' > "$8""#);
        assert_eq!(unknown, "SPICE: its output has a score of an unknown image 9");
    }

    #[test]
    fn a_program_that_hangs_is_stopped() {
        let (_folder, mut spice) = fake_spice("exec sleep 600");
        spice.time_limit = Duration::from_millis(50);
        let problem = spice.score(&items()).unwrap_err().to_string();
        assert_eq!(problem, "SPICE: the program was stopped: it took more than 0 s");
    }

    #[test]
    fn missing_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let jar = folder.path().join("spice-1.0.jar");
        let error = Spice::open(Path::new("java"), &jar).unwrap_err().to_string();
        assert!(error.contains("spice-1.0.jar: No such file"), "{error}");
        std::fs::write(&jar, "").unwrap();
        let error = Spice::open(Path::new("java"), &jar).unwrap_err().to_string();
        assert!(error.contains("lib/stanford-corenlp-3.6.0.jar: no such file; SPICE needs it"), "{error}");
        create_required_files(folder.path());
        let spice = Spice::open(Path::new("no-such-java"), &jar).unwrap();
        let error = spice.score(&items()).unwrap_err().to_string();
        assert!(error.starts_with("SPICE: no-such-java cannot be started: No such file"), "{error}");
        assert_eq!(spice.score(&[]).unwrap(), Scores { corpus: 0.0, items: vec![] });
    }
}
