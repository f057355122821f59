//! Tests of the cache of reads.

use std::sync::Arc;
use std::time::Duration;

use super::super::fake::{Behaviour, Script, caller, operation, pool, resource, until};
use super::super::{
    CacheSettings, Caching, LiveResource, OperationOptions, OperationReply, Phase, PoolSettings, ResourceError,
};

const LONG: u64 = 60_000;

fn cached(script: &Arc<Script>, settings: PoolSettings) -> Arc<LiveResource> {
    resource("r", script, settings, Some(CacheSettings { size: 1 << 20, ttl: Duration::from_secs(60) }))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn reading(reads: &[&str]) -> Caching {
    Caching { reads: names(reads), ..Caching::default() }
}

fn writing(writes: &[&str]) -> Caching {
    Caching { writes: names(writes), ..Caching::default() }
}

async fn ask(resource: &Arc<LiveResource>, body: &str, caching: Caching) -> Result<OperationReply, ResourceError> {
    let options = OperationOptions { caching: Some(caching), ..OperationOptions::default() };
    resource.execute(&caller(LONG), operation("do", body), options).await
}

/// Number of executions so far.
fn executions(script: &Script) -> usize {
    script.steps().matches("execute").count()
}

#[tokio::test]
async fn a_reply_is_kept_for_who_asks_the_same_and_needs_no_connection() {
    let script = Script::new();
    let resource = cached(&script, pool(1));
    assert_eq!(ask(&resource, "x", reading(&[])).await.unwrap().body, "x");
    script.set(Phase::Execute, Behaviour::Break);
    let gate = script.gate();
    let holding = tokio::spawn({
        let resource = resource.clone();
        async move { resource.execute(&caller(LONG), operation("do", "x"), OperationOptions::default()).await }
    });
    until("the pool in use", || resource.snapshot().in_use == 1).await;
    assert_eq!(ask(&resource, "x", reading(&[])).await.unwrap().body, "x");
    gate.add_permits(100);
    assert!(holding.await.unwrap().is_err());
    // Another operation, another key, another beginning, no caching, and what is told to pass by: all new.
    assert!(ask(&resource, "y", reading(&[])).await.is_err());
    assert!(ask(&resource, "x", Caching { key: Some("k".into()), ..reading(&[]) }).await.is_err());
    assert!(ask(&resource, "x", Caching { bypass: true, ..reading(&[]) }).await.is_err());
    let begin = vec![("isolation".to_owned(), "serializable".to_owned())];
    let options = OperationOptions { caching: Some(reading(&[])), begin, ..OperationOptions::default() };
    assert!(resource.execute(&caller(LONG), operation("do", "x"), options).await.is_err());
    let cache = resource.snapshot().cache.unwrap();
    assert_eq!((cache.hits, cache.misses), (1, 4));
}

#[tokio::test]
async fn without_a_cache_nothing_is_kept() {
    let script = Script::new();
    let resource = resource("r", &script, pool(1), None);
    for _ in 0..2 {
        ask(&resource, "x", reading(&[])).await.unwrap();
    }
    assert_eq!(executions(&script), 2);
}

#[tokio::test]
async fn a_write_forgets_what_depends_on_it_whatever_becomes_of_it() {
    for (behaviour, ends_well) in
        [(Behaviour::Work, true), (Behaviour::Refuse, false), (Behaviour::Break, false), (Behaviour::Panic, false)]
    {
        let script = Script::new();
        let resource = cached(&script, pool(1));
        ask(&resource, "x", reading(&["orders", "names"])).await.unwrap();
        ask(&resource, "y", reading(&["other"])).await.unwrap();
        script.set(Phase::Execute, behaviour);
        assert_eq!(ask(&resource, "w", writing(&["orders"])).await.is_ok(), ends_well);
        script.set(Phase::Execute, Behaviour::Work);
        script.forget();
        ask(&resource, "y", reading(&["other"])).await.unwrap();
        assert_eq!(executions(&script), 0, "{behaviour:?}");
        ask(&resource, "x", reading(&["orders", "names"])).await.unwrap();
        assert_eq!(executions(&script), 1, "{behaviour:?}");
        // A write is never answered from the cache.
        ask(&resource, "w", writing(&["orders"])).await.unwrap();
        ask(&resource, "w", writing(&["orders"])).await.unwrap();
        assert_eq!(executions(&script), 3, "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_read_that_overlaps_a_write_is_not_kept() {
    for read_first in [true, false] {
        let script = Script::new();
        let resource = cached(&script, pool(2));
        let gate = script.gate();
        let start = |body: &'static str, caching| {
            let resource = resource.clone();
            tokio::spawn(async move { ask(&resource, body, caching).await })
        };
        let both = [("x", reading(&["orders"])), ("w", writing(&["orders"]))];
        let [first, second] =
            if read_first { both } else { both.into_iter().rev().collect::<Vec<_>>().try_into().unwrap() };
        let first = start(first.0, first.1);
        until("the first", || resource.snapshot().in_use == 1).await;
        let second = start(second.0, second.1);
        until("the second", || resource.snapshot().in_use == 2).await;
        gate.add_permits(2);
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        script.forget();
        gate.add_permits(2);
        ask(&resource, "x", reading(&["orders"])).await.unwrap();
        assert_eq!(executions(&script), 1, "{read_first}");
        ask(&resource, "x", reading(&["orders"])).await.unwrap();
        assert_eq!(executions(&script), 1, "{read_first}");
    }
}

#[tokio::test]
async fn one_read_is_done_for_all_who_ask_at_the_same_time() {
    let script = Script::new();
    let resource = cached(&script, pool(16));
    let gate = script.gate();
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let resource = resource.clone();
            tokio::spawn(async move { ask(&resource, "x", reading(&[])).await })
        })
        .collect();
    until("a leader", || resource.snapshot().in_use == 1).await;
    gate.add_permits(1);
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().body, "x");
    }
    assert_eq!((executions(&script), script.made()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_fails_or_leaves_lets_the_next_one_do_it() {
    let script = Script::new();
    let resource = cached(&script, pool(16));
    script.set(Phase::Execute, Behaviour::Break);
    let gate = script.gate();
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let resource = resource.clone();
            tokio::spawn(async move { ask(&resource, "x", reading(&[])).await })
        })
        .collect();
    for done in 1..=3 {
        gate.add_permits(1);
        until("a failure", || executions(&script) == done).await;
    }
    // One that leaves in the middle of it.
    until("the next", || resource.snapshot().in_use == 1).await;
    let (mut ended, mut waiting): (Vec<_>, Vec<_>) = (Vec::new(), Vec::new());
    until("the three's end", || tasks.iter().filter(|task| task.is_finished()).count() == 3).await;
    for task in tasks {
        if task.is_finished() { ended.push(task) } else { waiting.push(task) }
    }
    for task in ended {
        assert_eq!(task.await.unwrap().unwrap_err().code, "broken");
    }
    script.set(Phase::Execute, Behaviour::Work);
    gate.add_permits(1);
    for task in waiting {
        assert_eq!(task.await.unwrap().unwrap().body, "x");
    }
    assert_eq!(executions(&script), 4);
}

#[tokio::test]
async fn who_waits_for_anothers_read_until_the_deadline_fails_harmlessly() {
    let script = Script::new();
    let resource = cached(&script, pool(2));
    let gate = script.gate();
    let leader = tokio::spawn({
        let resource = resource.clone();
        async move { ask(&resource, "x", reading(&[])).await }
    });
    until("a leader", || resource.snapshot().in_use == 1).await;
    let options = OperationOptions { caching: Some(reading(&[])), ..OperationOptions::default() };
    let error = resource.execute(&caller(20), operation("do", "x"), options).await.unwrap_err();
    assert_eq!((&*error.code, error.recoverable, error.terminal), (ResourceError::TIMED_OUT, true, false));
    // A leader that is gone is none.
    leader.abort();
    gate.add_permits(1);
    assert!(ask(&resource, "x", reading(&[])).await.is_ok());
}

#[tokio::test]
async fn replies_last_as_long_as_the_resource_or_the_caller_says() {
    let script = Script::new();
    let settings = CacheSettings { size: 1 << 20, ttl: Duration::from_millis(50) };
    let short = resource("r", &script, pool(1), Some(settings));
    ask(&short, "x", reading(&[])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    ask(&short, "x", reading(&[])).await.unwrap();
    assert_eq!(executions(&script), 2);

    let script = Script::new();
    let long = cached(&script, pool(1));
    ask(&long, "x", reading(&[])).await.unwrap();
    ask(&long, "x", Caching { ttl: Some(Duration::ZERO), ..reading(&[]) }).await.unwrap();
    assert_eq!(executions(&script), 2);
    ask(&long, "x", reading(&[])).await.unwrap();
    assert_eq!(executions(&script), 2);
}

#[tokio::test]
async fn what_cannot_be_asked_of_a_cache_is_said() {
    let script = Script::new();
    let resource = cached(&script, pool(1));
    let check = async |caching, text: &str| {
        let error = ask(&resource, "x", caching).await.unwrap_err();
        assert_eq!((&*error.code, error.phase), (ResourceError::BAD_OPERATION, Phase::Check));
        assert!(error.text.contains(text), "{error}");
    };
    check(Caching { writes: names(&["a"]), ..reading(&["b"]) }, "both reads and writes").await;
    check(reading(&["a"; 65]), "more than 64 names").await;
    check(writing(&[&"a".repeat(257)]), "over 256 bytes").await;
    assert_eq!(script.steps(), "");
}
