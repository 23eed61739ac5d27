//! Scores of any captions by an evaluator: CLIP-S, PAC-S and their variants with references, and retrieval.
//!
//! `worker score` uses it. A run's evaluations compute the same on the captions that the run's captioner writes.

mod cache;

use std::collections::HashMap;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use dataset::{DataSet, Split};
use runfile::{Evaluator, EvaluatorScore, TextReading};
use scoring::{Item, Report, Scores, retrieval};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::{Architecture, folder};

use crate::clip::{self, Clip};
use crate::data::{Loader, Sizes, Source, Views, normalise};
use crate::tensors;

pub use cache::Cache;

/// Images, and texts, that are embedded at once.
const BATCH: usize = 64;

/// An evaluator that scores captions.
pub struct CaptionScorer {
    clip: Clip,
    vocabulary: Vocabulary,
    score: EvaluatorScore,
    prefix: String,
    text: TextReading,
    /// Of what its embeddings of images depend on.
    fingerprint: String,
}

impl CaptionScorer {
    /// Opens the evaluator that a run file describes so.
    ///
    /// # Errors
    /// It has no weights, or they are not those of a CLIP.
    pub fn open(evaluator: &Evaluator, device: Device) -> Result<Self, String> {
        let path = evaluator.weights.as_deref().ok_or("the evaluator has no weights: nothing has trained it")?;
        let (read, vocabulary) = folder::open_evaluator(path, &evaluator.clip).map_err(|error| error.to_string())?;
        if path.is_dir() && path.join(folder::MANIFEST).is_file() {
            storage::verify(path).map_err(|error| error.to_string())?;
        }
        let values = tensors::from_weights(read.tensors().map_err(|error| error.to_string())?);
        let clip = Clip::with(read.architecture().clone(), &values, device)
            .map_err(|mismatch| format!("{}: {mismatch}", path.display()))?;
        let fingerprint = format!("{} {}", read.sha256(), read.architecture().tower().computation(read.lora()));
        let Evaluator { score, prefix, text, .. } = evaluator.clone();
        Ok(Self { clip, vocabulary: Vocabulary::stored(&vocabulary), score, prefix, text, fingerprint })
    }

    /// Unit embeddings of all images of the test split of `data`, in their order: `[images, embedding]`, one after the other. Those
    /// that `cache` has are not computed; the others are added to it. `done` is told how many there are so far.
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
            sizes: Sizes { captioner: size, evaluator: size },
            stores: None,
            skip_corrupt: false,
        };
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        let loader = Loader::new(source, threads);
        let ranges = (0..missing.len()).step_by(BATCH).map(|from| from..missing.len().min(from + BATCH));
        for (range, batch) in loader.ranges(Split::Test, ranges) {
            let Views::Pixels { captioner: pixels, .. } = batch?.views else { unreachable!("there are no stores") };
            let device = self.clip.parameters().flat().device();
            let by = &self.clip.architecture().normalization;
            let images = normalise(&pixels, 0..range.len(), device, by);
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

    /// Scores of `items`; `images` has the embedding of each one's image. `done` is told how many different texts are embedded so far.
    pub fn score(&self, images: &[f32], items: &[Item], done: impl FnMut(usize)) -> CaptionScores {
        let width = self.clip.architecture().embedding;
        let mut texts = Texts::default();
        let numbers: Vec<(usize, Vec<usize>)> = items
            .iter()
            .map(|item| {
                (texts.number(&item.candidate), item.references.iter().map(|text| texts.number(text)).collect())
            })
            .collect();
        let embedded = self.embed_texts(&texts.texts, done);
        let row = |number: usize| &embedded[number * width..][..width];
        let (mut candidates, mut own, mut with_references) = (Vec::with_capacity(images.len()), vec![], vec![]);
        for (image, (candidate, references)) in images.chunks_exact(width).zip(&numbers) {
            let text = row(*candidate);
            let score = self.score.factor() * dot(image, text).max(0.0);
            let nearest = references.iter().map(|number| dot(row(*number), text)).fold(0.0, f64::max);
            candidates.extend_from_slice(text);
            own.push(score);
            with_references.push(if score + nearest > 0.0 { 2.0 * score * nearest / (score + nearest) } else { 0.0 });
        }
        let have_references = items.iter().all(|item| !item.references.is_empty());
        let by_references = have_references.then_some((self.score.reference_name(), with_references));
        CaptionScores { width, own: (self.score.name(), own), by_references, candidates }
    }

    /// Unit embeddings of texts, one after the other.
    fn embed_texts(&self, texts: &[&str], mut done: impl FnMut(usize)) -> Vec<f32> {
        let Architecture { text, embedding, .. } = self.clip.architecture();
        let most = text.context_length;
        let encode = |text: &&str| clip::read(&self.vocabulary, self.text, &format!("{}{text}", self.prefix), most);
        let texts: Vec<Vec<i64>> = texts.iter().map(encode).collect();
        let mut embedded = Vec::with_capacity(texts.len() * embedding);
        for group in texts.chunks(BATCH * 4) {
            embedded.extend(floats(&no_grad(|| self.clip.text.embed(group, 1))));
            done(embedded.len() / embedding);
        }
        embedded
    }
}

/// Scores of captions by an evaluator.
pub struct CaptionScores {
    width: usize,
    own: (&'static str, Vec<f64>),
    /// The variant that also looks at references, where all captions have some.
    by_references: Option<(&'static str, Vec<f64>)>,
    /// Unit embeddings of the captions, one after the other.
    candidates: Vec<f32>,
}

impl CaptionScores {
    /// Adds them to a report, each under its name after `before`.
    pub fn add(&self, before: &str, report: &mut Report) {
        for (name, scores) in [Some(&self.own), self.by_references.as_ref()].into_iter().flatten() {
            report.add(format!("{before}{name}"), Scores::mean(scores.clone()));
        }
    }

    /// Adds how well each caption finds its image among all of them. Takes time quadratic in their number.
    pub fn add_retrieval(&self, images: &[f32], before: &str, report: &mut Report) {
        for (name, scores) in retrieval::scores(&retrieval::ranks(&self.candidates, images, self.width)) {
            report.add(format!("{before}{name}"), scores);
        }
    }
}

/// Different texts, numbered in the order in which they first come.
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

/// What names each image in a cache: SHA-256 of its bytes.
fn keys(data: &DataSet) -> Result<Vec<cache::Key>, String> {
    let key = |item: &dataset::Item| {
        let bytes = data.read(item).map_err(|error| error.to_string())?;
        Ok(Sha256::digest(&bytes).into())
    };
    data.split(Split::Test).iter().map(key).collect()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_device(Device::Cpu).to_kind(tch::Kind::Float).flatten(0, -1);
    Vec::try_from(flat).expect("a tensor of numbers")
}

fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
}
