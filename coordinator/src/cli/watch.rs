//! `coordinator watch`: a run as it goes.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
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
    admin::{Admin, Way},
    status::as_json,
};
use crate::{
    text,
    watch::{CollectedStatus, Screen, Scroll, line},
};

/// Between attempts to reach a coordinator that is away.
const RETRY: Duration = Duration::from_secs(1);

/// How often ages on the screen are brought up to date.
const TICK: Duration = Duration::from_secs(1);

/// Watch a run as it goes.
///
/// Shows stage, progress, curves and all workers, and goes on when the coordinator was away. Where standard output is no terminal it
/// prints a line for every change instead. It ends when the run is finished (status 0) or has failed (status 1).
#[derive(Debug, Args)]
#[command(after_help = "Keys: q, Esc or Ctrl-C quits; arrows, PgUp, PgDn, Home and End go through the workers.\n\n\
                        Examples:\n  coordinator watch --coordinator http://127.0.0.1:7070\n  \
                        coordinator watch --plain --interval 60 >> run.log\n  coordinator watch --json | jq .status.loss")]
pub struct Watch {
    #[command(flatten)]
    admin: Admin,
    /// Seconds between looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Print a line for every change, also on a terminal.
    #[arg(long, conflicts_with = "json")]
    plain: bool,
    /// Print one JSON object a line for every look.
    #[arg(long)]
    json: bool,
    /// End, with an error, when the coordinator was away for so many seconds [default: never].
    #[arg(long, value_name = "SECONDS")]
    give_up_after: Option<u64>,
}

/// How a run stands, or why that is not known.
type StatusAnswer = Result<v1::StatusResponse, String>;

/// Why watching ends.
enum End {
    /// The reader has quit.
    Enough,
    /// The run is over, as this line says.
    Over(String),
    /// A signal, by its number.
    Signal(i32),
}

impl Watch {
    /// Watches.
    pub fn run(self) -> anyhow::Result<()> {
        let interval =
            Duration::try_from_secs_f64(self.interval).ok().filter(|interval| *interval >= Duration::from_millis(50));
        let interval = interval.with_context(|| format!("--interval {}: must be 0.05 or more", self.interval))?;
        ensure!(self.give_up_after != Some(0), "--give-up-after 0: must be 1 or more");
        let way = self.admin.way()?;
        let (answers, mut answered) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let end = runtime.block_on(async {
            let mut looker = Looker { answered: &mut answered, patience: self.give_up_after, seen: CollectedStatus::default(), from: Instant::now() };
            tokio::select! {
                () = ask(&way, interval, answers) => Ok(End::Enough),
                end = async {
                    let draws = std::io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
                    if draws && !self.plain && !self.json { looker.draw().await } else { looker.print(self.json).await }
                } => end,
            }
        })?;
        match end {
            End::Enough => Ok(()),
            End::Over(line) => {
                writeln!(cli_support::out(), "{line}")?;
                Ok(())
            }
            // As a shell reports a process that a signal ended.
            End::Signal(number) => std::process::exit(128 + number),
        }
    }
}

/// Hands over how the run stands, at intervals and when it is over; until the receiver is gone.
async fn ask(way: &Way, interval: Duration, answers: mpsc::Sender<StatusAnswer>) {
    let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    loop {
        let problem = match way.ask(async |mut client| client.watch(v1::WatchRequest { interval_ms }).await).await {
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(status)) => {
                        if answers.send(Ok(status)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break "the coordinator has ended".to_owned(),
                    Err(status) => break status.message().to_owned(),
                }
            },
            Err(reason) => reason,
        };
        if answers.send(Err(problem)).await.is_err() {
            return;
        }
        time::sleep(interval.min(RETRY)).await;
    }
}

fn is_over(status: &v1::StatusResponse) -> bool {
    matches!(status.state.as_str(), "finished" | "failed")
}

struct Looker<'a> {
    answered: &'a mut mpsc::Receiver<StatusAnswer>,
    patience: Option<u64>,
    seen: CollectedStatus,
    from: Instant,
}

impl Looker<'_> {
    /// Takes in an answer; an error is that there was none for too long.
    fn take(&mut self, answer: StatusAnswer) -> anyhow::Result<()> {
        let now = self.from.elapsed();
        match answer {
            Ok(status) => self.seen.hear(now, status),
            Err(reason) => self.seen.miss(now, reason),
        }
        match (self.seen.problem(now), self.patience) {
            (Some((away, reason)), Some(patience)) if away.as_secs() >= patience => bail!("{reason}"),
            _ => Ok(()),
        }
    }

    /// How the run stands if the last answer says that it is over; an error if it has failed.
    fn over(&self) -> anyhow::Result<Option<&v1::StatusResponse>> {
        let status = self.seen.status().filter(|status| is_over(status) && self.seen.problem(Duration::ZERO).is_none());
        match status {
            Some(status) if status.state == "failed" => bail!("the run failed: {}", status.reason),
            other => Ok(other),
        }
    }

    /// Draws until the run is over, or the reader quits.
    async fn draw(&mut self) -> anyhow::Result<End> {
        let mut terminal = Terminal::start()?;
        let mut screen = Screen::new(!cli_support::no_color());
        let mut events = EventStream::new();
        let mut tick = time::interval(TICK);
        let mut signals =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(|kind| (kind, signal(kind)));
        let [terminate, interrupt, hangup] = &mut signals;
        loop {
            terminal.0.draw(|frame| screen.draw(frame, &self.seen, self.from.elapsed()))?;
            if self.over()?.is_some() {
                return Ok(End::Over(line(&self.seen, self.from.elapsed())));
            }
            tokio::select! {
                Some(answer) = self.answered.recv() => self.take(answer)?,
                event = events.next() => match event {
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => match meaning(key) {
                        Some(Meaning::Quit) => return Ok(End::Enough),
                        Some(Meaning::Scroll(turn)) => screen.turn(turn),
                        None => {}
                    },
                    // It has another size now, for example.
                    Some(Ok(_)) => {}
                    // The terminal is gone.
                    Some(Err(_)) | None => return Ok(End::Enough),
                },
                number = arrival(terminate) => return Ok(End::Signal(number)),
                number = arrival(interrupt) => return Ok(End::Signal(number)),
                number = arrival(hangup) => return Ok(End::Signal(number)),
                _ = tick.tick() => {}
            }
        }
    }

    /// Prints until the run is over, or nobody reads it any more.
    async fn print(&mut self, json: bool) -> anyhow::Result<End> {
        let mut before = String::new();
        while let Some(answer) = self.answered.recv().await {
            let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
            let seen = match &answer {
                Ok(status) => json!({ "at": at, "status": as_json(status) }),
                Err(reason) => json!({ "at": at, "problem": reason }),
            };
            let taken = self.take(answer);
            let line = if json { seen.to_string() } else { line(&self.seen, self.from.elapsed()) };
            if line != before {
                let printed = if json { line.clone() } else { format!("{}  {line}", text::local_time(at)) };
                writeln!(cli_support::out(), "{printed}")?;
                before = line;
            }
            taken?;
            if self.over()?.is_some() {
                return Ok(End::Enough);
            }
        }
        Ok(End::Enough)
    }
}

/// Waits for a signal; its number. One that cannot be waited for does what it always does.
async fn arrival((kind, signal): &mut (SignalKind, std::io::Result<tokio::signal::unix::Signal>)) -> i32 {
    match signal {
        Ok(signal) => _ = signal.recv().await,
        Err(_) => std::future::pending().await,
    }
    kind.as_raw_value()
}

/// A terminal that is as it was when this is dropped; a panic gives it back, too.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn start() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init();
        if terminal.is_err() {
            ratatui::restore();
        }
        terminal.map(Self).context("this terminal cannot be drawn on; --plain prints lines")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Quit,
    Scroll(Scroll),
}

fn meaning(key: KeyEvent) -> Option<Meaning> {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Meaning::Quit),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Meaning::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Meaning::Scroll(Scroll::Up)),
        KeyCode::Down | KeyCode::Char('j') => Some(Meaning::Scroll(Scroll::Down)),
        KeyCode::PageUp => Some(Meaning::Scroll(Scroll::PageUp)),
        KeyCode::PageDown => Some(Meaning::Scroll(Scroll::PageDown)),
        KeyCode::Home => Some(Meaning::Scroll(Scroll::Home)),
        KeyCode::End => Some(Meaning::Scroll(Scroll::End)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_they_mean_everywhere() {
        let key = |code, modifiers| meaning(KeyEvent::new(code, modifiers));
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(key(code, KeyModifiers::NONE), Some(Meaning::Quit));
        }
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Meaning::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(key(KeyCode::Down, KeyModifiers::NONE), Some(Meaning::Scroll(Scroll::Down)));
    }
}
