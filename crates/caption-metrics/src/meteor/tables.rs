//! What METEOR looks up, read from the user's files.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use zip::ZipArchive;

use super::normalise::{KeepsStop, Prefixes};
use super::paraphrases::Paraphrases;
use super::synonyms::Synonyms;
use crate::Error;

/// The largest file of the archive that is read, in bytes; the largest of METEOR 1.5 that counts has 3.7 million.
const MAX_IN_JAR_BYTES: u64 = 1 << 25;

/// The most that the table of paraphrases may be without its compression, in bytes; that of METEOR 1.5 has 272 million.
const MAX_PARAPHRASES_BYTES: u64 = 1 << 29;

/// By what words and phrases match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// They are the same.
    Exact,
    /// They have the same stem, by the Snowball stemmer for English.
    Stem,
    /// They are in the same set of synonyms of WordNet.
    Synonym,
    /// A table says that they are used for each other.
    Paraphrase,
}

/// The tables of METEOR 1.5 for English, as far as there are files to read them from.
#[derive(Debug, Default)]
pub struct Tables {
    pub(super) function_words: HashSet<String>,
    pub(super) prefixes: Prefixes,
    pub(super) synonyms: Option<Synonyms>,
    pub(super) paraphrases: Option<Paraphrases>,
}

impl Tables {
    /// Reads `jar`, which is `meteor-1.5.jar`, and `paraphrases`, which is `paraphrase-en.gz`, as METEOR's authors
    /// publish them and the package pycocoevalcap has them. Takes one or two seconds and 150 MB of memory.
    ///
    /// Values are only comparable with published ones if both are there. Without `jar`, there is no stage of synonyms,
    /// all words count as content words (the list of function words is in there), and the only full stops left at their
    /// words are those in front of small letters. Without `paraphrases`, there is no stage of paraphrases.
    pub fn open(jar: Option<&Path>, paraphrases: Option<&Path>) -> Result<Self, Error> {
        let mut tables = Self::default();
        if let Some(path) = jar {
            tables.read_jar(path)?;
        }
        if let Some(path) = paraphrases {
            tables.paraphrases = Some(read_paraphrases(path, MAX_PARAPHRASES_BYTES)?);
        }
        Ok(tables)
    }

    /// The stages that there are tables for. All four are what published values mean by METEOR.
    pub fn stages(&self) -> impl Iterator<Item = Stage> {
        let synonym = self.synonyms.as_ref().map(|_| Stage::Synonym);
        let paraphrase = self.paraphrases.as_ref().map(|_| Stage::Paraphrase);
        [Stage::Exact, Stage::Stem].into_iter().chain(synonym).chain(paraphrase)
    }

    fn read_jar(&mut self, path: &Path) -> Result<(), Error> {
        let format = |problem: String| Error::Format { path: path.into(), problem };
        let archive = BufReader::new(open(path)?);
        let mut archive = ZipArchive::new(archive).map_err(|error| format(error.to_string()))?;
        let mut read = |name: &str| {
            let text = read_member(&mut archive, name).map_err(|problem| format(format!("{name}: {problem}")))?;
            Ok::<String, Error>(text)
        };
        self.function_words = read("function/english.words")?.lines().map(Into::into).collect();
        self.prefixes = prefixes(&read("nonbreaking/english.prefixes")?);
        let [sets, exceptions] = [read("synonym/english.synsets")?, read("synonym/english.exceptions")?];
        let synonyms = Synonyms::parse(&sets, &exceptions);
        self.synonyms = Some(synonyms.map_err(|problem| format(format!("table of synonyms: {problem}")))?);
        Ok(())
    }
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::File { path: path.into(), source })
}

fn read_member(archive: &mut ZipArchive<BufReader<File>>, name: &str) -> Result<String, String> {
    let member = archive.by_name(name).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    member.take(MAX_IN_JAR_BYTES + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_IN_JAR_BYTES {
        return Err(format!("larger than {MAX_IN_JAR_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8".into())
}

/// A word a line, with a mark if it is one only before numbers; `#` begins a comment.
fn prefixes(text: &str) -> Prefixes {
    let prefix = |line: &str| {
        let mut fields = line.split_whitespace();
        let word = fields.next().filter(|word| !word.starts_with('#'))?;
        let keeps = match fields.next() {
            Some("#NUMERIC_ONLY#") => KeepsStop::BeforeNumber,
            _ => KeepsStop::Always,
        };
        Some((word.to_owned(), keeps))
    };
    text.lines().filter_map(prefix).collect()
}

fn read_paraphrases(path: &Path, most_bytes: u64) -> Result<Paraphrases, Error> {
    let format = |problem: String| Error::Format { path: path.into(), problem };
    let table = MultiGzDecoder::new(BufReader::new(open(path)?)).take(most_bytes);
    let mut table = BufReader::with_capacity(1 << 16, table);
    let paraphrases = Paraphrases::read(&mut table);
    if table.get_ref().limit() == 0 {
        return Err(format(format!("{most_bytes} bytes or more without its compression")));
    }
    paraphrases.map_err(|error| format(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    const MEMBERS: [(&str, &[u8]); 4] = [
        ("function/english.words", b"a\nthe\n"),
        ("nonbreaking/english.prefixes", b"#comment\n\nvs\nNo #NUMERIC_ONLY#\n"),
        ("synonym/english.synsets", b"dog\n1\n"),
        ("synonym/english.exceptions", b"dog\ndogz\n"),
    ];

    fn jar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, content) in members {
            archive.start_file(*name, SimpleFileOptions::default()).unwrap();
            archive.write_all(content).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    fn gz(content: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(content).unwrap();
        packed.finish().unwrap()
    }

    /// What is wrong with a file that has `content`, without the name of the file, which the message has.
    fn problem(content: &[u8], is_jar: bool) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        fs::write(&path, content).unwrap();
        let opened = if is_jar { Tables::open(Some(&path), None) } else { Tables::open(None, Some(&path)) };
        let message = opened.unwrap_err().to_string();
        message.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    }

    #[test]
    fn tables_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let [jar_path, gz_path] = ["jar", "gz"].map(|name| folder.path().join(name));
        fs::write(&jar_path, jar(&MEMBERS)).unwrap();
        fs::write(&gz_path, gz(b"0.5\nbig dog\nhound\n")).unwrap();
        let tables = Tables::open(Some(&jar_path), Some(&gz_path)).unwrap();
        let all = [Stage::Exact, Stage::Stem, Stage::Synonym, Stage::Paraphrase];
        assert!(tables.stages().eq(all));
        assert!(tables.function_words.contains("the") && tables.function_words.len() == 2);
        let prefixes = [("vs".to_owned(), KeepsStop::Always), ("No".to_owned(), KeepsStop::BeforeNumber)];
        assert_eq!(tables.prefixes, Prefixes::from(prefixes));
        assert!(Tables::open(None, Some(&gz_path)).unwrap().stages().eq([
            Stage::Exact,
            Stage::Stem,
            Stage::Paraphrase
        ]));
        assert!(Tables::open(None, None).unwrap().stages().eq([Stage::Exact, Stage::Stem]));
    }

    #[test]
    fn damaged_archives_are_told() {
        let whole = jar(&MEMBERS);
        for length in 0..whole.len() {
            problem(&whole[..length], true);
        }
        assert_eq!(problem(b"no archive", true), "invalid Zip archive: Could not find EOCD");
        let missing = problem(&jar(&MEMBERS[..2]), true);
        assert!(missing.starts_with("synonym/english.synsets: "), "{missing}");
        let with = |index: usize, content: &'static [u8]| {
            let mut members = MEMBERS;
            members[index].1 = content;
            problem(&jar(&members), true)
        };
        assert_eq!(with(0, b"\xff"), "function/english.words: not UTF-8");
        assert_eq!(with(2, b"dog\n"), "table of synonyms: ends within an entry");
        let large = vec![b'\n'; MAX_IN_JAR_BYTES as usize + 1];
        let large = problem(&jar(&[(MEMBERS[0].0, &large)]), true);
        assert_eq!(large, "function/english.words: larger than 33554432 bytes");
    }

    #[test]
    fn damaged_tables_of_paraphrases_are_told() {
        let whole = gz(b"0.5\nbig dog\nhound\n0.25\ndog\nhound\n");
        for length in 0..whole.len() {
            problem(&whole[..length], false);
        }
        assert_eq!(problem(&gz(b"0.5\nbig dog\n"), false), "ends within an entry");
        assert_eq!(problem(&gz(b"big dog\nhound\n0.5\n"), false), "an entry does not begin with a probability");
        assert_eq!(problem(&gz(b"0.5\ndog\n\xff\n"), false), "a paraphrase is not UTF-8");
        let apart = gz(b"0.5\na\nb\n0.5\nb\na\n0.5\na\nc\n");
        assert_eq!(problem(&apart, false), "the paraphrases of \"a\" are not together");
    }

    #[test]
    fn a_table_that_is_too_large_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let entry = b"0.5\na\nb\n";
        fs::write(&path, gz(entry)).unwrap();
        assert!(read_paraphrases(&path, entry.len() as u64 + 1).is_ok());
        // A line that does not end is no way around.
        fs::write(&path, gz(&[b'0'; 1 << 20])).unwrap();
        let message = read_paraphrases(&path, 1000).unwrap_err().to_string();
        assert!(message.ends_with(": 1000 bytes or more without its compression"), "{message}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_damage_is_worse_than_an_error(
            is_jar: bool,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("table");
            let mut content = if is_jar { jar(&MEMBERS) } else { gz(b"0.5\nbig dog\nhound\n") };
            for (index, byte) in damage {
                *index.get_mut(&mut content) = byte;
            }
            fs::write(&path, &content).unwrap();
            let opened = if is_jar { Tables::open(Some(&path), None) } else { Tables::open(None, Some(&path)) };
            if let Err(error) = opened {
                prop_assert!(error.to_string().starts_with(&path.display().to_string()));
            }
        }
    }

    #[test]
    fn missing_files_are_named() {
        let path = Path::new("no/such/file");
        for opened in [Tables::open(Some(path), None), Tables::open(None, Some(path))] {
            assert!(opened.unwrap_err().to_string().starts_with("no/such/file: "));
        }
    }
}
