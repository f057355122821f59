//! Databases that change under warm connections, and results that have no form in JSON: no call fails that need not, and no
//! connection is lost.

use serde_json::{Value, json};
use wasmcage_tests::{DatabaseServer, RunningCage, TestCage};

use crate::sql::{call, call_of, config, mariadb_url, postgres_url, result, rows, run, tried};

/// Modules `user` and `other`, each with a connection of its own where modules are kept apart.
async fn started(resource: &str) -> RunningCage {
    let config = config(resource) + "[modules.other]\nallow = { resources = [\"db\"] }\n";
    TestCage::new().module("sql_user", "user").module("sql_user", "other").config(&config).start().await
}

async fn other(cage: &RunningCage, sql: &str) {
    result(call_of(cage, "other", "run", json!(["db", [[sql, []]]])).await);
}

async fn all(cage: &RunningCage) -> (Value, Value) {
    let mut told = result(tried(cage, "select * from t", json!({})).await);
    (told["columns"].take(), told["rows"].take())
}

/// A connection that knows `select * from t` well sees each change at once, and fails not once.
async fn tables_change(cage: &RunningCage, retype: &str) {
    run(cage, "create table t (a int)").await;
    run(cage, "insert into t values (1)").await;
    for change in
        ["alter table t add column b int", "alter table t rename column b to c", retype, "alter table t drop column c"]
    {
        for _ in 0..3 {
            all(cage).await;
        }
        let in_transaction = json!(["db", [["select * from t", []], ["select * from t", []]], "serializable"]);
        result(call(cage, "run", in_transaction.clone()).await);
        other(cage, change).await;
        // First in a transaction, then alone: each may be the first to meet the change.
        let seen = result(call(cage, "run", in_transaction).await);
        let (columns, rows) = all(cage).await;
        assert_eq!((&seen["columns"], &seen["rows"]), (&columns, &rows), "{change}");
        let expected = match change {
            "alter table t add column b int" => (json!(["a", "b"]), json!([[1, null]])),
            "alter table t drop column c" => (json!(["a"]), json!([[1]])),
            _ => (json!(["a", "c"]), json!([[1, null]])),
        };
        assert_eq!((columns, rows), expected, "{change}");
    }
    // Streamed, too.
    run(cage, "create table s (a int)").await;
    run(cage, "insert into s values (1)").await;
    for (before, name) in [("a", "b"), ("b", "c"), ("c", "d")] {
        for _ in 0..3 {
            assert_eq!(call(cage, "sum", json!(["db", "select * from s"])).await, json!({"ok": 1}));
        }
        other(cage, &format!("alter table s rename column {before} to {name}")).await;
    }
    assert_eq!(call(cage, "sum", json!(["db", "select * from s"])).await, json!({"ok": 1}));
    other(cage, "alter table t add column b int").await;
    // A parameter of another type than it was.
    let find = async || result(tried(cage, "select b from t where b = {b}", json!({"b": 1})).await)["rows"].take();
    assert_eq!(find().await, json!([]));
    assert_eq!(all(cage).await.0, json!(["a", "b"]));
    // Within one operation, too.
    let told = call(
        cage,
        "run",
        json!(["db", [["select * from t", []], ["alter table t add column d int", []], ["select * from t", []]]]),
    )
    .await;
    assert_eq!(told["ok"][2]["columns"], json!(["a", "b", "d"]), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_altered_fails_no_statement_of_sqlite() {
    let cage = started("path = \"test.db\"").await;
    tables_change(&cage, "create table another (a)").await;
}

mod with_postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_that_is_altered_fails_no_statement_of_postgres() {
        let server = DatabaseServer::postgres(None);
        let cage = started(&postgres_url(&server)).await;
        tables_change(&cage, "alter table t alter column c type text").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_result_without_a_form_in_json_costs_no_connection() {
        let server = DatabaseServer::postgres(None);
        let cage = started(&format!("{}\npool = {{ size = 1 }}", postgres_url(&server))).await;
        let pid = rows(&cage, "select pg_backend_pid()").await;
        run(&cage, "create table kept (a int)").await;
        for value in [
            "interval '1 day'",
            "inet '10.0.0.1'",
            "1::money",
            "timetz '10:00+02'",
            "point '(1,2)'",
            "array[inet '::1']",
        ] {
            let told = tried(&cage, &format!("insert into kept values (1) returning {value} as x"), json!({})).await;
            assert_eq!(
                (&told["code"], &told["recoverable"], &told["terminal"]),
                (&json!("bad-result"), &json!(true), &json!(false)),
                "{told}"
            );
            assert!(
                told["text"].as_str().is_some_and(|text| text.contains("\"x\": type") && text.contains("::text")),
                "{told}"
            );
        }
        assert_eq!(rows(&cage, "select * from kept").await, json!([]), "it is told before anything runs");
        // An error that depends on a value is told when the statement has run.
        for value in ["timestamptz 'infinity'", "array[[1], [2]]"] {
            let told = tried(&cage, &format!("select {value} as x from generate_series(1, 50)"), json!({})).await;
            assert_eq!((&told["code"], &told["terminal"]), (&json!("bad-result"), &json!(false)), "{told}");
            assert!(told["text"].as_str().is_some_and(|text| text.ends_with("has run")), "{told}");
            let told = call(
                &cage,
                "run",
                json!(["db", [["insert into kept values (1)", []], [format!("select {value}"), []]]]),
            )
            .await;
            assert_eq!((&told["code"], &told["recoverable"]), (&json!("bad-result"), &json!(true)), "{told}");
        }
        assert_eq!(rows(&cage, "select * from kept").await, json!([]));
        assert_eq!(rows(&cage, "select pg_backend_pid()").await, pid);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_says_what_exactly_is_wrong_and_no_library_says_where_its_source_is() {
        let server = DatabaseServer::postgres(None);
        let cage = started(&postgres_url(&server)).await;
        run(&cage, "create table t (id int primary key)").await;
        run(&cage, "insert into t values (7)").await;
        let told = tried(&cage, "insert into t values (7)", json!({})).await;
        assert!(
            told["text"].as_str().is_some_and(|text| text.ends_with("; detail: Key (id)=(7) already exists")),
            "{told}"
        );
        let told = tried(&cage, "select idd from t", json!({})).await;
        assert!(told["text"].as_str().is_some_and(|text| text.contains("; hint: ")), "{told}");
        for copy in ["copy t from stdin", "copy t to stdout"] {
            let told = tried(&cage, copy, json!({})).await;
            assert_eq!((&told["code"], &told["phase"]), (&json!("bad-operation"), &json!("Phase::Check")), "{told}");
            assert!(!told["text"].as_str().is_some_and(|text| text.contains("sqlx")), "{told}");
        }
    }
}

mod with_mariadb {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_that_is_altered_fails_no_statement_of_mariadb() {
        let server = DatabaseServer::mariadb();
        let cage = started(&mariadb_url(&server)).await;
        tables_change(&cage, "alter table t modify column c varchar(9)").await;
    }
}
