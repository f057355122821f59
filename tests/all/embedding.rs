//! A program of its own starts the host, calls its modules and stops it.

use std::fs;
use std::time::Duration;

use wasmcage::{CompileIn, DispatchError, Host, Payload, StartError};
use wasmcage_tests::{eventually, guest};

const TIMEOUT: Duration = Duration::from_secs(60);

/// `cages/embedded` with the guest `calculator`.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("embedded")).unwrap();
    fs::copy(guest("calculator"), root.path().join("embedded/calculator.wasm")).unwrap();
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_are_compiled_called_and_stopped_within_the_process() {
    let root = root();
    let host = Host::builder(root.path()).cage("embedded").lanes(1).compile_in(CompileIn::ThisProcess).start();
    let host = host.await.unwrap();
    let cage = host.cage("embedded").unwrap();
    let call =
        async |function: &str, arguments: &str| cage.call(function, Payload::Json(arguments.to_owned()), TIMEOUT).await;
    assert_eq!(call("calculator.add", r#"{"args": [20, 22]}"#).await.unwrap(), Payload::Json("42".into()));
    assert!(
        matches!(call("calculator", "{}").await, Err(DispatchError::BadRequest(text)) if text.contains("calculator"))
    );
    assert!(
        matches!(call("calculator.ad", "{}").await, Err(DispatchError::NoSuchFunction(text)) if text.contains("add"))
    );
    assert!(matches!(call("calclator.add", "{}").await, Err(DispatchError::NoSuchModule(_))));
    // No program was run to compile: what was made is in the cache, and what is no component is told.
    assert!(fs::read_dir(root.path().join(".cache")).unwrap().count() > 0);
    assert!(host.stop().await, "nothing was in work");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_component_is_refused_within_the_process_too() {
    let root = root();
    let broken =
        wat::parse_str("(component (core module (func (result i32))))").unwrap_or_else(|_| b"\0asm broken".to_vec());
    fs::write(root.path().join("embedded/broken.wasm"), broken).unwrap();
    let host = Host::builder(root.path()).cage("embedded").compile_in(CompileIn::ThisProcess).start().await.unwrap();
    let cages = host.snapshot().cages;
    let broken = cages[0].modules.iter().find(|module| module.module == "broken").unwrap();
    assert!(broken.refused.is_some(), "{broken:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_compiles_has_to_be_said() {
    let root = root();
    let error = Host::builder(root.path()).cage("embedded").start().await.err().unwrap();
    assert!(matches!(error, StartError::NoCompiler), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_waits_for_any_more_is_not_in_work_for_ever() {
    let root = root();
    fs::copy(guest("service_echo"), root.path().join("embedded/service_echo.wasm")).unwrap();
    let host = Host::builder(root.path()).cage("embedded").compile_in(CompileIn::ThisProcess).start().await.unwrap();
    let readings = || {
        let cage = host.snapshot().cages.remove(0);
        cage.modules.into_iter().find(|module| module.module == "service_echo").unwrap().readings
    };
    {
        let cage = host.cage("embedded").unwrap();
        let call = cage.call("service_echo.slow", Payload::Json(r#"{"args": [60000]}"#.into()), TIMEOUT);
        let begun = eventually("the call", || (readings().in_work == 1).then_some(()));
        tokio::select! {
            result = call => panic!("the guest sleeps longer than this test: {result:?}"),
            () = begun => {}
        }
    }
    let readings = eventually("its end", || Some(readings()).filter(|readings| readings.in_work == 0)).await;
    assert_eq!(readings.outcomes.get("abandoned"), Some(&1), "{readings:?}");
    host.stop().await;
}
