//! Tests of connections to SQLite, and of the settings. Database servers are part of the tests of whole cages.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::SqlResource;
use super::settings::SqlSettings;
use wasmcage_config as config;
use wasmcage_config::{Environment, ProtocolInfo};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, Phase, Resource, ResourceError};

fn settings(directory: &Path, lines: &str) -> Result<SqlSettings, String> {
    let toml = format!("[resources.db]\nprotocol = \"sql\"\n{lines}\n");
    let environment = Environment {
        cage: "test",
        node: "n1",
        directory,
        protocols: &[ProtocolInfo::new("sql")],
        left_out: &[],
        variables: &|_| None,
    };
    let sources = [(directory.join("cage.toml"), toml)];
    let config = config::parse(&sources, &environment).map_err(|error| error.to_string())?;
    SqlSettings::read(config.resources["db"].section.clone()).map_err(|error| error.to_string())
}

fn database(directory: &Path) -> SqlResource {
    let settings = settings(directory, "path = \"test.db\"\nmax_rows = 100\nmax_result_bytes = 10_000").unwrap();
    SqlResource { settings }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn operation(body: Json) -> Operation {
    Operation { action: "execute".into(), body: body.to_string().into(), ..Operation::default() }
}

async fn run(connection: &mut dyn Connection, body: Json) -> Result<Json, ResourceError> {
    let reply = connection.execute_alone(operation(body), &[], soon()).await?;
    Ok(serde_json::from_slice(&reply.body).unwrap())
}

#[tokio::test]
async fn values_of_every_kind_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut db = database(directory.path()).connect(soon()).await.unwrap();
    let create = "create table t (a, b boolean, c date, d time, e datetime, f timestamp, g text)";
    run(&mut *db, json!({"sql": create})).await.unwrap();
    let row = json!([null, true, {"date": "2026-11-21"}, {"time": "10:00:00.5"}, {"datetime": "2026-11-21T10:00:00.123456"},
        {"timestamp": "2026-11-21T10:00:00Z"}, "it's {x} \" ' ; -- "]);
    let names: Vec<String> = (0..7).map(|index| format!("v{index}")).collect();
    let values: Json =
        names.iter().cloned().zip(row.as_array().unwrap().clone()).collect::<serde_json::Map<_, _>>().into();
    let placeholders = names.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(", ");
    let insert = format!("insert into t values ({placeholders})");
    let reply = run(&mut *db, json!({"sql": insert, "values": values})).await.unwrap();
    assert_eq!(reply, json!({"results": [{"columns": [], "rows": [], "affected": 1, "last_id": 1}]}));
    let reply = run(&mut *db, json!({"sql": "select * from t"})).await.unwrap();
    assert_eq!(reply["results"][0]["rows"], json!([row]));
    assert_eq!(reply["results"][0]["columns"], json!(["a", "b", "c", "d", "e", "f", "g"]));
    assert_eq!(reply["results"][0]["affected"], 0);
    let values = json!({"i": i64::MIN, "f": 1.0, "b": {"bytes": "AP8="}, "inf": {"float": "-Infinity"}, "n": {"decimal": "1.10"},
        "j": {"json": {"a": [1]}}, "u": {"uuid": "67e55044-10b1-426f-9247-bb680e5fe0c8"}});
    let reply =
        run(&mut *db, json!({"sql": "select {i}, {f}, {b}, {inf}, {n}, {j}, {u}", "values": values})).await.unwrap();
    let texts = json!([[i64::MIN, 1.0, {"bytes": "AP8="}, {"float": "-Infinity"}, "1.10", r#"{"a":[1]}"#,
        "67e55044-10b1-426f-9247-bb680e5fe0c8"]]);
    assert_eq!(reply["results"][0]["rows"], texts);
}

#[tokio::test]
async fn a_failed_statement_undoes_those_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut db = database(directory.path()).connect(soon()).await.unwrap();
    run(&mut *db, json!({"sql": "create table t (id integer primary key)"})).await.unwrap();
    let insert = |id: i64| json!({"sql": "insert into t values ({id})", "values": {"id": id}});
    let error = run(&mut *db, json!({"statements": [insert(1), insert(2), insert(1)]})).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.phase), ("SQLITE_CONSTRAINT_PRIMARYKEY", Phase::Execute));
    assert!(error.recoverable && !error.terminal && error.text.starts_with("statement 3: "), "{error}");
    let reply = run(&mut *db, json!({"sql": "select count(*) from t"})).await.unwrap();
    assert_eq!(reply["results"][0]["rows"], json!([[0]]));
    run(&mut *db, json!({"statements": [insert(1), insert(2)]})).await.unwrap();

    // Of a transaction in steps nothing is committed if one fails.
    db.begin(&[], soon()).await.unwrap();
    db.execute(operation(insert(3)), soon()).await.unwrap();
    db.execute(operation(insert(3)), soon()).await.unwrap_err();
    assert_eq!(db.commit(soon()).await.unwrap_err().phase, Phase::Commit);
    db.rollback(soon()).await.unwrap();
    let reply = run(&mut *db, json!({"sql": "select count(*) from t"})).await.unwrap();
    assert_eq!(reply["results"][0]["rows"], json!([[2]]));
    assert!(db.is_healthy().await);
}

#[tokio::test]
async fn an_error_before_anything_runs_is_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(directory.path());
    let check = |action: &str, body: &str| {
        let operation = Operation { action: action.into(), body: body.to_owned().into(), ..Operation::default() };
        let error = database.check(&operation).unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.phase, error.recoverable, error.terminal),
            ("bad-operation", Phase::Check, true, false)
        );
        error.text
    };
    for (body, text) in [
        ("", "the body"),
        ("{}", "either `sql` or `statements`"),
        (r#"{"sql": "x", "statements": []}"#, "either"),
        (r#"{"statements": []}"#, "0 statements"),
        (r#"{"sql": "select {a}", "values": {"b": 1}}"#, "parameter {a} has no value (there are: b)"),
        (r#"{"sql": "select {a}", "values": {"a": []}}"#, "a list is no value"),
        (r#"{"sql": "select {a}", "values": {"a": {"decimal": "1e5"}}}"#, "\"1e5\" is no decimal"),
        (r#"{"sql": "select {a}", "values": {"a": {"money": "1"}}}"#, "unknown variant `money`"),
        (r#"{"sql": "select {a}", "values": {"a": {"date": "2026-13-01"}}}"#, "is no date"),
        (r#"{"statements": [{"sql": "select 1"}, {"sql": "commit"}]}"#, "statement 2: `commit`"),
        (r#"{"sql": "attach 'x' as y"}"#, "not permitted"),
    ] {
        let error = check("execute", body);
        assert!(error.contains(text), "{body}: {error}");
    }
    assert!(check("query", r#"{"sql": "select 1"}"#).contains("`execute` only"));
    let mut db = database.connect(soon()).await.unwrap();
    for (options, text) in [
        (("isolation", "total"), "known: read-uncommitted"),
        (("x", "y"), "begin option"),
        (("read-only", "1"), "true, false"),
    ] {
        let error = db.begin(&[(options.0.into(), options.1.into())], soon()).await.unwrap_err();
        assert!(error.text.contains(text) && error.phase == Phase::Begin && error.recoverable, "{error}");
    }
}

#[tokio::test]
async fn options_of_a_transaction_hold_for_it_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut db = database(directory.path()).connect(soon()).await.unwrap();
    run(&mut *db, json!({"sql": "create table t (id integer primary key)"})).await.unwrap();
    let insert = || operation(json!({"sql": "insert into t values (null)"}));
    let read_only = [("read-only".to_owned(), "true".to_owned()), ("isolation".to_owned(), "serializable".to_owned())];
    let error = db.execute_alone(insert(), &read_only, soon()).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.terminal), ("SQLITE_READONLY", false));
    db.execute_alone(insert(), &[], soon()).await.unwrap();
}

#[tokio::test]
async fn too_large_a_result_is_an_error_and_not_cut() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(directory.path());
    let numbers = |count: u32| json!({"sql": "with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) select i from n", "values": {"count": count}});
    let mut db = database.connect(soon()).await.unwrap();
    assert_eq!(run(&mut *db, numbers(100)).await.unwrap()["results"][0]["rows"].as_array().unwrap().len(), 100);
    let error = run(&mut *db, numbers(101)).await.unwrap_err();
    assert!(error.code == "too-large" && error.terminal && error.text.contains("max_rows"), "{error}");
    let mut db = database.connect(soon()).await.unwrap();
    let error = run(&mut *db, json!({"sql": "select zeroblob(20000)"})).await.unwrap_err();
    assert!(error.code == "too-large" && error.text.contains("max_result_bytes"), "{error}");
}

#[tokio::test]
async fn a_stream_is_not_read_ahead_and_gives_its_connection_back() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(directory.path());
    let endless = "with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) select i from n";
    let numbers = |count: i64| operation(json!({"sql": endless, "values": {"count": count}}));
    let db = database.connect(soon()).await.unwrap();
    let (reply, mut stream) = db.open(numbers(50_000), &[("read-only".into(), "true".into())], soon()).await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    let (mut count, mut parts) = (0, 0);
    while let Some(part) = stream.next().await.unwrap() {
        let part: Json = serde_json::from_slice(&part).unwrap();
        count += part["rows"].as_array().unwrap().len();
        parts += 1;
    }
    assert!(count == 50_000 && parts > 1, "{count} rows in {parts} parts");
    let mut db = stream.finish().expect("the connection");
    run(&mut *db, json!({"sql": "create table t (a)"})).await.expect("nothing is read-only any more");
    // An endless result is dropped after its first part.
    let (_, mut stream) = db.open(numbers(i64::MAX), &[], soon()).await.unwrap();
    assert!(stream.next().await.unwrap().is_some());
    drop(stream);
    // An error is returned, and ends the stream.
    let db = database.connect(soon()).await.unwrap();
    let (_, mut stream) = db.open(operation(json!({"sql": "select nothing"})), &[], soon()).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().code, "SQLITE_ERROR");
    assert!(stream.finish().is_none());
    let db = database.connect(soon()).await.unwrap();
    let several = operation(json!({"statements": [{"sql": "select 1"}, {"sql": "select 2"}]}));
    assert_eq!(db.open(several, &[], soon()).await.err().unwrap().code, "bad-operation");
}

#[tokio::test]
async fn a_statement_that_nobody_waits_for_is_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(directory.path());
    let mut db = database.connect(soon()).await.unwrap();
    run(&mut *db, json!({"sql": "create table t (a)"})).await.unwrap();
    // It holds the lock for writing and returns no rows, so only the interruption can end it.
    let endless =
        "insert into t with recursive n(i) as (select 1 union all select i + 1 from n) select i from n where i < 0";
    let waiting = tokio::time::timeout(Duration::from_millis(50), run(&mut *db, json!({"sql": endless}))).await;
    assert!(waiting.is_err());
    drop(db);
    let mut db = database.connect(soon()).await.unwrap();
    run(&mut *db, json!({"sql": "insert into t values (1)"})).await.expect("the lock is free again");
}

#[tokio::test]
async fn a_new_file_is_private_and_an_existing_one_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        let found = std::fs::metadata(directory.path().join(name));
        found.map(|metadata| metadata.permissions().mode() & 0o777).ok()
    };
    let mut db = database(directory.path()).connect(soon()).await.unwrap();
    run(&mut *db, json!({"sql": "create table t (a)"})).await.unwrap();
    assert_eq!(["test.db", "test.db-wal", "test.db-shm"].map(mode), [Some(0o600); 3]);
    drop(db);
    std::fs::set_permissions(directory.path().join("test.db"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let mut db = database(directory.path()).connect(soon()).await.unwrap();
    run(&mut *db, json!({"sql": "insert into t values (1)"})).await.unwrap();
    assert_eq!(mode("test.db"), Some(0o640));
    // Without `create` no file is made.
    let none = SqlResource { settings: settings(directory.path(), "path = \"none.db\"\ncreate = false").unwrap() };
    assert_eq!(none.connect(soon()).await.err().map(|error| error.phase), Some(Phase::Connect));
    assert_eq!(mode("none.db"), None);
}

#[tokio::test]
async fn the_statement_cache_can_be_off() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path(), "path = \"test.db\"\nstatement_cache = 0").unwrap();
    let mut db = SqlResource { settings }.connect(soon()).await.unwrap();
    run(&mut *db, json!({"sql": "create table t (a)"})).await.unwrap();
    for number in 0..3 {
        let insert = json!({"sql": "insert into t values ({n})", "values": {"n": number}});
        run(&mut *db, insert).await.unwrap();
    }
    let reply = run(&mut *db, json!({"sql": "select a from t"})).await.unwrap();
    assert_eq!(reply["results"][0]["rows"], json!([[0], [1], [2]]));
}

#[tokio::test]
async fn another_connection_may_change_the_schema_at_any_time() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(directory.path());
    let mut warm = database.connect(soon()).await.unwrap();
    let mut other = database.connect(soon()).await.unwrap();
    run(&mut *warm, json!({"sql": "create table t (a)"})).await.unwrap();
    run(&mut *warm, json!({"sql": "insert into t values (1)"})).await.unwrap();
    let all = async |connection: &mut dyn Connection| {
        let reply = run(connection, json!({"sql": "select * from t"})).await.unwrap();
        reply["results"][0].clone()
    };
    for (change, columns) in [
        ("alter table t add column b", json!(["a", "b"])),
        ("alter table t rename column b to c", json!(["a", "c"])),
        ("alter table t drop column c", json!(["a"])),
    ] {
        all(&mut *warm).await;
        run(&mut *other, json!({"sql": change})).await.unwrap();
        assert_eq!(all(&mut *warm).await["columns"], columns, "{change}");
        let returning = json!({"sql": "update t set a = a returning *"});
        run(&mut *warm, returning.clone()).await.unwrap();
        assert_eq!(run(&mut *other, returning).await.unwrap()["results"][0]["columns"], columns, "{change}");
    }
    // It may also happen in a transaction, or within one operation.
    let read_only = [("read-only".to_owned(), "true".to_owned())];
    let select = || operation(json!({"sql": "select * from t"}));
    warm.execute_alone(select(), &read_only, soon()).await.unwrap();
    run(&mut *other, json!({"sql": "alter table t add column d"})).await.unwrap();
    let reply = warm.execute_alone(select(), &read_only, soon()).await.unwrap();
    let reply: Json = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(reply["results"][0]["columns"], json!(["a", "d"]));
    let select = json!({"sql": "select * from t"});
    let several = json!({"statements": [select, {"sql": "alter table t add column e"}, select]});
    let reply = run(&mut *warm, several).await.unwrap();
    assert_eq!(reply["results"][2]["columns"], json!(["a", "d", "e"]));
}

#[test]
fn settings_are_read_and_mistakes_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let read = |lines: &str| settings(directory.path(), lines).map(|settings| settings.address.to_string());
    let file = directory.path().join("a.db").display().to_string();
    assert_eq!(read("path = \"a.db\"\ncreate = false\nbusy_timeout_ms = 100"), Ok(file));
    let url = "url = \"postgres://me:secret@db.example:5433/name\"";
    assert_eq!(read(url), Ok("postgres at db.example:5433".into()));
    assert_eq!(
        read("url = \"mariadb://me:secret@127.0.0.1/name\"\ntls = \"off\""),
        Ok("mysql at 127.0.0.1:3306".into())
    );
    for (lines, text) in [
        ("", "either `path`"),
        ("path = \"a\"\nurl = \"postgres://h/d\"", "either `path`"),
        ("url = \"oracle://h/d\"", "scheme oracle:// is none of postgres://"),
        ("url = \"postgres://me:secret@h:99999/d\"", "expected a URL such as"),
        ("url = \"sqlite:a.db\"", "given by `path`"),
        ("url = \"postgres://me:secret@h/d?sslmode=disable\"", "`sslmode` in the URL"),
        ("url = \"postgres://h/d\"\ntls = \"of\"", "did you mean \"off\"?"),
        ("url = \"postgres://h/d\"\nca_file = \"nowhere.pem\"", "cannot be read"),
        ("path = \"a\"\nmax_row = 5", "did you mean `max_rows`?"),
    ] {
        let error = read(lines).unwrap_err();
        assert!(error.contains(text) && !error.contains("secret"), "{lines}: {error}");
    }
}
