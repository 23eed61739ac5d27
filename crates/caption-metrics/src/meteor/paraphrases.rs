//! The paraphrase table of the paraphrase stage.

use std::io::{self, BufRead};

use super::interner::StringInterner;

/// Phrases and their paraphrases. There are millions of paraphrases, and captions need only a few
/// of them, so they are stored unparsed, as lines of text.
#[derive(Debug)]
pub(super) struct ParaphraseTable {
    /// The phrases, with words separated by single spaces.
    phrases: StringInterner,
    /// The paraphrases of all phrases, one per line.
    paraphrase_lines: String,
    /// The end of each phrase's paraphrases in `paraphrase_lines`.
    ends: Vec<usize>,
    /// The number of words of the longest phrase.
    max_phrase_words: usize,
}

impl ParaphraseTable {
    /// Reads entries of three lines: a probability, which is ignored, a phrase, and a paraphrase.
    /// The entries of a phrase must be contiguous.
    pub fn read(table: &mut impl BufRead) -> io::Result<Self> {
        let mut phrases = StringInterner::default();
        let mut paraphrase_lines = Vec::new();
        let mut ends = Vec::new();
        let mut max_phrase_words = 0;
        let [mut probability, mut phrase, mut next_phrase] = [const { Vec::new() }; 3];
        while read_line(table, &mut probability)? {
            if !probability.first().is_some_and(u8::is_ascii_digit) {
                return Err(invalid_data("an entry does not begin with a probability"));
            }
            next_phrase.clear();
            if !(read_line(table, &mut next_phrase)? && read_line(table, &mut paraphrase_lines)?) {
                return Err(invalid_data("ends within an entry"));
            }
            next_phrase.truncate(next_phrase.trim_ascii_end().len());
            if ends.is_empty() || phrase != next_phrase {
                let phrase_id = phrases.intern(&next_phrase).map_err(|_| invalid_data("too many phrases"))?;
                if (phrase_id as usize) < ends.len() {
                    let phrase = String::from_utf8_lossy(&next_phrase).into_owned();
                    return Err(invalid_data(format!("the paraphrases of {phrase:?} are not contiguous")));
                }
                max_phrase_words = max_phrase_words.max(next_phrase.split(|&byte| byte == b' ').count());
                ends.push(0);
                std::mem::swap(&mut phrase, &mut next_phrase);
            }
            if let Some(end) = ends.last_mut() {
                *end = paraphrase_lines.len();
            }
            probability.clear();
        }
        let paraphrase_lines =
            String::from_utf8(paraphrase_lines).map_err(|_| invalid_data("a paraphrase is not UTF-8"))?;
        Ok(Self { phrases, paraphrase_lines, ends, max_phrase_words })
    }

    /// The number of words of the longest phrase.
    pub fn max_phrase_words(&self) -> usize {
        self.max_phrase_words
    }

    /// The id of a phrase; none if it has no paraphrases.
    pub fn phrase_id(&self, phrase: &str) -> Option<u32> {
        self.phrases.find(phrase.as_bytes())
    }

    /// The paraphrases of a phrase, in the order of the table.
    pub fn paraphrases(&self, phrase_id: u32) -> impl Iterator<Item = &str> {
        let phrase_id = phrase_id as usize;
        let start = if phrase_id == 0 { 0 } else { self.ends[phrase_id - 1] };
        self.paraphrase_lines[start..self.ends[phrase_id]].lines()
    }
}

/// Appends a line and its line break to `into`. Returns false at the end of the table.
fn read_line(table: &mut impl BufRead, into: &mut Vec<u8>) -> io::Result<bool> {
    Ok(table.read_until(b'\n', into)? > 0)
}

fn invalid_data(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}
