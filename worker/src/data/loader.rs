//! Prepares batches ahead of the training thread, on threads of its own: decodes images, or reads rows of a feature store.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use dataset::{DataSet, Split};
use features::{Dtype, Store};
use tch::{Device, Kind, Tensor};

/// Batches of ranges prepared ahead of the one that is waited for.
const AHEAD: usize = 4;

/// CLIP's channel means and deviations, of values in 0..1.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// An image of a split and one of its captions, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Which image.
    pub image: usize,
    /// Which of its captions.
    pub caption: usize,
}

/// Pixels on a side that the two vision towers want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of the captioner's.
    pub captioner: u32,
    /// Of the evaluator's.
    pub evaluator: u32,
}

/// Where batches come from.
pub struct Source {
    /// Images and captions.
    pub data: Arc<DataSet>,
    /// What pixels are wanted.
    pub sizes: Sizes,
    /// Read in place of images: the stores of the training and the validation split.
    pub stores: Option<[Store; 2]>,
    /// Leave images out that cannot be decoded.
    pub skip_corrupt: bool,
}

/// Prepared samples.
pub struct Batch {
    /// What is there of the images.
    pub views: Views,
    /// Bytes `[batch, size, size, 3]` of generated pictures of the same images, as the evaluator's tower wants them; there where
    /// they were asked for.
    pub generated: Option<Tensor>,
    /// The samples, without those whose image could not be decoded.
    pub samples: Vec<Sample>,
    /// How many could not be.
    pub skipped: u64,
}

/// What is there of a batch's images.
pub enum Views {
    /// Bytes `[batch, size, size, 3]`.
    Pixels {
        /// As the captioner's tower wants them.
        captioner: Tensor,
        /// As the evaluator's does, where that is another size.
        evaluator: Option<Tensor>,
    },
    /// What the frozen towers made of them, in a store's type.
    Features {
        /// Hidden states of the captioner's tower, `[batch, tokens, width]`.
        hidden: Tensor,
        /// Unit embeddings of the evaluator, `[batch, embedding]`.
        embeddings: Tensor,
    },
}

/// Normalises images `range` of bytes `[batch, size, size, 3]` to `[images, 3, size, size]` on `device`.
pub fn normalise(pixels: &Tensor, range: Range<usize>, device: Device) -> Tensor {
    let pixels = pixels.narrow(0, range.start as i64, range.len() as i64).to_device(device);
    let constant = |values: [f32; 3]| Tensor::from_slice(&values).to_device(device);
    let values = pixels.to_kind(Kind::Float) / 255.0;
    ((values - constant(MEAN)) / constant(DEVIATION)).permute([0, 3, 1, 2]).contiguous()
}

struct Job {
    split: Split,
    samples: Vec<Sample>,
    generated: bool,
    done: SyncSender<Result<Batch, String>>,
}

/// A batch under way.
pub struct Pending(Receiver<Result<Batch, String>>);

impl Pending {
    /// Waits for it.
    ///
    /// # Errors
    /// An image could not be decoded and may not be skipped, or a feature store is damaged.
    ///
    /// # Panics
    /// A loading thread panicked.
    pub fn wait(self) -> Result<Batch, String> {
        self.0.recv().expect("loading threads answer every job")
    }
}

/// Threads that prepare batches.
pub struct Loader {
    /// Taken when dropped, which ends the threads.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts `threads` threads.
    #[must_use]
    pub fn new(source: Source, threads: usize) -> Self {
        let source = Arc::new(source);
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads.max(1))
            .map(|_| {
                let (source, receiver) = (Arc::clone(&source), Arc::clone(&receiver));
                std::thread::spawn(move || {
                    loop {
                        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(job) = job else { return };
                        // A batch that nobody waits for any more is of no interest.
                        _ = job.done.send(source.load(&job));
                    }
                })
            })
            .collect();
        Self { jobs: Some(sender), threads }
    }

    /// Starts on samples of the training split.
    #[must_use]
    pub fn train(&self, samples: Vec<Sample>) -> Pending {
        self.start(Split::Train, samples, false)
    }

    /// Starts on samples of the training split, with generated pictures beside the real ones.
    #[must_use]
    pub fn train_with_generated(&self, samples: Vec<Sample>) -> Pending {
        self.start(Split::Train, samples, true)
    }

    /// Starts on images `from..to` of a split.
    fn images(&self, split: Split, from: usize, to: usize) -> Pending {
        self.start(split, (from..to).map(|image| Sample { image, caption: 0 }).collect(), false)
    }

    /// Batches of ranges of a split, in order, some of them prepared ahead.
    pub fn ranges<'a>(
        &'a self,
        split: Split,
        ranges: impl Iterator<Item = Range<usize>> + 'a,
    ) -> impl Iterator<Item = (Range<usize>, Result<Batch, String>)> + 'a {
        let mut started = ranges.map(move |range| {
            let pending = self.images(split, range.start, range.end);
            (range, pending)
        });
        let mut ahead: VecDeque<_> = started.by_ref().take(AHEAD).collect();
        std::iter::from_fn(move || {
            let (range, pending) = ahead.pop_front()?;
            let batch = pending.wait();
            ahead.extend(started.next());
            Some((range, batch))
        })
    }

    fn start(&self, split: Split, samples: Vec<Sample>, generated: bool) -> Pending {
        let (done, pending) = sync_channel(1);
        let jobs = self.jobs.as_ref().expect("jobs are only taken by drop");
        jobs.send(Job { split, samples, generated, done }).expect("loading threads live as long as the loader");
        Pending(pending)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.jobs.take();
        for thread in self.threads.drain(..) {
            // A panic was already reported by the thread; there is nothing to add here.
            _ = thread.join();
        }
    }
}

impl Source {
    fn load(&self, job: &Job) -> Result<Batch, String> {
        let Job { split, samples, .. } = job;
        let split = *split;
        let store = self.stores.as_ref().and_then(|[train, validation]| match split {
            Split::Train => Some(train),
            Split::Validation => Some(validation),
            Split::Test => None,
        });
        let batch = match store {
            Some(store) => self.read_rows(store, split, samples),
            None => self.decode(split, samples),
        }?;
        let generated = job.generated.then(|| self.decode_generated(&batch.samples)).transpose()?;
        Ok(Batch { generated, ..batch })
    }

    fn decode_generated(&self, samples: &[Sample]) -> Result<Tensor, String> {
        let size = self.sizes.evaluator;
        let mut pixels = Vec::new();
        for sample in samples {
            let decoded = self.data.generated_pixels(sample.image, size);
            pixels.extend(decoded.map_err(|error| error.to_string())?);
        }
        let side = i64::from(size);
        Ok(Tensor::from_slice(&pixels).view([samples.len() as i64, side, side, 3]))
    }

    fn read_rows(&self, store: &Store, split: Split, wanted: &[Sample]) -> Result<Batch, String> {
        let manifest = store.manifest();
        let [tokens, width, embedding] = [manifest.tokens, manifest.width, manifest.embedding].map(|size| size as i64);
        let split_at = (tokens * width) as usize * manifest.dtype.size();
        let (mut hidden, mut embeddings, mut samples) = (Vec::new(), Vec::new(), Vec::with_capacity(wanted.len()));
        for &sample in wanted {
            let (first, second) = store.row(sample.image).map_err(|error| error.to_string())?.split_at(split_at);
            if second.iter().any(|&byte| byte != 0) {
                hidden.extend_from_slice(first);
                embeddings.extend_from_slice(second);
                samples.push(sample);
                continue;
            }
            // The store's mark of an image that could not be decoded.
            let name = &self.data.split(split)[sample.image].name;
            let problem = format!("{name} could not be decoded when features were stored");
            if !self.skip_corrupt {
                return Err(format!("{problem}: set data.skip_corrupt to leave such images out"));
            }
            tracing::warn!("leaving out an image: {problem}");
        }
        let (kind, images) = (kind(manifest.dtype), samples.len() as i64);
        let views = Views::Features {
            hidden: Tensor::from_data_size(&hidden, &[images, tokens, width], kind),
            embeddings: Tensor::from_data_size(&embeddings, &[images, embedding], kind),
        };
        let skipped = (wanted.len() - samples.len()) as u64;
        Ok(Batch { views, generated: None, samples, skipped })
    }

    fn decode(&self, split: Split, wanted: &[Sample]) -> Result<Batch, String> {
        let Sizes { captioner, evaluator } = self.sizes;
        let sizes = if captioner == evaluator { vec![captioner] } else { vec![captioner, evaluator] };
        let mut pixels = vec![Vec::new(); sizes.len()];
        let mut samples = Vec::with_capacity(wanted.len());
        for &sample in wanted {
            let item = &self.data.split(split)[sample.image];
            let decoded: Result<Vec<_>, _> = sizes.iter().map(|&size| self.data.pixels(item, size)).collect();
            match decoded {
                Ok(decoded) => {
                    pixels.iter_mut().zip(decoded).for_each(|(all, one)| all.extend(one));
                    samples.push(sample);
                }
                Err(error) if self.skip_corrupt => tracing::warn!("leaving out {error}"),
                Err(error) => return Err(error.to_string()),
            }
        }
        let mut tensors = pixels.iter().zip(&sizes).map(|(pixels, &size)| {
            let side = i64::from(size);
            Tensor::from_slice(pixels).view([samples.len() as i64, side, side, 3])
        });
        let captioner = tensors.next().expect("there is always one size");
        let views = Views::Pixels { captioner, evaluator: tensors.next() };
        let skipped = (wanted.len() - samples.len()) as u64;
        Ok(Batch { views, generated: None, samples, skipped })
    }
}

/// libtorch's name of a store's type.
#[must_use]
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
    }
}
