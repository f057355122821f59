//! Brokers that go and come back, cages that stop or are killed, TLS: what is in work is finished, what is not acknowledged
//! comes again, and nothing else does.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use wasmcage_tests::{Peer, RabbitMq, TestCage, cache, eventually, guest, program};

/// Messages of the tests that kill; `AMQP_MESSAGES` may say more.
const MESSAGES: usize = 2_000;

fn cage(broker: &RabbitMq, keys: &str) -> TestCage {
    let toml = format!("[interfaces.in]\nprotocol = 'amqp'\nformat = 'raw'\nurl = '{}'\n{keys}", broker.url());
    TestCage::new().module("amqp_handler", "interface_in").config(&toml)
}

async fn broker(config: &'static str) -> Option<RabbitMq> {
    tokio::task::spawn_blocking(|| RabbitMq::start(config)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn consuming_goes_on_after_the_broker_came_back_and_after_its_queue_was_deleted() {
    let Some(broker) = broker("").await else { return };
    let cage = cage(&broker, "queues.life = { durable = true }").start().await;
    cage.logged("address=\"amqp").await;
    let peer = Peer::of(&broker).await;
    peer.publish("", "life", b"first", BasicProperties::default()).await;
    cage.logged("message life: first").await;

    peer.channel.queue_delete("life".into(), QueueDeleteOptions::default()).await.unwrap();
    cage.logged("was the queue deleted").await;
    eventually("its declaration anew", || (cage.log().matches("address=\"amqp").count() > 1).then_some(())).await;
    peer.publish("", "life", b"second", BasicProperties::default()).await;
    cage.logged("message life: second").await;

    let persistent = BasicProperties::default().with_delivery_mode(2);
    broker.kill();
    cage.logged("broker lost").await;
    let broker = tokio::task::spawn_blocking(move || {
        broker.restart();
        broker
    })
    .await
    .unwrap();
    Peer::of(&broker).await.publish("", "life", b"third", persistent).await;
    cage.logged("message life: third").await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_stops_finishes_what_it_has_and_leaves_the_rest_in_the_queue() {
    let Some(broker) = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap() else { return };
    let peer = Peer::of(&broker).await;
    let queue = format!("drain-{}", std::process::id());
    peer.queue(&queue, FieldTable::default()).await;
    for _ in 0..20 {
        peer.publish("", &queue, b"slow", BasicProperties::default()).await;
    }
    let cage = cage(&broker, &format!("prefetch = 2\nqueues.{queue} = {{ durable = true }}")).start().await;
    eventually("work", || (cage.snapshot().cages[0].in_work == 2).then_some(())).await;
    let done = {
        let snapshot = cage.snapshot();
        let interface = snapshot.cages[0].interfaces.iter().find(|one| one.interface == "in").unwrap();
        interface.readings.outcomes.get("ok").copied().unwrap_or(0)
    };
    assert!(cage.stop().await, "nothing had to be cut off");
    let left = u64::from(peer.waiting(&queue).await.unwrap());
    assert!(left >= 20 - done - 6 && left < 20, "{left} left of 20, {done} done before the stop");
    while let Some(delivery) = peer.take(&queue).await {
        assert_eq!(delivery.data, b"slow");
    }
}

/// Files of an authority and a server that it vouches for.
fn authority(directory: &TempDir) {
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let server = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: String| fs::write(directory.path().join(name), text).unwrap();
    write("ca.pem", ca_certificate.pem());
    write("server.pem", server.pem());
    write("server.key", key.serialize_pem());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_the_broker_is_known_by_its_authority() {
    let (directory, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    authority(&directory);
    authority(&other);
    let config = "listeners.ssl.1 = 127.0.0.1:TLS_PORT\nssl_options.cacertfile = DIRECTORY/ca.pem\n\
                  ssl_options.certfile = DIRECTORY/server.pem\nssl_options.keyfile = DIRECTORY/server.key";
    let started =
        tokio::task::spawn_blocking(move || RabbitMq::is_there().then(|| RabbitMq::start_in(directory, config)));
    let Some(broker) = started.await.unwrap() else { return };
    let cage = |ca: &std::path::Path| {
        TestCage::new().module("amqp_handler", "interface_in").config(&format!(
            "[interfaces.in]\nprotocol = 'amqp'\nformat = 'raw'\nurl = 'amqps://guest:guest@localhost:{}/%2F'\n\
             tls = {{ ca = '{}' }}\nqueues.secret = {{}}",
            broker.tls_port(),
            ca.join("ca.pem").display()
        ))
    };
    let stranger = cage(other.path()).start().await;
    let log = stranger.logged("broker cannot be reached").await;
    assert!(log.contains("invalid peer certificate") && !log.contains("address=\"amqp"), "{log}");
    let serving = cage(broker.directory()).start().await;
    serving.logged("address=\"amqp").await;
    Peer::of(&broker).await.publish("", "secret", b"hush", BasicProperties::default()).await;
    serving.logged("message secret: hush").await;
    let protocols =
        tokio::task::spawn_blocking(move || broker.control(&["list_connections", "ssl", "client_properties"]));
    let protocols = protocols.await.unwrap();
    assert!(protocols.contains("true"), "{protocols}");
}

#[tokio::test(flavor = "multi_thread")]
async fn amqps_never_says_a_word_in_plain_text() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let first = tokio::task::spawn_blocking(move || {
        let mut first = [0];
        listener.accept().unwrap().0.read_exact(&mut first).unwrap();
        first[0]
    });
    let toml =
        format!("[interfaces.in]\nprotocol = 'amqp'\nurl = 'amqps://localhost:{}'\nqueues.q = {{}}", address.port());
    let _cage = TestCage::new().config(&toml).start().await;
    assert_eq!(first.await.unwrap(), 0x16, "the first byte is that of a TLS handshake");
}

/// A cage in a process of its own, which answers raw requests of queue `work`.
struct Process {
    root: TempDir,
    child: Option<Child>,
}

impl Process {
    fn new(broker: &RabbitMq) -> Self {
        let root = tempfile::tempdir().unwrap();
        let cage = root.path().join("killed");
        fs::create_dir_all(&cage).unwrap();
        fs::copy(guest("amqp_handler"), cage.join("interface_in.wasm")).unwrap();
        std::os::unix::fs::symlink(cache(), root.path().join(".cache")).unwrap();
        let toml = format!(
            "[interfaces.in]\nprotocol = 'amqp'\nformat = 'raw'\nurl = '{}'\nprefetch = 64\nqueues.work = {{ durable = true }}\n",
            broker.url()
        );
        fs::write(cage.join("cage.toml"), toml).unwrap();
        let mut process = Self { root, child: None };
        process.start();
        process
    }

    fn start(&mut self) {
        let mut command = Command::new(program());
        command.args(["secondary", "--root"]).arg(self.root.path()).args(["--lanes", "2", "--", "killed"]);
        command.env("WASMCAGE_RUNTIME_DIR", self.root.path().join(".run")).kill_on_drop(true);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.child = Some(child.unwrap());
    }

    async fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_cage_and_broker_are_killed() {
    let Some(broker) = broker("").await else { return };
    let messages = std::env::var("AMQP_MESSAGES").map_or(MESSAGES, |text| text.parse().unwrap());
    let peer = Peer::of(&broker).await;
    peer.queue("work", FieldTable::default()).await;
    peer.queue("results", FieldTable::default()).await;
    for number in 0..messages {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_reply_to("results".into())
            .with_correlation_id(number.to_string().into());
        let options = BasicPublishOptions::default();
        peer.channel.basic_publish("".into(), "work".into(), options, b"x", properties).await.unwrap();
    }
    peer.channel.wait_for_confirms().await.unwrap();
    let mut process = Process::new(&broker);
    let mut peer = peer;
    let mut broker = broker;
    let mut results: BTreeMap<String, usize> = BTreeMap::new();
    for blow in 0..4 {
        let enough = results.len() + messages / 8;
        while results.len() < enough {
            collect(&peer, &mut results).await;
        }
        if blow % 2 == 0 {
            process.kill().await;
            process.start();
        } else {
            broker.kill();
            broker = tokio::task::spawn_blocking(move || {
                broker.restart();
                broker
            })
            .await
            .unwrap();
            peer = Peer::of(&broker).await;
        }
    }
    while results.len() < messages {
        collect(&peer, &mut results).await;
    }
    let twice = results.values().filter(|count| **count > 1).count();
    println!("{messages} messages, {twice} of them answered more than once");
    // No bound is asserted: a broker that is killed has forgotten acknowledgements it took, the cage's and this test's own.
}

async fn collect(peer: &Peer, results: &mut BTreeMap<String, usize>) {
    match peer.take("results").await {
        Some(reply) => {
            let id = reply.properties.correlation_id().as_ref().unwrap().to_string();
            *results.entry(id).or_default() += 1;
        }
        None => tokio::time::sleep(Duration::from_millis(5)).await,
    }
}
