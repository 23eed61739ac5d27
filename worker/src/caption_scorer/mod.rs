//! Scores of captions by an evaluator: CLIP-S, PAC-S and their variants with references.
//!
//! [`Scorer`] is shared by a run's evaluations and `worker score`. [`CaptionScorer`] is an
//! evaluator opened by itself, which embeds any images and caches the embeddings.

mod cache;

use std::collections::HashMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use caption_metrics::{Item, Report, Scores, retrieval};
use config::{EvaluatorScore, NamedEvaluator};
use dataset::{DataSet, Split};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::Architecture;

use crate::clip::{self, Clip};
use crate::data::{BatchImages, Loader, Sizes, Source, normalise};
use crate::models::open_evaluator;
use crate::tensors;

pub use cache::Cache;

/// The number of images, and of texts, that are embedded in one batch.
const BATCH: usize = 64;

/// Tokenizes captions for an evaluator and scores them.
#[derive(Clone, Copy)]
pub struct Scorer<'a> {
    /// The evaluator's model.
    pub clip: &'a Clip,
    /// The evaluator's vocabulary.
    pub vocabulary: &'a Vocabulary,
    /// How texts are tokenized.
    pub settings: &'a config::Evaluator,
    /// The score that its cosines are converted to.
    pub score: EvaluatorScore,
}

impl Scorer<'_> {
    /// Unit embeddings of all captions and references, each distinct text once. Reports the number
    /// of texts done so far to `done`.
    pub fn read(&self, items: &[Item], mut done: impl FnMut(usize)) -> TextEmbeddings {
        let Architecture { text, embedding, .. } = self.clip.architecture();
        let mut texts = Texts::default();
        let numbers = items
            .iter()
            .map(|item| {
                (texts.number(&item.candidate), item.references.iter().map(|text| texts.number(text)).collect())
            })
            .collect();
        let config::Evaluator { prefix, text: reading, .. } = self.settings;
        let encode =
            |caption: &&str| clip::read(self.vocabulary, *reading, &format!("{prefix}{caption}"), text.context_length);
        let tokens: Vec<Vec<i64>> = texts.texts.iter().map(encode).collect();
        let mut embeddings = Vec::with_capacity(tokens.len() * embedding);
        for group in tokens.chunks(BATCH * 4) {
            embeddings.extend(floats(&no_grad(|| self.clip.text.embed(group, 1))));
            done(embeddings.len() / embedding);
        }
        TextEmbeddings { width: *embedding, numbers, embeddings }
    }

    /// The score of each caption, and its variant with references: the harmonic mean with the
    /// highest cosine to a reference (Hessel et al. 2021, section 3); none for a caption without
    /// references. `images` has the embeddings of the captions' images, concatenated.
    #[must_use]
    pub fn score(&self, images: &[f32], texts: &TextEmbeddings) -> Vec<(f64, Option<f64>)> {
        let score = |(image, (candidate, references)): (&[f32], &(usize, Vec<usize>))| {
            let text = texts.row(*candidate);
            let own = self.score.factor() * dot(image, text).max(0.0);
            let nearest = references.iter().map(|number| dot(texts.row(*number), text)).fold(0.0, f64::max);
            let harmonic = if own + nearest > 0.0 { 2.0 * own * nearest / (own + nearest) } else { own + nearest };
            (own, (!references.is_empty()).then_some(harmonic))
        };
        images.chunks_exact(texts.width).zip(&texts.numbers).map(score).collect()
    }
}

/// Embeddings of captions and their references.
pub struct TextEmbeddings {
    width: usize,
    /// For each caption: the index of its embedding, and those of its references.
    numbers: Vec<(usize, Vec<usize>)>,
    /// The embeddings, concatenated.
    embeddings: Vec<f32>,
}

impl TextEmbeddings {
    fn row(&self, number: usize) -> &[f32] {
        &self.embeddings[number * self.width..][..self.width]
    }

    /// The embeddings of the captions, in order.
    pub fn captions(&self) -> impl Iterator<Item = &[f32]> {
        self.numbers.iter().map(|(caption, _)| self.row(*caption))
    }
}

/// An evaluator that scores arbitrary captions.
pub struct CaptionScorer {
    clip: Clip,
    vocabulary: Vocabulary,
    settings: config::Evaluator,
    score: EvaluatorScore,
    /// The fingerprint of everything that its image embeddings depend on.
    fingerprint: String,
}

impl CaptionScorer {
    /// Opens an evaluator.
    ///
    /// # Errors
    /// It has no weights, or they are not those of a CLIP.
    pub fn open(evaluator: &NamedEvaluator<'_>, device: Device) -> Result<Self, String> {
        let settings = evaluator.settings.clone();
        let path = settings.weights.as_deref().ok_or("the evaluator has no weights: nothing has trained it")?;
        let (read, vocabulary) = open_evaluator(path, &settings.clip)?;
        let values = tensors::from_weights(read.tensors().map_err(|error| error.to_string())?);
        let clip = Clip::with(read.architecture().clone(), &values, device)
            .map_err(|mismatch| format!("{}: {mismatch}", path.display()))?;
        let fingerprint = format!("{} {}", read.sha256(), read.architecture().tower().computation(read.lora()));
        Ok(Self { clip, vocabulary, settings, score: evaluator.score(), fingerprint })
    }

    fn scorer(&self) -> Scorer<'_> {
        let Self { clip, vocabulary, settings, score, .. } = self;
        Scorer { clip, vocabulary, settings, score: *score }
    }

    /// Unit embeddings of all images of the test split of `data`, in order, `[images, embedding]`,
    /// concatenated. Embeddings in `cache` are not computed; the others are added to it. Reports
    /// the number of images done so far to `done`.
    ///
    /// # Errors
    /// An image cannot be decoded, or the cache cannot be used.
    pub fn embed_images(
        &self,
        data: DataSet,
        cache: Option<&Path>,
        mut done: impl FnMut(usize),
    ) -> Result<Vec<f32>, String> {
        let (width, images) = (self.clip.architecture().embedding, data.split(Split::Test).len());
        let name = format!("{} {}", self.fingerprint, data.preprocessing().description());
        let mut cache = cache.map(|folder| Cache::open(folder, &name, width)).transpose()?;
        let keys = cache.as_ref().map(|_| keys(&data)).transpose()?;
        let mut embeddings = vec![0.0; images * width];
        let mut missing = Vec::new();
        for number in 0..images {
            let key = keys.as_ref().map(|keys| &keys[number]);
            match cache.as_ref().zip(key).and_then(|(cache, key)| cache.get(key)) {
                Some(known) => embeddings[number * width..][..width].copy_from_slice(known),
                None => missing.push(number),
            }
        }
        let cached = images - missing.len();
        done(cached);
        let size = self.clip.architecture().image_size as u32;
        let source = Source {
            data: Arc::new(data.select(Split::Test, &missing)),
            sizes: Sizes::of_one(size),
            stores: None,
            skip_corrupt: false,
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let loader = Loader::new(source, threads);
        let ranges = (0..missing.len()).step_by(BATCH).map(|from| from..missing.len().min(from + BATCH));
        for (range, batch) in loader.ranges(Split::Test, ranges) {
            let BatchImages::Pixels(pixels) = batch?.views else { unreachable!("there are no stores") };
            let device = self.clip.parameters().flat().device();
            let by = &self.clip.architecture().normalization;
            let images = normalise(&pixels[&size], 0..range.len(), device, by);
            let found = floats(&no_grad(|| self.clip.embed(&self.clip.vision.hidden(&images))));
            for (row, &number) in found.chunks_exact(width).zip(&missing[range.clone()]) {
                embeddings[number * width..][..width].copy_from_slice(row);
                if let (Some(cache), Some(keys)) = (&mut cache, &keys) {
                    cache.add(&keys[number], row)?;
                }
            }
            done(cached + range.end);
        }
        Ok(embeddings)
    }

    /// The scores of `items`; `images` has the embedding of each item's image. Reports the number
    /// of distinct texts embedded so far to `done`.
    pub fn score(&self, images: &[f32], items: &[Item], done: impl FnMut(usize)) -> CaptionScores {
        let scorer = self.scorer();
        let texts = scorer.read(items, done);
        let (own, with_references): (Vec<f64>, Vec<Option<f64>>) = scorer.score(images, &texts).into_iter().unzip();
        CaptionScores {
            width: texts.width,
            own,
            with_references: with_references.into_iter().collect(),
            captions: texts.captions().flatten().copied().collect(),
        }
    }
}

/// The scores of captions by an evaluator.
pub struct CaptionScores {
    width: usize,
    own: Vec<f64>,
    /// The variant with references; none unless all captions have some.
    with_references: Option<Vec<f64>>,
    /// Unit embeddings of the captions, concatenated.
    captions: Vec<f32>,
}

impl CaptionScores {
    /// Adds the scores to a report under the names of the evaluator's metrics.
    pub fn add(&self, evaluator: &NamedEvaluator<'_>, report: &mut Report) {
        report.add(evaluator.metric().to_owned(), Scores::mean(self.own.clone()));
        if let Some(scores) = &self.with_references {
            report.add(evaluator.reference_metric(), Scores::mean(scores.clone()));
        }
    }

    /// Adds retrieval metrics: how each caption ranks its image among all. Takes time quadratic in
    /// their number.
    pub fn add_retrieval(&self, evaluator: &NamedEvaluator<'_>, images: &[f32], report: &mut Report) {
        let prefix = evaluator.retrieval_prefix();
        for (name, scores) in retrieval::scores(&retrieval::ranks(&self.captions, images, self.width)) {
            report.add(format!("{prefix}{name}"), scores);
        }
    }
}

/// Distinct texts, numbered in order of first occurrence.
#[derive(Default)]
struct Texts<'t> {
    texts: Vec<&'t str>,
    numbers: HashMap<&'t str, usize>,
}

impl<'t> Texts<'t> {
    fn number(&mut self, text: &'t str) -> usize {
        *self.numbers.entry(text).or_insert_with(|| {
            self.texts.push(text);
            self.texts.len() - 1
        })
    }
}

/// The cache key of each image: the SHA-256 of its bytes.
fn keys(data: &DataSet) -> Result<Vec<cache::Key>, String> {
    let key = |item: &dataset::Item| {
        let bytes = data.read(item).map_err(|error| error.to_string())?;
        Ok(Sha256::digest(&bytes).into())
    };
    data.split(Split::Test).iter().map(key).collect()
}

/// The values of a tensor, in order.
pub fn floats(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_device(Device::Cpu).to_kind(tch::Kind::Float).flatten(0, -1);
    Vec::try_from(flat).expect("a tensor of numbers")
}

fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
}
