//! `coordinator events`: what happened in a run.

use std::{io::Write, time::Duration};

use clap::{Args, builder::PossibleValuesParser};
use serde_json::json;

use super::history::State;
use crate::{
    happened::{describe, kinds},
    journal::{browse::EventCursor, history::Event},
    text::local_time,
};

/// Between looks at the journal with `--follow`.
const LOOK: Duration = Duration::from_millis(200);

/// Show what happened in a run: events, generations, checkpoints and evaluations.
///
/// Times are those of this machine's time zone.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator events --config configs/demo.yaml --kind lost --json")]
pub struct Events {
    #[command(flatten)]
    state: State,
    /// Only events of this kind; may be given several times.
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(kinds()))]
    kind: Vec<String>,
    /// Go on with what happens from now on, until interrupted.
    #[arg(long)]
    follow: bool,
    /// Print one JSON object a line, with the time in Unix seconds.
    #[arg(long)]
    json: bool,
}

impl Events {
    /// Reads and prints.
    pub fn run(self) -> anyhow::Result<()> {
        let history = self.state.open()?;
        let mut known = EventCursor::default();
        loop {
            let events = history.happened(&mut known)?;
            self.print(&events)?;
            if !self.follow {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn print(&self, events: &[Event]) -> std::io::Result<()> {
        let mut out = cli_support::out();
        for event in events.iter().filter(|event| self.kind.is_empty() || self.kind.contains(&event.kind)) {
            let Event { at, kind, detail } = event;
            if self.json {
                writeln!(out, "{}", json!({ "at": at, "kind": kind, "detail": detail }))?;
            } else {
                writeln!(out, "{}  {kind:<18} {}", local_time(*at), describe(kind, detail))?;
            }
        }
        out.flush()
    }
}
