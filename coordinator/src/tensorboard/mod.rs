//! Export of a run's journal as TensorBoard event files.
//!
//! A folder has one file with everything: `train/loss` and so on and `speed/images_per_second` and
//! so on for each step, `evaluation/cider` and so on and some captions for each evaluation, and the
//! run file as text. TensorBoard has a single step counter: the steps of a stage come after all
//! steps that the run file plans for the stages before, so the counter does not depend on how a
//! stage ended. Steps that the run gives up are purged with TensorBoard's mechanism for restarted
//! programs.

mod event;
mod record;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use event::{Event, Summary, Value};

use crate::{
    journal::history::{Caption, Evaluation, History, LineageCursor, MeasuredStep},
    run::plan::Place,
};

/// The prefix by which TensorBoard recognizes event files.
const PREFIX: &str = "events.out.tfevents.";
/// The suffix of this program's files.
const SUFFIX: &str = ".dico";
/// The number of captions per evaluation.
const CAPTIONS: u32 = 12;

/// An event file that is extended as a journal grows.
#[derive(Debug)]
pub struct Export {
    out: BufWriter<File>,
    path: PathBuf,
    /// The number of planned steps before each stage.
    before: Vec<u64>,
    stages: Vec<String>,
    /// The last step that was written.
    step: Place,
    evaluation: Option<Place>,
    cut: LineageCursor,
}

/// The numbers of items written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenCounts {
    /// Steps.
    pub steps: u64,
    /// Evaluations.
    pub evaluations: u64,
}

impl Export {
    /// Creates a file in `folder`, which is created if necessary, and writes the whole journal so
    /// far. The file replaces the one of an earlier export.
    ///
    /// # Errors
    /// The journal cannot be read, the folder cannot be written, or another process writes to it.
    pub fn create(folder: &Path, history: &History) -> anyhow::Result<(Self, WrittenCounts)> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let older = own_files(folder).with_context(|| folder.display().to_string())?;
        for path in &older {
            let file = File::open(path).with_context(|| path.display().to_string())?;
            if file.try_lock().is_err() {
                bail!("another export is writing {}: end it, or choose another --out", path.display());
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // TensorBoard reads files in the order of their names.
        let path = folder.join(format!("{PREFIX}{:010}.{:09}{SUFFIX}", now.as_secs(), now.subsec_nanos()));
        let file = File::create_new(&path).with_context(|| path.display().to_string())?;
        file.try_lock().with_context(|| path.display().to_string())?;
        let run_file = history.run_file()?;
        let begun = history.begun()?;
        let before = run_file.stages.iter().scan(0_u64, |sum, stage| {
            let before = *sum;
            *sum = sum.saturating_add(stage.steps);
            Some(before)
        });
        let mut export = Self {
            out: BufWriter::new(file),
            path,
            before: before.collect(),
            stages: run_file.stages.iter().map(|stage| stage.name.clone()).collect(),
            step: Place::default(),
            evaluation: None,
            cut: LineageCursor::default(),
        };
        history.given_up_since(&mut export.cut)?;
        export.write(&Event::version(begun))?;
        // All steps of an earlier file are purged, and written again.
        export.write(&Event::start(begun, 0))?;
        let settings = format!("```\n{}\n```", serde_json::to_string_pretty(&run_file)?);
        export.write(&Event::summary(begun, 0, Summary::of([Value::text("run_file", settings)])))?;
        let written = export.catch_up(history)?;
        for path in older {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok((export, written))
    }

    /// Writes the records that the journal has got since the last call.
    ///
    /// # Errors
    /// The journal cannot be read, or the file cannot be written.
    pub fn catch_up(&mut self, history: &History) -> anyhow::Result<WrittenCounts> {
        if let Some(place) = history.given_up_since(&mut self.cut)? {
            self.rewind(place)?;
        }
        let mut written = WrittenCounts::default();
        let mut failed = None;
        history.measured(self.step, |step| {
            if failed.is_none() {
                failed = self.step(&step).err();
                written.steps += 1;
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for evaluation in history.evaluations(self.evaluation)? {
            let captions = history.captions(&evaluation, CAPTIONS)?;
            self.evaluation(&evaluation, &captions)?;
            written.evaluations += 1;
        }
        self.out.flush().with_context(|| self.path.display().to_string())?;
        Ok(written)
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Purges steps beyond `place`.
    fn rewind(&mut self, place: Place) -> anyhow::Result<()> {
        if self.step.max(self.evaluation.unwrap_or_default()) > place {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.write(&Event::start(now.as_secs_f64(), self.global(place) + 1))?;
        }
        self.step = self.step.min(place);
        self.evaluation = self.evaluation.map(|last| last.min(place));
        Ok(())
    }

    fn step(&mut self, step: &MeasuredStep) -> anyhow::Result<()> {
        let MeasuredStep { place, at, learning, speed, .. } = step;
        let learning = learning.iter().map(|(name, value)| Value::scalar(format!("train/{name}"), *value));
        let speed = speed.iter().map(|(name, value)| Value::scalar(format!("speed/{name}"), *value));
        let run = [("run/stage", f64::from(place.stage)), ("run/generation", step.generation as f64)];
        let run = run.map(|(name, value)| Value::scalar(name, value));
        self.step = *place;
        self.write(&Event::summary(*at, self.global(*place), Summary::of(learning.chain(speed).chain(run))))
    }

    fn evaluation(&mut self, evaluation: &Evaluation, captions: &[Caption]) -> anyhow::Result<()> {
        let Evaluation { place, at, scores, .. } = evaluation;
        let scalar = |(name, value): (&String, &f64)| Value::scalar(format!("evaluation/{name}"), *value);
        let stage = self.stages.get(place.stage as usize).map_or("", String::as_str);
        let table = Value::text("captions", table(&format!("{stage}, step {}", place.step), captions));
        self.evaluation = Some(*place);
        let values = scores.iter().map(scalar).chain((!captions.is_empty()).then_some(table));
        self.write(&Event::summary(*at, self.global(*place), Summary::of(values)))
    }

    fn global(&self, place: Place) -> i64 {
        let before = self.before.get(place.stage as usize).copied().unwrap_or_default();
        i64::try_from(before.saturating_add(place.step)).unwrap_or(i64::MAX)
    }

    fn write(&mut self, event: &Event) -> anyhow::Result<()> {
        record::write(&mut self.out, event).with_context(|| self.path.display().to_string())
    }
}

/// The event files of this program in a folder, in order.
fn own_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            files.push(folder.join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// Captions beside a reference caption, as a Markdown table.
fn table(title: &str, captions: &[Caption]) -> String {
    let mut table = format!("{title}\n\n| image | caption | a reference |\n|---|---|---|\n");
    for Caption { image, caption, references, .. } in captions {
        let reference = references.first().map_or("", String::as_str);
        let row = [image, caption, reference].map(cell);
        table += &format!("| {} |\n", row.join(" | "));
    }
    table
}

/// A table cell with arbitrary text, escaped.
fn cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\r' => cell.push(' '),
            character if character.is_ascii_punctuation() => cell += &format!("&#{};", u32::from(character)),
            character => cell.push(character),
        }
    }
    cell
}

#[cfg(test)]
mod tests;
