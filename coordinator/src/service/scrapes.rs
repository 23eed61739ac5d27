//! Prometheus is told how the run ended: a coordinator that is asked for its metrics again and again is asked once more
//! before it ends.

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

/// Longest time that one more scrape is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// When metrics were asked for last, and how long that was after the time before.
type Last = Option<(Instant, Option<Duration>)>;

/// Scrapes of the metrics.
#[derive(Clone)]
pub struct Scrapes(watch::Sender<Last>);

impl Scrapes {
    /// None so far.
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// The same routes; whenever `/metrics` is answered, it is noted.
    pub fn noted(&self, routes: Router) -> Router {
        routes.layer(middleware::from_fn_with_state(self.clone(), answer))
    }

    fn note(&self) {
        let now = Instant::now();
        self.0.send_modify(|last| *last = Some((now, last.map(|(earlier, _)| now - earlier))));
    }

    /// Waits for one more, twice as long as the last one took to come. Who asked once, or never, is not waited for.
    pub async fn one_more(&self) {
        let mut scrapes = self.0.subscribe();
        let last = *scrapes.borrow_and_update();
        if let Some((_, Some(interval))) = last {
            // Who does not come any more does not want to know.
            _ = time::timeout(PATIENCE.min(2 * interval), scrapes.changed()).await;
        }
    }
}

async fn answer(State(scrapes): State<Scrapes>, request: Request, next: Next) -> Response {
    let metrics = request.uri().path() == "/metrics";
    let response = next.run(request).await;
    if metrics {
        scrapes.note();
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long one more is waited for after scrapes at these seconds, if none comes.
    async fn waited(seconds: &[u64]) -> u64 {
        let (scrapes, started) = (Scrapes::new(), Instant::now());
        for second in seconds {
            time::sleep_until(started + Duration::from_secs(*second)).await;
            scrapes.note();
        }
        let over = Instant::now();
        scrapes.one_more().await;
        over.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_at_intervals_is_waited_for_and_nobody_else() {
        assert_eq!(waited(&[]).await, 0);
        assert_eq!(waited(&[3]).await, 0);
        assert_eq!(waited(&[3, 8]).await, 10);
        assert_eq!(waited(&[3, 1000]).await, PATIENCE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn one_more_is_enough() {
        let scrapes = Scrapes::new();
        scrapes.note();
        time::advance(Duration::from_secs(5)).await;
        scrapes.note();
        let over = Instant::now();
        let comes = async {
            time::sleep(Duration::from_secs(4)).await;
            scrapes.note();
        };
        tokio::join!(scrapes.one_more(), comes);
        assert_eq!(over.elapsed().as_secs(), 4);
    }
}
