//! Components as other people's toolchains make them drop in: what they import unused, in other versions or for its types
//! only; names that several of their interfaces have; commands; what they keep of the host's.

use serde_json::{Value, json};
use wasmcage_core::error::DispatchError;
use wasmcage_tests::{RunningCage, TestCage, component, eventually, fixture, program};

async fn with(name: &str, config: &str) -> RunningCage {
    TestCage::new().lanes(1).config(config).file("tool", &fixture(name)).start().await
}

async fn called(cage: &RunningCage, function: &str, arguments: Value) -> Value {
    cage.call(&format!("tool.{function}"), arguments).await.unwrap_or_else(|error| panic!("{function}: {error}"))
}

async fn failed(cage: &RunningCage, function: &str, arguments: Value) -> DispatchError {
    cage.call(&format!("tool.{function}"), arguments).await.expect_err(function)
}

#[track_caller]
fn contains(error: &DispatchError, parts: &[&str]) {
    let text = error.to_string();
    parts.iter().for_each(|part| assert!(text.contains(part), "{part} is not in {text}"));
}

/// The output of `wasmcage check` for a fixture.
async fn check(name: &str) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(format!("{name}.wasm"));
    std::fs::write(&file, fixture(name)).unwrap();
    let mut command = tokio::process::Command::new(program());
    command.env("WASMCAGE_ROOT", directory.path()).arg("check").arg(&file);
    let output = command.output().await.unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_an_interface_that_nobody_provides_may_be_imported() {
    assert_eq!(called(&with("types_only", "").await, "ping", json!([])).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wasi_3_without_an_async_function_and_beside_wasi_2() {
    let cage = with("both_wasi", "").await;
    assert_eq!(called(&cage, "differ", json!([])).await, true);
    assert_eq!(cage.module("tool").unwrap().version.unwrap().engine, "concurrent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_of_wasi_3_calls_another() {
    let cage = TestCage::new()
        .config("[modules.caller.imports]\n\"acme:work/api\" = \"tool\"")
        .file("tool", &fixture("both_wasi"))
        .file("caller", &fixture("caller_of_both_wasi"))
        .start()
        .await;
    for _ in 0..3 {
        assert_eq!(cage.call("caller.ask", json!([])).await.unwrap(), true);
    }
    assert_eq!(cage.module("caller").unwrap().version.unwrap().engine, "concurrent");
}

#[tokio::test(flavor = "multi_thread")]
async fn drafts_of_wasi_config() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/wasi_config.wat")).unwrap();
    for name in ["store@0.2.0-draft", "store@0.2.0-draft-2024-09-27", "runtime@0.2.0-draft"] {
        let wat = text.replace("store@0.2.0-rc.1", name);
        assert!(wat.contains(name));
        let config = "[modules.tool]\nconfig = { greeting = \"hello\" }";
        let cage = TestCage::new().config(config).file("tool", &component(&wat)).start().await;
        assert_eq!(called(&cage, "get", json!(["greeting"])).await, "hello", "{name}");
        assert_eq!(called(&cage, "get", json!(["none"])).await, Value::Null, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_of_the_component_model() {
    let cage = with("map", "").await;
    let map = json!({ "a": 1, "b": 2, "c": 3 });
    assert_eq!(called(&cage, "count", json!([map])).await, 3);
    assert_eq!(called(&cage, "same", json!([map])).await, map);
    contains(&failed(&cage, "count", json!([{ "a": "x" }])).await, &["expected u32", "\"x\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn outgoing_http_may_be_imported_and_check_says_that_it_is_denied() {
    assert_eq!(called(&with("outgoing_http", "").await, "ping", json!([])).await, 1);
    let (taken, text) = check("outgoing_http").await;
    assert!(taken, "{text}");
    let line = "import  ok       wasi:http/outgoing-handler@0.2.0: each request is denied";
    assert!(text.contains(line) && text.contains("would be taken"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_knows_what_was_built_with_an_earlier_wit() {
    for name in ["earlier_service", "earlier_caller"] {
        let (taken, text) = check(name).await;
        assert!(!taken && text.contains("build it again with the SDK"), "{name}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_how_instances_serve() {
    let (_, command) = check("command").await;
    assert!(command.contains("instances  a new one for each request (mode fresh)"), "{command}");
    let (_, plain) = check("map").await;
    assert!(plain.contains("instances  serve one request after another (mode reuse)"), "{plain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_several_interfaces_have_is_refused_and_they_are_named() {
    let cage = with("same_names", "").await;
    let error = failed(&cage, "do-it", json!([])).await;
    assert!(matches!(error, DispatchError::NoSuchFunction(_)), "{error}");
    contains(&error, &["several functions `do-it`", "`acme:work/first@1.0.0#do-it`", "`acme:work/second@1.0.0#do-it`"]);
    contains(&failed(&cage, "do_it", json!([])).await, &["acme:work/first@1.0.0#do-it"]);
    assert_eq!(called(&cage, "acme:work/first@1.0.0#do-it", json!([])).await, 1);
    assert_eq!(called(&cage, "acme:work/second@1.0.0#do-it", json!([])).await, 2);
    // Of another version that stands for this one, and as Python and Rust write it.
    assert_eq!(called(&cage, "acme:work/second@1.2.0#do_it", json!([])).await, 2);
    assert_eq!(called(&cage, "only-first", json!([])).await, 1);
    assert_eq!(called(&cage, "only_second", json!([])).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_gets_words_and_ends_by_exit_or_by_returning() {
    let cage = with("command", "").await;
    // Each has an instance of its own, as the guest demands.
    for word in ["well", "ok"] {
        assert_eq!(called(&cage, "run", json!([word, "two words", 3])).await, Value::Null, "{word}");
        assert_eq!(cage.instances("tool"), 0);
    }
    let log = cage.logged("two words").await;
    for word in ["tool", "well", "ok", "two words", "3"] {
        assert!(log.lines().any(|line| line.contains(&format!("[tool] {word} #"))), "{word} in {log}");
    }
    for word in ["exit", "fail"] {
        let error = failed(&cage, "wasi:cli/run@0.2.0#run", json!([word])).await;
        assert!(matches!(error, DispatchError::Failed(_)), "{word}: {error}");
        contains(&error, &["the command ended with status 1"]);
    }
    let error = failed(&cage, "exits", json!([])).await;
    assert!(matches!(error, DispatchError::Trap(_)), "{error}");
    contains(&error, &["the module ended itself by exit, with status 0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_run_once_in_an_instance_in_any_mode() {
    for mode in ["reuse", "single"] {
        let cage = with("command", &format!("[modules.tool]\ninstances = {{ mode = \"{mode}\" }}")).await;
        for _ in 0..3 {
            assert_eq!(called(&cage, "run", json!([])).await, Value::Null, "{mode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_with_many_handles_ends_with_its_request() {
    let cage = with("leaks_handles", "").await;
    // Far more than 10,000 serve one request. Each pollable is two handles.
    assert_eq!(called(&cage, "leak", json!([40_000])).await, 40_000);
    eventually("the end of the instance", || (cage.instances("tool") == 0).then_some(())).await;
    // Few are kept from request to request.
    assert_eq!(called(&cage, "leak", json!([2_000])).await, 2_000);
    assert_eq!(called(&cage, "leak", json!([2_000])).await, 4_000);
    assert_eq!(cage.instances("tool"), 1);
    assert_eq!(called(&cage, "leak", json!([2_000])).await, 6_000);
    eventually("the end of the instance", || (cage.instances("tool") == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_are_bounded_and_the_bound_is_named() {
    let cage = with("leaks_handles", "[modules.tool]\nhandles = 100").await;
    assert_eq!(called(&cage, "leak", json!([50])).await, 50);
    let error = failed(&cage, "leak", json!([1])).await;
    assert!(matches!(error, DispatchError::Trap(_)), "{error}");
    contains(&error, &["limit of 100 handles reached (handles in cage.toml)"]);
    assert_eq!(called(&cage, "leak", json!([50])).await, 50);
}

/// An actor whose `save` does this first.
fn actor(save: &str) -> Vec<u8> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/actor.wat")).unwrap();
    component(&text.replace("(;SAVE;)", save))
}

async fn acting(save: &str) -> RunningCage {
    let config = "request_timeout_ms = 500\n[modules.tool]\ninstances = { mode = \"single\" }";
    let cage = TestCage::new().config(config).file("tool", &actor(save)).start().await;
    for count in 1..=3 {
        assert_eq!(called(&cage, "increment", json!([])).await, count);
    }
    cage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_takes_longer_than_a_start_loses_no_memory() {
    let cage = acting("(call $pause (i64.const 1500000000))").await;
    cage.deploy("tool", &actor(""));
    cage.swapped("tool", Some(1)).await;
    assert_eq!(called(&cage, "increment", json!([])).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_fails_says_that_the_memory_is_lost() {
    let cage = acting("unreachable").await;
    cage.deploy("tool", &actor(""));
    let reason = cage.refused("tool").await;
    assert!(reason.contains("its memory is lost") && reason.contains("remove it and put it there again"), "{reason}");
    assert_eq!(called(&cage, "increment", json!([])).await, 1);
}
