//! `coordinator validate`: checks a run file, and all that it names, without starting anything.

mod images;
mod sizes;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use config::{RunFile, Stage};
use dataset::{DataSet, Split};
use feature_store::{Dtype, Manifest, Rows, Store, Tower};
use serde_json::json;
use tokenizer::{MAX_TOKEN_BYTES, Vocabulary};
use weights::folder::{self, Folder};
use weights::{Clip, Conventions, VisionArchitecture};

use images::Images;

/// Check a run file: that everything it names exists and fits together.
///
/// All images are looked at, and up to 1,000 of each split are decoded. Every image that cannot be
/// used is listed.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  coordinator validate --config configs/demo.yaml\n  \
                        coordinator validate --config configs/coco-vit-l14.yaml --decode-all --json")]
pub struct Validate {
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Decode all images, on all cores, not only some of each split.
    #[arg(long)]
    decode_all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Validate {
    /// Prints what was found if all is well.
    pub fn run(self) -> anyhow::Result<()> {
        let (file, warnings) = RunFile::load_with_warnings(&self.config)?;
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let (images, found) = self.check(&file).with_context(|| self.config.display().to_string())?;
        let mut out = cli_support::out();
        if self.json {
            let mut printed = json!({
                "run": file.name, "plan": summary(&file), "found": found, "warnings": warnings, "settings": file,
            });
            if let (Some(printed), serde_json::Value::Object(images)) = (printed.as_object_mut(), images.json()) {
                printed.extend(images);
            }
            writeln!(out, "{printed}")?;
            return Ok(());
        }
        writeln!(out, "OK: {}: {}", file.name, summary(&file))?;
        found.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        warnings.iter().try_for_each(|line| writeln!(out, "    warning: {line}"))?;
        Ok(())
    }

    fn check(&self, file: &RunFile) -> anyhow::Result<(Images, Vec<String>)> {
        let mut images = Images::look(&file.data, self.decode_all)?;
        images.expect_usable(self.json)?;
        let progress = cli_support::spinner("looking at what the run file names");
        let (stores, found) = check(file, &images.data)?;
        progress.finish_and_clear();
        for (split, store) in &stores {
            images.add_blank_rows(*split, store);
        }
        images.expect_usable(self.json)?;
        let found = images.summary().into_iter().chain(found).collect();
        Ok((images, found))
    }
}

/// What scores captions, with the files that `scoring` names.
///
/// # Errors
/// One of them is missing or damaged.
pub(super) fn metrics(scoring: &config::Scoring) -> anyhow::Result<caption_metrics::Metrics> {
    let config::Scoring { meteor_jar, meteor_paraphrases, spice_jar } = scoring;
    let files = caption_metrics::Files::new([meteor_jar, meteor_paraphrases, spice_jar]);
    caption_metrics::Metrics::open(&files).context("scoring")
}

/// Feature stores, each with the split that it is of.
type Stores = Vec<(Split, Store)>;

/// What a run file names besides images, in lines for people, and the feature stores among it.
fn check(file: &RunFile, data: &DataSet) -> anyhow::Result<(Stores, Vec<String>)> {
    if let Some(scenes) = &file.data.scenes {
        ensure!(scenes.is_file(), "data.scenes: there is no file {}", scenes.display());
    }
    metrics(&file.scoring)?;
    checkpoint_store::check_writable(&file.checkpoint_place(), &object_io::Access::environment())
        .context("checkpoints")?;
    // One of the corpus has all tokens of the captions.
    let mut vocabulary = Vocabulary::full();
    data.complete(file).context("data")?;
    let mut opened = Vec::new();
    let mut found: Vec<String> = data.notes().iter().map(|note| format!("data: {note}")).collect();
    let mut evaluators: Vec<Clip> = Vec::new();
    let mut embedding = 0;
    for named in file.named_evaluators() {
        embedding += named.settings.preset.map_or(0, config::Preset::evaluator_embedding);
        let Some(path) = &named.settings.weights else { continue };
        let clip = evaluator(path, &named.settings.clip).with_context(|| format!("{}.weights", named.key()))?;
        embedding += clip.architecture().embedding;
        let (name, score) = (named.name, named.score().name());
        found.push(format!(
            "evaluator {name} ({score}): {}, sees {}",
            clip.path().display(),
            tower(&clip.architecture().tower())
        ));
        found.extend(clip.description().map(|line| format!("  {line}")));
        if !evaluators.iter().any(|other| other.is_same_model(&clip)) {
            evaluators.push(clip);
        }
    }
    let is_primary = file.primary_evaluator().settings.weights.is_some();
    let primary = evaluators.first().filter(|_| is_primary);
    let mut vision = primary.map(|clip| (clip.architecture().tower(), of_clip(clip)));
    if let Some(path) = &file.captioner.vision_encoder {
        let clip = clip(path, &file.captioner.vision_clip).context("captioner.vision_encoder")?;
        found.push(format!("captioner: sees {} through {}", tower(&clip.architecture().tower()), path.display()));
        found.extend(clip.description().map(|line| format!("  {line}")));
        vision = Some((clip.architecture().tower(), of_clip(&clip)));
    }
    if let Some(path) = &file.captioner.weights {
        let (architecture, seen, known) = captioner(file, path).context("captioner.weights")?;
        found.push(format!("captioner: {}, sees {}", path.display(), tower(&architecture)));
        vision = Some((architecture, seen));
        vocabulary = known;
    }
    data.check_evaluation(embedding, file.decoding.max_length as usize * MAX_TOKEN_BYTES).context("data")?;
    found.extend(sizes::lines(file, data, &vocabulary));
    if let (Some(folder), Some(vision)) = (&file.data.features, &vision) {
        opened = stores(folder, data, &evaluators, vision).context("data.features")?;
        found.push(format!("features: {}", folder.display()));
    }
    Ok((opened, found))
}

fn evaluator(path: &Path, said: &Conventions) -> anyhow::Result<Clip> {
    let (clip, _) = folder::open_evaluator(path, said)?;
    if path.is_dir() && path.join(folder::MANIFEST).is_file() {
        checkpoint_store::verify(path)?;
    }
    clip.tensors()?;
    Ok(clip)
}

fn clip(path: &Path, said: &Conventions) -> anyhow::Result<Clip> {
    let clip = Clip::open(path, said)?;
    clip.tensors()?;
    Ok(clip)
}

fn of_clip(clip: &Clip) -> Tower {
    let (image_size, computation) =
        (clip.architecture().image_size as u32, clip.architecture().tower().computation(clip.lora()));
    Tower { weights: clip.path().to_owned(), sha256: clip.sha256(), image_size, computation }
}

/// What an imported captioner, or one of another run, sees through, and which tokens it knows.
fn captioner(file: &RunFile, path: &Path) -> anyhow::Result<(VisionArchitecture, Tower, Vocabulary)> {
    let folder = Folder::open(path)?;
    checkpoint_store::verify(path)?;
    let manifest = folder.manifest();
    let vision = folder.vision()?;
    let architecture = manifest.vision.architecture.clone();
    file.check_positions(manifest.captioner.positions).map_err(anyhow::Error::msg)?;
    let (image_size, computation) = (architecture.image_size as u32, architecture.computation(manifest.vision.lora));
    let tower = Tower { weights: vision.path().to_owned(), sha256: vision.sha256(), image_size, computation };
    Ok((architecture, tower, Vocabulary::stored(&manifest.vocabulary)))
}

fn stores(
    folder: &Path,
    data: &DataSet,
    evaluators: &[Clip],
    (architecture, vision): &(VisionArchitecture, Tower),
) -> anyhow::Result<Stores> {
    let open = |split: Split| -> anyhow::Result<(Split, Store)> {
        let images = (data.split(split).len() as u64, data.names_sha256(split));
        let embedding = evaluators.iter().map(|clip| clip.architecture().embedding).sum();
        let shape = [architecture.tokens(), architecture.width(), embedding];
        let rows = Rows { shape: shape.map(|size| size as u64), dtype: Dtype::F32 };
        let towers = (vision.clone(), evaluators.iter().map(of_clip).collect());
        let wanted = Manifest::new(split.name().to_owned(), images, data.preprocessing().description(), towers, rows);
        Ok((split, Store::open(&folder.join(split.name()), &wanted)?))
    };
    [Split::Train, Split::Validation].into_iter().map(open).collect()
}

fn tower(vision: &VisionArchitecture) -> String {
    format!("{} hidden states of {} at {} pixels", vision.tokens(), vision.width(), vision.image_size)
}

fn summary(file: &RunFile) -> String {
    let stage = |stage: &Stage| {
        let Stage { name, objective, steps, batch, .. } = stage;
        format!("{name} ({}, {steps} steps of {batch})", objective.name())
    };
    let stages: Vec<String> = file.stages.iter().map(stage).collect();
    format!("{}; {} to {} workers", stages.join(", "), file.workers.min, file.workers.max)
}
