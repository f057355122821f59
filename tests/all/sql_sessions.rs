//! The session of a database's connection: what one operation leaves there, no later one finds, of whatever module, while
//! connections and their prepared statements are used again.

use serde_json::{Value, json};
use wasmcage_tests::{DatabaseServer, RunningCage, TestCage};

use crate::sql::{call, call_of, config, mariadb_url, postgres_url, result};

/// Modules `user` and `other`, both with one connection between them.
async fn started(resource: &str) -> RunningCage {
    let resource = format!("{resource}\npool = {{ size = 1 }}");
    let config = config(&resource) + "[modules.other]\nallow = { resources = [\"db\"] }\n";
    TestCage::new().module("sql_user", "user").module("sql_user", "other").config(&config).start().await
}

async fn tried(cage: &RunningCage, module: &str, sql: &str) -> Value {
    call_of(cage, module, "run", json!(["db", [[sql, []]]])).await
}

async fn row(cage: &RunningCage, module: &str, sql: &str) -> Value {
    result(tried(cage, module, sql).await)["rows"][0].take()
}

/// Module `user` runs each `leave`; what `look` then says, to it and to the other module, is as in a new session.
async fn nothing_stays(cage: &RunningCage, cases: &[(&str, &str)]) {
    for (leave, look) in cases {
        let before = row(cage, "user", look).await;
        result(tried(cage, "user", leave).await);
        for module in ["other", "user"] {
            assert_eq!(row(cage, module, look).await, before, "{leave}, as {module} sees it");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_in_a_connection_to_sqlite_no_other_module_finds() {
    let cage = started("path = \"test.db\"").await;
    result(tried(&cage, "user", "create table t (a)").await);
    let temporary = "select count(*) from temp.sqlite_schema";
    nothing_stays(
        &cage,
        &[
            ("create temp table secrets (a)", temporary),
            ("create temporary trigger spy after insert on t begin delete from t; end", temporary),
            ("create table \"TEMP\".secrets (a)", temporary),
        ],
    )
    .await;
    for number in [7, 8] {
        result(tried(&cage, "user", &format!("insert into t (rowid, a) values ({number}, 1)")).await);
    }
    assert_eq!(row(&cage, "other", "select last_insert_rowid(), changes()").await, json!([0, 0]));
    let update = result(tried(&cage, "other", "update t set a = 2").await);
    assert_eq!((&update["affected"], &update["last_id"]), (&json!(2), &Value::Null), "it inserted nothing");
}

mod with_postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_left_in_a_session_of_postgres_no_later_operation_finds() {
        let server = DatabaseServer::postgres(None);
        let cage = started(&postgres_url(&server)).await;
        let pid = row(&cage, "user", "select pg_backend_pid()").await;
        result(tried(&cage, "user", "create sequence numbers").await);
        result(tried(&cage, "user", "create function sets() returns int language sql as $$ select 1 from set_config('app.user', 'eve', false) $$").await);
        let no_user = "select coalesce(current_setting('app.user', true), '')";
        nothing_stays(
            &cage,
            &[
                ("select set_config('app.user', 'alice', false)", no_user),
                ("select sets()", no_user),
                ("set search_path to pg_catalog", "show search_path"),
                ("set role pg_monitor", "select current_user"),
                ("set session authorization pg_monitor", "select session_user"),
                ("set timezone to 'Asia/Tokyo'", "show timezone"),
                ("set session characteristics as transaction read only", "show transaction_read_only"),
                ("create temp table secrets (a int)", "select to_regclass('secrets')::text"),
                ("select pg_advisory_lock(42)", "select count(*) from pg_locks where locktype = 'advisory'"),
                ("listen news", "select count(*) from pg_listening_channels()"),
                ("declare c cursor with hold for select 1", "select count(*) from pg_cursors where is_holdable"),
                ("set client_connection_check_interval = 0", "show client_connection_check_interval"),
            ],
        )
        .await;
        result(tried(&cage, "user", "select nextval('numbers')").await);
        assert_eq!(tried(&cage, "other", "select lastval()").await["code"], "55000", "it tells of another's use");
        // The same connection all the time, with the statements that it knows.
        assert_eq!(row(&cage, "other", "select pg_backend_pid()").await, pid);
        let known = row(&cage, "other", "select count(*) from pg_prepared_statements").await;
        assert!(known[0].as_i64().is_some_and(|known| known > 10), "{known}");

        // A statement that removes prepared statements, or leaves some that were named by hand, costs its connection.
        for leave in ["prepare p as select 1", "discard all", "deallocate all"] {
            result(tried(&cage, "user", leave).await);
            for _ in 0..5 {
                let look = "select count(*) from pg_prepared_statements where from_sql";
                assert_eq!(row(&cage, "user", look).await, json!([0]), "{leave}");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_transaction_or_a_stream_leaves_in_a_session_no_later_operation_finds() {
        let server = DatabaseServer::postgres(None);
        let cage = started(&postgres_url(&server)).await;
        let set = "select set_config('app.user', 'alice', false)";
        let look = "select coalesce(current_setting('app.user', true), '')";
        // Committed; rolled back; streamed.
        result(call(&cage, "run", json!(["db", [[set, []], ["select 1", []]]])).await);
        assert_eq!(row(&cage, "other", look).await, json!([""]));
        let failed = call(&cage, "run", json!(["db", [["select pg_advisory_lock(1)", []], ["select 1/0", []]]])).await;
        assert_eq!(failed["code"], "22012");
        let locks = "select count(*) from pg_locks where locktype = 'advisory'";
        assert_eq!(row(&cage, "other", locks).await, json!([0]));
        let streamed = "select length(set_config('app.user', 'alice', false))::bigint";
        assert_eq!(call(&cage, "sum", json!(["db", streamed])).await["ok"], 5);
        assert_eq!(row(&cage, "other", look).await, json!([""]));
    }
}

mod with_mariadb {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_left_in_a_session_of_mariadb_no_later_operation_finds() {
        let server = DatabaseServer::mariadb();
        let cage = started(&mariadb_url(&server)).await;
        result(tried(&cage, "user", "create table t (a int)").await);
        nothing_stays(
            &cage,
            &[
                ("set @user = 'alice'", "select @user"),
                ("select 'alice' into @user", "select @user"),
                ("set session sql_mode = ''", "select @@sql_mode"),
                (
                    "create temporary table secrets (a int)",
                    "select count(*) from information_schema.tables where table_name = 'secrets'",
                ),
                ("lock tables t write", "select count(*) from t"),
            ],
        )
        .await;
        assert_eq!(tried(&cage, "other", "select * from secrets").await["code"], "42S02");
        // The server lets go of a lock when it finds that the connection is closed, and this one waits for that.
        result(tried(&cage, "user", "select get_lock('a', 1)").await);
        assert_eq!(row(&cage, "other", "select get_lock('a', 20)").await, json!([1]));
        // No word of a statement tells what its trigger does.
        result(tried(&cage, "user", "create trigger marks before insert on t for each row set @user = 'alice'").await);
        result(tried(&cage, "user", "insert into t values (1)").await);
        assert_eq!(row(&cage, "other", "select @user").await, json!([null]));
    }
}
