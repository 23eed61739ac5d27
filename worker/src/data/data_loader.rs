//! The data loader: decodes images or reads rows of a feature store, on its own threads, ahead of
//! the training thread.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};
use dataset::{DataSet, Error, Split};
use image_features::{Dtype, Store};
use run_assets::FeatureStores;
use tch::{Device, Kind, Tensor};
use weights::Normalization;

/// Number of threads that decode and preprocess the batches of a worker.
pub const LOADING_THREADS: usize = 2;
/// Number of image ranges that [`DataLoader::load_ranges`] loads at a time.
const PREFETCHED_RANGES: usize = 4;

/// An image of a split and one of its captions, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The index of the image.
    pub image: usize,
    /// The index of the caption among the captions of the image.
    pub caption: usize,
}

/// The image sizes, in pixels per side, that the vision encoders require.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSizes {
    /// The sizes of all encoders, without duplicates.
    pub all_encoders: BTreeSet<u32>,
    /// The size of generated images: that of the evaluator which contrastive stages train.
    pub generated_images: u32,
}

impl ImageSizes {
    /// The size for a single encoder.
    #[must_use]
    pub fn single(size: u32) -> Self {
        Self { all_encoders: BTreeSet::from([size]), generated_images: size }
    }
}

/// The source of batches: a data set, and feature stores if the run has them.
pub struct BatchSource {
    /// The images and captions.
    pub data: Arc<DataSet>,
    /// The image sizes to prepare.
    pub sizes: ImageSizes,
    /// The feature stores that are read instead of images.
    pub feature_stores: FeatureStores,
    /// Whether images that cannot be decoded are skipped.
    pub skip_corrupt: bool,
}

/// A batch of prepared samples.
pub struct Batch {
    /// The images, as pixels or features.
    pub images: BatchImages,
    /// The generated images of the same samples: bytes `[batch, size, size, 3]`, in the size
    /// [`ImageSizes::generated_images`]. None unless requested; feature stores have none.
    pub generated_images: Option<Tensor>,
    /// The samples, without those whose image or generated image could not be decoded; may be
    /// empty.
    pub samples: Vec<Sample>,
    /// The number of samples that were skipped.
    pub skipped: u64,
}

/// The images of a batch.
pub enum BatchImages {
    /// Bytes `[batch, size, size, 3]`, by size.
    Pixels(BTreeMap<u32, Tensor>),
    /// Outputs of the frozen encoders, in the type of the feature store.
    Features {
        /// Hidden states of the captioner's vision encoder, `[batch, tokens, width]`.
        hidden: Tensor,
        /// Unit embeddings by the models of all evaluators, concatenated,
        /// `[batch, embedding widths]`.
        embeddings: Tensor,
    },
}

/// Normalizes images `range` of bytes `[batch, size, size, 3]` to `[images, 3, size, size]` on
/// `device`.
pub fn normalize(pixels: &Tensor, range: Range<usize>, device: Device, normalization: &Normalization) -> Tensor {
    let pixels = pixels.narrow(0, range.start as i64, range.len() as i64).to_device(device);
    let constant = |values: [f32; 3]| Tensor::from_slice(&values).to_device(device);
    let values = pixels.to_kind(Kind::Float) / 255.0;
    ((values - constant(normalization.mean)) / constant(normalization.std)).permute([0, 3, 1, 2]).contiguous()
}

/// A request to the loading threads to load one batch.
struct LoadJob {
    split: Split,
    samples: Vec<Sample>,
    /// Whether the generated images are loaded, too.
    with_generated: bool,
    result: SyncSender<Result<Batch>>,
}

/// A batch that is being prepared.
pub struct PendingBatch(Receiver<Result<Batch>>);

impl PendingBatch {
    /// Waits for the batch.
    ///
    /// # Errors
    /// An image cannot be decoded and may not be skipped, or a tar or a feature store cannot be
    /// read.
    ///
    /// # Panics
    /// If a loading thread has panicked.
    pub fn wait(self) -> Result<Batch> {
        self.0.recv().expect("loading threads answer every job")
    }
}

/// The pool of loading threads.
pub struct DataLoader {
    /// Sends jobs to the threads. Only `drop` takes the sender: the closed channel ends the
    /// threads.
    jobs: Option<Sender<LoadJob>>,
    threads: Vec<JoinHandle<()>>,
}

impl DataLoader {
    /// Starts `threads` threads.
    #[must_use]
    pub fn new(source: BatchSource, threads: usize) -> Self {
        let reader = Arc::new(BatchReader { batch_source: source, logged_images: Mutex::default() });
        let (sender, receiver) = channel::<LoadJob>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads.max(1))
            .map(|_| {
                let (reader, receiver) = (Arc::clone(&reader), Arc::clone(&receiver));
                std::thread::spawn(move || {
                    loop {
                        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(job) = job else { return };
                        // Sending fails if the batch is no longer needed.
                        _ = job.result.send(reader.load(&job));
                    }
                })
            })
            .collect();
        Self { jobs: Some(sender), threads }
    }

    /// Starts to load samples of the training split.
    #[must_use]
    pub fn load_training_samples(&self, samples: Vec<Sample>) -> PendingBatch {
        self.submit(Split::Train, samples, false)
    }

    /// Starts to load samples of the training split, with their generated images.
    #[must_use]
    pub fn load_with_generated(&self, samples: Vec<Sample>) -> PendingBatch {
        self.submit(Split::Train, samples, true)
    }

    /// Starts to load images `from..to` of a split.
    fn load_images(&self, split: Split, from: usize, to: usize) -> PendingBatch {
        self.submit(split, (from..to).map(|image| Sample { image, caption: 0 }).collect(), false)
    }

    /// Loads one batch for each range of a split, in order, with prefetching.
    pub fn load_ranges<'a>(
        &'a self,
        split: Split,
        ranges: impl Iterator<Item = Range<usize>> + 'a,
    ) -> impl Iterator<Item = (Range<usize>, Result<Batch>)> + 'a {
        let mut submitted = ranges.map(move |range| {
            let pending = self.load_images(split, range.start, range.end);
            (range, pending)
        });
        let mut prefetched: VecDeque<_> = submitted.by_ref().take(PREFETCHED_RANGES).collect();
        std::iter::from_fn(move || {
            let (range, pending) = prefetched.pop_front()?;
            let batch = pending.wait();
            prefetched.extend(submitted.next());
            Some((range, batch))
        })
    }

    fn submit(&self, split: Split, samples: Vec<Sample>, with_generated: bool) -> PendingBatch {
        let (result, pending) = sync_channel(1);
        let jobs = self.jobs.as_ref().expect("only drop takes the jobs");
        jobs.send(LoadJob { split, samples, with_generated, result })
            .expect("loading threads live as long as the loader");
        PendingBatch(pending)
    }
}

impl Drop for DataLoader {
    fn drop(&mut self) {
        self.jobs.take();
        for thread in self.threads.drain(..) {
            // A panic of the thread was reported when it happened.
            _ = thread.join();
        }
    }
}

/// Reads batches. The loading threads share it.
struct BatchReader {
    batch_source: BatchSource,
    /// The skipped images that were logged: each is logged once, not once per epoch.
    logged_images: Mutex<HashSet<(Split, usize)>>,
}

impl BatchReader {
    fn load(&self, job: &LoadJob) -> Result<Batch> {
        match self.batch_source.feature_stores.get(job.split) {
            Some(store) => self.read_features(store, job),
            None => self.decode_images(job),
        }
    }

    /// Loads a batch from a feature store. A row of the store has the hidden states, then the
    /// embeddings.
    fn read_features(&self, store: &Store, job: &LoadJob) -> Result<Batch> {
        let manifest = store.manifest();
        let [tokens, width, embedding] = [manifest.tokens, manifest.width, manifest.embedding].map(|size| size as i64);
        let split_at = (tokens * width) as usize * manifest.dtype.size();
        let (mut hidden, mut embeddings, mut samples) = (Vec::new(), Vec::new(), Vec::with_capacity(job.samples.len()));
        for &sample in &job.samples {
            let row = store.row(sample.image)?;
            if store.is_undecodable(sample.image) {
                self.skip_sample(
                    job.split,
                    sample,
                    &Error::Image {
                        location: self
                            .batch_source
                            .data
                            .location(&self.batch_source.data.split(job.split)[sample.image]),
                        problem: "could not be decoded when features were stored".to_owned(),
                    },
                )?;
                continue;
            }
            let (hidden_bytes, embedding_bytes) = row.split_at(split_at);
            hidden.extend_from_slice(hidden_bytes);
            embeddings.extend_from_slice(embedding_bytes);
            samples.push(sample);
        }
        let (kind, count) = (tensor_kind(manifest.dtype), samples.len() as i64);
        let images = BatchImages::Features {
            hidden: Tensor::from_data_size(&hidden, &[count, tokens, width], kind),
            embeddings: Tensor::from_data_size(&embeddings, &[count, embedding], kind),
        };
        let skipped = (job.samples.len() - samples.len()) as u64;
        Ok(Batch { images, generated_images: None, samples, skipped })
    }

    /// Loads a batch from the images of the data set.
    fn decode_images(&self, job: &LoadJob) -> Result<Batch> {
        let ImageSizes { all_encoders: sizes, generated_images: generated_size } = &self.batch_source.sizes;
        let mut pixels = vec![Vec::new(); sizes.len()];
        let mut generated = job.with_generated.then(Vec::new);
        let mut samples = Vec::with_capacity(job.samples.len());
        for &sample in &job.samples {
            let item = &self.batch_source.data.split(job.split)[sample.image];
            let dataset_pixels: Result<Vec<_>, _> =
                sizes.iter().map(|&size| self.batch_source.data.pixels(item, size)).collect();
            let generated_image = || {
                let data = &self.batch_source.data;
                job.with_generated.then(|| data.generated_pixels(sample.image, *generated_size)).transpose()
            };
            match dataset_pixels.and_then(|by_size| Ok((by_size, generated_image()?))) {
                Ok((by_size, generated_image)) => {
                    pixels.iter_mut().zip(by_size).for_each(|(batch, image)| batch.extend(image));
                    generated.iter_mut().zip(generated_image).for_each(|(batch, image)| batch.extend(image));
                    samples.push(sample);
                }
                Err(error) => self.skip_sample(job.split, sample, &error)?,
            }
        }
        let tensor = |pixels: &[u8], size: u32| {
            let side = i64::from(size);
            Tensor::from_slice(pixels).view([samples.len() as i64, side, side, 3])
        };
        let images = pixels.iter().zip(sizes).map(|(pixels, &size)| (size, tensor(pixels, size)));
        let images = BatchImages::Pixels(images.collect());
        let generated = generated.map(|pixels| tensor(&pixels, *generated_size));
        let skipped = (job.samples.len() - samples.len()) as u64;
        Ok(Batch { images, generated_images: generated, samples, skipped })
    }

    /// Skips a sample whose image has an error, and logs the image once.
    ///
    /// # Errors
    /// The run does not skip images, or the error does not concern this image only.
    fn skip_sample(&self, split: Split, sample: Sample, error: &Error) -> Result<()> {
        if !error.is_image_error() || !self.batch_source.skip_corrupt {
            return Err(anyhow!(error.with_remedy()));
        }
        if self.logged_images.lock().unwrap_or_else(PoisonError::into_inner).insert((split, sample.image)) {
            tracing::warn!("skipping {error}");
        }
        Ok(())
    }
}

/// The tensor type of a feature store's type.
#[must_use]
pub fn tensor_kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
    }
}

#[cfg(test)]
mod tests {
    use image_features::{EncoderDescription, Manifest, RowFormat, Writer};

    use super::*;

    /// Two training images and one validation image that cannot be decoded, though their headers
    /// and ends are valid.
    fn undecodable_data(skip_corrupt: bool) -> (tempfile::TempDir, Arc<DataSet>) {
        let folder = tempfile::tempdir().unwrap();
        let images = [("a.png", "train"), ("b.png", "train"), ("c.png", "val")].map(|(name, split)| {
            std::fs::write(folder.path().join(name), damaged_png()).unwrap();
            format!(r#"{{"filename": "{name}", "split": "{split}", "sentences": [{{"raw": "a"}}]}}"#)
        });
        let annotations = folder.path().join("dataset.json");
        std::fs::write(&annotations, format!(r#"{{"images": [{}]}}"#, images.join(","))).unwrap();
        let karpathy = Some(config::Karpathy { annotations, images: folder.path().into() });
        let data = DataSet::load(&config::Data { karpathy, skip_corrupt, ..Default::default() }).unwrap();
        (folder, Arc::new(data))
    }

    /// A PNG of 2 x 2 pixels without pixel data.
    fn damaged_png() -> Vec<u8> {
        let header = [0, 0, 0, 2, 0, 0, 0, 2, 8, 2, 0, 0, 0];
        let mut crc = u32::MAX;
        for byte in b"IHDR".iter().chain(&header) {
            crc = (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()));
        }
        let data = b"\0\0\0\x04IDATdust\0\0\0\0\0\0\0\0IEND\xAE\x42\x60\x82";
        [&b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], &header, &(!crc).to_be_bytes(), data].concat()
    }

    fn samples() -> Vec<Sample> {
        (0..2).map(|image| Sample { image, caption: 0 }).collect()
    }

    fn loader(data: &Arc<DataSet>, feature_stores: FeatureStores, skip_corrupt: bool) -> DataLoader {
        let sizes = ImageSizes { all_encoders: BTreeSet::from([4, 6]), generated_images: 6 };
        DataLoader::new(BatchSource { data: Arc::clone(data), sizes, feature_stores, skip_corrupt }, 1)
    }

    #[test]
    fn a_batch_whose_images_cannot_be_decoded_is_empty() {
        let (_folder, data) = undecodable_data(true);
        let batch = loader(&data, FeatureStores::default(), true).load_training_samples(samples()).wait().unwrap();
        assert_eq!((batch.samples.len(), batch.skipped), (0, 2));
        let BatchImages::Pixels(pixels) = batch.images else { panic!("not pixels") };
        let sizes: Vec<Vec<i64>> = pixels.values().map(Tensor::size).collect();
        assert_eq!(sizes, [[0, 4, 4, 3], [0, 6, 6, 3]]);
    }

    #[test]
    fn without_skip_corrupt_the_error_names_the_image_and_the_setting() {
        let (_folder, data) = undecodable_data(false);
        let error = loader(&data, FeatureStores::default(), false)
            .load_training_samples(samples())
            .wait()
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("a.png: ") && error.contains("data.skip_corrupt"), "{error}");
    }

    #[test]
    fn undecodable_rows_of_a_store_are_skipped_or_reported() {
        let (folder, data) = undecodable_data(true);
        let feature_stores = || {
            let stores = [(Split::Train, 2), (Split::Validation, 1)].map(|(split, images)| {
                let encoder = EncoderDescription {
                    weights: "w".into(),
                    sha256: "aa".into(),
                    image_size: 4,
                    computation: String::new(),
                };
                let rows = RowFormat { shape: [3, 2, 5], dtype: Dtype::F16 };
                let names = (images, data.names_sha256(split));
                let encoders = (encoder.clone(), vec![encoder]);
                let manifest = Manifest::new(split.name().to_owned(), names, "as it is".to_owned(), encoders, rows);
                let path = folder.path().join(split.name());
                let mut writer = Writer::open(&path, manifest.clone()).unwrap();
                if writer.rows() == 0 {
                    writer.append(&vec![0; manifest.row_bytes() * images as usize]).unwrap();
                }
                (split, Store::open(&path, &manifest).unwrap())
            });
            stores.into_iter().collect::<FeatureStores>()
        };
        let batch = loader(&data, feature_stores(), true).load_training_samples(samples()).wait().unwrap();
        assert_eq!((batch.samples.len(), batch.skipped), (0, 2));
        let BatchImages::Features { hidden, embeddings } = batch.images else { panic!("not features") };
        assert_eq!((hidden.size(), embeddings.size()), (vec![0, 3, 2], vec![0, 5]));
        let error =
            loader(&data, feature_stores(), false).load_training_samples(samples()).wait().err().unwrap().to_string();
        assert!(error.contains("a.png: ") && error.contains("data.skip_corrupt"), "{error}");
    }
}
