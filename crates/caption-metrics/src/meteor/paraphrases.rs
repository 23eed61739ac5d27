//! The paraphrase stage's table: phrases and what they may be replaced by.

use std::io::{self, BufRead};

use super::interner::Interner;

/// Phrases, by number, and their paraphrases. There are millions of those and few are ever asked for, so they stay the
/// text that they come as.
#[derive(Debug)]
pub(super) struct Paraphrases {
    /// Their words are separated by single spaces.
    phrases: Interner,
    /// Paraphrases, a line each.
    listed: String,
    /// Where those of each phrase end in `listed`.
    ends: Vec<usize>,
    /// Words of the longest phrase.
    longest: usize,
}

impl Paraphrases {
    /// Reads entries of three lines: a probability, which does not count, a phrase and a paraphrase. Those of a phrase
    /// must follow each other.
    pub fn read(table: &mut impl BufRead) -> io::Result<Self> {
        let mut phrases = Interner::default();
        let mut listed = Vec::new();
        let mut ends = Vec::new();
        let mut longest = 0;
        let [mut probability, mut phrase, mut next] = [const { Vec::new() }; 3];
        while read_line(table, &mut probability)? {
            if !probability.first().is_some_and(u8::is_ascii_digit) {
                return Err(invalid("an entry does not begin with a probability"));
            }
            next.clear();
            if !(read_line(table, &mut next)? && read_line(table, &mut listed)?) {
                return Err(invalid("ends within an entry"));
            }
            next.truncate(next.trim_ascii_end().len());
            if ends.is_empty() || phrase != next {
                let number = phrases.intern(&next).map_err(|_| invalid("too many phrases"))?;
                if (number as usize) < ends.len() {
                    let phrase = String::from_utf8_lossy(&next).into_owned();
                    return Err(invalid(format!("the paraphrases of {phrase:?} are not together")));
                }
                longest = longest.max(next.split(|&byte| byte == b' ').count());
                ends.push(0);
                std::mem::swap(&mut phrase, &mut next);
            }
            if let Some(end) = ends.last_mut() {
                *end = listed.len();
            }
            probability.clear();
        }
        let listed = String::from_utf8(listed).map_err(|_| invalid("a paraphrase is not UTF-8"))?;
        Ok(Self { phrases, listed, ends, longest })
    }

    /// Words of the longest phrase.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The number of a phrase.
    pub fn find(&self, phrase: &str) -> Option<u32> {
        self.phrases.find(phrase.as_bytes())
    }

    /// The paraphrases of a phrase, in the order of the table.
    pub fn of(&self, number: u32) -> impl Iterator<Item = &str> {
        let number = number as usize;
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        self.listed[start..self.ends[number]].lines()
    }
}

/// Appends a line with its end to `into`. False where there is none left.
fn read_line(table: &mut impl BufRead, into: &mut Vec<u8>) -> io::Result<bool> {
    Ok(table.read_until(b'\n', into)? > 0)
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}
