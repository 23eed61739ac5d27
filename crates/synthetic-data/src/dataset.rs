//! Writes a world to files: images, scenes, and captions in the format of Karpathy's `dataset_coco.json`.

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

use crate::caption::{LEVELS, captions};
use crate::compose::compose;
use crate::draw::draw;
use crate::error::Error;
use crate::scene::Scene;

/// JPEG quality, of 100: artefacts are visible only with a magnifier.
const QUALITY: u8 = 90;

/// Most images that go into each of `val` and `test`: evaluations need no more.
const HELD_OUT: usize = 500;

/// How many images there may be: one for each split, and no more than six digits can name.
const IMAGES: Range<usize> = 3..1_000_000;

/// Which part of a run an image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// To learn from.
    Train,
    /// To watch progress on.
    Val,
    /// To judge the result on.
    Test,
}

/// What [`synthesize`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Images to train on.
    pub train: usize,
    /// Images to validate on.
    pub val: usize,
    /// Images to test on.
    pub test: usize,
}

impl Summary {
    /// A tenth each, but at least one and at most [`HELD_OUT`], for `val` and `test`; the rest for `train`.
    fn of(images: usize) -> Self {
        let held_out = (images / 10).clamp(1, HELD_OUT);
        Self { train: images - 2 * held_out, val: held_out, test: held_out }
    }

    /// The split of an image. Images are independent of each other, so there is no need to shuffle.
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

/// Writes `images` images with captions below the folder `out`, which is made if need be:
///
/// - `images/000000.jpg` and so on,
/// - `scenes.json`: image file name → scene,
/// - `dataset.json`: captions and splits (a tenth each for `val` and `test`, but 500 at most).
///
/// The same seed gives the same bytes. `dataset.json` comes last, at once, and an older one is removed first: a folder
/// that has one is complete. `progress` is told, on the caller's thread, how many images are written.
///
/// # Errors
/// If `images` is not in 3 to 999,999, or a file cannot be written.
pub fn synthesize(out: &Path, images: usize, seed: u64, mut progress: impl FnMut(usize)) -> Result<Summary, Error> {
    if !IMAGES.contains(&images) {
        return Err(Error::Images { asked: images });
    }
    let dataset = out.join("dataset.json");
    match fs::remove_file(&dataset) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::file(&dataset)(error)),
        _ => {}
    }
    let folder = out.join("images");
    fs::create_dir_all(&folder).map_err(Error::file(&folder))?;

    let samples = make_all(&folder, images, seed, &mut progress)?;
    let summary = Summary::of(images);
    let scenes: BTreeMap<_, _> = samples.iter().enumerate().map(|(image, made)| (file(image), &made.scene)).collect();
    write_json(&out.join("scenes.json"), &scenes)?;
    let images = samples.iter().enumerate().map(|(image, made)| annotation(image, made, summary.split(image)));
    write_json(&dataset, &Dataset { dataset: "dico-world", images: images.collect() })?;
    Ok(summary)
}

/// Writes, below the folder `out`, other drawings and other captions of
/// the training scenes that [`synthesize`] draws with the same `images` and `seed`, as an image generator and a captioner would
/// provide them:
///
/// - `positives/images/000000.jpg` and so on,
/// - `positives/captions.json`: image file name → captions; it comes last, so a folder that has one is complete.
///
/// # Errors
/// If `images` is not in 3 to 999,999, or a file cannot be written.
pub fn synthesize_positives(out: &Path, images: usize, seed: u64) -> Result<(), Error> {
    if !IMAGES.contains(&images) {
        return Err(Error::Images { asked: images });
    }
    let folder = out.join("positives");
    let pictures = folder.join("images");
    fs::create_dir_all(&pictures).map_err(Error::file(&pictures))?;
    let mut all = BTreeMap::new();
    for image in 0..Summary::of(images).train {
        let mut rng = stream(image, seed);
        let scene = compose(rng.next_u64());
        // Those of the real picture and the real captions.
        let _seeds = [rng.next_u64(), rng.next_u64()];
        write_image(&pictures.join(file(image)), &draw(&scene, rng.next_u64()))?;
        all.insert(file(image), captions(&scene, rng.next_u64()));
    }
    write_json(&folder.join("captions.json"), &all)
}

/// What is told of an image in the JSON files.
struct Sample {
    scene: Scene,
    captions: [String; LEVELS.len()],
}

/// Makes all images on all cores; returns what is to be told of them, in order.
fn make_all(folder: &Path, images: usize, seed: u64, progress: &mut impl FnMut(usize)) -> Result<Vec<Sample>, Error> {
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    let mut samples: Vec<Option<Sample>> = Vec::new();
    samples.resize_with(images, || None);

    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                loop {
                    let image = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody listens any more once an image has failed.
                    if image >= images || sender.send((image, make(folder, image, seed))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (done, (image, made)) in results.into_iter().enumerate() {
            samples[image] = Some(made?);
            progress(done + 1);
        }
        Ok(())
    })?;
    Ok(samples.into_iter().flatten().collect())
}

/// The random stream of an image. Each has its own, so that it does not matter who makes it.
fn stream(image: usize, seed: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(image as u64);
    rng
}

/// Makes one image and writes its file.
fn make(folder: &Path, image: usize, seed: u64) -> Result<Sample, Error> {
    let mut rng = stream(image, seed);
    let scene = compose(rng.next_u64());
    let pixels = draw(&scene, rng.next_u64());
    let captions = captions(&scene, rng.next_u64());
    write_image(&folder.join(file(image)), &pixels)?;
    Ok(Sample { scene, captions })
}

fn write_image(path: &Path, pixels: &RgbImage) -> Result<(), Error> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode_image(pixels)
        .map_err(|source| Error::Encode { path: path.to_owned(), source })?;
    fs::write(path, jpeg).map_err(Error::file(path))
}

fn file(image: usize) -> String {
    format!("{image:06}.jpg")
}

/// Writes `path` at once: under another name, then renamed.
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

#[derive(Serialize)]
struct Annotation<'a> {
    /// Folder below the images' root; here they lie in the root itself.
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

fn annotation<'m>(image: usize, made: &'m Sample, split: Split) -> Annotation<'m> {
    let sentids = (image * LEVELS.len()..).take(LEVELS.len());
    let sentence =
        |(sentid, raw): (usize, &'m String)| Sentence { tokens: raw.split(' ').collect(), raw, imgid: image, sentid };
    let sentences = sentids.clone().zip(&made.captions).map(sentence).collect();
    Annotation {
        filepath: "",
        filename: file(image),
        imgid: image,
        cocoid: image,
        split,
        sentids: sentids.collect(),
        sentences,
    }
}
