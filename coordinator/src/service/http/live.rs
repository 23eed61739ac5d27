//! Live updates of the page: one snapshot of the run per interval, sent to all viewers.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Sse, sse},
};
use futures::{Stream, StreamExt};
use serde_json::Value;
use tokio::{
    sync::{oneshot, watch},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::WatchStream;

use super::{AppState, Problem, status};
use crate::{
    run::Outcome,
    service::{door::Peer, fair_limit::StreamLimit},
};

/// Maximal number of open streams.
const MAX_VIEWERS: usize = 64;
/// Interval between snapshots.
const LOOK: Duration = Duration::from_millis(500);
/// Without viewers, the curves are updated only once in this number of intervals, so that they are
/// recent when a viewer connects.
const IDLE_LOOKS: u32 = 20;
/// Interval of keep-alive comments on a stream without updates.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

type Said = Option<Arc<str>>;

/// The open streams of viewers.
pub struct Viewers {
    streams: StreamLimit,
    /// None once the coordinator is closing.
    said: std::sync::Mutex<Option<watch::Sender<Said>>>,
}

impl Default for Viewers {
    fn default() -> Self {
        let said = std::sync::Mutex::new(Some(watch::channel(None).0));
        Self { streams: StreamLimit::new(MAX_VIEWERS), said }
    }
}

impl Viewers {
    fn with<T>(&self, act: impl FnOnce(&watch::Sender<Said>) -> T) -> Option<T> {
        self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_ref().map(act)
    }

    /// Sends the last snapshot once more, with the run's outcome as its state.
    pub fn farewell(&self, outcome: &Outcome) {
        let (state, reason) = match outcome {
            Outcome::Finished => ("finished", ""),
            Outcome::Failed(reason) => ("failed", reason.as_str()),
            Outcome::Stopped => ("waiting", "the coordinator was stopped: served again, the run goes on"),
        };
        self.with(|said| {
            said.send_if_modified(|said| {
                let last = said.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok());
                let Some(Value::Object(mut last)) = last else { return false };
                if let (Outcome::Finished, Some(steps)) = (outcome, last.get("steps").cloned()) {
                    last.insert("step".into(), steps);
                }
                last.extend([("state".into(), state.into()), ("reason".into(), reason.into())]);
                *said = Some(Value::Object(last).to_string().into());
                true
            })
        });
    }

    /// Ends all streams.
    pub fn close(&self) {
        self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

/// Takes and sends snapshots, for ever.
pub async fn keep(desk: &Arc<AppState>) {
    let mut looks = time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whether the journal has more records than were read.
    let mut more = true;
    for look in 0_u32.. {
        looks.tick().await;
        let watched = desk.viewers.with(watch::Sender::receiver_count).is_some_and(|viewers| viewers > 0);
        if !watched && !more && !look.is_multiple_of(IDLE_LOOKS) {
            continue;
        }
        let begun = Instant::now();
        loop {
            let next = desk.curves().next();
            // A read that fails, perhaps because the disk is full, is repeated in the next
            // interval.
            more = desk.journal.ask(next).await.is_ok_and(|news| desk.curves().take(news));
            if !more || begun.elapsed() >= LOOK {
                break;
            }
        }
        if watched {
            tell(desk).await;
        }
    }
}

async fn tell(desk: &Arc<AppState>) {
    // On a timeout viewers get no update; the next interval tries again.
    if let Ok(snapshot) = status::look(desk).await
        && let Ok(text) = serde_json::to_string(&snapshot)
    {
        desk.viewers.with(|said| said.send_replace(Some(text.into())));
    }
}

/// `GET /api/stream`.
pub async fn stream(
    State(desk): State<Arc<AppState>>,
    Extension(peer): Extension<Peer>,
) -> Result<impl IntoResponse, Problem> {
    let unavailable = |why| Problem::new(StatusCode::SERVICE_UNAVAILABLE, why);
    let evicted = desk.viewers.streams.try_open(peer);
    let busy = || unavailable(format!("{MAX_VIEWERS} others follow this run: close a page of it, or try again"));
    let evicted = evicted.ok_or_else(busy)?;
    let said = desk.viewers.with(watch::Sender::subscribe);
    let said = said.ok_or_else(|| unavailable("the coordinator is shutting down".into()))?;
    tokio::spawn(async move { tell(&desk).await });
    Ok(Sse::new(events(said, evicted)).keep_alive(sse::KeepAlive::new().interval(SIGN_OF_LIFE)))
}

fn events(
    said: watch::Receiver<Said>,
    evicted: oneshot::Receiver<()>,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let event = |said: Said| std::future::ready(said.map(|said| Ok(sse::Event::default().data(said))));
    WatchStream::new(said).filter_map(event).take_until(evicted)
}
