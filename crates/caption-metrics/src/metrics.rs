//! Computes all metrics of captions and references.

use std::path::PathBuf;

use crate::meteor::{MatchStage, MeteorTables, meteor};
use crate::spice::Spice;
use crate::{Corpus, Error, Fluency, Item, Report, bleu, cider_d, fluency, rouge_l};

/// Files that METEOR and SPICE need and that may not be distributed with this program. Without them
/// METEOR matches words and stems only, and SPICE is not computed.
#[derive(Debug, Clone)]
pub struct MetricFiles {
    /// `meteor-1.5.jar`, for its function words, synonyms and abbreviations.
    pub meteor_jar: Option<PathBuf>,
    /// METEOR's `paraphrase-en.gz`.
    pub meteor_paraphrases: Option<PathBuf>,
    /// `spice-1.0.jar` in its folder, with the Stanford models in its `lib`.
    pub spice_jar: Option<PathBuf>,
    /// The command that runs SPICE.
    pub java: PathBuf,
}

impl Default for MetricFiles {
    /// No files, and the `java` in the search path.
    fn default() -> Self {
        Self::new([&None; 3])
    }
}

impl MetricFiles {
    /// The METEOR jar, the paraphrase table and the SPICE jar, each if there is one, and the `java`
    /// in the search path.
    #[must_use]
    pub fn new([meteor_jar, meteor_paraphrases, spice_jar]: [&Option<PathBuf>; 3]) -> Self {
        let [meteor_jar, meteor_paraphrases, spice_jar] =
            [meteor_jar, meteor_paraphrases, spice_jar].map(Option::clone);
        Self { meteor_jar, meteor_paraphrases, spice_jar, java: "java".into() }
    }
}

/// Computes all metrics of captions and references.
pub struct Metrics {
    meteor: MeteorTables,
    spice: Option<Spice>,
}

impl Metrics {
    /// Reads `files`, once for any number of calls of [`score`](Self::score).
    ///
    /// # Errors
    /// A file cannot be read or is invalid.
    pub fn open(files: &MetricFiles) -> Result<Self, Error> {
        let meteor = MeteorTables::open(files.meteor_jar.as_deref(), files.meteor_paraphrases.as_deref())?;
        let spice = files.spice_jar.as_ref().map(|jar| Spice::open(&files.java, jar)).transpose()?;
        Ok(Self { meteor, spice })
    }

    /// Scores the candidates of `items` by all metrics. If the program that computes SPICE fails,
    /// the report has the other metrics and a note with the error.
    ///
    /// If no item has references, only metrics without references are computed, and a note says so.
    #[must_use]
    pub fn score(&self, items: &[Item]) -> Report {
        let mut report = self.score_without_spice(items);
        if !any_has_references(items) {
            return report;
        }
        match self.spice.as_ref().map(|spice| spice.score(items)) {
            Some(Ok(scores)) => report.add("spice", scores),
            Some(Err(error)) => report.notes.push(format!("spice: not computed: {error}")),
            None => {}
        }
        report
    }

    /// Scores by all metrics that are computed in this process.
    pub(crate) fn score_without_spice(&self, items: &[Item]) -> Report {
        let corpus = Corpus::new(items);
        let mut report = Report::default();
        if any_has_references(items) {
            self.score_against_references(items, &corpus, &mut report);
        } else {
            report.notes.push("no image has references: only metrics without references are computed".into());
        }
        let Fluency { repeated_ngrams, incorrect_endings, distinct, vocabulary_size, mean_length } = fluency(&corpus);
        for (name, scores) in ["rep_1", "rep_2", "rep_3", "rep_4"].into_iter().zip(repeated_ngrams) {
            report.add(name, scores);
        }
        report.add("incorrect_endings", incorrect_endings);
        report.corpus.extend([
            ("distinct_1".into(), distinct[0]),
            ("distinct_2".into(), distinct[1]),
            ("vocabulary_size".into(), vocabulary_size as f64),
            ("mean_length".into(), mean_length),
        ]);
        report
    }

    fn score_against_references(&self, items: &[Item], corpus: &Corpus, report: &mut Report) {
        for (name, scores) in ["bleu_1", "bleu_2", "bleu_3", "bleu_4"].into_iter().zip(bleu(corpus)) {
            report.add(name, scores);
        }
        report.add("rouge_l", rouge_l(corpus));
        report.add("cider", cider_d(corpus));
        if items.len() == 1 {
            let note = "cider: 0, because its n-gram weights need the references of several images and there is only \
                        one image; score several images together";
            report.notes.push(note.to_owned());
        }
        report.add("meteor", meteor(items, &self.meteor));
        let missing: Vec<&str> =
            [(MatchStage::Synonym, "meteor-1.5.jar"), (MatchStage::Paraphrase, "paraphrase-en.gz")]
                .into_iter()
                .filter(|(stage, _)| !self.meteor.stages().any(|active| active == *stage))
                .map(|(_, file)| file)
                .collect();
        if !missing.is_empty() {
            let missing = missing.join(" and ");
            report.notes.push(format!("meteor: without {missing} its values are not comparable with published ones"));
        }
    }
}

/// Whether any item has references. True without items, for which all metrics are 0.
fn any_has_references(items: &[Item]) -> bool {
    items.is_empty() || items.iter().any(|item| !item.references.is_empty())
}

#[cfg(test)]
mod tests {
    use metric_catalogue::EVALUATION_METRICS;
    use proptest::prelude::*;

    use super::*;
    use crate::{any_items, item, retrieval};

    fn score(items: &[Item]) -> Report {
        Metrics::open(&MetricFiles::default()).unwrap().score(items)
    }

    #[test]
    fn metric_names_are_in_the_list_of_evaluation_metrics() {
        let is_known = |name: &str| EVALUATION_METRICS.contains(&name);
        let report = score(&[item("a dog", &["the dog"])]);
        assert_eq!((report.corpus.len(), report.items.len()), (16, 12));
        assert!(report.corpus.keys().chain(report.items.keys()).all(|name| is_known(name)));
        assert!(report.items.keys().all(|name| report.corpus.contains_key(name)));
        assert!(retrieval::scores(&[1]).iter().all(|(name, _)| is_known(name)));
    }

    #[test]
    fn a_note_explains_that_cider_of_a_single_image_is_zero() {
        let dog = item("a dog", &["a dog"]);
        let single = score(std::slice::from_ref(&dog));
        assert_eq!(single.corpus["cider"], 0.0);
        assert!(single.notes.iter().any(|note| note.starts_with("cider: 0, because")), "{:?}", single.notes);
        let pair = score(&[dog, item("a cat", &["two cats"])]);
        assert!(
            pair.corpus["cider"] > 0.0 && !pair.notes.iter().any(|note| note.starts_with("cider")),
            "{:?}",
            pair.notes
        );
    }

    #[test]
    fn very_long_captions_are_scored() {
        for repeated in ["a@", "a ", "a-", "1/", "'", "a. ", "dogs", "Σ日", "é", "a,b "] {
            let long = repeated.repeat(200_000 / repeated.len());
            let items = [item(&long, &[&long]), item("a dog", &[&long])];
            assert_eq!(score(&items).items["bleu_1"].len(), 2);
        }
        let many = score(&[item("a dog", &["a dog"; 5000]), item("a cat", &["a cat"])]);
        assert!(many.items["cider"].iter().all(|score| (score - 5.0).abs() < 1e-9), "{:?}", many.items["cider"]);
    }

    #[test]
    fn captions_without_references_have_fluency_scores_only() {
        let report = score(&[item("a dog and a", &[]), item("a cat", &[])]);
        let names: Vec<_> = report.items.keys().map(std::convert::AsRef::as_ref).collect();
        assert_eq!(names, ["incorrect_endings", "rep_1", "rep_2", "rep_3", "rep_4"]);
        assert_eq!((report.corpus["mean_length"], report.corpus.contains_key("cider")), (3.0, false));
        assert_eq!(report.notes, ["no image has references: only metrics without references are computed"]);
    }

    #[test]
    fn spice_needs_its_files() {
        assert!(!score(&[]).corpus.contains_key("spice"));
        let missing = MetricFiles { spice_jar: Some("no/such.jar".into()), ..MetricFiles::default() };
        assert!(Metrics::open(&missing).is_err_and(|error| error.to_string().starts_with("no/such.jar: ")));
    }

    proptest! {
        #[test]
        fn order_of_items_and_references_does_not_matter(items in any_items(), shift in 0_usize..6) {
            let shift = shift.min(items.len());
            let mut rotated = items.clone();
            rotated.rotate_left(shift);
            rotated.iter_mut().for_each(|item| item.references.reverse());
            let (report, rotated) = (score(&items), score(&rotated));
            // If references have equal scores, METEOR uses the statistics of the first.
            for (name, value) in report.corpus.iter().filter(|(name, _)| **name != "meteor") {
                prop_assert!((value - rotated.corpus[name]).abs() < 1e-9, "{name}");
            }
            for (name, mut values) in report.items {
                values.rotate_left(shift);
                for (value, rotated) in values.iter().zip(&rotated.items[&name]) {
                    prop_assert!((value - rotated).abs() < 1e-9, "{name}");
                }
            }
        }

        #[test]
        fn values_are_finite_and_in_range(items in any_items()) {
            let report = score(&items);
            for (name, values) in &report.items {
                prop_assert_eq!(values.len(), items.len());
                let highest = if *name == "cider" { 10.0 } else if name.starts_with("rep") { 9.0 } else { 1.0 };
                for value in values.iter().chain([&report.corpus[name]]) {
                    prop_assert!((0.0..=highest + 1e-9).contains(value), "{name}: {value}");
                }
            }
        }
    }
}
