//! A broker that is not there, lets nobody in, takes no messages, or has something else than was declared: whoever waits learns
//! why in time, `ps` says so, and what is not concerned goes on.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde_json::json;
use wasmcage_core::request::Deadline;
use wasmcage_resource::ResourceError;
use wasmcage_tests::{Peer, RabbitMq, TestCage, eventually};

use super::life::{broker, restarted};
use super::messages::{BrokerFixture, news};
use super::resource::{operation, resource};

/// An operation on a resource with these keys, until this deadline; and how long it took.
pub(crate) async fn asked(keys: &str, deadline: Duration) -> (ResourceError, Duration) {
    let root = tempfile::tempdir().unwrap();
    let resource = resource(root.path(), keys);
    let (started, deadline) = (Instant::now(), Deadline::after(deadline));
    let error = match resource.connect(deadline).await {
        Err(error) => error,
        Ok(mut connection) => {
            let send = operation("command", "n", &[], json!({}));
            connection.execute_alone(send, &[], deadline).await.unwrap_err()
        }
    };
    (error, started.elapsed())
}

pub(crate) const EKS: &str = "eks = [{ exchange = 'trouble', key = 'k' }]";

/// Waiting would not help: the operation fails at once, with the broker's reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_whom_the_broker_does_not_let_in_is_told_at_once() {
    let broker = tokio::task::spawn_blocking(RabbitMq::shared).await.unwrap();
    let place = format!("host = '127.0.0.1'\nport = {}\n{EKS}", broker.port());
    for (keys, reason) in [("user = 'nobody'", "ACCESS_REFUSED"), ("vhost = 'nowhere'", "NOT_ALLOWED")] {
        let (error, took) = asked(&format!("{keys}\n{place}"), Duration::from_secs(300)).await;
        assert_eq!((error.code.as_str(), error.recoverable), ("connect", true), "{error}");
        assert!(error.text.contains(reason), "{error}");
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_is_told_of_a_broker_that_is_lost_or_blocked() {
    let broker = broker("").await;
    let cage = TestCage::new().module("amqp_handler", "interface_in").config(&format!(
        "[interfaces.in]\nprotocol = 'amqp'\nformat = 'raw'\nurl = '{}'\nqueues.life = {{ durable = true }}",
        broker.url()
    ));
    // The requests are there before the alarm, which holds up publishers, and are handled after it: the broker does not take
    // their replies.
    let peer = Peer::of(&broker).await;
    peer.queue("replies", FieldTable::default()).await;
    peer.queue("life", FieldTable::default()).await;
    for _ in 0..5 {
        let asking = BasicProperties::default().with_reply_to("replies".into());
        peer.publish("", "life", b"slow", asking).await;
    }
    let broker = controlled(broker, &["set_vm_memory_high_watermark", "0"]).await;
    let cage = cage.start().await;
    eventually("it is told", || news(&cage).filter(|news| news.contains("takes no messages now"))).await;
    let broker = controlled(broker, &["set_vm_memory_high_watermark", "absolute", "512MB"]).await;
    eventually("no trouble", || news(&cage).is_none().then_some(())).await;
    let broker = tokio::task::spawn_blocking(move || {
        broker.kill();
        broker
    });
    let broker = broker.await.unwrap();
    eventually("it is told", || news(&cage).filter(|news| news.contains(&broker.port().to_string()))).await;
    let _broker = restarted(broker).await;
    eventually("no trouble", || news(&cage).is_none().then_some(())).await;
    assert!(cage.stop().await);
}

async fn controlled(broker: RabbitMq, arguments: &'static [&'static str]) -> RabbitMq {
    let done = tokio::task::spawn_blocking(move || {
        broker.control(arguments);
        broker
    });
    done.await.unwrap()
}

/// The others of its interface are consumed, an operator is told, and it is consumed as soon as it is as declared.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_properties_keeps_no_other_queue_from_being_consumed() {
    let fixture = BrokerFixture::new().await;
    let odd = format!("odd-{}", fixture.queue);
    fixture.peer.queue(&odd, FieldTable::default()).await;
    let cage = fixture.start(&format!("format = 'raw'\nqueues.{odd} = {{ auto_delete = true }}")).await;
    let reply = fixture.peer.ask_raw(&fixture.exchange, "k", b"hello", BasicProperties::default()).await;
    assert_eq!(reply.data, b"hello");
    let told = eventually("it is told", || news(&cage)).await;
    assert!(told.contains(&format!("cannot declare queue {odd}")) && told.contains("durable"), "{told}");
    assert_eq!(cage.log().matches("the broker does not take a declaration").count(), 1, "{}", cage.log());
    fixture.peer.publish("", &odd, b"waits", BasicProperties::default()).await;
    fixture.peer.channel.queue_delete(odd.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    eventually("its turn", || news(&cage).is_none().then_some(())).await;
    fixture.peer.publish("", &odd, b"at last", BasicProperties::default()).await;
    cage.logged(&format!("message {odd}: at last")).await;
    assert!(cage.stop().await);
}

/// A queue that somebody else has for himself is consumed when he lets go, and the others all the while.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_be_consumed_disturbs_no_other() {
    let fixture = BrokerFixture::new().await;
    let taken = format!("taken-{}", fixture.queue);
    let other = Peer::of(&fixture.broker).await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    other.channel.queue_declare(taken.as_str().into(), exclusive, FieldTable::default()).await.unwrap();
    let cage = fixture.start(&format!("format = 'raw'\nqueues.{taken} = {{ exclusive = true }}")).await;
    let told = eventually("it is told", || news(&cage)).await;
    assert!(told.contains(&taken), "{told}");
    for number in 0..20 {
        let reply = fixture
            .peer
            .ask_raw(&fixture.exchange, "k", format!("{number}").as_bytes(), BasicProperties::default())
            .await;
        assert_eq!(reply.data, format!("{number}").as_bytes());
    }
    assert_eq!(cage.log().matches("address=\"amqp").count(), 1, "nothing began anew: {}", cage.log());
    drop(other);
    eventually("its turn", || news(&cage).is_none().then_some(())).await;
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_was_deleted_comes_back_with_its_bindings() {
    let fixture = BrokerFixture::new().await;
    let cage = fixture.start("format = 'raw'").await;
    let exchange = fixture.exchange.as_str();
    fixture.peer.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    let listed = || fixture.broker.control(&["list_bindings", "source_name"]);
    eventually("it is there again", || listed().lines().any(|line| line == exchange).then_some(())).await;
    let reply = fixture.peer.ask_raw(exchange, "k", b"hello", BasicProperties::default()).await;
    assert_eq!(reply.data, b"hello");
    assert_eq!(cage.log().matches("address=\"amqp").count(), 1, "nothing began anew: {}", cage.log());
    assert!(cage.stop().await);
}

/// What a consumer has in work is finished when another queue of its interface, or all of them, begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_in_work_are_finished_when_another_queue_is_deleted() {
    let fixture = BrokerFixture::new().await;
    let deleted = format!("deleted-{}", fixture.queue);
    let cage = fixture.start(&format!("format = 'raw'\nqueues.{deleted} = {{ durable = true }}")).await;
    for _ in 0..10 {
        fixture.send(b"slow", BasicProperties::default()).await;
    }
    eventually("work", || (cage.snapshot().cages[0].in_work > 0).then_some(())).await;
    fixture.peer.channel.queue_delete(deleted.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    cage.logged("was the queue deleted").await;
    eventually("all of them", || (cage.log().matches("message k: slow").count() >= 10).then_some(())).await;
    assert!(cage.stop().await);
    assert_eq!(fixture.peer.waiting(&fixture.queue).await, Some(0), "each was acknowledged once");
}
