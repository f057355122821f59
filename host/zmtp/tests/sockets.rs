//! The sockets with each other: every pattern, mechanism and transport, over real connections.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::time::Duration;

use zmtp::{
    AllowedKeys, Bytes, DisconnectReason, DuplicateIdentity, Endpoint, Event, Events, Heartbeat, Identity, KeyPair,
    Limits, Message, Options, ReceiveError, Reconnect, Security, SendErrorReason, Socket, SubscribeError,
};

fn local() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}

fn named(identity: &'static str) -> Options {
    Options { identity: Some(Identity::new(identity).unwrap()), ..Options::default() }
}

fn secured(security: Security) -> Options {
    Options { security, ..Options::default() }
}

/// Retries at once, so that tests wait for events and not for pauses.
fn eager(mut options: Options) -> Options {
    let soon = Duration::from_millis(5);
    options.reconnect = Reconnect { first: soon, second: soon, max: soon, refused: Some(soon), ..Reconnect::default() };
    options
}

async fn until<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(events.recv().await.expect("the socket is open")) {
            return found;
        }
    }
}

async fn connected(events: &mut Events) {
    until(events, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
}

async fn failed(events: &mut Events) -> DisconnectReason {
    until(events, |event| match event {
        Event::HandshakeFailed { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

async fn disconnected(events: &mut Events) -> DisconnectReason {
    until(events, |event| match event {
        Event::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

/// A request and its reply, over whatever the two endpoints and options are.
async fn exchange(endpoint: Endpoint, server: Options, client: Options) {
    let mut server = Socket::rep(server);
    let bound = server.bind(&endpoint).await.unwrap();
    let mut client = Socket::req(client);
    client.connect(&bound).unwrap();
    for size in [0, 1, 255, 256, 70_000, 1 << 20] {
        let body = Bytes::from(vec![7; size]);
        client.send(body.clone()).await.unwrap();
        assert_eq!(server.recv().await.unwrap(), Message::from(body.clone()));
        server.send(Message::from([body.clone(), Bytes::new(), body.clone()])).await.unwrap();
        assert_eq!(client.recv().await.unwrap(), Message::from([body.clone(), Bytes::new(), body]));
    }
    client.close().await;
    server.close().await;
}

#[tokio::test]
async fn requests_are_replied_to_over_tcp() {
    exchange(local(), Options::default(), Options::default()).await;
    exchange("tcp://[::1]:0".parse().unwrap(), Options::default(), Options::default()).await;
    exchange("tcp://localhost:0".parse().unwrap(), Options::default(), Options::default()).await;
}

#[tokio::test]
async fn requests_are_replied_to_over_unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    exchange(Endpoint::Ipc(path.clone()), Options::default(), Options::default()).await;
    assert!(!path.exists(), "the file goes with the socket");
    let name = format!("zmtp-test-{}", std::process::id());
    exchange(Endpoint::IpcAbstract(name), Options::default(), Options::default()).await;
}

#[tokio::test]
async fn requests_are_replied_to_with_plain() {
    let server = secured(Security::plain_server(|user, password| user == "admin" && password == "secret"));
    let client = secured(Security::plain_client("admin", "secret").unwrap());
    exchange(local(), server.clone(), client.clone()).await;
    // Who binds is another matter than who is the server of the mechanism.
    exchange(local(), client, server).await;
}

#[tokio::test]
async fn requests_are_replied_to_with_curve() {
    let (server_keys, client_keys) = (KeyPair::generate(), KeyPair::generate());
    let allowed = [client_keys.public()].into_iter().collect();
    let client = secured(Security::curve_client(server_keys.public(), client_keys));
    let server = secured(Security::curve_server(server_keys, allowed));
    exchange(local(), server.clone(), client.clone()).await;
    exchange(local(), client, server).await;
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_told_on_both_sides() {
    let keys = KeyPair::generate();
    let curve_server = |allowed| secured(Security::curve_server(keys.clone(), allowed));
    let curve_client = |server: &KeyPair| secured(Security::curve_client(server.public(), KeyPair::generate()));
    let plain_server = secured(Security::plain_server(|_, password| password == "secret"));
    let plain_client = secured(Security::plain_client("admin", "guess").unwrap());
    let null = Options::default();
    for (server, client, ours, theirs) in [
        (plain_server.clone(), plain_client, "the peer's credentials are not accepted", "the peer refused: \"400\""),
        (
            curve_server([].into_iter().collect()),
            curve_client(&keys),
            "the peer's credentials are not accepted",
            "the peer refused: \"400\"",
        ),
        (
            curve_server(AllowedKeys::Any),
            curve_client(&KeyPair::generate()),
            "the box in HELLO cannot be opened: the keys do not match",
            "the peer closed the connection",
        ),
        (
            curve_server(AllowedKeys::Any),
            null.clone(),
            "the peer's mechanism is NULL, and CURVE is this socket's",
            "the peer's mechanism is CURVE, and NULL is this socket's",
        ),
        (
            plain_server.clone(),
            plain_server,
            "both sides are the server of PLAIN",
            "both sides are the server of PLAIN",
        ),
    ] {
        let server = Socket::rep(server);
        let mut server_events = server.events();
        let bound = server.bind(&local()).await.unwrap();
        let client = Socket::req(client);
        let mut client_events = client.events();
        client.connect(&bound).unwrap();
        assert_eq!(failed(&mut server_events).await.to_string(), ours);
        assert_eq!(failed(&mut client_events).await.to_string(), theirs);
        assert_eq!(server.counters().connected + client.counters().connected, 0);
    }
}

/// A peer that refuses for good is not asked again and again: the options say how often, or that it is not asked at all.
#[tokio::test]
async fn who_is_refused_for_good_says_so_and_can_give_up() {
    let server = Socket::rep(Options::default());
    let bound = server.bind(&local()).await.unwrap();
    let mut options = secured(Security::plain_client("a", "b").unwrap());
    options.reconnect.refused = None;
    let client = Socket::req(options);
    let mut events = client.events();
    client.connect(&bound).unwrap();
    assert!(failed(&mut events).await.is_lasting());
    let pause = until(&mut events, |event| match event {
        Event::Retry { pause, .. } => Some(pause),
        _ => None,
    })
    .await;
    assert_eq!(pause, None);
    assert!(client.sender().disconnect(&bound));
    client.close().await;
}

#[tokio::test]
async fn a_router_knows_its_peers_by_name() {
    let mut router = Socket::router(Options::default());
    let bound = router.bind(&local()).await.unwrap();
    let mut one = Socket::dealer(named("one"));
    let mut two = Socket::dealer(named("two"));
    let mut nameless = Socket::dealer(Options::default());
    for dealer in [&one, &two, &nameless] {
        dealer.connect(&bound).unwrap();
        dealer.send(Message::from(["hello", "", "x"])).await.unwrap();
    }
    let mut made = None;
    for _ in 0..3 {
        let (identity, message) = router.recv_from().await.unwrap();
        assert_eq!(message, Message::from(["hello", "", "x"]));
        if identity.is_generated() {
            made = Some(identity);
        }
    }
    router.send_to(b"two", "for two").await.unwrap();
    router.send(Message::from(["one", "for one"])).await.unwrap();
    router.send_to(made.unwrap().as_bytes(), "for nobody in particular").await.unwrap();
    assert_eq!(one.recv().await.unwrap(), Message::from("for one"));
    assert_eq!(two.recv().await.unwrap(), Message::from("for two"));
    assert_eq!(nameless.recv().await.unwrap(), Message::from("for nobody in particular"));
    let error = router.send_to(b"three", "x").await.unwrap_err();
    assert_eq!((error.reason, error.message), (SendErrorReason::Unroutable, Message::from("x")));
    assert_eq!(router.counters().unroutable, 1);
    two.close().await;
    one.send("still here").await.unwrap();
    let first = router.recv().await.unwrap();
    assert_eq!(first, Message::from(["one", "still here"]));
}

#[tokio::test]
async fn a_peer_that_is_gone_is_unroutable() {
    let router = Socket::router(Options::default());
    let mut events = router.events();
    let bound = router.bind(&local()).await.unwrap();
    let dealer = Socket::dealer(named("one"));
    dealer.connect(&bound).unwrap();
    connected(&mut events).await;
    dealer.close().await;
    assert!(matches!(disconnected(&mut events).await, DisconnectReason::ClosedByPeer));
    assert_eq!(router.send_to(b"one", "x").await.unwrap_err().reason, SendErrorReason::Unroutable);
}

#[tokio::test]
async fn a_second_peer_of_the_same_name_is_rejected_or_takes_over() {
    for policy in [DuplicateIdentity::Reject, DuplicateIdentity::HandOver] {
        let options = Options { duplicate_identity: policy, ..Options::default() };
        let router = Socket::router(options);
        let mut events = router.events();
        let bound = router.bind(&local()).await.unwrap();
        let mut first = Socket::dealer(named("same"));
        first.connect(&bound).unwrap();
        connected(&mut events).await;
        let mut second = Socket::dealer(named("same"));
        second.connect(&bound).unwrap();
        match policy {
            DuplicateIdentity::Reject => {
                assert!(matches!(failed(&mut events).await, DisconnectReason::DuplicateIdentity(_)));
                router.send_to(b"same", "x").await.unwrap();
                assert_eq!(first.recv().await.unwrap(), Message::from("x"));
            }
            DuplicateIdentity::HandOver => {
                connected(&mut events).await;
                assert!(first.sender().disconnect(&bound));
                router.send_to(b"same", "x").await.unwrap();
                assert_eq!(second.recv().await.unwrap(), Message::from("x"));
            }
        }
    }
}

#[tokio::test]
async fn work_is_spread_over_all_that_pull() {
    let push = Socket::push(Options::default());
    let mut events = push.events();
    let bound = push.bind(&local()).await.unwrap();
    let mut workers = [Socket::pull(Options::default()), Socket::pull(Options::default())];
    for worker in &workers {
        worker.connect(&bound).unwrap();
        connected(&mut events).await;
    }
    for number in 0..10_u8 {
        push.send(vec![number]).await.unwrap();
    }
    for worker in &mut workers {
        for _ in 0..5 {
            worker.recv().await.unwrap();
        }
    }
}

#[tokio::test]
async fn pulling_takes_turns_between_those_that_push() {
    let mut pull = Socket::pull(Options::default());
    let mut events = pull.events();
    let bound = pull.bind(&local()).await.unwrap();
    let flood = Socket::push(Options::default());
    flood.connect(&bound).unwrap();
    for _ in 0..900 {
        flood.send("flood").await.unwrap();
    }
    connected(&mut events).await;
    let quiet = Socket::push(Options::default());
    quiet.connect(&bound).unwrap();
    quiet.send("quiet").await.unwrap();
    connected(&mut events).await;
    // One turn may be under way, and the quiet one's message may be on its way while the flood has the next turns.
    let mut before = 0;
    while pull.recv().await.unwrap() != Message::from("quiet") {
        before += 1;
        tokio::task::yield_now().await;
    }
    assert!(before < 900, "the whole flood came first");
}

#[tokio::test]
async fn subscribers_get_what_they_subscribed_to() {
    let publisher = Socket::publisher(Options::default());
    let mut events = publisher.events();
    let bound = publisher.bind(&local()).await.unwrap();
    let mut subscriber = Socket::subscriber(Options::default());
    subscriber.subscribe(b"a.").unwrap();
    subscriber.subscribe(b"a.").unwrap();
    subscriber.connect(&bound).unwrap();
    connected(&mut events).await;
    subscriber.subscribe(b"end").unwrap();
    // What is published before the subscription has arrived goes nowhere.
    let mut number = 0_u32;
    loop {
        publisher.send(Message::from(["a.x".to_owned(), number.to_string()])).await.unwrap();
        publisher.send("b.x").await.unwrap();
        publisher.send("end").await.unwrap();
        number += 1;
        if let Ok(received) = tokio::time::timeout(Duration::from_millis(20), subscriber.recv()).await {
            assert_eq!(received.unwrap()[0], "a.x");
            break;
        }
    }
    assert_eq!(subscriber.recv().await.unwrap(), Message::from("end"));
    subscriber.sender().cancel(b"a.").unwrap();
    assert_eq!(subscriber.sender().cancel(b"never"), Err(SubscribeError::Unknown));
    publisher.send("a.once-more").await.unwrap();
    while subscriber.recv().await.unwrap() != Message::from("a.once-more") {}
    subscriber.sender().cancel(b"a.").unwrap();
    // The cancellation overtakes nothing, so what follows a new subscription of its own has left it behind.
    subscriber.subscribe(b"marker").unwrap();
    loop {
        publisher.send("a.late").await.unwrap();
        publisher.send("marker").await.unwrap();
        if let Ok(received) = tokio::time::timeout(Duration::from_millis(20), subscriber.recv()).await
            && received.unwrap() == Message::from("marker")
        {
            break;
        }
    }
    publisher.send("a.late").await.unwrap();
    publisher.send("end").await.unwrap();
    loop {
        let received = subscriber.recv().await.unwrap();
        assert_ne!(received, Message::from("a.late"));
        if received == Message::from("end") {
            break;
        }
    }
}

#[tokio::test]
async fn a_subscriber_may_have_more_subscriptions_than_messages_may_wait() {
    let publisher = Socket::publisher(Options::default());
    let bound = publisher.bind(&local()).await.unwrap();
    let limits = Limits { send_messages_max: 10, ..Limits::default() };
    let mut subscriber = Socket::subscriber(Options { limits, ..Options::default() });
    for number in 0..3000_u16 {
        subscriber.subscribe(&number.to_be_bytes()).unwrap();
    }
    subscriber.connect(&bound).unwrap();
    subscriber.subscribe(b"last").unwrap();
    loop {
        publisher.send("last").await.unwrap();
        if tokio::time::timeout(Duration::from_millis(20), subscriber.recv()).await.is_ok() {
            break;
        }
    }
    publisher.send(2999_u16.to_be_bytes().to_vec()).await.unwrap();
    while subscriber.recv().await.unwrap() != Message::from(2999_u16.to_be_bytes().to_vec()) {}
    assert_eq!(subscriber.counters().disconnected, 0);
}

#[tokio::test]
async fn who_sends_before_a_peer_is_there_is_heard_later() {
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::from(reserved.local_addr().unwrap());
    drop(reserved);
    let push = Socket::push(eager(Options::default()));
    let mut events = push.events();
    push.connect(&endpoint).unwrap();
    push.send("early").await.unwrap();
    failed(&mut events).await;
    let mut pull = Socket::pull(Options::default());
    pull.bind(&endpoint).await.unwrap();
    assert_eq!(pull.recv().await.unwrap(), Message::from("early"));
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let mut pull = Socket::pull(Options::default());
    let bound = pull.bind(&local()).await.unwrap();
    let push = Socket::push(eager(Options::default()));
    push.connect(&bound).unwrap();
    push.send("one").await.unwrap();
    assert_eq!(pull.recv().await.unwrap(), Message::from("one"));
    let mut events = push.events();
    pull.close().await;
    disconnected(&mut events).await;
    let mut pull = Socket::pull(Options::default());
    pull.bind(&bound).await.unwrap();
    connected(&mut events).await;
    push.send("two").await.unwrap();
    assert_eq!(pull.recv().await.unwrap(), Message::from("two"));
    assert!(push.counters().retries > 0);
}

#[tokio::test]
async fn requests_and_replies_alternate() {
    let mut server = Socket::rep(Options::default());
    let bound = server.bind(&local()).await.unwrap();
    assert_eq!(server.send("reply to nothing").await.unwrap_err().reason, SendErrorReason::OutOfTurn);
    let mut client = Socket::req(Options::default());
    client.connect(&bound).unwrap();
    assert_eq!(client.recv().await, Err(ReceiveError::OutOfTurn));
    client.send("one").await.unwrap();
    assert_eq!(client.send("two").await.unwrap_err().reason, SendErrorReason::OutOfTurn);
    server.recv().await.unwrap();
    assert_eq!(server.recv().await, Err(ReceiveError::OutOfTurn));
    server.send("reply").await.unwrap();
    client.recv().await.unwrap();
}

#[tokio::test]
async fn a_request_whose_server_is_gone_is_not_waited_for() {
    let mut server = Socket::rep(Options::default());
    let bound = server.bind(&local()).await.unwrap();
    let mut client = Socket::req(eager(Options::default()));
    client.connect(&bound).unwrap();
    client.send("one").await.unwrap();
    server.recv().await.unwrap();
    server.close().await;
    assert_eq!(client.recv().await, Err(ReceiveError::PeerLost));
    let mut server = Socket::rep(Options::default());
    server.bind(&bound).await.unwrap();
    client.send("two").await.unwrap();
    assert_eq!(server.recv().await.unwrap(), Message::from("two"));
    server.send("reply").await.unwrap();
    assert_eq!(client.recv().await.unwrap(), Message::from("reply"));
}

#[tokio::test]
async fn a_request_to_where_we_do_not_connect_any_more_is_not_waited_for() {
    let mut client = Socket::req(Options { linger: Duration::from_millis(5), ..eager(Options::default()) });
    let nowhere = "tcp://127.0.0.1:1".parse().unwrap();
    client.connect(&nowhere).unwrap();
    client.send("one").await.unwrap();
    assert!(client.sender().disconnect(&nowhere));
    assert_eq!(client.recv().await, Err(ReceiveError::PeerLost));
    assert_eq!(client.sender().try_send("two").unwrap_err().reason, SendErrorReason::NoPeer);
}

#[tokio::test]
async fn a_reply_to_a_client_that_is_gone_is_an_error_and_no_obstacle() {
    let mut server = Socket::rep(Options::default());
    let mut events = server.events();
    let bound = server.bind(&local()).await.unwrap();
    let gone = Socket::req(Options::default());
    gone.connect(&bound).unwrap();
    gone.send("one").await.unwrap();
    server.recv().await.unwrap();
    gone.close().await;
    disconnected(&mut events).await;
    assert_eq!(server.send("reply").await.unwrap_err().reason, SendErrorReason::Unroutable);
    let client = Socket::req(Options::default());
    client.connect(&bound).unwrap();
    client.send("two").await.unwrap();
    assert_eq!(server.recv().await.unwrap(), Message::from("two"));
}

#[tokio::test]
async fn a_router_accepts_push_only_when_told_to() {
    for accepts in [false, true] {
        let options = Options { router_accepts_push: accepts, ..Options::default() };
        let mut router = Socket::router(options);
        let mut events = router.events();
        let bound = router.bind(&local()).await.unwrap();
        let push = Socket::push(Options::default());
        let mut push_events = push.events();
        push.connect(&bound).unwrap();
        push.send(Message::from(["\u{2}", "worker"])).await.unwrap();
        if accepts {
            let (identity, message) = router.recv_from().await.unwrap();
            assert_eq!(message, Message::from(["\u{2}", "worker"]));
            assert!(identity.is_generated());
            assert_eq!(router.send_to(identity.as_bytes(), "x").await.unwrap_err().reason, SendErrorReason::Unroutable);
        } else {
            assert_eq!(failed(&mut events).await.to_string(), "a PUSH peer cannot be connected to a ROUTER socket");
            let theirs = failed(&mut push_events).await.to_string();
            assert_eq!(theirs, "the peer refused: \"socket-type-PUSH-cannot-connect-to-ROUTER\"");
        }
    }
}

#[tokio::test]
async fn closing_sends_what_waits() {
    for _ in 0..5 {
        let mut pull = Socket::pull(Options::default());
        let bound = pull.bind(&local()).await.unwrap();
        let push = Socket::push(Options::default());
        push.connect(&bound).unwrap();
        let body = Bytes::from(vec![1; 10_000]);
        for _ in 0..500 {
            push.send(body.clone()).await.unwrap();
        }
        let closing = tokio::spawn(push.close());
        for _ in 0..500 {
            assert_eq!(pull.recv().await.unwrap(), Message::from(body.clone()));
        }
        assert_eq!(closing.await.unwrap().unsent, 0);
    }
}

#[tokio::test]
async fn closing_waits_no_longer_than_it_may() {
    let mut options = eager(Options::default());
    options.linger = Duration::from_millis(10);
    let push = Socket::push(options);
    push.connect(&"tcp://127.0.0.1:1".parse().unwrap()).unwrap();
    push.send("nobody listens").await.unwrap();
    let sender = push.sender().clone();
    assert_eq!(push.close().await.unsent, 1);
    assert_eq!(sender.send("late").await.unwrap_err().reason, SendErrorReason::Closed);
    assert!(sender.connect(&"tcp://127.0.0.1:1".parse().unwrap()).is_err());
    assert!(sender.events().recv().await.is_none());
}

#[tokio::test]
async fn whoever_waits_is_told_that_the_socket_is_closed() {
    let (sender, mut receiver) = Socket::dealer(Options::default()).split();
    let receiving = tokio::spawn(async move { receiver.recv().await });
    let sending = tokio::spawn({
        let sender = sender.clone();
        async move { sender.send("nobody is there").await }
    });
    tokio::task::yield_now().await;
    sender.close().await;
    assert_eq!(receiving.await.unwrap(), Err(ReceiveError::Closed));
    assert_eq!(sending.await.unwrap().unwrap_err().reason, SendErrorReason::Closed);
}

#[tokio::test]
async fn dropping_every_handle_closes_at_once() {
    let pull = Socket::pull(Options::default());
    let bound = pull.bind(&local()).await.unwrap();
    let push = Socket::push(Options::default());
    let mut events = push.events();
    push.connect(&bound).unwrap();
    connected(&mut events).await;
    drop(pull);
    disconnected(&mut events).await;
}

#[tokio::test]
async fn a_full_queue_holds_the_sender_and_loses_nothing() {
    let options = Options { limits: Limits { send_messages_max: 4, ..Limits::default() }, ..Options::default() };
    let push = Socket::push(options);
    let endpoint = local();
    let limits = Options { limits: Limits { receive_messages_max: 4, ..Limits::default() }, ..Options::default() };
    let mut pull = Socket::pull(limits);
    let bound = pull.bind(&endpoint).await.unwrap();
    push.connect(&bound).unwrap();
    let body = Bytes::from(vec![3; 100_000]);
    let sending = tokio::spawn({
        let sender = push.sender().clone();
        let body = body.clone();
        async move {
            for number in 0..300_u32 {
                sender
                    .send(Message::from([Bytes::copy_from_slice(&number.to_be_bytes()), body.clone()]))
                    .await
                    .unwrap();
            }
        }
    });
    for number in 0..300_u32 {
        let message = pull.recv().await.unwrap();
        assert_eq!(message[0], number.to_be_bytes().as_slice());
    }
    sending.await.unwrap();
    assert_eq!(push.sender().counters().full, 0, "whoever waits was not refused");
}

/// One peer that does not read costs its own queue, and the others get theirs.
#[tokio::test]
async fn a_peer_that_does_not_read_holds_nobody_else() {
    let options = Options { limits: Limits { send_messages_max: 10, ..Limits::default() }, ..Options::default() };
    let router = Socket::router(options);
    let mut events = router.events();
    let bound = router.bind(&local()).await.unwrap();
    let mut narrow = named("slow");
    narrow.limits.receive_messages_max = 1;
    let slow = Socket::dealer(narrow);
    slow.connect(&bound).unwrap();
    connected(&mut events).await;
    let mut quick = Socket::dealer(named("quick"));
    quick.connect(&bound).unwrap();
    connected(&mut events).await;
    let body = Bytes::from(vec![1; 60_000]);
    let mut refused = 0;
    for _ in 0..2000 {
        if let Err(error) = router.sender().try_send_to(b"slow", body.clone()) {
            assert_eq!(error.reason, SendErrorReason::Full);
            refused += 1;
        }
        router.send_to(b"quick", "x").await.unwrap();
        quick.recv().await.unwrap();
    }
    assert!(refused > 0);
    assert_eq!(router.counters().full, refused);
}

#[tokio::test]
async fn heartbeats_are_answered_and_keep_a_connection() {
    let heartbeat = Heartbeat { interval: Duration::from_millis(10), ..Heartbeat::every(Duration::from_secs(20)) };
    let options = Options { heartbeat: Some(heartbeat), ..Options::default() };
    let mut rep = Socket::rep(options.clone());
    let mut events = rep.events();
    let bound = rep.bind(&local()).await.unwrap();
    let mut req = Socket::req(options);
    req.connect(&bound).unwrap();
    connected(&mut events).await;
    // Ten PINGs of 9 bytes and ten PONGs of 7 from each side.
    let before = rep.counters().bytes_received;
    while rep.counters().bytes_received < before + 10 * (9 + 7) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    req.send("x").await.unwrap();
    rep.recv().await.unwrap();
    rep.send("y").await.unwrap();
    req.recv().await.unwrap();
    assert_eq!(rep.counters().disconnected, 0);
}

#[tokio::test]
async fn a_callback_that_panics_is_told_and_ends_one_connection() {
    let rep =
        Socket::rep(secured(Security::plain_server(|user, _| if user == "bomb" { panic!("boom") } else { true })));
    let mut events = rep.events();
    let bound = rep.bind(&local()).await.unwrap();
    let bomb = Socket::req(secured(Security::plain_client("bomb", "").unwrap()));
    bomb.connect(&bound).unwrap();
    assert!(matches!(failed(&mut events).await, DisconnectReason::Panicked));
    let text = until(&mut events, |event| match event {
        Event::Panicked { message } => Some(message),
        _ => None,
    })
    .await;
    assert_eq!(text, "boom");
    let client = Socket::req(secured(Security::plain_client("user", "").unwrap()));
    client.connect(&bound).unwrap();
    connected(&mut events).await;
    assert!(rep.counters().panics > 0);
}

#[tokio::test]
async fn both_sides_can_be_bound_to_several_and_connected_to_several() {
    let mut pull = Socket::pull(Options::default());
    let one = pull.bind(&local()).await.unwrap();
    let two = pull.bind(&local()).await.unwrap();
    assert!(pull.bind(&one).await.is_err());
    let push = Socket::push(Options::default());
    push.connect(&one).unwrap();
    push.connect(&two).unwrap();
    assert!(push.connect(&one).is_err());
    assert!(push.connect(&local()).is_err());
    for _ in 0..4 {
        push.send("x").await.unwrap();
        pull.recv().await.unwrap();
    }
    assert!(pull.sender().unbind(&one));
    assert!(!pull.sender().unbind(&one));
    push.send("after").await.unwrap();
    assert_eq!(pull.recv().await.unwrap(), Message::from("after"));
}

/// A runtime that ends takes the sockets' tasks with it, whatever they are doing.
#[test]
fn a_runtime_can_end_under_a_socket() {
    for _ in 0..20 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let sockets = runtime.block_on(async {
            let pull = Socket::pull(Options::default());
            let bound = pull.bind(&local()).await.unwrap();
            let pushes: Vec<_> = (0..10).map(|_| Socket::push(Options::default())).collect();
            for push in &pushes {
                push.connect(&bound).unwrap();
            }
            (pull, pushes)
        });
        drop(runtime);
        drop(sockets);
    }
}

#[test]
fn limits_are_finite() {
    let limits = Limits::default();
    assert!(limits.message_bytes_max < usize::MAX && limits.connections_max < usize::MAX);
}
