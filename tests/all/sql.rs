//! Databases as resources: values of every type, statements that are one transaction, bounds, and what becomes of an operation
//! whose server is gone. SQLite always; PostgreSQL and MariaDB where they can be had.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use wasmcage_core::request::{Facts, Payload, RequestContext};
use wasmcage_tests::{DatabaseServer, PASSWORD, RunningCage, TestCage, eventually};

const SQLITE: &str = "path = \"test.db\"";

pub(crate) fn config(resource: &str) -> String {
    format!("[resources.db]\nprotocol = \"sql\"\n{resource}\n[modules.user]\nallow = {{ resources = [\"db\"] }}\n")
}

pub(crate) async fn started(resource: &str) -> RunningCage {
    TestCage::new().module("sql_user", "user").config(&config(resource)).start().await
}

pub(crate) fn postgres_url(server: &DatabaseServer) -> String {
    format!("url = \"postgres://postgres:{}@127.0.0.1:{}/postgres\"", PASSWORD.replace('/', "%2F"), server.port())
}

pub(crate) fn mariadb_url(server: &DatabaseServer) -> String {
    format!("url = \"mysql://root@127.0.0.1:{}/test\"", server.port())
}

pub(crate) async fn call(cage: &RunningCage, function: &str, args: Value) -> Value {
    call_of(cage, "user", function, args).await
}

pub(crate) async fn call_of(cage: &RunningCage, module: &str, function: &str, args: Value) -> Value {
    let dispatcher = cage.host().cage(cage.name()).expect("the cage").dispatcher().clone();
    let context = RequestContext::new("test".into(), "test", Duration::from_secs(30), Arc::new(Facts::default()));
    let arguments = Payload::Json(json!({"args": args}).to_string());
    let result = dispatcher.call(Arc::new(context), module, function.to_owned(), arguments).await.expect("a result");
    match result {
        Payload::Json(json) => serde_json::from_str(&json).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

/// One statement with values, told as a guest sees it.
pub(crate) async fn tried(cage: &RunningCage, sql: &str, values: Value) -> Value {
    let values: Vec<Value> =
        values.as_object().expect("names").iter().map(|(name, value)| json!([name, value])).collect();
    call(cage, "run", json!(["db", [[sql, values]]])).await
}

/// The one result of a statement that must succeed.
#[track_caller]
pub(crate) fn result(mut told: Value) -> Value {
    assert!(told.get("ok").is_some(), "{told}");
    told["ok"][0].take()
}

pub(crate) async fn run(cage: &RunningCage, sql: &str) -> Value {
    result(tried(cage, sql, json!({})).await)
}

pub(crate) async fn rows(cage: &RunningCage, sql: &str) -> Value {
    run(cage, sql).await["rows"].take()
}

#[track_caller]
pub(crate) fn failed(told: &Value, code: &str, phase: &str, recoverable: bool, terminal: bool) {
    let expected = json!({"code": code, "phase": phase, "recoverable": recoverable, "terminal": terminal});
    for (key, value) in expected.as_object().expect("keys") {
        assert_eq!(&told[key], value, "{key}: {told}");
    }
}

/// Each type's values, and null, go into a column of the type and come back.
async fn types(cage: &RunningCage, types: &[(&str, &[Value])]) {
    for (index, (of, values)) in types.iter().enumerate() {
        run(cage, &format!("create table types{index} (id int, x {of})")).await;
        for value in values.iter().chain([&Value::Null]) {
            run(cage, &format!("delete from types{index}")).await;
            let told = tried(cage, &format!("insert into types{index} values (1, {{x}})"), json!({"x": value})).await;
            assert_eq!(result(told)["affected"], 1, "{of}");
            assert_eq!(rows(cage, &format!("select x from types{index}")).await, json!([[value]]), "{of}");
        }
    }
}

/// Texts that no statement may take for SQL.
const HOSTILE: &[&str] = &[
    "'; drop table t; --",
    "\" or \"\"=\"",
    "\\'; drop table t; --",
    "{x} {{ }} {y}",
    "$1 ?1 ? :x @x",
    "%s %% \u{1F600} ä",
    "/* */ -- #",
    "",
];

/// Checks the behaviour that is alike with all databases.
async fn common(cage: &RunningCage) {
    run(cage, "create table t (id int primary key, name varchar(100))").await;
    for (index, text) in HOSTILE.iter().enumerate() {
        let told = tried(
            cage,
            "insert into t (id, name) values ({id}, {name})",
            json!({"id": index, "name": text, "unused": 1}),
        )
        .await;
        assert_eq!(result(told)["affected"], 1);
        let told = tried(
            cage,
            "select name, '{id}' as q from t where id = {id} and name = {name}",
            json!({"id": index, "name": text}),
        )
        .await;
        assert_eq!(result(told)["rows"], json!([[text, "{id}"]]));
    }
    assert_eq!(run(cage, "update t set name = 'x' where id < 3").await["affected"], 3);

    // One fails: none has run. The connection goes on.
    let insert = |id: i64| json!(["insert into t (id) values ({id})", [["id", id]]]);
    let told = call(cage, "run", json!(["db", [insert(100), insert(101), insert(0)]])).await;
    assert!(told["text"].as_str().is_some_and(|text| text.starts_with("statement 3: ")), "{told}");
    assert_eq!(
        (&told["recoverable"], &told["terminal"], &told["phase"]),
        (&json!(true), &json!(false), &json!("Phase::Execute"))
    );
    assert_eq!(rows(cage, "select count(*) from t where id >= 100").await, json!([[0]]));
    let told =
        call(cage, "run", json!(["db", [insert(100), insert(101), ["select count(*) from t where id >= 100", []]]]))
            .await;
    assert_eq!(told["ok"][2]["rows"], json!([[2]]));

    let told = call(cage, "run", json!(["db", [insert(102)], "read-only"])).await;
    assert!(told["recoverable"] == true && told["terminal"] == false, "{told}");
    let told = call(cage, "run", json!(["db", [["select count(*) from t where id >= 100", []]], "serializable"])).await;
    assert_eq!(told["ok"][0]["rows"], json!([[2]]));

    failed(&tried(cage, "select {nothing}", json!({"n": 1})).await, "bad-operation", "Phase::Check", true, false);
    failed(&tried(cage, "commit", json!({})).await, "bad-operation", "Phase::Check", true, false);
    let told = tried(cage, "select * from nowhere", json!({})).await;
    assert!(told["recoverable"] == true && told["terminal"] == false && told["phase"] == "Phase::Execute", "{told}");

    // 30,000 rows, whole and part by part.
    run(cage, "create table n (i int)").await;
    let ten = "select 0 as d union all select 1 union all select 2 union all select 3 union all select 4 union all select 5 union all \
               select 6 union all select 7 union all select 8 union all select 9";
    let digits = |name: char| format!("({ten}) {name}");
    let from = ['a', 'b', 'c', 'd', 'e'].map(digits).join(" cross join ");
    run(
        cage,
        &format!(
            "insert into n select a.d + 10 * b.d + 100 * c.d + 1000 * d.d + 10000 * e.d from {from} where e.d < 3"
        ),
    )
    .await;
    let told = tried(cage, "select i from n", json!({})).await;
    assert_eq!((&told["code"], &told["terminal"]), (&json!("too-large"), &json!(true)), "{told}");
    assert_eq!(call(cage, "sum", json!(["db", "select i from n"])).await["ok"], 449_985_000);
    // Left early: the connection does not come back, the next one works.
    assert_eq!(call(cage, "sum", json!(["db", "select i from n order by i", 3])).await["ok"], 3);
    assert_eq!(rows(cage, "select count(*) from n").await, json!([[30_000]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_does_what_all_databases_do() {
    let cage = started(SQLITE).await;
    common(&cage).await;
    let told = tried(&cage, "insert into t (id) values (0)", json!({})).await;
    failed(&told, "SQLITE_CONSTRAINT_PRIMARYKEY", "Phase::Execute", true, false);
    run(&cage, "create table r (id integer primary key, x)").await;
    assert_eq!(run(&cage, "insert into r (x) values (1)").await["last_id"], 1);
    types(
        &cage,
        &[
            ("integer", &[json!(0), json!(i64::MAX), json!(i64::MIN)]),
            ("real", &[json!(0.1), json!(1.0), json!(-1e300), json!({"float": "Infinity"})]),
            ("text", &[json!("x"), json!("")]),
            ("blob", &[json!({"bytes": "AP8="}), json!({"bytes": ""})]),
            ("boolean", &[json!(true), json!(false)]),
            ("date", &[json!({"date": "2026-11-21"})]),
            ("time", &[json!({"time": "23:59:59.000001"})]),
            ("datetime", &[json!({"datetime": "2026-11-21T10:00:00.123456"})]),
            ("timestamp", &[json!({"timestamp": "2026-11-21T10:00:00.5Z"})]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guestbook_keeps_names_in_sqlite() {
    let resource = "[resources.db]\nprotocol = \"sql\"\npath = \"guests.db\"\n[modules.interface_web]\nallow = { resources = [\"db\"] }\n";
    let cage = TestCage::new().module("guestbook", "interface_web").config(resource).http("web").start().await;
    let client = cage.client("web");
    client.post("/", "Ann'; drop table guests; --").await;
    assert_eq!(client.post("/", "Bob").await.text(), "Bob\nAnn'; drop table guests; --");
    assert_eq!(client.get("/").await.text(), "Bob\nAnn'; drop table guests; --");
    assert!(cage.directory().join("guests.db").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_kept_until_what_they_read_is_written_or_their_time_is_over() {
    let cage = started(&format!("{SQLITE}\ncache = {{ size_mb = 1 }}")).await;
    run(&cage, "create table t (x integer)").await;
    run(&cage, "insert into t values (1)").await;
    let read = async |key: Value, ttl_ms: Value| {
        call(&cage, "cached", json!(["db", "select x from t", "t", key, ttl_ms])).await
    };
    assert_eq!(read(Value::Null, Value::Null).await, 1);
    // Written without a word to the cache.
    run(&cage, "update t set x = 2").await;
    assert_eq!(read(Value::Null, Value::Null).await, 1);
    assert_eq!(read(json!("another key"), Value::Null).await, 2);
    assert_eq!(read(Value::Null, json!(0)).await, 2, "it was to be kept no time at all");
    // Other writes do not matter.
    run(&cage, "update t set x = 3").await;
    call(&cage, "write", json!(["db", "update t set x = x", "others"])).await;
    assert_eq!(read(json!("another key"), Value::Null).await, 2);
    assert_eq!(call(&cage, "write", json!(["db", "update t set x = 4", "t"])).await, 1);
    assert_eq!(read(json!("another key"), Value::Null).await, 4);
    let cage = cage.snapshot().cages.swap_remove(0);
    let cache = cage.resources[0].cache.as_ref().map(|cache| (cache.hits, cache.misses));
    assert_eq!(cache, Some((2, 4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_makes_operations_wait_until_their_deadline() {
    let cage = started(&format!("{SQLITE}\ntimeout_ms = 300\npool = {{ size = 1 }}")).await;
    run(&cage, "create table t (a)").await;
    // One that never ends, and one that waits for its connection.
    let endless =
        "insert into t with recursive n(i) as (select 1 union all select i + 1 from n) select i from n where i < 0";
    let (first, second) = tokio::join!(tried(&cage, endless, json!({})), tried(&cage, endless, json!({})));
    for told in [&first, &second] {
        assert_eq!(told["code"], "timed-out", "{told}");
    }
    // Its connection was discarded and the statement ended: the lock is free.
    let told = eventually_ok(&cage, "insert into t values (1)").await;
    assert_eq!(told["affected"], 1);
}

async fn eventually_ok(cage: &RunningCage, sql: &str) -> Value {
    for _ in 0..1000 {
        let told = tried(cage, sql, json!({})).await;
        if told.get("ok").is_some() {
            return result(told);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{sql} never succeeded")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_url_is_taken_over_without_a_restart() {
    let cage = started("path = \"one.db\"").await;
    run(&cage, "create table one (a)").await;
    cage.configure(&config("path = \"two.db\""));
    eventually("the other file", || cage.directory().join("cage.toml").exists().then_some(())).await;
    let mut told = tried(&cage, "select * from one", json!({})).await;
    for _ in 0..1000 {
        if told.get("code").is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        told = tried(&cage, "select * from one", json!({})).await;
    }
    assert!(told["text"].as_str().is_some_and(|text| text.contains("no such table")), "{told}");
}

struct CertificateAuthority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

fn authority() -> CertificateAuthority {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, wasmcage_tests::unique_name("authority"));
    let pem = params.self_signed(&key).expect("a certificate").pem();
    CertificateAuthority { issuer: rcgen::Issuer::new(params, key), pem }
}

/// Transactions of two inserts from eight sides while the server is killed: what was acknowledged is there, both halves or
/// neither, and what was said to have done nothing is not there.
async fn killed_in_commits(cage: &RunningCage, server: &mut DatabaseServer) {
    run(cage, "create table a (id int primary key)").await;
    run(cage, "create table b (id int primary key)").await;
    let mut next = 0;
    for _ in 0..3 {
        let insert = async |first: i64| {
            let (mut kept, mut undone) = (Vec::new(), Vec::new());
            for id in (first..).step_by(8) {
                let statement = |table: char| json!([format!("insert into {table} values ({{id}})"), [["id", id]]]);
                let told = call(cage, "run", json!(["db", [statement('a'), statement('b')]])).await;
                if told.get("ok").is_some() {
                    kept.push(id);
                    continue;
                }
                assert_ne!(told["phase"], "Phase::Check", "{told}");
                if told["recoverable"] == true {
                    undone.push(id);
                } else {
                    assert!(
                        told["text"].as_str().is_some_and(|text| text.contains("whether it took effect is not known")),
                        "{told}"
                    );
                }
                break;
            }
            (kept, undone)
        };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            tokio::task::block_in_place(|| server.kill());
        };
        let (ends, ()) = tokio::join!(join_all((next..next + 8).map(insert)), kill);
        tokio::task::block_in_place(|| server.start());
        eventually_ok(cage, "select 1").await;
        let only_half = "select count(*) from (select id from a where id not in (select id from b) union all \
                         select id from b where id not in (select id from a)) x";
        assert_eq!(rows(cage, only_half).await, json!([[0]]));
        for (kept, undone) in ends {
            for (ids, found) in [(kept, true), (undone, false)] {
                for id in ids {
                    let told = rows(cage, &format!("select count(*) from a where id = {id}")).await;
                    assert_eq!(told, json!([[i64::from(found)]]), "{id}");
                }
            }
        }
        next += 1_000_000;
    }
}

mod with_postgres {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_does_what_all_databases_do() {
        let server = DatabaseServer::postgres(None);
        let cage = started(&postgres_url(&server)).await;
        common(&cage).await;
        let told = tried(&cage, "insert into t (id) values (0)", json!({})).await;
        failed(&told, "23505", "Phase::Execute", true, false);
        run(&cage, "create type mood as enum ('good', 'bad')").await;
        run(&cage, "create domain small as int check (value < 10)").await;
        let text: &[Value] = &[json!("x"), json!("ä\u{1F600}"), json!("")];
        types(
            &cage,
            &[
                ("bool", &[json!(true), json!(false)]),
                ("int2", &[json!(-32768), json!(32767)]),
                ("int4", &[json!(i32::MIN), json!(i32::MAX)]),
                ("int8", &[json!(i64::MIN), json!(i64::MAX)]),
                ("oid", &[json!(u32::MAX)]),
                ("float4", &[json!(0.1), json!({"float": "NaN"}), json!(-1.5)]),
                ("float8", &[json!(0.1), json!(1e300), json!({"float": "-Infinity"})]),
                (
                    "numeric",
                    &[
                        json!({"decimal": "1.10"}),
                        json!({"decimal": "-123456789012345678901234567890.000001"}),
                        json!({"decimal": "0"}),
                    ],
                ),
                ("text", text),
                ("varchar(9)", text),
                ("name", &[json!("x")]),
                ("char(3)", &[json!("abc")]),
                ("bytea", &[json!({"bytes": "AP8="}), json!({"bytes": ""})]),
                (
                    "date",
                    &[json!({"date": "2026-11-21"}), json!({"date": "1970-01-01"}), json!({"date": "0001-01-01"})],
                ),
                ("time", &[json!({"time": "00:00:00"}), json!({"time": "23:59:59.999999"})]),
                (
                    "timestamp",
                    &[json!({"datetime": "2026-11-21T10:00:00.123456"}), json!({"datetime": "1800-01-01T00:00:00"})],
                ),
                (
                    "timestamptz",
                    &[
                        json!({"timestamp": "2026-11-21T10:00:00.123456Z"}),
                        json!({"timestamp": "1969-12-31T23:59:59Z"}),
                    ],
                ),
                ("json", &[json!({"json": {"a": [1, null, "x"]}}), json!({"json": null})]),
                ("jsonb", &[json!({"json": {"a": [1, null, "x"]}}), json!({"json": 1})]),
                ("uuid", &[json!({"uuid": "67e55044-10b1-426f-9247-bb680e5fe0c8"})]),
                ("mood", &[json!("good")]),
                ("small", &[json!(9)]),
                ("int4[]", &[json!({"array": [1, null, 3]}), json!({"array": []})]),
                ("text[]", &[json!({"array": ["a", "{b}"]})]),
            ],
        )
        .await;
        // The server takes a value whose type the statement does not tell for a text.
        let told = tried(&cage, "select {x}", json!({"x": 1})).await;
        failed(&told, "bad-operation", "Phase::Execute", true, false);
        assert!(told["text"].as_str().is_some_and(|text| text.contains("{x}::bigint")), "{told}");
        assert_eq!(result(tried(&cage, "select {x}::bigint", json!({"x": 1})).await)["rows"], json!([[1]]));
        let told =
            tried(&cage, "select id from t where id = any({ids}) order by id", json!({"ids": {"array": [1, 2]}})).await;
        assert_eq!(result(told)["rows"], json!([[1], [2]]));
        let told = tried(&cage, "select inet '10.0.0.1' as address", json!({})).await;
        assert!(
            told["code"] == "bad-result"
                && told["text"].as_str().is_some_and(|text| text.contains("\"address\": type INET")),
            "{told}"
        );
        failed(&tried(&cage, "select 1/0", json!({})).await, "22012", "Phase::Execute", true, false);
        // Deferred checks fail the commit, and nothing has happened.
        run(&cage, "create table d (id int primary key, up int references d deferrable initially deferred)").await;
        let told = call(&cage, "run", json!(["db", [["insert into d values (1, 2)", []], ["select 1", []]]])).await;
        failed(&told, "23503", "Phase::Commit", true, false);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_may_not_connect_is_told_why_and_no_password() {
        let server = DatabaseServer::postgres(None);
        let port = server.port();
        let wrong = format!("url = \"postgres://postgres:wr0ng-word@127.0.0.1:{port}/postgres\"");
        let plain = format!("{}\ntls = \"verify\"", postgres_url(&server));
        for (resource, code, text) in [
            (wrong, "28P01", "password authentication failed"),
            (plain, "tls", "TLS"),
            ("url = \"postgres://postgres:wr0ng-word@127.0.0.1:1/postgres\"".into(), "connect", "refused"),
        ] {
            let cage = started(&resource).await;
            let told = tried(&cage, "select 1", json!({})).await;
            failed(&told, code, "Phase::Connect", true, false);
            let seen = told.to_string() + &cage.log();
            assert!(seen.contains(text), "{seen}");
            assert!(!seen.contains("wr0ng-word") && !seen.contains(PASSWORD), "{seen}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_proves_who_it_is_by_its_certificate() {
        let (trusted, other) = (authority(), authority());
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("names");
        let certificate = certificate.signed_by(&key, &trusted.issuer).expect("a certificate").pem();
        let server = DatabaseServer::postgres(Some((&certificate, &key.serialize_pem())));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let resource = |ca: &CertificateAuthority| {
            let file = directory.path().join("ca.pem");
            std::fs::write(&file, &ca.pem).expect("a file of certificates");
            format!("{}\ntls = \"verify\"\nca_file = \"{}\"", postgres_url(&server), file.display())
        };
        let cage = started(&resource(&trusted)).await;
        let told = rows(&cage, "select ssl from pg_stat_ssl where pid = pg_backend_pid()").await;
        assert_eq!(told, json!([[true]]));
        let cage = started(&resource(&other)).await;
        failed(&tried(&cage, "select 1", json!({})).await, "tls", "Phase::Connect", true, false);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_killed_in_the_middle_of_commits_keeps_what_was_acknowledged() {
        let mut server = DatabaseServer::postgres(None);
        let cage = started(&postgres_url(&server)).await;
        killed_in_commits(&cage, &mut server).await;
    }
}

mod with_mariadb {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn mariadb_does_what_all_databases_do() {
        let server = DatabaseServer::mariadb();
        let cage = started(&mariadb_url(&server)).await;
        common(&cage).await;
        let told = tried(&cage, "insert into t (id) values (0)", json!({})).await;
        failed(&told, "23000", "Phase::Execute", true, false);
        run(&cage, "create table r (id int auto_increment primary key, x int)").await;
        assert_eq!(run(&cage, "insert into r (x) values (1)").await["last_id"], 1);
        let text: &[Value] = &[json!("x"), json!("ä\u{1F600}"), json!("")];
        types(
            &cage,
            &[
                ("boolean", &[json!(true), json!(false)]),
                ("tinyint", &[json!(-128)]),
                ("smallint", &[json!(-32768)]),
                ("mediumint", &[json!(8388607)]),
                ("int", &[json!(i32::MIN)]),
                ("int unsigned", &[json!(u32::MAX)]),
                ("bigint", &[json!(i64::MIN), json!(i64::MAX)]),
                ("bigint unsigned", &[json!(1), json!({"decimal": "18446744073709551615"})]),
                ("float", &[json!(0.5), json!(-1.5)]),
                ("double", &[json!(0.1), json!(1e300)]),
                (
                    "decimal(40, 5)",
                    &[json!({"decimal": "1.10000"}), json!({"decimal": "-12345678901234567890123456789012345.00001"})],
                ),
                ("varchar(50) character set utf8mb4", text),
                ("text character set utf8mb4 collate utf8mb4_bin", text),
                ("enum('a', 'b')", &[json!("b")]),
                ("varbinary(50)", &[json!({"bytes": "AP8="}), json!({"bytes": ""})]),
                ("longblob", &[json!({"bytes": "AP8="})]),
                ("date", &[json!({"date": "2026-11-21"})]),
                ("time(6)", &[json!({"time": "23:59:59.000001"}), json!({"time": "00:00:00"})]),
                (
                    "datetime(6)",
                    &[json!({"datetime": "2026-11-21T10:00:00.123456"}), json!({"datetime": "2026-11-21T00:00:00"})],
                ),
                ("timestamp(6) null", &[json!({"timestamp": "2026-11-21T10:00:00.123456Z"})]),
                ("year", &[json!(2026)]),
                ("bit(8)", &[json!(200)]),
            ],
        )
        .await;
        assert_eq!(rows(&cage, "select cast('-100:00:01' as time)").await, json!([[{"time": "-100:00:01"}]]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mariadb_killed_in_the_middle_of_commits_keeps_what_was_acknowledged() {
        let mut server = DatabaseServer::mariadb();
        let cage = started(&mariadb_url(&server)).await;
        killed_in_commits(&cage, &mut server).await;
    }
}
