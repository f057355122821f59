//! Connections that break at any moment, many at once: what arrives is right, whoever waits goes on, and nothing is left
//! behind.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use zmtp::{
    AllowedKeys, Bytes, DuplicateIdentity, Endpoint, Heartbeat, Identity, KeyPair, Limits, Message, Options,
    ReceiveError, Reconnect, Security, SendErrorReason, Socket,
};

/// How long it lasts: half a second, or what `ZMTP_FUZZ_SECONDS` says.
fn time() -> Duration {
    let seconds =
        std::env::var("ZMTP_FUZZ_SECONDS").ok().map(|text| text.parse().expect("ZMTP_FUZZ_SECONDS is a number"));
    seconds.map_or(Duration::from_millis(500), Duration::from_secs)
}

/// A line between client and server that is cut after a random time.
async fn bad_line(server: Endpoint) -> Endpoint {
    let Endpoint::Tcp { host, port } = server else { panic!("{server}") };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().into();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let Ok(mut far) = TcpStream::connect((host.as_str(), port)).await else { continue };
            tokio::spawn(async move {
                let until_cut = Duration::from_micros(fastrand::u64(0..60_000));
                let _ = tokio::time::timeout(until_cut, copy_bidirectional(&mut near, &mut far)).await;
                if fastrand::bool() {
                    // A reset instead of an end.
                    let _ = near.set_zero_linger();
                }
            });
        }
    });
    endpoint
}

fn options(security: Security) -> Options {
    let soon = Duration::from_millis(1);
    Options {
        security,
        reconnect: Reconnect { first: soon, second: soon, max: soon, refused: Some(soon), ..Reconnect::default() },
        heartbeat: Some(Heartbeat { interval: Duration::from_millis(3), ..Heartbeat::every(Duration::from_secs(10)) }),
        duplicate_identity: DuplicateIdentity::HandOver,
        limits: Limits { send_messages_max: 8, receive_messages_max: 8, ..Limits::default() },
        linger: Duration::from_millis(50),
        ..Options::default()
    }
}

fn body(number: u64) -> Bytes {
    let size = *[0, 1, 300, 5000, 100_000].get(number as usize % 5).unwrap();
    vec![number as u8; size].into()
}

/// Requests are replied to with what they asked for, or known to be lost, under any breaks.
async fn requests_survive(server: Security, client: Security) {
    let mut router = Socket::router(options(server));
    let bound = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (router_tx, mut router_rx) = std::mem::replace(&mut router, Socket::router(Options::default())).split();
    let serving = tokio::spawn({
        let sender = router_tx.clone();
        async move {
            loop {
                match router_rx.recv_from().await {
                    Ok((identity, message)) => match sender.try_send_to(identity.as_bytes(), message) {
                        Ok(()) => {}
                        Err(error) => {
                            assert!(
                                [SendErrorReason::Unroutable, SendErrorReason::Full, SendErrorReason::Closed]
                                    .contains(&error.reason)
                            );
                        }
                    },
                    Err(error) => return assert_eq!(error, ReceiveError::Closed),
                }
            }
        }
    });
    let until = Instant::now() + time();
    let replies = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for number in 0..6 {
        let line = bad_line(bound.clone()).await;
        let mut options = options(client.clone());
        let named = number % 2 == 0;
        if named {
            options.identity = Some(Identity::new(format!("client-{number}")).unwrap());
        }
        let replies = replies.clone();
        clients.push(tokio::spawn(async move {
            let mut req = Socket::req(options);
            req.connect(&line).unwrap();
            let mut next = fastrand::u64(..1000);
            while Instant::now() < until {
                next += 1;
                let request = Message::from([Bytes::copy_from_slice(&next.to_be_bytes()), body(next)]);
                req.send(request.clone()).await.unwrap();
                match req.recv().await {
                    Ok(reply) if reply == request => {
                        replies.fetch_add(1, Ordering::Relaxed);
                    }
                    // A reply to a name goes to whatever connection has the name by then: it may be that to a request which
                    // was lost.
                    Ok(reply) => {
                        let asked = u64::from_be_bytes(reply[0][..].try_into().unwrap());
                        assert!(named && asked < next && reply[1] == body(asked), "{asked} came for {next}");
                    }
                    Err(error) => assert_eq!(error, ReceiveError::PeerLost),
                }
            }
            let counters = req.counters();
            req.close().await;
            assert_eq!(counters.panics, 0);
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    // A reply may be lost by a full queue of 8, but a REQ has one request at a time.
    let counters = router_tx.counters();
    assert_eq!(counters.full, 0);
    router_tx.close().await;
    serving.await.unwrap();
    let counters = router_tx.counters();
    assert_eq!((counters.connected, counters.panics), (counters.disconnected, 0));
    assert!((0..6).all(|number| !router_tx.has_peer(format!("client-{number}").as_bytes())));
    assert!(replies.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_survive_broken_connections() {
    requests_survive(Security::null(), Security::null()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_survive_broken_encrypted_connections() {
    let keys = KeyPair::generate();
    let client = Security::curve_client(keys.public(), KeyPair::generate());
    requests_survive(Security::curve_server(keys, AllowedKeys::Any), client).await;
}

/// What one PUSH sends arrives at most once, and whole (RFC 37, "Socket Semantics"). Some is lost with each connection, and
/// what came over a new connection may be received before what is left of the one before: they are two peers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_twice_over_broken_connections() {
    let mut pull = Socket::pull(options(Security::null()));
    let bound = pull.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let until = Instant::now() + time();
    let mut pushes = Vec::new();
    for who in 0..3_u8 {
        let line = bad_line(bound.clone()).await;
        pushes.push(tokio::spawn(async move {
            let push = Socket::push(options(Security::null()));
            push.connect(&line).unwrap();
            let mut number = 0_u64;
            while Instant::now() < until {
                number += 1;
                push.send(Message::from([
                    Bytes::copy_from_slice(&[who]),
                    Bytes::copy_from_slice(&number.to_be_bytes()),
                    body(number),
                ]))
                .await
                .unwrap();
            }
            push.close().await;
        }));
    }
    let mut seen: [HashSet<u64>; 3] = Default::default();
    let receiving = async {
        loop {
            let message = pull.recv().await.unwrap();
            let (who, number) = (usize::from(message[0][0]), u64::from_be_bytes(message[1][..].try_into().unwrap()));
            assert!(seen[who].insert(number), "{number} of {who} came twice");
            assert!(message.len() == 3 && message[2] == body(number), "{number} of {who} is not what was sent");
        }
    };
    let ended = async {
        for push in pushes {
            push.await.unwrap();
        }
    };
    tokio::select! {
        () = receiving => {}
        () = ended => {}
    }
    assert!(seen.iter().all(|seen| !seen.is_empty()));
    pull.close().await;
}
