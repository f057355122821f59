//! A peer that speaks AMQP by hand, and sends what no client library would: names and properties that are no text.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::RabbitMq;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// One channel of one connection.
pub struct RawPeer(TcpStream);

impl RawPeer {
    pub fn of(broker: &RabbitMq) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", broker.port())).expect("the broker listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut peer = Self(stream);
        peer.0.write_all(b"AMQP\0\0\x09\x01").expect("a greeting");
        peer.until([0, 10, 0, 10]);
        let start_ok =
            [&[0, 10, 0, 11, 0, 0, 0, 0][..], &short(b"PLAIN"), &[0, 0, 0, 12], b"\0guest\0guest", &short(b"en_US")];
        peer.send(METHOD, 0, &start_ok.concat());
        let tune = peer.until([0, 10, 0, 30]);
        peer.send(METHOD, 0, &[&[0, 10, 0, 31][..], &tune[4..10], &[0, 0]].concat());
        peer.send(METHOD, 0, &[&[0, 10, 0, 40][..], &short(b"/"), &[0, 0]].concat());
        peer.until([0, 10, 0, 41]);
        peer.send(METHOD, 1, &[0, 20, 0, 10, 0]);
        peer.until([0, 20, 0, 11]);
        peer.send(METHOD, 1, &[0, 85, 0, 10, 0]);
        peer.until([0, 85, 0, 11]);
        peer
    }

    /// Publishes with these properties, flags first, as they are; whether the broker took it.
    pub fn publish(&mut self, exchange: &[u8], key: &[u8], properties: &[u8], body: &[u8]) -> bool {
        let publish = [&[0, 60, 0, 40, 0, 0][..], &short(exchange), &short(key), &[0]].concat();
        self.send(METHOD, 1, &publish);
        self.send(HEADER, 1, &[&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes(), properties].concat());
        if !body.is_empty() {
            self.send(BODY, 1, body);
        }
        // basic.ack, or the channel or connection is closed.
        self.next_method()[..4] == [0, 60, 0, 80]
    }

    fn send(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let size = (payload.len() as u32).to_be_bytes();
        let frame = [&[kind, 0, channel][..], &size, payload, &[0xce]].concat();
        self.0.write_all(&frame).expect("the broker reads");
    }

    fn until(&mut self, method: [u8; 4]) -> Vec<u8> {
        loop {
            let payload = self.next_method();
            if payload[..4] == method {
                return payload;
            }
            assert!(payload[..4] != [0, 10, 0, 50], "the broker hangs up: {}", String::from_utf8_lossy(&payload));
        }
    }

    fn next_method(&mut self) -> Vec<u8> {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).expect("the broker answers");
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut payload = vec![0; size + 1];
            self.0.read_exact(&mut payload).expect("a whole frame");
            if head[0] == METHOD {
                return payload;
            }
        }
    }
}

/// AMQP's short string: a byte for the length, and at most 255 bytes of text.
fn short(text: &[u8]) -> Vec<u8> {
    let size = u8::try_from(text.len()).expect("a short text");
    [&[size][..], text].concat()
}
