//! `coordinator validate`: checks a run file, and all that it names, without starting anything.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use dataset::{DataSet, Split, preprocess};
use features::{Dtype, Manifest, Rows, Store, Tower};
use runfile::{RunFile, Stage};
use serde_json::json;
use weights::folder::{self, Folder};
use weights::{Clip, VisionArchitecture};

/// Check a run file: that everything it names exists and fits together.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator validate --config configs/demo.yaml")]
pub struct Validate {
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Validate {
    /// Prints what was found if all is well.
    pub fn run(self) -> anyhow::Result<()> {
        let file = RunFile::load(&self.config)?;
        let progress = terminal::spinner("looking at what the run file names");
        let found = check(&file).with_context(|| self.config.display().to_string())?;
        progress.finish_and_clear();
        if self.json {
            println!("{}", json!({ "run": file.name, "plan": summary(&file), "found": found, "settings": file }));
            return Ok(());
        }
        println!("OK: {}: {}", file.name, summary(&file));
        found.iter().for_each(|line| println!("    {line}"));
        Ok(())
    }
}

/// What scores captions, with the files that `scoring` names.
///
/// # Errors
/// One of them is missing or damaged.
pub(super) fn metrics(scoring: &runfile::Scoring) -> anyhow::Result<scoring::Metrics> {
    let runfile::Scoring { meteor_jar, meteor_paraphrases, spice_jar } = scoring;
    let files = scoring::Files::new([meteor_jar, meteor_paraphrases, spice_jar]);
    scoring::Metrics::open(&files).context("scoring")
}

/// What a run file names, in lines for people.
fn check(file: &RunFile) -> anyhow::Result<Vec<String>> {
    let data = DataSet::load(&file.data).context("data")?;
    if let Some(scenes) = &file.data.scenes {
        ensure!(scenes.is_file(), "data.scenes: there is no file {}", scenes.display());
    }
    metrics(&file.scoring)?;
    storage::check_writable(&file.checkpoint_place(), &storage::Access::environment()).context("checkpoints")?;
    let mut found = vec![images(&data)];
    found.extend(data.notes().iter().map(|note| format!("data: {note}")));
    let evaluator =
        file.evaluator.weights.as_deref().map(|path| evaluator(path).context("evaluator.weights")).transpose()?;
    if let Some(clip) = &evaluator {
        found.push(format!("evaluator: {}, sees {}", clip.path().display(), tower(&clip.architecture().tower())));
    }
    let mut vision = evaluator.as_ref().map(|clip| (clip.architecture().tower(), of_clip(clip)));
    if let Some(path) = &file.captioner.vision {
        let clip = clip(path).context("captioner.vision")?;
        found.push(format!("captioner: sees {} through {}", tower(&clip.architecture().tower()), path.display()));
        vision = Some((clip.architecture().tower(), of_clip(&clip)));
    }
    if let Some(path) = &file.captioner.weights {
        let (architecture, seen) = captioner(file, path).context("captioner.weights")?;
        found.push(format!("captioner: {}, sees {}", path.display(), tower(&architecture)));
        vision = Some((architecture, seen));
    }
    if let (Some(folder), Some(evaluator), Some(vision)) = (&file.data.features, &evaluator, &vision) {
        stores(folder, &data, evaluator, vision).context("data.features")?;
        found.push(format!("features: {}", folder.display()));
    }
    Ok(found)
}

fn images(data: &DataSet) -> String {
    let [train, validation, test] = Split::ALL.map(|split| data.split(split).len());
    let skipped = if data.skipped() > 0 { format!(", {} left out", data.skipped()) } else { String::new() };
    let silent = test > 0 && data.split(Split::Test).iter().all(|item| item.captions.is_empty());
    let silent = if silent { " (without captions)" } else { "" };
    format!(
        "data: {train} training images with {} captions, {validation} validation, {test} test{silent}{skipped}",
        data.train_captions()
    )
}

fn evaluator(path: &Path) -> anyhow::Result<Clip> {
    let (clip, _) = folder::open_evaluator(path)?;
    clip.tensors()?;
    Ok(clip)
}

fn clip(path: &Path) -> anyhow::Result<Clip> {
    let clip = Clip::open(path)?;
    clip.tensors()?;
    Ok(clip)
}

fn of_clip(clip: &Clip) -> Tower {
    let image_size = clip.architecture().image_size as u32;
    Tower { weights: clip.path().to_owned(), sha256: clip.sha256(), image_size }
}

/// What an imported captioner, or one of another run, sees through.
fn captioner(file: &RunFile, path: &Path) -> anyhow::Result<(VisionArchitecture, Tower)> {
    let folder = Folder::open(path)?;
    let manifest = folder.manifest();
    let vision = folder.vision()?;
    let architecture = manifest.vision.architecture.clone();
    let (positions, longest) = (manifest.captioner.positions, file.decoding.max_length as usize);
    ensure!(longest <= positions, "decoding.max_length is {longest}, the captioner has {positions} positions");
    let image_size = architecture.image_size as u32;
    let tower = Tower { weights: vision.path().to_owned(), sha256: vision.sha256(), image_size };
    Ok((architecture, tower))
}

fn stores(
    folder: &Path,
    data: &DataSet,
    evaluator: &Clip,
    (architecture, vision): &(VisionArchitecture, Tower),
) -> anyhow::Result<()> {
    for split in [Split::Train, Split::Validation] {
        let images = (data.split(split).len() as u64, data.names_sha256(split));
        let shape = [architecture.tokens(), architecture.width(), evaluator.architecture().embedding];
        let rows = Rows { shape: shape.map(|size| size as u64), dtype: Dtype::F32 };
        let towers = [vision.clone(), of_clip(evaluator)];
        let wanted = Manifest::new(split.name().to_owned(), images, preprocess::DESCRIPTION.to_owned(), towers, rows);
        Store::open(&folder.join(split.name()), &wanted)?;
    }
    Ok(())
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
