//! `coordinator events`: the events of a run.

use std::{io::Write, time::Duration};

use clap::{Args, builder::PossibleValuesParser};
use journal::{Event, EventCursor, event_kinds};
use serde_json::json;

use super::journal_args::JournalArgs;
use crate::{event_messages::describe_event, formatting::format_local_time};

/// Time between two reads of the journal with `--follow`.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Print the events, generations, checkpoints and evaluations of a run.
///
/// Prints a line for each, with the time in this machine's time zone.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator events --config configs/demo.yaml --kind stage_ended --json")]
pub struct EventsCommand {
    #[command(flatten)]
    journal: JournalArgs,
    /// Print only events of this kind; may be given several times. `lost`: a worker failed or was
    /// evicted. `rollback`: committed steps were given up. `stage_ended`: a stage ended early, with
    /// an earlier state than its last one.
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(event_kinds()))]
    kind: Vec<String>,
    /// Continue with new events until interrupted.
    #[arg(long)]
    follow: bool,
    /// Print one JSON object per line, with the time in Unix seconds.
    #[arg(long)]
    json: bool,
}

impl EventsCommand {
    /// Reads and prints the events.
    pub fn run(self) -> anyhow::Result<()> {
        let journal = self.journal.open()?;
        let mut cursor = EventCursor::default();
        loop {
            let events = journal.events_since(&mut cursor)?;
            self.print(&events)?;
            if !self.follow {
                return Ok(());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn print(&self, events: &[Event]) -> std::io::Result<()> {
        let mut out = cli_support::stdout();
        for event in events.iter().filter(|event| self.kind.is_empty() || self.kind.contains(&event.kind)) {
            let Event { at, kind, detail } = event;
            if self.json {
                writeln!(out, "{}", json!({ "at": at, "kind": kind, "detail": detail }))?;
            } else {
                writeln!(out, "{}  {kind:<18} {}", format_local_time(*at), describe_event(kind, detail))?;
            }
        }
        out.flush()
    }
}
