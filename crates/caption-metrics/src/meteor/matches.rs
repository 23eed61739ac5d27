//! Which words and phrases of two captions could be matched with each other, by stage.

use std::ops::Range;

use super::lexicon::{Lexicon, Phrase, Word};
use super::tables::{Stage, Tables};

/// Adjacent words of a caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub start: usize,
    pub length: usize,
}

impl Span {
    pub fn end(self) -> usize {
        self.start + self.length
    }

    pub fn words(self) -> Range<usize> {
        self.start..self.end()
    }
}

/// A pair of phrases, one of each caption, that may be said to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    pub stage: Stage,
    pub candidate: Span,
    pub reference: Span,
}

impl Match {
    fn of_words(stage: Stage, candidate: usize, reference: usize) -> Self {
        Self { stage, candidate: Span { start: candidate, length: 1 }, reference: Span { start: reference, length: 1 } }
    }

    /// How far apart the phrases start, in words.
    pub fn distance(&self) -> usize {
        self.candidate.start.abs_diff(self.reference.start)
    }

    /// What the search for the best alignment counts it for. Whatever the weights of the stages in the score, an exact
    /// match counts its words and any other half of those in each caption, rounded down; so a synonym counts nothing.
    pub fn gain(&self) -> usize {
        match self.stage {
            Stage::Exact => self.candidate.length + self.reference.length,
            _ => self.candidate.length / 2 + self.reference.length / 2,
        }
    }
}

/// A caption, looked up.
#[derive(Default)]
pub(super) struct Caption {
    pub words: Vec<Word>,
    pub is_function_word: Vec<bool>,
    /// Those that have paraphrases.
    phrases: Vec<Phrase>,
    /// The numbers of its words, by their remainders: tells of most words that they are not in the caption.
    remainders: [u64; 16],
}

impl Caption {
    pub fn new(texts: &[String], lexicon: &mut Lexicon, tables: &Tables) -> Self {
        let words: Vec<Word> = texts.iter().map(|text| lexicon.word(text, tables)).collect();
        let is_function_word = words.iter().map(|&word| lexicon.is_function_word(word)).collect();
        let phrases = lexicon.phrases(texts, tables);
        let mut remainders = [0; 16];
        for word in &words {
            remainders[word.0 / 64 % 16] |= 1 << (word.0 % 64);
        }
        Self { words, is_function_word, phrases, remainders }
    }

    fn may_have(&self, word: Word) -> bool {
        self.remainders[word.0 / 64 % 16] >> (word.0 % 64) & 1 == 1
    }

    /// Where it has `run`, which is not empty.
    fn positions(&self, run: &[Word]) -> impl Iterator<Item = usize> {
        let starts = if self.may_have(run[0]) { 0..self.words.len() } else { 0..0 };
        starts.filter(|&start| self.words[start..].starts_with(run))
    }

    /// Calls `emit` with each phrase of the caption and each paraphrase of it that `other` has: in the caption's order,
    /// then the table's, then that of `other`.
    fn paraphrased(&self, other: &Self, lexicon: &Lexicon, mut emit: impl FnMut(Span, Span)) {
        for phrase in &self.phrases {
            for run in lexicon.paraphrases(phrase) {
                other.positions(run).for_each(|start| emit(phrase.span, Span { start, length: run.len() }));
            }
        }
    }
}

/// All that could be matched, by the word of the reference where it starts: of each word, by stage; of the stages with
/// single words, in the candidate's order; of paraphrases, first those that the table lists for the reference's phrase,
/// then those that it lists for the candidate's. A pair may be there several times.
pub(super) fn find(candidate: &Caption, reference: &Caption, lexicon: &Lexicon) -> Vec<Vec<Match>> {
    let mut starting = vec![Vec::new(); reference.words.len()];
    let mut words = |stage, matches: &dyn Fn(Word, Word) -> bool| {
        for (start, (&theirs, found)) in reference.words.iter().zip(&mut starting).enumerate() {
            let own = candidate.words.iter().enumerate().filter(|&(_, &own)| matches(own, theirs));
            found.extend(own.map(|(index, _)| Match::of_words(stage, index, start)));
        }
    };
    let key = |word| lexicon.key(word);
    words(Stage::Exact, &|own, theirs| key(own) == key(theirs));
    if candidate.words.iter().map(|&own| key(own)).eq(reference.words.iter().map(|&theirs| key(theirs))) {
        return starting;
    }
    let stem = |word| lexicon.stem_key(word);
    words(Stage::Stem, &|own, theirs| stem(own) == stem(theirs) && key(own) != key(theirs));
    words(Stage::Synonym, &|own, theirs| key(own) != key(theirs) && lexicon.are_synonyms(own, theirs));
    let mut add = |candidate: Span, reference: Span| {
        starting[reference.start].push(Match { stage: Stage::Paraphrase, candidate, reference });
    };
    reference.paraphrased(candidate, lexicon, |theirs, own| add(own, theirs));
    candidate.paraphrased(reference, lexicon, add);
    starting
}
