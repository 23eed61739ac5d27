//! Writes a synthetic data set: images, scenes, and captions in the format of Karpathy's
//! `dataset_coco.json`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::caption_writer::{DETAIL_LEVELS, write_captions};
use crate::error::Error;
use crate::renderer::render;
use crate::scene::Scene;
use crate::scene_generator::generate_scene;

/// JPEG quality, of 100: artefacts are hardly visible.
const JPEG_QUALITY: u8 = 90;

/// Maximal number of images in each of `val` and `test`: evaluations need no more.
const MAX_HELD_OUT_IMAGES: usize = 500;

/// The range of the number of images: at least one per split, at most what six-digit names allow.
const IMAGE_COUNT_RANGE: Range<usize> = 3..1_000_000;

/// A split of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Training.
    Train,
    /// Validation during training.
    Val,
    /// Test of the trained model.
    Test,
}

/// The number of images in each split of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitSizes {
    /// Training images.
    pub train: usize,
    /// Validation images.
    pub val: usize,
    /// Test images.
    pub test: usize,
}

impl SplitSizes {
    /// A tenth each for `val` and `test`, but at least one and at most [`MAX_HELD_OUT_IMAGES`]; the
    /// rest for `train`.
    fn new(image_count: usize) -> Self {
        let held_out = (image_count / 10).clamp(1, MAX_HELD_OUT_IMAGES);
        Self { train: image_count - 2 * held_out, val: held_out, test: held_out }
    }

    /// The split of the image with this number. Images are independent of each other, so they need
    /// no shuffling.
    fn split(&self, image: usize) -> Split {
        if image < self.train {
            Split::Train
        } else if image < self.train + self.val {
            Split::Val
        } else {
            Split::Test
        }
    }
}

/// Writes `image_count` images with captions to the folder `out`, which is created if necessary:
///
/// - `images/000000.jpg` and so on,
/// - `scenes.json`: image file name → scene,
/// - `dataset.json`: captions and splits (a tenth each for `val` and `test`, but 500 at most).
///
/// The same seed gives the same bytes. `dataset.json` is written last and atomically, and an older
/// one is removed first: a folder with `dataset.json` is complete. Calls `progress` on the caller's
/// thread with the number of images written so far.
///
/// # Errors
/// `image_count` is not in 3 to 999,999, or a file cannot be written.
pub fn write_dataset(
    out: &Path,
    image_count: usize,
    seed: u64,
    mut progress: impl FnMut(usize),
) -> Result<SplitSizes, Error> {
    if !IMAGE_COUNT_RANGE.contains(&image_count) {
        return Err(Error::ImageCount { requested: image_count });
    }
    let dataset = out.join("dataset.json");
    match fs::remove_file(&dataset) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file(&dataset)(error)),
        _ => {}
    }
    let folder = out.join("images");
    fs::create_dir_all(&folder).map_err(Error::file(&folder))?;

    let samples = write_samples(&folder, image_count, seed, &mut progress)?;
    let sizes = SplitSizes::new(image_count);
    let scenes: BTreeMap<_, _> =
        samples.iter().enumerate().map(|(image, sample)| (image_file_name(image), &sample.scene)).collect();
    write_json(&out.join("scenes.json"), &scenes)?;
    let images = samples.iter().enumerate().map(|(image, sample)| annotation(image, sample, sizes.split(image)));
    write_json(&dataset, &Dataset { dataset: "dico-world", images: images.collect() })?;
    Ok(sizes)
}

/// Writes generated positives (PAC-S) to the folder `out`: other renderings and other captions of
/// the training scenes that [`write_dataset`] generates with the same `image_count` and `seed`.
/// They stand for the output of an image generator and a captioner.
///
/// - `positives/images/000000.jpg` and so on,
/// - `positives/captions.json`: image file name → captions. It is written last, so a folder with
///   this file is complete.
///
/// # Errors
/// `image_count` is not in 3 to 999,999, or a file cannot be written.
pub fn write_generated_positives(out: &Path, image_count: usize, seed: u64) -> Result<(), Error> {
    if !IMAGE_COUNT_RANGE.contains(&image_count) {
        return Err(Error::ImageCount { requested: image_count });
    }
    let folder = out.join("positives");
    let images_folder = folder.join("images");
    fs::create_dir_all(&images_folder).map_err(Error::file(&images_folder))?;
    let mut captions_by_file = BTreeMap::new();
    for image in 0..SplitSizes::new(image_count).train {
        let mut rng = image_rng(image, seed);
        let scene = generate_scene(rng.next_u64());
        // Skip the seeds that `write_sample` uses for the rendering and the captions of the data
        // set.
        let _data_set_seeds = [rng.next_u64(), rng.next_u64()];
        write_image(&images_folder.join(image_file_name(image)), &render(&scene, rng.next_u64()))?;
        captions_by_file.insert(image_file_name(image), write_captions(&scene, rng.next_u64()));
    }
    write_json(&folder.join("captions.json"), &captions_by_file)
}

/// One image's content of `scenes.json` and `dataset.json`.
struct Sample {
    scene: Scene,
    captions: [String; DETAIL_LEVELS.len()],
}

/// Generates all images on all cores and writes their files. Returns the samples in order.
fn write_samples(
    folder: &Path,
    image_count: usize,
    seed: u64,
    progress: &mut impl FnMut(usize),
) -> Result<Vec<Sample>, Error> {
    let next_image = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    let mut samples: Vec<Option<Sample>> = Vec::new();
    samples.resize_with(image_count, || None);

    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (next_image, sender) = (&next_image, sender.clone());
            scope.spawn(move || {
                loop {
                    let image = next_image.fetch_add(1, Ordering::Relaxed);
                    // The receiver is gone after an image has failed.
                    if image >= image_count || sender.send((image, write_sample(folder, image, seed))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (done, (image, sample)) in results.into_iter().enumerate() {
            samples[image] = Some(sample?);
            progress(done + 1);
        }
        Ok(())
    })?;
    Ok(samples.into_iter().flatten().collect())
}

/// The random stream of an image. Each image has its own, so that the assignment to threads does
/// not matter.
fn image_rng(image: usize, seed: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(image as u64);
    rng
}

/// Generates one sample and writes its image file.
fn write_sample(folder: &Path, image: usize, seed: u64) -> Result<Sample, Error> {
    let mut rng = image_rng(image, seed);
    let scene = generate_scene(rng.next_u64());
    let pixels = render(&scene, rng.next_u64());
    let captions = write_captions(&scene, rng.next_u64());
    write_image(&folder.join(image_file_name(image)), &pixels)?;
    Ok(Sample { scene, captions })
}

fn write_image(path: &Path, pixels: &RgbImage) -> Result<(), Error> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY)
        .encode_image(pixels)
        .map_err(|source| Error::Encode { path: path.to_owned(), source })?;
    fs::write(path, jpeg).map_err(Error::file(path))
}

fn image_file_name(image: usize) -> String {
    format!("{image:06}.jpg")
}

/// Writes `path` atomically: first a file with another name, which is then renamed.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let partial = path.with_extension("json.partial");
    let mut writer = BufWriter::new(File::create(&partial).map_err(Error::file(&partial))?);
    serde_json::to_writer(&mut writer, value).map_err(Error::json(&partial))?;
    let synced = writer.flush().and_then(|()| writer.get_ref().sync_all());
    synced.map_err(Error::file(&partial))?;
    fs::rename(&partial, path).map_err(Error::file(path))
}

/// Karpathy's `dataset_coco.json`.
#[derive(Serialize)]
struct Dataset<'a> {
    dataset: &'static str,
    images: Vec<Annotation<'a>>,
}

/// An image in [`Dataset`], with the names of fields that Karpathy's format has.
#[derive(Serialize)]
struct Annotation<'a> {
    /// The folder below the images' root. It is empty: images are in the root itself.
    filepath: &'static str,
    filename: String,
    imgid: usize,
    cocoid: usize,
    split: Split,
    sentids: Vec<usize>,
    sentences: Vec<Sentence<'a>>,
}

#[derive(Serialize)]
struct Sentence<'a> {
    tokens: Vec<&'a str>,
    raw: &'a str,
    imgid: usize,
    sentid: usize,
}

fn annotation<'m>(image: usize, sample: &'m Sample, split: Split) -> Annotation<'m> {
    let sentids = (image * DETAIL_LEVELS.len()..).take(DETAIL_LEVELS.len());
    let sentence =
        |(sentid, raw): (usize, &'m String)| Sentence { tokens: raw.split(' ').collect(), raw, imgid: image, sentid };
    let sentences = sentids.clone().zip(&sample.captions).map(sentence).collect();
    Annotation {
        filepath: "",
        filename: image_file_name(image),
        imgid: image,
        cocoid: image,
        split,
        sentids: sentids.collect(),
        sentences,
    }
}
