use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use checkpoint_store::Stamp;
use dataset::read_file;
use image_preprocess::{CropOffset, Preprocessing};
use serde::Serialize;
use tch::{Device, Tensor};
use tokenizer::Vocabulary;
use weights::folder::Folder;

use super::device::Compute;
use crate::captioner::beam::Hypothesis;
use crate::captioner::{Captioner, Search};
use crate::clip::VisionEncoder;
use crate::data::normalise;
use crate::models::{open_captioner, open_folder, open_vision_encoder};
use crate::nn::Mode;
use crate::trainer::stamp;

/// Images captioned at once.
const BATCH: usize = 16;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  worker caption --checkpoint runs/demo/checkpoints/2-dico-00000050 photo.jpg\n  \
                        find photos -name '*.jpg' | worker caption --checkpoint dico-vit-l14 --json -")]
pub struct Caption {
    /// A checkpoint, or a folder that `worker import` made.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Captions searched at once.
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=64))]
    beams: u16,
    /// Longest caption, in tokens, begin and end included.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u16).range(3..))]
    max_length: u16,
    /// Exponent of the length that a caption's score is divided by.
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    length_penalty: f64,
    /// Count the begin token in the length of captions that were cut at --max-length, as the DiCO
    /// release does.
    #[arg(long)]
    cut_length_includes_bos: bool,
    /// One JSON object a line and image, with every beam and its score.
    #[arg(long)]
    json: bool,
    /// Turn photos as their EXIF orientation says. CLIP's own preprocessing ignores it, and so does
    /// this command otherwise.
    #[arg(long)]
    exif: bool,
    /// How the offset of the centre crop is rounded, like `data.crop_offset` of the run file.
    #[arg(long, default_value = "half_to_even", value_parser = crop_offset, value_name = "half_to_even|floor")]
    crop_offset: CropOffset,
    #[command(flatten)]
    compute: Compute,
    /// Image files; `-` reads their paths from standard input, one a line.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Captioned<'a> {
    image: Cow<'a, str>,
    captions: Vec<Scored>,
}

#[derive(Serialize)]
struct Scored {
    caption: String,
    score: f64,
}

impl Caption {
    pub fn run(self) -> Result<(), String> {
        let device = self.compute.prepare()?;
        let folder = open_folder(&self.checkpoint)?;
        warn_if_untrained(&folder, stamp(&self.checkpoint).as_ref());
        let vocabulary = Vocabulary::stored(&folder.manifest().vocabulary);
        let captioner = open_captioner(&folder, device)?;
        let positions = captioner.architecture().positions;
        if usize::from(self.max_length) > positions {
            return Err(format!("--max-length {}: the captioner has {positions} positions", self.max_length));
        }
        if !self.length_penalty.is_finite() {
            return Err(format!("--length-penalty {}: must be a number", self.length_penalty));
        }
        let search = Search {
            beams: self.beams.into(),
            max_length: self.max_length.into(),
            length_penalty: self.length_penalty,
            cut_length_includes_bos: self.cut_length_includes_bos,
            begin: vocabulary.begin(),
            end: vocabulary.end(),
        };
        let writer = Writer {
            vision_encoder: open_vision_encoder(&folder, device)?,
            captioner,
            vocabulary,
            search,
            device,
            json: self.json,
            preprocessing: Preprocessing { exif: self.exif, crop_offset: self.crop_offset },
        };
        // How many there are is known unless they come from standard input. What is printed on the same terminal is progress enough.
        let known = !self.images.iter().any(|path| path.as_os_str() == "-");
        let bar = match () {
            () if std::io::stdout().is_terminal() => cli_support::hidden(),
            () if known => cli_support::bar(self.images.len() as u64, "images"),
            () => cli_support::spinner("captioning"),
        };
        let mut failed = 0;
        let mut batch = Vec::with_capacity(BATCH);
        for path in paths(&self.images) {
            batch.push(path?);
            if batch.len() == BATCH {
                failed += writer.caption(&std::mem::take(&mut batch))?;
                bar.inc(BATCH as u64);
            }
        }
        failed += writer.caption(&batch)?;
        bar.finish_and_clear();
        if failed > 0 { Err(format!("{failed} images could not be captioned")) } else { Ok(()) }
    }
}

fn crop_offset(text: &str) -> Result<CropOffset, String> {
    match text {
        "half_to_even" => Ok(CropOffset::HalfToEven),
        "floor" => Ok(CropOffset::Floor),
        _ => Err("expected half_to_even or floor".to_owned()),
    }
}

/// Says on stderr that no captions are to be expected of a captioner as it was drawn from a seed.
/// `stamp` says where in a run it was saved.
pub fn warn_if_untrained(folder: &Folder, stamp: Option<&Stamp>) {
    if !folder.captioner_is_untrained() {
        return;
    }
    let saved = stamp.map_or_else(String::new, |Stamp { run, stage_name, step, .. }| {
        format!(" It was saved in stage `{stage_name}` of run `{run}`, after step {step}.")
    });
    super::warn(format_args!(
        "warning: {}: its captioner was never trained, so its captions mean nothing.{saved} Use a checkpoint of a later stage that \
         trains the captioner (cross_entropy, then dico or scst)",
        folder.path().display()
    ));
}

/// The paths that were given, those of standard input in the place of `-`.
fn paths(images: &[PathBuf]) -> impl Iterator<Item = Result<PathBuf, String>> {
    images.iter().flat_map(|path| -> Box<dyn Iterator<Item = Result<PathBuf, String>>> {
        if path.as_os_str() != "-" {
            return Box::new(std::iter::once(Ok(path.clone())));
        }
        let lines = std::io::stdin().lock().split(b'\n').map(|line| match line {
            Ok(line) => Ok(PathBuf::from(OsString::from_vec(line))),
            Err(error) => Err(format!("standard input: {error}")),
        });
        Box::new(lines.filter(|line| !line.as_ref().is_ok_and(|path| path.as_os_str().is_empty())))
    })
}

struct Writer {
    vision_encoder: VisionEncoder,
    captioner: Captioner,
    vocabulary: Vocabulary,
    search: Search,
    device: Device,
    json: bool,
    preprocessing: Preprocessing,
}

impl Writer {
    /// Prints a line for each image. Returns how many could not be read; each of them was named on standard error.
    fn caption(&self, paths: &[PathBuf]) -> Result<usize, String> {
        let size = self.vision_encoder.architecture().image_size as u32;
        let read = |path: &Path| {
            let encoded = read_file(path).map_err(|error| error.to_string())?;
            let pixels = self.preprocessing.square(&encoded, size);
            let orientation = image_preprocess::orientation(&encoded).to_exif();
            if pixels.is_ok() && orientation != 1 && !self.preprocessing.exif {
                super::warn(format_args!(
                    "warning: {}: its EXIF orientation ({orientation}) is not applied, so the model sees the photo turned: --exif \
                     applies it",
                    path.display()
                ));
            }
            pixels.map_err(|problem| format!("{}: {problem}", path.display()))
        };
        let (mut readable, mut pixels) = (Vec::new(), Vec::new());
        for path in paths {
            match read(path) {
                Ok(decoded) => {
                    readable.push(path);
                    pixels.extend(decoded);
                }
                Err(problem) => super::warn(format_args!("{problem}")),
            }
        }
        if !readable.is_empty() {
            let (count, side) = (readable.len(), i64::from(size));
            let pixels = Tensor::from_slice(&pixels).view([count as i64, side, side, 3]);
            let by = &self.vision_encoder.architecture().normalization;
            let hidden = tch::no_grad(|| self.vision_encoder.hidden(&normalise(&pixels, 0..count, self.device, by)));
            let found = self.captioner.search(&hidden, &self.search, Mode::Evaluate);
            let mut out = cli_support::out();
            for (path, beams) in readable.iter().zip(found) {
                writeln!(out, "{}", self.line(path, &beams)).map_err(|error| error.to_string())?;
            }
        }
        Ok(paths.len() - readable.len())
    }

    fn line(&self, image: &Path, beams: &[Hypothesis]) -> String {
        let scored = |beam: &Hypothesis| Scored { caption: self.vocabulary.decode(&beam.tokens), score: beam.score };
        let captions: Vec<Scored> = beams.iter().map(scored).collect();
        if self.json {
            let image = image.to_string_lossy();
            return serde_json::to_string(&Captioned { image, captions }).expect("strings and numbers are JSON");
        }
        let best = captions.into_iter().next().map(|best| best.caption).unwrap_or_default();
        format!("{}\t{best}", image.display())
    }
}
