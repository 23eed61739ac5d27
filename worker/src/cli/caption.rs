//! `worker caption`: captions image files.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use checkpoint_store::CheckpointMetadata;
use dataset::read_file;
use image_preprocess::{CropOffset, Preprocessing};
use run_assets::open_folder;
use serde::Serialize;
use tch::{Device, Tensor};
use tokenizer::Vocabulary;
use weights::model_folder::ModelFolder;

use super::device_options::DeviceOptions;
use crate::captioner::beam::Hypothesis;
use crate::captioner::{Captioner, GenerationConfig};
use crate::clip::VisionEncoder;
use crate::data::normalize;
use crate::errors;
use crate::nn::DropoutMode;
use crate::run_models::{open_captioner, open_vision_encoder};
use crate::trainer::checkpoint_metadata;

/// Images per batch.
const BATCH_SIZE: usize = 16;

/// Caption image files.
///
/// Needs a checkpoint or a model folder. Prints one line per image: the path, a tab and the
/// caption. Names images that cannot be read on standard error, and continues with the others.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  worker caption --checkpoint runs/demo/checkpoints/2-dico-00000050 photo.jpg\n  \
                        find photos -name '*.jpg' | worker caption --checkpoint dico-vit-l14 --json -")]
pub struct Caption {
    /// Checkpoint, or model folder of `worker import`.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Number of beams of the beam search.
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=64))]
    beams: u16,
    /// Maximal length of a caption in tokens, begin and end tokens included.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u16).range(3..))]
    max_length: u16,
    /// Exponent of the length penalty: the score of a caption is its log-probability divided by its
    /// length to this power.
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    length_penalty: f64,
    /// Include the begin token in the length of captions that were cut at --max-length, as the DiCO
    /// release does.
    #[arg(long)]
    cut_length_includes_bos: bool,
    /// Print one JSON object per image, with the captions and scores of all beams.
    #[arg(long)]
    json: bool,
    /// Apply the EXIF orientation of photos, which CLIP's own preprocessing ignores.
    #[arg(long)]
    exif: bool,
    /// Rounding of the centre crop's offset, as `data.crop_offset` of the run file.
    #[arg(long, default_value = "half_to_even", value_parser = parse_crop_offset, value_name = "half_to_even|floor")]
    crop_offset: CropOffset,
    #[command(flatten)]
    device: DeviceOptions,
    /// Image files; `-` reads paths from standard input, one per line.
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

/// An image in the JSON output.
#[derive(Serialize)]
struct CaptionedImage<'a> {
    image: Cow<'a, str>,
    /// The captions of all beams, the best first.
    captions: Vec<ScoredCaption>,
}

#[derive(Serialize)]
struct ScoredCaption {
    caption: String,
    score: f64,
}

impl Caption {
    /// Runs the command.
    ///
    /// # Errors
    /// The checkpoint cannot be read, an option is invalid, or an image could not be captioned.
    pub fn run(self) -> Result<()> {
        let device = self.device.initialize()?;
        let folder = open_folder(&self.checkpoint)?;
        warn_if_untrained(&folder, checkpoint_metadata(&self.checkpoint).as_ref());
        let vocabulary = Vocabulary::from_manifest(&folder.manifest().vocabulary);
        let captioner = open_captioner(&folder, device)?;
        let positions = captioner.config().positions;
        if usize::from(self.max_length) > positions {
            bail!("--max-length {}: the captioner has {positions} positions", self.max_length);
        }
        if !self.length_penalty.is_finite() {
            bail!("--length-penalty {}: must be finite", self.length_penalty);
        }
        let generation_config = GenerationConfig {
            beams: self.beams.into(),
            max_length: self.max_length.into(),
            length_penalty: self.length_penalty,
            cut_length_includes_bos: self.cut_length_includes_bos,
            bos_token_id: vocabulary.begin_token(),
            eos_token_id: vocabulary.end_token(),
        };
        let captioner = ImageCaptioner {
            vision_encoder: open_vision_encoder(&folder, device)?,
            captioner,
            vocabulary,
            generation_config,
            device,
            json: self.json,
            preprocessing: Preprocessing { exif: self.exif, crop_offset: self.crop_offset },
        };
        // On a terminal the captions themselves show the progress. The number of images is unknown
        // if their paths are read from standard input.
        let is_count_known = !self.images.iter().any(|path| path.as_os_str() == "-");
        let bar = match () {
            () if std::io::stdout().is_terminal() => cli_support::hidden_progress_bar(),
            () if is_count_known => cli_support::progress_bar(self.images.len() as u64, "images"),
            () => cli_support::spinner("captioning"),
        };
        let mut unreadable_count = 0;
        let mut batch = Vec::with_capacity(BATCH_SIZE);
        for path in paths(&self.images) {
            batch.push(path?);
            if batch.len() == BATCH_SIZE {
                unreadable_count += captioner.print_captions(&std::mem::take(&mut batch))?;
                bar.inc(BATCH_SIZE as u64);
            }
        }
        unreadable_count += captioner.print_captions(&batch)?;
        bar.finish_and_clear();
        if unreadable_count > 0 {
            bail!("{unreadable_count} images could not be captioned");
        }
        Ok(())
    }
}

fn parse_crop_offset(text: &str) -> Result<CropOffset> {
    match text {
        "half_to_even" => Ok(CropOffset::HalfToEven),
        "floor" => Ok(CropOffset::Floor),
        _ => bail!("expected half_to_even or floor"),
    }
}

/// Prints a warning if the captioner of a folder was never trained. `metadata` describes the
/// checkpoint, if the folder is a checkpoint.
pub fn warn_if_untrained(folder: &ModelFolder, metadata: Option<&CheckpointMetadata>) {
    if !folder.is_captioner_untrained() {
        return;
    }
    let saved = metadata.map_or_else(String::new, |CheckpointMetadata { run, stage_name, step, .. }| {
        format!(" It was saved in stage `{stage_name}` of run `{run}`, after step {step}.")
    });
    super::print_message(format_args!(
        "warning: {}: its captioner was never trained, so its captions are random.{saved} Use a checkpoint of a later stage that \
         trains the captioner (cross_entropy, dico or scst)",
        folder.path().display()
    ));
}

/// The paths of the arguments, with those from standard input instead of `-`.
fn paths(images: &[PathBuf]) -> impl Iterator<Item = Result<PathBuf>> {
    images.iter().flat_map(|path| -> Box<dyn Iterator<Item = Result<PathBuf>>> {
        if path.as_os_str() != "-" {
            return Box::new(std::iter::once(Ok(path.clone())));
        }
        let lines = std::io::stdin().lock().split(b'\n').map(|line| {
            let line = line.context("standard input")?;
            Ok(PathBuf::from(OsString::from_vec(line)))
        });
        Box::new(lines.filter(|line: &Result<PathBuf>| !line.as_ref().is_ok_and(|path| path.as_os_str().is_empty())))
    })
}

/// Captions batches of image files, and prints the captions.
struct ImageCaptioner {
    vision_encoder: VisionEncoder,
    captioner: Captioner,
    vocabulary: Vocabulary,
    generation_config: GenerationConfig,
    device: Device,
    json: bool,
    preprocessing: Preprocessing,
}

impl ImageCaptioner {
    /// Prints a line for each image. Returns the number of images that could not be read or
    /// decoded, after naming each of them on standard error.
    fn print_captions(&self, paths: &[PathBuf]) -> Result<usize> {
        let size = self.vision_encoder.config().image_size as u32;
        let read = |path: &Path| {
            let encoded = read_file(path)?;
            let pixels = self.preprocessing.apply(&encoded, size);
            let orientation = image_preprocess::orientation(&encoded).to_exif();
            let is_upright = orientation == 1;
            if pixels.is_ok() && !is_upright && !self.preprocessing.exif {
                super::print_message(format_args!(
                    "warning: {}: its EXIF orientation ({orientation}) is not applied, so the model gets a rotated or mirrored \
                     photo: pass --exif to apply it",
                    path.display()
                ));
            }
            pixels.with_context(|| path.display().to_string())
        };
        let (mut readable, mut pixels) = (Vec::new(), Vec::new());
        for path in paths {
            match read(path) {
                Ok(decoded) => {
                    readable.push(path);
                    pixels.extend(decoded);
                }
                Err(error) => super::print_message(format_args!("{}", errors::one_line(&error))),
            }
        }
        if !readable.is_empty() {
            let (count, side) = (readable.len(), i64::from(size));
            let pixels = Tensor::from_slice(&pixels).view([count as i64, side, side, 3]);
            let normalization = &self.vision_encoder.config().normalization;
            let hidden = tch::no_grad(|| {
                self.vision_encoder.hidden_states(&normalize(&pixels, 0..count, self.device, normalization))
            });
            let beams_per_image = self.captioner.beam_search(&hidden, &self.generation_config, DropoutMode::Evaluate);
            let mut out = cli_support::stdout();
            for (path, beams) in readable.iter().zip(beams_per_image) {
                writeln!(out, "{}", self.output_line(path, &beams))?;
            }
        }
        Ok(paths.len() - readable.len())
    }

    fn output_line(&self, image: &Path, beams: &[Hypothesis]) -> String {
        let scored_caption =
            |beam: &Hypothesis| ScoredCaption { caption: self.vocabulary.decode(&beam.tokens), score: beam.score };
        let captions: Vec<ScoredCaption> = beams.iter().map(scored_caption).collect();
        if self.json {
            let image = image.to_string_lossy();
            return serde_json::to_string(&CaptionedImage { image, captions }).expect("strings and numbers are JSON");
        }
        let best = captions.into_iter().next().map(|best| best.caption).unwrap_or_default();
        format!("{}\t{best}", image.display())
    }
}
