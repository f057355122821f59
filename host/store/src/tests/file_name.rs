//! The file loses its name while it is open: it is moved away, removed or replaced. Acknowledged writes can be read afterwards.

use std::fs;
use std::path::PathBuf;

use super::*;

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("state").join("store.redb")
}

/// Waits until the store has opened the file that has the name now.
async fn available(store: &Store) {
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while store.get("m", "a").is_err() {
        assert!(std::time::Instant::now() < until, "{:?}", store.get("m", "a"));
        store.check_file();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_while_the_file_is_moved_away_and_all_is_there_when_it_is_back() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    let away = directory.path().join("away");
    fs::rename(file(&directory), &away).unwrap();
    for _ in 0..2 {
        let text = unavailable(transact(&store, vec![set("a", "2")]).await);
        assert!(text.contains("moved away or removed") && text.contains("store.redb"), "{text}");
    }
    assert!(unavailable(store.get("m", "a")).contains("moved away"));
    assert!(!file(&directory).exists(), "no empty store takes the place of one that may come back");
    fs::rename(&away, file(&directory)).unwrap();
    available(&store).await;
    assert_eq!(store.get("m", "a"), Ok(Some(json("1"))));
    transact(&store, vec![set("a", "3")]).await.unwrap();
    store.close();
    assert_eq!(super::store(&directory).get("m", "a"), Ok(Some(json("3"))));
}

#[tokio::test]
async fn nothing_is_acknowledged_when_the_directory_is_removed() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    fs::remove_dir_all(directory.path().join("state")).unwrap();
    assert!(unavailable(transact(&store, vec![set("a", "2")]).await).contains("removed"));
    store.check_file();
    assert!(unavailable(transact(&store, vec![set("a", "3")]).await).contains("after a restart"));
    assert!(!directory.path().join("state").exists());
    store.close();
    let after_restart = super::store(&directory);
    assert_eq!(after_restart.get("m", "a"), Ok(None));
    transact(&after_restart, vec![set("a", "4")]).await.unwrap();
}

#[tokio::test]
async fn a_backup_that_takes_the_name_is_what_counts_from_then_on() {
    let directory = TempDir::new().unwrap();
    let first = store(&directory);
    transact(&first, vec![set("a", "5")]).await.unwrap();
    first.close();
    let backup = directory.path().join("backup");
    fs::copy(file(&directory), &backup).unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "6"), set("b", "1")]).await.unwrap();
    fs::rename(&backup, file(&directory)).unwrap();
    let text = unavailable(transact(&store, vec![set("a", "7")]).await);
    assert!(text.contains("another file was put in the place"), "{text}");
    available(&store).await;
    assert_eq!((store.get("m", "a"), store.get("m", "b")), (Ok(Some(json("5"))), Ok(None)));
    transact(&store, vec![set("a", "8")]).await.unwrap();
    store.close();
    assert_eq!(super::store(&directory).get("m", "a"), Ok(Some(json("8"))));
}

#[tokio::test]
async fn readers_see_a_replaced_file_without_a_write() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    fs::rename(file(&directory), directory.path().join("away")).unwrap();
    assert_eq!(store.get("m", "a"), Ok(Some(json("1"))), "reading looks at no name");
    store.check_file();
    assert!(unavailable(store.get("m", "a")).contains("moved away"));
}

#[tokio::test]
async fn a_commit_into_a_file_that_loses_its_name_meanwhile_is_not_acknowledged() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    let (from, to) = (file(&directory), directory.path().join("away"));
    // The work is done after the look before the commit.
    let written = store.write(soon(), move |writer| {
        fs::rename(from, to).unwrap();
        writer.put(Space::Interfaces, b"key".to_vec(), b"value".to_vec());
        Ok(())
    });
    let text = unavailable(written.await);
    assert!(text.contains("moved away") && text.contains("may or may not have been done"), "{text}");
}

#[tokio::test]
async fn a_file_that_is_being_copied_is_not_opened_before_it_is_complete() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    let away = directory.path().join("away");
    fs::rename(file(&directory), &away).unwrap();
    store.check_file();
    let bytes = fs::read(&away).unwrap();
    for part in 1..=4 {
        // The parts take longer to come than the store waits between two looks.
        fs::write(file(&directory), &bytes[..bytes.len() * part / 4]).unwrap();
        let until = std::time::Instant::now() + Duration::from_millis(1_200);
        while part < 4 && std::time::Instant::now() < until {
            store.check_file();
            let text = unavailable(store.get("m", "a"));
            assert!(text.contains("moved away") || text.contains("another file"), "{text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    available(&store).await;
    assert_eq!(store.get("m", "a"), Ok(Some(json("1"))));
}

#[tokio::test]
async fn a_compacted_file_is_watched_like_any_other() {
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    store.compact(soon()).await.unwrap();
    fs::remove_file(file(&directory)).unwrap();
    assert!(unavailable(transact(&store, vec![set("a", "2")]).await).contains("removed"));
}

#[tokio::test]
async fn the_directory_and_the_file_are_their_users_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = TempDir::new().unwrap();
    let store = store(&directory);
    transact(&store, vec![set("a", "1")]).await.unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(directory.path().join("state")), mode(file(&directory))), (0o700, 0o600));
}
