//! Where guests run: one thread with its own single-threaded runtime per core. A connection stays on one lane, and a
//! request is served there from its first byte to its last without waking another thread; warm instances are kept per
//! lane. Everything else (watching, compiling, control) runs on the process's ordinary runtime.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

/// Who has kept a lane for longer than this leaves it for as long: far more than the ticks at which a guest yields.
const HELD_MAX: Duration = Duration::from_millis(8);
/// Nobody stays away for longer.
const AWAY_MAX: Duration = Duration::from_millis(500);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
    /// When the guest that runs was given the lane.
    static GIVEN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Polls a guest, and notes when it was given the lane.
pub fn poll_guest<F: Future>(guest: Pin<&mut F>, context: &mut Context<'_>) -> Poll<F::Output> {
    // The outer one is of a guest that called this one within the process.
    let outer = GIVEN.replace(Some(Instant::now()));
    let poll = guest.poll(context);
    GIVEN.set(outer);
    poll
}

/// Lets others have the lane. A guest cannot be interrupted in the middle of a call to the host, such as one with a text of
/// many megabytes: one that had the lane for so long leaves it for as long, and not for a moment only, in which each of the
/// others comes one step further.
pub fn leave() -> impl Future<Output = ()> + Send {
    let held = GIVEN.get().map_or(Duration::ZERO, |given| given.elapsed());
    async move {
        match held > HELD_MAX {
            true => tokio::time::sleep(held.min(AWAY_MAX)).await,
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

/// The runtime of a lane, or of one whose thread could not be had, which is dropped where blocking is not allowed.
struct LaneRuntime(Option<Runtime>);

impl Drop for LaneRuntime {
    fn drop(&mut self) {
        // A guest that never yields must not hold up the process's end.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Lanes {
    /// How many lanes a machine gets: one per core it lets this process use.
    pub fn default_count() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// # Errors
    /// The operating system's, when a thread or a runtime cannot be had.
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

    /// The lanes in turn, for work that has no lane yet.
    pub fn next(&self) -> &Handle {
        &self.handles[self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len()]
    }

    /// Ends everything that runs on them, as the end of a process would.
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
            // A lane that panicked has told so already.
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
        let held = 5 * HELD_MAX;
        let away = run_guest(async {
            leave().await;
            std::thread::sleep(held);
            let left = Instant::now();
            leave().await;
            left.elapsed()
        })
        .await;
        assert!(away >= held, "{away:?}");
        // What came before the last turn does not count.
        let turns = run_guest(async {
            std::thread::sleep(held);
            tokio::task::yield_now().await;
            GIVEN.get().unwrap().elapsed()
        })
        .await;
        assert!(turns < held, "{turns:?}");
        assert_eq!(GIVEN.get(), None);
    }
}
