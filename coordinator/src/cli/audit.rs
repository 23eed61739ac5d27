//! `coordinator audit`: checks the journal and the checkpoints of a run.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, bail};
use checkpoint_store::Checkpoints;
use clap::Args;
use object_storage::Access;
use proto::v1::JournalHead;

use super::journal_args::JournalArgs;
use crate::audit::{self, DataChangeSummary, Epoch, GenerationRecord, RecoveryStart, SampleCounts, StageSelection};

/// Check that a run trained on each sample exactly once.
///
/// Checks that no record of the journal was changed, added or removed, and that the checkpoints are
/// those in the journal. The run may be in progress. Prints the samples of each epoch, the
/// generations with the time of each recovery, the problems, and the last record.
///
/// Fails (exit status 1) if a sample is missing or repeated, or if the journal or a checkpoint was
/// changed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator audit --config configs/demo.yaml --json")]
pub struct AuditCommand {
    #[command(flatten)]
    journal: JournalArgs,
    /// Fail if the journal does not contain this record. The coordinator and this command print the
    /// last record of the journal in this form.
    #[arg(long, value_name = "NUMBER:HASH", value_parser = parse_head)]
    head: Option<JournalHead>,
    /// Do not check the checkpoints.
    #[arg(long)]
    journal_only: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn parse_head(text: &str) -> anyhow::Result<JournalHead> {
    let (record_number, hash) = text.split_once(':').context("a record is named NUMBER:HASH")?;
    let sequence = record_number.parse().ok().context("a record is named NUMBER:HASH")?;
    Ok(JournalHead { sequence, hash: hash.to_owned() })
}

impl AuditCommand {
    /// Audits the run and prints the result.
    pub fn run(self) -> anyhow::Result<()> {
        let journal = self.journal.open()?;
        let mut audit = audit::audit(&journal)?;
        if let Some(head) = &self.head {
            audit.check_record(&journal, head)?;
        }
        if !self.journal_only {
            let location = journal.run_file()?.checkpoint_location();
            let checkpoints = Checkpoints::open_existing(&location, &Access::from_environment());
            let checkpoints = checkpoints.context("cannot read the checkpoints; --journal-only skips them")?;
            audit.add_problems(audit::stored_checkpoints::checkpoint_problems(&journal, &checkpoints)?);
        }
        if self.json {
            writeln!(cli_support::stdout(), "{}", serde_json::to_string(&audit)?)?;
        } else {
            write!(cli_support::stdout(), "{}", audit_text(&audit))?;
        }
        let SampleCounts { missing, repeated, .. } = audit.samples;
        if missing > 0 || repeated > 0 {
            bail!("{missing} samples are missing and {repeated} were repeated");
        }
        if !audit.clean {
            bail!("the journal or a checkpoint was changed: the output lists the problems");
        }
        Ok(())
    }
}

fn audit_text(audit: &audit::Audit) -> String {
    let mut text =
        format!("{:>5}  {:<16} {:>5} {:>12} {:>9} {:>9}\n", "stage", "", "epoch", "committed", "missing", "repeated");
    // Writing to a string does not fail.
    for Epoch { stage, name, epoch, samples } in &audit.epochs {
        let SampleCounts { committed, missing, repeated } = samples;
        _ = writeln!(text, "{stage:>5}  {name:<16} {epoch:>5} {committed:>12} {missing:>9} {repeated:>9}");
    }
    if !audit.selections.is_empty() {
        text.push('\n');
    }
    for StageSelection { stage, name, step, trained } in &audit.selections {
        _ = writeln!(
            text,
            "stage {stage} ({name}) ended with its best checkpoint, of step {step}; {trained} steps were trained"
        );
    }
    if !audit.data_changes.is_empty() {
        text.push('\n');
    }
    for DataChangeSummary { stage, name, step, images_before, images_after, captions_before, captions_after } in
        &audit.data_changes
    {
        _ = writeln!(
            text,
            "after step {step} of stage {stage} ({name}) the training data changed from {images_before} images and \
             {captions_before} captions to {images_after} and {captions_after}; a new epoch began"
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
    if let Some(RecoveryStart { checkpoint, .. }) = &audit.recovered {
        _ = writeln!(
            text,
            "\nthe journal was lost or damaged: it begins with checkpoint {checkpoint}, and has no earlier records"
        );
    }
    if !audit.problems.is_empty() {
        text.push('\n');
    }
    for problem in &audit.problems {
        _ = writeln!(text, "problem: {problem}");
    }
    let more = audit.problem_count - audit.problems.len() as u64;
    if more > 0 {
        _ = writeln!(text, "and {more} more problems");
    }
    let SampleCounts { committed, missing, repeated } = audit.samples;
    let verdict = if audit.clean { "clean" } else { "NOT CLEAN" };
    _ = writeln!(
        text,
        "\n{verdict}: {committed} samples committed, {missing} missing, {repeated} repeated\nlast record {}",
        audit.head
    );
    text
}
