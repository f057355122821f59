//! A file that is no good is refused with its name, the cause and what to do; what a guest answers and HTTP cannot carry
//! becomes an error page of the host's. Either way the old version and the neighbours serve on, and where no version is,
//! requests are turned away rather than lost.

use http::{Method, StatusCode};
use wasmcage_tests::{Answer, RunningCage, TestCage, component, eventually, fixture, guest};

const HELLO: &str = "Hello, world !";

fn hello() -> Vec<u8> {
    std::fs::read(guest("hello")).unwrap()
}

fn guest_bytes(name: &str) -> Vec<u8> {
    std::fs::read(guest(name)).unwrap()
}

/// Puts `bytes` where no version serves and where one does, and looks for `words` in the reason for refusing them.
async fn check_refused(bytes: &[u8], words: &[&str]) {
    let cage = TestCage::new()
        .config("request_timeout_ms = 1_000")
        .file("interface_new", bytes)
        .module("hello", "interface_old")
        .module("hello", "interface_neighbour")
        .http("new")
        .http("old")
        .http("neighbour")
        .start()
        .await;
    check_reason(&cage, "interface_new", words).await;
    assert_eq!(cage.version("interface_new"), None);
    for method in [Method::GET, Method::POST] {
        let answer = cage.client("new").send(method, "/x", &[], bytes::Bytes::new()).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
    }

    cage.deploy("interface_old", bytes);
    check_reason(&cage, "interface_old", words).await;
    assert_eq!(cage.version("interface_old"), Some(1));
    assert_eq!(cage.client("old").get("/").await.text(), HELLO);
    assert_eq!(cage.client("neighbour").get("/").await.text(), HELLO);

    // The file that served before is no longer a refused one; one that is removed is none at all.
    cage.deploy("interface_old", &hello());
    std::fs::remove_file(cage.directory().join("interface_new.wasm")).unwrap();
    for module in ["interface_old", "interface_new"] {
        eventually("the refusal's end", || cage.refusal(module).is_none().then_some(())).await;
    }
    assert_eq!(cage.client("old").get("/").await.text(), HELLO);
    cage.deploy("interface_new", &hello());
    cage.swapped("interface_new", None).await;
    assert_eq!(cage.client("new").get("/").await.text(), HELLO);
    assert!(cage.stop().await);
}

async fn check_reason(cage: &RunningCage, module: &str, words: &[&str]) {
    let reason = cage.refused(module).await;
    let file = format!("{module}.wasm");
    for word in words.iter().copied().chain([file.as_str()]) {
        assert!(reason.contains(word), "{word:?} is not in {reason:?}");
    }
    assert!(!reason.contains('\n'), "{reason:?} is more than a line");
    cage.logged(&format!("[{module}] module refused")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_wasm() {
    check_refused(b"#!/bin/sh\necho hello\n", &["not WebAssembly", "#!/bin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_file() {
    check_refused(b"", &["the file is empty"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_header() {
    check_refused(b"\0asm\x0d", &["not a valid component"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_with_garbage_in_it() {
    let mut bytes = hello();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 1_000].fill(0xff);
    check_refused(&bytes, &["not a valid component"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_module() {
    check_refused(&fixture("core_module"), &["core module", "wasm32-wasip2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_import() {
    check_refused(&fixture("unknown_import"), &["acme:missing/thing", "nobody provides it"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_import() {
    let words = ["wasmcage:cage/contxt@0.1.0", "was wasmcage:cage/context meant?"];
    check_refused(&fixture("misspelt_import"), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_of_another_type() {
    check_refused(&fixture("wrong_import_type"), &["wasmcage:cage/context@0.1.0", "deadline-left-ms"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_in_a_version_that_is_not_served() {
    let component = component(r#"(component (import "wasi:random/random@0.4.0" (instance (export "x" (func)))))"#);
    check_refused(&component, &["wasi:random/random@0.4.0", "this version is not served", "0.2.12, 0.3.0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_the_served_version_has_not() {
    let component = component(r#"(component (import "wasi:random/random@0.2.99" (instance (export "x" (func)))))"#);
    let words =
        ["wasi:random/random@0.2.99", "`x`", "of wasi:random/random@0.2.99 there are the versions 0.2.12, 0.3.0"];
    check_refused(&component, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_imports_that_nobody_provides_make_a_short_reason() {
    let import = |number| format!("(import \"acme:missing/thing{number}\" (instance (export \"x\" (func))))");
    let imports: String = (0..19).map(import).collect();
    let cage = TestCage::new().file("greedy", &component(&format!("(component {imports})"))).start().await;
    let reason = cage.refused("greedy").await;
    assert!(reason.contains("acme:missing/thing0: nobody provides it"), "{reason}");
    assert!(reason.ends_with("and 14 more, which `wasmcage check` shows") && reason.len() < 1_000, "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_of_another_type() {
    check_refused(&fixture("wrong_handle"), &["wasmcage:cage/handler@0.1.0", "handle"]).await;
}

/// The hint for a module that is older than the WIT.
const BUILD_AGAIN: &str = "build it again with the SDK, or the `wit/`, of this one";

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_built_with_an_earlier_wit() {
    let words = ["service@0.1.0#call", "the cases refused, failed, not bad-arguments, refused, failed", BUILD_AGAIN];
    check_refused(&fixture("earlier_service"), &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_was_built_with_an_earlier_wit() {
    check_refused(&fixture("earlier_caller"), &["wasmcage:cage/call@0.1.0", "`call`", BUILD_AGAIN]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_export() {
    check_refused(&fixture("no_export"), &["exports nothing", "wasmcage:cage/handler"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_at_the_start() {
    check_refused(&fixture("trap_at_start"), &["did not start", "unreachable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_at_the_start() {
    check_refused(&fixture("loop_at_start"), &["did not start", "deadline exceeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_at_the_start() {
    check_refused(&fixture("large_at_start"), &["did not start", "memory limit of 128 MiB", "memory_mb"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_when_asked_for_functions() {
    check_refused(&guest_bytes("traps_at_start"), &["function list", "trapped"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_when_asked_for_functions() {
    check_refused(&guest_bytes("loops_at_start"), &["function list", "deadline exceeded"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_heals_without_touching_the_file() {
    let cage = TestCage::new().file("caller", &fixture("unknown_import")).start().await;
    assert!(cage.refused("caller").await.contains("nobody provides it"));
    // Whether the module that it names fits is seen by each call, as long as that module is not there.
    cage.configure("[modules.caller.imports]\n\"acme:missing/thing\" = \"work\"\n");
    cage.swapped("caller", None).await;
    assert_eq!(cage.refusal("caller"), None);
    // The version that serves had the binding; a new one is not made without.
    cage.configure("");
    assert!(cage.refused("caller").await.contains("nobody provides it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_bad_files_beside_a_good_one() {
    let bad = [fixture("core_module"), b"no".to_vec(), fixture("trap_at_start"), fixture("unknown_import")];
    let mut test = TestCage::new().module("hello", "interface_web").http("web");
    for number in 0..100 {
        test = test.file(&format!("bad{number}"), &bad[number % bad.len()]);
    }
    let cage = test.start().await;
    assert_eq!(cage.client("web").get("/").await.text(), HELLO);
    for number in 0..100 {
        cage.refused(&format!("bad{number}")).await;
    }
    assert!(cage.stop().await);
}

/// `hostile` at `bad`, `hello` at `good`.
async fn with_hostile(config: &str) -> RunningCage {
    TestCage::new()
        .config(config)
        .module("hostile", "interface_bad")
        .module("hello", "interface_good")
        .http("bad")
        .http("good")
        .start()
        .await
}

/// An error page of the host's: the code, the public text, the request's id, and nothing that the guest said.
fn check_page(answer: &Answer, status: u16, code: &str, text: &str) {
    assert_eq!(answer.status, StatusCode::from_u16(status).unwrap(), "{}", answer.text());
    let request = answer.header("x-request-id");
    assert!(request.starts_with("RQ-") && request.len() == 30, "{request}");
    assert_eq!(answer.text(), format!("{code}: {text}\nrequest {request}\n"));
    let host_made =
        ["content-type", "content-length", "cache-control", "x-content-type-options", "x-request-id", "date"];
    for name in answer.headers.keys() {
        assert!(host_made.contains(&name.as_str()) || name == "retry-after", "{name} is none of the host's headers");
    }
}

/// The cage has lost nothing by what happened.
async fn check_whole(cage: RunningCage) {
    assert_eq!(cage.client("good").get("/").await.text(), HELLO);
    cage.quiet().await;
    assert!(cage.instances("interface_bad") <= 64);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_http_cannot_carry() {
    let cage = with_hostile("").await;
    let client = cage.client("bad");
    let kinds = ["value-crlf", "value-nul", "value-huge", "name-crlf", "name-nul", "name-empty", "name-space"];
    for kind in kinds.into_iter().chain(["name-not-ascii", "chunked", "connection"]) {
        let answer = client.get(&format!("/bad-header?kind={kind}")).await;
        check_page(&answer, 502, "invalid-reply", "the request failed");
    }
    // The first of them is told, and where it happened.
    let log = cage.logged("reply not sendable").await;
    assert!(
        log.contains("module=interface_bad") && log.contains("value of header \\\"x-bad\\\" is not valid"),
        "{log}"
    );
    // A length that is not true is put right.
    let answer = client.get("/bad-header?kind=length").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "see the headers"));
    assert_eq!(answer.header("content-length"), "15");
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_headers_without_end() {
    let cage = with_hostile("").await;
    for count in [5_000, 100_000, 1_000_000] {
        let answer = cage.client("bad").get(&format!("/headers?n={count}")).await;
        assert!(answer.status.is_server_error(), "{}", answer.status);
        assert!(answer.headers.len() < 10 && answer.body.len() < 200);
    }
    let answer = cage.client("bad").get("/headers?n=80").await;
    assert_eq!(answer.status, 200);
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_that_are_none() {
    let cage = with_hostile("").await;
    for status in [0, 7, 99, 100, 101, 199, 600, 999, 1_000, 65_535] {
        let answer = cage.client("bad").get(&format!("/status?code={status}")).await;
        check_page(&answer, 502, "invalid-reply", "the request failed");
    }
    cage.logged("status 0 is not in 200 to 599").await;
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_response() {
    let cage = with_hostile("[modules.interface_bad]\nmemory_mb = 400\n").await;
    let client = cage.client("bad");
    let answer = client.get("/huge?mb=20").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 20 << 20));
    // More than is copied out of a guest at once.
    check_page(&client.get("/huge?mb=130").await, 500, "trapped", "the request failed");
    // More than the module may have.
    check_page(&client.get("/huge?mb=500").await, 500, "trapped", "the request failed");
    let log = cage.logged("memory limit of 400 MiB reached (memory_mb in cage.toml)").await;
    assert!(log.contains("fuel") || log.contains("copied"), "{log}");
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_told_in_the_log_only() {
    let cage = with_hostile("").await;
    let client = cage.client("bad");
    check_page(&client.get("/panic").await, 500, "trapped", "the request failed");
    let log = cage.logged("panicked at").await;
    let line = log.lines().find(|line| line.contains("panicked at")).unwrap();
    assert!(line.contains("[interface_bad]") && line.contains("src/lib.rs:"), "{line}");
    cage.logged("as asked").await;
    let answer = client.send(Method::GET, "/panic", &[("accept", "application/json")], "".into()).await;
    let json = answer.json();
    assert_eq!(json["code"], "trapped");
    assert_eq!(json["text"], "the request failed");
    assert_eq!(json["request_id"], answer.header("x-request-id"));
    // The request's line in the log can be found by the end of its id.
    let id = answer.header("x-request-id");
    cage.logged(&format!("RQ-{}", &id[id.len() - 4..])).await;
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_of_its_own_are_errors() {
    let cage = with_hostile("").await;
    for path in ["/unreachable", "/exit?code=0", "/exit?code=3"] {
        check_page(&cage.client("bad").get(path).await, 500, "trapped", "the request failed");
    }
    // Each took its instance along.
    cage.quiet().await;
    assert_eq!(cage.instances("interface_bad"), 0);
    check_whole(cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guests_own_errors_are_for_the_log() {
    let cage = TestCage::new().module("echo", "interface_web").http("web").start().await;
    let client = cage.client("web");
    let answer = client.get("/refuse?text=secret-of-the-house").await;
    check_page(&answer, 422, "refused", "the request was refused");
    let answer = client.get("/fail?text=another-secret").await;
    check_page(&answer, 500, "failed", "the request failed");
    cage.logged("secret-of-the-house").await;
    cage.logged("another-secret").await;
    // Such an error is no reason to discard the instance.
    cage.quiet().await;
    assert_eq!(cage.instances("interface_web"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_component_that_does_not_answer() {
    let cage = TestCage::new()
        .config("[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\ntimeout_ms = 500\n")
        .module("wasi_http_p2", "interface_web")
        .start()
        .await;
    let client = cage.client("web");
    check_page(&client.get("/no-answer").await, 500, "failed", "the request failed");
    check_page(&client.get("/trap").await, 500, "trapped", "the request failed");
    check_page(&client.get("/error").await, 500, "failed", "the request failed");
    check_page(&client.get("/hang").await, 504, "deadline-exceeded", "the request was not answered in time");
    assert_eq!(client.get("/").await.text(), HELLO);
    cage.quiet().await;
    // Each request had an instance of its own.
    assert_eq!(cage.instances("interface_web"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_whose_module_has_no_handler() {
    let ping = component(
        r#"(component
            (core module $m (func (export "ping") (result i32) i32.const 1))
            (core instance $i (instantiate $m))
            (func (export "ping") (result u32) (canon lift (core func $i "ping"))))"#,
    );
    let cage = TestCage::new().file("interface_web", &ping).http("web").start().await;
    let answer = cage.client("web").get("/").await;
    check_page(&answer, 500, "host-error", "the server failed");
}
