//! Tests of pools: limits, reuse of connections and their end.

use std::sync::Arc;
use std::time::Duration;

use super::super::fake::{Behaviour, Script, caller, caller_of, operation, pool, resource, until};
use crate::Reuse;

use super::super::{LiveResource, OperationOptions, OperationReply, Phase, PoolSettings, ResourceError};

async fn execute(resource: &Arc<LiveResource>, left_ms: u64) -> Result<OperationReply, ResourceError> {
    resource.execute(&caller(left_ms), operation("do", "x"), OperationOptions::default()).await
}

async fn execute_of(resource: &Arc<LiveResource>, module: &str) {
    let caller = caller_of(module, LONG);
    resource.execute(&caller, operation("do", "x"), OperationOptions::default()).await.unwrap();
}

const LONG: u64 = 60_000;
const SHORT: u64 = 50;

#[tokio::test]
async fn an_operation_is_a_transaction_of_its_own_and_its_connection_is_used_again() {
    let script = Script::new();
    let resource = resource("r", &script, pool(2), None);
    for _ in 0..2 {
        assert_eq!(execute(&resource, LONG).await.unwrap().body, "x");
    }
    assert_eq!(script.steps(), "connect begin execute commit begin execute commit");
    let snapshot = resource.snapshot();
    assert_eq!((snapshot.in_use, snapshot.free, snapshot.readings.requests), (0, 1, 2));
}

/// However short the time since it was used: on its return, and before its next use.
#[tokio::test]
async fn a_connection_that_says_that_it_is_used_up_is_not_used_again() {
    let script = Script::new();
    let resource = resource("r", &script, pool(1), None);
    script.set_used_up(true);
    assert!(execute(&resource, LONG).await.is_ok());
    assert_eq!((resource.snapshot().free, script.connections()), (0, 0), "it was not kept");
    script.set_used_up(false);
    assert!(execute(&resource, LONG).await.is_ok());
    assert_eq!(resource.snapshot().free, 1);
    // The other side goes while nobody uses it.
    script.set_used_up(true);
    assert!(execute(&resource, LONG).await.is_ok());
    assert_eq!((script.made(), script.connections_most()), (3, 1));
}

#[tokio::test]
async fn an_operation_that_cannot_be_needs_no_connection() {
    let script = Script::new();
    let resource = resource("r", &script, pool(1), None);
    let error = resource.execute(&caller(LONG), operation("unknown", ""), OperationOptions::default()).await;
    let error = error.unwrap_err();
    assert_eq!((&*error.participant, error.phase, error.recoverable), ("r", Phase::Check, true));
    assert_eq!(script.steps(), "");
}

/// Does one operation with this behaviour in one phase, and checks its error and the steps until then.
async fn check(phase: Phase, behaviour: Behaviour, code: &str, (recoverable, terminal): (bool, bool), steps: &str) {
    let script = Script::new();
    script.set(phase, behaviour);
    let resource = resource("r", &script, pool(1), None);
    let left = if behaviour == Behaviour::Hang { SHORT } else { LONG };
    let error = execute(&resource, left).await.unwrap_err();
    assert_eq!(
        (&*error.code, error.recoverable, error.terminal),
        (code, recoverable, terminal),
        "{phase} {behaviour:?}"
    );
    assert_eq!(script.steps(), steps, "{phase} {behaviour:?}");
    let kept = !terminal && phase != Phase::Connect;
    assert_eq!(resource.snapshot().free, usize::from(kept), "{phase} {behaviour:?}");
    // Its one permit is free again.
    script.set(phase, Behaviour::Work);
    assert!(execute(&resource, LONG).await.is_ok(), "{phase} {behaviour:?}");
}

#[tokio::test]
async fn what_fails_says_whether_anything_irreversible_happened_and_ends_its_connection_or_not() {
    let timed_out = ResourceError::TIMED_OUT;
    check(Phase::Connect, Behaviour::Refuse, "refused", (true, false), "connect disconnect").await;
    check(Phase::Connect, Behaviour::Break, "broken", (true, true), "connect disconnect").await;
    check(Phase::Connect, Behaviour::Hang, timed_out, (true, true), "connect disconnect").await;
    check(Phase::Connect, Behaviour::Panic, ResourceError::HOST_ERROR, (true, true), "connect disconnect").await;
    check(Phase::Begin, Behaviour::Refuse, "refused", (true, false), "connect begin").await;
    check(Phase::Begin, Behaviour::Break, "broken", (false, true), "connect begin disconnect").await;
    check(Phase::Execute, Behaviour::Refuse, "refused", (true, false), "connect begin execute rollback").await;
    check(Phase::Execute, Behaviour::Break, "broken", (false, true), "connect begin execute disconnect").await;
    check(Phase::Execute, Behaviour::Hang, timed_out, (false, true), "connect begin execute disconnect").await;
    check(
        Phase::Execute,
        Behaviour::Panic,
        ResourceError::HOST_ERROR,
        (false, true),
        "connect begin execute disconnect",
    )
    .await;
    check(Phase::Commit, Behaviour::Break, "broken", (false, true), "connect begin execute commit disconnect").await;
    check(Phase::Commit, Behaviour::Hang, timed_out, (false, true), "connect begin execute commit disconnect").await;
}

#[tokio::test]
async fn a_rollback_that_fails_ends_the_connection_and_does_not_hide_the_error() {
    let script = Script::new();
    script.set(Phase::Execute, Behaviour::Refuse);
    script.set(Phase::Rollback, Behaviour::Break);
    let resource = resource("r", &script, pool(1), None);
    let error = execute(&resource, LONG).await.unwrap_err();
    assert_eq!((&*error.code, error.phase, error.terminal), ("refused", Phase::Execute, true));
    assert_eq!(script.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_never_more_connections_than_its_size_whatever_fails() {
    let script = Script::new();
    let resource = resource("r", &script, PoolSettings { standby: 2, ..pool(3) }, None);
    let mut tasks = Vec::new();
    for task in 0..50_u64 {
        let (resource, script) = (resource.clone(), script.clone());
        tasks.push(tokio::spawn(async move {
            for round in 0..20 {
                let phase = [Phase::Connect, Phase::Execute, Phase::Commit, Phase::Acquire][fastrand::usize(0..4)];
                let behaviour =
                    [Behaviour::Work, Behaviour::Work, Behaviour::Break, Behaviour::Refuse, Behaviour::Panic]
                        [fastrand::usize(0..5)];
                script.set(phase, behaviour);
                // Some leave while they wait or work.
                let left = if (task + round) % 7 == 0 { 1 } else { LONG };
                let _ = execute(&resource, left).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(script.connections_most() <= 3, "{}", script.connections_most());
    for phase in [Phase::Connect, Phase::Execute, Phase::Commit, Phase::Acquire] {
        script.set(phase, Behaviour::Work);
    }
    until("the end of all work", || resource.snapshot().in_use == 0).await;
    assert!(execute(&resource, LONG).await.is_ok());
}

#[tokio::test]
async fn who_finds_no_connection_free_waits_until_the_deadline_and_no_longer() {
    let script = Script::new();
    let resource = resource("r", &script, pool(1), None);
    let gate = script.gate();
    let first = tokio::spawn({
        let resource = resource.clone();
        async move { execute(&resource, LONG).await }
    });
    until("the first in work", || resource.snapshot().in_use == 1).await;
    let error = execute(&resource, SHORT).await.unwrap_err();
    assert_eq!((&*error.code, error.phase), (ResourceError::TIMED_OUT, Phase::Acquire));
    assert!(error.recoverable && !error.terminal && error.text.contains("all 1 connections"), "{error}");
    gate.add_permits(2);
    assert!(first.await.unwrap().is_ok());
    assert!(execute(&resource, LONG).await.is_ok());
    assert_eq!(script.made(), 1);
}

#[tokio::test]
async fn too_little_time_is_declined_and_time_max_cuts_the_rest() {
    let script = Script::new();
    let time_min = Duration::from_secs(30);
    let declining = resource("r", &script, PoolSettings { time_min, ..pool(1) }, None);
    let error = execute(&declining, 10_000).await.unwrap_err();
    assert_eq!((&*error.code, error.phase, error.recoverable), (ResourceError::TIMED_OUT, Phase::Acquire, true));
    assert!(error.text.contains("min_time_ms"), "{error}");
    assert_eq!(script.steps(), "");
    let time_max = Some(Duration::from_millis(SHORT));
    let cutting = resource("r", &script, PoolSettings { time_max, ..pool(1) }, None);
    script.set(Phase::Execute, Behaviour::Hang);
    let caller = caller(LONG);
    let error = cutting.execute(&caller, operation("do", ""), OperationOptions::default()).await.unwrap_err();
    assert_eq!(error.code, ResourceError::TIMED_OUT);
    assert!(caller.request.deadline.left() > Duration::from_millis(LONG / 2));
}

#[tokio::test]
async fn a_connection_that_was_free_for_a_while_is_asked_before_it_is_used() {
    let script = Script::new();
    let resource = resource("r", &script, pool(1), None);
    assert!(execute(&resource, LONG).await.is_ok());
    script.forget();
    tokio::time::sleep(Duration::from_millis(1_010)).await;
    assert!(execute(&resource, LONG).await.is_ok());
    assert_eq!(script.steps(), "acquire begin execute commit");
    script.forget();
    script.set(Phase::Acquire, Behaviour::Break);
    tokio::time::sleep(Duration::from_millis(1_010)).await;
    assert!(execute(&resource, LONG).await.is_ok());
    assert_eq!(script.steps(), "acquire disconnect connect begin execute commit");
}

#[tokio::test]
async fn connections_end_when_they_are_unused_or_old() {
    let script = Script::new();
    let short = Duration::from_millis(SHORT);
    let idling = resource("r", &script, PoolSettings { idle_timeout: short, ..pool(2) }, None);
    assert!(execute(&idling, LONG).await.is_ok());
    until("the end of an unused connection", || script.connections() == 0).await;
    assert_eq!(idling.snapshot().free, 0);

    let script = Script::new();
    let ageing = resource("r", &script, PoolSettings { age_max: short, ..pool(2) }, None);
    let began = std::time::Instant::now();
    while began.elapsed() < 4 * short {
        assert!(execute(&ageing, LONG).await.is_ok());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // A connection that is always in use is replaced, too.
    assert!(script.made() > 1, "{}", script.made());
}

#[tokio::test]
async fn connections_are_kept_ready_and_replaced_when_they_are_taken() {
    let script = Script::new();
    let resource = resource("r", &script, PoolSettings { standby: 2, ..pool(3) }, None);
    until("two ready", || resource.snapshot().free == 2).await;
    let gate = script.gate();
    let working = tokio::spawn({
        let resource = resource.clone();
        async move { execute(&resource, LONG).await }
    });
    until("one more", || resource.snapshot().in_use == 1 && resource.snapshot().free == 2).await;
    gate.add_permits(1);
    assert!(working.await.unwrap().is_ok());
    assert_eq!(script.connections_most(), 3);
}

#[tokio::test]
async fn a_hanging_server_costs_its_own_pool_one_place_and_others_nothing() {
    let (hanging, working) = (Script::new(), Script::new());
    hanging.set(Phase::Connect, Behaviour::Hang);
    let settings = PoolSettings { standby: 1, ..pool(2) };
    let [stuck, fine] =
        [("stuck", &hanging), ("fine", &working)].map(|(name, script)| resource(name, script, settings, None));
    until("an attempt", || hanging.connections() == 1).await;
    until("one ready", || fine.snapshot().free == 1).await;
    assert_eq!(stuck.snapshot().in_use, 1);
    assert_eq!(execute(&stuck, SHORT).await.unwrap_err().phase, Phase::Connect);
    assert!(execute(&fine, LONG).await.is_ok());
}

#[tokio::test]
async fn a_resource_that_is_replaced_lets_its_work_end_and_keeps_nothing() {
    let script = Script::new();
    let resource = resource("r", &script, pool(1), None);
    let gate = script.gate();
    let working = tokio::spawn({
        let resource = resource.clone();
        async move { execute(&resource, LONG).await }
    });
    until("work", || resource.snapshot().in_use == 1).await;
    resource.close();
    gate.add_permits(1);
    assert!(working.await.unwrap().is_ok());
    assert_eq!(script.steps(), "connect begin execute commit disconnect");
}

#[tokio::test]
async fn a_long_reply_holds_its_connection_until_its_end() {
    let script = Script::new();
    let resource = resource("r", &script, pool(1), None);
    let open = async || {
        let caller = caller(LONG);
        resource.open(&caller, operation("do", "ab"), OperationOptions::default()).await.unwrap().1
    };
    let mut stream = open().await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "a");
    assert_eq!(resource.snapshot().in_use, 1);
    assert_eq!(stream.next().await.unwrap().unwrap(), "b");
    assert_eq!(stream.next().await, Ok(None));
    assert_eq!(stream.next().await, Ok(None));
    assert_eq!((resource.snapshot().in_use, resource.snapshot().free), (0, 1));
    // Dropped before its end, or broken, it ends the connection.
    drop(open().await);
    assert_eq!((script.connections(), resource.snapshot().in_use), (0, 0));
    let mut stream = open().await;
    script.set(Phase::Execute, Behaviour::Break);
    assert_eq!(stream.next().await.unwrap_err().participant, "r");
    assert_eq!(stream.next().await, Ok(None));
    assert_eq!((script.connections(), resource.snapshot().in_use), (0, 0));
}

#[tokio::test]
async fn what_is_left_in_a_connection_is_taken_away_before_its_next_use_and_after_the_reply() {
    let script = Script::new();
    script.set_reuse(Reuse::AfterReset, Behaviour::Work);
    let resource = resource("r", &script, pool(2), None);
    execute(&resource, LONG).await.unwrap();
    assert_eq!(script.steps(), "connect begin execute commit", "the reply does not wait for the reset");
    execute(&resource, LONG).await.unwrap();
    assert_eq!(script.steps(), "connect begin execute commit reset begin execute commit");
    until("the second reset", || script.steps().ends_with("commit reset")).await;
    assert_eq!((script.made(), resource.snapshot().free), (1, 1));
}

#[tokio::test]
async fn a_connection_that_cannot_be_reset_is_closed() {
    for behaviour in [Behaviour::Refuse, Behaviour::Break, Behaviour::Panic] {
        let script = Script::new();
        script.set_reuse(Reuse::AfterReset, behaviour);
        let resource = resource("r", &script, pool(1), None);
        for _ in 0..2 {
            execute(&resource, LONG).await.unwrap();
        }
        until("the second one's end", || script.connections() == 0).await;
        let once = "connect begin execute commit reset disconnect";
        assert_eq!(script.steps(), format!("{once} {once}"), "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_reset_that_hangs_costs_who_waits_no_more_than_the_deadline() {
    let script = Script::new();
    script.set_reuse(Reuse::AfterReset, Behaviour::Hang);
    let resource = resource("r", &script, pool(1), None);
    execute(&resource, LONG).await.unwrap();
    let error = execute(&resource, SHORT).await.unwrap_err();
    assert_eq!((&*error.code, error.recoverable), (ResourceError::TIMED_OUT, true));
    until("its end", || script.connections() == 0).await;
    execute(&resource, LONG).await.unwrap();
    assert_eq!(script.connections_most(), 1);
}

#[tokio::test]
async fn a_connection_that_cannot_be_used_again_is_closed_when_it_is_given_back() {
    let script = Script::new();
    script.set_reuse(Reuse::Never, Behaviour::Work);
    let resource = resource("r", &script, pool(1), None);
    execute(&resource, LONG).await.unwrap();
    assert_eq!(script.steps(), "connect begin execute commit disconnect");
}

#[tokio::test]
async fn modules_that_are_kept_apart_never_share_a_connection() {
    let script = Script::new();
    script.keep_modules_apart();
    let one = resource("r", &script, pool(1), None);
    execute_of(&one, "a").await;
    execute_of(&one, "a").await;
    execute_of(&one, "b").await;
    let use_of = "begin execute commit";
    assert_eq!(script.steps(), format!("connect {use_of} {use_of} disconnect connect {use_of}"));

    let script = Script::new();
    script.keep_modules_apart();
    let two = resource("r", &script, pool(2), None);
    for _ in 0..5 {
        execute_of(&two, "a").await;
        execute_of(&two, "b").await;
    }
    assert_eq!((script.made(), script.connections_most()), (2, 2), "there is room for one each");
    execute_of(&two, "c").await;
    assert_eq!((script.made(), script.connections_most(), two.snapshot().free), (3, 2, 2));
}
