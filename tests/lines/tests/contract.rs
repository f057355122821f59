//! The contract of a protocol, kept by one that is written outside of the host.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use std::net::TcpListener;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use wasmcage_lines::Lines;
use wasmcage_protocol::Protocol;
use wasmcage_test_util::contract::{Answer, NeedsOthers, Subject, Unavailable};
use wasmcage_test_util::{TestHost, TestInterface};

#[derive(Default)]
struct LinesSubject;

#[async_trait]
impl Subject for LinesSubject {
    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(Lines)
    }

    fn keys(&self, _: &TestHost) -> String {
        "listen = '127.0.0.1:0'".to_owned()
    }

    fn keys_at(&self, _: &TestHost, address: &str) -> String {
        format!("listen = '{}'", address.strip_prefix("lines://").unwrap())
    }

    async fn ask(&self, _: &TestHost, interface: &TestInterface) -> Answer {
        let mut client = BufReader::new(TcpStream::connect(interface.address().await).await.unwrap());
        client.write_all(b"hello\n").await.unwrap();
        let mut line = String::new();
        // A connection that is reset instead has brought no answer either.
        let _ = client.read_line(&mut line).await;
        if line == "hello\n" { Answer::Done } else { Answer::NotDone }
    }
}

#[async_trait]
impl NeedsOthers for LinesSubject {
    async fn unavailable(&self, _: &TestHost) -> Unavailable {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let keys = format!("listen = '{}'", other.local_addr().unwrap());
        Unavailable { keys, text: "cannot listen", kept: Box::new(other) }
    }
}

wasmcage_test_util::contract!(LinesSubject, needs others);
