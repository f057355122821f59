//! Standard WASI HTTP components, 0.2 and 0.3, unchanged: bodies and trailers stream in both directions, and whoever ends
//! in the middle, client or guest, harms nobody else.

use bytes::Bytes;
use http::Method;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use wasmcage_tests::{Client, RunningCage, StreamedRequest, TestCage, Version, eventually};

const GUESTS: [&str; 2] = ["wasi_http_p2", "wasi_http_p3"];
const VERSIONS: [Version; 2] = [Version::Http1, Version::Http2];

/// Far longer than any test runs, so that nothing here ends by its deadline unless it is meant to.
const LONG: &str = "timeout_ms = 600000";

async fn started(guest: &str, config: &str) -> RunningCage {
    TestCage::new().module(guest, "interface_web").http("web").config(config).start().await
}

/// Nothing is in work any more, the module serves, and that has ended, too.
async fn alive(cage: &RunningCage) {
    cage.quiet().await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    cage.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_answer() {
    for guest in GUESTS {
        let cage = started(guest, "").await;
        for client in [cage.client("web"), Client::http2(&cage.address("web"))] {
            let answer = client.get("/").await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "Hello, world !"), "{guest}");
            assert_eq!(answer.header("content-type"), "text/plain");
            assert_eq!(client.get("/elsewhere?x=1").await.status, 404);
            assert_eq!(client.send(Method::HEAD, "/", &[], Bytes::new()).await.text(), "");
            // A body that does not fit into anybody's buffer.
            let body = Bytes::from_iter((0..3_000_000_u32).map(|index| (index % 251) as u8));
            assert!(client.post("/echo", body.clone()).await.body == body, "{guest}");
        }
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/echo", &[]).await;
            // Each piece comes back before the next is sent: nobody on the way waits for more.
            for piece in ["one", "two", "three"] {
                exchange.send(piece).await;
                exchange.expect(piece).await;
            }
            exchange.end().await;
            assert_eq!(exchange.rest().await.unwrap().0, "", "{guest} {version:?}");
        }
        // Without a look by the guest; only 0.3 can.
        if guest == "wasi_http_p3" {
            let mut exchange = StreamedRequest::begin(&cage.address("web"), Version::Http1, "/pass", &[]).await;
            exchange.send("one").await;
            exchange.expect("one").await;
            exchange.end().await;
            assert_eq!(exchange.rest().await.unwrap().0, "");
        }
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let headers = [("trailer", "x-sum"), ("te", "trailers")];
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/echo", &headers).await;
            exchange.send("body").await;
            exchange.end_with("x-sum", "17").await;
            let (body, trailers) = exchange.rest().await.unwrap();
            assert_eq!(body, "body");
            assert_eq!(trailers.get("x-sum").map(|value| value.as_bytes()), Some(&b"17"[..]), "{guest} {version:?}");
        }
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_begin_before_the_request_has_ended() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/early", &[]).await;
            assert_eq!(exchange.status().await, 200);
            exchange.expect("answered early\n").await;
            exchange.send("12345").await;
            exchange.send("67").await;
            exchange.end().await;
            assert_eq!(exchange.rest().await.unwrap().0, "7 bytes followed\n", "{guest} {version:?}");
        }
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_holds_nothing_up() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        let answer = cage.client("web").post("/never-reads", vec![b'x'; 4_000_000]).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "not read"), "{guest}");
        for version in VERSIONS {
            // The client would go on, and does not get the chance.
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/never-reads", &[]).await;
            exchange.send("a piece").await;
            assert_eq!(exchange.rest().await.unwrap().0, "not read", "{guest} {version:?}");
        }
        // Nor is it too large in secret.
        alive(&cage).await;
        let cage = started(guest, "max_body_bytes = 1000").await;
        assert_eq!(cage.client("web").post("/never-reads", vec![b'x'; 1001]).await.status, 413);
        let mut exchange = StreamedRequest::begin(&cage.address("web"), Version::Http1, "/echo", &[]).await;
        exchange.send(vec![b'x'; 1000]).await;
        exchange.send("x").await;
        exchange.rest().await.unwrap_err();
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_the_guest() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        let in_work = |count| (cage.snapshot().cages[0].in_work == count).then_some(());
        for version in VERSIONS {
            // In the middle of both bodies.
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/echo", &[]).await;
            exchange.send("one").await;
            exchange.expect("one").await;
            drop(exchange);
            alive(&cage).await;
            // While the answer comes.
            let mut exchange =
                StreamedRequest::begin(&cage.address("web"), version, "/slow-body?n=1000000&ms=1", &[]).await;
            exchange.end().await;
            exchange.expect("line 0\n").await;
            drop(exchange);
            alive(&cage).await;
        }
        // Before there is any answer. (Over HTTP/1 a client that merely ends its sending wants its answer; this one is gone.)
        let mut client = TcpStream::connect(cage.address("web")).await.unwrap();
        client.write_all(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        eventually("a request in work", || in_work(1)).await;
        client.set_zero_linger().unwrap();
        drop(client);
        alive(&cage).await;
        let exchange = StreamedRequest::begin(&cage.address("web"), Version::Http2, "/hang", &[]).await;
        eventually("a request in work", || in_work(1)).await;
        drop(exchange);
        alive(&cage).await;
        let abandoned = || cage.module("interface_web")?.readings.outcomes.get("abandoned").copied();
        eventually("two requests without an answer", || (abandoned() == Some(2)).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ends_before_its_answer_has_failed() {
    for guest in GUESTS {
        let cage = started(guest, "").await;
        let client = cage.client("web");
        let check = async |target: &str, code: &str, cause: &str| {
            let answer = client.get(target).await;
            assert_eq!(answer.status, 500, "{guest} {target}");
            assert!(answer.text().starts_with(&format!("{code}: the request failed")), "{}", answer.text());
            cage.logged(cause).await;
        };
        check("/trap", "trapped", "trapped: ").await;
        check("/error", "failed", "InternalError(Some(").await;
        if guest == "wasi_http_p2" {
            check("/no-answer", "failed", "the module gave no response").await;
        }
        assert_eq!(cage.module("interface_web").unwrap().traps, 1);
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_its_guest_does_not_finish_is_a_failure() {
    let cage = started("wasi_http_p2", LONG).await;
    let client = cage.client("web");
    // Nothing has been sent: there is room for an answer that says so.
    let answer = client.get("/unfinished").await;
    assert_eq!((answer.status.as_u16(), answer.text().starts_with("failed: ")), (500, true), "{}", answer.text());
    cage.logged("the body of the module's answer broke off").await;
    let mut exchange = StreamedRequest::begin(&cage.address("web"), Version::Http1, "/unfinished-late", &[]).await;
    assert_eq!(exchange.status().await, 200);
    exchange.expect("the beginning\n").await;
    exchange.rest().await.unwrap_err();
    let failed = || cage.module("interface_web")?.readings.outcomes.get("failed").copied();
    eventually("both failures counted", || (failed() == Some(2)).then_some(())).await;
    // With the request, as other failures.
    let both =
        |log: &String| log.lines().filter(|line| line.contains("broke off") && line.contains("# RQ-")).count() == 2;
    eventually("both failures in the log", || Some(cage.log()).filter(both)).await;
    assert_eq!(cage.module("interface_web").unwrap().readings.outcomes.get("ok"), None);
    alive(&cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_in_the_middle_leaves_the_answer_unfinished() {
    for guest in GUESTS {
        let cage = started(guest, LONG).await;
        for version in VERSIONS {
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/trap-late", &[]).await;
            assert_eq!(exchange.status().await, 200);
            exchange.expect("the beginning\n").await;
            // Whoever reads it must not take the beginning for all of it.
            exchange.rest().await.unwrap_err();
            alive(&cage).await;
        }
        // The client has its status by then; the operator learns of it all the same.
        let both = |log: &String| log.matches("ERR [web] request failed").count() == 2;
        eventually(&format!("both failures of {guest} in the log"), || Some(cage.log()).filter(both)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_streams_may_take_longer_than_a_request_and_not_for_ever() {
    for guest in GUESTS {
        // A line each 20 ms is no silence of 400 ms, and the whole takes more than that.
        let cage = started(guest, "timeout_ms = 400").await;
        for version in VERSIONS {
            let mut exchange =
                StreamedRequest::begin(&cage.address("web"), version, "/slow-body?n=50&ms=20", &[]).await;
            exchange.end().await;
            let (body, _) = exchange.rest().await.unwrap_or_else(|error| panic!("{guest} {version:?}: {error}"));
            assert_eq!(body.lines().count(), 50, "{guest} {version:?}");
            // Silence ends it.
            let mut exchange =
                StreamedRequest::begin(&cage.address("web"), version, "/slow-body?n=2&ms=600000", &[]).await;
            exchange.end().await;
            assert_eq!(exchange.status().await, 200, "{guest} {version:?}");
            exchange.rest().await.unwrap_err();
            alive(&cage).await;
        }
        let cage = started(guest, "timeout_ms = 400\nstream_timeout_ms = 800").await;
        for version in VERSIONS {
            let target = "/slow-body?n=1000000&ms=5";
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, target, &[]).await;
            exchange.end().await;
            assert_eq!(exchange.status().await, 200, "{guest} {version:?}");
            exchange.rest().await.unwrap_err();
            alive(&cage).await;
        }
        let answer = cage.client("web").get("/hang").await;
        assert_eq!(answer.status, 504, "{guest}");
        cage.logged("request failed").await;
        alive(&cage).await;
    }
}

/// Many times what a handler may be sent, at a pace that takes longer than a request may. `WASMCAGE_STREAM_MB` makes it more.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_transfer_of_many_megabytes_comes_through() {
    const PIECE: usize = 1 << 18;
    let megabytes = std::env::var("WASMCAGE_STREAM_MB").map_or(12, |text| text.parse::<usize>().unwrap());
    for guest in GUESTS {
        let cage = started(guest, "timeout_ms = 700").await;
        for version in VERSIONS {
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/echo", &[]).await;
            let piece: Bytes = vec![b'x'; PIECE].into();
            for _ in 0..megabytes * (1 << 20) / PIECE {
                exchange.send(piece.clone()).await;
                exchange.skip(PIECE).await;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            exchange.end().await;
            assert_eq!(exchange.rest().await.unwrap().0, "", "{guest} {version:?}");
        }
        alive(&cage).await;
    }
}

/// The other half of it alone: a download that its module makes slowly, and one that its client takes slowly.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_download_of_many_megabytes_comes_through() {
    const PIECE: usize = 1 << 18;
    const PAUSE_MS: u64 = 20;
    let megabytes = std::env::var("WASMCAGE_STREAM_MB").map_or(12, |text| text.parse::<usize>().unwrap());
    let pieces = megabytes * (1 << 20) / PIECE;
    for guest in GUESTS {
        let cage = started(guest, "timeout_ms = 700").await;
        for version in VERSIONS {
            for (module_ms, client_ms) in [(PAUSE_MS, 0), (0, PAUSE_MS)] {
                let target = format!("/slow-body?n={pieces}&ms={module_ms}&bytes={PIECE}");
                let mut exchange = StreamedRequest::begin(&cage.address("web"), version, &target, &[]).await;
                exchange.end().await;
                let mut came = 0;
                while came < pieces * PIECE {
                    let whole = came / PIECE;
                    came += exchange.piece().await;
                    if came / PIECE > whole {
                        tokio::time::sleep(std::time::Duration::from_millis(client_ms)).await;
                    }
                }
                assert_eq!(exchange.rest().await.unwrap().0, "", "{guest} {version:?}");
            }
        }
        alive(&cage).await;
    }
}

fn in_mode(mode: &str) -> String {
    format!("[modules.interface_web]\ninstances = {{ mode = \"{mode}\" }}")
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_used_again() {
    for guest in GUESTS {
        let cage =
            TestCage::new().lanes(1).module(guest, "interface_web").http("web").config(&in_mode("reuse")).start().await;
        for _ in 0..20 {
            alive(&cage).await;
        }
        assert_eq!(cage.instances("interface_web"), 1, "{guest}");
        let client = cage.client("web");
        let answers: Vec<_> = (0..100)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.post("/echo", "a body").await.text() })
            })
            .collect();
        for answer in answers {
            assert_eq!(answer.await.unwrap(), "a body");
        }
        cage.quiet().await;
        let instances = cage.instances("interface_web");
        assert!((1..=64).contains(&instances), "{guest}: {instances}");
    }
    for guest in GUESTS {
        let cage = started(guest, &in_mode("fresh")).await;
        alive(&cage).await;
        alive(&cage).await;
        cage.quiet().await;
        assert_eq!(cage.instances("interface_web"), 0, "{guest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_answers_once_in_its_life_answers_everybody() {
    let cage = started("wasi_http_p2", "").await;
    for _ in 0..5 {
        assert_eq!(cage.client("web").get("/once").await.text(), "the first");
    }
    cage.quiet().await;
    assert_eq!(cage.instances("interface_web"), 0);
    // 0.3 is made to be asked again.
    let cage = TestCage::new().lanes(1).module("wasi_http_p3", "interface_web").http("web").start().await;
    alive(&cage).await;
    alive(&cage).await;
    assert_eq!(cage.instances("interface_web"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_gave_no_answer_is_not_asked_again() {
    let cage = TestCage::new()
        .lanes(1)
        .module("wasi_http_p2", "interface_web")
        .http("web")
        .config(&in_mode("reuse"))
        .start()
        .await;
    for _ in 0..3 {
        let answer = cage.client("web").get("/once").await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "the first"));
        cage.quiet().await;
        assert_eq!(cage.instances("interface_web"), 1);
        assert_eq!(cage.client("web").get("/once").await.status, 500);
        cage.quiet().await;
        assert_eq!(cage.instances("interface_web"), 0);
    }
}
