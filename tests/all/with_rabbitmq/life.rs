//! Brokers that go and come back, cages that stop or are killed, TLS: what is in work is finished, what is not acknowledged
//! comes again, and nothing else does.

use std::fs;

use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;
use lapin::types::FieldTable;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use wasmcage_tests::{Peer, RabbitMq, TestCage, eventually};

fn cage(broker: &RabbitMq, keys: &str) -> TestCage {
    let toml = format!("[interfaces.in]\nprotocol = 'amqp'\nformat = 'raw'\nurl = '{}'\n{keys}", broker.url());
    TestCage::new().module("amqp_handler", "interface_in").config(&toml)
}

pub async fn broker(config: &'static str) -> RabbitMq {
    tokio::task::spawn_blocking(|| RabbitMq::start(config)).await.unwrap()
}

pub async fn restarted(broker: RabbitMq) -> RabbitMq {
    broker.kill();
    let restarted = tokio::task::spawn_blocking(move || {
        broker.restart();
        broker
    });
    restarted.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn consuming_goes_on_after_the_broker_came_back_and_after_its_queue_was_deleted() {
    let broker = broker("").await;
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
    let broker = restarted(broker).await;
    cage.logged("broker lost").await;
    eventually("the queue once more", || (cage.log().matches("address=\"amqp").count() > 2).then_some(())).await;
    Peer::of(&broker).await.publish("", "life", b"third", persistent).await;
    cage.logged("message life: third").await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cage_that_stops_finishes_what_it_has_and_leaves_the_rest_in_the_queue() {
    let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
    let peer = Peer::of(&broker).await;
    let queue = format!("drain-{}", std::process::id());
    peer.queue(&queue, FieldTable::default()).await;
    for _ in 0..20 {
        peer.publish("", &queue, b"slow", BasicProperties::default()).await;
    }
    let mut cage = cage(&broker, &format!("prefetch = 2\nqueues.{queue} = {{ durable = true }}")).start().await;
    eventually("work", || (cage.snapshot().cages[0].in_work == 2).then_some(())).await;
    assert!(cage.end().await, "nothing had to be cut off");
    let mut left = 0;
    while let Some(delivery) = peer.take(&queue).await {
        assert_eq!(
            (&*delivery.data, delivery.redelivered),
            (&b"slow"[..], false),
            "it was given back before its work began"
        );
        left += 1;
    }
    // The messages in work are done; each message is either done or in the queue.
    let done = || cage.log().matches(&format!("message {queue}: slow")).count();
    eventually("what was in work", || (done() + left >= 20).then_some(())).await;
    assert_eq!((done() >= 2, left > 0, done() + left), (true, true, 20), "{left} left, {} done", done());
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
    let started = tokio::task::spawn_blocking(move || RabbitMq::start_in(directory, config));
    let broker = started.await.unwrap();
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
async fn a_broker_without_room_holds_up_who_publishes_and_not_who_consumes() {
    let broker = broker("").await;
    let peer = Peer::of(&broker).await;
    peer.queue("life", FieldTable::default()).await;
    let cage = cage(&broker, "queues.life = { durable = true }").module("amqp_sender", "interface_web").http("web");
    let cage = cage.config(&format!(
        "[modules.interface_web]\nallow = {{ resources = ['out'] }}\n[resources.out]\nprotocol = 'amqp'\nurl = '{}'\n\
         timeout_ms = 1_000\nmandatory = false\neks = [{{ exchange = 'sent', key = 'k' }}]",
        broker.url()
    ));
    let cage = cage.start().await;
    cage.logged("address=\"amqp").await;
    assert_eq!(cage.client("web").get("/command?text=before").await.status, 204);
    for _ in 0..200 {
        peer.publish("", "life", b"slow", BasicProperties::default()).await;
    }
    let control = async |broker: RabbitMq, limit: &'static [&'static str]| {
        let done = tokio::task::spawn_blocking(move || {
            broker.control(&[&["set_vm_memory_high_watermark"], limit].concat());
            broker
        });
        done.await.unwrap()
    };
    let broker = control(broker, &["0"]).await;
    for _ in 0..3 {
        assert_eq!(cage.client("web").get("/command?text=during").await.status, 500);
    }
    let log = cage.log();
    let told = log.lines().filter(|line| line.contains("WRN [web] request failed"));
    assert_eq!(told.filter(|line| line.contains("takes no messages now: low on memory")).count(), 3, "{log}");
    let handled = || cage.log().matches("message life: slow").count();
    let seen = handled();
    eventually("consuming meanwhile", || (handled() > seen).then_some(())).await;
    let broker = control(broker, &["absolute", "512MB"]).await;
    cage.logged("broker takes messages again").await;
    assert_eq!(cage.client("web").get("/command?text=after").await.status, 204);
    assert_eq!(cage.log().matches("broker takes no messages broker=").count(), 1, "{}", cage.log());
    eventually("all of them", || (handled() >= 200).then_some(())).await;
    assert!(cage.stop().await);
    assert_eq!(Peer::of(&broker).await.waiting("life").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_noticed_and_nothing_is_lost() {
    let broker = broker("").await;
    let cage = cage(&broker, "heartbeat_s = 1\nprefetch = 4\nqueues.life = { durable = true }").start().await;
    cage.logged("address=\"amqp").await;
    let peer = Peer::of(&broker).await;
    for _ in 0..40 {
        peer.publish("", "life", b"slow", BasicProperties::default()).await;
    }
    cage.logged("message life: slow").await;
    broker.pause();
    // Its sockets are open all the while.
    cage.logged("consuming begins anew").await;
    assert!(cage.log().contains("no heartbeat received"), "{}", cage.log());
    assert!(cage.log().matches("message life: slow").count() < 40);
    broker.resume();
    eventually("all of them", || (cage.log().matches("message life: slow").count() >= 40).then_some(())).await;
    assert!(cage.stop().await);
    assert_eq!(peer.waiting("life").await, Some(0));
}
