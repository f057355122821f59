//! Loads that fail for a reason outside the file are tried again; settings that change while a module compiles are those it
//! gets; grants that are revoked are gone at once; modules that take their time hold up no others.

use std::fs;
use std::time::Duration;

use wasmcage_tests::{Gate, RunningCage, TestCage, component, eventually, eventually_within, fixture, guest};

fn web(module: &str) -> String {
    format!("[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n[modules.interface_web]\n{module}\n")
}

/// Waits for the configuration that was saved last.
async fn applied(cage: &RunningCage, times: usize) {
    let count = || cage.log().matches("cage.toml applied").count();
    eventually("an applied cage.toml", || (count() >= times).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_directory_that_comes_later_makes_a_refused_module_load() {
    let cage = TestCage::new()
        .config(&web("allow = { files = [{ host = \"later\", guest = \"/data\" }] }"))
        .module("echo", "interface_web")
        .start()
        .await;
    let reason = cage.refused("interface_web").await;
    assert!(reason.contains("granted directory") && reason.contains("tried again by itself"), "{reason}");
    fs::create_dir(cage.directory().join("later")).unwrap();
    fs::write(cage.directory().join("later/file"), "content").unwrap();
    cage.swapped("interface_web", None).await;
    assert_eq!(cage.client("web").get("/file?path=/data/file").await.text(), "content");
    // However often it was tried, it was told once.
    assert_eq!(cage.log().matches("module refused").count(), 1, "{}", cage.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_room_to_compile_is_no_fault_of_the_file() {
    let gate = Gate::full_disk();
    let cage = TestCage::new().compiler(&gate).http("web").module("hello", "interface_web").start().await;
    let reason = cage.refused("interface_web").await;
    assert!(reason.contains("no space left") && reason.contains("tried again by itself"), "{reason}");
    gate.open();
    cage.swapped("interface_web", None).await;
    assert_eq!(cage.refusal("interface_web"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_whose_cache_cannot_be_used_compiles_without_one() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let cage = TestCage::new().cache(&file.join("cache")).http("web").module("hello", "interface_web").start().await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    cage.logged("compiled files are not kept where they should be").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_saved_while_a_module_compiles_are_those_it_gets() {
    let gate = Gate::closed();
    let cage = TestCage::new()
        .compiler(&gate)
        .config(&web("env = { REGION = \"old\" }"))
        .module("echo", "interface_web")
        .start()
        .await;
    eventually("the compiler", || gate.was_asked().then_some(())).await;
    // Nothing is on disk that a kill would leave behind.
    assert_eq!(fs::read_dir(gate.cache()).unwrap().count(), 0);
    cage.configure(&web("env = { REGION = \"new\" }"));
    applied(&cage, 1).await;
    gate.open();
    cage.swapped("interface_web", None).await;
    assert_eq!(cage.client("web").get("/env").await.json(), serde_json::json!({ "REGION": "new" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_and_its_grant_may_be_saved_in_any_order() {
    let gate = Gate::closed();
    let cage = TestCage::new().compiler(&gate).config(&web("")).start().await;
    cage.deploy("interface_web", &fs::read(guest("echo")).unwrap());
    eventually("the compiler", || gate.was_asked().then_some(())).await;
    cage.configure(&web("allow = { files = [{ host = \".\", guest = \"/cage\" }] }"));
    applied(&cage, 1).await;
    gate.open();
    cage.swapped("interface_web", None).await;
    assert_eq!(cage.client("web").get("/file?path=/cage/cage.toml").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_grant_is_gone_at_once_even_if_no_version_can_do_without() {
    let target = TestCage::new().http("web").module("hello", "interface_web").start().await;
    let address = target.address("web");
    let granted = web(&format!("allow = {{ http = [\"{address}\"] }}"));
    let cage = TestCage::new().config(&granted).module("fetch_p2", "interface_web").start().await;
    cage.swapped("interface_web", None).await;
    let client = cage.client("web");
    let path = format!("/http/{address}/");
    assert_eq!(client.get(&path).await.text(), "Hello, world !");
    // With a grant that cannot be given no version loads; the one that serves goes on, without what is revoked.
    cage.configure(&web("allow = { files = [{ host = \"nowhere\", guest = \"/data\" }] }"));
    cage.refused("interface_web").await;
    let answer = client.get(&path).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.text().contains("HttpRequestDenied"), "{}", answer.text());
    // And back again.
    cage.configure(&granted);
    eventually("the refusal's end", || cage.refusal("interface_web").is_none().then_some(())).await;
    assert_eq!(client.get(&path).await.text(), "Hello, world !");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_directory_is_gone_from_warm_instances() {
    let granted = web("allow = { files = [{ host = \".\", guest = \"/cage\" }] }");
    let cage = TestCage::new().config(&granted).module("echo", "interface_web").start().await;
    cage.swapped("interface_web", None).await;
    let client = cage.client("web");
    assert_eq!(client.get("/file?path=/cage/cage.toml").await.status, 200);
    // The next version cannot start; the warm instance of this one has the directory open.
    let nowhere = web("allow = { files = [{ host = \"nowhere\", guest = \"/data\" }] }");
    cage.configure(&nowhere);
    cage.refused("interface_web").await;
    assert_ne!(client.get("/file?path=/cage/cage.toml").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_that_never_start_hold_up_no_others() {
    let mut test = TestCage::new().config("request_timeout_ms = 300_000").http("web").module("hello", "interface_web");
    let looping = fixture("loop_at_start");
    for number in 0..6 {
        test = test.module("loops_at_start", &format!("loops{number}")).file(&format!("spins{number}"), &looping);
    }
    let cage = test.start().await;
    cage.swapped("interface_web", None).await;
    let answer = component(
        r#"(component
            (core module $m (func (export "answer") (result i32) i32.const 42))
            (core instance $i (instantiate $m))
            (func (export "answer") (result s32) (canon lift (core func $i "answer"))))"#,
    );
    cage.deploy("answer", &answer);
    // The looping ones have five minutes.
    eventually_within(Duration::from_secs(60), "the good module", || cage.version("answer")).await;
    assert!(cage.module("loops0").is_some_and(|module| module.version.is_none() && module.refused.is_none()));
}
