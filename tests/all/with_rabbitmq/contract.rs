//! The contract of a protocol, kept by `amqp`. A message is asked for as an rpc, and acknowledged by its result.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OnceCell;
use wasmcage_amqp::AmqpProtocol;
use wasmcage_protocol::Protocol;
use wasmcage_test_util::contract::{Answer, NeedsOthers, Subject, Unavailable};
use wasmcage_test_util::{TestHost, TestInterface};
use wasmcage_tests::{Peer, RabbitMq, unique_name};

struct AmqpSubject {
    broker: Arc<RabbitMq>,
    peer: OnceCell<Peer>,
    exchange: String,
    queue: String,
}

impl Default for AmqpSubject {
    fn default() -> Self {
        // It starts the broker if nobody has, which blocks.
        let broker = std::thread::spawn(RabbitMq::shared).join().unwrap();
        let unique = |prefix: &str| format!("{}-{}", unique_name(prefix), std::process::id());
        Self { broker, peer: OnceCell::new(), exchange: unique("exchange"), queue: unique("queue") }
    }
}

impl AmqpSubject {
    fn keys_for(&self, url: &str) -> String {
        let Self { exchange, queue, .. } = self;
        format!("url = '{url}'\nbindings = [{{ exchange = '{exchange}', queue = '{queue}', key = 'k' }}]")
    }
}

/// Lets connections through to the broker from when it is dropped on.
struct OpenOnDrop(Arc<AtomicBool>);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Subject for AmqpSubject {
    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(AmqpProtocol)
    }

    fn keys(&self, _: &TestHost) -> String {
        self.keys_for(&self.broker.url())
    }

    fn keeps_requests(&self) -> bool {
        true
    }

    async fn ask(&self, host: &TestHost, interface: &TestInterface) -> Answer {
        let peer = self.peer.get_or_init(|| Peer::of(&self.broker)).await;
        if !interface.drain.begun() {
            interface.address().await;
        }
        let name = unique_name("ask");
        let without_module = host.dispatch.without_module();
        // Once it is delivered again, it was not acknowledged before.
        let redelivered = async {
            while host.dispatch.begun_with(&name) < 2 && host.dispatch.without_module() < without_module + 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            (content, _) = peer.ask(&self.exchange, "k", "echo", json!({"a": name})) => match &content["type"] {
                kind if kind == "success" => Answer::Done,
                _ => Answer::NotDone,
            },
            () = redelivered => Answer::NotDone,
        }
    }
}

#[async_trait]
impl NeedsOthers for AmqpSubject {
    async fn unavailable(&self, _: &TestHost) -> Unavailable {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, broker) = (listener.local_addr().unwrap().port(), self.broker.port());
        let open = Arc::<AtomicBool>::default();
        let is_open = open.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if is_open.load(Ordering::Relaxed) {
                    let mut server = TcpStream::connect(("127.0.0.1", broker)).await.unwrap();
                    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
                }
            }
        });
        let url = self.broker.url().replace(&format!(":{broker}"), &format!(":{port}"));
        Unavailable { keys: self.keys_for(&url), text: "amqp://", kept: Box::new(OpenOnDrop(open)) }
    }
}

wasmcage_test_util::contract!(AmqpSubject, needs others);
