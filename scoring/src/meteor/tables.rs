//! What METEOR looks up, read from the user's files.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use zip::ZipArchive;

use super::normalise::{KeepsStop, Prefixes};
use super::paraphrases::Paraphrases;
use super::synonyms::Synonyms;

/// The largest file of the archive that is read, in bytes; the largest of METEOR 1.5 that counts has 3.7 million.
const LARGEST_IN_JAR: u64 = 1 << 25;

/// The most that the table of paraphrases may be without its compression, in bytes; that of METEOR 1.5 has 272 million.
const LARGEST_PARAPHRASES: u64 = 1 << 29;

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

/// Why a file with tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be opened.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be, or is damaged.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl Tables {
    /// Reads `jar`, which is `meteor-1.5.jar`, and `paraphrases`, which is `paraphrase-en.gz`, as METEOR's authors
    /// publish them and the package pycocoevalcap has them. Takes some seconds and 50 MB of memory.
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
            tables.paraphrases = Some(read_paraphrases(path)?);
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
    member.take(LARGEST_IN_JAR + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LARGEST_IN_JAR {
        return Err(format!("larger than {LARGEST_IN_JAR} bytes"));
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

fn read_paraphrases(path: &Path) -> Result<Paraphrases, Error> {
    let format = |problem: String| Error::Format { path: path.into(), problem };
    let table = MultiGzDecoder::new(BufReader::new(open(path)?)).take(LARGEST_PARAPHRASES);
    let mut table = BufReader::with_capacity(1 << 16, table);
    let paraphrases = Paraphrases::read(&mut table);
    if table.get_ref().limit() == 0 {
        return Err(format(format!("{LARGEST_PARAPHRASES} bytes or more without its compression")));
    }
    paraphrases.map_err(|error| format(error.to_string()))
}
