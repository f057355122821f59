//! `wasmcage state`, on a running cage and on a stopped one.

use std::fs;

use serde_json::{Value, json};
use wasmcage_tests::Root;

/// One cage, `shop`, with the module `state_user`.
fn shop() -> Root {
    Root::new(&[("shop", &["state_user"])])
}

#[track_caller]
fn said(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text:?}"));
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_running_module_keeps_is_shown_and_changed() {
    let root = shop();
    let _run = root.run("shop").await;
    assert_eq!(root.done(&["state", "list", "shop"]).await, "no module of cage shop keeps anything\n");
    root.call("shop", &["state_user.set", "last", r#"{"id":7}"#]).await;
    root.call("shop", &["state_user.set_bytes", "logo", "300"]).await;
    root.call("shop", &["state_user.push", "mail", "hello"]).await;
    check_list(&root).await;
    root.done(&["state", "set", "shop", "state_user", "last", "red"]).await;
    assert_eq!(root.call("shop", &["state_user.get", "last"]).await, "red");
    root.done(&["state", "delete", "shop", "state_user", "last"]).await;
    assert_eq!(root.call("shop", &["state_user.get", "last"]).await, Value::Null);
}

async fn check_list(root: &Root) {
    let modules = json_of(&root.done(&["state", "list", "shop", "--json"]).await);
    assert_eq!((&modules[0]["module"], &modules[0]["entries"]), (&json!("state_user"), &json!(3)));
    said(&root.done(&["state", "list", "shop"]).await, &["MODULE", "state_user"]);
    let keys = json_of(&root.done(&["state", "list", "shop", "state_user", "--json"]).await);
    let last = json!({ "key": "last", "kind": "json", "bytes": 8 });
    let logo = json!({ "key": "logo", "kind": "bytes", "bytes": 300 });
    assert_eq!(keys["keys"], json!([last, logo]));
    assert_eq!((&keys["more"], &keys["queues"]), (&json!(false), &json!([{ "queue": "mail", "length": 1 }])));
    let few = json_of(&root.done(&["state", "list", "shop", "state_user", "--json", "-n", "1"]).await);
    assert_eq!((&few["keys"], &few["more"]), (&json!([last]), &json!(true)));
    let some = json_of(&root.done(&["state", "list", "shop", "state_user", "--prefix", "lo", "--json"]).await);
    assert_eq!(some["keys"], json!([logo]));
    said(&root.done(&["state", "list", "shop", "state_user"]).await, &["300  bytes  logo", "1  mail"]);
    assert_eq!(root.done(&["state", "get", "shop", "state_user", "last"]).await, "{\"id\":7}\n");
    assert_eq!(root.done(&["state", "get", "shop", "state_user", "logo", "--raw"]).await, "x".repeat(300));
    let carried = json_of(&root.done(&["state", "get", "shop", "state_user", "last", "--json"]).await);
    assert_eq!(carried, json!({ "json": "{\"id\":7}" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_is_done_where_no_cage_runs() {
    let root = shop();
    assert_eq!(root.done(&["state", "list", "shop"]).await, "no module of cage shop keeps anything\n");
    assert!(!root.cage("shop").join("state/store.redb").exists(), "looking makes no store");
    root.done(&["state", "set", "shop", "state_user", "last", r#"{"id":7}"#]).await;
    let logo = root.path().join("logo");
    fs::write(&logo, "x".repeat(300)).unwrap();
    let logo = format!("@{}", logo.display());
    root.done(&["state", "set", "shop", "state_user", "logo", &logo, "--bytes"]).await;
    let run = root.run("shop").await;
    assert_eq!(root.call("shop", &["state_user.get", "last"]).await, json!({ "id": 7 }));
    root.call("shop", &["state_user.push", "mail", "hello"]).await;
    root.stop("shop").await;
    drop(run);
    check_list(&root).await;
    root.done(&["state", "delete", "shop", "state_user", "last"]).await;
    said(&root.failure(1, &["state", "get", "shop", "state_user", "last"]).await, &["has no key last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named() {
    let root = shop();
    root.done(&["state", "set", "shop", "state_user", "colour", "red"]).await;
    let failure = async |code, arguments: &[&str]| root.failure(code, &[&["state"], arguments].concat()).await;
    said(&failure(1, &["get", "shop", "state_user", "color"]).await, &["no key color", "did you mean colour?"]);
    said(&failure(1, &["delete", "shop", "state_user", "color"]).await, &["did you mean colour?"]);
    said(&failure(1, &["list", "shop", "stat_user"]).await, &["keeps nothing", "did you mean state_user?"]);
    said(&failure(2, &["set", "shop", "stateuser", "k", "1"]).await, &["no module", "did you mean state_user?"]);
    said(&failure(2, &["list", "shpo"]).await, &["did you mean shop?"]);
    let text = root.path().join("text");
    fs::write(&text, "{not json").unwrap();
    let file = format!("@{}", text.display());
    said(&failure(2, &["set", "shop", "state_user", "k", &file]).await, &["no JSON", "--bytes"]);
    said(&failure(1, &["set", "shop", "state_user", &"k".repeat(1025), "1"]).await, &["1025", "1024", "(invalid)"]);
    root.configure("shop", "[modules.state_user]\nstate = { max_entries = 1 }");
    said(&failure(1, &["set", "shop", "state_user", "k", "1"]).await, &["(quota-exceeded)"]);
    root.configure("shop", "[modules.state_user]\nstate = { max_entires = 1 }");
    said(&failure(2, &["set", "shop", "state_user", "k", "1"]).await, &["max_entires", "max_entries"]);
    said(&failure(2, &["exprt", "shop"]).await, &["'export'"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_another_stores_import() {
    let root = Root::new(&[("shop", &["state_user"]), ("copy", &["state_user"])]);
    let run = root.run("shop").await;
    // More than one page.
    let line = |n| format!("{{\"module\":\"state_user\",\"key\":\"k{n:04}\",\"json\":{{\"n\":{n}}}}}\n");
    let lines = root.path().join("lines");
    fs::write(&lines, (0..2_500).map(line).collect::<String>()).unwrap();
    root.done(&["state", "import", "shop", lines.to_str().unwrap()]).await;
    root.call("shop", &["state_user.set_bytes", "z", "3"]).await;
    let text = json!("{\n\"a\": 1.50 }").to_string();
    root.call("shop", &["state_user.set_text", "zz", &text]).await;
    for n in 0..3 {
        root.call("shop", &["state_user.push", "q", &n.to_string()]).await;
    }
    let exported = root.done(&["state", "export", "shop"]).await;
    assert_eq!(exported.lines().count(), 2_500 + 2 + 3);
    assert!(exported.starts_with(&fs::read_to_string(&lines).unwrap()));
    said(&exported, &[r#"{"module":"state_user","key":"z","base64":"eHh4"}"#, r#""json":{ "a": 1.50 }"#]);
    let queue: Vec<_> =
        (0..3).map(|n| format!("{{\"module\":\"state_user\",\"queue\":\"q\",\"json\":{n}}}\n")).collect();
    assert!(exported.ends_with(&queue.concat()), "{exported}");
    root.stop("shop").await;
    drop(run);
    // Out of a stopped cage into another one.
    let file = root.path().join("file");
    root.done(&["state", "export", "shop", "state_user", "--out", file.to_str().unwrap()]).await;
    assert_eq!(fs::read_to_string(&file).unwrap(), exported);
    root.done(&["state", "import", "copy", file.to_str().unwrap()]).await;
    assert_eq!(root.done(&["state", "export", "copy"]).await, exported);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_tells_how_far_it_came() {
    let root = shop();
    let lines = root.path().join("lines");
    let line = |n: usize| format!("{{\"module\":\"state_user\",\"key\":\"{n}\",\"json\":{n}}}\n");
    let text: String = (0..1_500).map(line).collect();
    fs::write(&lines, text + "{\"module\":\"state_user\"}\n").unwrap();
    let failure = root.failure(2, &["state", "import", "shop", lines.to_str().unwrap()]).await;
    said(&failure, &["line 1501", "stopped after 1000 lines; the others are not imported"]);
    let modules = json_of(&root.done(&["state", "list", "shop", "--json"]).await);
    assert_eq!(modules[0]["entries"], 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_gets_smaller_when_it_is_compacted() {
    let root = shop();
    let run = root.run("shop").await;
    for n in 0..20 {
        root.call("shop", &["state_user.set_bytes", &format!("k{n}"), "500000"]).await;
    }
    for n in 1..20 {
        root.call("shop", &["state_user.delete", &format!("k{n}")]).await;
    }
    let compacted = json_of(&root.done(&["state", "compact", "shop", "--json"]).await);
    let (before, after) = (compacted["before"].as_u64().unwrap(), compacted["after"].as_u64().unwrap());
    assert!(before > 9_000_000 && after < 5_000_000, "{compacted}");
    assert_eq!(fs::metadata(root.cage("shop").join("state/store.redb")).unwrap().len(), after);
    root.call("shop", &["state_user.set", "a", "1"]).await;
    root.stop("shop").await;
    drop(run);
    said(&root.done(&["state", "compact", "shop"]).await, &["bytes before"]);
    assert_eq!(root.done(&["state", "get", "shop", "state_user", "a"]).await, "1\n");
}
