//! The store on a real file.

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
    Store::new(&directory.path().join("state"), ROOM)
}

fn json(text: &str) -> StateValue {
    StateValue::Json(text.to_owned())
}

fn set(key: &str, value: &str) -> Step {
    Step::Set(key.to_owned(), json(value))
}

async fn transact(store: &Store, steps: Vec<Step>) -> Result<Vec<Outcome>, StoreError> {
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
    assert_eq!(outcomes, [Outcome::Done, Outcome::Number(1), Outcome::Number(-7)]);
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
