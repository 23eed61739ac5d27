//! Live updates of the web page as server-sent events. Each viewer gets one snapshot of the run per
//! interval.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Sse, sse},
};
use futures::{Stream, StreamExt};
use tokio::{
    sync::{oneshot, watch},
    time::{self, Instant, MissedTickBehavior},
};
use tokio_stream::wrappers::WatchStream;

use super::{
    app_state::AppState,
    error::HttpError,
    status,
    viewers::{MAX_VIEWERS, SnapshotJson},
};
use crate::service::acceptor::Peer;

/// Interval between snapshots.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(500);
/// Without viewers, the curves are updated only once in this number of intervals, so that they are
/// recent when a viewer connects.
const IDLE_INTERVALS: u32 = 20;
/// Interval of keep-alive comments on a stream without updates.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Updates the curves and sends snapshots to viewers, until `shutdown`.
pub async fn send_updates(app_state: Arc<AppState>, shutdown: impl Future<Output = ()>) {
    tokio::select! {
        () = repeat_updates(&app_state) => {}
        () = shutdown => app_state.viewers.close(),
    }
}

/// Updates the curves, and takes and sends snapshots, until the future is dropped.
async fn repeat_updates(app_state: &Arc<AppState>) {
    let mut intervals = time::interval(SNAPSHOT_INTERVAL);
    intervals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Whether the journal has steps that were not read yet.
    let mut has_more = true;
    for count in 0_u32.. {
        intervals.tick().await;
        let has_viewers =
            app_state.viewers.with_sender(watch::Sender::receiver_count).is_some_and(|viewers| viewers > 0);
        if !has_viewers && !has_more && !count.is_multiple_of(IDLE_INTERVALS) {
            continue;
        }
        let start = Instant::now();
        loop {
            let next_query = app_state.curves().next_query();
            // A query that fails, for example because the disk is full, is repeated in the next
            // interval.
            let result = app_state.journal.query(next_query).await;
            has_more = result.is_ok_and(|update| app_state.curves().apply(update));
            if !has_more || start.elapsed() >= SNAPSHOT_INTERVAL {
                break;
            }
        }
        if has_viewers {
            send_snapshot(app_state).await;
        }
    }
}

async fn send_snapshot(app_state: &Arc<AppState>) {
    // After an error viewers get no update; the next interval tries again.
    if let Ok(snapshot) = status::snapshot(app_state).await
        && let Ok(json) = serde_json::to_string(&snapshot)
    {
        app_state.viewers.with_sender(|sender| sender.send_replace(Some(json.into())));
    }
}

/// `GET /api/stream`.
pub async fn stream(
    State(app_state): State<Arc<AppState>>,
    Extension(peer): Extension<Peer>,
) -> Result<impl IntoResponse, HttpError> {
    let unavailable = |message| HttpError::new(StatusCode::SERVICE_UNAVAILABLE, message);
    let evicted = app_state.viewers.streams.try_open(peer);
    let limit_reached = || {
        let message =
            format!("{MAX_VIEWERS} pages show this run, which is the limit: close one of them, or try again later");
        unavailable(message)
    };
    let evicted = evicted.ok_or_else(limit_reached)?;
    let snapshots = app_state.viewers.with_sender(watch::Sender::subscribe);
    let snapshots = snapshots.ok_or_else(|| unavailable("the coordinator is shutting down".into()))?;
    // The new viewer does not wait for the next interval.
    tokio::spawn(async move { send_snapshot(&app_state).await });
    Ok(Sse::new(sse_events(snapshots, evicted)).keep_alive(sse::KeepAlive::new().interval(KEEP_ALIVE_INTERVAL)))
}

/// The stream of one viewer: each snapshot as a server-sent event, until the viewer is evicted.
fn sse_events(
    snapshots: watch::Receiver<SnapshotJson>,
    evicted: oneshot::Receiver<()>,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let event = |snapshot: SnapshotJson| std::future::ready(snapshot.map(|json| Ok(sse::Event::default().data(json))));
    WatchStream::new(snapshots).filter_map(event).take_until(evicted)
}
