//! A guest made by componentize-py, without an SDK: it serves, is called and calls as a Rust guest does.

use std::time::Duration;

use serde_json::{Value, json};
use wasmcage_tests::{Client, Need, RunningCage, TestCage, eventually_within, guest, has_guest, missing, query};

/// An interpreter takes its time to compile where it is not in the cache yet.
const COMPILATION: Duration = Duration::from_secs(300);

/// Two cages: the guest as handler and as service, and who it calls.
async fn started(config: &str) -> RunningCage {
    if !has_guest("python_hello") {
        missing(Need::PythonGuests, "the guest python_hello was not built");
    }
    let cage = TestCage::new()
        .config("request_timeout_ms = 60000")
        .module("python_hello", "interface_web")
        .module("python_hello", "python")
        .http("web")
        .module("echo", "interface_rust")
        .http("rust")
        .config("[modules.interface_web]\nallow = { cages = [\"worker\"] }")
        .config(config)
        .cage("worker")
        .module("work", "work")
        .start()
        .await;
    for module in ["interface_web", "python"] {
        eventually_within(COMPILATION, module, || cage.version(module)).await;
    }
    cage
}

async fn call(client: &Client, function: &str, parameters: &[(&str, &str)]) -> Value {
    let all = [&[("module", "python"), ("function", function)], parameters].concat();
    client.get(&query("/try_call", &all)).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_nests_deeply_does_not_end_the_interpreter() {
    let cage = started("").await;
    const DEPTH: usize = 8_000;
    let nested = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    let arguments = format!("{{\"args\": [{nested}]}}");
    let answer = cage.call_text(cage.name(), "python.greet", arguments).await.unwrap();
    assert_eq!(answer, format!("\"Hello, {nested} !\""));
    assert_eq!(cage.module("python").unwrap().traps, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_handler_answers() {
    let cage = started("config = { greeting = \"Hi\" }").await;
    let client = cage.client("web");
    let answer = client.get("/?x=1").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "Hi, world !"));
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    let body: Vec<u8> = (0..200_000).map(|index| (index % 256) as u8).collect();
    assert_eq!(client.post("/body", body.clone()).await.body, body);
    assert_eq!(client.get("/elsewhere").await.status, 404);
    // Its line in the log carries the id that it was given.
    let id = client.get("/log").await.text();
    let log = cage.logged("GET /log").await;
    assert!(log.contains(&format!("INF [interface_web] GET /log # RQ-{} via web ", &id[id.len() - 4..])), "{log}");
    assert_eq!(client.get("/refuse").await.status, 422);
    cage.logged("refused: as asked").await;
    assert_eq!(client.get("/misread").await.status, 400);
    cage.logged("bad request: as asked").await;
    // An exception that nobody caught: the traceback is in the log, the client gets a code, and the cage lives.
    let answer = client.get("/raise").await;
    assert_eq!(answer.status, 500);
    assert!(!answer.text().contains("ValueError"), "{}", answer.text());
    let log = cage.logged("ValueError: as asked").await;
    assert!(log.contains("app.py"), "{log}");
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_service_is_called_and_calls() {
    let cage = started("").await;
    let client = cage.client("rust");
    assert_eq!(call(&client, "greet", &[("args", "[\"world\"]")]).await, "Hello, world !");
    let kwargs = json!({ "greeting": "Grüß Gott", "name": "\u{1f40d}" }).to_string();
    assert_eq!(call(&client, "greet", &[("kwargs", &kwargs)]).await, "Grüß Gott, \u{1f40d} !");
    assert_eq!(call(&client, "add", &[("args", "[1, 2]")]).await, 3);
    let error = call(&client, "add", &[("args", "[1]")]).await;
    assert!(error["text"].as_str().unwrap().contains("bad arguments: add: add() missing 1 required"), "{error}");
    let error = call(&client, "greed", &[]).await;
    assert!(error["text"].as_str().unwrap().contains("did you mean `greet`?"), "{error}");
    // The exports that initialise the interpreter cannot be called.
    for function in ["exports#init", "init"] {
        let error = call(&client, function, &[]).await;
        assert!(error["error"].as_str().unwrap().starts_with("NoSuchFunction("), "{error}");
    }
    // The other way: Python calls a Rust service of another cage.
    assert_eq!(cage.client("web").get("/call").await.json(), "Working on Python");
    std::fs::remove_file(cage.root().join("worker/work.wasm")).unwrap();
    let gone = || {
        let cages = cage.snapshot().cages;
        cages[1].modules.iter().all(|module| module.version.is_none()).then_some(())
    };
    eventually_within(COMPILATION, "the callee's end", gone).await;
    assert_eq!(cage.client("web").get("/call").await.status, 500);
    cage.logged("call of work.handle: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_few_interpreters() {
    let config = "instances = { max = 4 }";
    let cage = started(config).await;
    let client = cage.client("web");
    let answers: Vec<_> = (0..200)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/answered").await })
        })
        .collect();
    let mut highest = 0;
    for answer in answers {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        highest = highest.max(answer.text().parse::<u32>().unwrap());
    }
    // Each instance counts for itself: 200 answers of at most four make one of them count to 50.
    assert!(highest >= 50, "{highest}");
    let instances = cage.instances("interface_web");
    assert!((1..=4).contains(&instances), "{instances}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_guest_is_swapped_while_it_serves() {
    let cage = started("").await;
    let client = cage.client("web");
    let mut bytes = std::fs::read(guest("python_hello")).unwrap();
    // The same under another hash: with a custom section at the end.
    bytes.extend_from_slice(&[0, 3, 1, b'v', b'2']);
    cage.deploy("interface_web", &bytes);
    // Compiling must not slow serving: the old version answers all the while.
    let mut answers = 0_u64;
    let until = tokio::time::Instant::now() + COMPILATION;
    while cage.version("interface_web") == Some(1) {
        assert_eq!(client.get("/").await.text(), "Hello, world !");
        assert!(tokio::time::Instant::now() < until, "no new version");
        answers += 1;
    }
    assert!(answers > 0);
    assert_eq!(cage.version("interface_web"), Some(2));
    assert_eq!(client.get("/").await.status, 200);
}
