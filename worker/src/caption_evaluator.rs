//! The caption evaluator: generates captions of images outside the training split, and computes the
//! scores that depend on one image only. The coordinator computes all other metrics from the
//! captions of all images.

use std::collections::HashMap;

use config::{RunFile, TextReading};
use dataset::{DataSet, Item, Split};
use proto::v1;
use tch::Tensor;

use crate::caption_scorer::{Scorer, TextEmbeddings, to_floats};
use crate::captioner::GenerationConfig;
use crate::data::Batch;
use crate::models::{Models, WeightSources};
use crate::nn::DropoutMode;

/// Which captions are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptionSource {
    /// The captions that the captioner generates.
    Captioner,
    /// One reference caption of each image, with the others as references: the level of human
    /// annotators.
    References,
}

/// Evaluates models on a split.
pub struct CaptionEvaluator<'a> {
    /// The run file, for the settings of beam search.
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
    /// Which captions are evaluated.
    pub captions: CaptionSource,
}

/// What the embeddings of texts depend on: the index of the model, the prefix, and the
/// tokenization. Evaluators with equal keys share embeddings.
type TextEmbeddingsKey<'a> = (usize, &'a str, TextReading);

impl CaptionEvaluator<'_> {
    /// Evaluates one prepared batch of the split: captions, and the scores of each. The last bits
    /// of scores depend on which images are in the batch.
    #[must_use]
    pub fn evaluate_batch(&self, batch: &Batch) -> Vec<v1::EvaluationItem> {
        let count = batch.samples.len();
        if count == 0 {
            return Vec::new();
        }
        let items: Vec<(usize, &Item)> =
            batch.samples.iter().map(|sample| (sample.image, &self.data.split(self.split)[sample.image])).collect();
        let hidden = self.models.hidden_states(batch, 0..count);
        let captioned = self.captioned_items(&items, &hidden);
        let item = |((_, item), captioned): (&(usize, &Item), &caption_metrics::Item)| v1::EvaluationItem {
            image: item.name.clone(),
            image_id: item.id,
            caption: captioned.candidate.clone(),
            references: captioned.references.clone(),
            scores: self.check_against_scene(item, &captioned.candidate).into_iter().collect(),
            ..Default::default()
        };
        let mut evaluated: Vec<v1::EvaluationItem> = items.iter().zip(&captioned).map(item).collect();
        self.add_scores(batch, &hidden, &captioned, &mut evaluated);
        evaluated.into_iter().map(without_non_finite_values).collect()
    }

    /// Adds the scores and embeddings of each evaluator to `evaluated`, which corresponds to
    /// `captioned`. `hidden` is `[images, tokens, width]`. Evaluators that share a model share
    /// image embeddings, and text embeddings if they tokenize texts in the same way.
    fn add_scores(
        &self,
        batch: &Batch,
        hidden: &Tensor,
        captioned: &[caption_metrics::Item],
        evaluated: &mut [v1::EvaluationItem],
    ) {
        let mut images: HashMap<usize, Vec<f32>> = HashMap::new();
        let mut texts: HashMap<TextEmbeddingsKey<'_>, TextEmbeddings> = HashMap::new();
        for evaluator in &self.sources.evaluators {
            let clip = self.models.clip(evaluator.clip_index);
            let (settings, vocabulary) = (&evaluator.settings, &*evaluator.vocabulary);
            let scorer = Scorer { clip, vocabulary, settings, score: evaluator.score };
            let embed = || to_floats(&self.models.embeddings(batch, 0..captioned.len(), hidden, evaluator.clip_index));
            let images = &*images.entry(evaluator.clip_index).or_insert_with(embed);
            let key = (evaluator.clip_index, settings.prefix.as_str(), settings.text);
            let texts = &*texts.entry(key).or_insert_with(|| scorer.embed_texts(captioned, |_| {}));
            let scores = scorer.score(images, texts);
            let width = clip.config().embedding;
            let rows = images.chunks_exact(width).zip(texts.captions()).zip(scores);
            for (item, ((image, text), (score, with_references))) in evaluated.iter_mut().zip(rows) {
                item.scores.insert(evaluator.name.clone(), score);
                if let Some(with_references) = with_references {
                    item.scores.insert(evaluator.reference_metric.clone(), with_references);
                }
                let prefix = evaluator.retrieval_prefix.clone();
                item.embeddings.push(v1::Embeddings { prefix, image: image.to_vec(), text: text.to_vec() });
            }
        }
    }

    /// The caption of each image, with the references that it is scored against. `hidden` is
    /// `[images, tokens, width]`.
    fn captioned_items(&self, items: &[(usize, &Item)], hidden: &Tensor) -> Vec<caption_metrics::Item> {
        if self.captions == CaptionSource::References {
            return items.iter().map(|&(image, item)| reference_as_candidate(item, image)).collect();
        }
        let vocabulary = &self.sources.captioner_vocabulary;
        let generation = GenerationConfig::new(&self.run.decoding, vocabulary);
        let hypotheses = self.models.captioner.beam_search(hidden, &generation, DropoutMode::Evaluate);
        let captions = hypotheses.iter().map(|beams| vocabulary.decode(&beams[0].tokens));
        let item = |(candidate, (_, item)): (String, &(usize, &Item))| caption_metrics::Item {
            candidate,
            references: item.captions.clone(),
        };
        captions.zip(items).map(item).collect()
    }

    fn check_against_scene(&self, item: &Item, caption: &str) -> Vec<(String, f64)> {
        let scene = self.scenes.and_then(|scenes| item.aliases().find_map(|name| scenes.get(name)));
        let Some(scene) = scene else { return Vec::new() };
        let check = synthetic_data::check_caption(caption, scene);
        let scores = [
            ("grammatical", f64::from(check.grammatical)),
            ("truthful", f64::from(check.truthful)),
            ("details", f64::from(check.details)),
        ];
        scores.map(|(name, score)| (name.to_owned(), score)).into()
    }
}

/// One of the image's references as candidate, with the others as references; with itself as
/// reference if there is no other.
fn reference_as_candidate(item: &Item, image: usize) -> caption_metrics::Item {
    let mut references = item.captions.clone();
    let candidate = references.swap_remove(image % references.len());
    if references.is_empty() {
        references.push(candidate.clone());
    }
    caption_metrics::Item { candidate, references }
}

/// Removes scores and embeddings that are not finite: an evaluator with damaged weights or too low
/// a precision computes them. If a score of one image is missing, the evaluation does not report
/// that score.
fn without_non_finite_values(mut item: v1::EvaluationItem) -> v1::EvaluationItem {
    let image = item.image.clone();
    item.scores.retain(|name, score| {
        let is_finite = score.is_finite();
        if !is_finite {
            tracing::warn!(image, "the score {name} of this image is not finite: it is not reported");
        }
        is_finite
    });
    item.embeddings.retain(|embeddings| {
        let is_finite = embeddings.image.iter().chain(&embeddings.text).all(|number| number.is_finite());
        if !is_finite {
            tracing::warn!(image, "the embeddings of this image are not finite: retrieval metrics are not reported");
        }
        is_finite
    });
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_and_embeddings_that_are_not_finite_are_not_reported() {
        let item = |score: f64, number: f32| v1::EvaluationItem {
            scores: [("pac_s".to_owned(), score), ("details".to_owned(), 3.0)].into(),
            embeddings: vec![v1::Embeddings { image: vec![1.0, number], text: vec![0.5, 0.5], ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(without_non_finite_values(item(0.5, 0.5)), item(0.5, 0.5));
        for (score, number) in [(f64::NAN, f32::NAN), (f64::INFINITY, f32::NEG_INFINITY)] {
            let found = without_non_finite_values(item(score, number));
            assert_eq!(found.scores, HashMap::from([("details".to_owned(), 3.0)]));
            assert!(found.embeddings.is_empty());
        }
    }
}
