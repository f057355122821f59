//! The contract of a protocol.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use std::net::TcpListener;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wasmcage_http::HttpProtocol;
use wasmcage_protocol::Protocol;
use wasmcage_test_util::contract::{Answer, NeedsOthers, Subject, Unavailable};
use wasmcage_test_util::{TestHost, TestInterface};

#[derive(Default)]
struct HttpSubject;

#[async_trait]
impl Subject for HttpSubject {
    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(HttpProtocol)
    }

    fn keys(&self, _: &TestHost) -> String {
        "listen = '127.0.0.1:0'".to_owned()
    }

    fn keys_at(&self, _: &TestHost, address: &str) -> String {
        format!("listen = '{}'", address.strip_prefix("http://").unwrap().trim_end_matches('/'))
    }

    async fn ask(&self, _: &TestHost, interface: &TestInterface) -> Answer {
        let mut client = TcpStream::connect(interface.address().await).await.unwrap();
        let request = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
        client.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A connection that is reset instead has brought no answer either.
        let _ = client.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        match answer.starts_with("HTTP/1.1 2") {
            true => {
                assert!(answer.ends_with("hello"), "{answer}");
                Answer::Done
            }
            false => Answer::NotDone,
        }
    }
}

#[async_trait]
impl NeedsOthers for HttpSubject {
    async fn unavailable(&self, _: &TestHost) -> Unavailable {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let keys = format!("listen = '{}'", other.local_addr().unwrap());
        Unavailable { keys, text: "cannot listen", kept: Box::new(other) }
    }
}

wasmcage_test_util::contract!(HttpSubject, needs others);
