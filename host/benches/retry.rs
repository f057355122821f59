//! Measures retried calls: durable accepts, and the cost of a call from its acceptance to its end, with short and long
//! queues.
//!
//! `cargo bench -p wasmcage-benches --bench retry`; `WASMCAGE_BENCH_PENDING` is the length of the long queue, 1,000,000
//! if not set.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench stops at the first thing that is wrong, and prints"
)]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use wasmcage_benches::median;
use wasmcage_core::request::Deadline;
use wasmcage_store::{AttemptEnd, CallStart, DEFAULT_QUEUE, NewCall, QueueRules, Store, StoreSettings, StoredTarget};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CALLERS: usize = 64;
const ACCEPTS: usize = 40_000;
/// How many calls are measured, one after the other.
const CALLS: usize = 300;
const RULES: QueueRules = QueueRules {
    keep_order: false,
    interval_max: Duration::from_secs(120),
    attempts_max: None,
    retention: Duration::from_secs(3 * 24 * 3600),
    dead_letters: true,
};

fn main() {
    let pending = std::env::var("WASMCAGE_BENCH_PENDING").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::new("bench", &directory.path().join("state"), StoreSettings { minimum_free_bytes: 0 }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        println!("| retried calls, 200 bytes each | |\n|---|---|");
        let begun = Instant::now();
        accept_many(&store, ACCEPTS, None).await;
        let rate = ACCEPTS as f64 / begun.elapsed().as_secs_f64();
        println!("| durable accepts per second, {CALLERS} callers | {rate:.0} |");
        row(&store, ACCEPTS).await;
        // Half of the calls are ready, half wait for their time.
        accept_many(&store, (pending - ACCEPTS) / 2, Some(Duration::from_secs(3600))).await;
        accept_many(&store, (pending - ACCEPTS) / 2, None).await;
        row(&store, pending).await;
    });
}

async fn row(store: &Store, pending: usize) {
    let (mut accepts, mut makes) = (Vec::new(), Vec::new());
    for number in 0..CALLS {
        let begun = Instant::now();
        store.accept_call(call(format!("measured{pending}-{number}"), None), patience()).await.unwrap();
        accepts.push(begun.elapsed());
        let begun = Instant::now();
        assert!(store.queue_status(DEFAULT_QUEUE, &RULES).unwrap().due);
        let calls = store.begin_calls(DEFAULT_QUEUE, RULES, 1, patience()).await.unwrap();
        let [CallStart::Attempt { sequence, .. }] = &calls[..] else { panic!("nothing to do") };
        store.call_message(*sequence).unwrap().unwrap();
        store.finish_call(DEFAULT_QUEUE, RULES, *sequence, AttemptEnd::Done, patience()).await.unwrap();
        makes.push(begun.elapsed());
    }
    let us = |durations| median(durations).as_secs_f64() * 1e6;
    println!("| one accept, {pending} pending, us | {:.0} |", us(accepts));
    println!("| one call begun and done, {pending} pending, us | {:.0} |", us(makes));
    println!("| memory of the process, {pending} pending, MiB | {} |", resident_mib());
}

async fn accept_many(store: &Arc<Store>, count: usize, not_before: Option<Duration>) {
    let tasks = (0..CALLERS).map(|caller| {
        let store = store.clone();
        tokio::spawn(async move {
            for number in (caller..count).step_by(CALLERS) {
                let id = format!("{number}-{}", not_before.is_some());
                let id = format!("{id}-{count}");
                store.accept_call(call(id, not_before), patience()).await.unwrap();
            }
        })
    });
    join_all(tasks).await.into_iter().for_each(|done| done.unwrap());
}

fn call(id: String, not_before: Option<Duration>) -> NewCall {
    NewCall {
        queue: DEFAULT_QUEUE.into(),
        id,
        target: StoredTarget { origin: "bench".into(), cage: None, module: "work".into(), function: "handle".into() },
        message: vec![7; 200],
        expires: None,
        not_before: not_before.map(|after| SystemTime::now() + after),
        attempts_max: None,
        priority: 0,
    }
}

fn patience() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// The process's own memory, without pages of files.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib >> 10)
}
