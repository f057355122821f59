//! What looks after one pool while nobody uses it: closes what is too old, keeps connections ready. One task for each pool,
//! so that a server that hangs costs its own pool only.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::pool::Pool;
use wasmcage_core::backoff::Backoff;

/// Between two looks at free connections: half of what they may last, within these.
const PERIOD_MIN: Duration = Duration::from_millis(10);
const PERIOD_MAX: Duration = Duration::from_secs(5);
/// A connection to be kept ready is given up when it is not there after so long.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to make one: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(30);

/// Runs until it is aborted.
pub(super) async fn maintain(pool: Arc<Pool>, resource: Arc<str>, cage: Arc<str>) {
    let settings = pool.settings();
    let period = (settings.idle_timeout.min(settings.age_max) / 2).clamp(PERIOD_MIN, PERIOD_MAX);
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
    let mut refill_at = Instant::now();
    loop {
        pool.sweep();
        while refill_at <= Instant::now() {
            match pool.refill(CONNECT_TIME_MAX).await {
                Ok(true) => backoff.reset(),
                Ok(false) => break,
                Err(error) => {
                    let pause = backoff.pause();
                    let retry_s = pause.as_secs();
                    tracing::warn!(%cage, %resource, %error, retry_s, "no connection to keep ready could be made");
                    refill_at = Instant::now() + pause;
                }
            }
        }
        let unattended = pool.is_unattended();
        tokio::select! {
            () = pool.attention.notified() => {}
            () = sleep_until(Instant::now() + period), if !unattended => {}
        }
    }
}
