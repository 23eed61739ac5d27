//! Scores of any captions by an evaluator: CLIP-S, PAC-S and their variants with references, and retrieval.
//!
//! `worker score` uses it. A run's evaluations compute the same on the captions that the run's captioner writes.

mod cache;

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use dataset::{DataSet, Split};
use runfile::{Evaluator, EvaluatorScore};
use scoring::{Item, Report, Scores, retrieval};
use sha2::{Digest, Sha256};
use tch::{Device, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::folder;

use crate::clip::Clip;
use crate::data::{Loader, Sizes, Source, Views, normalise};
use crate::tensors;

pub use cache::Cache;

/// Images, and texts, that are embedded at once.
const BATCH: usize = 64;

/// An evaluator that scores captions.
pub struct Judge {
    clip: Clip,
    vocabulary: Vocabulary,
    score: EvaluatorScore,
    prefix: String,
    /// Of what its embeddings of images depend on.
    fingerprint: String,
}

impl Judge {
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
        let (score, prefix) = (evaluator.score, evaluator.prefix.clone());
        Ok(Self { clip, vocabulary: Vocabulary::stored(&vocabulary), score, prefix, fingerprint })
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
        let name = format!("{} {}", self.fingerprint, data.preprocessing());
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

    /// Adds the scores of `items` to a report, each under its name after `before`. `images` has the embedding of each item's image.
    /// `done` is told how many texts are embedded so far.
    pub fn score(&self, images: &[f32], items: &[Item], before: &str, report: &mut Report, done: impl FnMut(usize)) {
        let width = self.clip.architecture().embedding;
        let texts = items.iter().flat_map(|item| std::iter::once(&item.candidate).chain(&item.references));
        let embedded = self.embed_texts(texts, done);
        let mut rows = embedded.chunks_exact(width);
        let (mut candidates, mut own, mut with_references) = (Vec::with_capacity(images.len()), vec![], vec![]);
        for (image, item) in images.chunks_exact(width).zip(items) {
            let text = rows.next().unwrap_or_default();
            let score = self.score.factor() * dot(image, text).max(0.0);
            let references = rows.by_ref().take(item.references.len());
            let nearest = references.map(|reference| dot(reference, text)).fold(0.0, f64::max);
            candidates.extend_from_slice(text);
            own.push(score);
            with_references.push(if score + nearest > 0.0 { 2.0 * score * nearest / (score + nearest) } else { 0.0 });
        }
        report.add(format!("{before}{}", self.score.name()), Scores::mean(own));
        if items.iter().all(|item| !item.references.is_empty()) {
            report.add(format!("{before}{}", self.score.reference_name()), Scores::mean(with_references));
        }
        for (name, scores) in retrieval::scores(&retrieval::ranks(&candidates, images, width)) {
            report.add(format!("{before}{name}"), scores);
        }
    }

    /// Unit embeddings of texts, one after the other.
    fn embed_texts<'t>(&self, texts: impl Iterator<Item = &'t String>, mut done: impl FnMut(usize)) -> Vec<f32> {
        let most = self.clip.architecture().text.context_length;
        let texts: Vec<Vec<i64>> =
            texts.map(|text| self.vocabulary.encode(&format!("{}{text}", self.prefix), most)).collect();
        let mut embedded = Vec::with_capacity(texts.len() * self.clip.architecture().embedding);
        for group in texts.chunks(BATCH * 4) {
            embedded.extend(floats(&no_grad(|| self.clip.text.embed(group, 1))));
            done(embedded.len() / self.clip.architecture().embedding);
        }
        embedded
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
