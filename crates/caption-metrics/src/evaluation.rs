//! The scores of an evaluation of a model, from the captions, scores and embeddings of its images.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Item, Metrics, Report, Scores, retrieval};

/// The evaluation of one image: its caption, and what does not depend on other images.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageEvaluation {
    /// The candidate and the references.
    pub item: Item,
    /// The scores of this image, by the name of the metric.
    pub scores: BTreeMap<String, f64>,
    /// The evaluators' embeddings, by the prefix of the names of their retrieval metrics.
    pub embeddings: BTreeMap<String, Embeddings>,
}

/// An evaluator's embeddings of an image and its caption.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Embeddings {
    /// The embedding of the image, of length 1.
    pub image: Vec<f32>,
    /// The embedding of the caption, of length 1 and of the same width.
    pub text: Vec<f32>,
}

impl Metrics {
    /// All scores of an evaluation: the scores of its images, retrieval by their embeddings, and
    /// all metrics of captions against references.
    #[must_use]
    pub fn evaluate(&self, evaluations: &[ImageEvaluation]) -> Report {
        let items: Vec<Item> = evaluations.iter().map(|evaluation| evaluation.item.clone()).collect();
        let mut report = self.score(&items);
        let names: BTreeSet<&String> = evaluations.iter().flat_map(|evaluation| evaluation.scores.keys()).collect();
        for name in names {
            let values: Option<Vec<f64>> =
                evaluations.iter().map(|evaluation| evaluation.scores.get(name).copied()).collect();
            match values {
                Some(values) => report.add(name.clone(), Scores::mean(values)),
                None => report.notes.push(format!("{name}: left out, because not all images have it")),
            }
        }
        let prefixes: BTreeSet<&String> =
            evaluations.iter().flat_map(|evaluation| evaluation.embeddings.keys()).collect();
        for prefix in prefixes {
            for (name, scores) in retrieval_ranks(evaluations, prefix).iter().flat_map(|ranks| retrieval::scores(ranks))
            {
                report.add(format!("{prefix}{name}"), scores);
            }
        }
        report
    }
}

/// Retrieval ranks by one evaluator; none unless all images have its embeddings, all of one width.
fn retrieval_ranks(evaluations: &[ImageEvaluation], prefix: &str) -> Option<Vec<usize>> {
    let all: Vec<&Embeddings> =
        evaluations.iter().map(|evaluation| evaluation.embeddings.get(prefix)).collect::<Option<_>>()?;
    let width = all.first()?.image.len();
    if width == 0 || all.iter().any(|embeddings| embeddings.image.len() != width || embeddings.text.len() != width) {
        return None;
    }
    let concatenated = |field: fn(&Embeddings) -> &[f32]| {
        all.iter().flat_map(|embeddings| field(embeddings)).copied().collect::<Vec<f32>>()
    };
    Some(retrieval::ranks(
        &concatenated(|embeddings| &embeddings.text),
        &concatenated(|embeddings| &embeddings.image),
        width,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MetricFiles;

    fn evaluation_of(caption: &str, score: Option<f64>, image: [f32; 2], text: [f32; 2]) -> ImageEvaluation {
        ImageEvaluation {
            item: Item { candidate: caption.into(), references: vec!["a red kite".into()] },
            scores: score.map(|score| ("pac_s".to_owned(), score)).into_iter().collect(),
            embeddings: [(String::new(), Embeddings { image: image.into(), text: text.into() })].into(),
        }
    }

    #[test]
    fn an_evaluation_has_item_scores_retrieval_and_text_metrics() {
        let metrics = Metrics::open(&MetricFiles::default()).unwrap();
        // The first caption is nearer to the second image than to its own.
        let first = evaluation_of("a red kite", Some(0.5), [1.0, 0.0], [0.0, 1.0]);
        let second = evaluation_of("a dog", Some(1.0), [0.0, 1.0], [0.0, 1.0]);
        let report = metrics.evaluate(&[first.clone(), second.clone()]);
        assert_eq!((report.corpus["pac_s"], report.corpus["retrieval_r1"]), (0.75, 0.5));
        assert_eq!(report.items["retrieval_mrr"], [0.5, 1.0]);
        assert!(report.corpus["bleu_1"] > 0.0);

        let without = ImageEvaluation { scores: BTreeMap::new(), embeddings: BTreeMap::new(), ..second };
        // In either order.
        for both in [[first.clone(), without.clone()], [without, first]] {
            let report = metrics.evaluate(&both);
            assert!(!report.corpus.contains_key("pac_s") && !report.corpus.contains_key("retrieval_r1"));
            assert!(report.notes.iter().any(|note| note.starts_with("pac_s")));
        }
        assert_eq!(metrics.evaluate(&[]).corpus["cider"], 0.0);
    }

    #[test]
    fn each_evaluator_has_separate_retrieval_scores() {
        let metrics = Metrics::open(&MetricFiles::default()).unwrap();
        let mut first = evaluation_of("a red kite", None, [1.0, 0.0], [0.0, 1.0]);
        let mut second = evaluation_of("a dog", None, [0.0, 1.0], [0.0, 1.0]);
        for (evaluation, image) in [(&mut first, [1.0, 0.0]), (&mut second, [0.0, 1.0])] {
            let embeddings = Embeddings { image: image.into(), text: image.into() };
            evaluation.embeddings.insert("clip_s_".to_owned(), embeddings);
        }
        let report = metrics.evaluate(&[first.clone(), second.clone()]);
        assert_eq!((report.corpus["retrieval_r1"], report.corpus["clip_s_retrieval_r1"]), (0.5, 1.0));
        // An image that lacks the embeddings of one evaluator does not affect the other.
        second.embeddings.remove("clip_s_");
        let report = metrics.evaluate(&[first, second]);
        assert_eq!(report.corpus["retrieval_r1"], 0.5);
        assert!(!report.corpus.contains_key("clip_s_retrieval_r1"));
    }
}
