//! PostgreSQL behind PgBouncer, which gives each transaction to another of its connections: with `statement_cache = 0` no
//! statement meets another one's, and nothing that one leaves in a session reaches another.

use futures_util::future::join_all;
use serde_json::{Value, json};
use wasmcage_tests::{DatabaseServer, RunningCage, TestCage};

use crate::sql::{call, call_of, config, failed, result, rows, run, tried};

/// A cage with modules `user` and `other`, and the two servers behind it.
struct PooledCage {
    cage: RunningCage,
    pooler: DatabaseServer,
    _server: DatabaseServer,
}

impl PooledCage {
    async fn start() -> Self {
        let server = DatabaseServer::postgres(None);
        let pooler = DatabaseServer::pgbouncer(&server);
        let port = pooler.port();
        let resource = format!("url = \"postgres://postgres@127.0.0.1:{port}/postgres\"\nstatement_cache = 0");
        let config = config(&resource) + "[modules.other]\nallow = { resources = [\"db\"] }\n";
        let cage = TestCage::new().module("sql_user", "user").module("sql_user", "other").config(&config).start().await;
        Self { cage, pooler, _server: server }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_at_the_same_time_never_meet_each_others_statements() {
    let PooledCage { cage, .. } = &PooledCage::start().await;
    run(cage, "create table t (id int primary key, name text)").await;
    let rounds = (0..24).map(async |caller: i64| {
        for round in 0..20_i64 {
            let id = caller * 1_000 + round;
            let values = json!({"id": id, "name": format!("{caller}/{round}")});
            let insert = format!("insert into t values ({{id}}, {{name}}) /* {} */", id % 7);
            assert_eq!(result(tried(cage, &insert, values.clone()).await)["affected"], 1);
            // Of different columns and types, so that a statement of another's would be seen.
            let (select, expected) = match id % 3 {
                0 => ("select name from t where id = {id}", json!([[values["name"]]])),
                1 => ("select id, name from t where name = {name}", json!([[id, values["name"]]])),
                _ => ("select {id}::bigint + 1, id from t where id = {id}", json!([[id + 1, id]])),
            };
            assert_eq!(result(tried(cage, select, values).await)["rows"], expected);
        }
    });
    join_all(rounds).await;
    assert_eq!(rows(cage, "select count(*) from t").await, json!([[480]]));
    assert_eq!(rows(cage, "select count(*) from pg_prepared_statements").await, json!([[0]]), "none has a name");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_in_a_session_behind_a_pooler_nobody_finds() {
    let PooledCage { cage, .. } = &PooledCage::start().await;
    for leave in [
        "select set_config('app.user', 'alice', false)",
        "set role pg_monitor",
        "create temp table secrets (a int)",
        "select pg_advisory_lock(42)",
    ] {
        result(tried(cage, leave, json!({})).await);
    }
    failed(&tried(cage, "prepare p as select 1", json!({})).await, "bad-operation", "Phase::Execute", true, false);
    let bad = call(cage, "run", json!(["db", [["select pg_advisory_lock(43)", []], ["select 1/0", []]]])).await;
    assert_eq!(bad["code"], "22012");
    run(cage, "create table d (id int primary key, up int references d deferrable initially deferred)").await;
    let told =
        call(cage, "run", json!(["db", [["select pg_advisory_lock(44)", []], ["insert into d values (1, 2)", []]]]))
            .await;
    failed(&told, "23503", "Phase::Commit", true, false);
    // Whichever of its connections the pooler takes.
    let look = "select coalesce(current_setting('app.user', true), ''), current_user::text, to_regclass('secrets')::text, \
                (select count(*) from pg_locks where locktype = 'advisory'), pg_sleep(0.05)";
    let looks = (0..12).map(async |_| {
        let told = call_of(cage, "other", "run", json!(["db", [[look, []]]])).await;
        assert_eq!(result(told)["rows"], json!([["", "postgres", null, 0, null]]));
    });
    join_all(looks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_behind_a_pooler_gives_back_the_settings_that_values_are_read_with() {
    let PooledCage { cage, pooler, _server } = &mut PooledCage::start().await;
    run(cage, "alter role postgres set timezone to 'Asia/Tokyo'").await;
    run(cage, "alter role postgres set datestyle to 'German'").await;
    tokio::task::block_in_place(|| {
        pooler.kill();
        pooler.start();
    });
    let look = "select current_setting('timezone'), timestamptz '2026-11-21T10:00:00Z'::text";
    let mut told = tried(cage, look, json!({})).await;
    for _ in 0..100 {
        if told.get("ok").is_some() {
            break;
        }
        told = tried(cage, look, json!({})).await;
    }
    for _ in 0..6 {
        assert_eq!(rows(cage, look).await, json!([["UTC", "2026-11-21 10:00:00+00"]]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_works_without_a_pooler_works_with_one() {
    let PooledCage { cage, .. } = &PooledCage::start().await;
    run(cage, "create table t (id int primary key)").await;
    // Transactions, their failures, and streams.
    let insert = |id: i64| json!(["insert into t values ({id})", [["id", id]]]);
    let told = call(cage, "run", json!(["db", [insert(1), insert(2), insert(1)]])).await;
    failed(&told, "23505", "Phase::Execute", true, false);
    assert_eq!(rows(cage, "select count(*) from t").await, json!([[0]]));
    result(call(cage, "run", json!(["db", [insert(1), insert(2)]])).await);
    assert_eq!(
        call(cage, "sum", json!(["db", "select i::bigint from generate_series(1, 30000) i"])).await["ok"],
        450_015_000
    );
    let told = call(cage, "run", json!(["db", [insert(3)], "read-only"])).await;
    failed(&told, "25006", "Phase::Execute", true, false);
    // Statements that cannot run in a transaction.
    assert!(tried(cage, "vacuum t", json!({})).await.get("ok").is_some());
    run(cage, "create index concurrently i on t (id)").await;
    // A table that is altered, and a parameter whose type is another one then.
    let find = async |id: Value| result(tried(cage, "select * from t where id = {id}", json!({"id": id})).await);
    for _ in 0..3 {
        assert_eq!(find(json!(1)).await["rows"], json!([[1]]));
    }
    run(cage, "alter table t alter column id type text").await;
    run(cage, "alter table t add column more int").await;
    assert_eq!(find(json!("1")).await["rows"], json!([["1", null]]));
}
