//! Callers that go on calling while something happens to the callees, and what they saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{Client, query};

/// How long a test goes on, in units of its own: `name` in the environment, or short.
///
/// # Panics
/// When the variable is no number.
pub fn length(name: &str, short: u64) -> u64 {
    std::env::var(name).map_or(short, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

/// Callers of `add` of a cage's module `work`, through the guest `echo` as interface of a front.
pub struct Load {
    target: String,
    stop: AtomicBool,
    begun: Instant,
    pub answers: AtomicU64,
    pub lost: AtomicU64,
    /// What else came instead of an answer: the first few.
    wrong: Mutex<Vec<String>>,
    failed: AtomicU64,
    /// Of each call: when it began, how long it took.
    calls: Mutex<Vec<(Duration, Duration)>>,
}

impl Load {
    pub fn new(cage: &str, timeout: Duration, idempotent: bool) -> Arc<Self> {
        let timeout = timeout.as_millis().to_string();
        let mut parameters = vec![
            ("cage", cage),
            ("module", "work"),
            ("function", "add"),
            ("args", "[2, 3]"),
            ("timeout_ms", &*timeout),
        ];
        if idempotent {
            parameters.push(("idempotent", "1"));
        }
        Arc::new(Self {
            target: query("/try_call", &parameters),
            stop: AtomicBool::new(false),
            begun: Instant::now(),
            answers: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            wrong: Mutex::default(),
            failed: AtomicU64::new(0),
            calls: Mutex::default(),
        })
    }

    /// Calls from many, until `blows` have fallen.
    ///
    /// # Panics
    /// When a caller does.
    pub async fn while_<T>(self: &Arc<Self>, front: &Client, callers: usize, blows: impl Future<Output = T>) -> T {
        let calling: Vec<_> = (0..callers)
            .map(|_| {
                let (load, client) = (self.clone(), front.clone());
                tokio::spawn(async move { load.keep_calling(client).await })
            })
            .collect();
        let fallen = blows.await;
        self.stop.store(true, Ordering::Relaxed);
        for caller in calling {
            caller.await.expect("a caller ends");
        }
        fallen
    }

    async fn keep_calling(&self, client: Client) {
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let text = client.get(&self.target).await.text();
            self.calls.lock().push((begun - self.begun, begun.elapsed()));
            if text == "5" {
                self.answers.fetch_add(1, Ordering::Relaxed);
            } else if text.contains("\"error\":\"Lost") {
                self.lost.fetch_add(1, Ordering::Relaxed);
            } else {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut wrong = self.wrong.lock();
                if wrong.len() < 5 {
                    wrong.push(text);
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

    /// How many calls were neither answered nor lost, and the first few of them.
    pub fn wrong(&self) -> (u64, Vec<String>) {
        (self.failed.load(Ordering::Relaxed), self.wrong.lock().clone())
    }

    /// The longest call of those that began then.
    pub fn longest(&self, from: Duration, to: Duration) -> Duration {
        let calls = self.calls.lock();
        let then = calls.iter().filter(|(begun, _)| (from..to).contains(begun));
        then.map(|(_, took)| *took).max().unwrap_or_default()
    }

    /// The longest time in which no call ended.
    pub fn longest_stall(&self) -> Duration {
        let mut ends: Vec<_> = self.calls.lock().iter().map(|(begun, took)| *begun + *took).collect();
        ends.sort_unstable();
        ends.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// For the record of a run.
    pub fn told(&self, what: &str) -> String {
        let (answers, lost) = (self.answers.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed));
        let (failed, first) = self.wrong();
        let (longest, stall) = (self.longest(Duration::ZERO, Duration::MAX), self.longest_stall());
        format!(
            "{what}: {answers} answers, {lost} lost, {failed} failed {first:?}; the longest call {longest:.0?}, the longest \
             time without an answer {stall:.0?}"
        )
    }
}
