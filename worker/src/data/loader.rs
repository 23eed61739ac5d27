//! Decodes batches ahead of the training thread, on threads of its own.

use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tch::{Device, Kind, Tensor};

use super::{DataSet, Error, decode};

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

/// Which split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    Train,
    Validation,
}

/// Decoded samples.
pub struct Batch {
    /// Bytes `[batch, size, size, 3]`.
    pixels: Tensor,
    /// The samples, without those whose image could not be decoded.
    pub samples: Vec<Sample>,
    /// How many could not be.
    pub skipped: u64,
}

impl Batch {
    /// Normalised pixels `[batch, 3, size, size]` of samples `from..to`, on `device`.
    pub fn images(&self, from: usize, to: usize, device: Device) -> Tensor {
        let pixels = self.pixels.narrow(0, from as i64, (to - from) as i64).to_device(device);
        let constant = |values: [f32; 3]| Tensor::from_slice(&values).to_device(device);
        let values = pixels.to_kind(Kind::Float) / 255.0;
        ((values - constant(MEAN)) / constant(DEVIATION)).permute([0, 3, 1, 2]).contiguous()
    }
}

struct Job {
    split: Split,
    samples: Vec<Sample>,
    done: std::sync::mpsc::SyncSender<Result<Batch, Error>>,
}

/// A batch under way.
pub struct Pending(Receiver<Result<Batch, Error>>);

impl Pending {
    /// Waits for it.
    ///
    /// # Errors
    /// An image could not be decoded and may not be skipped.
    ///
    /// # Panics
    /// A decoding thread panicked.
    pub fn wait(self) -> Result<Batch, Error> {
        self.0.recv().expect("decoding threads answer every job")
    }
}

/// Threads that decode images.
pub struct Loader {
    /// Taken when dropped, which ends the threads.
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts `threads` threads that decode images of `data` to `size` x `size` pixels.
    #[must_use]
    pub fn new(data: Arc<DataSet>, size: u32, threads: usize, skip_corrupt: bool) -> Self {
        let (sender, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads.max(1))
            .map(|_| {
                let (data, receiver) = (Arc::clone(&data), Arc::clone(&receiver));
                std::thread::spawn(move || {
                    loop {
                        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok(job) = job else { return };
                        // A batch that nobody waits for any more is of no interest.
                        _ = job.done.send(load(&data, &job, size, skip_corrupt));
                    }
                })
            })
            .collect();
        Self { jobs: Some(sender), threads }
    }

    /// Starts on samples of the training split.
    #[must_use]
    pub fn train(&self, samples: Vec<Sample>) -> Pending {
        self.start(Split::Train, samples)
    }

    /// Starts on images `from..to` of the validation split.
    #[must_use]
    pub fn validation(&self, from: usize, to: usize) -> Pending {
        self.start(Split::Validation, (from..to).map(|image| Sample { image, caption: 0 }).collect())
    }

    fn start(&self, split: Split, samples: Vec<Sample>) -> Pending {
        let (done, pending) = sync_channel(1);
        let jobs = self.jobs.as_ref().expect("jobs are only taken by drop");
        jobs.send(Job { split, samples, done }).expect("decoding threads live as long as the loader");
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

fn load(data: &DataSet, job: &Job, size: u32, skip_corrupt: bool) -> Result<Batch, Error> {
    let items = match job.split {
        Split::Train => &data.train,
        Split::Validation => &data.validation,
    };
    let mut pixels = Vec::with_capacity(job.samples.len() * (size * size * 3) as usize);
    let mut samples = Vec::with_capacity(job.samples.len());
    for &sample in &job.samples {
        match decode(&items[sample.image].path, size) {
            Ok(decoded) => {
                pixels.extend(decoded);
                samples.push(sample);
            }
            Err(error) if skip_corrupt => tracing::warn!("leaving out {error}"),
            Err(error) => return Err(error),
        }
    }
    let side = i64::from(size);
    let pixels = Tensor::from_slice(&pixels).view([samples.len() as i64, side, side, 3]);
    let skipped = (job.samples.len() - samples.len()) as u64;
    Ok(Batch { pixels, samples, skipped })
}
