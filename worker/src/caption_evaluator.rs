//! The caption evaluator: generates captions of images outside the training split, and computes the
//! scores that need only one image. The coordinator computes the rest from all captions.

use std::collections::HashMap;

use config::{RunFile, TextReading};
use dataset::{DataSet, Item, Split};
use proto::v1;
use tch::Tensor;

use crate::caption_scorer::{Scorer, TextEmbeddings, floats};
use crate::captioner::Search;
use crate::data::Batch;
use crate::models::{Models, WeightSources};
use crate::nn::Mode;

/// The captions that are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Those that the captioner generates.
    Captioner,
    /// The reference captions, each against the others of its image: the human level to compare
    /// with.
    People,
}

/// Evaluates models on a split.
pub struct CaptionEvaluator<'a> {
    /// The run file, for the settings of generation.
    pub run: &'a RunFile,
    /// The captioner and the evaluators.
    pub models: &'a Models,
    /// The evaluators' settings, and all vocabularies.
    pub sources: &'a WeightSources,
    /// The data set.
    pub data: &'a DataSet,
    /// The split to evaluate.
    pub split: Split,
    /// The scenes of the synthetic data set, if the images are from it.
    pub scenes: Option<&'a synthetic_data::Scenes>,
    /// The captions to evaluate.
    pub writer: Writer,
}

/// What the embedding of a text depends on: the index of the model, the prefix, and the
/// tokenization.
type Reading<'a> = (usize, &'a str, TextReading);

impl CaptionEvaluator<'_> {
    /// The items of one prepared batch of the split. Their last bits depend on which images are in
    /// the batch.
    #[must_use]
    pub fn items(&self, batch: &Batch) -> Vec<v1::EvaluationItem> {
        let count = batch.samples.len();
        if count == 0 {
            return Vec::new();
        }
        let items: Vec<(usize, &Item)> =
            batch.samples.iter().map(|sample| (sample.image, &self.data.split(self.split)[sample.image])).collect();
        let hidden = self.models.hidden(batch, 0..count);
        let written = self.written(&items, &hidden);
        let item = |((_, item), written): (&(usize, &Item), &caption_metrics::Item)| v1::EvaluationItem {
            image: item.name.clone(),
            image_id: item.id,
            caption: written.candidate.clone(),
            references: written.references.clone(),
            scores: self.judged(item, &written.candidate).into_iter().collect(),
            ..Default::default()
        };
        let mut found: Vec<v1::EvaluationItem> = items.iter().zip(&written).map(item).collect();
        self.add_scores(batch, &hidden, &written, &mut found);
        found.into_iter().map(finite).collect()
    }

    /// Adds the scores of each evaluator. Models, and texts that two evaluators tokenize alike, are
    /// computed once.
    fn add_scores(
        &self,
        batch: &Batch,
        hidden: &Tensor,
        written: &[caption_metrics::Item],
        found: &mut [v1::EvaluationItem],
    ) {
        let mut images: HashMap<usize, Vec<f32>> = HashMap::new();
        let mut texts: HashMap<Reading<'_>, TextEmbeddings> = HashMap::new();
        for evaluator in &self.sources.evaluators {
            let clip = self.models.clip(evaluator.clip);
            let (settings, vocabulary) = (&evaluator.settings, &*evaluator.vocabulary);
            let scorer = Scorer { clip, vocabulary, settings, score: evaluator.score };
            let embed = || floats(&self.models.embeddings(batch, 0..written.len(), hidden, evaluator.clip));
            let images = &*images.entry(evaluator.clip).or_insert_with(embed);
            let reading = (evaluator.clip, settings.prefix.as_str(), settings.text);
            let texts = &*texts.entry(reading).or_insert_with(|| scorer.read(written, |_| {}));
            let scores = scorer.score(images, texts);
            let width = clip.architecture().embedding;
            let rows = images.chunks_exact(width).zip(texts.captions()).zip(scores);
            for (item, ((image, text), (own, with_references))) in found.iter_mut().zip(rows) {
                item.scores.insert(evaluator.name.clone(), own);
                if let Some(score) = with_references {
                    item.scores.insert(evaluator.reference_metric.clone(), score);
                }
                let prefix = evaluator.retrieval_prefix.clone();
                item.embeddings.push(v1::Embeddings { prefix, image: image.to_vec(), text: text.to_vec() });
            }
        }
    }

    /// A caption for each item, with the references to score it against.
    fn written(&self, items: &[(usize, &Item)], hidden: &Tensor) -> Vec<caption_metrics::Item> {
        if self.writer == Writer::People {
            return items.iter().map(|&(number, item)| by_people(item, number)).collect();
        }
        let vocabulary = &self.sources.captioner_vocabulary;
        let found = self.models.captioner.search(hidden, &Search::new(&self.run.decoding, vocabulary), Mode::Evaluate);
        let captions = found.iter().map(|beams| vocabulary.decode(&beams[0].tokens));
        let item = |(candidate, (_, item)): (String, &(usize, &Item))| caption_metrics::Item {
            candidate,
            references: item.captions.clone(),
        };
        captions.zip(items).map(item).collect()
    }

    fn judged(&self, item: &Item, caption: &str) -> Vec<(String, f64)> {
        let scene = self.scenes.and_then(|scenes| item.known_as().find_map(|name| scenes.get(name)));
        let Some(scene) = scene else { return Vec::new() };
        let verdict = synthetic_data::judge(caption, scene);
        let scores = [
            ("grammatical", f64::from(verdict.grammatical)),
            ("truthful", f64::from(verdict.truthful)),
            ("details", f64::from(verdict.details)),
        ];
        scores.map(|(name, score)| (name.to_owned(), score)).into()
    }
}

/// One of the image's own captions, with the others as references (or itself if there is no other).
fn by_people(item: &Item, number: usize) -> caption_metrics::Item {
    let mut references = item.captions.clone();
    let candidate = references.swap_remove(number % references.len());
    if references.is_empty() {
        references.push(candidate.clone());
    }
    caption_metrics::Item { candidate, references }
}

/// Removes scores and embeddings that are not finite, as an evaluator with damaged weights or too
/// low a precision computes them. If one image lacks a score, the evaluation does not have that
/// score.
fn finite(mut item: v1::EvaluationItem) -> v1::EvaluationItem {
    let image = item.image.clone();
    item.scores.retain(|name, score| {
        let is_number = score.is_finite();
        if !is_number {
            tracing::warn!(image, "the evaluator's {name} of this image is not a number: it is left out");
        }
        is_number
    });
    item.embeddings.retain(|embeddings| {
        let are_numbers = embeddings.image.iter().chain(&embeddings.text).all(|number| number.is_finite());
        if !are_numbers {
            tracing::warn!(image, "the evaluator's embeddings of this image are not numbers: there is no retrieval");
        }
        are_numbers
    });
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_not_reported() {
        let item = |score: f64, number: f32| v1::EvaluationItem {
            scores: [("pac_s".to_owned(), score), ("details".to_owned(), 3.0)].into(),
            embeddings: vec![v1::Embeddings { image: vec![1.0, number], text: vec![0.5, 0.5], ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(finite(item(0.5, 0.5)), item(0.5, 0.5));
        for (score, number) in [(f64::NAN, f32::NAN), (f64::INFINITY, f32::NEG_INFINITY)] {
            let found = finite(item(score, number));
            assert_eq!(found.scores, HashMap::from([("details".to_owned(), 3.0)]));
            assert!(found.embeddings.is_empty());
        }
    }
}
