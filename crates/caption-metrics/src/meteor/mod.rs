//! METEOR 1.5 for English, as pycocoevalcap runs it: `-l en -norm`, all else by default.
//!
//! After Denkowski and Lavie, *Meteor Universal: Language Specific Translation Evaluation for Any Target Language*
//! (Workshop on Statistical Machine Translation, 2014): words and phrases of a candidate are matched with those of a
//! reference by four stages ([`Stage`]) and aligned one to one; the score is a weighted harmonic mean of precision and
//! recall, less a penalty that grows with the number of chunks: runs of matches that are adjacent and in the same order
//! in both captions.

mod align;
mod interner;
mod lexicon;
mod lists;
mod matches;
mod normalise;
mod paraphrases;
mod statistics;
mod synonyms;
mod tables;

use crate::tokens::tokenise;
use crate::{Item, Scores};

use lexicon::Lexicon;
use matches::Caption;
use statistics::Statistics;
pub use tables::{Stage, Tables};

/// Words of a caption that are looked at: more than captions have, and few enough for two that repeat one word, whose every
/// word matches every other's.
const MAX_WORDS: usize = 300;

/// METEOR of `items`; the corpus value comes from the statistics of the best references together. From 0 to 1.
pub fn meteor(items: &[Item], tables: &Tables) -> Scores {
    let mut meteor = Meteor::new(tables);
    let tokenised = |caption: &String| tokenise(caption).join(" ");
    let score = |item: &Item| meteor.add(&tokenised(&item.candidate), item.references.iter().map(tokenised));
    let items = items.iter().map(score).collect();
    Scores { items, corpus: meteor.corpus() }
}

/// METEOR, item by item.
///
/// ```
/// use caption_metrics::meteor::{Meteor, Tables};
///
/// let tables = Tables::open(None, None)?; // Exact and stem only.
/// let mut meteor = Meteor::new(&tables);
/// let same = meteor.add("a dog runs", ["a dog runs", "a cat sleeps"]);
/// let other = meteor.add("a dog", ["an empty street"]);
/// assert_eq!((same, other), (1.0, 0.0));
/// assert!(meteor.corpus() > 0.0);
/// # Ok::<(), caption_metrics::Error>(())
/// ```
pub struct Meteor<'a> {
    tables: &'a Tables,
    lexicon: Lexicon,
    /// Of the best references of all items.
    total: Statistics,
}

impl<'a> Meteor<'a> {
    /// No items yet.
    pub fn new(tables: &'a Tables) -> Self {
        Self { tables, lexicon: Lexicon::new(), total: Statistics::default() }
    }

    /// The score of a candidate by the reference that it is nearest to, from 0 to 1. Captions are tokens with a space
    /// between them, as [`tokenise`] makes them. No reference is like an empty one.
    pub fn add<R: AsRef<str>>(&mut self, candidate: &str, references: impl IntoIterator<Item = R>) -> f64 {
        let candidate = self.caption(candidate);
        let mut best: Option<(f64, Statistics)> = None;
        for reference in references {
            let reference = self.caption(reference.as_ref());
            let statistics = self.statistics(&candidate, &reference);
            let score = statistics.score();
            if best.as_ref().is_none_or(|&(best, _)| score > best) {
                best = Some((score, statistics));
            }
        }
        let (score, statistics) = best.unwrap_or_else(|| (0.0, self.statistics(&candidate, &Caption::default())));
        self.total.add(&statistics);
        score
    }

    /// The score of all candidates so far, from 0 to 1, and 0 where there are none. It is not the mean of their scores.
    pub fn corpus(&self) -> f64 {
        self.total.score()
    }

    fn caption(&mut self, text: &str) -> Caption {
        let mut words = normalise::normalise(text, &self.tables.prefixes);
        words.truncate(MAX_WORDS);
        Caption::new(&words, &mut self.lexicon, self.tables)
    }

    fn statistics(&self, candidate: &Caption, reference: &Caption) -> Statistics {
        let starting = matches::find(candidate, reference, &self.lexicon);
        let alignment = align::align(starting, candidate.words.len());
        Statistics::of(candidate, reference, &alignment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(candidate: &str, references: &[&str]) -> Item {
        Item { candidate: candidate.into(), references: references.iter().map(|&text| text.into()).collect() }
    }

    fn assert_near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn scores_follow_the_formula() {
        // Three of four words in two chunks, against three of five.
        let scores = meteor(&[item("a b x c", &["a b c y z"])], &Tables::default());
        let mean = 1.0 / (0.15 / (3.0 / 4.0) + 0.85 / (3.0 / 5.0));
        let expected = mean * (1.0 - 0.6 * (2.0_f64 / 3.0).powf(0.2));
        assert_near(scores.items[0], expected);
        assert_near(scores.corpus, expected);
    }

    #[test]
    fn stems_count_less() {
        let scores = meteor(&[item("dogs", &["dog"]), item("dog", &["dog"])], &Tables::default());
        // One chunk of one word has no penalty, if that is all there is.
        assert_near(scores.items[0], 0.6);
        assert_near(scores.items[1], 1.0);
        // In the sum neither, though there are two.
        assert_near(scores.corpus, 0.8);
    }

    #[test]
    fn endless_repetition_takes_neither_time_nor_memory_without_end() {
        let endless = "a ".repeat(100_000);
        assert_near(meteor(&[item(&endless, &[&endless])], &Tables::default()).items[0], 1.0);
    }

    #[test]
    fn the_best_reference_counts() {
        let items = [item("A dog runs.", &["Rain falls", "a dog runs", "a dog"])];
        assert_eq!(meteor(&items, &Tables::default()), Scores { corpus: 1.0, items: vec![1.0] });
    }

    #[test]
    fn odd_input_has_scores() {
        let tables = Tables::default();
        assert_eq!(meteor(&[], &tables), Scores { corpus: 0.0, items: vec![] });
        let odd = [item("", &["a"]), item("a", &[]), item("", &[]), item("", &[""]), item("...", &["!", "?"])];
        assert_eq!(meteor(&odd, &tables), Scores { corpus: 0.0, items: vec![0.0; 5] });
        // What has no score has length.
        let with_empty = meteor(&[item("a b", &["a b"]), item("c d", &[])], &tables);
        assert_near(with_empty.corpus, 1.0 / (0.15 / 0.5 + 0.85));
    }
}
