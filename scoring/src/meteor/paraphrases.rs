//! The paraphrase stage's table: phrases by the phrases they may stand for.

use std::io::{self, BufRead};

use super::interner::Interner;
use super::lists::Lists;
use super::matches::Span;

/// Phrases of up to some words and their paraphrases.
#[derive(Debug)]
pub(super) struct Paraphrases {
    /// Words are separated by single spaces.
    phrases: Interner,
    /// The paraphrases of a phrase, in the order of the table.
    paraphrases: Lists,
    /// Words of the longest phrase.
    longest: usize,
}

/// A phrase of the table, where a caption has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phrase {
    pub span: Span,
    number: u32,
}

impl Paraphrases {
    /// Reads entries of three lines: a probability, which is not used, a phrase and a paraphrase.
    pub fn read(table: &mut impl BufRead) -> io::Result<Self> {
        let invalid = |problem| io::Error::new(io::ErrorKind::InvalidData, problem);
        let mut phrases = Interner::default();
        let mut longest = 0;
        let mut number = |text: &[u8]| {
            let known = phrases.len();
            let number = phrases.intern(text).map_err(|_| invalid("too many phrases"))?;
            if phrases.len() > known {
                let text = str::from_utf8(text).map_err(|_| invalid("a phrase is not UTF-8"))?;
                longest = longest.max(text.split(' ').count());
            }
            Ok::<u32, io::Error>(number)
        };
        let mut pairs = Vec::new();
        let [mut probability, mut phrase, mut next, mut paraphrase] = [const { Vec::new() }; 4];
        let mut phrase_number = None;
        while line(table, &mut probability)? {
            if !probability.first().is_some_and(u8::is_ascii_digit) {
                return Err(invalid("an entry does not begin with a probability"));
            }
            if !(line(table, &mut next)? && line(table, &mut paraphrase)?) {
                return Err(invalid("ends within an entry"));
            }
            // The same phrase comes many times in a row.
            let from = match phrase_number {
                Some(same) if phrase == next => same,
                _ => number(&next)?,
            };
            phrase_number = Some(from);
            std::mem::swap(&mut phrase, &mut next);
            pairs.push((from, number(&paraphrase)?));
        }
        let paraphrases = Lists::of_pairs(&pairs, phrases.len());
        Ok(Self { phrases, paraphrases, longest })
    }

    /// What the table knows of a caption's words, the shorter phrase first where two start at the same word.
    pub fn phrases_of(&self, words: &[String]) -> Vec<Phrase> {
        let mut found = Vec::new();
        let mut text = String::new();
        for start in 0..words.len() {
            text.clear();
            for (length, word) in (1..=self.longest).zip(&words[start..]) {
                text.push_str(word);
                if let Some(number) = self.phrases.find(text.as_bytes()) {
                    found.push(Phrase { span: Span { start, length }, number });
                }
                text.push(' ');
            }
        }
        found
    }

    /// Calls `emit` with each phrase of `from` and one of `to` that the table lists for it: in the order of `from`, then
    /// of the table, then of `to`.
    pub fn pairs(&self, from: &[Phrase], to: &[Phrase], mut emit: impl FnMut(Span, Span)) {
        for phrase in from {
            for &paraphrase in self.paraphrases.of(phrase.number) {
                for found in to.iter().filter(|found| found.number == paraphrase) {
                    emit(phrase.span, found.span);
                }
            }
        }
    }
}

/// Reads a line into `into`, without its end. False where there is none.
fn line(table: &mut impl BufRead, into: &mut Vec<u8>) -> io::Result<bool> {
    into.clear();
    let any = table.read_until(b'\n', into)? > 0;
    into.pop_if(|&mut last| last == b'\n');
    into.pop_if(|&mut last| last == b'\r');
    Ok(any)
}
