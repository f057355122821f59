//! Directories as resources and as interfaces: files come in order, once if nothing fails, and never get lost.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use wasmcage_tests::{Need, RunningCage, TestCage, eventually, guest, missing, program};

/// A cage with directories `in` and `out`, whose module takes files from the one and writes its results into the other.
fn dropbox(keys: &str) -> TestCage {
    let cage = TestCage::new().module("dropbox", "interface_inbox").config(&config(keys));
    for name in ["in", "out"] {
        fs::create_dir(cage.directory().join(name)).unwrap();
    }
    cage
}

fn config(keys: &str) -> String {
    let settle = if keys.contains("settle_ms") { "" } else { "settle_ms = 20\n" };
    format!(
        "[interfaces.inbox]\nprotocol = \"file\"\ndirectory = \"in\"\ninterval_ms = 20\nretry_ms = 20\n{settle}{keys}\n\
         [resources.results]\nprotocol = \"file\"\ndirectory = \"out\"\n\
         [modules.interface_inbox]\nallow = {{ resources = [\"results\"] }}"
    )
}

/// Puts a whole file into the directory by a rename, as a careful sender does.
fn put(directory: &Path, name: &str, text: &str) {
    let temporary = directory.join(format!(".{name}.new"));
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, directory.join("in").join(name)).unwrap();
}

fn names(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The order in which results were written.
fn by_age(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let mut found: Vec<_> = entries
        .map(|entry| (entry.metadata().unwrap().modified().unwrap(), entry.file_name().into_string().unwrap()))
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

async fn empty(cage: &RunningCage) {
    eventually("an empty inbox", || names(cage.directory().join("in")).is_empty().then_some(())).await;
}

async fn appears(cage: &RunningCage, name: &str) -> String {
    let file = cage.directory().join(name);
    // A note is there for a moment before its text is.
    let text = || fs::read_to_string(&file).ok().filter(|text| !text.is_empty());
    eventually(&format!("the file {name}"), text).await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_taken_in_order_and_removed() {
    let cage = dropbox("pattern = \"*.txt\"");
    let directory = cage.directory();
    for name in ["c.txt", "a.txt", "b.txt", "x.csv"] {
        put(&directory, name, name);
    }
    fs::write(directory.join("in/.hidden.txt"), "hidden").unwrap();
    fs::create_dir(directory.join("in/d.txt")).unwrap();
    let cage = cage.start().await;
    assert_eq!(appears(&cage, "out/c.txt").await, "C.TXT");
    eventually("the end of it", || (!directory.join("in/c.txt").exists()).then_some(())).await;
    assert_eq!(by_age(directory.join("out")), ["a.txt", "b.txt", "c.txt"]);
    assert_eq!(names(directory.join("in")), [".hidden.txt", "d.txt", "x.csv"]);
    // While it runs, too.
    put(&directory, "d1.txt", "after the others");
    appears(&cage, "out/d1.txt").await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_taken_when_it_is_complete() {
    // A writer that is slower than any look at its file, and faster than it takes to be thought complete.
    let cage = dropbox("settle_ms = 2000").start().await;
    let file = cage.directory().join("in/a");
    for part in 0..20 {
        let text: String = (0..=part).map(|part| format!("{part} ")).collect();
        fs::write(&file, text).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(appears(&cage, "out/a").await.ends_with("18 19 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_holds_up_the_next_ones_and_a_refusal_does_not() {
    let cage = dropbox("max_attempts = 1000000");
    let directory = cage.directory();
    put(&directory, "b", "later");
    put(&directory, "c", "now");
    fs::write(directory.join("in/a"), b"\xff").unwrap();
    let cage = cage.start().await;
    let why = appears(&cage, "in/failed/a.error").await;
    assert!(why.contains("bad request: the file is no text") && why.contains("request: RQ-"), "{why}");
    assert_eq!(fs::read(directory.join("in/failed/a")).unwrap(), b"\xff");
    cage.logged("not today").await;
    assert_eq!(names(directory.join("out")), [""; 0]);
    // The fault is mended.
    put(&directory, "b", "good");
    assert_eq!(appears(&cage, "out/b").await, "GOOD");
    assert_eq!(appears(&cage, "out/c").await, "NOW");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_keeps_failing_is_moved_aside_and_the_next_ones_need_not_wait() {
    let cage = dropbox("max_attempts = 3\nkeep_going = true\nfailed = \"poison\"\ndone = \"archive\"");
    let directory = cage.directory();
    put(&directory, "a", "later");
    put(&directory, "b", "now");
    let cage = cage.start().await;
    let why = appears(&cage, "poison/a.error").await;
    assert!(why.contains("failed: not today") && why.contains("attempts: 3"), "{why}");
    assert_eq!(appears(&cage, "archive/b").await, "now");
    assert_eq!(appears(&cage, "out/b").await, "NOW");
    // Another one of the same name does not replace it.
    put(&directory, "a", "later again");
    appears(&cage, "poison/a.1.error").await;
    assert_eq!(names(directory.join("poison")), ["a", "a.1", "a.1.error", "a.error"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_with_a_name_is_not_handed() {
    let cage = dropbox("max_bytes = 10");
    let directory = cage.directory();
    fs::write(directory.join("secret"), "secret").unwrap();
    symlink(directory.join("secret"), directory.join("in/link")).unwrap();
    fs::write(directory.join("in").join(std::ffi::OsStr::from_bytes(b"odd\xff")), "x").unwrap();
    fs::write(directory.join("in/odd \u{1}\n'\u{fc}"), "x").unwrap();
    put(&directory, "long", "0123456789a");
    let cage = cage.start().await;
    assert!(appears(&cage, "in/failed/long.error").await.contains("raise max_bytes"));
    eventually("the odd name", || {
        names(directory.join("in/failed")).iter().any(|name| name.starts_with("odd")).then_some(())
    })
    .await;
    appears(&cage, "out/odd \u{1}\n'\u{fc}").await;
    eventually("the rest", || (names(directory.join("in")) == ["failed", "link"]).then_some(())).await;
    assert_eq!(names(directory.join("out")).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_files_come_through() {
    // More than one pass looks at.
    const FILES: usize = 10_050;
    let cage = TestCage::new().module("hello", "interface_inbox").config(&config(""));
    let directory = cage.directory();
    for name in ["in", "out"] {
        fs::create_dir(directory.join(name)).unwrap();
    }
    for number in 0..FILES {
        fs::write(directory.join(format!("in/{number:05}")), "x").unwrap();
    }
    let cage = cage.start().await;
    empty(&cage).await;
    let snapshot = cage.snapshot();
    let inbox = snapshot.cages[0].interfaces.iter().find(|interface| interface.interface == "inbox").unwrap();
    assert_eq!(inbox.readings.requests, FILES as u64);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_wait_for_their_module_and_their_directory() {
    let cage = TestCage::new().config(&config("max_attempts = 1"));
    let directory = cage.directory();
    fs::create_dir(directory.join("out")).unwrap();
    let cage = cage.start().await;
    assert!(cage.log().contains("directory"), "it says what is missing");
    fs::create_dir(directory.join("in")).unwrap();
    put(&directory, "a", "a");
    cage.logged("files are waiting").await;
    cage.deploy("interface_inbox", &fs::read(guest("dropbox")).unwrap());
    appears(&cage, "out/a").await;
    empty(&cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_stops_finishes_the_file_in_work() {
    let cage = dropbox("");
    let directory = cage.directory();
    for number in 0..500 {
        put(&directory, &format!("{number:03}"), "x");
    }
    let cage = cage.start().await;
    appears(&cage, "out/000").await;
    assert!(cage.stop().await, "nothing is cut off");
}

/// The serving process itself, so that a kill kills it.
struct DropboxProcess(Child);

impl DropboxProcess {
    fn start(cage: &TestCage) -> Self {
        let root = cage.directory().parent().unwrap().to_owned();
        fs::write(cage.directory().join("cage.toml"), config("")).unwrap();
        let mut command = Command::new(program());
        command.args(["secondary", "--root"]).arg(&root).args(["--lanes", "1", "--", cage.name()]);
        command.env("WASMCAGE_RUNTIME_DIR", root.join("meeting"));
        // Its end is that of the one that started it.
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for DropboxProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_is_lost_whenever_the_process_dies() {
    const FILES: usize = 400;
    let cage = dropbox("");
    let directory = cage.directory();
    for number in 0..FILES {
        fs::write(directory.join(format!("in/{number:03}")), format!("text {number}")).unwrap();
    }
    for round in 1..=4 {
        let mut process = DropboxProcess::start(&cage);
        let enough = FILES / 5 * round;
        eventually("some results", || (names(directory.join("out")).len() > enough).then_some(())).await;
        process.kill();
        // Each file is in one of the two directories, and whole.
        let (left, done) = (names(directory.join("in")), names(directory.join("out")));
        for number in 0..FILES {
            let name = format!("{number:03}");
            assert!(left.contains(&name) || done.contains(&name), "{name} is lost");
        }
    }
    let _process = DropboxProcess::start(&cage);
    eventually("the rest", || names(directory.join("in")).is_empty().then_some(())).await;
    for number in 0..FILES {
        let text = fs::read_to_string(directory.join(format!("out/{number:03}"))).unwrap();
        assert_eq!(text, format!("TEXT {number}"));
    }
    // The file that was being written when the process died is gone.
    assert_eq!(names(directory.join("out")).len(), FILES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_directory_that_is_removed_or_replaced_is_taken_up_again() {
    let cage = dropbox("").start().await;
    let directory = cage.directory();
    put(&directory, "1", "one");
    empty(&cage).await;
    fs::remove_dir_all(directory.join("in")).unwrap();
    let told = || cage.log().contains("was removed or replaced").then_some(());
    eventually("a line in the log", told).await;
    let waits = || {
        let cages = cage.snapshot().cages;
        let interface = cages[0].interfaces.iter().find(|interface| interface.interface == "inbox");
        let news = interface.and_then(|interface| interface.status.clone());
        news.filter(|news| news.contains("waits for directory"))
    };
    eventually("ps to say so", waits).await;
    fs::create_dir(directory.join("in")).unwrap();
    put(&directory, "2", "two");
    empty(&cage).await;
    appears(&cage, "out/2").await;
    // Another directory in its place, at once.
    fs::create_dir(directory.join("new")).unwrap();
    fs::write(directory.join("new/3"), "three").unwrap();
    fs::rename(directory.join("in"), directory.join("old")).unwrap();
    fs::rename(directory.join("new"), directory.join("in")).unwrap();
    empty(&cage).await;
    appears(&cage, "out/3").await;
    assert_eq!(cage.log().matches("was removed or replaced").count(), 2, "told once each time");
}

/// A directory on another file system than the cages'.
fn elsewhere() -> tempfile::TempDir {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let found = ["/dev/shm", "/run", "/var/tmp", "/tmp"].into_iter().find_map(|place| {
        let directory = tempfile::tempdir_in(place).ok()?;
        (device(directory.path()) != device(&std::env::temp_dir())).then_some(directory)
    });
    found.unwrap_or_else(|| missing(Need::SecondFileSystem, "there is no second file system that can be written"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_the_longest_possible_name_is_moved_aside_with_its_reason() {
    let cage = dropbox("").start().await;
    let long = "x".repeat(252);
    let failed = cage.directory().join("in/failed");
    for round in 0..2 {
        let directory = cage.directory();
        fs::write(directory.join("out-of-sight"), b"\xff").unwrap();
        fs::rename(directory.join("out-of-sight"), directory.join("in").join(&long)).unwrap();
        let count = 2 * (round + 1);
        eventually("the file and its reason", || (names(failed.clone()).len() == count).then_some(())).await;
    }
    let names = names(failed.clone());
    assert!(names.contains(&long), "{names:?}");
    for note in names.iter().filter(|name| name.ends_with(".error")) {
        let text = fs::read_to_string(failed.join(note)).unwrap();
        assert!(text.starts_with(&format!("file: {}", &long[..200])), "{text}");
    }
}

mod with_second_file_system {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn files_are_put_away_to_another_file_system() {
        let place = elsewhere();
        let (done, failed) = (place.path().join("done"), place.path().join("failed"));
        let keys = format!("done = {done:?}\nfailed = {failed:?}");
        let cage = dropbox(&keys).start().await;
        let file = cage.directory().join("kept");
        fs::write(&file, "one").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::rename(&file, cage.directory().join("in/1")).unwrap();
        fs::write(cage.directory().join("in/refused"), b"\xff").unwrap();
        empty(&cage).await;
        eventually("both files", || (names(done.clone()) == ["1"] && names(failed.clone()).len() == 2).then_some(()))
            .await;
        let metadata = fs::metadata(done.join("1")).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.modified().unwrap()), (0o640, modified));
        assert_eq!(fs::read_to_string(done.join("1")).unwrap(), "one");
        assert_eq!(names(failed.clone()), ["refused", "refused.error"]);
        // One of the same name is kept beside it.
        put(&cage.directory(), "1", "another one");
        empty(&cage).await;
        eventually("the second one", || (names(done.clone()) == ["1", "1.1"]).then_some(())).await;
        assert_eq!(fs::read_to_string(done.join("1.1")).unwrap(), "another one");
    }
}
