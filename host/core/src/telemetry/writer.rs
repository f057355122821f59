//! A bounded queue of log lines and a thread that writes them, so that no disk and no terminal can block the threads that log.
//! When the queue is full, lines are dropped and counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::clock::Day;

/// Most bytes of lines in the queue; the batches that are being written may take as much again.
const QUEUED_BYTES_MAX: usize = 4 << 20;
/// How long a flush, or the end of a log, waits for a disk that does not answer.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Whole lines of one day.
pub(super) struct Batch {
    pub day: Day,
    pub bytes: Vec<u8>,
    /// At least one of the lines has level error.
    pub urgent: bool,
}

/// Writes lines, and handles its own failures.
pub(super) trait LineOutput: Send + 'static {
    fn write(&mut self, batch: &Batch);
    /// Reports that so many lines were dropped because the queue was full.
    fn dropped(&mut self, lines: u64);
    /// Applies settings that have changed.
    fn settings_changed(&mut self) {}
}

#[derive(Default)]
struct QueueState {
    batches: VecDeque<Batch>,
    queued_bytes: usize,
    dropped: u64,
    settings_changed: bool,
    closed: bool,
    /// Number of lines that were ever pushed.
    pushed: u64,
    /// How many of those are written or dropped.
    done: u64,
    /// The thread has ended.
    ended: bool,
}

impl QueueState {
    fn idle(&self) -> bool {
        self.batches.is_empty() && self.dropped == 0 && !self.settings_changed
    }
}

#[derive(Default)]
struct LineQueue {
    state: Mutex<QueueState>,
    work: Condvar,
    progress: Condvar,
}

/// Dropping it writes the queued lines, up to a timeout.
pub(super) struct LogWriter {
    queue: Arc<LineQueue>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    pub(super) fn start(name: &str, output: impl LineOutput) -> Self {
        let queue = Arc::<LineQueue>::default();
        let thread_queue = queue.clone();
        let thread =
            std::thread::Builder::new().name(format!("log-{name}")).spawn(move || run(&thread_queue, output)).ok();
        if thread.is_none() {
            // Without its thread the log loses all lines; the cage goes on.
            queue.state.lock().ended = true;
            super::terminal::write_stderr(format_args!(
                "the thread for the log of {name} cannot be started, its lines are lost"
            ));
        }
        Self { queue, thread }
    }

    /// Queues a line, which ends with a newline.
    pub(super) fn push(&self, day: Day, line: &str, urgent: bool) {
        let mut state = self.queue.state.lock();
        if state.ended {
            return;
        }
        state.pushed += 1;
        let was_idle = state.idle();
        if state.queued_bytes + line.len() > QUEUED_BYTES_MAX {
            state.dropped += 1;
        } else {
            state.queued_bytes += line.len();
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
            self.queue.work.notify_one();
        }
    }

    pub(super) fn settings_changed(&self) {
        self.queue.state.lock().settings_changed = true;
        self.queue.work.notify_one();
    }

    /// Waits until all lines pushed so far are written or dropped. Returns false when that took too long.
    pub(super) fn flush(&self) -> bool {
        let mut state = self.queue.state.lock();
        let target = state.pushed;
        let waiting = |state: &mut QueueState| state.done < target && !state.ended;
        !self.queue.progress.wait_while_for(&mut state, waiting, FLUSH_TIMEOUT).timed_out()
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let mut state = self.queue.state.lock();
        state.closed = true;
        self.queue.work.notify_one();
        let ended = !self.queue.progress.wait_while_for(&mut state, |state| !state.ended, FLUSH_TIMEOUT).timed_out();
        drop(state);
        if ended {
            // If the thread panicked, the panic has been printed.
            let _ = thread.join();
        }
    }
}

fn run(queue: &LineQueue, mut output: impl LineOutput) {
    let _ended = EndGuard(queue);
    loop {
        let mut state = queue.state.lock();
        queue.work.wait_while(&mut state, |state| state.idle() && !state.closed);
        if state.idle() {
            return;
        }
        let batches = std::mem::take(&mut state.batches);
        let dropped = std::mem::take(&mut state.dropped);
        let settings_changed = std::mem::take(&mut state.settings_changed);
        let pushed = state.pushed;
        state.queued_bytes = 0;
        drop(state);
        if settings_changed {
            output.settings_changed();
        }
        batches.iter().for_each(|batch| output.write(batch));
        if dropped > 0 {
            output.dropped(dropped);
        }
        queue.state.lock().done = pushed;
        queue.progress.notify_all();
    }
}

/// Marks the end of the thread when it is dropped, also by a panic.
struct EndGuard<'a>(&'a LineQueue);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.state.lock().ended = true;
        self.0.progress.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    enum ProbeEvent {
        Lines(Day, String),
        Dropped(u64),
    }

    /// Waits for a permit before each write, and sends what it was given.
    struct ProbeOutput {
        permits: mpsc::Receiver<()>,
        seen: mpsc::Sender<ProbeEvent>,
    }

    impl LineOutput for ProbeOutput {
        fn write(&mut self, batch: &Batch) {
            self.permits.recv().unwrap();
            self.seen.send(ProbeEvent::Lines(batch.day, String::from_utf8(batch.bytes.clone()).unwrap())).unwrap();
        }

        fn dropped(&mut self, lines: u64) {
            self.seen.send(ProbeEvent::Dropped(lines)).unwrap();
        }
    }

    #[test]
    fn a_stuck_output_costs_lines_but_holds_up_nobody() {
        let (permit, permits) = mpsc::channel();
        let (seen_tx, seen) = mpsc::channel();
        let writer = LogWriter::start("test", ProbeOutput { permits, seen: seen_tx });
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
                ProbeEvent::Lines(_, text) => written += text.lines().count() as u64,
                ProbeEvent::Dropped(lines) => dropped += lines,
            }
        }
        assert_eq!(written + dropped, 1_000);
        assert!(dropped > 800, "{dropped}");
    }

    #[test]
    fn days_are_kept_apart_and_order_is_kept() {
        let (permit, permits) = mpsc::channel();
        let (seen_tx, seen) = mpsc::channel();
        let writer = LogWriter::start("test", ProbeOutput { permits, seen: seen_tx });
        for (day, line) in [(1, "a\n"), (1, "b\n"), (2, "c\n"), (1, "d\n")] {
            permit.send(()).unwrap();
            writer.push(day, line, false);
        }
        drop(writer);
        let mut text = String::new();
        for event in seen {
            match event {
                ProbeEvent::Lines(day, lines) => {
                    text += &lines.lines().map(|line| format!("{day}{line} ")).collect::<String>()
                }
                ProbeEvent::Dropped(lines) => panic!("{lines} lines dropped"),
            }
        }
        assert_eq!(text, "1a 1b 2c 1d ");
    }
}
