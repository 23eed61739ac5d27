//! `coordinator watch`: the live view of a run.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt;
use proto::v1;
use ratatui::DefaultTerminal;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time,
};

use super::{
    connection_args::{AdminArgs, AdminConnector},
    status::status_json,
};
use crate::{
    formatting,
    watch::{CollectedStatus, Screen, Scroll, status_line},
};

/// Maximal time between attempts to connect to an unreachable coordinator.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Time between updates of the ages on the screen.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

/// Show the live status of a run.
///
/// Shows stage, progress, curves and all workers. If the coordinator is unreachable, the command
/// continues when it is back. If standard output is not a terminal, it prints a line for each
/// change instead.
///
/// The exit status is 0 when the run is finished or the user quits, 1 when the run has failed, and
/// 128 plus the number of a signal.
#[derive(Debug, Args)]
#[command(
    after_help = "Keys: q, Esc or Ctrl-C quits; arrows, PgUp, PgDn, Home and End scroll through the workers.\n\n\
                        Examples:\n  coordinator watch --coordinator http://127.0.0.1:7070\n  \
                        coordinator watch --plain --interval 60 >> run.log\n  coordinator watch --json | jq .status.loss"
)]
pub struct WatchCommand {
    #[command(flatten)]
    admin: AdminArgs,
    /// Seconds between updates; 0.05 or more.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Print a line for each change, also on a terminal.
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// Print one JSON object per line for each update.
    #[arg(long)]
    json: bool,
    /// Fail when the coordinator has been unreachable for this many seconds [default: never].
    #[arg(long, value_name = "SECONDS")]
    give_up_after: Option<u64>,
}

/// A status, or why the coordinator does not answer.
type StatusResult = anyhow::Result<v1::StatusResponse>;

/// Why the live view has ended.
enum WatchEnd {
    /// Nothing is left to print: the user has quit, the terminal was closed, or the run is finished
    /// and its last line is printed.
    Quit,
    /// The run is finished; the status line to print in place of the screen.
    Finished(String),
    /// A signal, by its number.
    Signal(i32),
}

impl WatchCommand {
    /// Shows the run until it ends, the user quits or a signal arrives.
    pub fn run(self) -> anyhow::Result<()> {
        let interval =
            Duration::try_from_secs_f64(self.interval).ok().filter(|interval| *interval >= Duration::from_millis(50));
        let interval = interval.with_context(|| format!("--interval {}: must be 0.05 or more", self.interval))?;
        ensure!(self.give_up_after != Some(0), "--give-up-after 0: must be 1 or more");
        let connector = self.admin.connector()?;
        let (sender, mut statuses) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let end = runtime.block_on(async {
            let mut view = LiveView {
                statuses: &mut statuses,
                give_up_after: self.give_up_after,
                collected: CollectedStatus::default(),
                started: Instant::now(),
            };
            tokio::select! {
                () = receive_statuses(&connector, interval, sender) => Ok(WatchEnd::Quit),
                end = async {
                    let can_draw = std::io::stdout().is_terminal()
                        && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
                    if can_draw && !self.plain && !self.json { view.draw().await } else { view.print(self.json).await }
                } => end,
            }
        })?;
        match end {
            WatchEnd::Quit => Ok(()),
            WatchEnd::Finished(line) => {
                writeln!(cli_support::stdout(), "{line}")?;
                Ok(())
            }
            // The status by which shells report a process that a signal has ended.
            WatchEnd::Signal(number) => std::process::exit(128 + number),
        }
    }
}

/// Receives the status at intervals and when the run ends, and passes it on until the receiver is
/// dropped. Connects again after a failure.
async fn receive_statuses(connector: &AdminConnector, interval: Duration, statuses: mpsc::Sender<StatusResult>) {
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    loop {
        let request = v1::WatchRequest { interval_ms };
        let error = match connector.call(async |mut client| client.watch(request).await).await {
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(status)) => {
                        if statuses.send(Ok(status)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break anyhow!("the coordinator has ended"),
                    Err(status) => break anyhow!("{}", status.message()),
                }
            },
            Err(error) => error,
        };
        if statuses.send(Err(error)).await.is_err() {
            return;
        }
        time::sleep(interval.min(MAX_RETRY_INTERVAL)).await;
    }
}

fn is_over(status: &v1::StatusResponse) -> bool {
    status.state().is_over()
}

/// The live view on a screen or as lines.
struct LiveView<'a> {
    /// The results that [`receive_statuses`] sends.
    statuses: &'a mut mpsc::Receiver<StatusResult>,
    /// Seconds after which an unreachable coordinator is an error; `None` for never.
    give_up_after: Option<u64>,
    collected: CollectedStatus,
    /// When the view started: the origin of the times in `collected`.
    started: Instant,
}

impl LiveView<'_> {
    /// Records a status or a failure.
    ///
    /// # Errors
    /// The coordinator has been unreachable for `give_up_after`.
    fn record(&mut self, status: StatusResult) -> anyhow::Result<()> {
        let now = self.started.elapsed();
        match status {
            Ok(status) => self.collected.record_status(now, status),
            Err(error) => self.collected.record_failure(now, error.to_string()),
        }
        match (self.collected.failure(now), self.give_up_after) {
            (Some((downtime, reason)), Some(seconds)) if downtime.as_secs() >= seconds => bail!("{reason}"),
            _ => Ok(()),
        }
    }

    /// The last status if the run is finished; `None` if it is not, or the coordinator is
    /// unreachable.
    ///
    /// # Errors
    /// The run has failed.
    fn finished_status(&self) -> anyhow::Result<Option<&v1::StatusResponse>> {
        let status = self
            .collected
            .status()
            .filter(|status| is_over(status) && self.collected.failure(Duration::ZERO).is_none());
        match status {
            Some(status) if status.state() == v1::RunState::Failed => bail!("the run failed: {}", status.reason),
            other => Ok(other),
        }
    }

    /// Draws until the run ends, the user quits or a signal arrives.
    async fn draw(&mut self) -> anyhow::Result<WatchEnd> {
        let mut terminal = Terminal::start()?;
        let mut screen = Screen::new(!cli_support::no_color());
        let mut events = EventStream::new();
        let mut redraw = time::interval(REDRAW_INTERVAL);
        let mut signals =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(|kind| (kind, signal(kind)));
        let [terminate, interrupt, hangup] = &mut signals;
        loop {
            terminal.0.draw(|frame| screen.draw(frame, &self.collected, self.started.elapsed()))?;
            if self.finished_status()?.is_some() {
                return Ok(WatchEnd::Finished(status_line(&self.collected, self.started.elapsed())));
            }
            tokio::select! {
                Some(status) = self.statuses.recv() => self.record(status)?,
                event = events.next() => match event {
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => match key_action(key) {
                        Some(KeyAction::Quit) => return Ok(WatchEnd::Quit),
                        Some(KeyAction::Scroll(scroll)) => screen.scroll(scroll),
                        None => {}
                    },
                    // For example, the terminal has another size.
                    Some(Ok(_)) => {}
                    // The terminal was closed.
                    Some(Err(_)) | None => return Ok(WatchEnd::Quit),
                },
                number = wait_for_signal(terminate) => return Ok(WatchEnd::Signal(number)),
                number = wait_for_signal(interrupt) => return Ok(WatchEnd::Signal(number)),
                number = wait_for_signal(hangup) => return Ok(WatchEnd::Signal(number)),
                _ = redraw.tick() => {}
            }
        }
    }

    /// Prints lines until the run ends.
    async fn print(&mut self, json: bool) -> anyhow::Result<WatchEnd> {
        let mut last_line = String::new();
        while let Some(status) = self.statuses.recv().await {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
            let object = match &status {
                Ok(status) => json!({ "at": at, "status": status_json(status) }),
                Err(error) => json!({ "at": at, "problem": error.to_string() }),
            };
            let recorded = self.record(status);
            let line = if json { object.to_string() } else { status_line(&self.collected, self.started.elapsed()) };
            if line != last_line {
                let printed =
                    if json { line.clone() } else { format!("{}  {line}", formatting::format_local_time(at)) };
                writeln!(cli_support::stdout(), "{printed}")?;
                last_line = line;
            }
            recorded?;
            if self.finished_status()?.is_some() {
                return Ok(WatchEnd::Quit);
            }
        }
        Ok(WatchEnd::Quit)
    }
}

/// Waits for a signal and returns its number. Waits forever if the handler could not be installed:
/// the signal then has its default effect.
async fn wait_for_signal((kind, signal): &mut (SignalKind, std::io::Result<tokio::signal::unix::Signal>)) -> i32 {
    match signal {
        Ok(signal) => _ = signal.recv().await,
        Err(_) => std::future::pending().await,
    }
    kind.as_raw_value()
}

/// A terminal in drawing mode. It is restored when this is dropped, and after a panic.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn start() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init();
        if terminal.is_err() {
            ratatui::restore();
        }
        terminal.map(Self).context("cannot draw on this terminal: use --plain to print lines")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What a key does in the live view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyAction {
    Quit,
    Scroll(Scroll),
}

/// The action of a key; `None` if it has none.
fn key_action(key: KeyEvent) -> Option<KeyAction> {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(KeyAction::Quit),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(KeyAction::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(KeyAction::Scroll(Scroll::Up)),
        KeyCode::Down | KeyCode::Char('j') => Some(KeyAction::Scroll(Scroll::Down)),
        KeyCode::PageUp => Some(KeyAction::Scroll(Scroll::PageUp)),
        KeyCode::PageDown => Some(KeyAction::Scroll(Scroll::PageDown)),
        KeyCode::Home => Some(KeyAction::Scroll(Scroll::Home)),
        KeyCode::End => Some(KeyAction::Scroll(Scroll::End)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_usual_actions() {
        let key = |code, modifiers| key_action(KeyEvent::new(code, modifiers));
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(key(code, KeyModifiers::NONE), Some(KeyAction::Quit));
        }
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(KeyAction::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(key(KeyCode::Down, KeyModifiers::NONE), Some(KeyAction::Scroll(Scroll::Down)));
    }
}
