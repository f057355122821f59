//! `wasmcage call` as a whole program: arguments and results, what it says when there is no result, who makes the call, and
//! what the shell completes.

use std::fs;
use std::ops::Deref;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;
use wasmcage_tests::Root;

/// A root with some cages, and calls of their functions by `wasmcage call`.
struct CallRoot(Root);

impl Deref for CallRoot {
    type Target = Root;

    fn deref(&self) -> &Root {
        &self.0
    }
}

impl CallRoot {
    /// Each cage with the guests that are its modules.
    fn new(cages: &[(&str, &[&str])]) -> Self {
        Self(Root::new(cages))
    }

    /// One cage that runs, `shop`.
    async fn shop() -> (Self, Child) {
        let root = Self::new(&[("shop", &["service_echo", "calculator"])]);
        let run = root.run(&["shop"]).await;
        (root, run)
    }

    /// Starts the cages in one process. Their primary is killed with what this returns, and the cages drain.
    async fn run(&self, cages: &[&str]) -> Child {
        let arguments: Vec<_> = [&["run"], cages].concat();
        let run = self.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !self.ps(cages).await.iter().all(|cage| cage["cages"][0]["modules"].is_array()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        run
    }

    /// The status of each cage by its own word; null when it does not answer.
    async fn ps(&self, cages: &[&str]) -> Vec<Value> {
        let mut all = Vec::new();
        for cage in cages {
            let output = self.output(&["ps", "--json", cage]).await;
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            all.push(answer["processes"][0].clone());
        }
        all
    }

    async fn call(&self, arguments: &[&str]) -> Output {
        self.output(&[&["call"], arguments].concat()).await
    }

    /// The result of a call of `shop`.
    async fn result(&self, arguments: &[&str]) -> String {
        done(self.call(&[&["shop"], arguments].concat()).await)
    }

    /// The text on standard error of a call that has no result.
    async fn failure(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.call(arguments).await;
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(code), ""),
            "{arguments:?}: {output:?}"
        );
        text(&output.stderr)
    }

    #[track_caller]
    fn said(told: &str, words: &[&str]) {
        words.iter().for_each(|word| assert!(told.contains(word), "{word:?} is not in {told:?}"));
    }
}

#[track_caller]
fn done(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_go_by_position_and_by_name() {
    let (root, _run) = CallRoot::shop().await;
    assert_eq!(root.result(&["service_echo.add", "2", "-3"]).await, "-1\n");
    assert_eq!(root.result(&["service_echo.add", "b=2", "1"]).await, "3\n");
    assert_eq!(root.result(&["service_echo.greet", "world"]).await, "\"Hello, world !\"\n");
    assert_eq!(root.result(&["service_echo.greet", "greeting=Hi", "name=world"]).await, "\"Hi, world !\"\n");
    assert_eq!(root.result(&["service_echo.greet", "world", "--raw"]).await, "Hello, world !");
    assert_eq!(root.result(&["service_echo.echo", "--", "--raw"]).await, "\"--raw\"\n");
    assert_eq!(root.result(&["service_echo.echo", "\"a=b\""]).await, "\"a=b\"\n");
    assert_eq!(root.result(&["service_echo.nothing"]).await, "null\n");
    let any = json!({ "a": [1, 2.5, null, "ä\""], "long": 9_007_199_254_740_993_u64 });
    let echoed = root.result(&["service_echo.echo", &any.to_string()]).await;
    assert_eq!(serde_json::from_str::<Value>(&echoed).unwrap(), any);
    // By the function's own type, in the other module.
    assert_eq!(root.result(&["calculator.divide", "9", "3"]).await, "3\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_there_and_back() {
    let (root, _run) = CallRoot::shop().await;
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| n as u8).collect();
    let file = root.path().join("bytes");
    fs::write(&file, &bytes).unwrap();
    let echoed = root.call(&["shop", "service_echo.echo_raw", "--bytes-from", file.to_str().unwrap()]).await;
    assert!(echoed.status.success() && echoed.stdout == bytes, "{}", text(&echoed.stderr));
    let mut piped = root.command(&["call", "shop", "service_echo.echo_raw", "--bytes-from", "-"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(&[0, 255]).await.unwrap();
    assert_eq!(piped.wait_with_output().await.unwrap().stdout, [0, 255]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_with_its_code_and_ends_it_with_1() {
    let (root, _run) = CallRoot::shop().await;
    let failure = async |arguments: &[&str]| root.failure(1, &[&["shop"], arguments].concat()).await;
    assert_eq!(failure(&["service_echo.refuse", "never"]).await, "error: refused: never (refused)\n");
    assert_eq!(failure(&["service_echo.fail", "later"]).await, "error: failed: later (failed)\n");
    CallRoot::said(&failure(&["service_echo.panic", "oh"]).await, &["(trapped)"]);
    CallRoot::said(&failure(&["service_echo.add", "1"]).await, &["the parameter b (i64) is missing", "(bad-request)"]);
    CallRoot::said(&failure(&["service_echo.gret", "x"]).await, &["did you mean `greet`?", "(no-such-function)"]);
    CallRoot::said(&failure(&["service_eco.greet", "x"]).await, &["did you mean `service_echo`?", "(no-such-module)"]);
    CallRoot::said(&failure(&["calculator.divide", "1", "x"]).await, &["\"x\"", "(bad-request)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeout_ends_a_call() {
    let (root, _run) = CallRoot::shop().await;
    let slow = root.failure(1, &["shop", "service_echo.slow", "600000", "--timeout", "50ms"]).await;
    CallRoot::said(&slow, &["deadline exceeded", "(deadline-exceeded)"]);
    let context: Value =
        serde_json::from_str(&root.result(&["service_echo.context", "--timeout", "1h"]).await).unwrap();
    let left: u64 = context["deadline_left_ms"].as_str().unwrap().parse().unwrap();
    assert!((600_000..=3_600_000).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_does_not_run_is_told() {
    let root = CallRoot::new(&[("shop", &[])]);
    CallRoot::said(&root.failure(1, &["shop", "a.b"]).await, &["cage shop is not running", "wasmcage run shop"]);
    CallRoot::said(&root.failure(2, &["shpo", "a.b"]).await, &["did you mean shop?"]);
    CallRoot::said(&root.failure(1, &["far", "a.b", "--via", "shop"]).await, &["cage shop is not running"]);
    CallRoot::said(&root.failure(2, &["shop", "a"]).await, &["MODULE.FUNCTION"]);
    CallRoot::said(&root.failure(2, &["shop", "a.b", "x=1", "x=2"]).await, &["argument x is given twice"]);
    let missing = root.failure(1, &["shop", "a.b", "--bytes-from", "missing"]).await;
    CallRoot::said(&missing, &["cannot read missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cage_makes_the_call_as_its_own() {
    let root = CallRoot::new(&[("shop", &["service_echo"]), ("front", &[])]);
    root.configure("shop", "[rpc.allow]\n\"service_echo.context\" = [\"front\"]\n");
    let _run = root.run(&["shop", "front"]).await;
    let facts = async |arguments: &[&str]| {
        let context = done(root.call(&[arguments, &["shop", "service_echo.context"]].concat()).await);
        let context: Value = serde_json::from_str(&context).unwrap();
        ["source-cage", "source-module", "origin-cage"].map(|fact| context[fact].as_str().unwrap().to_owned())
    };
    assert_eq!(facts(&[]).await, ["(command line)", "", "(command line)"]);
    assert_eq!(facts(&["--via", "front"]).await, ["front", "(command line)", "front"]);
    // The cage's own operator may call what its configuration permits to nobody.
    assert_eq!(root.result(&["service_echo.add", "1", "2"]).await, "3\n");
    let refused = root.failure(1, &["--via", "front", "shop", "service_echo.add", "1", "2"]).await;
    CallRoot::said(&refused, &["cage front may not call service_echo.add", "[rpc.allow]", "(not-permitted)"]);
    let all = root.result(&["service_echo.add", "1", "2", "--all"]).await;
    assert_eq!(serde_json::from_str::<Value>(&all).unwrap(), json!([{ "copy": "local", "ok": 3 }]));
    let failed = root.call(&["shop", "service_echo.fail", "later", "--all"]).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:?}");
    CallRoot::said(&text(&failed.stdout), &["\"copy\":\"local\"", "\"code\":\"failed\"", "later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_runs_here_calls_one_that_does_not() {
    let root = CallRoot::new(&[("front", &[]), ("shop", &[])]);
    let _run = root.run(&["front"]).await;
    let told = root.failure(1, &["shop", "work.handle", "/", "--timeout", "1s"]).await;
    CallRoot::said(&told, &["cage shop does not run in", "--via front", "(no-such-cage)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_of_another_process_is_called_through_a_neighbour_or_the_flock() {
    let root = CallRoot::new(&[("shop", &["service_echo"]), ("front", &[])]);
    root.configure("shop", "[rpc.allow]\n\"service_echo.context\" = [\"front\"]\n");
    let (_shop, _front) = (root.run(&["shop"]).await, root.run(&["front"]).await);
    let source = async |arguments: &[&str]| {
        let context = done(root.call(&[arguments, &["shop", "service_echo.context"]].concat()).await);
        serde_json::from_str::<Value>(&context).unwrap()["source-cage"].as_str().unwrap().to_owned()
    };
    assert_eq!(source(&["--via", "front"]).await, "front");
    let refused = root.failure(1, &["--via", "front", "shop", "service_echo.nothing"]).await;
    CallRoot::said(&refused, &["[rpc.allow]", "(not-permitted)"]);
    assert_eq!(source(&["--flock", "default"]).await, "(command line)");
    assert_eq!(root.result(&["--flock", "default", "service_echo.add", "1", "2"]).await, "3\n");
    let all = root.result(&["--flock", "default", "service_echo.add", "1", "2", "--all"]).await;
    let all: Value = serde_json::from_str(&all).unwrap();
    assert_eq!((all.as_array().unwrap().len(), &all[0]["ok"]), (1, &json!(3)));
    assert_eq!(all[0]["copy"].as_str().unwrap().len(), 16);
    let table = done(root.output(&["ps", "front"]).await);
    CallRoot::said(&table, &["flock default", "MEMBER", all[0]["copy"].as_str().unwrap()]);
    let other = root.failure(1, &["--flock", "other", "shop", "a.b"]).await;
    CallRoot::said(&other, &["no running copy of cage shop", "(no-such-cage)"]);
    CallRoot::said(&root.failure(2, &["--flock", "Not one", "shop", "a.b"]).await, &["lower-case"]);
    // Some MiB go to another process and back.
    let bytes = vec![7; 3 << 20];
    fs::write(root.path().join("bytes"), &bytes).unwrap();
    let file = root.path().join("bytes");
    let flock = ["--flock", "default", "shop", "service_echo.echo_raw", "--bytes-from", file.to_str().unwrap()];
    assert!(root.call(&flock).await.stdout == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shell_completes_names() {
    let (root, _run) = CallRoot::shop().await;
    let completed = async |index: &str, words: &[&str]| {
        let mut command = root.command(&[&["--", "wasmcage"], words].concat());
        let command = command.env("COMPLETE", "bash").env("_CLAP_IFS", " ").env("_CLAP_COMPLETE_INDEX", index);
        done(command.output().await.unwrap())
    };
    assert_eq!(completed("2", &["call", "sh"]).await, "shop");
    assert_eq!(completed("3", &["call", "shop", "service_echo.gr"]).await, "service_echo.greet");
    assert_eq!(completed("3", &["call", "shop", "calculator.div"]).await, "calculator.divide");
    assert_eq!(completed("2", &["stop", "s"]).await, "shop");
    assert_eq!(completed("3", &["call", "none", "x"]).await, "");
    let registration = done(root.command(&[]).env("COMPLETE", "bash").output().await.unwrap());
    assert!(registration.contains("complete -o nospace"), "{registration}");
}
