//! Directories as resources and as interfaces: files come in order, once if nothing fails, and never get lost.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use wasmcage_tests::{Running, TestCage, eventually, guest, program};

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

/// As a careful sender does it: whole, by a rename.
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

async fn empty(cage: &Running) {
    eventually("an empty inbox", || names(cage.directory().join("in")).is_empty().then_some(())).await;
}

async fn appears(cage: &Running, name: &str) -> String {
    let file = cage.directory().join(name);
    eventually(&format!("the file {name}"), || fs::read_to_string(&file).ok()).await
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
    assert!(why.contains("refused: the file is no text") && why.contains("request: RQ-"), "{why}");
    assert_eq!(fs::read(directory.join("in/failed/a")).unwrap(), b"\xff");
    cage.logged("not today").await;
    assert_eq!(names(directory.join("out")), [""; 0]);
    // What was wrong is put right.
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
struct Process(Child);

impl Process {
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

impl Drop for Process {
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
        let mut process = Process::start(&cage);
        let enough = FILES / 5 * round;
        eventually("some results", || (names(directory.join("out")).len() > enough).then_some(())).await;
        process.kill();
        // What is not in the one directory is in the other, and whole.
        let (left, done) = (names(directory.join("in")), names(directory.join("out")));
        for number in 0..FILES {
            let name = format!("{number:03}");
            assert!(left.contains(&name) || done.contains(&name), "{name} is lost");
        }
    }
    let _process = Process::start(&cage);
    eventually("the rest", || names(directory.join("in")).is_empty().then_some(())).await;
    for number in 0..FILES {
        let text = fs::read_to_string(directory.join(format!("out/{number:03}"))).unwrap();
        assert_eq!(text, format!("TEXT {number}"));
    }
    // What was being written when it died is gone.
    assert_eq!(names(directory.join("out")).len(), FILES);
}
