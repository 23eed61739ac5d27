//! Examinations: what the captioner says of images that it was not trained on, and what can be said of that without the other
//! images. The rest is up to whoever has all of it.

use std::collections::HashMap;

use dataset::{DataSet, Item, Split};
use proto::v1;
use runfile::RunFile;
use tch::{Device, Kind, Tensor, no_grad};

use crate::captioner::Search;
use crate::clip;
use crate::data::Batch;
use crate::models::{Models, Origins};
use crate::nn::Mode;

/// Whose captions are examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// The captioner's.
    Captioner,
    /// Those that people wrote, each against the others of its image: the level that generated captions are to be compared with.
    People,
}

/// Examines models on a split.
pub struct Examiner<'a> {
    /// Says what the evaluator scores, and how.
    pub run: &'a RunFile,
    /// Captioner and evaluator.
    pub models: &'a Models,
    /// Their vocabularies.
    pub origins: &'a Origins,
    /// Images and captions.
    pub data: &'a DataSet,
    /// Which of them.
    pub split: Split,
    /// Scenes of the built-in world, if that is what the images show.
    pub scenes: Option<&'a world::Scenes>,
    /// Whose captions.
    pub writer: Writer,
}

/// A caption to be judged and the human ones to judge it by.
struct Written {
    caption: String,
    references: Vec<String>,
}

impl Examiner<'_> {
    /// The items of one prepared batch of the split. They depend on which images are in a batch together, if only in their last
    /// bits.
    #[must_use]
    pub fn items(&self, batch: &Batch) -> Vec<v1::EvaluationItem> {
        let count = batch.samples.len();
        if count == 0 {
            return Vec::new();
        }
        let items: Vec<(usize, &Item)> =
            batch.samples.iter().map(|sample| (sample.image, &self.data.split(self.split)[sample.image])).collect();
        let hidden = self.models.hidden(batch, 0..count);
        let images = self.models.embeddings(batch, 0..count, &hidden);
        let written = self.written(&items, &hidden);
        let texts = self.embed(written.iter().map(|written| &written.caption));
        let references = self.embed(written.iter().flat_map(|written| &written.references));
        let mut references = references
            .split_with_sizes(written.iter().map(|written| written.references.len() as i64).collect::<Vec<_>>(), 0);
        let rows = items.into_iter().zip(written).zip(references.drain(..)).enumerate();
        rows.map(|(row, (((_, item), written), references))| {
            let (image, text) = (images.get(row as i64), texts.get(row as i64));
            let mut scores = self.evaluator_scores(&image, &text, &references);
            scores.extend(self.judged(item, &written.caption));
            finite(v1::EvaluationItem {
                image: item.name.clone(),
                image_id: item.id,
                caption: written.caption,
                references: written.references,
                scores,
                image_embedding: numbers(&image),
                text_embedding: numbers(&text),
                continued: false,
            })
        })
        .collect()
    }

    fn written(&self, items: &[(usize, &Item)], hidden: &Tensor) -> Vec<Written> {
        if self.writer == Writer::People {
            return items.iter().map(|&(number, item)| Written::by_people(item, number)).collect();
        }
        let vocabulary = &self.origins.captioner_vocabulary;
        let found = self.models.captioner.search(hidden, &Search::new(&self.run.decoding, vocabulary), Mode::Evaluate);
        let captions = found.iter().map(|beams| vocabulary.decode(&beams[0].tokens));
        captions.zip(items).map(|(caption, (_, item))| Written { caption, references: item.captions.clone() }).collect()
    }

    /// The evaluator's unit embeddings of some texts, `[texts, embedding]`; `[0, 0]` of none.
    fn embed<'t>(&self, texts: impl Iterator<Item = &'t String>) -> Tensor {
        let (evaluator, vocabulary) = (&self.models.evaluator, &self.origins.evaluator_vocabulary);
        let most = evaluator.architecture().text.context_length;
        let runfile::Evaluator { prefix, text: reading, .. } = &self.run.evaluator;
        let encode = |text: &'t String| clip::read(vocabulary, *reading, &format!("{prefix}{text}"), most);
        let texts: Vec<Vec<i64>> = texts.map(encode).collect();
        if texts.is_empty() {
            return Tensor::zeros([0, 0], (Kind::Float, Device::Cpu));
        }
        no_grad(|| evaluator.text.embed(&texts, 1))
    }

    /// The evaluator's score of a caption, and the variant that also looks at the references: the harmonic mean with the best
    /// cosine to one of them (Hessel et al. 2021, section 3); without references there is no such variant. `references` is
    /// `[references, embedding]`.
    fn evaluator_scores(&self, image: &Tensor, text: &Tensor, references: &Tensor) -> HashMap<String, f64> {
        let score = self.run.evaluator.score;
        let own = clip::score(image, text, score.factor()).double_value(&[]);
        if references.size()[0] == 0 {
            return HashMap::from([(score.name().to_owned(), own)]);
        }
        let nearest = references.matmul(text).max().double_value(&[]).max(0.0);
        let with_references = if own + nearest > 0.0 { 2.0 * own * nearest / (own + nearest) } else { 0.0 };
        HashMap::from([(score.name().to_owned(), own), (score.reference_name().to_owned(), with_references)])
    }

    fn judged(&self, item: &Item, caption: &str) -> Vec<(String, f64)> {
        let scene = self.scenes.and_then(|scenes| item.known_as().find_map(|name| scenes.get(name)));
        let Some(scene) = scene else { return Vec::new() };
        let verdict = world::judge(caption, scene);
        let scores = [
            ("grammatical", f64::from(verdict.grammatical)),
            ("truthful", f64::from(verdict.truthful)),
            ("details", f64::from(verdict.details)),
        ];
        scores.map(|(name, score)| (name.to_owned(), score)).into()
    }
}

impl Written {
    /// One of the image's own captions, against the others (or itself where there is no other).
    fn by_people(item: &Item, number: usize) -> Self {
        let mut references = item.captions.clone();
        let caption = references.swap_remove(number % references.len());
        if references.is_empty() {
            references.push(caption.clone());
        }
        Self { caption, references }
    }
}

/// An item without what is not a number, as an evaluator with damaged weights or too short a precision computes. Without the score
/// of one image, the evaluation has no such score.
fn finite(mut item: v1::EvaluationItem) -> v1::EvaluationItem {
    let image = item.image.clone();
    item.scores.retain(|name, score| {
        let is_number = score.is_finite();
        if !is_number {
            tracing::warn!(image, "the evaluator's {name} of this image is not a number: it is left out");
        }
        is_number
    });
    if item.image_embedding.iter().chain(&item.text_embedding).any(|number| !number.is_finite()) {
        tracing::warn!(image, "the evaluator's embeddings of this image are not numbers: there is no retrieval");
        (item.image_embedding, item.text_embedding) = (Vec::new(), Vec::new());
    }
    item
}

fn numbers(vector: &Tensor) -> Vec<f32> {
    Vec::try_from(vector.to_kind(Kind::Float)).expect("a vector of floats")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_not_reported() {
        let item = |score: f64, number: f32| v1::EvaluationItem {
            scores: [("pac_s".to_owned(), score), ("details".to_owned(), 3.0)].into(),
            image_embedding: vec![1.0, number],
            text_embedding: vec![0.5, 0.5],
            ..Default::default()
        };
        assert_eq!(finite(item(0.5, 0.5)), item(0.5, 0.5));
        for (score, number) in [(f64::NAN, f32::NAN), (f64::INFINITY, f32::NEG_INFINITY)] {
            let found = finite(item(score, number));
            assert_eq!(found.scores, HashMap::from([("details".to_owned(), 3.0)]));
            assert!(found.image_embedding.is_empty() && found.text_embedding.is_empty());
        }
    }
}
