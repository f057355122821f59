//! Two cages that call each other and serve for long take no more memory, descriptors, threads and disk than they took when
//! they had warmed up, and no answer is wrong: HTTP, state, orders, retried calls, calls between modules and cages, beside
//! guests that leak, panic, trap, loop and bomb, and a new build of a module every few seconds.
//!
//! `WASMCAGE_SOAK_SECONDS` sets the length, `WASMCAGE_SOAK_RATE` the requests per second of all clients together. From ten
//! minutes on the drift after the warm-up is checked; a short run shows that every answer is right and every count true.
//! The last lines tell the figures.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::{MissedTickBehavior, interval};
use wasmcage_tests::{Client, Root, component, eventually_async, guest, length, query};

const CAGES: [&str; 2] = ["soak", "other"];
/// Requests of all clients together in a second, beside those that misbehave.
const RATE: u64 = 300;
/// The kinds of requests of the clients of each cage; all clients ask equally often.
const CLIENTS: [Work; 8] =
    [Work::Good, Work::Good, Work::Good, Work::Calls, Work::Calls, Work::Calls, Work::Calls, Work::Orders];
/// Loops and bombs take the processor for as long as they may.
const BAD_INTERVAL: Duration = Duration::from_millis(200);

const SECONDS_DEFAULT: u64 = 8;
/// The part of a run that warms up: stores, caches and pools fill to their bounds.
const WARM_UP: f64 = 0.4;
/// Runs that are shorter tell nothing of drift.
const CHECKED_FROM: Duration = Duration::from_secs(600);
const DRIFT_MAX: f64 = 0.02;
/// Descriptors and threads are few, and files grow by pages: more than the drift comes and goes by chance.
const OTHERS_BY_CHANCE: f64 = 2.0;
const SAMPLES: u32 = 200;
const SWAP_INTERVAL: Duration = Duration::from_secs(5);
/// Modules that are replaced, and the guests that replace them.
const SWAPPED: [(&str, &str); 3] =
    [("interface_good", "hello"), ("service_echo", "service_echo"), ("counter", "counter")];

const CACHE_MB: u64 = 48;
const LOG_DAY_MB: u64 = 16;
/// A run is shorter than a day.
const DAYS_MAX: u64 = 2;
/// The name of the memory of a process among the measurements.
const MEMORY: &str = "MiB of memory";
/// Orders that are left when old ones are deleted.
const ORDERS_KEPT: u64 = 1_000;
const KEYS: u64 = 500;
/// The number of failures that are printed; more are counted.
const FAILURES_TOLD_MAX: usize = 20;

/// Takes the text of an order, and has nothing to do with it.
const MAIL: &str = r#"(component
    (core module $m
        (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 1024)
        (func (export "send") (param i32 i32)))
    (core instance $i (instantiate $m))
    (func (export "send") (param "item" string)
        (canon lift (core func $i "send") (memory (core memory $i "memory")) (realloc (core func $i "realloc")))))"#;

/// Numbers that only grow, by one with each request that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Count {
    /// In the memory of a module, which it hands over to its next version.
    Memory,
    State,
    /// In the state, and a row of the database for each.
    Orders,
}

impl Count {
    const ALL: [Self; 3] = [Self::Memory, Self::State, Self::Orders];
}

/// Writes that a cage has acknowledged, and has to have.
#[derive(Default)]
struct Acknowledged {
    counts: [AtomicU64; Count::ALL.len()],
    /// The texts of retried calls.
    retried: Mutex<HashSet<String>>,
}

#[derive(Default)]
struct Results {
    requests: AtomicU64,
    /// Answers that are wrong, or were none.
    failed: AtomicU64,
    told: Mutex<Vec<String>>,
    /// Latencies of the plainest requests, in microseconds.
    latencies: Mutex<Vec<u32>>,
    swaps: AtomicU64,
    cages: [Acknowledged; CAGES.len()],
}

impl Results {
    fn report_failure(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock();
        if told.len() < FAILURES_TOLD_MAX {
            eprintln!("{what}");
            told.push(what);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Good,
    Bad,
    Calls,
    Orders,
}

impl Work {
    fn interface(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Calls => "calls",
            Self::Orders => "orders",
        }
    }
}

/// One request, and what may come of it.
struct SoakRequest {
    target: String,
    body: Option<String>,
    expected: Expected,
}

enum Expected {
    Served,
    /// Served or not, as long as there is an answer.
    Ended,
    Text(String),
    /// More than this client was told last.
    More(Count),
    /// The retried call with this text is taken.
    Retried(String),
}

impl SoakRequest {
    fn get(target: impl Into<String>, expected: Expected) -> Self {
        Self { target: target.into(), body: None, expected }
    }

    fn call(cage: Option<&str>, function: &str, args: &Value, expected: Expected) -> Self {
        let (module, function) = function.split_once('.').unwrap();
        let args = args.to_string();
        let mut parameters = vec![("module", module), ("function", function), ("args", &*args)];
        parameters.extend(cage.map(|cage| ("cage", cage)));
        Self::get(query("/call", &parameters), expected)
    }

    fn bad(number: u64) -> Self {
        let targets =
            ["/panic", "/leak?mb=2", "/memory", "/loop", "/exit?code=1", "/recurse", "/log?mb=1", "/sleep?ms=2"];
        Self::get(targets[number as usize % targets.len()], Expected::Ended)
    }

    /// `name` is the client's own.
    fn order(name: usize, number: u64) -> Self {
        let body = Some(format!("book {number} of {name}"));
        Self { target: "/".to_owned(), body, expected: Expected::More(Count::Orders) }
    }

    fn calls(own: &str, other: &str, name: usize, number: u64) -> Self {
        let key = format!("key-{}", number / 12 % KEYS);
        match number % 12 {
            0 => Self::call(None, "counter.increment", &json!([]), Expected::More(Count::Memory)),
            1 => {
                let text = format!("{name}-{number}");
                let args = json!([text, "ok", null, null, null, null, null, null, null]);
                Self::call(None, "retried_user.ask", &args, Expected::Retried(text))
            }
            2 => Self::call(None, "state_user.set", &json!([key, key]), Expected::Served),
            3 => Self::call(None, "state_user.get", &json!([key]), Expected::Text(json!(key).to_string())),
            4 => Self::call(None, "state_user.increment", &json!(["count", 1]), Expected::More(Count::State)),
            5 => {
                let body = "x".repeat(1 + number as usize % 20_000);
                Self { body: Some(body.clone()), ..Self::get("/body", Expected::Text(body)) }
            }
            6 => Self::get(query("/context", &[("describe", "soak")]), Expected::Served),
            7 | 8 => {
                let sum = Expected::Text((number + 1).to_string());
                Self::call(Some(other), "service_echo.add", &json!([number, 1]), sum)
            }
            9 => {
                let sum = Expected::Text((number + 2).to_string());
                let args = json!([own, "service_echo", "add", [number, 2]]);
                Self::call(Some(other), "service_echo.forward", &args, sum)
            }
            10 => {
                let held = Expected::Text(json!("Mode::Read").to_string());
                Self::call(None, "lock_user.hold", &json!([format!("lock-{key}"), "read", "keeps"]), held)
            }
            _ => {
                let old = format!("delete from orders where id <= (select max(id) from orders) - {ORDERS_KEPT}");
                Self::call(None, "sql_user.run", &json!(["db", [[old, []]], null]), Expected::Served)
            }
        }
    }
}

/// Asks one thing after the other of one interface of a cage.
struct SoakClient {
    /// A number that no other client has.
    name: usize,
    cage: usize,
    client: Client,
    work: Work,
    interval: Duration,
    results: Arc<Results>,
    /// The last number of each kind.
    counted: [u64; Count::ALL.len()],
}

impl SoakClient {
    async fn run(mut self, until: Instant) {
        let mut tick = interval(self.interval);
        // A cage that is slow is asked less.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0.. {
            tick.tick().await;
            if Instant::now() >= until {
                break;
            }
            self.ask(number).await;
        }
    }

    async fn ask(&mut self, number: u64) {
        let (own, other) = (CAGES[self.cage], CAGES[1 - self.cage]);
        let SoakRequest { target, body, expected } = match self.work {
            Work::Good => SoakRequest::get("/", Expected::Served),
            Work::Bad => SoakRequest::bad(number),
            Work::Calls => SoakRequest::calls(own, other, self.name, number),
            Work::Orders => SoakRequest::order(self.name, number),
        };
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let begun = Instant::now();
        let answer = self.client.try_send(method, &target, &[], body.unwrap_or_default().into()).await;
        self.results.requests.fetch_add(1, Ordering::Relaxed);
        if self.work == Work::Good {
            self.results.latencies.lock().push(begun.elapsed().as_micros() as u32);
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return self.results.report_failure(format!("{own}: {target}: no answer: {error:#}")),
        };
        let (status, text) = (answer.status, answer.text());
        if !self.is_right(expected, status.is_success(), &text) {
            let text = &text[..text.floor_char_boundary(500)];
            self.results.report_failure(format!("{own}: {target}: {status} {text}"));
        }
    }

    fn is_right(&mut self, expected: Expected, served: bool, text: &str) -> bool {
        let acknowledged = &self.results.cages[self.cage];
        match expected {
            Expected::Ended => true,
            _ if !served => false,
            Expected::Served => true,
            Expected::Text(expected) => text == expected,
            Expected::More(count) => {
                acknowledged.counts[count as usize].fetch_add(1, Ordering::Relaxed);
                // An order's answer has words around it.
                let number = text.trim_start_matches("order ").split(' ').next().and_then(|number| number.parse().ok());
                let last = std::mem::replace(&mut self.counted[count as usize], number.unwrap_or_default());
                self.counted[count as usize] > last
            }
            Expected::Retried(text) => acknowledged.retried.lock().insert(text),
        }
    }
}

/// Replaces one module after the other, of one cage after the other, by a build that was never there before.
async fn swap(root: &Root, until: Instant, results: &Results) {
    let builds = SWAPPED.map(|(module, name)| (module, fs::read(guest(name)).unwrap()));
    for number in 0_u32.. {
        tokio::time::sleep(SWAP_INTERVAL).await;
        if Instant::now() >= until {
            break;
        }
        let cage = root.cage(CAGES[number as usize % CAGES.len()]);
        let (module, build) = &builds[number as usize / CAGES.len() % builds.len()];
        let mut bytes = build.clone();
        // An unknown section at its end makes it another build.
        bytes.extend([0, 6, 1, b'v']);
        bytes.extend(number.to_le_bytes());
        let temporary = cage.join(".next.wasm");
        fs::write(&temporary, bytes).unwrap();
        fs::rename(temporary, cage.join(format!("{module}.wasm"))).unwrap();
        results.swaps.fetch_add(1, Ordering::Relaxed);
    }
}

/// The status of a cage as `wasmcage ps` prints it.
async fn told(root: &Root, cage: &str) -> Value {
    let mut answer: Value = serde_json::from_str(&root.done(&["ps", "--json", cage]).await).unwrap();
    answer["processes"][0]["cages"][0].take()
}

/// A client of an interface.
fn client(cage: &Value, interface: &str) -> Client {
    let interfaces = cage["interfaces"].as_array().unwrap();
    let found = interfaces.iter().find(|known| known["interface"] == interface);
    let address = found.unwrap_or_else(|| panic!("{cage}"))["addresses"][0].as_str().unwrap();
    Client::new(address.split("://").last().unwrap().trim_end_matches('/'))
}

/// Everything that must not grow, by its name, and what it may grow by beside the drift.
type Measured = Vec<(String, f64)>;

/// Measures a process: MiB of anonymous memory, descriptors, threads.
fn measured_of_process(what: &str, pid: i64, measured: &mut Measured) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |key: &str| -> f64 {
        let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        value.split_whitespace().next().unwrap().parse().unwrap()
    };
    measured.push((format!("{what}: {MEMORY}"), number("RssAnon:") / 1_024.0));
    measured.push((format!("{what}: descriptors"), fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64));
    measured.push((format!("{what}: threads"), number("Threads:")));
}

/// MiB of the files beneath a directory. Files come and go meanwhile.
fn megabytes(directory: &Path) -> f64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(about) if about.is_dir() => megabytes(&entry.path()),
        Ok(about) => about.len() as f64 / f64::from(1 << 20),
        Err(_) => 0.0,
    });
    sizes.sum()
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// The growth of one measurement over a run.
struct Drift {
    what: String,
    /// Medians of the tenths of the run.
    tenths: Vec<f64>,
    /// Medians of the first and the last third of what came after the warm-up.
    first: f64,
    last: f64,
}

impl Drift {
    fn of(samples: &[Measured]) -> Vec<Self> {
        let named = samples.first().into_iter().flatten().enumerate();
        let drifts = named.map(|(index, (what, _))| {
            let values: Vec<_> = samples.iter().map(|sample| sample[index].1).collect();
            let tenths = values.chunks(values.len().div_ceil(10)).map(median).collect();
            let warm = &values[(values.len() as f64 * WARM_UP) as usize..];
            let third = warm.len() / 3;
            let (first, last) = (median(&warm[..third]), median(&warm[warm.len() - third..]));
            Self { what: what.clone(), tenths, first, last }
        });
        drifts.collect()
    }

    /// Logs grow until they have reached a day's bound, which is asserted apart.
    fn grows(&self) -> bool {
        if self.what.ends_with("logs") {
            return false;
        }
        let by_chance = if self.what.ends_with(MEMORY) { 0.0 } else { OTHERS_BY_CHANCE };
        self.last > self.first * (1.0 + DRIFT_MAX) + by_chance
    }

    fn told(&self) -> String {
        let tenths: Vec<_> = self.tenths.iter().map(|value| format!("{value:.1}")).collect();
        let drift = (self.last / self.first.max(f64::MIN_POSITIVE) - 1.0) * 100.0;
        format!("{}: {}; after the warm-up {drift:+.1} %", self.what, tenths.join(" "))
    }
}

fn configure(root: &Root, cage: usize) {
    let (own, other) = (CAGES[cage], CAGES[1 - cage]);
    for (name, module) in [
        ("hello", "interface_good"),
        ("hostile", "interface_bad"),
        ("echo", "interface_calls"),
        ("order", "interface_orders"),
    ] {
        fs::copy(guest(name), root.cage(own).join(format!("{module}.wasm"))).unwrap();
    }
    fs::write(root.cage(own).join("mail.wasm"), component(MAIL)).unwrap();
    fs::create_dir(root.cage(own).join("data")).unwrap();
    let mut toml = format!("request_timeout_ms = 20_000\nlog_level = \"warn\"\nlog_day_mb = {LOG_DAY_MB}\n");
    for work in [Work::Good, Work::Bad, Work::Calls, Work::Orders] {
        let interface = work.interface();
        toml += &format!("[interfaces.{interface}]\nprotocol = \"http\"\nlisten = \"127.0.0.1:0\"\n");
    }
    toml += &format!(
        r#"
        [interfaces.rpc]
        multicast = false
        [interfaces.retry]
        retention = "60s"
        [resources.db]
        protocol = "sql"
        path = "orders.db"
        [modules]
        interface_bad = {{ timeout_ms = 100, memory_mb = 32 }}
        interface_calls.allow = {{ cages = ["{other}"] }}
        interface_orders.allow = {{ resources = ["db"] }}
        service_echo.allow = {{ cages = ["{other}"] }}
        sql_user.allow = {{ resources = ["db"] }}
        counter.instances = {{ mode = "single" }}
        retried_user.allow = {{ files = [{{ host = "data", guest = "/data", mode = "rw" }}] }}
        "#
    );
    root.configure(own, &toml);
}

async fn run(root: &Root, cage: &str) -> Child {
    let mut command = root.command(&["run", cage]);
    command.env("WASMCAGE_CACHE_MAX_MB", CACHE_MB.to_string()).stdout(Stdio::null()).stderr(Stdio::null());
    let run = command.spawn().unwrap();
    root.serving(cage).await;
    run
}

/// Checks that a cage has exactly what it acknowledged.
async fn check_counts(root: &Root, cage: usize, results: &Results) {
    let (name, acknowledged) = (CAGES[cage], &results.cages[cage]);
    let expected = Count::ALL.map(|count| acknowledged.counts[count as usize].load(Ordering::Relaxed));
    let number = async |arguments: &[&str]| root.call(name, arguments).await.as_u64().unwrap_or_default();
    let memory = number(&["counter.count"]).await;
    let state = number(&["state_user.get", "count"]).await;
    let orders = json!([["select max(id) from orders", []]]).to_string();
    let orders = root.call(name, &["sql_user.run", "db", &orders]).await["ok"][0]["rows"][0][0].as_u64();
    assert_eq!([memory, state, orders.unwrap_or_default()], expected, "{name}: memory, state, orders");
    let attempts = root.cage(name).join("data/attempts");
    let lines = || fs::read_to_string(&attempts).unwrap_or_default();
    let taken = acknowledged.retried.lock().clone();
    eventually_async("the last retried call", async || (lines().lines().count() >= taken.len()).then_some(())).await;
    let lines = lines();
    let done: Vec<_> = lines.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(done.len(), taken.len(), "{name}: a retried call ran twice");
    let missing: Vec<_> = done.iter().filter(|text| !taken.contains(**text)).collect();
    assert_eq!(missing, Vec::<&&str>::new(), "{name}: retried calls that nobody asked for");
}

/// Checks that no part of a cage panicked, and that the last build of each module serves.
async fn check_parts(root: &Root, cage: usize) {
    let told = told(root, CAGES[cage]).await;
    assert_eq!(told["panics"]["count"], 0, "{told}");
    for module in told["modules"].as_array().unwrap() {
        assert!(module["refused"].is_null() && module["version"].is_object(), "{module}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_grows_with_the_time_that_cages_serve() {
    let modules: &[&str] = &["counter", "state_user", "service_echo", "retried_user", "lock_user", "sql_user"];
    let root = Root::new(&CAGES.map(|cage| (cage, modules)));
    // Of its own, since it is measured.
    fs::remove_file(root.path().join(".cache")).unwrap();
    let (mut runs, mut pids) = (Vec::new(), Vec::new());
    for (cage, name) in CAGES.iter().enumerate() {
        configure(&root, cage);
        let run = run(&root, name).await;
        pids.push((format!("{name}, watching"), i64::from(run.id().unwrap())));
        pids.push(((*name).to_owned(), root.serving(name).await));
        runs.push(run);
    }
    let (run_length, results) =
        (Duration::from_secs(length("WASMCAGE_SOAK_SECONDS", SECONDS_DEFAULT)), Arc::<Results>::default());
    let rate = length("WASMCAGE_SOAK_RATE", RATE).max(1);
    let pause = Duration::from_secs((CAGES.len() * CLIENTS.len()) as u64) / u32::try_from(rate).unwrap();
    let begun = Instant::now();
    let until = begun + run_length;
    let mut asking = Vec::new();
    for (cage, name) in CAGES.iter().enumerate() {
        let told = told(&root, name).await;
        for work in [Work::Bad].into_iter().chain(CLIENTS) {
            let interval = if work == Work::Bad { BAD_INTERVAL } else { pause };
            let (client, results) = (client(&told, work.interface()), results.clone());
            let asker =
                SoakClient { name: asking.len(), cage, client, work, interval, results, counted: Default::default() };
            asking.push(tokio::spawn(asker.run(until)));
        }
    }
    let measuring = async {
        let mut samples = Vec::new();
        while Instant::now() < until {
            tokio::time::sleep(run_length / SAMPLES).await;
            let mut measured = Measured::new();
            for (what, pid) in &pids {
                measured_of_process(what, *pid, &mut measured);
            }
            for name in CAGES {
                for directory in ["state", "logs"] {
                    measured.push((format!("{name}: MiB of {directory}"), megabytes(&root.cage(name).join(directory))));
                }
            }
            measured.push(("MiB of .cache".to_owned(), megabytes(&root.path().join(".cache"))));
            samples.push(measured);
        }
        samples
    };
    let ((), samples) = tokio::join!(swap(&root, until, &results), measuring);
    for asker in asking {
        asker.await.unwrap();
    }

    let drifts = Drift::of(&samples);
    let (requests, failed) = (results.requests.load(Ordering::Relaxed), results.failed.load(Ordering::Relaxed));
    let mut latencies = std::mem::take(&mut *results.latencies.lock());
    latencies.sort_unstable();
    let percentile = |of: usize| latencies.get(latencies.len() * of / 1_000).map_or(0.0, |us| f64::from(*us) / 1_000.0);
    println!(
        "{} s, {requests} requests ({} a second), {} swaps, {failed} failed; plain requests: p50 {} ms, p99 {} ms, p99.9 {} ms",
        run_length.as_secs(),
        requests / begun.elapsed().as_secs().max(1),
        results.swaps.load(Ordering::Relaxed),
        percentile(500),
        percentile(990),
        percentile(999),
    );
    drifts.iter().for_each(|drift| println!("{}", drift.told()));
    assert_eq!(failed, 0, "{:#?}", results.told.lock());
    for cage in 0..CAGES.len() {
        assert_eq!(root.serving(CAGES[cage]).await, pids[2 * cage + 1].1, "the process is another one");
        check_counts(&root, cage, &results).await;
        check_parts(&root, cage).await;
    }
    let last = samples.last().unwrap();
    for (what, value) in last {
        let most = match what {
            _ if what.ends_with(".cache") => CACHE_MB,
            _ if what.ends_with("logs") => DAYS_MAX * LOG_DAY_MB,
            _ => continue,
        };
        assert!(*value <= most as f64 + OTHERS_BY_CHANCE, "{what}: {value}, more than {most}");
    }
    if run_length >= CHECKED_FROM {
        let growing: Vec<_> = drifts.iter().filter(|drift| drift.grows()).map(Drift::told).collect();
        assert!(growing.is_empty(), "{growing:#?}");
    }
    for cage in CAGES {
        root.stop(cage).await;
    }
    drop(runs);
}
