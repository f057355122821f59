//! Tests of mutual exclusion, order and limits, and that nothing is lost or left behind, also with many tasks at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arbtest::arbtest;
use bytes::Bytes;
use tokio::task::JoinHandle;

use super::*;

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(5))
}

fn long() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn number(number: usize) -> Payload {
    Payload::Json(number.to_string())
}

/// Starts waiting for a lock, and returns when the waiter is in the queue.
async fn waiting(locks: &Arc<Locks>, name: &'static str, mode: Mode) -> JoinHandle<Result<LockGuard, LockError>> {
    let before = locks.locks.waiting(name);
    let waiter = locks.clone();
    let task = tokio::spawn(async move { waiter.acquire(name, mode, RequestId::new(), long()).await });
    while locks.locks.waiting(name) == before {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test]
async fn readers_share_writers_exclude_and_nobody_passes_the_line() {
    let locks = Arc::new(Locks::default());
    let ask = async |mode| locks.acquire("a", mode, RequestId::new(), soon()).await;
    let (first, second) = (ask(Mode::Read).await.unwrap(), ask(Mode::Read).await.unwrap());
    assert!(matches!(ask(Mode::Write).await, Err(LockError::TimedOut(_))));
    let writer = waiting(&locks, "a", Mode::Write).await;
    // A reader would be let in, if the writer were not before it.
    let reader = waiting(&locks, "a", Mode::Read).await;
    assert!(matches!(ask(Mode::Read).await, Err(LockError::TimedOut(_))));
    drop(first);
    assert_eq!(locks.locks.waiting("a"), 2);
    drop(second);
    let written = writer.await.unwrap().unwrap();
    assert_eq!(locks.locks.waiting("a"), 1);
    drop(written);
    drop(reader.await.unwrap().unwrap());
    assert_eq!(locks.locks.in_use(), 0);
}

#[tokio::test]
async fn a_writer_that_gives_up_lets_in_those_behind_it() {
    let locks = Arc::new(Locks::default());
    let held = locks.acquire("a", Mode::Read, RequestId::new(), soon()).await.unwrap();
    let writer = waiting(&locks, "a", Mode::Write).await;
    let reader = waiting(&locks, "a", Mode::Read).await;
    writer.abort();
    let read = reader.await.unwrap().unwrap();
    drop((held, read));
    assert_eq!(locks.locks.in_use(), 0);
}

#[tokio::test]
async fn a_request_does_not_wait_for_itself() {
    let locks = Arc::new(Locks::default());
    let request = RequestId::new();
    let ask = async |name, mode| locks.acquire(name, mode, request, soon()).await;
    let _reads = ask("r", Mode::Read).await.unwrap();
    let _waiting = waiting(&locks, "r", Mode::Write).await;
    // Not behind the writer, which waits for this very request.
    let _again = ask("r", Mode::Read).await.unwrap();
    assert_eq!(
        ask("r", Mode::Write).await.unwrap_err(),
        LockError::WouldDeadlock("this request reads lock r already".into())
    );
    let _writes = ask("w", Mode::Write).await.unwrap();
    for mode in [Mode::Read, Mode::Write] {
        assert!(matches!(ask("w", mode).await, Err(LockError::WouldDeadlock(_))));
    }
}

#[tokio::test]
async fn names_have_a_rule() {
    let locks = Locks::default();
    let longest = "ä".repeat(NAME_CHARACTERS_MAX);
    locks.acquire(&longest, Mode::Write, RequestId::new(), soon()).await.unwrap();
    for name in ["", "a\nb", &format!("{longest}x")] {
        let error = locks.acquire(name, Mode::Write, RequestId::new(), soon()).await.unwrap_err();
        assert!(matches!(&error, LockError::Invalid(text) if text.contains("1 to 64 characters")), "{error}");
        assert_eq!(locks.push(name, number(0)).unwrap_err(), error);
        assert_eq!(locks.pop(name, soon()).await.unwrap_err(), error);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_exclude_each_other_and_leave_nothing() {
    const TASKS: usize = 64;
    const ROUNDS: usize = 200;
    const WRITER: usize = 1 << 32;
    let locks = Arc::new(Locks::default());
    // Readers inside count one each, a writer a lot.
    let inside = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let tasks = (0..TASKS).map(|_| {
        let (locks, inside) = (locks.clone(), inside.clone());
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let (lock, writes) = (fastrand::usize(..3), fastrand::u8(..3) == 0);
                let name = ["a", "b", "c"][lock];
                let mode = if writes { Mode::Write } else { Mode::Read };
                // Some give up, some at the very moment when it is granted.
                let patience =
                    fastrand::choice([long(), Deadline::after(Duration::from_micros(fastrand::u64(..2_000)))]);
                let acquired = locks.acquire(name, mode, RequestId::new(), patience.expect("there are two")).await;
                let Ok(held) = acquired else { continue };
                let weight = if writes { WRITER } else { 1 };
                let others = inside[lock].fetch_add(weight, Ordering::SeqCst);
                assert!(if writes { others == 0 } else { others < WRITER }, "{others} beside a {mode:?}");
                tokio::task::yield_now().await;
                inside[lock].fetch_sub(weight, Ordering::SeqCst);
                drop(held);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(locks.locks.in_use(), 0);
}

/// Takes and drops locks in random order and checks the rule: all holders are compatible, and no waiter is kept waiting that
/// the rule would admit.
#[test]
fn any_order_of_takes_and_leaves_keeps_the_rule() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    arbtest(|u| {
        runtime.block_on(async {
            let locks = Arc::new(Locks::default());
            let mut users: Vec<(Mode, JoinHandle<Result<LockGuard, LockError>>)> = Vec::new();
            while !u.is_empty() {
                if u.ratio(1, 3)? && !users.is_empty() {
                    let (_, user) = users.swap_remove(u.choose_index(users.len())?);
                    // Held or waiting, it is over.
                    user.abort();
                    drop(user.await);
                } else {
                    let mode = if u.arbitrary()? { Mode::Write } else { Mode::Read };
                    let waiter = locks.clone();
                    let ask = async move { waiter.acquire("a", mode, RequestId::new(), long()).await };
                    users.push((mode, tokio::spawn(ask)));
                }
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                let in_hand = users.iter().filter(|(_, user)| user.is_finished()).count();
                let writes = users.iter().any(|(mode, user)| user.is_finished() && *mode == Mode::Write);
                assert!(in_hand == 1 || !writes, "{in_hand} hold it");
                assert_eq!(in_hand == 0, users.is_empty(), "{} wait for nobody", users.len());
                assert_eq!(locks.locks.waiting("a"), users.len() - in_hand);
            }
            drop(users.into_iter().map(|(_, user)| user.abort()).collect::<Vec<_>>());
            while locks.locks.in_use() > 0 {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    })
    .budget_ms(500);
}

#[tokio::test]
async fn queues_keep_their_order_and_vanish_when_empty() {
    let locks = Arc::new(Locks::default());
    assert_eq!(locks.pop("q", soon()).await, Ok(None));
    for entry in 0..3 {
        assert_eq!(locks.push("q", number(entry)), Ok(entry + 1));
    }
    assert_eq!(locks.length("q"), 3);
    for entry in 0..3 {
        assert_eq!(locks.pop("q", soon()).await, Ok(Some(number(entry))));
    }
    assert_eq!((locks.length("q"), locks.queues.in_use()), (0, (0, 0)));
}

/// Starts waiting for an entry, and returns when the waiter is in the queue.
async fn popping(locks: &Arc<Locks>) -> JoinHandle<Result<Option<Payload>, LockError>> {
    let before = locks.queues.waiting("q");
    let waiter = locks.clone();
    let task = tokio::spawn(async move { waiter.pop("q", long()).await });
    while locks.queues.waiting("q") == before {
        tokio::task::yield_now().await;
    }
    task
}

#[tokio::test]
async fn who_waits_first_gets_the_first_entry_and_who_leaves_loses_none() {
    let locks = Arc::new(Locks::default());
    let (first, second, third) = (popping(&locks).await, popping(&locks).await, popping(&locks).await);
    assert_eq!(locks.push("q", number(1)), Ok(0));
    // On this runtime of one thread, it has the entry and has not looked yet.
    first.abort();
    second.abort();
    assert_eq!(locks.push("q", number(2)), Ok(0));
    let _ = tokio::join!(first, second);
    let mut got = vec![third.await.unwrap().unwrap().unwrap()];
    got.extend(locks.pop("q", soon()).await.unwrap());
    got.sort_by_key(|entry| format!("{entry:?}"));
    assert_eq!(got, [number(1), number(2)]);
    assert_eq!(locks.queues.in_use(), (0, 0));
}

#[tokio::test]
async fn queues_are_bounded() {
    let locks = Locks::default();
    let full = |result: Result<usize, LockError>| match result.unwrap_err() {
        LockError::Invalid(text) => text,
        other => panic!("{other}"),
    };
    for _ in 0..10_000 {
        locks.push("many", number(0)).unwrap();
    }
    assert!(full(locks.push("many", number(0))).contains("it has 10000 entries"));
    // The bytes are shared by all entries: nothing is copied here.
    let large = Bytes::from(vec![0; 30 << 20]);
    for name in ["a", "b", "c", "d"] {
        locks.push(name, Payload::Bytes(large.clone())).unwrap();
        locks.push(name, Payload::Bytes(large.clone())).unwrap();
        assert!(full(locks.push(name, Payload::Bytes(large.clone()))).contains("it may hold 67108864 bytes"));
    }
    assert!(full(locks.push("e", Payload::Bytes(large))).contains("together"));
    for queue in 5..1_000 {
        locks.push(&queue.to_string(), number(0)).unwrap();
    }
    assert!(full(locks.push("one more", number(0))).contains("1000 queues"));
    assert!(matches!(locks.pop("one more", long()).await, Err(LockError::Invalid(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_lose_no_entry_and_get_none_twice() {
    const ENTRIES: usize = 5_000;
    let locks = Arc::new(Locks::default());
    let takers = (0..8).map(|_| {
        let locks = locks.clone();
        tokio::spawn(async move {
            let mut taken = Vec::new();
            loop {
                let patience = Deadline::after(Duration::from_micros(fastrand::u64(..200)));
                // Half of the waits are cut off at some point, as those of a request whose client has left.
                let cut = tokio::time::timeout(Duration::from_micros(fastrand::u64(..400)), locks.pop("q", patience));
                match cut.await {
                    Ok(Ok(Some(Payload::Json(entry)))) if entry == "end" => return taken,
                    Ok(Ok(Some(entry))) => taken.push(entry),
                    Ok(Ok(None)) | Err(_) => {}
                    Ok(Err(error)) => panic!("{error}"),
                }
            }
        })
    });
    let takers: Vec<_> = takers.collect();
    for entry in 0..ENTRIES {
        locks.push("q", number(entry)).unwrap();
        if entry % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..takers.len() {
        locks.push("q", Payload::Json("end".into())).unwrap();
    }
    let mut all = Vec::new();
    for taker in takers {
        all.extend(taker.await.unwrap());
    }
    all.sort_by_key(|entry| format!("{entry:?}"));
    let mut expected: Vec<_> = (0..ENTRIES).map(number).collect();
    expected.sort_by_key(|entry| format!("{entry:?}"));
    assert_eq!(all, expected);
    assert_eq!(locks.queues.in_use(), (0, 0));
}
