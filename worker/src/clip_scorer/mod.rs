//! Scores of given captions by an evaluator: CLIP-S, PAC-S and their variants with references.
//!
//! [`ClipScorer`] scores captions with a model in memory; the evaluations of a run
//! ([`crate::split_evaluation`]) use it, too. [`LoadedEvaluator`] is an evaluator outside a run,
//! for `worker score` and `worker correlate`: it owns the model, embeds images, and caches the
//! embeddings.

mod image_embedding_cache;

use std::collections::HashMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use caption_metrics::{Item, Report, Scores, retrieval};
use config::{EvaluatorScore, NamedEvaluator};
use dataset::{DataSet, Split};
use run_assets::{FeatureStores, open_evaluator};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::ClipConfig;

use crate::clip::{self, Clip};
use crate::data::{BatchImages, BatchSource, DataLoader, ImageSizes, normalize};
use crate::run_models::open_clip;

pub use image_embedding_cache::ImageEmbeddingCache;

/// The number of images that are embedded in one batch.
const IMAGE_BATCH_SIZE: usize = 64;
/// The number of texts that are embedded in one batch.
const TEXT_BATCH_SIZE: usize = 256;

/// Tokenizes captions for an evaluator, and scores them by its CLIP.
#[derive(Clone, Copy)]
pub struct ClipScorer<'a> {
    /// The evaluator's model.
    pub clip: &'a Clip,
    /// The evaluator's vocabulary.
    pub vocabulary: &'a Vocabulary,
    /// The evaluator's settings, of which `prefix` and `text` are used to tokenize captions.
    pub settings: &'a config::Evaluator,
    /// The score that its cosines are converted to.
    pub score: EvaluatorScore,
}

impl ClipScorer<'_> {
    /// Unit embeddings of all captions and references; each distinct text is embedded once. Calls
    /// `on_progress` with the number of texts that have been embedded.
    pub fn embed_texts(&self, items: &[Item], mut on_progress: impl FnMut(usize)) -> TextEmbeddings {
        let ClipConfig { text, embedding, .. } = self.clip.config();
        let mut texts = DistinctTexts::default();
        let indices = items
            .iter()
            .map(|item| (texts.index(&item.candidate), item.references.iter().map(|text| texts.index(text)).collect()))
            .collect();
        let config::Evaluator { prefix, text: reading, .. } = self.settings;
        let encode = |caption: &&str| {
            clip::tokenize(self.vocabulary, *reading, &format!("{prefix}{caption}"), text.context_length)
        };
        let tokens: Vec<Vec<i64>> = texts.texts.iter().map(encode).collect();
        let mut embeddings = Vec::with_capacity(tokens.len() * embedding);
        for batch in tokens.chunks(TEXT_BATCH_SIZE) {
            embeddings.extend(to_floats(&no_grad(|| self.clip.text.embed(batch, 1))));
            on_progress(embeddings.len() / embedding);
        }
        TextEmbeddings { width: *embedding, indices, embeddings }
    }

    /// The score of each caption, and its variant with references: the harmonic mean of the score
    /// and the highest cosine to a reference, at least 0 (RefCLIP-S, Hessel et al. 2021, section
    /// 3); none for a caption without references. `images` has the embeddings of the captions'
    /// images, `[captions, embedding]`, concatenated.
    #[must_use]
    pub fn score(&self, images: &[f32], texts: &TextEmbeddings) -> Vec<(f64, Option<f64>)> {
        let score = |(image, (candidate, references)): (&[f32], &(usize, Vec<usize>))| {
            let text = texts.row(*candidate);
            let score = self.score.factor() * dot_product(image, text).max(0.0);
            let nearest = references.iter().map(|index| dot_product(texts.row(*index), text)).fold(0.0, f64::max);
            let sum = score + nearest;
            let harmonic = if sum > 0.0 { 2.0 * score * nearest / sum } else { sum };
            (score, (!references.is_empty()).then_some(harmonic))
        };
        images.chunks_exact(texts.width).zip(&texts.indices).map(score).collect()
    }
}

/// Embeddings of captions and their references.
pub struct TextEmbeddings {
    width: usize,
    /// For each caption: the index of its embedding, and the indices of its references' embeddings.
    indices: Vec<(usize, Vec<usize>)>,
    /// The embeddings `[texts, width]`, concatenated.
    embeddings: Vec<f32>,
}

impl TextEmbeddings {
    fn row(&self, index: usize) -> &[f32] {
        &self.embeddings[index * self.width..][..self.width]
    }

    /// The embeddings of the captions, in order, each `[width]`.
    pub fn of_captions(&self) -> impl Iterator<Item = &[f32]> {
        self.indices.iter().map(|(caption, _)| self.row(*caption))
    }
}

/// An evaluator whose weights were loaded without a run, to score captions from files.
pub struct LoadedEvaluator {
    clip: Clip,
    vocabulary: Vocabulary,
    settings: config::Evaluator,
    score: EvaluatorScore,
    /// The weights and the computation that its image embeddings depend on.
    fingerprint: String,
}

impl LoadedEvaluator {
    /// Opens an evaluator.
    ///
    /// # Errors
    /// It has no weights, or its weights are not a CLIP.
    pub fn open(evaluator: &NamedEvaluator<'_>, device: Device) -> Result<Self> {
        let settings = evaluator.settings.clone();
        let path = settings.weights.as_deref().context("the evaluator has no weights: nothing has trained it")?;
        let (weights, vocabulary) = open_evaluator(path, &settings.clip)?;
        let clip = open_clip(&weights, device)?;
        let fingerprint = format!(
            "{} {}",
            weights.sha256(),
            weights.config().vision_config().differences_from_openai(weights.lora())
        );
        Ok(Self { clip, vocabulary, settings, score: evaluator.score(), fingerprint })
    }

    fn clip_scorer(&self) -> ClipScorer<'_> {
        let Self { clip, vocabulary, settings, score, .. } = self;
        ClipScorer { clip, vocabulary, settings, score: *score }
    }

    /// Unit embeddings of all images of the test split of `data`, in order, `[images, embedding]`,
    /// concatenated. Embeddings in the folder `cache` are not computed again; the others are added
    /// to it. Calls `on_progress` with the number of images whose embeddings are available.
    ///
    /// # Errors
    /// An image cannot be decoded, or the cache cannot be used.
    pub fn embed_images(
        &self,
        data: DataSet,
        cache: Option<&Path>,
        mut on_progress: impl FnMut(usize),
    ) -> Result<Vec<f32>> {
        let (width, images) = (self.clip.config().embedding, data.split(Split::Test).len());
        let description = format!("{} {}", self.fingerprint, data.preprocessing().description());
        let mut cache = cache.map(|folder| ImageEmbeddingCache::open(folder, &description, width)).transpose()?;
        let hashes = cache.as_ref().map(|_| hash_images(&data)).transpose()?;
        let mut embeddings = vec![0.0; images * width];
        let mut missing = Vec::new();
        for index in 0..images {
            let hash = hashes.as_ref().map(|hashes| &hashes[index]);
            match cache.as_ref().zip(hash).and_then(|(cache, hash)| cache.get(hash)) {
                Some(cached) => embeddings[index * width..][..width].copy_from_slice(cached),
                None => missing.push(index),
            }
        }
        let cached = images - missing.len();
        on_progress(cached);
        let size = self.clip.config().image_size as u32;
        let source = BatchSource {
            data: Arc::new(data.select(Split::Test, &missing)),
            sizes: ImageSizes::single(size),
            feature_stores: FeatureStores::default(),
            skip_corrupt: false,
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let loader = DataLoader::new(source, threads);
        let ranges =
            (0..missing.len()).step_by(IMAGE_BATCH_SIZE).map(|from| from..missing.len().min(from + IMAGE_BATCH_SIZE));
        for (range, batch) in loader.load_ranges(Split::Test, ranges) {
            let BatchImages::Pixels(pixels) = batch?.images else { unreachable!("there are no feature stores") };
            let device = self.clip.parameters().flat().device();
            let normalization = &self.clip.config().normalization;
            let images = normalize(&pixels[&size], 0..range.len(), device, normalization);
            let rows = to_floats(&no_grad(|| self.clip.image_embeddings(&self.clip.vision.hidden_states(&images))));
            for (row, &index) in rows.chunks_exact(width).zip(&missing[range.clone()]) {
                embeddings[index * width..][..width].copy_from_slice(row);
                if let (Some(cache), Some(hashes)) = (&mut cache, &hashes) {
                    cache.add(&hashes[index], row)?;
                }
            }
            on_progress(cached + range.end);
        }
        Ok(embeddings)
    }

    /// The scores of `items`; `images` has the embedding of each item's image,
    /// `[items, embedding]`, concatenated. Calls `on_progress` with the number of distinct texts
    /// that have been embedded.
    pub fn score(&self, images: &[f32], items: &[Item], on_progress: impl FnMut(usize)) -> CaptionScores {
        let scorer = self.clip_scorer();
        let texts = scorer.embed_texts(items, on_progress);
        let (scores, with_references): (Vec<f64>, Vec<Option<f64>>) = scorer.score(images, &texts).into_iter().unzip();
        CaptionScores {
            width: texts.width,
            scores,
            with_references: with_references.into_iter().collect(),
            caption_embeddings: texts.of_captions().flatten().copied().collect(),
        }
    }
}

/// The scores of captions by an evaluator.
pub struct CaptionScores {
    width: usize,
    /// The score of each caption, without references.
    scores: Vec<f64>,
    /// The variant with references; none unless all captions have some.
    with_references: Option<Vec<f64>>,
    /// Unit embeddings of the captions, concatenated.
    caption_embeddings: Vec<f32>,
}

impl CaptionScores {
    /// Adds the scores to a report under the names of the evaluator's metrics.
    pub fn add(&self, evaluator: &NamedEvaluator<'_>, report: &mut Report) {
        report.add(evaluator.metric().to_owned(), Scores::mean(self.scores.clone()));
        if let Some(scores) = &self.with_references {
            report.add(evaluator.reference_metric(), Scores::mean(scores.clone()));
        }
    }

    /// Adds the retrieval metrics: the rank of each caption's image among all images. `images` is
    /// `[images, embedding]`, concatenated. Takes time quadratic in the number of images.
    pub fn add_retrieval(&self, evaluator: &NamedEvaluator<'_>, images: &[f32], report: &mut Report) {
        let prefix = evaluator.retrieval_prefix();
        for (name, scores) in retrieval::scores(&retrieval::ranks(&self.caption_embeddings, images, self.width)) {
            report.add(format!("{prefix}{name}"), scores);
        }
    }
}

/// Distinct texts, numbered in order of first occurrence.
#[derive(Default)]
struct DistinctTexts<'t> {
    texts: Vec<&'t str>,
    indices: HashMap<&'t str, usize>,
}

impl<'t> DistinctTexts<'t> {
    fn index(&mut self, text: &'t str) -> usize {
        *self.indices.entry(text).or_insert_with(|| {
            self.texts.push(text);
            self.texts.len() - 1
        })
    }
}

/// The SHA-256 of the bytes of each image of the test split.
fn hash_images(data: &DataSet) -> Result<Vec<image_embedding_cache::ImageHash>> {
    let hash = |item: &dataset::Item| Ok(Sha256::digest(data.read(item)?).into());
    data.split(Split::Test).iter().map(hash).collect()
}

/// The values of a tensor of any shape, row by row.
#[must_use]
pub fn to_floats(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_device(Device::Cpu).to_kind(tch::Kind::Float).flatten(0, -1);
    Vec::try_from(flat).expect("a tensor of numbers")
}

fn dot_product(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
}
