//! What a connection is doing, as its watchdog sees it. `Wire` (bytes), the service (requests) and the bodies report here;
//! `connection.rs` asks for a verdict. Per request this costs a few relaxed stores and no timer: one timer per connection
//! wakes no oftener than its shortest limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How long a connection may stay in each state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// No request, and no byte of one.
    pub(super) idle: Duration,
    /// From the first byte of a request's head to its last.
    pub(super) head: Duration,
    /// The client takes no byte of what is to be sent.
    pub(super) write: Duration,
    /// A request, without any progress. Longer than its deadline and its body's timeout together, which come first unless
    /// an HTTP/2 client keeps its stream's window shut.
    pub(super) request: Duration,
    /// No request, once the server takes no new connections: what the client sent before it could know is still served.
    pub(super) leaving: Duration,
}

impl Limits {
    /// No state ends sooner after it began.
    pub(super) fn shortest(&self) -> Duration {
        self.idle.min(self.head).min(self.write).min(self.request)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All is well; ask again then.
    Wait(Instant),
    Idle,
    SlowHead,
    /// The client does not take its answer.
    Stuck,
}

pub(super) struct Pulse {
    born: Instant,
    /// On HTTP/2 bytes are mostly not the start of a head, so only requests count.
    multiplexed: bool,
    /// Requests between their head and the end of their answer.
    active: AtomicU32,
    /// Times are milliseconds since `born`, plus one; zero is never. This one: the last progress of any request.
    progress: AtomicU64,
    /// First byte of the head being read.
    head: AtomicU64,
    /// Since when the client takes nothing.
    blocked: AtomicU64,
    /// A request's body was not read to its end, so that closing at once would destroy the answer on its way.
    unread: AtomicBool,
    /// The client sends no more.
    ended: AtomicBool,
    /// There has been a request.
    served: AtomicBool,
    /// Since when the server has been stopping.
    leaving: AtomicU64,
}

impl Pulse {
    pub(super) fn new(multiplexed: bool) -> Self {
        Self {
            born: Instant::now(),
            multiplexed,
            active: AtomicU32::new(0),
            progress: AtomicU64::new(1),
            head: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            served: AtomicBool::new(false),
            leaving: AtomicU64::new(0),
        }
    }

    /// Whether it is one of HTTP/2.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64 + 1
    }

    fn at(&self, time: u64) -> Instant {
        self.born + Duration::from_millis(time - 1)
    }

    pub(super) fn bytes_came(&self) {
        if !self.multiplexed && self.active.load(Ordering::Relaxed) == 0 && self.head.load(Ordering::Relaxed) == 0 {
            self.head.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The server is stopping: the next answer is the connection's last, and an idle connection is soon closed.
    pub(super) fn leave(&self) {
        self.leaving.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed) != 0
    }

    /// Whether HTTP/2 can say goodbye, which it does in a way that loses no request on its way. A client that has not asked
    /// anything yet is given the time for its first request.
    pub(super) fn can_say_goodbye(&self) -> bool {
        self.multiplexed && self.is_leaving() && self.served.load(Ordering::Relaxed)
    }

    /// Whether nobody but `Wire` would notice that the client has gone.
    pub(super) fn is_watched(&self) -> bool {
        !self.multiplexed && self.active.load(Ordering::Relaxed) != 0
    }

    pub(super) fn client_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn write_blocked(&self) {
        if self.blocked.load(Ordering::Relaxed) == 0 {
            self.blocked.store(self.now(), Ordering::Relaxed);
        }
    }

    pub(super) fn write_went(&self) {
        // Read first: the line is not written to on every write of a healthy connection.
        if self.blocked.load(Ordering::Relaxed) != 0 {
            self.blocked.store(0, Ordering::Relaxed);
            self.progressed();
        }
    }

    pub(super) fn progressed(&self) {
        self.progress.store(self.now(), Ordering::Relaxed);
    }

    pub(super) fn body_left_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    /// Whether what the client still sends must be taken before the socket is closed: the kernel answers unread bytes with
    /// a reset, which overtakes the answer.
    pub(super) fn must_linger(&self) -> bool {
        self.unread.load(Ordering::Relaxed) && !self.ended.load(Ordering::Relaxed)
    }

    /// Whether a raw answer may be written: none is half written.
    pub(super) fn between_answers(&self) -> bool {
        self.active.load(Ordering::Relaxed) == 0 && self.blocked.load(Ordering::Relaxed) == 0
    }

    pub(super) fn verdict(&self, limits: &Limits, now: Instant) -> Verdict {
        let [blocked, head, progress, leaving] =
            [&self.blocked, &self.head, &self.progress, &self.leaving].map(|time| time.load(Ordering::Relaxed));
        let (since, limit, verdict) = match self.active.load(Ordering::Relaxed) {
            // Also after its last request: an answer may be handed over whole and leave slowly.
            _ if blocked != 0 => (blocked, limits.write, Verdict::Stuck),
            0 if head != 0 => (head, limits.head, Verdict::SlowHead),
            0 if leaving != 0 => (progress.max(leaving), limits.leaving.min(limits.idle), Verdict::Idle),
            0 => (progress, limits.idle, Verdict::Idle),
            _ => (progress, limits.request, Verdict::Stuck),
        };
        let end = self.at(since) + limit;
        if end <= now {
            return verdict;
        }
        // A state that begins right after this look lasts at least the shortest limit: none is overlooked. Times are cut to
        // milliseconds; a look too early would only be repeated.
        let shortest = if leaving == 0 { limits.shortest() } else { limits.shortest().min(limits.leaving) };
        Verdict::Wait(end.min(now + shortest) + Duration::from_millis(1))
    }
}

/// Held from a request's head to the end of its answer.
pub(super) struct Active(Arc<Pulse>);

impl Active {
    pub(super) fn begin(pulse: &Arc<Pulse>) -> Self {
        pulse.head.store(0, Ordering::Relaxed);
        pulse.served.store(true, Ordering::Relaxed);
        pulse.active.fetch_add(1, Ordering::Relaxed);
        pulse.progressed();
        Self(pulse.clone())
    }

    pub(super) fn progressed(&self) {
        self.0.progressed();
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.progressed();
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        idle: Duration::from_secs(60),
        head: Duration::from_secs(10),
        write: Duration::from_secs(30),
        request: Duration::from_secs(100),
        leaving: Duration::from_secs(1),
    };

    /// The verdict so many seconds after the connection began; none when all is well.
    fn check(pulse: &Pulse, seconds: u64, expected: Option<Verdict>) {
        let now = pulse.born + Duration::from_secs(seconds);
        match pulse.verdict(&LIMITS, now) {
            // As soon as a state that begins now can end.
            Verdict::Wait(next) => {
                assert!(expected.is_none() && next > now && next <= now + Duration::from_millis(10_001));
            }
            verdict => assert_eq!(Some(verdict), expected),
        }
    }

    #[test]
    fn an_idle_connection_ends_at_its_limit() {
        let pulse = Arc::new(Pulse::new(false));
        drop(Active::begin(&pulse));
        check(&pulse, 59, None);
        check(&pulse, 61, Some(Verdict::Idle));
    }

    #[test]
    fn an_idle_connection_is_soon_left_when_the_server_stops() {
        let pulse = Arc::new(Pulse::new(false));
        drop(Active::begin(&pulse));
        pulse.leave();
        let active = Active::begin(&pulse);
        check(&pulse, 99, None);
        drop(active);
        let now = pulse.born + Duration::from_millis(900);
        assert!(matches!(pulse.verdict(&LIMITS, now), Verdict::Wait(next) if next <= now + Duration::from_millis(110)));
        check(&pulse, 2, Some(Verdict::Idle));
        assert!(!pulse.can_say_goodbye());
    }

    #[test]
    fn a_client_that_has_not_asked_yet_is_given_the_time() {
        let pulse = Arc::new(Pulse::new(true));
        pulse.leave();
        assert!(!pulse.can_say_goodbye());
        drop(Active::begin(&pulse));
        assert!(pulse.can_say_goodbye());
    }

    #[test]
    fn bytes_that_trickle_do_not_stretch_the_head() {
        let pulse = Pulse::new(false);
        pulse.bytes_came();
        check(&pulse, 9, None);
        let head = pulse.head.load(Ordering::Relaxed);
        pulse.bytes_came();
        assert_eq!(pulse.head.load(Ordering::Relaxed), head);
        check(&pulse, 11, Some(Verdict::SlowHead));
    }

    #[test]
    fn a_request_in_work_is_not_idle() {
        let pulse = Arc::new(Pulse::new(true));
        let active = Active::begin(&pulse);
        pulse.bytes_came();
        check(&pulse, 99, None);
        check(&pulse, 101, Some(Verdict::Stuck));
        drop(active);
        assert!(pulse.between_answers());
    }

    #[test]
    fn a_client_that_takes_nothing_is_stuck() {
        let pulse = Arc::new(Pulse::new(false));
        let active = Active::begin(&pulse);
        pulse.write_blocked();
        check(&pulse, 29, None);
        check(&pulse, 31, Some(Verdict::Stuck));
        pulse.write_went();
        check(&pulse, 31, None);
        drop(active);
        pulse.write_blocked();
        check(&pulse, 31, Some(Verdict::Stuck));
    }
}
