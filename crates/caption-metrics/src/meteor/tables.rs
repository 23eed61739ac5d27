//! METEOR's tables, read from the user's files.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::string::FromUtf8Error;

use flate2::bufread::MultiGzDecoder;
use zip::ZipArchive;
use zip::result::ZipError;

use super::normalizer::{FullStopRule, NonbreakingPrefixes};
use super::paraphrases::ParaphraseTable;
use super::synonyms::SynonymTable;
use crate::Error;

/// Maximal size of an entry of the jar, in bytes. The largest entry that is read from METEOR 1.5
/// has 3.7 million.
const MAX_JAR_ENTRY_BYTES: u64 = 1 << 25;

/// Maximal uncompressed size of the paraphrase table, in bytes. That of METEOR 1.5 has 272 million.
const MAX_PARAPHRASES_BYTES: u64 = 1 << 29;

/// A stage of matching words and phrases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchStage {
    /// The words are equal.
    Exact,
    /// The words have the same stem, by the Snowball stemmer for English.
    Stem,
    /// The words or their base forms are in a common synonym set of WordNet.
    Synonym,
    /// The paraphrase table has one phrase as a paraphrase of the other.
    Paraphrase,
}

/// The tables of METEOR 1.5 for English; those without a file are empty.
#[derive(Debug, Default)]
pub struct MeteorTables {
    pub(super) function_words: HashSet<String>,
    pub(super) nonbreaking_prefixes: NonbreakingPrefixes,
    pub(super) synonyms: Option<SynonymTable>,
    pub(super) paraphrases: Option<ParaphraseTable>,
}

impl MeteorTables {
    /// Reads `jar` (`meteor-1.5.jar`) and `paraphrases` (`paraphrase-en.gz`), as published by
    /// METEOR's authors and in the package pycocoevalcap. Takes one or two seconds and 150 MB of
    /// memory.
    ///
    /// Values are comparable with published ones only with both files. Without `jar` there is no
    /// synonym stage, all words count as content words, and words keep their full stop only before
    /// lower-case letters. Without `paraphrases` there is no paraphrase stage.
    ///
    /// # Errors
    /// A file cannot be read or is invalid.
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

    /// The active stages: those that need no table or whose table was read. Published values use
    /// all four.
    pub fn stages(&self) -> impl Iterator<Item = MatchStage> {
        let synonym = self.synonyms.as_ref().map(|_| MatchStage::Synonym);
        let paraphrase = self.paraphrases.as_ref().map(|_| MatchStage::Paraphrase);
        [MatchStage::Exact, MatchStage::Stem].into_iter().chain(synonym).chain(paraphrase)
    }

    fn read_jar(&mut self, path: &Path) -> Result<(), Error> {
        let format_error = |problem: String| Error::Invalid { path: path.into(), problem };
        let archive = BufReader::new(open_file(path)?);
        let mut archive = ZipArchive::new(archive).map_err(|error| format_error(error.to_string()))?;
        let mut read = |name: &str| {
            let text = read_entry(&mut archive, name).map_err(|problem| format_error(format!("{name}: {problem}")))?;
            Ok::<String, Error>(text)
        };
        self.function_words = read("function/english.words")?.lines().map(Into::into).collect();
        self.nonbreaking_prefixes = parse_nonbreaking_prefixes(&read("nonbreaking/english.prefixes")?);
        let [sets, exceptions] = [read("synonym/english.synsets")?, read("synonym/english.exceptions")?];
        let synonyms = SynonymTable::parse(&sets, &exceptions);
        self.synonyms = Some(synonyms.map_err(|problem| format_error(format!("synonym table: {problem}")))?);
        Ok(())
    }
}

fn open_file(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::File { path: path.into(), source })
}

/// An error in reading an entry of the jar.
#[derive(Debug, thiserror::Error)]
enum JarEntryError {
    #[error(transparent)]
    Zip(#[from] ZipError),
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error("larger than {MAX_JAR_ENTRY_BYTES} bytes")]
    TooLarge,
    #[error("not UTF-8")]
    NotUtf8(#[from] FromUtf8Error),
}

fn read_entry(archive: &mut ZipArchive<BufReader<File>>, name: &str) -> Result<String, JarEntryError> {
    let entry = archive.by_name(name)?;
    let mut bytes = Vec::new();
    entry.take(MAX_JAR_ENTRY_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_JAR_ENTRY_BYTES {
        return Err(JarEntryError::TooLarge);
    }
    Ok(String::from_utf8(bytes)?)
}

/// Parses one word per line, with a mark if it keeps its full stop only before numbers; `#` begins
/// a comment.
fn parse_nonbreaking_prefixes(text: &str) -> NonbreakingPrefixes {
    let prefix = |line: &str| {
        let mut fields = line.split_whitespace();
        let word = fields.next().filter(|word| !word.starts_with('#'))?;
        let rule = match fields.next() {
            Some("#NUMERIC_ONLY#") => FullStopRule::BeforeNumber,
            _ => FullStopRule::Always,
        };
        Some((word.to_owned(), rule))
    };
    text.lines().filter_map(prefix).collect()
}

fn read_paraphrases(path: &Path, max_bytes: u64) -> Result<ParaphraseTable, Error> {
    let format_error = |problem: String| Error::Invalid { path: path.into(), problem };
    let table = MultiGzDecoder::new(BufReader::new(open_file(path)?)).take(max_bytes);
    let mut table = BufReader::with_capacity(1 << 16, table);
    let paraphrases = ParaphraseTable::read(&mut table);
    if table.get_ref().limit() == 0 {
        return Err(format_error(format!("{max_bytes} bytes or more without its compression")));
    }
    paraphrases.map_err(|error| format_error(error.to_string()))
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

    const ENTRIES: [(&str, &[u8]); 4] = [
        ("function/english.words", b"a\nthe\n"),
        ("nonbreaking/english.prefixes", b"#comment\n\nvs\nNo #NUMERIC_ONLY#\n"),
        ("synonym/english.synsets", b"dog\n1\n"),
        ("synonym/english.exceptions", b"dog\ndogz\n"),
    ];

    fn jar(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, content) in entries {
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

    /// The error message for a file with `content`, without the path that the message begins with.
    fn error_message(content: &[u8], is_jar: bool) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        fs::write(&path, content).unwrap();
        let opened = if is_jar { MeteorTables::open(Some(&path), None) } else { MeteorTables::open(None, Some(&path)) };
        let message = opened.unwrap_err().to_string();
        message.strip_prefix(&format!("{}: ", path.display())).unwrap().to_owned()
    }

    #[test]
    fn tables_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let [jar_path, gz_path] = ["jar", "gz"].map(|name| folder.path().join(name));
        fs::write(&jar_path, jar(&ENTRIES)).unwrap();
        fs::write(&gz_path, gz(b"0.5\nbig dog\nhound\n")).unwrap();
        let tables = MeteorTables::open(Some(&jar_path), Some(&gz_path)).unwrap();
        let all = [MatchStage::Exact, MatchStage::Stem, MatchStage::Synonym, MatchStage::Paraphrase];
        assert!(tables.stages().eq(all));
        assert!(tables.function_words.contains("the") && tables.function_words.len() == 2);
        let prefixes = [("vs".to_owned(), FullStopRule::Always), ("No".to_owned(), FullStopRule::BeforeNumber)];
        assert_eq!(tables.nonbreaking_prefixes, NonbreakingPrefixes::from(prefixes));
        assert!(MeteorTables::open(None, Some(&gz_path)).unwrap().stages().eq([
            MatchStage::Exact,
            MatchStage::Stem,
            MatchStage::Paraphrase
        ]));
        assert!(MeteorTables::open(None, None).unwrap().stages().eq([MatchStage::Exact, MatchStage::Stem]));
    }

    #[test]
    fn damaged_archives_are_refused() {
        let complete = jar(&ENTRIES);
        for length in 0..complete.len() {
            error_message(&complete[..length], true);
        }
        assert_eq!(error_message(b"no archive", true), "invalid Zip archive: Could not find EOCD");
        let missing = error_message(&jar(&ENTRIES[..2]), true);
        assert!(missing.starts_with("synonym/english.synsets: "), "{missing}");
        let message_with_entry = |index: usize, content: &'static [u8]| {
            let mut entries = ENTRIES;
            entries[index].1 = content;
            error_message(&jar(&entries), true)
        };
        assert_eq!(message_with_entry(0, b"\xff"), "function/english.words: not UTF-8");
        assert_eq!(message_with_entry(2, b"dog\n"), "synonym table: ends within an entry");
        let large = vec![b'\n'; MAX_JAR_ENTRY_BYTES as usize + 1];
        let large = error_message(&jar(&[(ENTRIES[0].0, &large)]), true);
        assert_eq!(large, "function/english.words: larger than 33554432 bytes");
    }

    #[test]
    fn damaged_paraphrase_tables_are_refused() {
        let complete = gz(b"0.5\nbig dog\nhound\n0.25\ndog\nhound\n");
        for length in 0..complete.len() {
            error_message(&complete[..length], false);
        }
        assert_eq!(error_message(&gz(b"0.5\nbig dog\n"), false), "ends within an entry");
        assert_eq!(error_message(&gz(b"big dog\nhound\n0.5\n"), false), "an entry does not begin with a probability");
        assert_eq!(error_message(&gz(b"0.5\ndog\n\xff\n"), false), "a paraphrase is not UTF-8");
        let apart = gz(b"0.5\na\nb\n0.5\nb\na\n0.5\na\nc\n");
        assert_eq!(error_message(&apart, false), "the paraphrases of \"a\" are not contiguous");
    }

    #[test]
    fn oversized_paraphrase_tables_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table");
        let entry = b"0.5\na\nb\n";
        fs::write(&path, gz(entry)).unwrap();
        assert!(read_paraphrases(&path, entry.len() as u64 + 1).is_ok());
        // A single line without an end.
        fs::write(&path, gz(&[b'0'; 1 << 20])).unwrap();
        let message = read_paraphrases(&path, 1000).unwrap_err().to_string();
        assert!(message.ends_with(": 1000 bytes or more without its compression"), "{message}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damaged_files_cause_errors_that_name_the_file(
            is_jar: bool,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("table");
            let mut content = if is_jar { jar(&ENTRIES) } else { gz(b"0.5\nbig dog\nhound\n") };
            for (index, byte) in damage {
                *index.get_mut(&mut content) = byte;
            }
            fs::write(&path, &content).unwrap();
            let opened = if is_jar { MeteorTables::open(Some(&path), None) } else { MeteorTables::open(None, Some(&path)) };
            if let Err(error) = opened {
                prop_assert!(error.to_string().starts_with(&path.display().to_string()));
            }
        }
    }

    #[test]
    fn missing_files_are_named() {
        let path = Path::new("no/such/file");
        for opened in [MeteorTables::open(Some(path), None), MeteorTables::open(None, Some(path))] {
            assert!(opened.unwrap_err().to_string().starts_with("no/such/file: "));
        }
    }
}
