//! Transactions of modules over a database and their own data: all or nothing, whatever ends them. Policies, phases and errors
//! are in the host's own tests, with doubles.

use serde_json::{Value, json};
use wasmcage_tests::{RunningCage, TestCage, eventually};

use crate::resources::{USER, call, rows, sqlite, started};

async fn orders() -> RunningCage {
    let cage = started(&(sqlite("db", "a.db", "") + &sqlite("other", "b.db", ""))).await;
    for resource in ["db", "other"] {
        call(&cage, "run", json!([resource, "create table t (x integer primary key)"])).await;
    }
    cage
}

/// Rows in both databases.
async fn counts(cage: &RunningCage) -> [Value; 2] {
    let sql = "select count(*) from t";
    [rows(cage, "db", sql).await[0][0].clone(), rows(cage, "other", sql).await[0][0].clone()]
}

/// The count that the module keeps, by adding to it.
async fn next(cage: &RunningCage) -> Value {
    call(cage, "transact", json!([[{"add": "count"}], "all"])).await[0].clone()
}

const INSERT: &str = "insert into t values (1)";

#[tokio::test(flavor = "multi_thread")]
async fn all_is_done_or_nothing() {
    let cage = orders().await;
    let parts = json!([{"db": INSERT}, {"add": "count"}, {"other": INSERT}]);
    let done = call(&cage, "transact", json!([parts, "all"])).await;
    assert_eq!(done, json!(["reply", 1, "reply"]));
    assert_eq!(counts(&cage).await, [1, 1]);
    // The second row of the same key is refused by the second database.
    let parts = json!([{"db": "insert into t values (2)"}, {"add": "count"}, {"other": INSERT}]);
    let error = call(&cage, "transact", json!([parts, "all"])).await;
    assert_eq!(
        (&error["participant"], &error["index"], &error["phase"]),
        (&json!("other"), &json!(2), &json!("Phase::Execute"))
    );
    assert!(error["code"].as_str().unwrap().contains("CONSTRAINT"), "{error}");
    assert_eq!(counts(&cage).await, [1, 1]);
    assert_eq!(next(&cage).await, 2);
    // A condition of the module's data keeps the databases from committing.
    let parts = json!([{"db": "insert into t values (3)"}, {"absent": "count"}]);
    let error = call(&cage, "transact", json!([parts, "all"])).await;
    assert_eq!(
        (&error["participant"], &error["code"], &error["recoverable"]),
        (&json!("state"), &json!("conflict"), &json!(true))
    );
    assert_eq!(counts(&cage).await, [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_or_enough_of_them_are_kept() {
    let cage = orders().await;
    let parts = json!([{"db": INSERT}, {"db": "select nothing"}, {"other": INSERT}]);
    let done = call(&cage, "transact", json!([parts, "2"])).await;
    assert_eq!((&done[0], &done[2]), (&json!("reply"), &json!("reply")), "{done}");
    assert_eq!(counts(&cage).await, [1, 1]);
    let parts = json!([{"db": "select nothing"}, {"other": "insert into t values (2)"}]);
    let done = call(&cage, "transact", json!([parts, "first"])).await;
    assert_eq!(done[1], "reply", "{done}");
    assert_eq!(counts(&cage).await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_its_module_does_not_commit_is_rolled_back() {
    let cage = orders().await;
    let parts = json!([{"db": INSERT}, {"add": "count"}]);
    for end in ["rollback", "drop", "keep"] {
        call(&cage, "decide", json!([parts, end])).await;
        eventually("the rollback", || {
            let cage = cage.snapshot().cages.swap_remove(0);
            cage.resources.iter().all(|resource| resource.in_use == 0).then_some(())
        })
        .await;
        assert_eq!(counts(&cage).await, [0, 0], "{end}");
    }
    // The request that began it is over.
    let error = call(&cage, "commit_kept", json!([])).await;
    assert_eq!(error["code"], "bad-operation", "{error}");
    // A module that dies in the middle.
    let dispatcher = cage.host().cage(cage.name()).unwrap().dispatcher().clone();
    let context = wasmcage_core::request::RequestContext::new(
        "test".into(),
        "test",
        std::time::Duration::from_secs(30),
        std::sync::Arc::default(),
    );
    let arguments = wasmcage_core::request::Payload::Json(json!({"args": [parts, "panic"]}).to_string());
    assert!(dispatcher.call(context.into(), "user", "decide".into(), arguments).await.is_err());
    assert_eq!(counts(&cage).await, [0, 0]);
    let done = call(&cage, "decide", json!([parts, "commit"])).await;
    assert_eq!(done, json!(["reply", 1]));
    assert_eq!(counts(&cage).await, [1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_a_row_a_count_and_a_mail() {
    let config = sqlite("db", "a.db", "") + "[modules.interface_web]\nallow = { resources = [\"db\"] }\n" + USER;
    let cage = TestCage::new()
        .module("order", "interface_web")
        .module("resource_user", "user")
        .http("web")
        .config(&config)
        .start()
        .await;
    let answer = cage.client("web").post("/", "a book").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().starts_with("order 1 is taken, its mail is RT-"), "{}", answer.text());
    assert_eq!(rows(&cage, "db", "select item from orders").await, json!([["a book"]]));
}
