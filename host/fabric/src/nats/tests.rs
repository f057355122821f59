//! The contract of fabrics on a private NATS server, and tests of what only NATS has. The server is the program named by
//! `NATS_SERVER`, or `nats-server` in `PATH`; without one these tests fail. `tests/run` leaves them out by the part
//! `nats::tests::` of their paths.

use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::super::contract::{FabricTraits, RunningCopy, TestBed, call, contract};
use super::*;
use wasmcage_config::testing::section;

/// Time for a server to start.
const SERVER_START_TIMEOUT: Duration = Duration::from_secs(20);
const NOTICE_TIMEOUT: Duration = Duration::from_secs(20);

/// A `nats-server` for one test, which is killed when this is dropped.
struct TestNatsServer {
    process: Child,
    port: u16,
    directory: TempDir,
}

impl TestNatsServer {
    async fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::start_in(directory, config, -1).await
    }

    /// `port` -1 asks for any free port.
    async fn start_in(directory: TempDir, config: &str, port: i32) -> Self {
        let program = std::env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".into());
        let path = directory.path();
        let ports = format!("ports_file_dir: {:?}\n", path.display().to_string());
        let config = config.replace("DIRECTORY", &path.display().to_string());
        std::fs::write(path.join("nats.conf"), format!("listen: \"127.0.0.1:{port}\"\n{ports}{config}")).unwrap();
        let log = std::fs::File::create(path.join("nats.log")).unwrap();
        let mut command = Command::new(&program);
        command.arg("-c").arg(path.join("nats.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().unwrap_or_else(|error| {
            panic!(
                "this test cannot run here: {program}: {error}; install nats-server, or name it by NATS_SERVER. `cargo test -- \
                 --skip nats::tests::` leaves out such tests"
            )
        });
        let mut server = Self { process, port: 0, directory };
        let begun = Instant::now();
        while server.port == 0 {
            server.port = server.reported_port().unwrap_or(0);
            assert!(begun.elapsed() < SERVER_START_TIMEOUT, "nats-server does not start: {}", server.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    /// Reads the file `{"nats":["nats://127.0.0.1:PORT"],..}`, which appears once the server listens.
    fn reported_port(&self) -> Option<u16> {
        let file = self.directory.path().join(format!("nats-server_{}.ports", self.process.id()));
        let ports: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()?;
        ports["nats"][0].as_str()?.rsplit_once(':')?.1.parse().ok()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("nats.log")).unwrap_or_default()
    }

    /// Kills the server and starts a new one on its port.
    async fn restart(mut self) -> Self {
        self.end();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        Self::start_in(directory, "", self.port.into()).await
    }

    fn end(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn config(&self, keys: &str) -> NatsConfig {
        let directory = self.directory.path().display().to_string();
        let section = section(&keys.replace("DIRECTORY", &directory));
        section.optional_string("protocol");
        let mut config = NatsConfig::read(section).unwrap();
        config.servers = vec![format!("127.0.0.1:{}", self.port).parse().unwrap()];
        config
    }

    async fn join(&self, cage: &str, keys: &str) -> Arc<Nats> {
        let local = RunningCopy::local("default", cage);
        Arc::new(
            Nats::start(&self.config(keys), "rpc".into(), local, CallLimits::default(), Tasks::new("test"))
                .await
                .unwrap(),
        )
    }
}

impl Drop for TestNatsServer {
    fn drop(&mut self) {
        self.end();
    }
}

struct NatsTestBed(TestNatsServer, &'static str);

impl NatsTestBed {
    async fn on(server: &str) -> Arc<dyn TestBed> {
        Arc::new(Self(TestNatsServer::start(server).await, ""))
    }
}

#[async_trait]
impl TestBed for NatsTestBed {
    async fn join(&self, local: &LocalCopy, limits: CallLimits) -> Arc<dyn Fabric> {
        Arc::new(
            Nats::start(&self.0.config(self.1), "rpc".into(), local.clone(), limits, Tasks::new("test")).await.unwrap(),
        )
    }

    /// Dropping the last reference closes the connection.
    async fn kill(&self, _: &LocalCopy, fabric: Arc<dyn Fabric>) {
        drop(fabric);
    }

    fn traits(&self) -> FabricTraits {
        FabricTraits { death_noticed_within: SILENCE_MAX + SWEEP_INTERVAL * 2 }
    }
}

contract!(NatsTestBed::on("").await);

/// The contract with messages so small that nearly every body is sent in parts.
mod small_messages {
    use super::*;

    contract!(NatsTestBed::on("max_payload: 4096").await);
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < NOTICE_TIMEOUT, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_server_that_restarts_loses_calls_in_flight_and_nothing_else() {
    let server = TestNatsServer::start("").await;
    let front = server.join("front", "").await;
    let bed = NatsTestBed(server, "");
    let worker = RunningCopy::start(&bed, "worker").await;
    front.call(call("echo"), None).await.unwrap();
    let waiting = tokio::spawn({
        let front = front.clone();
        async move { front.call(call("wait"), None).await }
    });
    worker.handler.until(|counts| counts.begun == 2).await;
    let NatsTestBed(mut server, _) = bed;
    server.end();
    assert!(matches!(waiting.await.unwrap(), Err(DispatchError::Lost(_))));
    until("the loss is noticed", || !front.shared.connection.borrow().connected).await;
    let begun = Instant::now();
    let unreachable = front.call(call("echo"), None).await.unwrap_err();
    assert!(
        matches!(&unreachable, DispatchError::Unreachable(text) if text.contains("no NATS server")),
        "{unreachable}"
    );
    assert!(begun.elapsed() >= Duration::from_millis(900), "it waited for the server");
    let _server = server.restart().await;
    until("the server is back", || front.shared.connection.borrow().connected).await;
    // The worker may be connected later than the caller.
    while let Err(error) = front.call(call("echo"), None).await {
        assert!(matches!(error, DispatchError::NoSuchCage(_) | DispatchError::Unreachable(_)), "{error}");
    }
    worker.handler.until(|counts| counts.dropped == 1).await;
}

#[tokio::test]
async fn a_copy_that_hangs_is_avoided() {
    let server = TestNatsServer::start("").await;
    let bed = Arc::new(NatsTestBed(server, ""));
    // It runs on a thread of its own, which can be stopped as a process can.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let one = runtime.spawn({
        let bed = bed.clone();
        async move { RunningCopy::start(&*bed, "worker").await }
    });
    let (_one, two) = (one.await.unwrap(), RunningCopy::start(&*bed, "worker").await);
    let front = bed.0.join("front", "").await;
    until("both are known", || front.copies("worker").len() == 2).await;
    // Its subscriptions stay, and it sends nothing.
    let (go_on, stopped) = std::sync::mpsc::channel::<()>();
    let (hangs, hanging) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let _ = hangs.send(());
        stopped.recv()
    });
    hanging.await.unwrap();
    let begun = Instant::now();
    let answers: Vec<_> = (0..20).map(|_| Call { idempotent: true, ..call("copy") }).collect();
    let answers = futures_util::future::join_all(answers.into_iter().map(|call| front.call(call, None))).await;
    for answer in answers {
        assert_eq!(answer.unwrap(), Payload::Json(two.local.copy.to_string()));
    }
    let cost = begun.elapsed();
    assert!(cost < SILENCE_MAX, "each cost one attempt: {cost:?}");
    until("it is known to hang", || front.copies("worker").len() == 1).await;
    for _ in 0..20 {
        front.call(call("copy"), None).await.unwrap();
    }
    drop(go_on);
    until("it is heard again", || front.copies("worker").len() == 2).await;
    runtime.shutdown_background();
}

/// Users who may do only what their names allow.
const PERMISSIONS: &str = r#"
    authorization { users: [
        { user: worker, password: "hush", permissions: {
            publish: ["wasmcage.default.beat.worker", "wasmcage.default.ask", "_INBOX_front.>"],
            subscribe: ["wasmcage.default.*.worker.>", "wasmcage.default.beat.*", "wasmcage.default.ask", "_INBOX.>"] } }
        { user: front, password: "hush", permissions: {
            publish: ["wasmcage.default.call.*.*.front", "wasmcage.default.copy.*.*.front",
                      "wasmcage.default.cancel.*.front", "wasmcage.default.ask"],
            subscribe: ["wasmcage.default.beat.*", "_INBOX_front.>"] } }
    ] }"#;

#[tokio::test]
async fn the_servers_permissions_bind_callers_to_their_names() {
    let server = TestNatsServer::start(PERMISSIONS).await;
    let bed = NatsTestBed(server, "user = 'worker'\npassword = 'hush'");
    let worker = RunningCopy::start(&bed, "worker").await;
    let keys = "user = 'front'\npassword = 'hush'\ninbox = '_INBOX_front'";
    let front = bed.0.join("front", keys).await;
    until("the worker is known", || front.copies("worker").len() == 1).await;
    front.call(call("echo"), None).await.unwrap();
    // The same user as another cage: the server lets none of its calls through.
    let mallory = bed.0.join("mallory", keys).await;
    let begun = Instant::now();
    let refused = mallory.call(call("echo"), None).await;
    let says_why = |text: &str| text.contains("does not let cage mallory publish");
    assert!(matches!(&refused, Err(DispatchError::NotPermitted(text)) if says_why(text)), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "the caller need not wait for its deadline");
    assert_eq!(worker.handler.counts().begun, 1);
    let wrong = bed.0.join("front", "user = 'front'\npassword = 'wrong'").await;
    assert!(matches!(wrong.call(call("echo"), None).await, Err(DispatchError::Unreachable(_))));
    // This one cannot read its answers.
    let deaf = bed.0.join("front", "user = 'front'\npassword = 'hush'").await;
    until("the worker is known", || deaf.copies("worker").len() == 1).await;
    let refused = deaf.call(call("echo"), None).await;
    assert!(matches!(&refused, Err(DispatchError::NotPermitted(text)) if text.contains("inbox")), "{refused:?}");
}

#[tokio::test]
async fn tls_checks_both_sides() {
    let params =
        |names: &[&str]| CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let ca_key = KeyPair::generate().unwrap();
    let mut ca_params = params(&[]).unwrap();
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca_params.self_signed(&ca_key).unwrap().pem();
    let ca = Issuer::new(ca_params, ca_key);
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
    write("ca.pem", ca_certificate);
    for name in ["server", "front"] {
        let key = KeyPair::generate().unwrap();
        let certificate = params(&["127.0.0.1", "localhost"]).unwrap().signed_by(&key, &ca).unwrap();
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
    let tls = r#"tls { cert_file: "DIRECTORY/server.pem", key_file: "DIRECTORY/server-key.pem", ca_file: "DIRECTORY/ca.pem", verify: true }"#;
    let server = TestNatsServer::start_in(directory, tls, -1).await;
    let keys =
        "tls = { ca = 'DIRECTORY/ca.pem', certificate = 'DIRECTORY/front.pem', key = 'DIRECTORY/front-key.pem' }";
    let bed = NatsTestBed(server, keys);
    let worker = RunningCopy::start(&bed, "worker").await;
    let front = bed.0.join("front", keys).await;
    until("the worker is known", || front.copies("worker").len() == 1).await;
    front.call(call("echo"), None).await.unwrap();
    let anonymous = bed.0.join("front", "tls = { ca = 'DIRECTORY/ca.pem' }").await;
    assert!(matches!(anonymous.call(call("echo"), None).await, Err(DispatchError::Unreachable(_))));
    assert_eq!(worker.handler.counts().begun, 1);
}

#[tokio::test]
async fn foreign_messages_are_ignored() {
    let server = TestNatsServer::start("").await;
    let bed = NatsTestBed(server, "");
    let worker = RunningCopy::start(&bed, "worker").await;
    let front = bed.0.join("front", "").await;
    until("the worker is known", || front.copies("worker").len() == 1).await;
    let stranger = async_nats::connect(format!("127.0.0.1:{}", bed.0.port)).await.unwrap();
    let copy = worker.local.copy;
    let reply = front.shared.inbox.clone() + ".1.999";
    let beat = PacketContent::Beat { state: packet::BeatState::Gone, node: String::new(), version: String::new() };
    let part = PacketContent::Part { offset: 9, bytes: Bytes::from_static(b"part") };
    let contents = [PacketContent::Cancel, PacketContent::Away, PacketContent::Granted { upto: u32::MAX }, part, beat];
    let packets = contents.map(|content| Packet { copy, number: 77, content }.encode());
    let huge = packet::Opening { head: Bytes::from_static(b"no head"), body_bytes: u32::MAX, body: Bytes::new() };
    let huge = Packet { copy, number: 78, content: PacketContent::Call(huge) }.encode();
    let others = [Bytes::new(), Bytes::from_static(b"hello"), Bytes::from(vec![1; 5_000]), huge];
    let subjects = [
        "wasmcage.default.call.worker.work.front".to_owned(),
        "wasmcage.default.call.worker.work.no cage".replace(' ', "%"),
        format!("wasmcage.default.copy.worker.{copy}.front"),
        "wasmcage.default.cancel.worker.front".into(),
        "wasmcage.default.beat.mallory".into(),
        reply.clone(),
    ];
    for subject in subjects {
        for payload in packets.iter().chain(&others) {
            stranger.publish_with_reply(subject.clone(), reply.clone(), payload.clone()).await.unwrap();
        }
    }
    stranger.flush().await.unwrap();
    for _ in 0..20 {
        front.call(call("echo"), None).await.unwrap();
    }
    assert_eq!(worker.handler.counts().begun, 20);
    assert_eq!(front.copies("worker"), [copy.to_string()]);
}
