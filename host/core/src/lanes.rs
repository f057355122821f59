//! The threads on which guests run: one for each core, with a single-threaded runtime. A connection stays on one lane, and a
//! request is served there from its first byte to its last without waking another thread; each lane has its own warm
//! instances. Everything else (watching, compiling, control) runs on the process's ordinary runtime.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// A guest that ran on its lane for longer than this leaves it for as long. Guests otherwise yield every millisecond or so.
const RUN_MAX: Duration = Duration::from_millis(8);
/// A guest leaves its lane for at most so long.
const AWAY_MAX: Duration = Duration::from_millis(500);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    /// Start of the current poll of the guest that runs on this thread.
    static RUNNING_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Polls a guest, and notes when the poll started.
pub fn poll_guest<F: Future>(guest: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
    // A guest may call another one within the process, which is polled inside of its own poll.
    let outer = RUNNING_SINCE.replace(Some(Instant::now()));
    let poll = guest.poll(context);
    RUNNING_SINCE.set(outer);
    poll
}

/// Yields the lane to others. A guest cannot be interrupted in the middle of a call to the host, such as one with a text of
/// many megabytes. If it had the lane for more than `RUN_MAX` it stays away for as long: a mere yield would give each of the
/// others only one step.
pub fn leave() -> impl Future<Output = ()> + Send {
    let ran = RUNNING_SINCE.get().map_or(Duration::ZERO, |running_since| running_since.elapsed());
    async move {
        match ran > RUN_MAX {
            true => tokio::time::sleep(ran.min(AWAY_MAX)).await,
            false => tokio::task::yield_now().await,
        }
    }
}

#[derive(Debug)]
pub struct Lanes {
    handles: Box<[Handle]>,
    next: AtomicUsize,
    stop: CancellationToken,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// The runtime of a lane. Dropping it never blocks.
struct LaneRuntime(Option<Runtime>);

impl Drop for LaneRuntime {
    fn drop(&mut self) {
        // A guest that never yields must not delay the end of the process.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Lanes {
    /// Number of lanes by default: one for each core that this process may use.
    pub fn default_count() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// # Errors
    /// The operating system's, when a thread or a runtime cannot be created.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut handles = Vec::with_capacity(count);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = LaneRuntime(Some(Builder::new_current_thread().enable_all().build()?));
            handles.extend(runtime.0.as_ref().map(|runtime| runtime.handle().clone()));
            let stop = stop.clone();
            threads.push(std::thread::Builder::new().name(format!("lane-{index}")).spawn(move || {
                CURRENT.set(index);
                runtime.0.as_ref().expect("it is there until it is dropped").block_on(stop.cancelled());
            })?);
        }
        Ok(Self { handles: handles.into(), next: AtomicUsize::new(0), stop, threads })
    }

    pub fn count(&self) -> usize {
        self.handles.len()
    }

    pub fn handle(&self, lane: usize) -> &Handle {
        &self.handles[lane]
    }

    /// Returns the lanes in turn, for work that has no lane yet.
    pub fn next(&self) -> &Handle {
        &self.handles[self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }

    /// Ends everything that runs on the lanes, as the end of the process would.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Index of the lane that the caller runs on; 0 off the lanes.
    pub fn current() -> usize {
        CURRENT.get()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.stop.cancel();
        let here = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != here) {
            // If a lane panicked, the panic has been printed.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use super::*;

    async fn run_guest<T>(guest: impl Future<Output = T>) -> T {
        let mut guest = pin!(guest);
        poll_fn(|context| poll_guest(guest.as_mut(), context)).await
    }

    #[tokio::test]
    async fn who_kept_the_lane_leaves_it_for_as_long_and_who_did_not_for_a_moment() {
        let ran = 5 * RUN_MAX;
        let away = run_guest(async {
            leave().await;
            std::thread::sleep(ran);
            let left = Instant::now();
            leave().await;
            left.elapsed()
        })
        .await;
        assert!(away >= ran, "{away:?}");
        // The time before the last yield does not count.
        let turns = run_guest(async {
            std::thread::sleep(ran);
            tokio::task::yield_now().await;
            RUNNING_SINCE.get().unwrap().elapsed()
        })
        .await;
        assert!(turns < ran, "{turns:?}");
        assert_eq!(RUNNING_SINCE.get(), None);
    }
}
