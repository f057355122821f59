//! Peers that mean harm, or that are broken: raw bytes over real connections. None of them may take memory, time or the
//! place of others.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zmtp::codec::{Greeting, MechanismName};
use zmtp::{Bytes, DisconnectReason, Endpoint, Event, Events, Heartbeat, Identity, Limits, Message, Options, Socket};

const PING: &[u8] = b"\x04\x07\x04PING\0\0";

fn greeting() -> Vec<u8> {
    Greeting::new(MechanismName::NULL, false).to_bytes().to_vec()
}

/// READY of a peer of this type, with this identity.
fn ready(socket_type: &str, identity: &[u8]) -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend((socket_type.len() as u32).to_be_bytes());
    body.extend(socket_type.as_bytes());
    body.extend(b"\x08Identity");
    body.extend((identity.len() as u32).to_be_bytes());
    body.extend(identity);
    let mut frame = vec![6];
    frame.extend((body.len() as u64).to_be_bytes());
    frame.extend(body);
    frame
}

/// A socket with these limits, bound, and its events.
async fn bound(new: fn(Options) -> Socket, limits: Limits) -> (Socket, Events, Endpoint) {
    let options = Options { limits, ..Options::default() };
    let socket = new(options);
    let events = socket.events();
    let endpoint = socket.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    (socket, events, endpoint)
}

async fn raw(endpoint: &Endpoint) -> TcpStream {
    let Endpoint::Tcp { host, port } = endpoint else { panic!("{endpoint}") };
    TcpStream::connect((host.as_str(), *port)).await.unwrap()
}

/// A raw connection whose handshake is complete.
async fn greeted(endpoint: &Endpoint, socket_type: &str) -> TcpStream {
    let mut stream = raw(endpoint).await;
    stream.write_all(&[greeting(), ready(socket_type, b"")].concat()).await.unwrap();
    let mut answer = vec![0; 64 + 2];
    stream.read_exact(&mut answer).await.unwrap();
    let mut rest = vec![0; usize::from(answer[65])];
    stream.read_exact(&mut rest).await.unwrap();
    assert!(rest.starts_with(b"\x05READY"));
    stream
}

async fn next<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(events.recv().await.expect("the socket is open")) {
            return found;
        }
    }
}

async fn disconnected(events: &mut Events) -> DisconnectReason {
    next(events, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

async fn failed(events: &mut Events) -> DisconnectReason {
    next(events, |event| match event {
        Event::HandshakeFailed { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

/// The socket still serves others.
async fn serves(router: &mut Socket, endpoint: &Endpoint) {
    let mut dealer = Socket::dealer(Options::default());
    dealer.connect(endpoint).unwrap();
    dealer.send("alive?").await.unwrap();
    let (identity, message) = loop {
        let received = router.recv_from().await.unwrap();
        if received.1 == Message::from("alive?") {
            break received;
        }
    };
    router.send_to(identity.as_bytes(), message).await.unwrap();
    assert_eq!(dealer.recv().await.unwrap(), Message::from("alive?"));
}

/// Writes until the other side has closed, and returns how much that was.
async fn write_until_closed(stream: &mut TcpStream, piece: &[u8], max: usize) -> usize {
    let mut written = 0;
    while written < max {
        if stream.write_all(piece).await.is_err() {
            return written;
        }
        written += piece.len();
    }
    panic!("{max} bytes were taken");
}

async fn read_to_close(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = stream.read_to_end(&mut rest).await;
}

/// In one library, nine bytes ended the process: it allocated what the header announced.
#[tokio::test]
async fn a_header_that_announces_too_much_ends_the_connection() {
    let (mut router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    for bits in [35, 40, 50, 62, 63] {
        for flags in [2, 3, 6] {
            let mut stream = greeted(&endpoint, "DEALER").await;
            let mut header = vec![flags];
            header.extend((1_u64 << bits).to_be_bytes());
            stream.write_all(&header).await.unwrap();
            assert!(matches!(disconnected(&mut events).await, DisconnectReason::Protocol(_)));
            read_to_close(&mut stream).await;
        }
    }
    serves(&mut router, &endpoint).await;
}

/// The limit is one of messages, not of frames: libzmq takes 300 MB in frames below its limit.
#[tokio::test]
async fn frames_without_end_are_not_collected() {
    let (mut router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    let mut frame = vec![3, 0, 0, 0, 0, 0, 16, 0, 0];
    frame.resize(9 + (1 << 20), 0);
    let written = write_until_closed(&mut stream, &frame, 300 << 20).await;
    assert!(written < 64 << 20, "{written}");
    assert_eq!(disconnected(&mut events).await.to_string(), "a message of more than 8388608 bytes came");
    serves(&mut router, &endpoint).await;
}

/// 38 MB of empty frames became 600 MB elsewhere, and stayed.
#[tokio::test]
async fn empty_frames_without_end_are_not_collected() {
    let (mut router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    write_until_closed(&mut stream, &b"\x01\0".repeat(10_000), 38 << 20).await;
    assert_eq!(disconnected(&mut events).await.to_string(), "a message of more than 64 frames came");
    serves(&mut router, &endpoint).await;
}

/// Peers that connect and say nothing neither stay for ever nor keep others out meanwhile.
#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let (mut router, _, endpoint) = bound(Socket::router, Limits { handshakes_max: 16, ..Limits::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(raw(&endpoint).await);
    }
    serves(&mut router, &endpoint).await;
    for number in 0..100 {
        silent.push(raw(&endpoint).await);
        if number % 20 == 0 {
            serves(&mut router, &endpoint).await;
        }
    }
    let failures = router.counters().handshakes_failed;
    assert!(failures >= 200 - 16 - 10, "the oldest gave way: {failures}");
}

#[tokio::test]
async fn silent_connections_end_with_the_time_for_handshakes() {
    let limits = Limits { handshake_timeout: Duration::from_millis(50), ..Limits::default() };
    let (_router, mut events, endpoint) = bound(Socket::router, limits).await;
    // At each stage: nothing, a part of the greeting, the greeting, a part of READY.
    let said = [greeting(), ready("DEALER", b"")].concat();
    for len in [0, 1, 11, 64, 70] {
        let mut stream = raw(&endpoint).await;
        stream.write_all(&said[..len]).await.unwrap();
        assert!(matches!(failed(&mut events).await, DisconnectReason::HandshakeTimeout));
        read_to_close(&mut stream).await;
    }
}

#[tokio::test]
async fn there_are_no_more_connections_than_allowed() {
    let (router, mut events, endpoint) =
        bound(Socket::router, Limits { connections_max: 3, ..Limits::default() }).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(greeted(&endpoint, "DEALER").await);
    }
    let mut refused = raw(&endpoint).await;
    assert!(matches!(failed(&mut events).await, DisconnectReason::TooManyConnections));
    read_to_close(&mut refused).await;
    assert_eq!(router.counters().refused, 1);
    drop(kept.pop());
    disconnected(&mut events).await;
    greeted(&endpoint, "DEALER").await;
}

#[tokio::test]
async fn garbage_ends_its_own_connection_only() {
    let (mut router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    let long_identity = [greeting(), ready("DEALER", &[1; 256])].concat();
    let no_type = [greeting(), b"\x04\x06\x05READY".to_vec()].concat();
    let message_first = [greeting(), b"\0\x01x".to_vec()].concat();
    let unknown_command = [greeting(), b"\x04\x07\x06FRIEND".to_vec()].concat();
    let odd_type = [greeting(), ready("STREAM", b"")].concat();
    let wrong_type = [greeting(), ready("SUB", b"")].concat();
    let refusal = [greeting(), b"\x04\x0a\x05ERROR\x03400".to_vec()].concat();
    let huge_command = [greeting(), b"\x06\0\0\0\0\0\x10\0\0".to_vec()].concat();
    let cases: [(&[u8], &str); 12] = [
        (b"GET / HTTP/1.1\r\n\r\n", "the peer does not speak ZMTP"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "the peer does not speak ZMTP"),
        (b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x05", "the peer speaks ZMTP 1"),
        (b"\x05\0hello", "the peer does not speak ZMTP"),
        (&long_identity, "the command READY is malformed"),
        (&no_type, "the peer's socket type \"\" is not known"),
        (&message_first, "a message came where a command of the handshake was due"),
        (&unknown_command, "FRIEND came where READY was due"),
        (&odd_type, "the peer's socket type \"STREAM\" is not known"),
        (&wrong_type, "a SUB peer cannot be connected to a ROUTER socket"),
        (&refusal, "the peer refused: \"400\""),
        (&huge_command, "a command of 1048576 bytes came"),
    ];
    for (bytes, expected) in cases {
        let mut stream = raw(&endpoint).await;
        stream.write_all(bytes).await.unwrap();
        let reason = failed(&mut events).await.to_string();
        assert!(reason.starts_with(expected), "{reason}");
        drop(stream);
    }
    serves(&mut router, &endpoint).await;
}

/// A peer that is refused learns why (RFC 37, "The Socket-Type Property").
#[tokio::test]
async fn who_is_refused_is_told() {
    let (_router, _, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = raw(&endpoint).await;
    stream.write_all(&[greeting(), ready("SUB", b"")].concat()).await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    let text = String::from_utf8_lossy(&said[64..]);
    assert!(text.contains("ERROR") && text.contains("socket-type-SUB-cannot-connect-to-ROUTER"), "{text}");
}

/// One library made a new connection for each PING.
#[tokio::test]
async fn pings_are_answered_and_change_nothing() {
    let (mut router, _, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    for context in [&b""[..], b"x", b"0123456789abcdef"] {
        let mut ping = vec![4, 7 + context.len() as u8];
        ping.extend(b"\x04PING\0\0");
        ping.extend(context);
        stream.write_all(&ping).await.unwrap();
        let mut pong = vec![0; 7 + context.len()];
        stream.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, [&[4, 5 + context.len() as u8], &b"\x04PONG"[..], context].concat());
    }
    stream.write_all(b"\0\x01x").await.unwrap();
    assert_eq!(router.recv_from().await.unwrap().1, Message::from("x"));
    assert_eq!(router.counters().disconnected, 0);
}

#[tokio::test]
async fn pings_of_a_peer_that_does_not_read_are_dropped() {
    let (mut router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    for _ in 0..200 {
        stream.write_all(&PING.repeat(10_000)).await.unwrap();
    }
    stream.write_all(b"\0\x01x").await.unwrap();
    assert_eq!(router.recv_from().await.unwrap().1, Message::from("x"));
    drop(stream);
    disconnected(&mut events).await;
    let sent = router.counters().bytes_sent;
    assert!(sent < 20 << 20, "{sent}");
}

/// RFC 37, "Connection Heartbeating": after the time to live of its PING a peer wants to be disconnected.
#[tokio::test]
async fn a_peer_that_is_silent_longer_than_it_said_is_disconnected() {
    let (_router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    stream.write_all(b"\x04\x07\x04PING\0\x01").await.unwrap();
    assert!(matches!(disconnected(&mut events).await, DisconnectReason::Silent));
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_disconnected() {
    let options = Options { heartbeat: Some(Heartbeat::every(Duration::from_millis(20))), ..Options::default() };
    let router = Socket::router(options);
    let mut events = router.events();
    let endpoint = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut stream = greeted(&endpoint, "DEALER").await;
    assert!(matches!(disconnected(&mut events).await, DisconnectReason::Silent));
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(
        said, b"\x04\x07\x04PING\0\x01",
        "one PING with a time to live, and no further one while it was not answered"
    );
}

#[tokio::test]
async fn subscriptions_without_end_end_the_connection() {
    let limits = Limits { subscriptions_max: 1000, subscription_bytes_max: 100_000, ..Limits::default() };
    let (_publisher, mut events, endpoint) = bound(Socket::publisher, limits).await;
    for len in [4, 200] {
        let mut stream = greeted(&endpoint, "SUB").await;
        let mut many = Vec::new();
        for number in 0..1001_u32 {
            many.extend([4, 10 + len]);
            many.extend(b"\x09SUBSCRIBE");
            many.extend(number.to_be_bytes());
            many.resize(many.len() + usize::from(len) - 4, 0);
        }
        // It may be closed before everything is written.
        let _ = stream.write_all(&many).await;
        assert!(matches!(disconnected(&mut events).await, DisconnectReason::TooManySubscriptions));
    }
}

/// What a subscriber sends besides is thrown away, and cancelling what was not subscribed has no effect.
#[tokio::test]
async fn a_publisher_has_no_use_for_other_messages() {
    let (publisher, _, endpoint) = bound(Socket::publisher, Limits::default()).await;
    let mut stream = greeted(&endpoint, "SUB").await;
    stream.write_all(b"\0\x05other\x04\x08\x06CANCELx\0\x02\0x\x01\x01\x01\0\0\0\x02\x01a").await.unwrap();
    let mut received = [0; 3];
    loop {
        publisher.send("a").await.unwrap();
        if tokio::time::timeout(Duration::from_millis(20), stream.read_exact(&mut received)).await.is_ok() {
            break;
        }
    }
    assert_eq!(&received, b"\0\x01a");
    assert_eq!(publisher.counters().discarded, 2);
}

/// The queue of a peer has a bound, and reading stops there. Others are read from meanwhile.
#[tokio::test]
async fn a_flood_fills_its_own_queue_only() {
    let limits = Limits { receive_messages_max: 100, ..Limits::default() };
    let (mut router, _, endpoint) = bound(Socket::router, limits).await;
    let mut flood = greeted(&endpoint, "DEALER").await;
    let flooding = tokio::spawn(async move {
        // Until the connection is closed.
        while flood.write_all(&b"\0\x05flood".repeat(1000)).await.is_ok() {}
    });
    while router.counters().messages_received < 100 {
        tokio::task::yield_now().await;
    }
    let dealer = Socket::dealer(Options::default());
    dealer.connect(&endpoint).unwrap();
    dealer.send("quiet").await.unwrap();
    while router.counters().messages_received < 101 {
        tokio::task::yield_now().await;
    }
    // Nothing more came of the flood than may wait, though nobody receives.
    assert_eq!(router.counters().messages_received, 101);
    let mut turns = 0;
    while router.recv_from().await.unwrap().1 != Message::from("quiet") {
        turns += 1;
    }
    assert!(turns <= 16, "{turns} messages of the flood came first");
    router.close().await;
    flooding.await.unwrap();
}

/// A peer whose identity would be one that a ROUTER makes does not get it.
#[tokio::test]
async fn an_identity_that_starts_with_zero_is_not_taken() {
    let (mut router, _, endpoint) = bound(Socket::router, Limits::default()).await;
    for identity in [&b"\0\0\0\0\x01"[..], b"\0", b""] {
        let mut stream = raw(&endpoint).await;
        stream.write_all(&[greeting(), ready("DEALER", identity), b"\0\x01x".to_vec()].concat()).await.unwrap();
        let (made, _) = router.recv_from().await.unwrap();
        assert!(made.is_generated() && made.as_bytes() != identity, "{made}");
        assert_eq!(made.as_bytes().len(), 5);
    }
}

/// A message that is cut off is none, and what came before it is delivered.
#[tokio::test]
async fn a_message_is_received_whole_or_not_at_all() {
    let (mut router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    stream.write_all(b"\0\x05whole\x01\x04half\0\x05never").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(router.recv_from().await.unwrap().1, Message::from("whole"));
    assert_eq!(router.recv_from().await.unwrap().1, Message::from(["half", "never"]));
    disconnected(&mut events).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    stream.write_all(b"\x01\x04half\0\x05nev").await.unwrap();
    stream.shutdown().await.unwrap();
    disconnected(&mut events).await;
    serves(&mut router, &endpoint).await;
    assert_eq!(router.counters().messages_received, 3);
}

/// A server that closes each connection after its handshake is not called again and again without a pause.
#[tokio::test]
async fn a_server_that_hangs_up_is_called_at_growing_intervals() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::from(listener.local_addr().unwrap());
    let dealer = Socket::dealer(Options::default());
    let mut events = dealer.events();
    dealer.connect(&endpoint).unwrap();
    for expected in [1, 2] {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[greeting(), ready("ROUTER", b"")].concat()).await.unwrap();
        next(&mut events, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
        drop(stream);
        let (failures, pause) = next(&mut events, |event| match event {
            Event::Retry { failures, pause, .. } => Some((failures, pause.unwrap())),
            _ => None,
        })
        .await;
        assert_eq!(failures, expected);
        assert_eq!(pause.is_zero(), expected == 1);
    }
}

/// Bytes of a large frame that trickle in cost what has come, and the connection takes the frame in the end.
#[tokio::test]
async fn a_large_frame_may_come_in_pieces() {
    let (mut router, _, endpoint) = bound(Socket::router, Limits::default()).await;
    let mut stream = greeted(&endpoint, "DEALER").await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    let mut frame = vec![2];
    frame.extend((body.len() as u64).to_be_bytes());
    frame.extend(&body);
    let writing = tokio::spawn(async move {
        for piece in frame.chunks(70_001) {
            stream.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        stream
    });
    assert_eq!(router.recv_from().await.unwrap().1, Message::from(Bytes::from(body)));
    writing.await.unwrap();
}

#[tokio::test]
async fn an_identity_can_be_closed_by_the_application() {
    let (router, mut events, endpoint) = bound(Socket::router, Limits::default()).await;
    let options = Options { identity: Some(Identity::new("one").unwrap()), ..Options::default() };
    let dealer = Socket::dealer(options);
    dealer.connect(&endpoint).unwrap();
    next(&mut events, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
    assert!(router.sender().has_peer(b"one") && !router.sender().has_peer(b"two"));
    assert!(router.sender().close_peer(b"one"));
    assert!(!router.sender().close_peer(b"two"));
    assert!(matches!(disconnected(&mut events).await, DisconnectReason::ClosedHere));
}
