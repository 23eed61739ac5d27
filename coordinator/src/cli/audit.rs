//! `coordinator audit`: does the journal bear out what the run promises?

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, bail};
use checkpoint_store::{Checkpoints, JournalHead};
use clap::Args;
use object_io::Access;

use super::history::State;
use crate::audit::{self, DataChangeSummary, Epoch, GenerationRecord, Recovered, Samples, StageSelection};

/// Check a run's journal: that it is whole, every sample once, and what each fault cost.
///
/// Fails if a sample was lost or trained on twice, or if the journal or a checkpoint is not what was written.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator audit --config configs/demo.yaml --json")]
pub struct Audit {
    #[command(flatten)]
    state: State,
    /// A record that was the journal's last once, as this command and the coordinator print it: fails if the journal does not have
    /// it any more.
    #[arg(long, value_name = "NUMBER:HASH", value_parser = head)]
    head: Option<JournalHead>,
    /// Do not look at the checkpoints.
    #[arg(long)]
    journal_only: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn head(text: &str) -> Result<JournalHead, &'static str> {
    let wrong = "a record is named NUMBER:HASH";
    let (sequence, hash) = text.split_once(':').ok_or(wrong)?;
    Ok(JournalHead { sequence: sequence.parse().map_err(|_| wrong)?, hash: hash.to_owned() })
}

impl Audit {
    /// Reads, prints and judges.
    pub fn run(self) -> anyhow::Result<()> {
        let history = self.state.open()?;
        let mut audit = audit::audit(&history)?;
        if let Some(head) = &self.head {
            audit.expect(&history, head)?;
        }
        if !self.journal_only {
            let place = history.run_file()?.checkpoint_place();
            let kept = Checkpoints::open_existing(&place, &Access::environment());
            let kept = kept.context("checkpoints; with --journal-only they are not looked at")?;
            audit.add(audit::disk::compare(&history, &kept)?);
        }
        if self.json {
            writeln!(cli_support::out(), "{}", serde_json::to_string(&audit)?)?;
        } else {
            write!(cli_support::out(), "{}", as_table(&audit))?;
        }
        let Samples { missing, repeated, .. } = audit.samples;
        if missing > 0 || repeated > 0 {
            bail!("{missing} samples are missing and {repeated} repeated");
        }
        if !audit.clean {
            bail!("the record is not what was written: see above");
        }
        Ok(())
    }
}

fn as_table(audit: &audit::Audit) -> String {
    let mut text =
        format!("{:>5}  {:<16} {:>5} {:>12} {:>9} {:>9}\n", "stage", "", "epoch", "committed", "missing", "repeated");
    // Writing to a string does not fail.
    for Epoch { stage, name, epoch, samples } in &audit.epochs {
        let Samples { committed, missing, repeated } = samples;
        _ = writeln!(text, "{stage:>5}  {name:<16} {epoch:>5} {committed:>12} {missing:>9} {repeated:>9}");
    }
    if !audit.selections.is_empty() {
        text.push('\n');
    }
    for StageSelection { stage, name, step, trained } in &audit.selections {
        _ = writeln!(
            text,
            "stage {stage} ({name}) ended with its best state, that of step {step}; {trained} steps were trained"
        );
    }
    if !audit.exchanges.is_empty() {
        text.push('\n');
    }
    for DataChangeSummary { stage, name, step, images_before, images_after, captions_before, captions_after } in
        &audit.exchanges
    {
        _ = writeln!(
            text,
            "after step {step} of stage {stage} ({name}) the training data changed from {images_before} images and \
             {captions_before} captions to {images_after} and {captions_after}, from a new epoch on"
        );
    }
    _ = writeln!(
        text,
        "\n{:>10} {:>7} {:>14} {:>8} {:>10}  cause",
        "generation", "members", "start", "steps", "recovery"
    );
    for GenerationRecord { generation, members, cause, start: (stage, step), steps, recovery_s, .. } in
        &audit.generations
    {
        let (members, start) = (members.len(), format!("{stage}/{step}"));
        let recovery = recovery_s.map_or_else(String::new, |seconds| format!("{seconds:.2} s"));
        _ = writeln!(text, "{generation:>10} {members:>7} {start:>14} {steps:>8} {recovery:>10}  {cause}");
    }
    if let Some(Recovered { checkpoint, .. }) = &audit.recovered {
        _ = writeln!(
            text,
            "\nthe journal was lost or damaged: it begins with checkpoint {checkpoint}, and says nothing of what came before"
        );
    }
    if !audit.problems.is_empty() {
        text.push('\n');
    }
    for problem in &audit.problems {
        _ = writeln!(text, "wrong: {problem}");
    }
    let more = audit.problem_count - audit.problems.len() as u64;
    if more > 0 {
        _ = writeln!(text, "wrong: {more} more");
    }
    let Samples { committed, missing, repeated } = audit.samples;
    let how = if audit.clean { "clean" } else { "NOT CLEAN" };
    _ = writeln!(
        text,
        "\n{how}: {committed} samples committed, {missing} missing, {repeated} repeated\nlast record {}",
        audit.head
    );
    text
}
