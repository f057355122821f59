//! Operations on resources: grants, caches, live changes, what operators see. Pools under stress are in the host's own tests.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use wasmcage_core::request::{Facts, Payload, RequestContext};
use wasmcage_tests::{RunningCage, TestCage, eventually};

/// The answer of a function of module `user`.
pub(crate) async fn call(cage: &RunningCage, function: &str, args: Value) -> Value {
    let dispatcher = cage.host().cage(cage.name()).expect("the cage").dispatcher().clone();
    let context = RequestContext::new("test".into(), "test", Duration::from_secs(30), Arc::new(Facts::default()));
    let arguments = Payload::Json(json!({"args": args}).to_string());
    match dispatcher.call(Arc::new(context), "user", function.to_owned(), arguments).await.expect("a result") {
        Payload::Json(json) => serde_json::from_str(&json).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

pub(crate) const USER: &str = "[modules.user]\nallow = { resources = [\"db\", \"other\"] }\n";

pub(crate) fn sqlite(name: &str, file: &str, more: &str) -> String {
    format!("[resources.{name}]\nprotocol = \"sql\"\npath = \"{file}\"\n{more}\n")
}

/// A cage whose module `user` may use the resources `db` and `other`.
pub(crate) async fn started(config: &str) -> RunningCage {
    TestCage::new().module("resource_user", "user").config(&format!("{config}{USER}")).start().await
}

/// The rows of one statement.
pub(crate) async fn rows(cage: &RunningCage, resource: &str, sql: &str) -> Value {
    let mut reply = call(cage, "run", json!([resource, sql])).await;
    assert!(reply["results"].is_array(), "{reply}");
    reply["results"][0]["rows"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_told_what_to_write_to_use_a_resource() {
    let cage = started(&(sqlite("db", "a.db", "") + &sqlite("hidden", "b.db", ""))).await;
    let check = async |name: &str, code: &str, text: &str| {
        let error = call(&cage, "run", json!([name, "select 1"])).await;
        assert_eq!(
            (&error["participant"], &error["code"], &error["phase"]),
            (&json!(name), &json!(code), &json!("Phase::Check"))
        );
        assert!(error["text"].as_str().unwrap().contains(text), "{error}");
    };
    assert_eq!(rows(&cage, "db", "select 1").await, json!([[1]]));
    check("hidden", "not-permitted", "add it to allow = { resources = [..] } of [modules.user]").await;
    check("dbb", "no-such-resource", "did you mean `db`?").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cage_toml_is_live_for_resources() {
    let with = |db: &str, other: &str| sqlite("db", db, "") + &sqlite("other", other, "") + USER;
    let cage = started(&(sqlite("db", "a.db", "") + &sqlite("other", "o.db", ""))).await;
    call(&cage, "run", json!(["db", "create table t (x integer)"])).await;
    rows(&cage, "other", "select 1").await;
    let known = |name: &str| {
        let cages = cage.snapshot().cages;
        cages[0].resources.iter().find(|resource| resource.resource == name).map(|resource| resource.readings.requests)
    };
    // A resource that has not changed keeps its connections.
    cage.configure(&with("b.db", "o.db"));
    eventually("the new database", || (known("db") == Some(0)).then_some(())).await;
    assert_eq!(known("other"), Some(1));
    let error = call(&cage, "run", json!(["db", "select x from t"])).await;
    assert!(error["text"].as_str().unwrap().contains("no such table"), "{error}");
    // A mistake leaves all as it is.
    cage.configure(&format!("{}pool = {{ size = 2, standby = 3 }}\n{USER}", sqlite("db", "c.db", "")));
    cage.logged("3 is more than size = 2").await;
    assert_eq!(known("other"), Some(1));
    // One that is gone is gone.
    cage.configure(&(sqlite("db", "a.db", "") + USER));
    eventually("the end of the other", || known("other").is_none().then_some(())).await;
    assert_eq!(rows(&cage, "db", "select count(*) from t").await, json!([[0]]));
    assert_eq!(call(&cage, "run", json!(["other", "select 1"])).await["code"], "no-such-resource");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_kept_where_the_module_asks_for_it_until_what_they_read_is_written() {
    let cage = started(&(sqlite("db", "a.db", "cache = { size_mb = 1 }") + &sqlite("other", "a.db", ""))).await;
    for sql in ["create table t (x integer)", "insert into t values (1)"] {
        call(&cage, "run", json!(["db", sql])).await;
    }
    let read =
        async || call(&cage, "run", json!(["db", "select x from t", ["t"]])).await["results"][0]["rows"][0][0].clone();
    assert_eq!(read().await, 1);
    // Past the cache, by another resource.
    call(&cage, "run", json!(["other", "update t set x = 2"])).await;
    assert_eq!(read().await, 1);
    assert_eq!(rows(&cage, "db", "select x from t").await, json!([[2]]));
    // By this one, with what it writes.
    call(&cage, "run", json!(["db", "update t set x = 3", null, ["t"]])).await;
    assert_eq!(read().await, 3);
    let cage = cage.snapshot().cages.swap_remove(0);
    let cache = cage.resources.iter().find(|resource| resource.resource == "db").and_then(|db| db.cache.as_ref());
    assert_eq!(cache.map(|cache| (cache.hits, cache.misses)), Some((1, 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_operations_and_no_contents() {
    let cage = started(&format!("log_level = \"debug\"\n{}", sqlite("db", "a.db", ""))).await;
    rows(&cage, "db", "select 'a secret'").await;
    call(&cage, "run", json!(["db", "select no_such_column"])).await;
    let log = cage.logged("operation completed").await;
    assert!(log.contains("resource=db") && log.contains("action=execute"), "{log}");
    assert!(!log.contains("a secret"), "{log}");
    let snapshot = cage.snapshot().cages.swap_remove(0).resources.swap_remove(0);
    assert_eq!((&*snapshot.resource, &*snapshot.protocol, snapshot.size, snapshot.in_use), ("db", "sql", 16, 0));
    assert_eq!((snapshot.readings.requests, snapshot.readings.outcomes.get("ok")), (2, Some(&1)));
}
