//! The matchers: which words and phrases of two captions match, by stage.

use std::ops::Range;

use super::lexicon::{Lexicon, PhraseOccurrence, WordId};
use super::tables::{MatchStage, MeteorTables};

/// A range of adjacent words of a caption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WordSpan {
    pub start: usize,
    pub length: usize,
}

impl WordSpan {
    pub fn end(self) -> usize {
        self.start + self.length
    }

    pub fn words(self) -> Range<usize> {
        self.start..self.end()
    }
}

/// A possible match of a word or phrase of the candidate with one of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    pub stage: MatchStage,
    pub candidate: WordSpan,
    pub reference: WordSpan,
}

impl Match {
    fn of_single_words(stage: MatchStage, candidate: usize, reference: usize) -> Self {
        Self {
            stage,
            candidate: WordSpan { start: candidate, length: 1 },
            reference: WordSpan { start: reference, length: 1 },
        }
    }

    /// The distance of the start positions, in words.
    pub fn distance(&self) -> usize {
        self.candidate.start.abs_diff(self.reference.start)
    }

    /// The value of the match in the search for the best alignment. The search does not use the
    /// weights that the stages have in the score: an exact match counts the number of its words in
    /// both captions, any other match half of the number in each caption, rounded down. A stem or
    /// synonym match therefore counts 0.
    pub fn search_gain(&self) -> usize {
        match self.stage {
            MatchStage::Exact => self.candidate.length + self.reference.length,
            _ => self.candidate.length / 2 + self.reference.length / 2,
        }
    }
}

/// A caption with its words looked up in the lexicon.
#[derive(Default)]
pub(super) struct Caption {
    pub words: Vec<WordId>,
    pub is_function_word: Vec<bool>,
    /// The phrases of the caption that have paraphrases.
    phrases: Vec<PhraseOccurrence>,
    /// A Bloom filter of the caption's words with one hash function: the word id modulo 1024.
    bloom_filter: [u64; 16],
}

impl Caption {
    pub fn new(texts: &[String], lexicon: &mut Lexicon, tables: &MeteorTables) -> Self {
        let words: Vec<WordId> = texts.iter().map(|text| lexicon.word(text, tables)).collect();
        let is_function_word = words.iter().map(|&word| lexicon.is_function_word(word)).collect();
        let phrases = lexicon.phrases(texts, tables);
        let mut bloom_filter = [0; 16];
        for word in &words {
            bloom_filter[word.0 / 64 % 16] |= 1 << (word.0 % 64);
        }
        Self { words, is_function_word, phrases, bloom_filter }
    }

    fn may_contain(&self, word: WordId) -> bool {
        self.bloom_filter[word.0 / 64 % 16] >> (word.0 % 64) & 1 == 1
    }

    /// The positions of `sequence`, which is not empty.
    fn positions(&self, sequence: &[WordId]) -> impl Iterator<Item = usize> {
        let starts = if self.may_contain(sequence[0]) { 0..self.words.len() } else { 0..0 };
        starts.filter(|&start| self.words[start..].starts_with(sequence))
    }

    /// Calls `emit` with each phrase of this caption and each of its paraphrases in `other`: in the
    /// order of this caption, then of the table, then of `other`.
    fn for_each_paraphrase(&self, other: &Self, lexicon: &Lexicon, mut emit: impl FnMut(WordSpan, WordSpan)) {
        for phrase in &self.phrases {
            for sequence in lexicon.paraphrases(phrase) {
                other
                    .positions(sequence)
                    .for_each(|start| emit(phrase.span, WordSpan { start, length: sequence.len() }));
            }
        }
    }
}

/// Finds all possible matches, by the position of the reference word at which they start. The
/// matches of a position are ordered by stage; matches of single words in the candidate's order;
/// paraphrases that the table has for the reference's phrase before those for the candidate's
/// phrase. A pair may occur several times. Captions with equal words have only exact matches.
pub(super) fn find_matches(candidate: &Caption, reference: &Caption, lexicon: &Lexicon) -> Vec<Vec<Match>> {
    let mut matches_by_start = vec![Vec::new(); reference.words.len()];
    let mut add_word_matches = |stage, is_match: &dyn Fn(WordId, WordId) -> bool| {
        for (start, (&reference_word, matches)) in reference.words.iter().zip(&mut matches_by_start).enumerate() {
            let matching = candidate
                .words
                .iter()
                .enumerate()
                .filter(|&(_, &candidate_word)| is_match(candidate_word, reference_word));
            matches.extend(matching.map(|(index, _)| Match::of_single_words(stage, index, start)));
        }
    };
    let word_hash = |word| lexicon.word_hash(word);
    add_word_matches(MatchStage::Exact, &|candidate_word, reference_word| {
        word_hash(candidate_word) == word_hash(reference_word)
    });
    if candidate
        .words
        .iter()
        .map(|&candidate_word| word_hash(candidate_word))
        .eq(reference.words.iter().map(|&reference_word| word_hash(reference_word)))
    {
        return matches_by_start;
    }
    let stem_hash = |word| lexicon.stem_hash(word);
    add_word_matches(MatchStage::Stem, &|candidate_word, reference_word| {
        stem_hash(candidate_word) == stem_hash(reference_word) && word_hash(candidate_word) != word_hash(reference_word)
    });
    add_word_matches(MatchStage::Synonym, &|candidate_word, reference_word| {
        word_hash(candidate_word) != word_hash(reference_word) && lexicon.are_synonyms(candidate_word, reference_word)
    });
    let mut add_paraphrase = |candidate: WordSpan, reference: WordSpan| {
        matches_by_start[reference.start].push(Match { stage: MatchStage::Paraphrase, candidate, reference });
    };
    reference.for_each_paraphrase(candidate, lexicon, |reference_span, candidate_span| {
        add_paraphrase(candidate_span, reference_span);
    });
    candidate.for_each_paraphrase(reference, lexicon, add_paraphrase);
    matches_by_start
}
