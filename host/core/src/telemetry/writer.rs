//! Between the threads that log and whatever takes the lines: a bounded buffer and one thread that empties it, so that no
//! disk and no terminal can hold up anybody. Lines that find no room are dropped and counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::clock::Day;

/// Lines waiting to be written may take so much memory; a batch being written may take as much again.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// How long the end of a log, or a flush, waits for a disk that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whole lines of one day.
pub(super) struct Batch {
    pub day: Day,
    pub bytes: Vec<u8>,
    /// A line at error level is among them.
    pub urgent: bool,
}

/// Where lines end. Deals with its own failures.
pub(super) trait Output: Send + 'static {
    fn write(&mut self, batch: &Batch);
    /// So many lines found no room.
    fn dropped(&mut self, lines: u64);
    /// Settings have changed.
    fn poked(&mut self) {}
}

#[derive(Default)]
struct State {
    batches: VecDeque<Batch>,
    waiting_bytes: usize,
    dropped: u64,
    poked: bool,
    closed: bool,
    /// Number of lines ever offered, and how many of them are dealt with.
    offered: u64,
    done: u64,
    ended: bool,
}

impl State {
    fn idle(&self) -> bool {
        self.batches.is_empty() && self.dropped == 0 && !self.poked
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    progress: Condvar,
}

/// Dropping it writes what is waiting, within bounds of patience.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(name: &str, output: impl Output) -> Self {
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name(format!("log-{name}")).spawn(move || run(&theirs, output)).ok();
        if thread.is_none() {
            // Without its thread a log loses everything; the cage goes on.
            shared.state.lock().ended = true;
            super::terminal::complain(format_args!("no thread for the log of {name}, its lines are lost"));
        }
        Self { shared, thread }
    }

    /// Takes a line that ends with a newline.
    pub(super) fn push(&self, day: Day, line: &str, urgent: bool) {
        let mut state = self.shared.state.lock();
        if state.ended {
            return;
        }
        state.offered += 1;
        let was_idle = state.idle();
        if state.waiting_bytes + line.len() > WAITING_BYTES_MAX {
            state.dropped += 1;
        } else {
            state.waiting_bytes += line.len();
            match state.batches.back_mut().filter(|batch| batch.day == day) {
                Some(batch) => {
                    batch.bytes.extend_from_slice(line.as_bytes());
                    batch.urgent |= urgent;
                }
                None => state.batches.push_back(Batch { day, bytes: line.into(), urgent }),
            }
        }
        drop(state);
        if was_idle {
            self.shared.work.notify_one();
        }
    }

    pub(super) fn poke(&self) {
        self.shared.state.lock().poked = true;
        self.shared.work.notify_one();
    }

    /// Waits until everything pushed so far has been dealt with; false when that took too long.
    pub(super) fn flush(&self) -> bool {
        let mut state = self.shared.state.lock();
        let target = state.offered;
        let waiting = |state: &mut State| state.done < target && !state.ended;
        !self.shared.progress.wait_while_for(&mut state, waiting, PATIENCE).timed_out()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let mut state = self.shared.state.lock();
        state.closed = true;
        self.shared.work.notify_one();
        let ended = !self.shared.progress.wait_while_for(&mut state, |state| !state.ended, PATIENCE).timed_out();
        drop(state);
        if ended {
            // A panic of the thread has been told by the panic itself.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, mut output: impl Output) {
    let _ended = Ended(shared);
    loop {
        let mut state = shared.state.lock();
        shared.work.wait_while(&mut state, |state| state.idle() && !state.closed);
        if state.idle() {
            return;
        }
        let batches = std::mem::take(&mut state.batches);
        let dropped = std::mem::take(&mut state.dropped);
        let poked = std::mem::take(&mut state.poked);
        let offered = state.offered;
        state.waiting_bytes = 0;
        drop(state);
        if poked {
            output.poked();
        }
        batches.iter().for_each(|batch| output.write(batch));
        if dropped > 0 {
            output.dropped(dropped);
        }
        shared.state.lock().done = offered;
        shared.progress.notify_all();
    }
}

/// Says that nobody empties the buffer any more, also when the thread panicked.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.progress.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    enum Seen {
        Lines(Day, String),
        Dropped(u64),
    }

    /// Waits for a permission before each write, and tells what it saw.
    struct Probe {
        permits: mpsc::Receiver<()>,
        seen: mpsc::Sender<Seen>,
    }

    impl Output for Probe {
        fn write(&mut self, batch: &Batch) {
            self.permits.recv().unwrap();
            self.seen.send(Seen::Lines(batch.day, String::from_utf8(batch.bytes.clone()).unwrap())).unwrap();
        }

        fn dropped(&mut self, lines: u64) {
            self.seen.send(Seen::Dropped(lines)).unwrap();
        }
    }

    #[test]
    fn a_stuck_output_costs_lines_but_holds_up_nobody() {
        let (permit, permits) = mpsc::channel();
        let (seen_tx, seen) = mpsc::channel();
        let writer = Writer::start("test", Probe { permits, seen: seen_tx });
        let line = format!("{}\n", "x".repeat(64 * 1024 - 1));
        // Far more than fits, while the first write is still waiting.
        for _ in 0..1_000 {
            writer.push(20_261_120, &line, false);
        }
        for _ in 0..1_000 {
            permit.send(()).unwrap();
        }
        assert!(writer.flush());
        drop(writer);
        let (mut written, mut dropped) = (0, 0);
        for event in seen {
            match event {
                Seen::Lines(_, text) => written += text.lines().count() as u64,
                Seen::Dropped(lines) => dropped += lines,
            }
        }
        assert_eq!(written + dropped, 1_000);
        assert!(dropped > 800, "{dropped}");
    }

    #[test]
    fn days_are_kept_apart_and_order_is_kept() {
        let (permit, permits) = mpsc::channel();
        let (seen_tx, seen) = mpsc::channel();
        let writer = Writer::start("test", Probe { permits, seen: seen_tx });
        for (day, line) in [(1, "a\n"), (1, "b\n"), (2, "c\n"), (1, "d\n")] {
            permit.send(()).unwrap();
            writer.push(day, line, false);
        }
        drop(writer);
        let mut text = String::new();
        for event in seen {
            match event {
                Seen::Lines(day, lines) => {
                    text += &lines.lines().map(|line| format!("{day}{line} ")).collect::<String>()
                }
                Seen::Dropped(lines) => panic!("{lines} lines dropped"),
            }
        }
        assert_eq!(text, "1a 1b 2c 1d ");
    }
}
