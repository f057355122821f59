//! The maintenance of a pool: closes connections that are too old, and keeps standby connections. Each pool has a task of its
//! own, so that a server that hangs affects only its pool.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::pool::ConnectionPool;
use wasmcage_core::backoff::Backoff;

/// Free connections are checked at half the time that they may last, but within these limits.
const PERIOD_MIN: Duration = Duration::from_millis(10);
const PERIOD_MAX: Duration = Duration::from_secs(5);
/// Timeout for making a standby connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause after a failure to make one; it doubles up to `PAUSE_MAX`.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Maintains a pool until the task is aborted.
pub(super) async fn maintain(pool: Arc<ConnectionPool>, resource: Arc<str>, cage: Arc<str>) {
    let settings = pool.settings();
    let period = (settings.idle_timeout.min(settings.age_max) / 2).clamp(PERIOD_MIN, PERIOD_MAX);
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX);
    let mut refill_at = Instant::now();
    loop {
        pool.sweep();
        while refill_at <= Instant::now() {
            match pool.refill(CONNECT_TIMEOUT).await {
                Ok(true) => backoff.reset(),
                Ok(false) => break,
                Err(error) => {
                    let pause = backoff.pause();
                    let retry_s = pause.as_secs();
                    tracing::warn!(%cage, %resource, %error, retry_s, "no standby connection could be made");
                    refill_at = Instant::now() + pause;
                }
            }
        }
        let idle = pool.is_idle();
        tokio::select! {
            () = pool.attention.notified() => {}
            () = sleep_until(Instant::now() + period), if !idle => {}
        }
    }
}
