//! Calls between modules, of one cage and of two: arguments and results, what a caller learns when there is no result, and
//! what travels along.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use wasmcage_core::error::DispatchError;
use wasmcage_tests::{Answer, Client, RunningCage, TestCage, check_call_error as check, guest, query, unique_name};

/// A function that some arguments do not fit.
const MISFIT: [(&str, &str); 2] = [("module", "service_echo"), ("function", "add")];

/// A cage whose interface calls whatever its request's query says.
fn caller() -> TestCage {
    TestCage::new().module("echo", "interface_web").http("web")
}

async fn started() -> RunningCage {
    caller().module("service_echo", "service_echo").module("calculator", "calculator").start().await
}

/// `function` is `module.function`.
async fn call(client: &Client, function: &str, parameters: &[(&str, &str)]) -> Answer {
    let (module, function) = function.split_once('.').expect("module.function");
    let mut all = vec![("module", module), ("function", function)];
    all.extend_from_slice(parameters);
    client.get(&query("/try_call", &all)).await
}

async fn result(client: &Client, function: &str, args: Value) -> Value {
    let answer = call(client, function, &[("args", &args.to_string())]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The error's kind and text.
async fn failure(client: &Client, function: &str, parameters: &[(&str, &str)]) -> (String, String) {
    call(client, function, parameters).await.call_error()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_take_arguments_by_position_and_by_name() {
    let cage = started().await;
    let client = cage.client("web");
    assert_eq!(result(&client, "service_echo.add", json!([2, 3])).await, 5);
    assert_eq!(result(&client, "service_echo.greet", json!(["world"])).await, "Hello, world !");
    assert_eq!(result(&client, "service_echo.greet", json!(["world", "Hi"])).await, "Hi, world !");
    assert_eq!(result(&client, "service_echo.nothing", json!([])).await, Value::Null);
    let any = json!({ "a": [1, 2.5, null, "ä\u{0}\"", true], "b": {}, "long": 9_007_199_254_740_993_u64 });
    assert_eq!(result(&client, "service_echo.echo", json!([any])).await, any);
    let kwargs = |kwargs: Value| kwargs.to_string();
    let named = kwargs(json!({ "greeting": "Hi", "name": "x" }));
    assert_eq!(call(&client, "service_echo.greet", &[("kwargs", &named)]).await.json(), "Hi, x !");
    let answer = call(&client, "service_echo.add", &[("args", "[1]"), ("kwargs", &kwargs(json!({ "b": 41 })))]).await;
    assert_eq!(answer.json(), 42);
    // A body that is no JSON goes as bytes, both ways.
    let bytes = Bytes::from_iter(0..=255);
    let target = query("/call", &[("module", "service_echo"), ("function", "echo_raw")]);
    assert_eq!(client.post(&target, bytes.clone()).await.body, bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_services_unfit_arguments_are_told() {
    let cage = started().await;
    let client = cage.client("web");
    let add = async |parameters: &[(&str, &str)]| failure(&client, "service_echo.add", parameters).await;
    check(add(&[("args", "[1]")]).await, "BadArguments", &["add: the parameter b (i64) is missing"]);
    check(
        add(&[("args", "[1, \"two\"]")]).await,
        "BadArguments",
        &["parameter b (i64) does not fit", "string \"two\""],
    );
    check(add(&[("args", "[1, 2, 3]")]).await, "BadArguments", &["takes at most 2 arguments (a, b), but 3 came"]);
    check(add(&[("args", "[1]"), ("kwargs", "{\"c\": 2}")]).await, "BadArguments", &["there is no parameter c (a, b)"]);
    check(add(&[("args", "[1]"), ("kwargs", "{\"a\": 2}")]).await, "BadArguments", &["the parameter a came twice"]);
    let target = query("/try_call", &[("module", "service_echo"), ("function", "add")]);
    let found = client.post(&target, "bytes").await.call_error();
    check(found, "BadArguments", &["takes JSON arguments, but bytes came"]);
    // The same when the function says so itself. Its instance is as good as new.
    let found = failure(&client, "service_echo.misread", &[("args", "[\"no date\"]")]).await;
    check(found, "BadArguments", &["bad arguments: no date"]);
    let module = cage.module("service_echo").unwrap();
    assert_eq!((module.traps, module.readings.outcomes["bad-request"]), (0, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn unfit_arguments_are_told_across_cages_and_by_the_way_that_they_came() {
    let other = unique_name("other");
    let grant = format!("[modules.interface_web]\nallow = {{ cages = [\"{other}\"] }}");
    let cage = caller()
        .config(&grant)
        .module("service_echo", "between")
        .cage(&other)
        .module("service_echo", "service_echo")
        .start()
        .await;
    let client = cage.client("web");
    let there = [("cage", other.as_str()), ("args", "[1, null]")];
    let found = failure(&client, "service_echo.add", &there).await;
    check(found, "BadArguments", &["add: the parameter b (i64) does not fit"]);
    let answer = client.get(&query("/try_call", &[&there[..], &MISFIT].concat())).await.json();
    assert_eq!(answer["may_have_run"], false, "{answer}");
    let all = client.get(&query("/call_all", &[&there[..], &MISFIT].concat())).await.json();
    assert!(all[0]["error"]["error"].as_str().unwrap().starts_with("BadArguments("), "{all}");
    // By `?` a module that calls amiss has failed: its own caller gave other arguments.
    let between = json!([null, "between", "add", [1]]).to_string();
    let found = failure(&client, "between.forward", &[("args", &between)]).await;
    check(found, "Failed", &["bad arguments: add: the parameter b (i64) is missing"]);
    // An operator is told as any caller.
    let error = cage.call_cage(&other, "service_echo.add", json!([1, 2, 3])).await.unwrap_err();
    assert!(matches!(&error, DispatchError::BadRequest(text) if text.contains("takes at most 2")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wit_type_goes_there_and_back() {
    let cage = started().await;
    let client = cage.client("web");
    let point = json!({ "x": 1, "y": -2 });
    let drawing = json!({
        "name": "d", "points": [point, { "x": 0, "y": 0 }], "colour": "dark-blue",
        "shape": { "polygon": [point] }, "access": ["read", "run-it"],
    });
    let same = [
        ("boolean", json!([true, false])),
        ("byte", json!([0, 255])),
        ("short", json!([65535])),
        ("word", json!([4_294_967_295_u32])),
        ("long", json!([u64::MAX])),
        ("signed-byte", json!([-128, 127])),
        ("signed-short", json!([-32768])),
        ("signed-word", json!([i32::MIN])),
        ("signed-long", json!([i64::MIN, i64::MAX])),
        ("single", json!([0.5, -1e30, "NaN", "inf"])),
        ("double", json!([0.1, 1e300, "-inf"])),
        ("character", json!(["ß", "\u{1f600}"])),
        ("text", json!(["", "ä\u{0}\n\"\\\u{1f600}"])),
        ("bytes", json!(["", "AAEC/w=="])),
        ("words", json!([[], ["a", "", "c"]])),
        ("pair", json!([[-1, "one"]])),
        ("a-point", json!([point])),
        ("a-colour", json!(["red", "dark-blue"])),
        ("a-shape", json!(["nothing", { "circle": 1.5 }, { "polygon": [point, point] }, { "named": ["n", 7] }])),
        ("some-permissions", json!([[], ["write"], ["read", "write", "run-it"]])),
        ("perhaps", json!([null, "here"])),
        ("perhaps-twice", json!([null, { "some": null }, { "some": 7 }])),
        ("a-drawing", json!([drawing])),
        ("drawings", json!([[null, drawing, null], []])),
    ];
    for (function, values) in same {
        for value in values.as_array().unwrap() {
            let came = result(&client, &format!("calculator.{function}"), json!([value])).await;
            let same =
                came == *value || (function == "single" && came.as_f64() == value.as_f64().map(|x| x as f32 as f64));
            assert!(same, "{function}: {value} came back as {came}");
        }
    }
    // A function whose result is a `result` has failed when that is an error.
    assert_eq!(result(&client, "calculator.outcome", json!([{ "ok": 7 }])).await, 7);
    check(failure(&client, "calculator.outcome", &[("args", r#"[{"err": "no"}]"#)]).await, "Failed", &["\"no\""]);
    assert_eq!(result(&client, "calculator.bare-outcome", json!([{ "ok": null }])).await, Value::Null);
    check(failure(&client, "calculator.bare-outcome", &[("args", r#"["err"]"#)]).await, "Failed", &["null"]);
    let overflow = [("args", "[9223372036854775807, 1]")];
    check(
        failure(&client, "calculator.add", &overflow).await,
        "Failed",
        &[r#"{"overflow":"9223372036854775807 + 1"}"#],
    );
    check(failure(&client, "calculator.divide", &[("args", "[1, 0]")]).await, "Failed", &["\"division-by-zero\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_exports_are_called_by_short_and_by_full_name() {
    let cage = started().await;
    let client = cage.client("web");
    assert_eq!(result(&client, "calculator.square", json!([1.5])).await, 2.25);
    assert_eq!(result(&client, "calculator.nothing", json!([])).await, Value::Null);
    assert_eq!(result(&client, "calculator.acme:calculator/arithmetic@1.0.0#divide", json!([7, 2])).await, 3);
    // An option may be left out, and names work as positions do.
    assert_eq!(result(&client, "calculator.sum", json!([[1, 2.5]])).await, 3.5);
    let answer = call(&client, "calculator.sum", &[("kwargs", r#"{"start": 10, "terms": []}"#)]).await;
    assert_eq!(answer.json(), 10.0);
    // Names as Python writes them.
    let answer = call(&client, "calculator.a-point", &[("kwargs", r#"{"x": {"x": 1, "y": 2}}"#)]).await;
    assert_eq!(answer.json(), json!({ "x": 1, "y": 2 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_exports_unfit_arguments_are_told() {
    let cage = started().await;
    let client = cage.client("web");
    let misfits = [
        ("byte", "[256]", "byte: `x`: expected u8, got the number 256"),
        ("byte", "[\"1\"]", "expected u8, got the string \"1\""),
        ("text", "[1]", "text: `x`: expected string, got the number 1"),
        ("add", "[1]", "add: parameter `addend` is missing; expected s64"),
        ("add", "[1, 2, 3]", "too many positional arguments; it takes 2 (augend, addend)"),
        ("a-point", "[{\"x\": 1, \"z\": 2}]", "unknown field `z`"),
        (
            "a-drawing",
            "[{\"name\": \"d\", \"points\": [{\"x\": 1}]}]",
            "`x.points[0]`: expected record { x: s32, y: s32 }",
        ),
        ("a-colour", "[\"blue\"]", "enum { red, green, dark-blue }, got the string \"blue\""),
    ];
    for (function, args, text) in misfits {
        let found = failure(&client, &format!("calculator.{function}"), &[("args", args)]).await;
        check(found, "BadArguments", &[text]);
    }
    let kwargs = [("args", "[[]]"), ("kwargs", "{\"starts\": 1}")];
    check(failure(&client, "calculator.sum", &kwargs).await, "BadArguments", &["`starts`; did you mean `start`?"]);
    let target = query("/try_call", &[("module", "calculator"), ("function", "text")]);
    let answer = client.post(&target, "bytes").await;
    assert!(answer.text().contains("takes JSON arguments, bytes came"), "{}", answer.text());
    // Nothing of it got as far as the guest, whose one instance is as good as new.
    assert_eq!(result(&client, "calculator.text", json!(["x"])).await, "x");
    assert_eq!(cage.module("calculator").unwrap().traps, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named_and_the_likeliest_proposed() {
    let other = unique_name("elsewhere");
    let misspelt = other.replace("where", "were");
    let grant =
        format!("[modules.interface_web]\nallow = {{ cages = [\"{other}\", \"{misspelt}\", \"nothing_like_it\"] }}");
    let cage = caller().config(&grant).module("service_echo", "service_echo").cage(&other).start().await;
    let client = cage.client("web");
    let found = failure(&client, "service_ecko.add", &[]).await;
    check(found, "NoSuchModule", &["service_ecko.wasm was not found in cage ", "; did you mean `service_echo`?"]);
    check(failure(&client, "zzz.add", &[]).await, "NoSuchModule", &["zzz.wasm was not found in cage "]);
    let found = failure(&client, "service_echo.echo_row", &[]).await;
    check(found, "NoSuchFunction", &["module service_echo has no function `echo_row`; did you mean `echo_raw`?"]);
    // A handler is no service.
    check(failure(&client, "interface_web.handle", &[]).await, "NoSuchFunction", &["no function `handle`"]);
    let found = failure(&client, "service_echo.add", &[("cage", &other)]).await;
    check(found, "NoSuchModule", &[&format!("not found in cage {other}")]);
    let found = failure(&client, "m.f", &[("cage", &misspelt)]).await;
    check(found, "NoSuchCage", &[&misspelt, &format!("did you mean `{other}`?")]);
    check(failure(&client, "m.f", &[("cage", "nothing_like_it")]).await, "NoSuchCage", &["nothing_like_it"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_ends_in_its_own_ways_and_its_caller_learns_which() {
    let cage = started().await;
    let client = cage.client("web");
    check(failure(&client, "service_echo.refuse", &[("args", "[\"not you\"]")]).await, "Refused", &["not you"]);
    check(failure(&client, "service_echo.fail", &[("args", "[\"not now\"]")]).await, "Failed", &["not now"]);
    let found = failure(&client, "service_echo.panic", &[("args", "[\"by accident\"]")]).await;
    check(found, "Failed", &["trapped: ", "unreachable"]);
    check(failure(&client, "calculator.crash", &[("args", "[\"here\"]")]).await, "Failed", &["trapped: "]);
    // The caller coped; what happened stands in the log all the same.
    let log = cage.logged("here").await;
    for line in ["ERR [service_echo] call failed", "by accident", "ERR [calculator] call failed"] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    let module = |name| cage.module(name).unwrap();
    assert_eq!((module("service_echo").traps, module("calculator").traps), (1, 1));
    let outcomes = module("service_echo").readings.outcomes;
    assert_eq!((outcomes["refused"], outcomes["failed"], outcomes["trapped"]), (1, 1, 1));
    // By `?` a refusal stays one, and anything else is a failure.
    let status = async |function: &str| {
        client
            .get(&query("/call", &[("module", "service_echo"), ("function", function), ("args", "[\"x\"]")]))
            .await
            .status
    };
    for (function, expected) in [("refuse", 422), ("fail", 500), ("panic", 500)] {
        assert_eq!(status(function).await, expected, "{function}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_ends_the_call_and_a_deadline_everything() {
    let cage = caller().config("timeout_ms = 1500").module("service_echo", "service_echo").start().await;
    let client = cage.client("web");
    let slow = [("args", "[60000]")];
    let found = failure(&client, "service_echo.slow", &[slow[0], ("timeout_ms", "100")]).await;
    check(found, "TimedOut", &["the module was running"]);
    // The caller's own time is up together with the callee's: nobody is left to tell the guest.
    let answer = call(&client, "service_echo.slow", &slow).await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    // The same while the callee waits for a function of its own.
    let forward = json!([null, "service_echo", "slow", [60000]]).to_string();
    let found = failure(&client, "service_echo.forward", &[("args", &forward), ("timeout_ms", "100")]).await;
    check(found, "TimedOut", &[]);
    cage.quiet().await;
    let readings = cage.module("service_echo").unwrap().readings;
    assert_eq!((readings.in_work, readings.outcomes["deadline-exceeded"] >= 3), (0, true), "{readings:?}");
    assert_eq!(result(&client, "service_echo.add", json!([1, 2])).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_of_calls_ends_and_names_its_callers() {
    let cage = TestCage::new()
        .config("call_depth = 5")
        .module("echo", "interface_web")
        .module("hostile", "hostile")
        .module("service_echo", "one")
        .module("service_echo", "two")
        .http("web")
        .start()
        .await;
    let client = cage.client("web");
    let found = failure(&client, "hostile.misbehave", &[("args", "[\"/cycle\"]")]).await;
    let own = format!("{}/hostile", cage.name());
    let chain = format!("calls are nested 5 deep: {}/interface_web > {own} > {own} > {own} > {own}", cage.name());
    check(found, "Failed", &[&chain]);
    // One that is within the depth is not a cycle, whoever is in it.
    let twice = json!([null, "two", "forward", [null, "one", "add", [1, 2]]]).to_string();
    assert_eq!(call(&client, "one.forward", &[("args", &twice)]).await.json(), 3);
    // Without a limit of its own a cage has one, too.
    let cage = TestCage::new().module("hostile", "interface_web").http("web").start().await;
    let client = cage.client("web");
    assert_eq!(client.get("/cycle").await.status, 500);
    cage.logged("calls are nested 16 deep").await;
    assert_eq!(client.get("/panic").await.status, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cycle_through_a_module_of_one_instance_is_told_at_once() {
    let cage = caller()
        .config("timeout_ms = 600000\n[modules.actor]\ninstances = { mode = \"single\" }")
        .module("service_echo", "actor")
        .module("service_echo", "other")
        .start()
        .await;
    let client = cage.client("web");
    let actor = format!("{}/actor", cage.name());
    for arguments in
        [json!([null, "actor", "add", [1, 2]]), json!([null, "other", "forward", [null, "actor", "add", [1, 2]]])]
    {
        let found = failure(&client, "actor.forward", &[("args", &arguments.to_string())]).await;
        check(found, "Failed", &["is a cycle", &format!("{actor} runs one call at a time"), "interface_web > "]);
    }
    assert_eq!(result(&client, "actor.add", json!([1, 2])).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cage_is_called_with_a_grant_only() {
    let (worker, stranger) = (unique_name("worker"), unique_name("stranger"));
    let cage = caller()
        .module("echo", "interface_stranger")
        .http("stranger")
        .config(&format!("[modules.interface_web]\nallow = {{ cages = [\"{worker}\"] }}"))
        .cage(&worker)
        .module("service_echo", "service_echo")
        .cage(&stranger)
        .module("service_echo", "service_echo")
        .start()
        .await;
    let (granted, other) = (cage.client("web"), cage.client("stranger"));
    let add = async |client: &Client, cage: &str| {
        call(client, "service_echo.add", &[("cage", cage), ("args", "[1, 2]")]).await.json()
    };
    assert_eq!(add(&granted, &worker).await, 3);
    for (client, module, to) in [(&granted, "interface_web", &stranger), (&other, "interface_stranger", &worker)] {
        let found = failure(client, "service_echo.add", &[("cage", to), ("args", "[1, 2]")]).await;
        check(found, "NotPermitted", &[&format!("module {module} may not call cage {to}"), "allow = { cages = [..] }"]);
    }
    // The grant is the caller's own: it does not reach further.
    let forward = json!([stranger, "service_echo", "add", [1, 2]]).to_string();
    let found = failure(&granted, "service_echo.forward", &[("cage", &worker), ("args", &forward)]).await;
    check(found, "Failed", &["may not call cage"]);
    // Its own cage by name is no other cage.
    let found = failure(&granted, "zzz.f", &[("cage", cage.name())]).await;
    check(found, "NoSuchModule", &[cage.name()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_copy_of_a_cage_is_called_at_once() {
    let (worker, stranger) = (unique_name("worker"), unique_name("stranger"));
    let cage = caller()
        .module("service_echo", "own")
        .config(&format!("[modules.interface_web]\nallow = {{ cages = [\"{worker}\", \"nothing_like_it\"] }}"))
        .cage(&worker)
        .module("service_echo", "service_echo")
        .cage(&stranger)
        .start()
        .await;
    let client = cage.client("web");
    let all = async |parameters: &[(&str, &str)]| client.get(&query("/call_all", parameters)).await.json();
    let there = [("cage", worker.as_str()), ("module", "service_echo")];
    let add = all(&[&there[..], &[("function", "add"), ("args", "[1, 2]")]].concat()).await;
    assert_eq!(add, json!([{ "copy": "local", "ok": 3 }]));
    // Each copy has its own result; a call that reaches no copy has one error.
    let refused = all(&[&there[..], &[("function", "refuse"), ("args", "[\"no\"]")]].concat()).await;
    assert_eq!((&refused[0]["copy"], &refused[0]["error"]["text"]), (&json!("local"), &json!("call refused: no")));
    assert_eq!(refused[0]["error"]["may_have_run"], false);
    let own = all(&[("module", "own"), ("function", "greet"), ("args", "[\"x\"]")]).await;
    assert_eq!(own, json!([{ "copy": "local", "ok": "Hello, x !" }]));
    for (to, text) in [(stranger.as_str(), "call not permitted: "), ("nothing_like_it", "no such cage: ")] {
        let none = all(&[("cage", to), ("module", "m"), ("function", "f")]).await;
        assert!(none["text"].as_str().unwrap().starts_with(text), "{none}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_calls_is_known_and_a_password_stays_behind() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let worker = unique_name("worker");
    let cage = caller()
        .config(&format!("[modules.interface_web]\nallow = {{ cages = [\"{worker}\"] }}"))
        .cage(&worker)
        .module("service_echo", "one")
        .module("service_echo", "two")
        .start()
        .await;
    let client = cage.client("web");
    let context = async |function: &str, args: &str| {
        let target = query("/call", &[("cage", &worker), ("module", "one"), ("function", function), ("args", args)]);
        let headers = [("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), ("traceparent", TRACE)];
        client.send(Method::GET, &target, &headers, Bytes::new()).await.json()
    };
    let known = context("context", "[]").await;
    assert_eq!((&known["source-cage"], &known["source-module"]), (&json!(cage.name()), &json!("interface_web")));
    assert_eq!((&known["cage"], &known["module"]), (&json!(worker), &json!("one")));
    assert_eq!((&known["username"], &known["peer-address"]), (&json!("Aladdin"), &json!("127.0.0.1")));
    assert_eq!(known.get("password"), None);
    assert_eq!((&known["origin-cage"], &known["traceparent"]), (&json!(cage.name()), &json!(TRACE)));
    // One call further on the caller is another, and the client the same.
    let known = context("forward", "[null, \"two\", \"context\", []]").await;
    assert_eq!((&known["source-cage"], &known["source-module"]), (&json!(worker), &json!("one")));
    assert_eq!((&known["module"], &known["username"]), (&json!("two"), &json!("Aladdin")));
    assert_eq!((&known["origin-cage"], &known["traceparent"]), (&json!(cage.name()), &json!(TRACE)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requests_id_and_level_go_through_both_cages() {
    let worker = unique_name("worker");
    let cage = caller()
        .config(&format!("[modules.interface_web]\nallow = {{ cages = [\"{worker}\"] }}"))
        .cage(&worker)
        .module("service_echo", "service_echo")
        .start()
        .await;
    let client = cage.client("web");
    let log = json!(["debug", "deep inside"]).to_string();
    let target = [("cage", worker.as_str()), ("module", "service_echo"), ("function", "log"), ("args", &log)];
    assert_eq!(client.get(&query("/call", &target)).await.status, 200);
    assert_eq!(client.get(&query("/call", &[&target[..], &[("level", "debug")]].concat())).await.status, 200);
    let near = cage.logged("request completed").await;
    let far = cage.log_of(&worker);
    let lines: Vec<_> = far.lines().filter(|line| line.contains("deep inside")).collect();
    let [line] = lines[..] else { panic!("one request is watched: {far}") };
    assert!(line.contains("DBG [service_echo] deep inside # RQ-") && line.contains(" via web +"), "{line}");
    let id = line.split("# ").nth(1).unwrap().split(' ').next().unwrap();
    let completed = near.lines().find(|line| line.contains("request completed")).unwrap();
    assert!(completed.contains(&format!("# {id} via web ")), "{completed}\n{line}");

    let target = query("/call", &[("cage", &worker), ("module", "service_echo"), ("function", "context")]);
    let id = client.get(&target).await.json()["request_id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("RQ-") && id.len() == "RQ-".len() + 14 + 1 + 12, "{id}");
}

/// The same component under another hash: with a custom section of its own at the end.
fn variant(name: &str, number: u8) -> Vec<u8> {
    let mut bytes = std::fs::read(guest(name)).unwrap();
    bytes.extend_from_slice(&[0, 3, 1, b'v', number]);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callee_may_be_swapped_while_it_is_called() {
    const VARIANTS: u8 = 4;
    const SWAPS: u8 = 40;
    let cage = started().await;
    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (cage.client("web"), stop.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(SeqCst) {
                    assert_eq!(result(&client, "service_echo.add", json!([calls, 1])).await, calls + 1);
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    for swap in 0..SWAPS {
        let before = cage.version("service_echo");
        cage.deploy("service_echo", &variant("service_echo", swap % VARIANTS));
        cage.swapped("service_echo", before).await;
    }
    stop.store(true, SeqCst);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.expect("every call was answered");
    }
    assert!(calls > i64::from(SWAPS), "{calls} calls are too few to show anything");
    assert_eq!(cage.version("service_echo"), Some(1 + u64::from(SWAPS)));
    // A version that lacks what is called is not taken.
    cage.deploy("service_echo", &std::fs::read(guest("work")).unwrap());
    let reason = cage.refused("service_echo").await;
    assert!(reason.contains("add"), "{reason}");
    assert_eq!(result(&cage.client("web"), "service_echo.add", json!([1, 2])).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_two_cages_of_the_readme_work_together() {
    let cage = TestCage::new()
        .module("interface_my_http", "interface_my_http")
        .http("my_http")
        .config("[modules.interface_my_http]\nallow = { cages = [\"worker\"] }")
        .cage("worker")
        .module("work", "work")
        .start()
        .await;
    let answer = cage.client("my_http").get("/a/page?x=1").await;
    assert_eq!(answer.text(), "Working on /a/page?x=1");
    assert!(answer.header("content-type").starts_with("text/html"));
    // Without the callee's file: an error that says which, and healing by putting it back.
    let file = cage.root().join("worker/work.wasm");
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let client = cage.client("my_http");
    until(&client, 500).await;
    cage.logged("file work.wasm was not found in cage worker").await;
    std::fs::write(&file, kept).unwrap();
    until(&client, 200).await;
}

async fn until(client: &Client, status: u16) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while client.get("/").await.status != status {
        assert!(tokio::time::Instant::now() < until, "no answer of status {status}");
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_counts_for_all_callers() {
    let cage = caller()
        .config("[modules.counter]\ninstances = { mode = \"single\" }")
        .module("counter", "counter")
        .start()
        .await;
    let client = cage.client("web");
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { result(&client, "counter.increment", json!([])).await.as_u64().unwrap() })
        })
        .collect();
    let mut counts = vec![];
    for call in calls {
        counts.push(call.await.unwrap());
    }
    counts.sort_unstable();
    assert_eq!(counts, (1..=50).collect::<Vec<_>>());
    // A swap carries the count over.
    cage.deploy("counter", &variant("counter", 1));
    assert_eq!(cage.swapped("counter", Some(1)).await, 2);
    assert_eq!(result(&client, "counter.count", json!([])).await, 50);
}
