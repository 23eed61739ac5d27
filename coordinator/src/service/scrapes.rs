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

/// Maximal time to wait for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// The time of the last scrape, and the interval between it and the one before.
type LastScrape = Option<(Instant, Option<Duration>)>;

/// Tracks scrapes of `/metrics`.
#[derive(Clone)]
pub struct Scrapes(watch::Sender<LastScrape>);

impl Scrapes {
    /// A tracker without scrapes.
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// The same routes with a middleware that tracks each answered `/metrics` request.
    pub fn noted(&self, routes: Router) -> Router {
        routes.layer(middleware::from_fn_with_state(self.clone(), answer))
    }

    fn note(&self, now: Instant) {
        self.0.send_modify(|last| *last = Some((now, last.map(|(earlier, _)| now - earlier))));
    }

    /// Waits for one more scrape, for up to twice the last interval. Returns at once unless there
    /// were two scrapes.
    pub async fn one_more(&self) {
        let mut scrapes = self.0.subscribe();
        let last = *scrapes.borrow_and_update();
        if let Some(longest) = last.and_then(longest_wait) {
            // On a timeout Prometheus has stopped scraping.
            _ = time::timeout(longest, scrapes.changed()).await;
        }
    }
}

/// How long to wait for one more scrape; none for not at all.
fn longest_wait((_, interval): (Instant, Option<Duration>)) -> Option<Duration> {
    interval.map(|interval| PATIENCE.min(2 * interval))
}

async fn answer(State(scrapes): State<Scrapes>, request: Request, next: Next) -> Response {
    let metrics = request.uri().path() == "/metrics";
    let response = next.run(request).await;
    if metrics && response.status().is_success() {
        scrapes.note(Instant::now());
    }
    response
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Scrapes at these seconds.
    fn scraped(seconds: &[u64]) -> Scrapes {
        let (scrapes, started) = (Scrapes::new(), Instant::now());
        seconds.iter().for_each(|second| scrapes.note(started + Duration::from_secs(*second)));
        scrapes
    }

    #[test]
    fn who_comes_at_intervals_is_waited_for_and_nobody_else() {
        let longest = |seconds: &[u64]| scraped(seconds).0.borrow().and_then(longest_wait);
        assert_eq!(longest(&[]), None);
        assert_eq!(longest(&[3]), None);
        assert_eq!(longest(&[3, 8]), Some(Duration::from_secs(10)));
        assert_eq!(longest(&[3, 1000]), Some(PATIENCE));
    }

    #[tokio::test]
    async fn one_more_is_enough() {
        assert_eq!(scraped(&[3]).one_more().now_or_never(), Some(()));
        let scrapes = scraped(&[0, 5]);
        let mut waits = std::pin::pin!(scrapes.one_more());
        assert_eq!(waits.as_mut().now_or_never(), None);
        scrapes.note(Instant::now());
        assert_eq!(waits.now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn who_does_not_come_again_is_not_waited_for_long() {
        let scrapes = Scrapes::new();
        let now = Instant::now();
        scrapes.note(now);
        scrapes.note(now);
        scrapes.one_more().await;
    }
}
