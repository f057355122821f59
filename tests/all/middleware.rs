//! `wasi:http/handler` as an import that `cage.toml` binds to another module: requests are handed on as they come, bodies
//! stream through both guests, and each failure has WASI's name for it.

use http::Method;
use wasmcage_tests::{RunningCage, StreamedRequest, TestCage, Version, eventually};

const BOUND: &str = "[modules.front.imports]\n\"wasi:http/handler\" = \"inner\"\n";
const WEB: &str =
    "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\nmodule = \"front\"\ntimeout_ms = 60000\n";
const INNER: [&str; 2] = ["wasi_http_p2", "wasi_http_p3"];

async fn chain(inner: &str) -> RunningCage {
    TestCage::new().config(&format!("{WEB}{BOUND}")).module("middleware", "front").module(inner, "inner").start().await
}

/// Nothing is in work any more, and both serve.
async fn alive(cage: &RunningCage) {
    cage.quiet().await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    cage.quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_by_the_module_behind() {
    for inner in INNER {
        let cage = chain(inner).await;
        let client = cage.client("web");
        assert_eq!(client.get("/").await.text(), "Hello, world !", "{inner}");
        assert_eq!(client.get("/elsewhere?x=1").await.status, 404);
        assert_eq!(client.send(Method::HEAD, "/", &[], bytes::Bytes::new()).await.text(), "");
        let body = bytes::Bytes::from_iter((0..3_000_000_u32).map(|index| (index % 251) as u8));
        assert!(client.post("/echo", body.clone()).await.body == body, "{inner}");
        let before = cage.module("inner").unwrap().readings.outcomes.clone();
        assert_eq!(client.get("/private/x").await.status, 403, "{inner}");
        assert_eq!(cage.module("inner").unwrap().readings.outcomes, before);
        alive(&cage).await;
        assert!(cage.stop().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_trailers_stream_through_both() {
    for inner in INNER {
        let cage = chain(inner).await;
        for version in [Version::Http1, Version::Http2] {
            let headers = [("trailer", "x-sum"), ("te", "trailers")];
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, "/echo", &headers).await;
            for piece in ["one", "two", "three"] {
                exchange.send(piece).await;
                exchange.expect(piece).await;
            }
            exchange.end_with("x-sum", "17").await;
            let (body, trailers) = exchange.rest().await.unwrap();
            assert_eq!(body, "");
            assert_eq!(trailers.get("x-sum").map(|value| value.as_bytes()), Some(&b"17"[..]), "{inner} {version:?}");
        }
        alive(&cage).await;
    }
}

/// What was handed on ended when the request's first `timeout_ms` was over, however much streamed: a download through a middleware
/// broke off after ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn what_streams_through_both_may_take_longer_than_a_request_and_not_for_ever() {
    for inner in INNER {
        let with = async |limits: &str| {
            let web = WEB.replace("timeout_ms = 60000", limits);
            let cage = TestCage::new().config(&format!("{web}{BOUND}")).module("middleware", "front");
            cage.module(inner, "inner").start().await
        };
        let asked = async |cage: &RunningCage, version, target: &str| {
            let mut exchange = StreamedRequest::begin(&cage.address("web"), version, target, &[]).await;
            exchange.end().await;
            assert_eq!(exchange.status().await, 200, "{inner} {version:?} {target}");
            exchange.rest().await
        };
        let cage = with("timeout_ms = 400").await;
        for version in [Version::Http1, Version::Http2] {
            // A line each 20 ms is no silence of 400 ms, and the whole takes more than that.
            let (body, _) = asked(&cage, version, "/slow-body?n=50&ms=20").await.unwrap();
            assert_eq!(body.lines().count(), 50, "{inner} {version:?}");
            asked(&cage, version, "/slow-body?n=2&ms=600000").await.unwrap_err();
            alive(&cage).await;
        }
        let cage = with("timeout_ms = 400\nstream_timeout_ms = 800").await;
        asked(&cage, Version::Http2, "/slow-body?n=1000000&ms=5").await.unwrap_err();
        alive(&cage).await;
        // The module behind may be allowed less silence.
        let cage = with("timeout_ms = 600000\n[modules.inner]\ntimeout_ms = 400").await;
        let (body, _) = asked(&cage, Version::Http2, "/slow-body?n=50&ms=20").await.unwrap();
        assert_eq!(body.lines().count(), 50, "{inner}");
        asked(&cage, Version::Http2, "/slow-body?n=2&ms=600000").await.unwrap_err();
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_both() {
    for inner in INNER {
        let cage = chain(inner).await;
        let mut exchange =
            StreamedRequest::begin(&cage.address("web"), Version::Http2, "/slow-body?n=1000000&ms=1", &[]).await;
        exchange.end().await;
        exchange.expect("line 0\n").await;
        drop(exchange);
        alive(&cage).await;
        let exchange = StreamedRequest::begin(&cage.address("web"), Version::Http2, "/hang", &[]).await;
        eventually("a request in work", || (cage.snapshot().cages[0].in_work == 1).then_some(())).await;
        drop(exchange);
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_behind_fails_in_front_and_harms_neither() {
    for inner in INNER {
        let cage = chain(inner).await;
        for path in ["/trap", "/error"] {
            assert_eq!(cage.client("web").get(path).await.status, 500, "{inner} {path}");
            alive(&cage).await;
        }
        let mut exchange = StreamedRequest::begin(&cage.address("web"), Version::Http1, "/trap-late", &[]).await;
        exchange.expect("the beginning\n").await;
        exchange.rest().await.unwrap_err();
        alive(&cage).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_of_another_cage_of_the_process_answers_if_it_permits_that() {
    let bound = BOUND.replace("\"inner\"", "\"back/inner\"");
    let cage = TestCage::named("front-cage")
        .config(&format!("{WEB}{bound}"))
        .module("middleware", "front")
        .cage("back")
        .config("[rpc.allow]\n\"inner.*\" = [\"front-cage\"]")
        .module("wasi_http_p3", "inner")
        .start()
        .await;
    alive(&cage).await;
    let cage = TestCage::named("front-cage")
        .config(&format!("{WEB}{bound}"))
        .module("middleware", "front")
        .cage("back")
        .config("[rpc.allow]\n\"inner.*\" = [\"others\"]")
        .module("wasi_http_p3", "inner")
        .start()
        .await;
    assert_eq!(cage.client("web").get("/").await.status, 500);
    cage.logged("HttpRequestDenied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_there_or_cannot_answer_is_told() {
    let nobody = TestCage::new().config(&format!("{WEB}{BOUND}")).module("middleware", "front").start().await;
    assert_eq!(nobody.client("web").get("/").await.status, 500);
    nobody.logged("DestinationNotFound").await;
    let far = BOUND.replace("\"inner\"", "\"elsewhere/inner\"");
    let far = TestCage::new().config(&format!("{WEB}{far}")).module("middleware", "front").start().await;
    assert_eq!(far.client("web").get("/").await.status, 500);
    far.logged("DestinationNotFound").await;
    // A module without any export of `wasi:http`, seen when the front is loaded anew.
    let silent = TestCage::new().config(BOUND).module("counter", "inner").start().await;
    eventually("the inner module", || silent.version("inner")).await;
    silent.deploy("front", &std::fs::read(wasmcage_tests::guest("middleware")).unwrap());
    let reason = silent.refused("front").await;
    assert!(reason.contains("inner does not fit: it exports neither wasi:http/incoming-handler nor"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_without_end_is_cut() {
    let bound = BOUND.replace("\"inner\"", "\"front\"");
    let cage = TestCage::new().config(&format!("{WEB}{bound}")).module("middleware", "front").start().await;
    assert_eq!(cage.client("web").get("/").await.status, 500);
    cage.logged("calls are nested").await;
    cage.quiet().await;
    assert_eq!(cage.client("web").get("/private").await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_binding_the_import_is_refused_and_says_how_to_bind_it() {
    let cage = TestCage::new().module("middleware", "front").start().await;
    let reason = cage.refused("front").await;
    for word in ["wasi:http/handler@0.3.0", "nobody provides it", "\"wasi:http/handler\" = \"cage/module\""] {
        assert!(reason.contains(word), "{word} is not in {reason}");
    }
}
