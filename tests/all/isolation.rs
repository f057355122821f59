//! What one module does is no other module's affair: not its processor time, not its memory, not its end, not its
//! settings; and what it was not granted it cannot reach.

use std::fs;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use serde_json::json;
use wasmcage_tests::{Answer, Client, TestCage, eventually, fixture, unique_name};

#[tokio::test(flavor = "multi_thread")]
async fn two_loops_and_a_memory_bomb_beside_a_module_that_works() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 100;
    let cage = TestCage::new()
        .lanes(2)
        .config("[interfaces.bad]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\ntimeout_ms = 1_500")
        .config("[modules.interface_bad]\nmemory_mb = 64")
        .module("hostile", "interface_bad")
        .module("echo", "interface_good")
        .http("good")
        .start()
        .await;
    let culprits = ["/loop", "/loop", "/memory"].map(|path| {
        let client = Client::new(&cage.address("bad"));
        tokio::spawn(async move { client.get(path).await.status.as_u16() })
    });
    eventually("the loops' begin", || (cage.snapshot().cages[0].in_work >= 2).then_some(())).await;
    let good = (0..CLIENTS).map(|number| {
        let client = cage.client("good");
        async move {
            for request in 0..REQUESTS {
                let text = format!("{number} asks for the {request}th time");
                let answer = client.post("/body", text.clone()).await;
                assert_eq!((answer.status.as_u16(), answer.text()), (200, text));
            }
        }
    });
    join_all(good).await;
    let mut ends = Vec::new();
    for culprit in culprits {
        ends.push(culprit.await.unwrap());
    }
    assert_eq!(ends, [504, 504, 500]);
    cage.logged("memory limit of 64 MiB reached").await;
    cage.quiet().await;
    assert_eq!(cage.instances("interface_bad"), 0);
    let outcomes = |module: &str| cage.module(module).unwrap().readings.outcomes;
    assert_eq!(outcomes("interface_good"), [("ok", (CLIENTS * REQUESTS) as u64)].into());
    assert_eq!(outcomes("interface_bad"), [("deadline-exceeded", 2), ("trapped", 1)].into());
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_ends_one_instance_and_no_other() {
    let cage = TestCage::new().module("hostile", "interface_web").http("web").start().await;
    let client = cage.client("web");
    let sleepers: Vec<_> = (0..5)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.get("/sleep?ms=1000").await.text() })
        })
        .collect();
    eventually("the sleep", || (cage.snapshot().cages[0].in_work == 5).then_some(())).await;
    for path in ["/panic", "/unreachable", "/recurse", "/exit?code=1"].repeat(5) {
        assert_eq!(client.get(path).await.status, 500, "{path}");
    }
    for sleeper in sleepers {
        assert_eq!(sleeper.await.unwrap(), "slept");
    }
    cage.quiet().await;
    assert_eq!((cage.instances("interface_web"), cage.module("interface_web").unwrap().traps), (5, 20));
    assert!(cage.stop().await);
}

fn put(client: &Client, target: &str, body: &'static str) -> impl Future<Output = Answer> {
    let client = client.clone();
    let target = target.to_owned();
    async move { client.send(Method::PUT, &target, &[], Bytes::from(body)).await }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_those_that_were_granted() {
    let test = TestCage::new()
        .config(
            "[modules.interface_web]\nallow = { files = [\n\
             { host = \"data\", guest = \"/data\", mode = \"ro\" },\n\
             { host = \"work\", guest = \"/work\", mode = \"rw\" },\n\
             { host = \"default\", guest = \"/default\" },\n] }\n",
        )
        .module("echo", "interface_web")
        .module("echo", "interface_other")
        .http("web")
        .http("other");
    let directory = test.directory();
    for granted in ["data", "work", "default", "not_granted"] {
        fs::create_dir(directory.join(granted)).unwrap();
        fs::write(directory.join(granted).join("a.txt"), granted).unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", directory.join("work/link")).unwrap();
    std::os::unix::fs::symlink("../not_granted", directory.join("work/directory")).unwrap();
    let cage = test.start().await;
    let (web, other) = (cage.client("web"), cage.client("other"));

    for granted in ["data", "work", "default"] {
        assert_eq!(web.get(&format!("/file?path=/{granted}/a.txt")).await.text(), granted);
    }
    // Not named at all, reached by a way round, or another module's.
    let elsewhere = ["/etc/passwd", "/proc/self/environ", "/work/link", "/work/directory/a.txt", "/not_granted/a.txt"];
    for path in elsewhere.into_iter().chain(["/data/../not_granted/a.txt", "/data/../../../../etc/passwd", "a.txt"]) {
        assert_eq!(web.get(&format!("/file?path={path}")).await.status, 500, "{path}");
        assert_eq!(put(&web, &format!("/file?path={path}"), "stolen").await.status, 500, "{path}");
    }
    assert_eq!(other.get("/file?path=/data/a.txt").await.status, 500);
    assert_eq!(fs::read_to_string(directory.join("not_granted/a.txt")).unwrap(), "not_granted");

    // To read is not to write.
    for path in ["data/a.txt", "data/new.txt", "default/a.txt"] {
        assert_eq!(put(&web, &format!("/file?path=/{path}"), "changed").await.status, 500, "{path}");
    }
    assert_eq!(fs::read_to_string(directory.join("data/a.txt")).unwrap(), "data");
    assert!(!directory.join("data/new.txt").exists());
    assert_eq!(put(&web, "/file?path=/work/new.txt", "written").await.status, 204);
    assert_eq!(fs::read_to_string(directory.join("work/new.txt")).unwrap(), "written");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_granted_directory_that_is_missing_refuses_the_module() {
    let cage = TestCage::new()
        .config("[modules.interface_web]\nallow = { files = [{ host = \"nowhere\", guest = \"/data\" }] }")
        .module("echo", "interface_web")
        .http("web")
        .start()
        .await;
    let reason = cage.refused("interface_web").await;
    assert!(reason.contains("granted directory") && reason.contains("nowhere"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_and_environment_are_the_modules_own() {
    let cage = TestCage::new()
        .config(
            "[modules.interface_a]\nenv = { REGION = \"eu\" }\nconfig = { greeting = \"hello\", depth = { n = 1 } }",
        )
        .config("[modules.interface_b]\nconfig = { secret = \"of b\" }")
        .module("echo", "interface_a")
        .module("echo", "interface_b")
        .config("[modules.standard]\nconfig = { greeting = \"good day\", depth = 3 }")
        .file("standard", &fixture("wasi_config"))
        .http("a")
        .http("b")
        .start()
        .await;
    let (a, b) = (cage.client("a"), cage.client("b"));
    assert_eq!(a.get("/env").await.json(), json!({ "REGION": "eu" }));
    assert_eq!(b.get("/env").await.json(), json!({}));
    assert_eq!(a.get("/config").await.json(), json!({ "greeting": "hello", "depth": { "n": 1 } }));
    assert_eq!(b.get("/config").await.json(), json!({ "secret": "of b" }));
    assert_eq!(a.get("/config?key=greeting").await.json(), "hello");
    assert_eq!(a.get("/config?key=secret").await.json(), json!(null));
    // The standard interface shows the same, as texts.
    for (key, value) in [("greeting", json!("good day")), ("depth", json!("3")), ("secret", json!(null))] {
        let target = format!("/call?module=standard&function=get&args=[\"{key}\"]");
        assert_eq!(a.get(&target.replace('"', "%22")).await.json(), value, "{key}");
    }
    // Nor does a value leak into the log.
    assert!(!cage.log().contains("of b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cage_is_called_with_a_grant_only() {
    let (own, worker) = (unique_name("cage"), unique_name("worker"));
    let call = |cage: &str, module: &str| format!("/try_call?cage={cage}&module={module}&function=echo&args=[1]");
    let test = TestCage::new()
        .config(&format!("[modules.interface_granted]\nallow = {{ cages = [\"{worker}\", \"nobody\"] }}\n"))
        .module("echo", "interface_granted")
        .module("echo", "interface_other")
        .module("service_echo", "service")
        .http("granted")
        .http("other")
        .cage(&worker)
        .module("service_echo", "service")
        .cage(&own)
        .module("service_echo", "service");
    let cage = test.start().await;
    let (granted, other) = (cage.client("granted"), cage.client("other"));
    assert_eq!(granted.get(&call(&worker, "service")).await.json(), 1);
    for (client, target) in [(&other, &worker), (&granted, &own), (&other, &"nobody".to_owned())] {
        let answer = client.get(&call(target, "service")).await.json();
        assert!(answer["error"].as_str().unwrap().starts_with("NotPermitted"), "{answer}");
        assert!(answer["text"].as_str().unwrap().contains("allow = { cages"), "{answer}");
    }
    let answer = granted.get(&call("nobody", "service")).await.json();
    assert!(answer["error"].as_str().unwrap().starts_with("NoSuchCage"), "{answer}");
    // The own cage's modules need no grant, whether it is named or not.
    for target in ["/try_call?module=service&function=echo&args=[1]".to_owned(), call(cage.name(), "service")] {
        assert_eq!(other.get(&target).await.json(), 1);
    }
    cage.quiet().await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_network() {
    let cage = TestCage::new().module("hostile", "interface_web").http("web").start().await;
    let client = cage.client("web");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    assert_eq!(client.get(&format!("/connect?to={address}")).await.status, 500);
    assert_eq!(client.get("/resolve?name=localhost").await.status, 500);
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}
