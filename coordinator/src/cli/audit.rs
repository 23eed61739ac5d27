//! `coordinator audit`: does the journal bear out what the run promises?

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::bail;
use clap::Args;

use super::history::State;
use crate::audit::{self, Epoch, Exchanged, Life, Samples, Selected};

/// Check a run's journal: every sample once, and what each fault cost.
///
/// Fails if a sample was lost or trained on twice.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator audit --config configs/demo.yaml --json")]
pub struct Audit {
    #[command(flatten)]
    state: State,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Audit {
    /// Reads, prints and judges.
    pub fn run(self) -> anyhow::Result<()> {
        let audit = audit::audit(&self.state.open()?)?;
        if self.json {
            writeln!(terminal::out(), "{}", serde_json::to_string(&audit)?)?;
        } else {
            write!(terminal::out(), "{}", as_table(&audit))?;
        }
        let Samples { missing, repeated, .. } = audit.samples;
        if !audit.clean {
            bail!("{missing} samples are missing and {repeated} repeated");
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
    for Selected { stage, name, step, trained } in &audit.selections {
        _ = writeln!(
            text,
            "stage {stage} ({name}) ended with its best state, that of step {step}; {trained} steps were trained"
        );
    }
    if !audit.exchanges.is_empty() {
        text.push('\n');
    }
    for Exchanged { stage, name, step, images_before, images_after, captions_before, captions_after } in
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
    for Life { generation, members, cause, start: (stage, step), steps, recovery_s, .. } in &audit.generations {
        let (members, start) = (members.len(), format!("{stage}/{step}"));
        let recovery = recovery_s.map_or_else(String::new, |seconds| format!("{seconds:.2} s"));
        _ = writeln!(text, "{generation:>10} {members:>7} {start:>14} {steps:>8} {recovery:>10}  {cause}");
    }
    let Samples { committed, missing, repeated } = audit.samples;
    let how = if audit.clean { "clean" } else { "NOT CLEAN" };
    _ = writeln!(text, "\n{how}: {committed} samples committed, {missing} missing, {repeated} repeated");
    text
}
