//! Paths of a run file are relative to its folder: the file and its data can be moved together, and
//! a command has the same effect in every folder.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::{Coco, CocoSplit, Data, Error, Evaluator, Karpathy, Positives, RunFile, Scoring};

/// Makes all paths absolute, because workers run in other folders and on other machines.
/// `run_file` is the path of the file.
pub(crate) fn resolve(run: &mut RunFile, run_file: &Path) -> io::Result<()> {
    let run_file = std::path::absolute(run_file)?;
    let folder = run_file.parent().unwrap_or(&run_file).to_owned();
    // A current folder that was removed is no reason to refuse absolute paths.
    let current = std::env::current_dir().unwrap_or_else(|_| folder.clone());
    let base = PathBase { folder, current };
    for path in paths_mut(run) {
        *path = base.resolve(path, Path::exists)?;
    }
    if let Some(tars) = &mut run.data.webdataset {
        for pattern in [&mut tars.train, &mut tars.validation].into_iter().chain(tars.test.as_mut()) {
            if !pattern.contains("://") {
                *pattern = base.resolve(Path::new(pattern), folder_exists)?.to_string_lossy().into_owned();
            }
        }
    }
    Ok(())
}

/// All paths of a run file but the patterns of `data.webdataset`.
fn paths_mut(run: &mut RunFile) -> impl Iterator<Item = &mut PathBuf> {
    let Data { karpathy, coco, scenes, features, positives, .. } = &mut run.data;
    let karpathy = karpathy.as_mut().map(|Karpathy { annotations, images }| [annotations, images]);
    let coco = coco.as_mut().map(|Coco { train, validation, test }| [Some(train), Some(validation), test.as_mut()]);
    let coco = coco.into_iter().flatten().flatten();
    let coco = coco.flat_map(|CocoSplit { annotations, images }| [annotations, images]);
    let positives = positives.as_mut().map(|Positives { images, captions }| [images, captions]);
    let Scoring { meteor_jar, meteor_paraphrases, spice_jar } = &mut run.scoring;
    let evaluators = run.evaluator.iter_mut().chain(run.evaluators.values_mut());
    let models = [&mut run.captioner.weights, &mut run.captioner.vision_encoder].into_iter();
    let models = models.chain(evaluators.map(|evaluator| &mut evaluator.weights));
    let optional = [scenes, features, meteor_jar, meteor_paraphrases, spice_jar].into_iter().chain(models);
    std::iter::once(&mut run.output)
        .chain(karpathy.into_iter().flatten())
        .chain(coco)
        .chain(optional.chain(positives.into_iter().flatten()).flatten())
}

impl Evaluator {
    /// Reads a file with the settings of one evaluator: the keys that a run file has under
    /// `evaluator`. A relative path in the file is relative to its folder.
    ///
    /// # Errors
    /// The file cannot be read, is not YAML, or has an unknown key or a wrong type. Values are
    /// not checked.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut evaluator: Self =
            serde_saphyr::from_str(&text).map_err(|error| Error::from_yaml(path, &text, &error))?;
        let file = std::path::absolute(path).map_err(failed)?;
        let folder = file.parent().unwrap_or(&file);
        evaluator.weights = evaluator.weights.map(|weights| normalised(&folder.join(weights)));
        Ok(evaluator)
    }
}

/// Where relative paths start.
struct PathBase {
    /// The folder of the run file.
    folder: PathBuf,
    /// The current folder, from which earlier versions took relative paths.
    current: PathBuf,
}

impl PathBase {
    /// The absolute form of `path`. A relative path that, according to `exists`, does not exist
    /// below the run file's folder but does below the current folder is taken from the current
    /// folder, with a warning: in earlier versions, paths were relative to that folder.
    fn resolve(&self, path: &Path, exists: impl Fn(&Path) -> bool) -> io::Result<PathBuf> {
        if path.is_absolute() {
            return std::path::absolute(path);
        }
        let [beside, below_current] = [&self.folder, &self.current].map(|folder| normalised(&folder.join(path)));
        if !exists(&beside) && exists(&below_current) {
            tracing::warn!(
                "`{}` is taken from the current folder, as earlier versions did, because it is not in {}, the run file's \
                 folder: write it relative to that folder, or absolute",
                path.display(),
                self.folder.display()
            );
            return Ok(below_current);
        }
        Ok(beside)
    }
}

/// Whether the folder of a brace pattern exists: the path up to the last `/` before the first
/// brace.
fn folder_exists(pattern: &Path) -> bool {
    let text = pattern.to_string_lossy();
    let plain = text.split('{').next().unwrap_or_default();
    Path::new(plain.rsplit_once('/').map_or("", |(folder, _)| folder)).is_dir()
}

/// An absolute path without `.` and `..`, so that journals and messages have one path for a file.
fn normalised(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // In the root, `pop` does nothing: the root's parent is the root.
            Component::ParentDir => _ = normal.pop(),
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "
name: test
output: out
workers: { min: 1, max: 2 }
data: { webdataset: { train: '../tars/{a..c}.tar', validation: 's3://bucket/v.tar', test: /t.tar } }
captioner: { weights: captioner }
evaluator: { weights: ./weights/pac.pth }
stages:
  - { name: dico, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

    #[test]
    fn relative_paths_start_at_the_run_file() {
        let folder = tempfile::tempdir().unwrap();
        let runs = folder.path().join("runs");
        std::fs::create_dir(&runs).unwrap();
        std::fs::write(runs.join("run.yaml"), RUN).unwrap();
        // However the run file is named.
        for run_file in [runs.join("run.yaml"), runs.join("../runs/./run.yaml")] {
            let run = RunFile::load(&run_file).unwrap();
            let tars = run.data.webdataset.clone().unwrap();
            assert_eq!(
                (run.output.clone(), run.primary_evaluator().settings.weights.clone()),
                (runs.join("out"), Some(runs.join("weights/pac.pth")))
            );
            assert_eq!(tars.train, folder.path().join("tars/{a..c}.tar").to_string_lossy());
            assert_eq!((tars.validation.as_str(), tars.test.as_deref()), ("s3://bucket/v.tar", Some("/t.tar")));
        }
    }

    #[test]
    fn what_only_the_current_folder_has_is_taken_from_there() {
        let base = PathBase { folder: "/runs/configs".into(), current: "/runs".into() };
        let resolved = |path: &str, existing: &[&str]| {
            let exists = |path: &Path| existing.iter().any(|existing| Path::new(existing) == path);
            base.resolve(Path::new(path), exists).unwrap().to_string_lossy().into_owned()
        };
        assert_eq!(resolved("a.json", &[]), "/runs/configs/a.json");
        assert_eq!(resolved("a.json", &["/runs/a.json"]), "/runs/a.json");
        assert_eq!(resolved("a.json", &["/runs/a.json", "/runs/configs/a.json"]), "/runs/configs/a.json");
        assert_eq!(resolved("../a.json", &[]), "/runs/a.json");
        assert_eq!(resolved("../../../../a.json", &[]), "/a.json");
        assert_eq!(resolved("/a/../b.json", &[]), "/a/../b.json");
    }

    #[test]
    fn the_folder_of_a_pattern_ends_before_its_braces() {
        let folder = tempfile::tempdir().unwrap();
        let exists = |pattern: &str| folder_exists(&folder.path().join(pattern));
        assert!(exists("{a..c}.tar") && exists("x-{a,b}/c.tar") && exists("a.tar"));
        assert!(!exists("missing/{a..c}.tar") && !exists("missing/a.tar"));
    }
}
