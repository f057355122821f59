//! Callers that go on calling while faults happen to the callees, and the outcomes of their calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{Client, query};

/// The length of a test in units of its own: the environment variable `name`, or `short`.
///
/// # Panics
/// When the variable is no number.
pub fn length(name: &str, short: u64) -> u64 {
    std::env::var(name).map_or(short, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    Answered,
    Lost,
    /// Its deadline came first.
    Late,
    /// It had another error or result.
    Wrong,
}

/// One call: its begin since the load's begin, its duration, its outcome.
type CallRecord = (Duration, Duration, CallOutcome);

/// Callers of `add` of a cage's module `work`, through the guest `echo` as interface of a front.
pub struct Load {
    target: String,
    timeout: Duration,
    stop: AtomicBool,
    begun: Instant,
    pub answers: AtomicU64,
    pub lost: AtomicU64,
    /// The first few texts that came in place of the expected answer.
    wrong: Mutex<Vec<String>>,
    failed: AtomicU64,
    calls: Mutex<Vec<CallRecord>>,
}

impl Load {
    pub fn new(cage: &str, timeout: Duration, idempotent: bool) -> Arc<Self> {
        let timeout_ms = timeout.as_millis().to_string();
        let mut parameters = vec![
            ("cage", cage),
            ("module", "work"),
            ("function", "add"),
            ("args", "[2, 3]"),
            ("timeout_ms", &*timeout_ms),
        ];
        if idempotent {
            parameters.push(("idempotent", "1"));
        }
        Arc::new(Self {
            target: query("/try_call", &parameters),
            timeout,
            stop: AtomicBool::new(false),
            begun: Instant::now(),
            answers: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            wrong: Mutex::default(),
            failed: AtomicU64::new(0),
            calls: Mutex::default(),
        })
    }

    /// Has `callers` clients call until `faults` has ended; returns its result.
    ///
    /// # Panics
    /// When a caller does.
    pub async fn call_during<T>(
        self: &Arc<Self>,
        front: &Client,
        callers: usize,
        faults: impl Future<Output = T>,
    ) -> T {
        let calling: Vec<_> = (0..callers)
            .map(|_| {
                let (load, client) = (self.clone(), front.clone());
                tokio::spawn(async move { load.keep_calling(client).await })
            })
            .collect();
        let result = faults.await;
        self.stop.store(true, Ordering::Relaxed);
        for caller in calling {
            caller.await.expect("a caller ends");
        }
        result
    }

    async fn keep_calling(&self, client: Client) {
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let text = client.get(&self.target).await.text();
            let took = begun.elapsed();
            let error = |name: &str| text.contains(&format!("\"error\":\"{name}"));
            let ending = match () {
                () if text == "5" => CallOutcome::Answered,
                () if error("Lost") => CallOutcome::Lost,
                () if error("TimedOut") => CallOutcome::Late,
                () => CallOutcome::Wrong,
            };
            self.calls.lock().push((begun - self.begun, took, ending));
            match ending {
                CallOutcome::Answered => {
                    self.answers.fetch_add(1, Ordering::Relaxed);
                }
                CallOutcome::Lost => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
                CallOutcome::Late | CallOutcome::Wrong => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    let mut wrong = self.wrong.lock();
                    if wrong.len() < 5 {
                        wrong.push(text);
                    }
                }
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.calls.lock().len() as u64
    }

    pub fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The number of calls that were neither answered nor lost, and the texts of the first few.
    pub fn wrong(&self) -> (u64, Vec<String>) {
        (self.failed.load(Ordering::Relaxed), self.wrong.lock().clone())
    }

    /// The duration of the longest call that began in this span of time.
    pub fn longest(&self, from: Duration, to: Duration) -> Duration {
        let calls = self.calls.lock();
        let then = calls.iter().filter(|(begun, ..)| (from..to).contains(begun));
        then.map(|(_, took, _)| *took).max().unwrap_or_default()
    }

    /// The longest time in which no call ended.
    pub fn longest_stall(&self) -> Duration {
        let mut ends: Vec<_> = self.calls.lock().iter().map(|(begun, took, _)| *begun + *took).collect();
        ends.sort_unstable();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// The number of calls that began after `from` and had this outcome.
    pub fn count_of(&self, outcome: CallOutcome, from: Duration) -> usize {
        self.calls.lock().iter().filter(|(begun, _, ended)| *begun >= from && *ended == outcome).count()
    }

    /// A line for the test's output: by how much calls outlasted their deadline.
    pub fn deadline_report(&self) -> String {
        let calls = self.calls.lock();
        let mut over: Vec<_> = calls.iter().filter_map(|(_, took, _)| took.checked_sub(self.timeout)).collect();
        over.sort_unstable();
        let part = |percent: usize| over.get(over.len() * percent / 100).or(over.last()).copied().unwrap_or_default();
        format!(
            "deadline {:.0?}: {} of {} calls reached it, and ended after it by p50 {:.1?}, p99 {:.1?}, at most {:.1?}",
            self.timeout,
            over.len(),
            calls.len(),
            part(50),
            part(99),
            part(100)
        )
    }

    /// A line for the test's output: the numbers of answers and failures, and the longest waits.
    pub fn report(&self, what: &str) -> String {
        let (answers, lost) = (self.answers.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed));
        let (failed, first) = self.wrong();
        let (longest, stall) = (self.longest(Duration::ZERO, Duration::MAX), self.longest_stall());
        format!(
            "{what}: {answers} answers, {lost} lost, {failed} failed {first:?}; the longest call {longest:.0?}, the longest \
             time without an answer {stall:.0?}"
        )
    }
}
