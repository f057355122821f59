//! Typed bindings: a module's import is answered by another module, of its cage or of another; what fits, what does not,
//! and what the caller learns when a call comes to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use http::StatusCode;
use tempfile::TempDir;
use wasmcage_tests::{RunningCage, TestCage, component, guest, query, unique_name};

const MIB: usize = 1 << 20;

/// A cage that serves with guest `front`, whose import is answered by `target`.
fn front(target: &str) -> TestCage {
    unbound().module("front", "interface_web").config(&imports(target))
}

fn unbound() -> TestCage {
    TestCage::new().http("web").config("max_body_bytes = 33_554_432")
}

fn imports(target: &str) -> String {
    format!("[modules.interface_web.imports]\n\"acme:work/api\" = \"{target}\"")
}

/// `front` and `api_work` in one cage.
async fn one_cage() -> RunningCage {
    front("work").module("api_work", "work").start().await
}

/// Guest `api_work`, with other words.
fn work_saying(words: &str) -> Vec<u8> {
    let from = b"Working on ";
    assert_eq!(words.len(), from.len());
    let mut bytes = std::fs::read(guest("api_work")).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the words in the component");
    bytes[at..at + from.len()].copy_from_slice(words.as_bytes());
    bytes
}

/// Exports `acme:work/api`, but with one function only, and that of another type.
fn misfit() -> Vec<u8> {
    component(
        r#"(component
            (core module $code (func (export "reverse") (result i32) i32.const 1))
            (core instance $code (instantiate $code))
            (func $reverse (result u32) (canon lift (core func $code "reverse")))
            (instance $api (export "reverse" (func $reverse)))
            (export "acme:work/api@1.2.0" (instance $api)))"#,
    )
}

#[track_caller]
fn has(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "{word:?} is not in {text:?}"));
}

async fn check_answers(cage: &RunningCage) {
    let client = cage.client("web");
    assert_eq!(client.get("/some/job").await.text(), "Working on /some/job, 3 tries");
    assert_eq!(client.post("/title", "über").await.text(), "Über");
    assert_eq!(client.post("/reverse", "abc").await.text(), "cba");
    assert_eq!(client.post("/sort", "cab").await.text(), "abc");
    // The callee's own errors are values like others.
    assert_eq!(client.get("/").await.text(), "nothing to do");
    assert_eq!(client.post("/title", "").await.text(), "there is no text");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_answered_by_a_module_of_the_same_cage() {
    check_answers(&one_cage().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_answered_by_another_cage_without_a_further_grant() {
    let worker = unique_name("worker");
    let cage = front(&format!("{worker}/work")).cage(&worker).module("api_work", "work").start().await;
    check_answers(&cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_goes_there_and_back() {
    let bound = "[modules.user.imports]\n\"acme:calculator/echoes\" = \"calculator\"\n\
                 \"acme:calculator/arithmetic@1.0.0\" = \"calculator\"";
    let cage = TestCage::new().module("echo", "interface_web").http("web").config(bound);
    let cage = cage.module("calculator_user", "user").module("calculator", "calculator").start().await;
    let client = cage.client("web");
    let call = async |function: &str, args: &str| {
        let target = query("/call", &[("module", "user"), ("function", function), ("args", args)]);
        client.get(&target).await.json()
    };
    assert_eq!(call("differing", "[]").await, serde_json::json!([]));
    assert_eq!(call("divide", "[7, 2]").await, "3");
    assert_eq!(call("divide", "[7, 0]").await, "division by zero");
    has(call("divide", "[-9223372036854775808, -1]").await.as_str().unwrap(), &["overflow: -9223372036854775808"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_mebibytes_go_both_ways() {
    let cage = one_cage().await;
    let sent: Bytes = (0..16 * MIB).map(|index| (index * 31) as u8).collect();
    let mut expected = sent.to_vec();
    expected.reverse();
    assert!(cage.client("web").post("/reverse", sent).await.body == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_beside_the_fast_way_have_a_bound() {
    let cage = one_cage().await;
    let client = cage.client("web");
    let sent = Bytes::from(vec![1; MIB / 2]);
    assert!(client.post("/sort", sent.clone()).await.body == sent);
    let answer = client.post("/sort", vec![1; MIB]).await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    has(&answer.text(), &["bad request", "more than 1048576 values"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_of_another_type_is_refused_and_the_difference_named() {
    let cage = unbound().config(&imports("work")).file("work", &misfit()).start().await;
    cage.deploy("interface_web", &std::fs::read(guest("front")).unwrap());
    let refusal = cage.refused("interface_web").await;
    has(
        &refusal,
        &[
            "import acme:work/api@1.2.0: work does not fit",
            "it exports no function `acme:work/api@1.2.0#handle`",
            "`reverse: func() -> u32` is not `reverse: func(data: list<u8>) -> list<u8>`: it has 0 parameters instead of 1",
        ],
    );
    // Taken without being touched, as soon as its target fits.
    cage.deploy("work", &std::fs::read(guest("api_work")).unwrap());
    cage.swapped("interface_web", None).await;
    check_answers(&cage).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_that_cannot_be_bound_are_refused() {
    let refusal = async |imports: &str, wat: &str| {
        let config = format!("[modules.odd.imports]\n{imports}");
        let cage = TestCage::new().config(&config).file("odd", &component(wat)).start().await;
        cage.refused("odd").await
    };
    let resource = r#"(component (import "acme:work/things" (instance (export "thing" (type (sub resource))))))"#;
    let text = refusal("\"acme:work/things\" = \"work\"", resource).await;
    has(&text, &["import acme:work/things: it has the resource `thing`, and resources cannot cross a binding"]);
    let stream = r#"(component (import "acme:work/things" (instance
        (export "read" (func (param "path" string) (result (stream u8)))))))"#;
    let text = refusal("\"acme:work/things\" = \"work\"", stream).await;
    has(&text, &["function `read` cannot be bound to a module: the result has a stream"]);
    let plain = |names: &[&str]| {
        let imports = names.iter().map(|name| format!("(import \"{name}\" (instance (export \"f\" (func))))"));
        format!("(component {})", imports.collect::<String>())
    };
    let text = refusal("\"acme:work/apo\" = \"work\"", &plain(&["acme:work/api@1.0.0"])).await;
    has(&text, &["nobody provides it", "was the binding \"acme:work/apo\" meant for it?"]);
    let text = refusal("\"acme:work/api\" = \"work\"", &plain(&["acme:work/api@1.0.0", "acme:work/api@2.0.0"])).await;
    has(&text, &["the binding \"acme:work/api\" names several imports; add the version"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_call_is_told_by_the_result_or_ends_the_caller() {
    let cage = front("nowhere_at_all/work").start().await;
    let client = cage.client("web");
    // A string, a variant's case for it, and no place at all.
    let answer = client.post("/title", "x").await;
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
    has(&answer.text(), &["no such cage", "nowhere_at_all"]);
    has(&client.get("/job").await.text(), &["no such cage", "nowhere_at_all"]);
    assert_eq!(client.post("/reverse", "x").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let words = "calling acme:work/api@1.2.0#reverse of nowhere_at_all/work, which cannot tell of a failed call";
    cage.logged(words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_comes_later_is_looked_at_by_each_call() {
    let cage = front("work").start().await;
    let client = cage.client("web");
    has(&client.get("/job").await.text(), &["no such module", "work.wasm"]);
    cage.deploy("work", &misfit());
    cage.swapped("work", None).await;
    has(&client.get("/job").await.text(), &["no such function"]);
    assert_eq!(client.post("/reverse", "x").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    cage.logged("the caller was linked with `reverse: func(data: list<u8>) -> list<u8>`").await;
    has(&cage.logged("binding does not fit").await, &["is bound to function `acme:work/api@1.2.0#handle`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_that_takes_too_long_is_told() {
    let cage = front("work").module("api_work", "work").config("[modules.work]\ntimeout_ms = 100").start().await;
    has(&cage.client("web").get("/forever").await.text(), &["deadline exceeded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_swapped_while_it_is_called() {
    let cage = one_cage().await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (cage.client("web"), stop.clone());
            tokio::spawn(async move {
                let mut served = 0;
                while !stop.load(SeqCst) {
                    let answer = client.get("/x").await;
                    assert!(answer.status == 200 && answer.text().ends_with("/x, 3 tries"), "{answer:?}");
                    served += 1;
                }
                served
            })
        })
        .collect();
    for number in 0..6 {
        let before = cage.version("work");
        cage.deploy("work", &work_saying(&format!("Swapped {number}: ")));
        cage.swapped("work", before).await;
    }
    let client = cage.client("web");
    assert_eq!(client.get("/x").await.text(), "Swapped 5: /x, 3 tries");
    // Nobody takes away what others are bound to, called or not.
    cage.deploy("work", &misfit());
    let refusal = cage.refused("work").await;
    let caller = format!("{}/interface_web is bound to function `acme:work/api@1.2.0#sort`", cage.name());
    has(&refusal, &[&caller, "compatible = false in [modules.work]"]);
    stop.store(true, SeqCst);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    // Unless it is told to.
    let before = cage.version("work");
    let web = "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\nmax_body_bytes = 33_554_432";
    cage.configure(&format!("{web}\n{}\n[modules.work]\ncompatible = false", imports("work")));
    cage.swapped("work", before).await;
    has(&cage.client("web").get("/job").await.text(), &["no such function"]);
}

/// A caller and a callee in hosts of their own, as in two processes.
struct FrontAndWorker {
    front: RunningCage,
    _worker: RunningCage,
    _meeting: TempDir,
}

async fn front_and_worker(
    front: impl FnOnce(TestCage, &str) -> TestCage,
    worker: impl FnOnce(TestCage) -> TestCage,
) -> FrontAndWorker {
    let meeting = tempfile::tempdir().unwrap();
    let name = unique_name("worker");
    let worker = worker(TestCage::named(&name).meeting_at(meeting.path())).start().await;
    let caller = TestCage::new().meeting_at(meeting.path()).http("web").config("max_body_bytes = 33_554_432");
    FrontAndWorker { front: front(caller, &name).start().await, _worker: worker, _meeting: meeting }
}

fn bound_front(cage: TestCage, worker: &str) -> TestCage {
    cage.module("front", "interface_web").config(&imports(&format!("{worker}/work")))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_answered_from_another_process() {
    let cages = front_and_worker(bound_front, |worker| worker.module("api_work", "work")).await;
    check_answers(&cages.front).await;
    let client = cages.front.client("web");
    let sent: Bytes = (0..16 * MIB).map(|index| (index * 31) as u8).collect();
    let mut expected = sent.to_vec();
    expected.reverse();
    assert!(client.post("/reverse", sent).await.body == expected);
    has(&client.post("/sort", vec![1; MIB]).await.text(), &["more than 1048576 values"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_goes_to_another_process_and_back() {
    let front = |cage: TestCage, worker: &str| {
        let interfaces = ["acme:calculator/echoes", "acme:calculator/arithmetic"];
        let imports = interfaces.map(|interface| format!("\"{interface}\" = \"{worker}/calculator\"\n"));
        let cage = cage.module("echo", "interface_web").module("calculator_user", "user");
        cage.config(&format!("[modules.user.imports]\n{}", imports.concat()))
    };
    let cages = front_and_worker(front, |worker| worker.module("calculator", "calculator")).await;
    let target = query("/call", &[("module", "user"), ("function", "differing")]);
    assert_eq!(cages.front.client("web").get(&target).await.json(), serde_json::json!([]));
    let target = query("/call", &[("module", "user"), ("function", "divide"), ("args", "[7, 0]")]);
    assert_eq!(cages.front.client("web").get(&target).await.json(), "division by zero");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_does_not_take_values_of_another_type() {
    let cages = front_and_worker(bound_front, |worker| worker.file("work", &misfit())).await;
    let client = cages.front.client("web");
    has(&client.get("/job").await.text(), &["no such function", "acme:work/api@1.2.0#handle"]);
    assert_eq!(client.post("/reverse", "x").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    cages.front.logged("its type is `reverse: func() -> u32`").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_may_refuse_who_is_bound_to_it() {
    let rules = "[rpc.allow]\n\"work.acme:work/api@1.2.0#title\" = [\"*\"]";
    let cages = front_and_worker(bound_front, |worker| worker.module("api_work", "work").config(rules)).await;
    let client = cages.front.client("web");
    assert_eq!(client.post("/title", "über").await.text(), "Über");
    has(&client.get("/job").await.text(), &["not permitted", "[rpc.allow]"]);
}
