//! Measures the durable store: writes by many callers and by one, compared with a disk sync for each write, and reads;
//! and the same by a module.
//!
//! `cargo bench -p wasmcage-benches --bench state` after `tests/run guests`. Files are in the directory for temporary
//! files, so `TMPDIR` chooses the disk.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redb::{Database, TableDefinition};
use wasmcage_benches::{BenchCage, median};
use wasmcage_core::request::{Deadline, Facts, Payload, RequestContext};
use wasmcage_store::{Quota, StateValue, Step, Store, StoreSettings};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VALUE_BYTES: usize = 200;
const CALLERS: usize = 64;
/// The time of each measurement.
const ROUND: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;
/// How often a module repeats an operation in each call.
const GETS: u32 = 20_000;
const SETS: u32 = 200;
/// A limit that is long enough even if others use the disk, too.
const PATIENCE: Duration = Duration::from_secs(60);
const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("keys");

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Store::new("bench", &directory.path().join("state"), StoreSettings { minimum_free_bytes: 0 });
    let bench = Bench { store: Arc::new(store), runtime };
    let mut rows: [Vec<Measured>; 6] = Default::default();
    for _ in 0..ROUNDS {
        rows[0].push(syncs(directory.path()));
        rows[1].push(commits(directory.path()));
        rows[2].push(bench.writes(1, Bench::set));
        rows[3].push(bench.writes(CALLERS, Bench::set));
        rows[4].push(bench.writes(CALLERS, Bench::push));
        rows[5].push(bench.reads());
    }
    println!("| {VALUE_BYTES} bytes, medians of {ROUNDS} | per second | p50 us |\n|---|---|---|");
    let names = [
        "write and fdatasync, one after the other".to_owned(),
        "redb, a commit for each write".to_owned(),
        "durable set, 1 caller".to_owned(),
        format!("durable set, {CALLERS} callers"),
        format!("durable push to one queue, {CALLERS} callers"),
        "get, 1 caller".to_owned(),
    ];
    let mut middle = Vec::new();
    for (name, measured) in names.iter().zip(rows) {
        let mut rates: Vec<_> = measured.iter().map(|measured| measured.per_second).collect();
        rates.sort_by(f64::total_cmp);
        let (rate, p50) = (rates[rates.len() / 2], median(measured.iter().map(|measured| measured.p50).collect()));
        println!("| {name} | {rate:.0} | {:.1} |", p50.as_secs_f64() * 1e6);
        middle.push((rate, p50.as_secs_f64()));
    }
    let [sync, commit, one, many, ..] = middle.as_slice() else { return };
    println!(
        "\n{CALLERS} callers: {:.1} x a sync for each, {:.1} x a commit for each",
        many.0 / sync.0,
        many.0 / commit.0
    );
    println!("1 caller: p50 {:.2} x a sync", one.1 / sync.1);
    guests();
}

/// Measures the same through a module. It repeats an operation in each call, so that the call itself hardly counts.
fn guests() {
    let Some(cage) = BenchCage::start(&[("state_user", "user")], "") else {
        println!("not run: state of a module; the guests are not built");
        return;
    };
    let guest = Guest(cage);
    let (mut gets, mut sets) = (Vec::new(), Vec::new());
    guest.calls(1, "set_repeatedly", SETS);
    for _ in 0..ROUNDS {
        gets.push(guest.calls(1, "get_repeatedly", GETS) / GETS);
        sets.push(guest.calls(CALLERS, "set_repeatedly", SETS));
    }
    let rate = f64::from(SETS) * CALLERS as f64 / median(sets).as_secs_f64();
    println!("\n| a module, {VALUE_BYTES} bytes, medians of {ROUNDS} | |\n|---|---|");
    println!("| get, us | {:.2} |", median(gets).as_secs_f64() * 1e6);
    println!("| durable set, {CALLERS} callers, per second | {rate:.0} |");
}

struct Guest(BenchCage);

impl Guest {
    /// The time of so many concurrent calls, each of which repeats `function` so many times.
    fn calls(&self, callers: usize, function: &str, times: u32) -> Duration {
        let dispatcher = self.0.host().cage("bench").unwrap().dispatcher().clone();
        let begun = Instant::now();
        let calls = (0..callers).map(|caller| {
            let (dispatcher, function) = (dispatcher.clone(), function.to_owned());
            let arguments = match &*function {
                "get_repeatedly" => format!("{{\"args\":[\"k{caller}/0\",{times}]}}"),
                _ => format!("{{\"args\":[\"k{caller}\",{VALUE_BYTES},{times}]}}"),
            };
            let arguments = Payload::Json(arguments);
            let context = RequestContext::new("bench".into(), "bench", PATIENCE, Arc::new(Facts::default()));
            self.0.host().lanes().next().spawn(async move {
                dispatcher.call(Arc::new(context), "user", function, arguments).await.unwrap();
            })
        });
        let calls: Vec<_> = calls.collect();
        calls.into_iter().for_each(|call| self.0.runtime.block_on(call).unwrap());
        begun.elapsed()
    }
}

struct Measured {
    per_second: f64,
    p50: Duration,
}

impl Measured {
    fn of(started: Instant, durations: Vec<Duration>) -> Self {
        Self { per_second: durations.len() as f64 / started.elapsed().as_secs_f64(), p50: median(durations) }
    }
}

fn repeat(mut work: impl FnMut(usize)) -> Measured {
    let (started, mut durations) = (Instant::now(), Vec::new());
    while started.elapsed() < ROUND {
        let begun = Instant::now();
        work(durations.len());
        durations.push(begun.elapsed());
    }
    Measured::of(started, durations)
}

/// Measures syncs of a file of constant size, such as a log that is written in place: the lower limit for durable
/// writes.
fn syncs(directory: &Path) -> Measured {
    let file = std::fs::File::create(directory.join("log")).unwrap();
    file.write_all_at(&vec![1; 16 << 20], 0).unwrap();
    file.sync_all().unwrap();
    repeat(|number| {
        file.write_all_at(&[2; VALUE_BYTES], (number % 4_096 * 4_096) as u64).unwrap();
        file.sync_data().unwrap();
    })
}

fn commits(directory: &Path) -> Measured {
    let database = Database::create(directory.join("commits.redb")).unwrap();
    repeat(|number| {
        let transaction = database.begin_write().unwrap();
        let key = format!("k{}", number % 10_000);
        transaction.open_table(TABLE).unwrap().insert(key.as_bytes(), [2; VALUE_BYTES].as_slice()).unwrap();
        transaction.commit().unwrap();
    })
}

struct Bench {
    store: Arc<Store>,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    fn set(caller: usize, number: usize) -> Step {
        let value = StateValue::Bytes(vec![2; VALUE_BYTES]);
        Step::Set(format!("k{}", (caller * 1_000 + number) % 10_000), value)
    }

    fn push(_caller: usize, _number: usize) -> Step {
        Step::Push("q".to_owned(), StateValue::Bytes(vec![2; VALUE_BYTES]))
    }

    fn writes(&self, callers: usize, step: fn(usize, usize) -> Step) -> Measured {
        let started = Instant::now();
        let tasks = (0..callers).map(|caller| {
            let store = self.store.clone();
            self.runtime.spawn(async move {
                let mut durations = Vec::new();
                while started.elapsed() < ROUND {
                    let begun = Instant::now();
                    let deadline = Deadline::after(PATIENCE);
                    let steps = vec![step(caller, durations.len())];
                    store.transact("m", Quota::default(), steps, None, deadline).await.unwrap();
                    durations.push(begun.elapsed());
                }
                durations
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let durations = tasks.into_iter().flat_map(|task| self.runtime.block_on(task).unwrap()).collect();
        Measured::of(started, durations)
    }

    fn reads(&self) -> Measured {
        repeat(|number| {
            let _value = self.store.get("m", &format!("k{}", number % 1_000)).unwrap();
        })
    }
}
