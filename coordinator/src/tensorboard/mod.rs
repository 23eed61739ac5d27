//! Export of a run's journal as a TensorBoard event file.
//!
//! One file has all data: metrics of each step (`train/loss`, `speed/images_per_second` and so on),
//! scores and some captions of each evaluation (`evaluation/cider` and so on), and the run file as
//! text. TensorBoard has one step counter for the whole run: the steps of a stage follow all steps
//! that the run file plans for earlier stages, even if an earlier stage ended before its last step.
//! When the run continues from an earlier position, the export writes an event with
//! `SessionLog.status = START`, as a program that restarts from a checkpoint does. TensorBoard then
//! drops ("purges") later steps, and the export writes those of them again that were not given up.
//!
//! - `event`: the messages in the file, as TensorFlow defines them.
//! - `tf_record`: the framing of the messages.

mod event;
mod tf_record;

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use dico_engine::plan::Position;
use event::{Event, Summary, Value};
use journal::{Caption, Evaluation, EvaluationId, LineageCursor, ReadOnlyJournal, RecordedStep};

use crate::step_metrics::{speed_metrics, training_metrics};

/// The prefix by which TensorBoard recognizes event files.
const FILE_PREFIX: &str = "events.out.tfevents.";
/// The suffix of this program's files.
const FILE_SUFFIX: &str = ".dico";
/// The number of captions that are written for each evaluation.
const CAPTIONS_PER_EVALUATION: u32 = 12;

/// Writes an event file, and extends it as the journal grows.
#[derive(Debug)]
pub struct EventFileWriter {
    out: BufWriter<File>,
    path: PathBuf,
    /// The number of planned steps before each stage.
    steps_before: Vec<u64>,
    stage_names: Vec<String>,
    /// The position of the last step that was written.
    last_step: Position,
    /// The position of the last evaluation that was written.
    last_evaluation: Option<Position>,
    /// Tells whether the run may have given up steps since the last write.
    lineage_cursor: LineageCursor,
}

/// The numbers of steps and evaluations that a call has written, including those that it has
/// written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WrittenCounts {
    /// Steps.
    pub steps: u64,
    /// Evaluations.
    pub evaluations: u64,
}

impl EventFileWriter {
    /// Creates a file in `folder` and writes all present records. Creates the folder if necessary.
    /// The file replaces the one of an earlier export.
    ///
    /// # Errors
    /// The journal cannot be read, the folder cannot be written, or another process writes to it.
    pub fn create(folder: &Path, journal: &ReadOnlyJournal) -> anyhow::Result<(Self, WrittenCounts)> {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let old_files = exported_files(folder).with_context(|| folder.display().to_string())?;
        for path in &old_files {
            let file = File::open(path).with_context(|| path.display().to_string())?;
            if file.try_lock().is_err() {
                bail!("another process is writing {}: stop it, or choose another --out", path.display());
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // TensorBoard reads files in the order of their names.
        let path = folder.join(format!("{FILE_PREFIX}{:010}.{:09}{FILE_SUFFIX}", now.as_secs(), now.subsec_nanos()));
        let file = File::create_new(&path).with_context(|| path.display().to_string())?;
        file.try_lock().with_context(|| path.display().to_string())?;
        let run_file = journal.run_file()?;
        let created_at = journal.created_at()?;
        let steps_before = run_file.stages.iter().scan(0_u64, |sum, stage| {
            let before = *sum;
            *sum = sum.saturating_add(stage.steps);
            Some(before)
        });
        let mut writer = Self {
            out: BufWriter::new(file),
            path,
            steps_before: steps_before.collect(),
            stage_names: run_file.stages.iter().map(|stage| stage.name.clone()).collect(),
            last_step: Position::default(),
            last_evaluation: None,
            lineage_cursor: LineageCursor::default(),
        };
        journal.earliest_branch_point_since(&mut writer.lineage_cursor)?;
        writer.write_event(&Event::version(created_at))?;
        // TensorBoard purges all steps of an earlier file. `write_new` writes them again.
        writer.write_event(&Event::start(created_at, 0))?;
        let settings = format!("```\n{}\n```", serde_json::to_string_pretty(&run_file)?);
        writer.write_event(&Event::summary(created_at, 0, Summary::of([Value::text("run_file", settings)])))?;
        let written = writer.write_new(journal)?;
        for path in old_files {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok((writer, written))
    }

    /// Writes the records since the last call.
    ///
    /// # Errors
    /// The journal cannot be read, or the file cannot be written.
    pub fn write_new(&mut self, journal: &ReadOnlyJournal) -> anyhow::Result<WrittenCounts> {
        if let Some(position) = journal.earliest_branch_point_since(&mut self.lineage_cursor)? {
            self.purge_after(position)?;
        }
        let mut written = WrittenCounts::default();
        let mut failed = None;
        journal.for_each_step(self.last_step, |step| {
            if failed.is_none() {
                failed = self.write_step(&step).err();
                written.steps += 1;
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for evaluation in journal.evaluations(self.last_evaluation)? {
            let captions = journal.captions(evaluation.id, CAPTIONS_PER_EVALUATION)?;
            self.write_evaluation(&evaluation, &captions)?;
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

    /// Makes TensorBoard drop the steps beyond `position`. The next call of `write_new` writes
    /// those of them again that were not given up.
    fn purge_after(&mut self, position: Position) -> anyhow::Result<()> {
        if self.last_step.max(self.last_evaluation.unwrap_or_default()) > position {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.write_event(&Event::start(now.as_secs_f64(), self.global_step(position) + 1))?;
        }
        self.last_step = self.last_step.min(position);
        self.last_evaluation = self.last_evaluation.map(|last| last.min(position));
        Ok(())
    }

    fn write_step(&mut self, step: &RecordedStep) -> anyhow::Result<()> {
        let RecordedStep { position, at, .. } = step;
        let training = training_metrics(step);
        let training = training.into_iter().map(|(name, value)| Value::scalar(format!("train/{name}"), value));
        let speed = speed_metrics(step);
        let speed = speed.into_iter().map(|(name, value)| Value::scalar(format!("speed/{name}"), value));
        let run = [("run/stage", f64::from(position.stage)), ("run/generation", step.generation as f64)];
        let run = run.map(|(name, value)| Value::scalar(name, value));
        self.last_step = *position;
        self.write_event(&Event::summary(
            *at,
            self.global_step(*position),
            Summary::of(training.chain(speed).chain(run)),
        ))
    }

    fn write_evaluation(&mut self, evaluation: &Evaluation, captions: &[Caption]) -> anyhow::Result<()> {
        let Evaluation { id: EvaluationId { position, .. }, at, scores, .. } = evaluation;
        let scalar = |(name, value): (&String, &f64)| Value::scalar(format!("evaluation/{name}"), *value);
        let stage = self.stage_names.get(position.stage as usize).map_or("", String::as_str);
        let table = Value::text("captions", caption_table(&format!("{stage}, step {}", position.step), captions));
        self.last_evaluation = Some(*position);
        let values = scores.iter().map(scalar).chain((!captions.is_empty()).then_some(table));
        self.write_event(&Event::summary(*at, self.global_step(*position), Summary::of(values)))
    }

    /// The position as a number for TensorBoard's step counter.
    fn global_step(&self, position: Position) -> i64 {
        let before = self.steps_before.get(position.stage as usize).copied().unwrap_or_default();
        i64::try_from(before.saturating_add(position.step)).unwrap_or(i64::MAX)
    }

    fn write_event(&mut self, event: &Event) -> anyhow::Result<()> {
        tf_record::write_record(&mut self.out, event).with_context(|| self.path.display().to_string())
    }
}

/// The event files in a folder that this program has written, in order.
fn exported_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(FILE_PREFIX) && name.ends_with(FILE_SUFFIX)) {
            files.push(folder.join(name));
        }
    }
    files.sort();
    Ok(files)
}

/// A Markdown table of captions, each with a reference caption.
fn caption_table(title: &str, captions: &[Caption]) -> String {
    let mut table = format!("{title}\n\n| image | caption | a reference |\n|---|---|---|\n");
    for Caption { image, caption, references, .. } in captions {
        let reference = references.first().map_or("", String::as_str);
        let row = [image, caption, reference].map(escape_cell);
        table += &format!("| {} |\n", row.join(" | "));
    }
    table
}

/// Escapes any text for a table cell.
fn escape_cell(text: &str) -> String {
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
