//! METEOR 1.5 for English with the options of pycocoevalcap: `-l en -norm`, the rest by default.
//!
//! Denkowski and Lavie, *Meteor Universal: Language Specific Translation Evaluation for Any Target
//! Language* (Workshop on Statistical Machine Translation, 2014). Four matchers ([`MatchStage`])
//! match words and phrases of a candidate with those of a reference. An alignment uses each word at
//! most once. The score is the weighted harmonic mean of precision and recall, reduced by the
//! fragmentation penalty, which grows with the number of chunks: runs of matches that are adjacent
//! and in the same order in both captions.
//!
//! | module | content |
//! |---|---|
//! | `tables`, `synonyms`, `paraphrases` | METEOR's tables, read from the user's files |
//! | `normalizer` | splits a caption into words |
//! | `lexicon` | the properties of words and phrases |
//! | `matcher` | finds all possible matches of two captions |
//! | `alignment` | chooses an alignment from the matches |
//! | `statistics` | computes the score from an alignment |
//! | `interner`, `id_multimap` | compact containers for the tables |

mod alignment;
mod id_multimap;
mod interner;
mod lexicon;
mod matcher;
mod normalizer;
mod paraphrases;
mod statistics;
mod synonyms;
mod tables;

use crate::ptb_tokenizer::tokenize;
use crate::{Item, Scores};

use lexicon::Lexicon;
use matcher::Caption;
use statistics::Statistics;
pub use tables::{MatchStage, MeteorTables};

/// Maximal number of words of a caption that count: more than real captions have. It bounds the
/// time for captions that repeat a word, in which every word matches every other.
const MAX_WORDS: usize = 300;

/// METEOR of `items`, from 0 to 1. The corpus value is computed from the summed statistics of the
/// best reference of each item.
#[must_use]
pub fn meteor(items: &[Item], tables: &MeteorTables) -> Scores {
    let mut meteor = MeteorScorer::new(tables);
    let tokenized = |caption: &String| tokenize(caption).join(" ");
    let score = |item: &Item| meteor.add(&tokenized(&item.candidate), item.references.iter().map(tokenized));
    let items = items.iter().map(score).collect();
    Scores { items, corpus: meteor.corpus() }
}

/// Computes METEOR item by item.
///
/// ```
/// use caption_metrics::meteor::{MeteorScorer, MeteorTables};
///
/// let tables = MeteorTables::open(None, None)?; // Exact and stem only.
/// let mut meteor = MeteorScorer::new(&tables);
/// let same = meteor.add("a dog runs", ["a dog runs", "a cat sleeps"]);
/// let other = meteor.add("a dog", ["an empty street"]);
/// assert_eq!((same, other), (1.0, 0.0));
/// assert!(meteor.corpus() > 0.0);
/// # Ok::<(), caption_metrics::Error>(())
/// ```
pub struct MeteorScorer<'a> {
    tables: &'a MeteorTables,
    lexicon: Lexicon,
    /// The summed statistics of the best reference of each item.
    total: Statistics,
}

impl<'a> MeteorScorer<'a> {
    /// A scorer without items.
    #[must_use]
    pub fn new(tables: &'a MeteorTables) -> Self {
        Self { tables, lexicon: Lexicon::new(), total: Statistics::default() }
    }

    /// Adds an item and returns its score, from 0 to 1, by its best reference. Captions are tokens
    /// of [`tokenize`], joined by spaces. Without references, the candidate is compared
    /// with an empty caption.
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

    /// The corpus score of all items so far, from 0 to 1; 0 without items. It is not the mean of
    /// the items' scores.
    #[must_use]
    pub fn corpus(&self) -> f64 {
        self.total.score()
    }

    fn caption(&mut self, text: &str) -> Caption {
        let mut words = normalizer::normalize(text, &self.tables.nonbreaking_prefixes);
        words.truncate(MAX_WORDS);
        Caption::new(&words, &mut self.lexicon, self.tables)
    }

    fn statistics(&self, candidate: &Caption, reference: &Caption) -> Statistics {
        let matches_by_reference_start = matcher::find_matches(candidate, reference, &self.lexicon);
        let alignment = alignment::align(matches_by_reference_start, candidate.words.len());
        Statistics::from_alignment(candidate, reference, &alignment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item;

    fn assert_near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn scores_follow_the_formula() {
        // Three of the candidate's four words match three of the reference's five, in two chunks.
        let scores = meteor(&[item("a b x c", &["a b c y z"])], &MeteorTables::default());
        let mean = 1.0 / (0.15 / (3.0 / 4.0) + 0.85 / (3.0 / 5.0));
        let expected = mean * (1.0 - 0.6 * (2.0_f64 / 3.0).powf(0.2));
        assert_near(scores.items[0], expected);
        assert_near(scores.corpus, expected);
    }

    #[test]
    fn stem_matches_have_a_lower_weight() {
        let scores = meteor(&[item("dogs", &["dog"]), item("dog", &["dog"])], &MeteorTables::default());
        // A single chunk that covers both captions has no penalty.
        assert_near(scores.items[0], 0.6);
        assert_near(scores.items[1], 1.0);
        // The corpus value has no penalty either, because such chunks are not counted.
        assert_near(scores.corpus, 0.8);
    }

    #[test]
    fn long_repetitions_are_scored_in_bounded_time_and_memory() {
        let endless = "a ".repeat(100_000);
        assert_near(meteor(&[item(&endless, &[&endless])], &MeteorTables::default()).items[0], 1.0);
    }

    #[test]
    fn the_best_reference_counts() {
        let items = [item("A dog runs.", &["Rain falls", "a dog runs", "a dog"])];
        assert_eq!(meteor(&items, &MeteorTables::default()), Scores { corpus: 1.0, items: vec![1.0] });
    }

    #[test]
    fn empty_captions_and_missing_references_have_scores() {
        let tables = MeteorTables::default();
        assert_eq!(meteor(&[], &tables), Scores { corpus: 0.0, items: vec![] });
        let edge_cases = [item("", &["a"]), item("a", &[]), item("", &[]), item("", &[""]), item("...", &["!", "?"])];
        assert_eq!(meteor(&edge_cases, &tables), Scores { corpus: 0.0, items: vec![0.0; 5] });
        // Without references, the words of "c d" still count in the precision of the corpus.
        let with_empty = meteor(&[item("a b", &["a b"]), item("c d", &[])], &tables);
        assert_near(with_empty.corpus, 1.0 / (0.15 / 0.5 + 0.85));
    }
}
