//! The activity of one connection, for its watchdog. `Wire` (bytes), the service (requests) and the bodies record it
//! here, and `connection.rs` checks it against the limits. A request costs a few relaxed stores and no timer: there is
//! one timer for each connection, and it fires no more often than the shortest limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long a connection may stay in each state.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// The time without a request or a byte of one.
    pub(super) idle: Duration,
    /// The time from the first byte of a request's head to its last.
    pub(super) head: Duration,
    /// The time in which the client accepts no byte.
    pub(super) write: Duration,
    /// The time in which a request makes no progress. It is longer than the request's deadline and its body's timeout
    /// together, so it is only reached if an HTTP/2 client keeps its stream's window closed.
    pub(super) request: Duration,
    /// The time without a request, once the server accepts no new connections: a request that the client sent before it
    /// could know is still served.
    pub(super) stopping: Duration,
}

impl ConnectionLimits {
    /// The shortest time a state can last before its limit.
    pub(super) fn shortest(&self) -> Duration {
        self.idle.min(self.head).min(self.write).min(self.request)
    }
}

/// The result of checking a connection against its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchdogCheck {
    /// No limit is reached; the next check is due then.
    NextAt(Instant),
    Idle,
    SlowHead,
    /// The client does not read its response.
    Stuck,
}

/// Times are milliseconds since `opened_at`, plus one; zero stands for never.
pub(super) struct ConnectionActivity {
    opened_at: Instant,
    /// True for HTTP/2, where bytes are mostly not the start of a head, so that only requests count.
    multiplexed: bool,
    /// The number of requests between their head and the end of their response.
    active: AtomicU32,
    /// The time of the last progress of any request.
    progress: AtomicU64,
    /// The time of the first byte of the head that is being read.
    head: AtomicU64,
    /// The time since when the client accepts no byte.
    blocked: AtomicU64,
    /// A request's body was not read to its end. Closing the socket at once could then destroy the response on its way.
    unread: AtomicBool,
    /// The client has closed its sending side.
    client_ended: AtomicBool,
    had_request: AtomicBool,
    /// The time since when the server has been stopping.
    stopping: AtomicU64,
}

impl ConnectionActivity {
    pub(super) fn new(multiplexed: bool) -> Self {
        Self {
            opened_at: Instant::now(),
            multiplexed,
            active: AtomicU32::new(0),
            progress: AtomicU64::new(1),
            head: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            client_ended: AtomicBool::new(false),
            had_request: AtomicBool::new(false),
            stopping: AtomicU64::new(0),
        }
    }

    /// Returns whether the connection is HTTP/2.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed
    }

    fn now(&self) -> u64 {
        self.opened_at.elapsed().as_millis() as u64 + 1
    }

    fn at(&self, time: u64) -> Instant {
        self.opened_at + Duration::from_millis(time - 1)
    }

    pub(super) fn bytes_received(&self) {
        if !self.multiplexed && self.active.load(Ordering::Relaxed) == 0 && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Records that the server is stopping: the next response is the connection's last, and an idle connection is
    /// closed soon.
    pub(super) fn stop(&self) {
        self.stopping.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) != 0
    }

    /// Returns whether a GOAWAY of HTTP/2 may be sent, which loses no request that is on its way. A client without a
    /// request so far is given time for its first one.
    pub(super) fn may_send_goaway(&self) -> bool {
        self.multiplexed && self.is_stopping() && self.had_request.load(Ordering::Relaxed)
    }

    /// Returns whether `Wire` has to look for the end of the client, since hyper does not.
    pub(super) fn needs_watching(&self) -> bool {
        !self.multiplexed && self.active.load(Ordering::Relaxed) != 0
    }

    pub(super) fn client_ended(&self) {
        self.client_ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn write_blocked(&self) {
        if self.blocked.load(Ordering::Relaxed) == 0 {
            self.blocked.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(super) fn write_progressed(&self) {
        // Reads first, so that a healthy connection does not write to this cache line at each write.
        if self.blocked.load(Ordering::Relaxed) != 0 {
            self.blocked.store(0, Ordering::Relaxed);
            self.record_progress();
        }
    }

    pub(super) fn record_progress(&self) {
        self.progress.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn body_left_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// Returns whether the bytes that the client still sends must be read before the socket is closed: the kernel
    /// answers unread bytes with a reset, which may overtake the response.
    pub(super) fn must_linger(&self) -> bool {
        self.unread.load(Ordering::Relaxed) && !self.client_ended.load(Ordering::Relaxed)
    }

    /// Returns whether no response is partly written, so that raw bytes may be sent.
    pub(super) fn is_between_responses(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0 && self.blocked.load(Ordering::Relaxed) == 0
    }

    pub(super) fn check(&self, limits: &ConnectionLimits, now: Instant) -> WatchdogCheck {
        let [blocked, head, progress, stopping] =
            [&self.blocked, &self.head, &self.progress, &self.stopping].map(|time| time.load(Ordering::Relaxed));
        let (since, limit, expired) = match self.active.load(Ordering::Relaxed) {
            // This holds after the last request, too: hyper may have a whole response that the client reads slowly.
            _ if blocked != 0 => (blocked, limits.write, WatchdogCheck::Stuck),
            0 if head != 0 => (head, limits.head, WatchdogCheck::SlowHead),
            0 if stopping != 0 => (progress.max(stopping), limits.stopping.min(limits.idle), WatchdogCheck::Idle),
            0 => (progress, limits.idle, WatchdogCheck::Idle),
            _ => (progress, limits.request, WatchdogCheck::Stuck),
        };
        let end = self.at(since) + limit;
        if end <= now {
            return expired;
        }
        // A state that begins right after this check lasts at least the shortest limit, so none is missed. Times are
        // rounded down to milliseconds; a check that is too early is repeated.
        let shortest = if stopping == 0 { limits.shortest() } else { limits.shortest().min(limits.stopping) };
        WatchdogCheck::NextAt(end.min(now + shortest) + Duration::from_millis(1))
    }
}

/// Counts a request as active, from its head to the end of its response.
pub(super) struct ActiveRequest(Arc<ConnectionActivity>);

impl ActiveRequest {
    pub(super) fn begin(activity: &Arc<ConnectionActivity>) -> Self {
        activity.head.store(0, Ordering::Relaxed);
        activity.had_request.store(true, Ordering::Relaxed);
        activity.active.fetch_add(1, Ordering::Relaxed);
        activity.record_progress();
        Self(activity.clone())
    }

    pub(super) fn record_progress(&self) {
        self.0.record_progress();
    }

    pub(super) fn activity(&self) -> &ConnectionActivity {
        &self.0
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.record_progress();
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits {
        idle: Duration::from_secs(60),
        head: Duration::from_secs(10),
        write: Duration::from_secs(30),
        request: Duration::from_secs(100),
        stopping: Duration::from_secs(1),
    };

    /// Checks the limit that is reached so many seconds after the connection was opened; none for no limit.
    fn check(activity: &ConnectionActivity, seconds: u64, expected: Option<WatchdogCheck>) {
        let now = activity.opened_at + Duration::from_secs(seconds);
        match activity.check(&LIMITS, now) {
            // The next check is due when a state that begins now can reach its limit.
            WatchdogCheck::NextAt(next) => {
                assert!(expected.is_none() && next > now && next <= now + Duration::from_millis(10_001));
            }
            reached => assert_eq!(Some(reached), expected),
        }
    }

    #[test]
    fn an_idle_connection_ends_at_its_limit() {
        let activity = Arc::new(ConnectionActivity::new(false));
        drop(ActiveRequest::begin(&activity));
        check(&activity, 59, None);
        check(&activity, 61, Some(WatchdogCheck::Idle));
    }

    #[test]
    fn an_idle_connection_is_closed_soon_when_the_server_stops() {
        let activity = Arc::new(ConnectionActivity::new(false));
        drop(ActiveRequest::begin(&activity));
        activity.stop();
        let active = ActiveRequest::begin(&activity);
        check(&activity, 99, None);
        drop(active);
        let now = activity.opened_at + Duration::from_millis(900);
        assert!(
            matches!(activity.check(&LIMITS, now), WatchdogCheck::NextAt(next) if next <= now + Duration::from_millis(110))
        );
        check(&activity, 2, Some(WatchdogCheck::Idle));
        assert!(!activity.may_send_goaway());
    }

    #[test]
    fn a_client_without_a_request_so_far_is_given_time_for_one() {
        let activity = Arc::new(ConnectionActivity::new(true));
        activity.stop();
        assert!(!activity.may_send_goaway());
        drop(ActiveRequest::begin(&activity));
        assert!(activity.may_send_goaway());
    }

    #[test]
    fn bytes_that_trickle_do_not_stretch_the_head() {
        let activity = ConnectionActivity::new(false);
        activity.bytes_received();
        check(&activity, 9, None);
        let head = activity.head.load(Ordering::Relaxed);
        activity.bytes_received();
        assert_eq!(activity.head.load(Ordering::Relaxed), head);
        check(&activity, 11, Some(WatchdogCheck::SlowHead));
    }

    #[test]
    fn a_request_in_flight_is_not_idle() {
        let activity = Arc::new(ConnectionActivity::new(true));
        let active = ActiveRequest::begin(&activity);
        activity.bytes_received();
        check(&activity, 99, None);
        check(&activity, 101, Some(WatchdogCheck::Stuck));
        drop(active);
        assert!(activity.is_between_responses());
    }

    #[test]
    fn a_client_that_reads_nothing_is_stuck() {
        let activity = Arc::new(ConnectionActivity::new(false));
        let active = ActiveRequest::begin(&activity);
        activity.write_blocked();
        check(&activity, 29, None);
        check(&activity, 31, Some(WatchdogCheck::Stuck));
        activity.write_progressed();
        check(&activity, 31, None);
        drop(active);
        activity.write_blocked();
        check(&activity, 31, Some(WatchdogCheck::Stuck));
    }
}
