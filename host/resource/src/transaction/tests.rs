//! Tests of policies, phases and errors of transactions, with fake resources and a store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use super::*;
use crate::fake::{Behaviour, Script, caller, operation, pool, resource, until};
use crate::{CacheSettings, Caching, LiveResource, OperationOptions, PoolSettings};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_store::{Quota, StateValue, Step, StepResult, Store, StoreSettings};

const LONG: u64 = 60_000;

/// What the transactions of one test need.
struct TestSetup {
    store: Arc<Store>,
    background: TaskTracker,
    _directory: TempDir,
}

impl TestSetup {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::new("test", directory.path(), StoreSettings { minimum_free_bytes: 0 }));
        Self { store, background: TaskTracker::new(), _directory: directory }
    }

    fn transaction_of(&self, sync_commit: bool, left_ms: u64) -> Transaction {
        let store = ModuleStore { store: self.store.clone(), module: "test".into(), quota: Quota::default() };
        let (background, tasks) = (self.background.clone(), wasmcage_core::task::Tasks::new("test"));
        let context = TransactionContext { caller: caller(left_ms), store, background, tasks };
        Transaction::new(TransactionOptions { sync_commit, timeout: None }, context)
    }

    fn transaction(&self) -> Transaction {
        self.transaction_of(true, LONG)
    }

    fn number(&self, key: &str) -> Option<StateValue> {
        self.store.get("test", key).unwrap()
    }

    /// Waits until all background work has ended.
    async fn quiet(&self) {
        self.background.close();
        self.background.wait().await;
    }
}

fn operating(resource: &Arc<LiveResource>) -> Participant {
    let operation = operation("do", "x");
    Participant::Operation { resource: resource.clone(), operation, begin: Vec::new(), writes: Vec::new() }
}

fn one(number: i64) -> Option<StateValue> {
    Some(StateValue::Json(number.to_string()))
}

fn increment(key: &str) -> Participant {
    Participant::State(vec![Step::Increment(key.into(), 1)])
}

/// Makes a fake resource and its script.
fn fake(name: &str) -> (Arc<Script>, Arc<LiveResource>) {
    let script = Script::new();
    let resource = resource(name, &script, pool(4), None);
    (script, resource)
}

#[tokio::test]
async fn all_take_effect_and_their_connections_are_used_again() {
    let place = TestSetup::new();
    let ((a, first), (b, second)) = (fake("a"), fake("b"));
    for round in 1..=2 {
        let mut transaction = place.transaction();
        assert_eq!(transaction.add(operating(&first), 1), 0);
        assert_eq!(transaction.add(increment("count"), 1), 1);
        assert_eq!(transaction.add(operating(&second), 1), 2);
        let results = transaction.execute(Policy::All).await.unwrap();
        assert!(matches!(&results[0], Some(Ok(ParticipantOutput::Reply(reply))) if reply.body == "x"), "{results:?}");
        assert_eq!(results[1], Some(Ok(ParticipantOutput::State(vec![StepResult::Number(round)]))));
        assert_eq!(place.number("count"), one(round));
    }
    for script in [a, b] {
        assert_eq!(script.steps(), "connect begin execute commit begin execute commit");
    }
    assert_eq!(place.transaction().execute(Policy::All).await, Ok(Vec::new()));
}

#[tokio::test]
async fn the_first_failure_rolls_the_others_back_whatever_its_position() {
    let place = TestSetup::new();
    let ((a, working), (b, slow), (c, failing)) = (fake("working"), fake("slow"), fake("failing"));
    b.set(Phase::Execute, Behaviour::Hang);
    c.set(Phase::Execute, Behaviour::Refuse);
    let c_gate = c.gate();
    let mut transaction = place.transaction();
    for participant in [operating(&working), increment("count"), operating(&slow), operating(&failing)] {
        transaction.add(participant, 1);
    }
    let executing = tokio::spawn(async move { transaction.execute(Policy::All).await });
    until("both at work", || a.steps() == "connect begin execute" && b.steps() == "connect begin execute").await;
    c_gate.add_permits(1);
    let error = executing.await.unwrap().unwrap_err();
    assert_eq!((&*error.participant, error.index, error.phase), ("failing", 3, Phase::Execute));
    assert!(error.recoverable && !error.terminal, "{error:?}");
    place.quiet().await;
    assert_eq!(a.steps(), "connect begin execute rollback");
    // A participant in the middle of a step cannot roll back.
    assert_eq!(b.steps(), "connect begin execute disconnect");
    assert_eq!(c.steps(), "connect begin execute rollback");
    assert_eq!(place.number("count"), None);
    assert_eq!((a.connections(), c.connections()), (1, 1));
}

/// Runs a transaction of two participants, of which the second behaves like this, and checks its error and the steps of both.
async fn check(
    phase: Phase,
    behaviour: Behaviour,
    code: &str,
    (recoverable, terminal): (bool, bool),
    steps: [&str; 2],
) {
    let place = TestSetup::new();
    let ((a, first), (b, second)) = (fake("first"), fake("second"));
    b.set(phase, behaviour);
    let left = if behaviour == Behaviour::Hang && phase != Phase::Commit { 200 } else { LONG };
    let mut transaction = place.transaction_of(true, left);
    transaction.add(operating(&first), 1);
    transaction.add(operating(&second), 1);
    let error = transaction.execute(Policy::All).await.unwrap_err();
    assert_eq!((&*error.participant, error.index, &*error.code), ("second", 1, code), "{phase} {behaviour:?}");
    assert_eq!(
        (error.phase, error.recoverable, error.terminal),
        (phase, recoverable, terminal),
        "{phase} {behaviour:?}"
    );
    place.quiet().await;
    assert_eq!([a.steps(), b.steps()], steps, "{phase} {behaviour:?}");
}

#[tokio::test]
async fn errors_say_who_failed_in_what_and_whether_anything_irreversible_happened() {
    let done = "connect begin execute commit";
    let undone = "connect begin execute rollback";
    check(Phase::Connect, Behaviour::Refuse, "refused", (true, false), [undone, "connect disconnect"]).await;
    check(Phase::Connect, Behaviour::Hang, ResourceError::TIMED_OUT, (true, true), [undone, "connect disconnect"])
        .await;
    check(Phase::Begin, Behaviour::Refuse, "refused", (true, false), [undone, "connect begin"]).await;
    check(
        Phase::Begin,
        Behaviour::Panic,
        ResourceError::HOST_ERROR,
        (true, true),
        [undone, "connect begin disconnect"],
    )
    .await;
    check(Phase::Execute, Behaviour::Break, "broken", (false, true), [undone, "connect begin execute disconnect"])
        .await;
    let hanging = [undone, "connect begin execute disconnect"];
    check(Phase::Execute, Behaviour::Hang, ResourceError::TIMED_OUT, (false, true), hanging).await;
    // The other one has committed.
    let steps = [done, "connect begin execute commit"];
    check(Phase::Commit, Behaviour::Refuse, "refused", (false, false), steps).await;
    let steps = [done, "connect begin execute commit disconnect"];
    check(Phase::Commit, Behaviour::Break, "broken", (false, true), steps).await;
    check(Phase::Commit, Behaviour::Panic, ResourceError::HOST_ERROR, (false, true), steps).await;
}

#[tokio::test]
async fn a_commit_that_hangs_is_told_at_the_deadline() {
    let place = TestSetup::new();
    let ((a, first), (b, second)) = (fake("first"), fake("second"));
    b.set(Phase::Commit, Behaviour::Hang);
    let mut transaction = place.transaction_of(true, 200);
    transaction.add(operating(&first), 1);
    transaction.add(operating(&second), 1);
    let error = transaction.execute(Policy::All).await.unwrap_err();
    assert_eq!((&*error.participant, error.index, &*error.code), ("second", 1, ResourceError::TIMED_OUT));
    assert_eq!((error.phase, error.recoverable, error.terminal), (Phase::Commit, false, true));
    assert_eq!(a.steps(), "connect begin execute commit");
}

#[tokio::test]
async fn one_alone_that_fails_to_commit_may_be_tried_again_if_it_says_so() {
    let place = TestSetup::new();
    let (script, resource) = fake("r");
    script.set(Phase::Commit, Behaviour::Refuse);
    let mut transaction = place.transaction();
    transaction.add(operating(&resource), 1);
    assert!(transaction.execute(Policy::All).await.unwrap_err().recoverable);
}

#[tokio::test]
async fn a_rollback_that_hangs_or_fails_is_nobodys_business() {
    for behaviour in [Behaviour::Break, Behaviour::Panic, Behaviour::Hang] {
        let place = TestSetup::new();
        let ((a, first), (b, second)) = (fake("first"), fake("second"));
        a.set(Phase::Rollback, behaviour);
        b.set(Phase::Execute, Behaviour::Refuse);
        let gate = b.gate();
        let mut transaction = place.transaction();
        transaction.add(operating(&first), 1);
        transaction.add(operating(&second), 1);
        let executing = tokio::spawn(async move { transaction.execute(Policy::All).await });
        until("the first's execution", || a.steps() == "connect begin execute").await;
        gate.add_permits(1);
        assert_eq!(executing.await.unwrap().unwrap_err().participant, "second");
        until("the rollback", || a.steps().contains("rollback")).await;
        if behaviour != Behaviour::Hang {
            place.quiet().await;
            assert_eq!(a.steps(), "connect begin execute rollback disconnect");
        }
    }
}

#[tokio::test]
async fn the_first_success_is_kept_and_the_others_are_undone() {
    for sync_commit in [true, false] {
        let place = TestSetup::new();
        let ((a, slow), (b, failing), (c, fast)) = (fake("slow"), fake("failing"), fake("fast"));
        let _never = a.gate();
        b.set(Phase::Execute, Behaviour::Refuse);
        let gate = c.gate();
        let mut transaction = place.transaction_of(sync_commit, LONG);
        for resource in [&slow, &failing, &fast] {
            transaction.add(operating(resource), 1);
        }
        let executing = tokio::spawn(async move { transaction.execute(Policy::First).await });
        until("the failure", || b.steps().contains("rollback")).await;
        gate.add_permits(1);
        let results = executing.await.unwrap().unwrap();
        assert!(matches!(&results[..], [None, Some(Err(_)), Some(Ok(_))]), "{results:?}");
        place.quiet().await;
        assert_eq!(a.steps(), "connect begin disconnect");
        assert_eq!(c.steps(), "connect begin execute commit");
    }
}

#[tokio::test]
async fn when_none_succeeds_the_last_failure_is_told() {
    let place = TestSetup::new();
    let ((a, first), (b, second)) = (fake("first"), fake("second"));
    a.set(Phase::Execute, Behaviour::Refuse);
    b.set(Phase::Execute, Behaviour::Break);
    let gate = b.gate();
    let mut transaction = place.transaction();
    transaction.add(operating(&first), 1);
    transaction.add(operating(&second), 1);
    let executing = tokio::spawn(async move { transaction.execute(Policy::First).await });
    until("the first failure", || a.steps().contains("rollback")).await;
    gate.add_permits(1);
    assert_eq!(executing.await.unwrap().unwrap_err().participant, "second");
}

#[tokio::test]
async fn a_quorum_commits_when_enough_have_succeeded_and_fails_when_they_cannot() {
    let place = TestSetup::new();
    let ((a, first), (b, second), (c, third)) = (fake("first"), fake("second"), fake("third"));
    let _never = b.gate();
    let mut transaction = place.transaction();
    for resource in [&first, &second, &third] {
        transaction.add(operating(resource), 1);
    }
    let results = transaction.execute(Policy::Quorum(2)).await.unwrap();
    assert!(matches!(&results[..], [Some(Ok(_)), None, Some(Ok(_))]), "{results:?}");
    place.quiet().await;
    assert_eq!([a.steps(), c.steps()], ["connect begin execute commit"; 2]);
    assert_eq!(b.steps(), "connect begin disconnect");

    let place = TestSetup::new();
    let ((a, first), (b, second), (c, third)) = (fake("first"), fake("second"), fake("third"));
    let _never = a.gate();
    b.set(Phase::Execute, Behaviour::Refuse);
    c.set(Phase::Execute, Behaviour::Refuse);
    let mut transaction = place.transaction();
    for resource in [&first, &second, &third] {
        transaction.add(operating(resource), 1);
    }
    assert_eq!(transaction.execute(Policy::Quorum(2)).await.unwrap_err().code, "refused");
    for impossible in [0, 2] {
        let mut transaction = place.transaction();
        transaction.add(operating(&first), 1);
        let error = transaction.execute(Policy::Quorum(impossible)).await.unwrap_err();
        assert_eq!((&*error.code, error.phase), (ResourceError::BAD_OPERATION, Phase::Check));
    }
}

#[tokio::test]
async fn a_module_decides_by_itself_step_by_step() {
    let place = TestSetup::new();
    let ((a, first), (b, second)) = (fake("first"), fake("second"));
    a.set(Phase::Execute, Behaviour::Refuse);
    let gate = b.gate();
    let mut transaction = place.transaction();
    transaction.add(operating(&first), 1);
    transaction.add(operating(&second), 1);
    let (index, result) = transaction.next_result().await.unwrap().unwrap();
    assert_eq!((index, result.unwrap_err().participant), (0, "first".to_owned()));
    gate.add_permits(1);
    let (index, result) = transaction.next_result().await.unwrap().unwrap();
    assert!(index == 1 && result.is_ok());
    assert_eq!(transaction.next_result().await, Ok(None));
    transaction.commit().await.unwrap();
    assert_eq!(b.steps(), "connect begin execute commit");
    assert_eq!(transaction.commit().await.unwrap_err().code, ResourceError::BAD_OPERATION);
    assert!(transaction.next_result().await.is_err());

    // Rolled back, or dropped.
    for explicit in [true, false] {
        let (script, resource) = fake("r");
        let mut transaction = place.transaction();
        transaction.add(operating(&resource), 1);
        transaction.add(increment("count"), 1);
        while transaction.next_result().await.unwrap().is_some() {}
        if explicit {
            transaction.rollback();
        }
        drop(transaction);
        until("the rollback", || script.steps() == "connect begin execute rollback").await;
        assert_eq!(place.number("count"), None);
    }
}

#[tokio::test]
async fn who_waits_for_a_decision_rolls_back_at_the_deadline() {
    let place = TestSetup::new();
    let (script, resource) = fake("r");
    let mut transaction = place.transaction_of(true, 200);
    transaction.add(operating(&resource), 1);
    assert!(transaction.next_result().await.unwrap().is_some());
    until("the rollback", || script.steps() == "connect begin execute rollback").await;
    assert_eq!(transaction.commit().await.unwrap_err().phase, Phase::Commit);
    assert_eq!(script.steps(), "connect begin execute rollback");
}

#[tokio::test]
async fn more_participants_than_connections_fail_at_the_deadline() {
    let place = TestSetup::new();
    let script = Script::new();
    let resource = resource("r", &script, pool(2), None);
    let mut transaction = place.transaction_of(true, 200);
    for _ in 0..3 {
        transaction.add(operating(&resource), 1);
    }
    let error = transaction.execute(Policy::All).await.unwrap_err();
    assert_eq!((&*error.code, error.phase, error.recoverable), (ResourceError::TIMED_OUT, Phase::Acquire, true));
    place.quiet().await;
    assert!(script.steps().ends_with("rollback rollback"), "{}", script.steps());
}

#[tokio::test]
async fn min_time_and_max_time_hold_for_participants() {
    let place = TestSetup::new();
    let script = Script::new();
    let declining = resource("r", &script, PoolSettings { time_min: Duration::from_secs(30), ..pool(1) }, None);
    let mut transaction = place.transaction_of(true, 10_000);
    transaction.add(operating(&declining), 1);
    assert_eq!(transaction.execute(Policy::All).await.unwrap_err().phase, Phase::Acquire);
    let cutting = resource("r", &script, PoolSettings { time_max: Some(Duration::from_millis(50)), ..pool(1) }, None);
    script.set(Phase::Execute, Behaviour::Hang);
    let mut transaction = place.transaction();
    transaction.add(operating(&cutting), 1);
    assert_eq!(transaction.execute(Policy::All).await.unwrap_err().code, ResourceError::TIMED_OUT);
}

#[tokio::test]
async fn all_that_the_store_keeps_is_written_together_and_seen_in_order() {
    let place = TestSetup::new();
    let mut transaction = place.transaction();
    transaction.add(increment("count"), 1);
    transaction.add(increment("count"), 1);
    transaction
        .add(Participant::State(vec![Step::Check("absent".into(), one(1)), Step::Set("x".into(), one(1).unwrap())]), 1);
    transaction.add(increment("count"), 1);
    let error = transaction.execute(Policy::All).await.unwrap_err();
    assert_eq!((&*error.participant, error.index, &*error.code), ("state", 2, "conflict"));
    assert!(error.recoverable && error.text.contains("step 0"), "{error}");
    assert_eq!(place.number("count"), None);

    // Those that hold are committed by a policy that asks for no more, and see no trace of the one that does not.
    let mut transaction = place.transaction();
    transaction
        .add(Participant::State(vec![Step::Increment("count".into(), 10), Step::Check("absent".into(), one(1))]), 1);
    transaction.add(increment("count"), 1);
    transaction.add(increment("count"), 1);
    let results = transaction.execute(Policy::Quorum(2)).await.unwrap();
    assert!(matches!(&results[0], Some(Err(error)) if error.text.contains("step 1")), "{results:?}");
    assert_eq!(results[1..], [1, 2].map(|sum| Some(Ok(ParticipantOutput::State(vec![StepResult::Number(sum)])))));
    assert_eq!(place.number("count"), one(2));
}

#[tokio::test]
async fn a_key_that_changed_meanwhile_keeps_the_others_from_committing() {
    let place = TestSetup::new();
    let (script, resource) = fake("r");
    let gate = script.gate();
    let run_step = || {
        let steps = vec![Step::Check("key".into(), None), Step::Set("key".into(), one(1).unwrap())];
        Participant::State(steps)
    };
    let mut transaction = place.transaction();
    transaction.add(operating(&resource), 1);
    transaction.add(run_step(), 1);
    let executing = tokio::spawn(async move { transaction.execute(Policy::All).await });
    until("the operation", || script.steps() == "connect begin").await;
    let mut other = place.transaction();
    other.add(run_step(), 1);
    other.execute(Policy::All).await.unwrap();
    gate.add_permits(1);
    let error = executing.await.unwrap().unwrap_err();
    assert_eq!((&*error.participant, error.index, &*error.code), ("state", 1, "conflict"));
    assert_eq!((error.phase, error.recoverable), (Phase::Commit, true));
    place.quiet().await;
    assert_eq!(script.steps(), "connect begin execute rollback");
}

#[tokio::test]
async fn results_that_were_shown_hold_or_it_is_a_conflict_others_are_as_they_came() {
    let place = TestSetup::new();
    // Decided by the module, which has seen 1.
    let mut shown = place.transaction();
    shown.add(increment("count"), 1);
    let (_, result) = shown.next_result().await.unwrap().unwrap();
    assert_eq!(result, Ok(ParticipantOutput::State(vec![StepResult::Number(1)])));
    let mut other = place.transaction();
    other.add(increment("count"), 1);
    other.execute(Policy::All).await.unwrap();
    assert_eq!(shown.commit().await.unwrap_err().code, "conflict");
    // Decided by a policy: nobody has seen anything when it is written.
    let (script, resource) = fake("r");
    let gate = script.gate();
    let mut unseen = place.transaction();
    unseen.add(increment("count"), 1);
    unseen.add(operating(&resource), 1);
    let executing = tokio::spawn(async move { unseen.execute(Policy::All).await });
    until("the operation", || script.steps() == "connect begin").await;
    let mut other = place.transaction();
    other.add(increment("count"), 1);
    other.execute(Policy::All).await.unwrap();
    gate.add_permits(1);
    let results = executing.await.unwrap().unwrap();
    assert_eq!(results[0], Some(Ok(ParticipantOutput::State(vec![StepResult::Number(3)]))));
}

#[tokio::test]
async fn a_call_is_not_undone_and_makes_failures_final() {
    let place = TestSetup::new();
    let call = |result| Participant::Call(Box::pin(std::future::ready(result)));
    let mut transaction = place.transaction();
    transaction.add(call(Ok(Payload::Bytes(Bytes::from_static(b"v")))), 1);
    let results = transaction.execute(Policy::All).await.unwrap();
    assert_eq!(results, [Some(Ok(ParticipantOutput::Value(Payload::Bytes(Bytes::from_static(b"v")))))]);

    let (script, resource) = fake("r");
    script.set(Phase::Execute, Behaviour::Refuse);
    let mut transaction = place.transaction();
    transaction.add(call(Ok(Payload::Json("1".into()))), 1);
    transaction.add(operating(&resource), 1);
    let error = transaction.execute(Policy::All).await.unwrap_err();
    assert_eq!((&*error.participant, error.recoverable), ("r", false));

    let check = async |error: DispatchError, code: &str, recoverable| {
        let mut transaction = place.transaction();
        transaction.add(call(Err(error)), 1);
        let error = transaction.execute(Policy::All).await.unwrap_err();
        assert_eq!((&*error.participant, &*error.code, error.recoverable), ("call", code, recoverable));
    };
    check(DispatchError::Refused("no".into()), "refused", true).await;
    check(DispatchError::BadRequest("no b".into()), "bad-request", true).await;
    check(DispatchError::Unreachable("nobody".into()), "unreachable", true).await;
    check(DispatchError::Lost("gone".into()), "lost", false).await;
}

/// The same resource may have operations that a rollback undoes, and others that take effect at once.
#[tokio::test]
async fn an_operation_that_takes_effect_at_once_makes_failures_final() {
    let place = TestSetup::new();
    for (action, recoverable) in [("do", true), ("at-once", false)] {
        let ((_, first), (failing, second)) = (fake("first"), fake("second"));
        failing.set(Phase::Execute, Behaviour::Refuse);
        let (operation, begin, writes) = (operation(action, "x"), Vec::new(), Vec::new());
        let mut transaction = place.transaction();
        transaction.add(Participant::Operation { resource: first, operation, begin, writes }, 1);
        transaction.add(operating(&second), 1);
        let error = transaction.execute(Policy::All).await.unwrap_err();
        assert_eq!((&*error.participant, error.recoverable), ("second", recoverable), "{action}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_nothing_is_done() {
    let place = TestSetup::new();
    let (script, resource) = fake("r");
    let check = async |mut transaction: Transaction, code: &str| {
        let error = transaction.execute(Policy::All).await.unwrap_err();
        assert_eq!((&*error.code, error.phase), (code, Phase::Check));
        assert!(error.recoverable);
    };
    let mut transaction = place.transaction();
    for _ in 0..=PARTICIPANTS_MAX {
        transaction.add(operating(&resource), 1);
    }
    check(transaction, ResourceError::BAD_OPERATION).await;
    let mut transaction = place.transaction();
    transaction.add(operating(&resource), BYTES_MAX + 1);
    check(transaction, ResourceError::BAD_OPERATION).await;
    assert_eq!(script.steps(), "");
    // A refused participant does not disturb the numbering of the others.
    let mut transaction = place.transaction();
    transaction.add(Participant::Refused(error(Phase::Check, ResourceError::NOT_PERMITTED, "no")), 1);
    check(transaction, ResourceError::NOT_PERMITTED).await;
    let mut transaction = place.transaction();
    transaction.add(operating(&resource), 1);
    assert!(transaction.next_result().await.unwrap().is_some());
    transaction.add(operating(&resource), 1);
    check(transaction, ResourceError::BAD_OPERATION).await;
    place.quiet().await;
    assert_eq!(script.steps(), "connect begin execute rollback");
}

#[tokio::test]
async fn what_a_transaction_writes_is_forgotten_by_the_cache_of_reads() {
    let place = TestSetup::new();
    let script = Script::new();
    let cache = CacheSettings { size: 1 << 20, ttl: Duration::from_secs(60) };
    let resource = resource("r", &script, pool(2), Some(cache));
    let read = async || {
        let caching = Some(Caching { reads: vec!["orders".into()], ..Caching::default() });
        let options = OperationOptions { caching, ..OperationOptions::default() };
        resource.execute(&caller(LONG), operation("do", "r"), options).await.unwrap();
    };
    read().await;
    read().await;
    assert_eq!(script.steps().matches("execute").count(), 1);
    let mut transaction = place.transaction();
    let (operation, begin, writes) = (operation("do", "w"), Vec::new(), vec!["orders".to_owned()]);
    transaction.add(Participant::Operation { resource: resource.clone(), operation, begin, writes }, 1);
    transaction.execute(Policy::All).await.unwrap();
    place.quiet().await;
    read().await;
    assert_eq!(script.steps().matches("execute").count(), 3);
    read().await;
    assert_eq!(script.steps().matches("execute").count(), 3);
}
