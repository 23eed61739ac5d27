//! The final scrape: a coordinator that Prometheus scrapes waits for one more scrape before it
//! exits, so that the final metrics are not lost.

use std::time::Duration;

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use tokio::{
    sync::watch,
    time::{self, Instant},
};

/// Maximal time to wait for the final scrape.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The time of the last scrape, and the interval between the last two scrapes.
type LastScrape = Option<(Instant, Option<Duration>)>;

/// Tracks scrapes of `/metrics`.
#[derive(Clone)]
pub struct ScrapeTracker(watch::Sender<LastScrape>);

impl ScrapeTracker {
    /// A tracker without scrapes.
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Adds a middleware to `routes` that records each answered `/metrics` request.
    pub fn track(&self, routes: Router) -> Router {
        routes.layer(middleware::from_fn_with_state(self.clone(), track_scrape))
    }

    fn record_scrape(&self, now: Instant) {
        self.0.send_modify(|last| *last = Some((now, last.map(|(earlier, _)| now - earlier))));
    }

    /// Waits for one more scrape, for at most twice the last interval and at most [`MAX_WAIT`].
    /// Returns at once if there were fewer than two scrapes.
    pub async fn wait_for_final_scrape(&self) {
        let mut scrapes = self.0.subscribe();
        let last = *scrapes.borrow_and_update();
        if let Some(limit) = last.and_then(wait_limit) {
            // On a timeout, Prometheus has stopped scraping.
            _ = time::timeout(limit, scrapes.changed()).await;
        }
    }
}

/// How long to wait for one more scrape; `None` if the coordinator does not wait.
fn wait_limit((_, interval): (Instant, Option<Duration>)) -> Option<Duration> {
    interval.map(|interval| MAX_WAIT.min(2 * interval))
}

async fn track_scrape(State(scrapes): State<ScrapeTracker>, request: Request, next: Next) -> Response {
    let is_scrape = request.uri().path() == "/metrics";
    let response = next.run(request).await;
    if is_scrape && response.status().is_success() {
        scrapes.record_scrape(Instant::now());
    }
    response
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// A tracker that has recorded scrapes at these seconds.
    fn tracker_with(seconds: &[u64]) -> ScrapeTracker {
        let (scrapes, started) = (ScrapeTracker::new(), Instant::now());
        seconds.iter().for_each(|second| scrapes.record_scrape(started + Duration::from_secs(*second)));
        scrapes
    }

    #[test]
    fn the_wait_limit_is_twice_the_scrape_interval() {
        let limit = |seconds: &[u64]| tracker_with(seconds).0.borrow().and_then(wait_limit);
        assert_eq!(limit(&[]), None);
        assert_eq!(limit(&[3]), None);
        assert_eq!(limit(&[3, 8]), Some(Duration::from_secs(10)));
        assert_eq!(limit(&[3, 1000]), Some(MAX_WAIT));
    }

    #[tokio::test]
    async fn the_wait_ends_with_the_next_scrape() {
        assert_eq!(tracker_with(&[3]).wait_for_final_scrape().now_or_never(), Some(()));
        let scrapes = tracker_with(&[0, 5]);
        let mut wait = std::pin::pin!(scrapes.wait_for_final_scrape());
        assert_eq!(wait.as_mut().now_or_never(), None);
        scrapes.record_scrape(Instant::now());
        assert_eq!(wait.now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn the_wait_ends_without_a_scrape_at_its_limit() {
        let scrapes = ScrapeTracker::new();
        let now = Instant::now();
        // The interval between these scrapes is zero, and so is the limit.
        scrapes.record_scrape(now);
        scrapes.record_scrape(now);
        scrapes.wait_for_final_scrape().await;
    }
}
