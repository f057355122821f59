//! `cage.toml` is live: what changes in it changes in the cage, the rest serves on untouched; a broken one changes nothing.

use std::fs;
use std::net::TcpListener;

use serde_json::json;
use wasmcage::host::StartError;
use wasmcage_tests::{Answer, Client, RunningCage, TestCage, eventually};

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

fn interface(name: &str, port: u16, more: &str) -> String {
    format!("[interfaces.{name}]\nprotocol = \"http\"\nlisten = \"127.0.0.1:{port}\"\n{more}\n")
}

/// A port that nobody listens at now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn at(port: u16) -> Client {
    Client::new(&format!("127.0.0.1:{port}"))
}

/// Asks until the answer is as it should be.
async fn until(client: &Client, target: &str, fits: impl Fn(&Answer) -> bool) -> Answer {
    let end = tokio::time::Instant::now() + TIMEOUT;
    loop {
        let answer = client.try_send(http::Method::GET, target, &[], Default::default()).await;
        match answer {
            Ok(answer) if fits(&answer) => return answer,
            last => assert!(tokio::time::Instant::now() < end, "{target} at {} stays {last:?}", client.address()),
        }
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
}

async fn until_text(client: &Client, target: &str, text: &str) {
    until(client, target, |answer| answer.text() == text).await;
}

async fn until_refused(port: u16) {
    let connect = || std::net::TcpStream::connect(("127.0.0.1", port));
    eventually("a closed port", || connect().is_err().then_some(())).await;
}

fn config_error(cage: &RunningCage) -> Option<String> {
    cage.snapshot().cages[0].config_error.clone()
}

fn interface_error(cage: &RunningCage, interface: &str) -> Option<String> {
    let snapshot = cage.snapshot();
    snapshot.cages[0].interfaces.iter().find(|known| known.interface == interface)?.error.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_level() {
    let web = interface("web", 0, "");
    let cage = TestCage::new().config(&web).module("echo", "interface_web").start().await;
    let client = cage.client("web");
    client.get("/log?level=debug&text=before").await;
    cage.configure(&format!("log_level = \"debug\"\n{web}"));
    until(&client, "/context", |answer| answer.json()["log_level"] == "debug").await;
    client.get("/log?level=debug&text=between").await;
    cage.configure(&format!("log_level = \"error\"\n{web}"));
    until(&client, "/context", |answer| answer.json()["log_level"] == "error").await;
    client.get("/log?level=warn&text=after").await;
    client.get("/log?level=error&text=last").await;
    let log = cage.logged("last").await;
    assert!(log.contains("between") && !log.contains("before") && !log.contains("after"), "{log}");
    assert!(log.contains("request completed"), "{log}");
    // Nothing else was touched.
    assert_eq!((cage.version("interface_web"), cage.client("web").address()), (Some(1), client.address()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_comes_and_goes() {
    let first = interface("first", 0, "module = \"hello\"");
    let second = interface("second", 0, "module = \"echo\"");
    let cage = TestCage::new().config(&first).module("hello", "hello").module("echo", "echo").start().await;
    let client = cage.client("first");
    cage.configure(&format!("{first}{second}"));
    let serving = |name: &'static str| cage.host().serving().iter().any(|line| line.interface == name);
    eventually("the second interface", || serving("second").then_some(())).await;
    assert_eq!(cage.client("second").get("/status/204").await.status, 204);
    assert_eq!(cage.client("first").address(), client.address());
    cage.configure(&second);
    let port = client.address().rsplit(':').next().unwrap().parse().unwrap();
    until_refused(port).await;
    assert!(!serving("first"));
    assert_eq!(cage.client("second").get("/status/204").await.status, 204);
    // Switched off is as good as gone; without its file the cage has no interface at all.
    cage.configure(&format!("{first}enabled = false\n{second}"));
    cage.logged("cage.toml applied").await;
    fs::remove_file(cage.directory().join("cage.toml")).unwrap();
    eventually("no interface", || cage.host().serving().is_empty().then_some(())).await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_moves() {
    let (from, to) = (free_port(), free_port());
    let cage = TestCage::new().config(&interface("web", from, "")).module("hostile", "interface_web").start().await;
    let slow = tokio::spawn(async move { at(from).get("/sleep?ms=1000").await.text() });
    eventually("the slow request", || (cage.snapshot().cages[0].in_work == 1).then_some(())).await;
    cage.configure(&interface("web", to, ""));
    until_text(&at(to), "/sleep?ms=1", "slept").await;
    until_refused(from).await;
    // The request in flight has its answer from the old one.
    assert_eq!(slow.await.unwrap(), "slept");
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_changes_in_its_place() {
    let port = free_port();
    let cage = TestCage::new()
        .config(&interface("web", port, "module = \"hello\""))
        .module("hello", "hello")
        .module("echo", "echo")
        .start()
        .await;
    until_text(&at(port), "/status/200", "Hello, world !").await;
    cage.configure(&interface("web", port, "module = \"echo\""));
    until_text(&at(port), "/status/200", "status 200").await;
    for bytes in 1..20 {
        cage.configure(&interface("web", port, &format!("module = \"echo\"\nmax_body_bytes = {bytes}")));
        let end = tokio::time::Instant::now() + TIMEOUT;
        let fits = async |bytes: usize| {
            let body = vec![b'x'; bytes].into();
            let answer = at(port).try_send(http::Method::POST, "/body", &[], body).await;
            answer.is_ok_and(|answer| answer.status == 200)
        };
        while !fits(bytes).await || fits(bytes + 1).await {
            assert!(tokio::time::Instant::now() < end, "the limit is not {bytes}");
        }
    }
    // The successor waited for the port, rather than fail and try again later.
    assert!(!cage.log().contains("interface failed"), "{}", cage.log());
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_interfaces_exchange_their_ports() {
    let (one, two) = (free_port(), free_port());
    let config = |a: u16, b: u16| interface("a", a, "module = \"hello\"") + &interface("b", b, "module = \"echo\"");
    let cage = TestCage::new().config(&config(one, two)).module("hello", "hello").module("echo", "echo").start().await;
    until_text(&at(one), "/status/200", "Hello, world !").await;
    cage.configure(&config(two, one));
    until_text(&at(one), "/status/200", "status 200").await;
    until_text(&at(two), "/status/200", "Hello, world !").await;
    assert!(!cage.log().contains("interface failed"), "{}", cage.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn timeouts_reach_interfaces_that_stay() {
    let web = interface("web", 0, "");
    let cage = TestCage::new().config(&web).module("echo", "interface_web").start().await;
    let client = cage.client("web");
    let left = |answer: &Answer| answer.json()["deadline_left_ms"].as_u64().unwrap();
    assert!(left(&client.get("/context").await) > 1_000);
    cage.configure(&format!("request_timeout_ms = 900\n{web}"));
    until(&client, "/context", |answer| left(answer) <= 900).await;
    cage.configure(&format!("request_timeout_ms = 50_000\n{web}"));
    until(&client, "/context", |answer| left(answer) > 10_000).await;
    assert_eq!(cage.client("web").address(), client.address());
}

#[tokio::test(flavor = "multi_thread")]
async fn more_places_are_given_to_those_who_wait() {
    let web = interface("web", 0, "");
    let config = |concurrency: usize| format!("concurrency = {concurrency}\n{web}");
    let cage = TestCage::new().config(&config(1)).module("hostile", "interface_web").start().await;
    let get = |target: &'static str| {
        let client = cage.client("web");
        tokio::spawn(async move { client.get(target).await.text() })
    };
    let load = || (cage.snapshot().cages[0].in_work, cage.snapshot().cages[0].waiting);
    let long = get("/sleep?ms=8000");
    eventually("one in work", || (load() == (1, 0)).then_some(())).await;
    let short = get("/sleep?ms=1");
    eventually("one waiting", || (load() == (1, 1)).then_some(())).await;
    cage.configure(&config(2));
    assert_eq!(short.await.unwrap(), "slept");
    assert!(!long.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modules_settings_make_a_new_version() {
    let config = |module: &str| interface("web", 0, "") + "[modules.interface_web]\n" + module;
    let cage = TestCage::new()
        .config(&config("env = { REGION = \"eu\" }\nconfig = { greeting = \"hello\" }"))
        .module("echo", "interface_web")
        .module("hello", "other")
        .start()
        .await;
    let client = cage.client("web");
    let ask = async |target: &str| client.get(target).await.json();
    assert_eq!((ask("/env").await, ask("/config").await), (json!({ "REGION": "eu" }), json!({ "greeting": "hello" })));

    cage.configure(&config("env = { REGION = \"us\" }"));
    until(&client, "/env", |answer| answer.json() == json!({ "REGION": "us" })).await;
    assert_eq!((ask("/config").await, cage.version("interface_web")), (json!({}), Some(2)));

    cage.configure(&config("timeout_ms = 800"));
    until(&client, "/context", |answer| answer.json()["deadline_left_ms"].as_u64().unwrap() <= 800).await;
    assert_eq!((ask("/env").await, cage.version("interface_web")), (json!({}), Some(3)));

    // A section that says what is the case anyhow is no change; nor is any of this the other module's.
    cage.configure(&config("timeout_ms = 800\ninstances = { mode = \"reuse\" }"));
    cage.configure(&config("timeout_ms = 800\nallow = { files = [{ host = \".\", guest = \"/cage\" }] }"));
    until(&client, "/file?path=/cage/cage.toml", |answer| answer.status == 200).await;
    assert_eq!((cage.version("interface_web"), cage.version("other")), (Some(4), Some(1)));
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_module_change() {
    let config = |memory_mb: u32| interface("web", 0, &format!("[modules.interface_web]\nmemory_mb = {memory_mb}"));
    let cage = TestCage::new().config(&config(8)).module("hostile", "interface_web").start().await;
    let client = cage.client("web");
    assert_eq!(client.get("/leak?mb=20").await.status, 500);
    cage.configure(&config(64));
    until_text(&client, "/leak?mb=20", "leaked").await;
    // Settings that no instance can start with are refused, and it serves on as it was.
    let started = cage.version("interface_web");
    let nowhere = "allow = { files = [{ host = \"nowhere\", guest = \"/data\" }] }";
    cage.configure(&format!("{}\n{nowhere}", config(64)));
    let reason = cage.refused("interface_web").await;
    assert!(reason.contains("granted directory"), "{reason}");
    assert_eq!((client.get("/leak?mb=20").await.status.as_u16(), cage.version("interface_web")), (200, started));
    // The directory's coming is no change of a file or a setting: the next one is what heals.
    fs::create_dir(cage.directory().join("nowhere")).unwrap();
    cage.configure(&format!("{}\n{nowhere}", config(65)));
    eventually("the refusal's end", || cage.refusal("interface_web").is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_changes_nothing() {
    let good = interface("web", 0, "");
    let cage = TestCage::new().config(&good).module("hello", "interface_web").start().await;
    let client = cage.client("web");
    let broken: &[(&str, &[&str])] = &[
        ("log_level = \"loud\"", &["log_level", "cage.toml:1:", "loud", "debug"]),
        ("\n\nconcurency = 5", &["concurency", "cage.toml:3:", "concurrency"]),
        ("request_timeout_ms = \"long\"", &["request_timeout_ms", "cage.toml:1:"]),
        ("queue = -1", &["queue", "cage.toml:1:"]),
        ("concurrency = 0", &["concurrency", "cage.toml:1:"]),
        ("[interfaces.web]\nprotocol = \"htp\"", &["protocol", "cage.toml:2:", "http"]),
        ("[interfaces.web]\nprotocol = \"http\"\nlisten = \"8080\"", &["listen", "cage.toml:3:"]),
        ("[interfaces.web]\nprotocol = \"http\"\nlisten = ${NOWHERE_SET_AT_ALL}", &["cage.toml:3:"]),
        ("[interfaces.\"a b\"]\nprotocol = \"http\"", &["a b"]),
        ("[modules.work]\nmemory_mb = 100_000", &["memory_mb", "cage.toml:2:"]),
        ("[modules.work]\nallow = { http = [\"no host\"] }", &["http", "cage.toml:2:"]),
        ("[modules.work\nmemory_mb = 1", &["cage.toml:1:"]),
        ("queue = 1\nqueue = 2", &["queue", "cage.toml:2:"]),
        ("log_level = \"debug", &["cage.toml:1:"]),
    ];
    for (text, words) in broken {
        cage.configure(&format!("{text}\n"));
        let fits = |error: &String| words.iter().all(|word| error.contains(word));
        let what = format!("an error with {words:?} for {text:?}");
        eventually(&what, || config_error(&cage).filter(fits)).await;
        assert_eq!(client.get("/").await.text(), "Hello, world !");
    }
    let bytes = [good.as_bytes(), b"# \xff\xfe\n"].concat();
    fs::write(cage.directory().join("cage.toml"), bytes).unwrap();
    eventually("an error about bytes", || config_error(&cage).filter(|error| error.contains("UTF-8"))).await;
    fs::remove_file(cage.directory().join("cage.toml")).unwrap();
    fs::create_dir(cage.directory().join("cage.toml")).unwrap();
    eventually("an error about a directory", || config_error(&cage).filter(|error| error.contains("read"))).await;
    fs::remove_dir(cage.directory().join("cage.toml")).unwrap();
    let log = cage.log();
    assert!(log.contains("cage.toml refused, the old settings stay") && log.contains("cage.toml:3:"), "{log}");

    cage.configure(&good);
    eventually("health", || config_error(&cage).is_none().then_some(())).await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_does_not_start_with_a_broken_file() {
    let test = TestCage::new().config("log_level = \"loud\"\nqueue = -1\n[interfaces.web]\nprotocol = \"htp\"\n");
    let name = test.name().to_owned();
    let error = test.try_start().await.err().expect("a cage that cannot start");
    assert!(error.is_configuration());
    let StartError::Config { cage, source } = error else { panic!("{error:?}") };
    let text = source.to_string();
    // All mistakes at once.
    assert!(cage == name && ["log_level", "queue", "protocol"].iter().all(|key| text.contains(key)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_taken_when_it_is_free() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let cage = TestCage::new()
        .config(&interface("taken", port, "module = \"hello\""))
        .config(&interface("free", 0, "module = \"hello\""))
        .module("hello", "hello")
        .start()
        .await;
    assert_eq!(cage.client("free").get("/").await.text(), "Hello, world !");
    let error = eventually("the interface's error", || interface_error(&cage, "taken")).await;
    assert!(error.contains("taken") && error.contains(&format!("127.0.0.1:{port}")), "{error}");
    assert!(error.contains("in use"), "{error}");
    let log = cage.logged("[taken] interface failed").await;
    assert!(log.contains(&format!("127.0.0.1:{port}")) && log.contains("retry_s=1"), "{log}");
    drop(holder);
    until_text(&at(port), "/", "Hello, world !").await;
    assert_eq!(interface_error(&cage, "taken"), None);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_cannot_serve_can_be_mended() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    let cage = TestCage::new().config(&interface("web", taken, "")).module("hello", "interface_web").start().await;
    eventually("the interface's error", || interface_error(&cage, "web")).await;
    cage.configure(&interface("web", 0, ""));
    eventually("another port", || (!cage.host().serving().is_empty()).then_some(())).await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shared_file_lies_beneath() {
    let shared_config = |greeting: &str| {
        format!(
            "{}[modules.interface_web]\nconfig = {{ from = \"shared\", greeting = \"{greeting}\" }}\n",
            interface("web", 0, "")
        )
    };
    let test =
        TestCage::new().config("[modules.interface_web.config]\nfrom = \"${cage}\"\n").module("echo", "interface_web");
    let (name, shared) = (test.name().to_owned(), test.directory().parent().unwrap().join(".shared"));
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("cage.toml"), shared_config("hello")).unwrap();
    let cage = test.start().await;
    let client = cage.client("web");
    let config = |from: &str, greeting: &str| json!({ "from": from, "greeting": greeting });
    assert_eq!(client.get("/config").await.json(), config(&name, "hello"));
    // Each of the two files is live.
    fs::write(shared.join("cage.toml"), shared_config("good day")).unwrap();
    until(&client, "/config", |answer| answer.json() == config(&name, "good day")).await;
    cage.configure("");
    until(&client, "/config", |answer| answer.json() == config("shared", "good day")).await;
    // A mistake is told with the file that it is in.
    fs::write(shared.join("cage.toml"), "queue = -1").unwrap();
    let error = eventually("an error", || config_error(&cage)).await;
    assert!(error.contains(".shared/cage.toml") && error.contains("queue"), "{error}");
    fs::write(shared.join("cage.toml"), shared_config("hello")).unwrap();
    until(&client, "/config", |answer| answer.json() == config("shared", "hello")).await;
    assert_eq!(config_error(&cage), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_directory_that_comes_later_is_found() {
    let cage = TestCage::new().config(&interface("web", 0, "")).module("echo", "interface_web").start().await;
    let shared = cage.root().join(".shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("cage.toml"), "[modules.interface_web]\nconfig = { late = true }\n").unwrap();
    fs::copy(wasmcage_tests::guest("hello"), shared.join("late.wasm")).unwrap();
    let client = cage.client("web");
    until(&client, "/config", |answer| answer.json() == json!({ "late": true })).await;
    cage.swapped("late", None).await;
}
