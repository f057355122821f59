//! What is opened by a path may be anything: pipes, directories, devices and links that lead nowhere are refused by name, and
//! never hold anything up.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use wasmcage::host::StartError;
use wasmcage_tests::{TestCage, component, eventually, guest};

fn pipe(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo runs");
    assert!(made.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_that_are_no_files_are_refused_by_name_and_others_load() {
    let test = TestCage::new().http("web").module("hello", "interface_web");
    let at = |name: &str| test.directory().join(name);
    pipe(&at("piped.wasm"));
    fs::create_dir(at("folder.wasm")).unwrap();
    symlink("/dev/zero", at("device.wasm")).unwrap();
    symlink("nowhere", at("dangling.wasm")).unwrap();
    let cage = test.start().await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    for (module, reason) in
        [("piped", "a pipe"), ("folder", "a directory"), ("device", "a device"), ("dangling", "a link to nowhere")]
    {
        let refusal = cage.refused(module).await;
        assert!(refusal.contains(reason), "{module}: {refusal}");
    }
    // The target of the link comes.
    fs::copy(guest("hello"), cage.directory().join("nowhere")).unwrap();
    cage.swapped("dangling", None).await;
    fs::remove_dir(cage.directory().join("folder.wasm")).unwrap();
    eventually("the refusal's end", || cage.refusal("folder").is_none().then_some(())).await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_modules_are_told() {
    let test = TestCage::new().http("web").file("hello.component", b"").file("with space", b"").file("\u{fc}ber", b"");
    let cage = test.start().await;
    let log = cage.logged("with space.wasm").await;
    for name in ["hello.component.wasm", "with space.wasm", "\u{fc}ber.wasm"] {
        assert!(log.contains(name) && log.contains("rename it"), "{log}");
    }
    // One that comes later, too; each once.
    fs::write(cage.directory().join("Work.WASM"), "").unwrap();
    let log = cage.logged("Work.WASM").await;
    assert_eq!(log.matches("with space.wasm").count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_a_pipe_is_a_mistake_and_no_reason_to_wait() {
    let cage = TestCage::new().http("web").module("hello", "interface_web").start().await;
    let file = cage.directory().join("cage.toml");
    let text = fs::read_to_string(&file).unwrap();
    pipe(&cage.directory().join(".pipe"));
    fs::rename(cage.directory().join(".pipe"), &file).unwrap();
    let log = cage.logged("cage.toml refused").await;
    assert!(log.contains("a pipe"), "{log}");
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    cage.configure(&format!("log_level = \"debug\"\n{text}"));
    cage.logged("cage.toml applied").await;

    // At the start there is nothing to go on with.
    let test = TestCage::new();
    let shared = test.directory().parent().unwrap().join(".shared");
    fs::create_dir(&shared).unwrap();
    pipe(&shared.join("cage.toml"));
    let started = tokio::time::timeout(Duration::from_secs(60), test.try_start()).await.expect("no waiting");
    match started.err().expect("no start") {
        StartError::Config { source, .. } => assert!(source.to_string().contains("a pipe"), "{source}"),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_a_refused_module_says_why_it_was_refused() {
    let core = component("(module)");
    let cage = TestCage::new().file("bad", &core).start().await;
    let error = cage.call("bad.run", serde_json::json!([])).await.unwrap_err().to_string();
    assert!(error.contains("was refused") && error.contains("core module"), "{error}");
}
