//! Evaluation of a run's models on a split: generates captions of its images, and computes the
//! scores and embeddings that depend on one image only. The coordinator computes all other metrics
//! from the captions and embeddings of all images.

use std::collections::HashMap;

use config::{RunFile, TextReading};
use dataset::{DataSet, Item, Split};
use proto::v1;
use tch::Tensor;

use crate::captioner::GenerationConfig;
use crate::clip_scorer::{ClipScorer, TextEmbeddings, to_floats};
use crate::data::Batch;
use crate::nn::DropoutMode;
use crate::run_models::RunModels;

/// Which captions are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvaluatedCaptions {
    /// The captions that the captioner generates.
    Captioner,
    /// One reference caption of each image, with the others as references: the level of human
    /// annotators.
    References,
}

/// The evaluation of a run's models on a split.
pub struct SplitEvaluation<'a> {
    /// The run file, for the settings of beam search.
    pub run: &'a RunFile,
    /// The captioner and the evaluators.
    pub models: &'a RunModels,
    /// The data set.
    pub data: &'a DataSet,
    /// The split to evaluate.
    pub split: Split,
    /// The scenes of the synthetic data set, if the images are from it.
    pub scenes: Option<&'a synthetic_data::Scenes>,
    /// Which captions are evaluated.
    pub captions: EvaluatedCaptions,
}

/// What the embeddings of texts depend on: the index of the evaluator's CLIP in
/// [`RunModels::clip`], the prefix, and the tokenization. Evaluators with equal keys share
/// embeddings.
type TextEmbeddingsKey<'a> = (usize, &'a str, TextReading);

impl SplitEvaluation<'_> {
    /// Captions the images of one prepared batch of the split, and scores each caption. The last
    /// bits of scores depend on which images are in the batch.
    #[must_use]
    pub fn evaluate_batch(&self, batch: &Batch) -> Vec<v1::EvaluationItem> {
        let count = batch.samples.len();
        if count == 0 {
            return Vec::new();
        }
        let items: Vec<(usize, &Item)> =
            batch.samples.iter().map(|sample| (sample.image, &self.data.split(self.split)[sample.image])).collect();
        let hidden = self.models.hidden_states(batch, 0..count);
        let candidates = self.candidates_with_references(&items, &hidden);
        let evaluation_item = |((_, item), scored): (&(usize, &Item), &caption_metrics::Item)| v1::EvaluationItem {
            image: item.name.clone(),
            image_id: item.id,
            caption: scored.candidate.clone(),
            references: scored.references.clone(),
            scores: self.check_against_scene(item, &scored.candidate).into_iter().collect(),
            ..Default::default()
        };
        let mut evaluation_items: Vec<v1::EvaluationItem> =
            items.iter().zip(&candidates).map(evaluation_item).collect();
        self.add_scores(batch, &hidden, &candidates, &mut evaluation_items);
        evaluation_items.into_iter().map(without_non_finite_values).collect()
    }

    /// Adds the scores and embeddings of each evaluator to `evaluation_items`, which corresponds to
    /// `candidates`. `hidden` is `[images, tokens, width]`. Evaluators that share a model share
    /// image embeddings, and text embeddings if they tokenize texts in the same way.
    fn add_scores(
        &self,
        batch: &Batch,
        hidden: &Tensor,
        candidates: &[caption_metrics::Item],
        evaluation_items: &mut [v1::EvaluationItem],
    ) {
        let mut image_embeddings: HashMap<usize, Vec<f32>> = HashMap::new();
        let mut text_embeddings: HashMap<TextEmbeddingsKey<'_>, TextEmbeddings> = HashMap::new();
        for evaluator in &self.models.evaluators {
            let clip = self.models.clip(evaluator.clip_index);
            let (settings, vocabulary) = (&evaluator.settings, &*evaluator.vocabulary);
            let scorer = ClipScorer { clip, vocabulary, settings, score: evaluator.score };
            let embed_images =
                || to_floats(&self.models.embeddings(batch, 0..candidates.len(), hidden, evaluator.clip_index));
            let images = &*image_embeddings.entry(evaluator.clip_index).or_insert_with(embed_images);
            let key = (evaluator.clip_index, settings.prefix.as_str(), settings.text);
            let texts = &*text_embeddings.entry(key).or_insert_with(|| scorer.embed_texts(candidates, |_| {}));
            let scores = scorer.score(images, texts);
            let width = clip.config().embedding;
            let rows = images.chunks_exact(width).zip(texts.of_captions()).zip(scores);
            for (item, ((image, text), (score, score_with_references))) in evaluation_items.iter_mut().zip(rows) {
                item.scores.insert(evaluator.name.clone(), score);
                if let Some(score) = score_with_references {
                    item.scores.insert(evaluator.reference_metric.clone(), score);
                }
                let prefix = evaluator.retrieval_prefix.clone();
                item.embeddings.push(v1::Embeddings { prefix, image: image.to_vec(), text: text.to_vec() });
            }
        }
    }

    /// The caption of each image, with the references that it is scored against. `hidden` is
    /// `[images, tokens, width]`.
    fn candidates_with_references(&self, items: &[(usize, &Item)], hidden: &Tensor) -> Vec<caption_metrics::Item> {
        if self.captions == EvaluatedCaptions::References {
            return items.iter().map(|&(image, item)| reference_as_candidate(item, image)).collect();
        }
        let vocabulary = &self.models.captioner_vocabulary;
        let generation = GenerationConfig::new(&self.run.decoding, vocabulary);
        let hypotheses = self.models.captioner.beam_search(hidden, &generation, DropoutMode::Evaluate);
        let captions = hypotheses.iter().map(|beams| vocabulary.decode(&beams[0].tokens));
        let item = |(candidate, (_, item)): (String, &(usize, &Item))| caption_metrics::Item {
            candidate,
            references: item.captions.clone(),
        };
        captions.zip(items).map(item).collect()
    }

    /// The scores of a caption against the scene of a synthetic image; none for other images.
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

/// One of the image's references as the candidate, and the other references as its references. If
/// there is only one reference, it is both. `image` is the index of the image in the split, which
/// selects the candidate.
fn reference_as_candidate(item: &Item, image: usize) -> caption_metrics::Item {
    let mut references = item.captions.clone();
    let candidate = references.swap_remove(image % references.len());
    if references.is_empty() {
        references.push(candidate.clone());
    }
    caption_metrics::Item { candidate, references }
}

/// Removes scores and embeddings that are not finite, which an evaluator with damaged weights or
/// too low a precision computes. If a score is missing for one image, the coordinator does not
/// report the mean of that score.
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
            let actual = without_non_finite_values(item(score, number));
            assert_eq!(actual.scores, HashMap::from([("details".to_owned(), 3.0)]));
            assert!(actual.embeddings.is_empty());
        }
    }
}
