//! The store on a real file.

mod crash;
mod file_name;
mod model;

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::*;

const ROOM: StoreSettings = StoreSettings { minimum_free_bytes: 0 };
const QUOTA: Quota = Quota { bytes: 1 << 30, entries: 1 << 20 };

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn store(directory: &TempDir) -> Store {
    Store::new("test", &directory.path().join("state"), ROOM)
}

fn json(text: &str) -> StateValue {
    StateValue::Json(text.to_owned())
}

fn set(key: &str, value: &str) -> Step {
    Step::Set(key.to_owned(), json(value))
}

async fn transact(store: &Store, steps: Vec<Step>) -> Result<Vec<StepResult>, StoreError> {
    store.transact("m", QUOTA, steps, None, soon()).await
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let directory = TempDir::new().unwrap();
    let first = store(&directory);
    assert_eq!(first.get("m", "a"), Ok(None));
    assert!(!directory.path().join("state").exists(), "a read makes no file");
    let steps =
        vec![set("a", "1"), Step::Push("q".into(), StateValue::Bytes(vec![0, 255])), Step::Increment("n".into(), -7)];
    let outcomes = transact(&first, steps).await.unwrap();
    assert_eq!(outcomes, [StepResult::Done, StepResult::Number(1), StepResult::Number(-7)]);
    first.close();
    assert!(matches!(first.get("m", "a"), Err(StoreError::Unavailable(_))));
    assert!(matches!(transact(&first, vec![set("a", "2")]).await, Err(StoreError::Unavailable(_))));
    let second = store(&directory);
    assert_eq!(second.get("m", "a"), Ok(Some(json("1"))));
    assert_eq!(second.get("other", "a"), Ok(None));
    assert_eq!(second.peek("m", "q", 10), Ok(vec![StateValue::Bytes(vec![0, 255])]));
    assert_eq!(second.queues("m"), Ok(vec![("q".to_owned(), 1)]));
    assert_eq!(second.modules(), Ok(vec![("m".to_owned(), Quota { bytes: 7, entries: 3 })]));
}

#[tokio::test]
async fn whoever_waits_for_the_file_holds_up_no_thread() {
    let directory = TempDir::new().unwrap();
    let first = store(&directory);
    first.ready().await;
    assert!(!directory.path().join("state").exists(), "to be ready makes no file");
    transact(&first, vec![set("a", "1")]).await.unwrap();
    first.close();
    let second = store(&directory);
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let opened = second.file.clone();
    let opening = std::thread::spawn(move || {
        let _file = opened.lock();
        held.send(()).unwrap();
        released.recv().unwrap();
    });
    is_held.recv().unwrap();
    // This runtime has one thread: the second branch runs while the others wait.
    let open_after_release = async {
        tokio::task::yield_now().await;
        assert!(second.file.is_closed());
        release.send(()).unwrap();
    };
    tokio::join!(second.ready(), second.ready(), open_after_release);
    assert!(!second.file.is_closed());
    assert_eq!(second.get("m", "a"), Ok(Some(json("1"))));
    opening.join().unwrap();
}

#[tokio::test]
async fn a_read_that_may_wait_for_the_disk_is_done_on_another_thread() {
    let directory = TempDir::new().unwrap();
    let first = store(&directory);
    transact(&first, vec![set("a", "1")]).await.unwrap();
    first.close();
    let second = Arc::new(store(&directory));
    let here = std::thread::current().id();
    let read = async || {
        let read = second.read_without_blocking(|store| Ok((store.get("m", "a")?, std::thread::current().id())));
        read.await.unwrap()
    };
    let (value, thread) = read().await;
    assert_eq!(value, Some(json("1")));
    assert_ne!(thread, here, "the file is not open yet");
    let (value, thread) = read().await;
    assert_eq!((value, thread), (Some(json("1")), here), "all of it fits in memory");
}

#[tokio::test]
async fn a_file_has_one_owner() {
    let directory = TempDir::new().unwrap();
    let first = store(&directory);
    transact(&first, vec![set("a", "1")]).await.unwrap();
    let second = store(&directory);
    let Err(StoreError::Unavailable(text)) = second.get("m", "a") else { panic!() };
    assert!(text.contains("already open"), "{text}");
}

#[tokio::test]
async fn many_writers_are_grouped_and_all_is_kept() {
    let directory = TempDir::new().unwrap();
    let store = Arc::new(store(&directory));
    let writes = (0..500).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            transact(&store, vec![Step::Increment("n".into(), 1), set(&format!("k{number}"), "0")]).await.unwrap();
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    assert_eq!(store.get("m", "n"), Ok(Some(json("500"))));
    assert_eq!(store.modules().unwrap()[0].1.entries, 501);
}

#[tokio::test]
async fn a_hook_that_panics_ends_neither_its_commit_nor_the_writing_thread() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let hooked = store.write(soon(), |writer| {
        writer.put(Space::Interfaces, b"a".to_vec(), b"1".to_vec());
        writer.after_commit(|| panic!("as the test wants it"));
        Ok(())
    });
    hooked.await.unwrap();
    assert_eq!(store.read(|reader| reader.get(Space::Interfaces, b"a")), Ok(Some(b"1".to_vec())));
    transact(&store, vec![set("a", "1")]).await.unwrap();
    assert_eq!(store.get("m", "a"), Ok(Some(json("1"))));
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn invalid<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Invalid(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn names_and_sizes_are_bounded() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let long = "k".repeat(1_025);
    assert!(invalid(store.get("m", &long)).contains("1024 are allowed"));
    assert!(invalid(transact(&store, vec![set("", "1")]).await).contains("a key is empty"));
    assert!(invalid(store.length("m", "a\0b")).contains("zero"));
    assert!(invalid(store.get("m\0", "a")).contains("module"));
    let big = StateValue::Bytes(vec![0; (16 << 20) + 1]);
    assert!(invalid(transact(&store, vec![Step::Push("q".into(), big)]).await).contains("16777216 are allowed"));
    assert!(invalid(transact(&store, vec![Step::Length("q".into()); 10_001]).await).contains("10000 are allowed"));
    let value = StateValue::Bytes(vec![0; 15 << 20]);
    let many = (0..5).map(|number| Step::Set(number.to_string(), value.clone())).collect();
    assert!(invalid(transact(&store, many).await).contains("64 MiB"));
    transact(&store, vec![Step::Set("big".into(), value)]).await.unwrap();
    assert!(invalid(transact(&store, vec![Step::Get("big".into()); 5]).await).contains("64 MiB"));
    for cursor in ["", "?", "ZGE"] {
        assert!(invalid(store.scan("m", &Range::default(), 1, Some(cursor))).contains("cursor"));
    }
}

#[tokio::test]
async fn a_page_has_a_bound_and_at_least_one_entry() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    for number in 0..3 {
        let value = StateValue::Bytes(vec![number; 6 << 20]);
        transact(&store, vec![Step::Set(number.to_string(), value.clone()), Step::Push("q".into(), value)])
            .await
            .unwrap();
    }
    let first = store.scan("m", &Range::default(), 10, None).unwrap();
    assert_eq!(first.entries.len(), 1);
    let second = store.scan("m", &Range::default(), 10, first.next.as_deref()).unwrap();
    assert_eq!(second.entries[0].0, "1");
    assert_eq!(store.peek("m", "q", 10).unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_expected_of_the_steps_is_a_condition() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let steps = vec![set("a", "1"), Step::Increment("n".into(), 1)];
    let rehearsed = store.rehearse("m", QUOTA, &steps).unwrap();
    assert_eq!(store.get("m", "a"), Ok(None));
    let again = || store.transact("m", QUOTA, steps.clone(), Some(rehearsed.clone()), soon());
    assert_eq!(again().await, Ok(rehearsed.clone()));
    assert_eq!(again().await, Err(StoreError::Conflict(1)));
    assert_eq!(store.get("m", "n"), Ok(Some(json("1"))));
}

#[tokio::test]
async fn a_write_that_fails_or_panics_leaves_nothing() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let work = |writer: &mut Writer<'_>| writer.put(Space::Interfaces, vec![1], vec![1]);
    let panics = store.write(soon(), move |writer| -> Result<(), StoreError> {
        work(writer);
        panic!("a test of panics");
    });
    assert!(unavailable(panics.await).contains("panic"));
    let fails = store.write(soon(), move |writer| -> Result<(), StoreError> {
        work(writer);
        Err(StoreError::Conflict(3))
    });
    assert_eq!(fails.await, Err(StoreError::Conflict(3)));
    assert_eq!(store.read(|reader| reader.get(Space::Interfaces, &[1])), Ok(None));
}

#[tokio::test]
async fn a_write_whose_deadline_has_passed_is_not_done() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let late = store.transact("m", QUOTA, vec![set("a", "1")], None, Deadline::after(Duration::ZERO)).await;
    assert_eq!(late, Err(StoreError::TimedOut));
    transact(&store, vec![set("b", "1")]).await.unwrap();
    assert_eq!(store.get("m", "a"), Ok(None));
}

#[tokio::test]
async fn what_is_to_be_done_after_a_commit_sees_it() {
    let directory = TempDir::new().unwrap();
    let store = Arc::new(store(&directory));
    let (seen, see) = (Arc::new(Mutex::new(None)), store.clone());
    let noted = seen.clone();
    let written = store.write(soon(), move |writer| {
        writer.put(Space::Interfaces, vec![1], vec![2]);
        writer.after_commit(move || *noted.lock() = Some(see.read(|reader| reader.get(Space::Interfaces, &[1]))));
        Ok(())
    });
    written.await.unwrap();
    assert_eq!(*seen.lock(), Some(Ok(Some(vec![2]))));
}

#[tokio::test]
async fn a_disk_with_too_little_room_is_read_only() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    store.set(StoreSettings { minimum_free_bytes: u64::MAX });
    let text = unavailable(transact(&store, vec![set("a", "2")]).await);
    assert!(text.contains("MB left") && text.contains("minimum_free_space_mb"), "{text}");
    assert_eq!(store.get("m", "a"), Ok(Some(json("1"))));
    store.set(ROOM);
    transact(&store, vec![set("a", "2")]).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_none_of_ours_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("state").join(medium::FILE);
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "no database".repeat(1_000)).unwrap();
    let store = store(&directory);
    assert!(unavailable(store.get("m", "a")).contains("store.redb"));
    assert!(unavailable(transact(&store, vec![set("a", "1")]).await).contains("store.redb"));
    assert!(std::fs::read(&file).unwrap().starts_with(b"no database"));
}

#[tokio::test]
async fn a_damaged_file_says_so_and_harms_nothing() {
    for place in [0, 100, 4_096, 20_000, 60_000] {
        let directory = TempDir::new().unwrap();
        let first = store(&directory);
        for number in 0..50 {
            transact(&first, vec![set(&number.to_string(), &"9".repeat(1_000))]).await.unwrap();
        }
        first.close();
        let file = directory.path().join("state").join(medium::FILE);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[place..].iter_mut().take(8_192).for_each(|byte| *byte ^= 0x5a);
        std::fs::write(&file, bytes).unwrap();
        let second = store(&directory);
        // What can still be read and written depends on what is damaged; nothing panics or hangs.
        for number in 0..50 {
            if let Err(error) = second.get("m", &number.to_string()) {
                unavailable::<()>(Err(error));
            }
        }
        if let Err(error) = transact(&second, vec![set("new", "1")]).await {
            unavailable::<()>(Err(error));
        }
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_says_so() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("state"), "a file").unwrap();
    let store = store(&directory);
    assert!(unavailable(transact(&store, vec![set("a", "1")]).await).contains("state"));
}

#[tokio::test]
async fn compacting_gives_room_back() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    let value = StateValue::Bytes(vec![1; 1 << 20]);
    for number in 0..12 {
        transact(&store, vec![Step::Set(number.to_string(), value.clone())]).await.unwrap();
    }
    for number in 0..12 {
        transact(&store, vec![Step::Delete(number.to_string())]).await.unwrap();
    }
    transact(&store, vec![set("a", "1")]).await.unwrap();
    let (before, after) = store.compact(soon()).await.unwrap();
    assert!(after < before && after < 8 << 20, "{before} {after}");
    assert_eq!(store.get("m", "a"), Ok(Some(json("1"))));
    transact(&store, vec![set("a", "2")]).await.unwrap();
}

#[tokio::test]
async fn closing_finishes_what_waits() {
    let directory = TempDir::new().unwrap();
    let first = Arc::new(store(&directory));
    let writes: Vec<_> = (0..100)
        .map(|number| {
            let store = first.clone();
            tokio::spawn(async move { transact(&store, vec![set(&number.to_string(), "1")]).await.is_ok() })
        })
        .collect();
    tokio::task::yield_now().await;
    let closing = first.clone();
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
    let mut done = Vec::new();
    for (number, write) in writes.into_iter().enumerate() {
        if write.await.unwrap() {
            done.push(number);
        }
    }
    let second = store(&directory);
    let kept: Vec<_> = (0..100).filter(|number| second.get("m", &number.to_string()).unwrap().is_some()).collect();
    assert_eq!(kept, done);
}

/// Version 0 had no `usage`, and said nothing of its version.
#[tokio::test]
async fn a_file_of_version_0_is_migrated() {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let old = medium::builder().create(state.join(medium::FILE)).unwrap();
    let transaction = old.begin_write().unwrap();
    let mut keys = transaction.open_table(Space::Keys.table()).unwrap();
    keys.insert(b"m\0key".as_slice(), b"j1".as_slice()).unwrap();
    keys.insert(b"n\0k".as_slice(), b"bxy".as_slice()).unwrap();
    drop(keys);
    let mut queues = transaction.open_table(Space::Queues.table()).unwrap();
    let ends = [6_u64.to_be_bytes(), 7_u64.to_be_bytes()].concat();
    queues.insert(b"m\0q\0".as_slice(), ends.as_slice()).unwrap();
    let entry = [b"m\0q\0".as_slice(), &6_u64.to_be_bytes()].concat();
    queues.insert(entry.as_slice(), b"jnull".as_slice()).unwrap();
    drop(queues);
    transaction.commit().unwrap();
    drop(old);
    let store = store(&directory);
    assert_eq!(store.get("m", "key"), Ok(Some(json("1"))));
    let usage = |bytes, entries| Quota { bytes, entries };
    assert_eq!(store.modules(), Ok(vec![("m".to_owned(), usage(8, 2)), ("n".to_owned(), usage(3, 1))]));
    assert_eq!(transact(&store, vec![Step::Pop("q".into())]).await, Ok(vec![StepResult::Value(Some(json("null")))]));
    assert_eq!(store.modules().unwrap()[0], ("m".to_owned(), usage(4, 1)));
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let directory = TempDir::new().unwrap();
    let first = store(&directory);
    transact(&first, vec![set("a", "1")]).await.unwrap();
    first.close();
    let file = directory.path().join("state").join(medium::FILE);
    let database = medium::builder().open(&file).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(format::META).unwrap().insert("format", format::VERSION + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let text = unavailable(store(&directory).get("m", "a"));
    assert!(text.contains(&format!("format {}", format::VERSION + 1)), "{text}");
}
