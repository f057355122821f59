//! libzmq at the other end, through pyzmq: all patterns, mechanisms and transports, in both directions.

#![expect(clippy::unwrap_used, reason = "what fails in a helper fails the test")]

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use zmtp::{
    AllowedKeys, Bytes, DisconnectReason, Endpoint, Event, Events, Heartbeat, Identity, KeyPair, Message, Options,
    PublicKey, ReceiveError, Reconnect, Security, Socket,
};

/// libzmq in a process of its own. See `peer.py`.
struct Peer {
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Peer {
    async fn start() -> Self {
        let python = std::env::var("ZMQ_PYTHON").unwrap_or_else(|_| {
            panic!(
                "ZMQ_PYTHON does not name a Python that has pyzmq. To get one:\n\
                 python3 -m venv /tmp/zmq && /tmp/zmq/bin/pip install pyzmq && export ZMQ_PYTHON=/tmp/zmq/bin/python3\n\
                 Without it, leave these tests out: cargo test -p zmtp -- --skip libzmq"
            )
        });
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peer.py");
        let mut child = Command::new(&python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("ZMQ_PYTHON={python} cannot be run: {error}"));
        let stdin = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut peer = Self { stdin, answers, _child: child };
        let version = peer.answer().await;
        assert!(
            version.ends_with("True"),
            "libzmq {version} has no CURVE: install pyzmq from PyPI, or Debian's python3-zmq"
        );
        peer
    }

    async fn answer(&mut self) -> String {
        let line = self.answers.next_line().await.unwrap().expect("the peer ended; its last words are above");
        match line.split_once(' ') {
            Some(("ok", answer)) => answer.trim().to_owned(),
            _ => panic!("the peer said: {line}"),
        }
    }

    async fn tell(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn ask(&mut self, line: &str) -> String {
        self.tell(line).await;
        // Shown when a test fails.
        eprintln!("{}", &line[..line.len().min(100)]);
        self.answer().await
    }

    async fn socket(&mut self, name: &str, kind: &str, options: &[String]) {
        self.ask(&format!("socket {name} {kind}")).await;
        for option in options {
            self.ask(&format!("option {name} {option}")).await;
        }
    }

    async fn send(&mut self, name: &str, message: &Message) {
        self.ask(&format!("send {name} {}", hex(message))).await;
    }

    async fn recv(&mut self, name: &str) -> Message {
        unhex(&self.ask(&format!("recv {name}")).await)
    }
}

fn hex(message: &Message) -> String {
    let frame = |frame: &Bytes| match frame.len() {
        0 => "-".to_owned(),
        _ => frame.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    message.iter().map(frame).collect::<Vec<_>>().join(",")
}

fn unhex(text: &str) -> Message {
    let frame = |part: &str| match part {
        "-" => Bytes::new(),
        _ => (0..part.len() / 2).map(|at| u8::from_str_radix(&part[2 * at..2 * at + 2], 16).unwrap()).collect(),
    };
    text.split(',').map(frame).collect()
}

fn options(security: Security) -> Options {
    let soon = Duration::from_millis(5);
    Options {
        security,
        reconnect: Reconnect { first: soon, second: soon, max: soon, refused: Some(soon), ..Reconnect::default() },
        ..Options::default()
    }
}

async fn next<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        let event = events.recv().await.unwrap();
        // Shown when a test fails.
        eprintln!("{event:?}");
        if let Some(found) = wanted(event) {
            return found;
        }
    }
}

async fn connected(events: &mut Events) {
    next(events, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
}

async fn failed(events: &mut Events) -> DisconnectReason {
    next(events, |event| match event {
        Event::HandshakeFailed { reason, .. } => Some(reason),
        _ => None,
    })
    .await
}

/// How the two are connected.
#[derive(Clone, Copy, Debug)]
struct Way {
    ipc: bool,
    mechanism: &'static str,
    we_bind: bool,
    /// Which side is the server of the mechanism.
    we_serve: bool,
}

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    for ipc in [false, true] {
        for mechanism in ["NULL", "PLAIN", "CURVE"] {
            for we_bind in [true, false] {
                ways.push(Way { ipc, mechanism, we_bind, we_serve: we_bind });
            }
        }
    }
    // The roles of the mechanism are independent of who binds.
    for mechanism in ["PLAIN", "CURVE"] {
        for we_bind in [true, false] {
            ways.push(Way { ipc: false, mechanism, we_bind, we_serve: !we_bind });
        }
    }
    ways
}

/// What both sides need for a mechanism: ours, and the options of libzmq.
async fn credentials(peer: &mut Peer, way: Way) -> (Security, Vec<String>) {
    match (way.mechanism, way.we_serve) {
        ("NULL", _) => (Security::null(), Vec::new()),
        ("PLAIN", true) => (
            Security::plain_server(|user, password| (user, password) == ("user", "word")),
            vec!["PLAIN_USERNAME str:user".to_owned(), "PLAIN_PASSWORD str:word".to_owned()],
        ),
        ("PLAIN", false) => {
            peer.ask("auth plain user word").await;
            (Security::plain_client("user", "word").unwrap(), vec!["PLAIN_SERVER int:1".to_owned()])
        }
        (_, we_serve) => {
            let theirs = peer.ask("keys").await;
            let (public, secret) = theirs.split_once(' ').unwrap();
            let key: PublicKey = public.parse().unwrap();
            let ours = KeyPair::generate();
            if we_serve {
                let options = vec![
                    format!("CURVE_PUBLICKEY str:{public}"),
                    format!("CURVE_SECRETKEY str:{secret}"),
                    format!("CURVE_SERVERKEY str:{}", ours.public()),
                ];
                return (Security::curve_server(ours, [key].into_iter().collect()), options);
            }
            peer.ask(&format!("auth curve {}", ours.public())).await;
            let options = vec!["CURVE_SERVER int:1".to_owned(), format!("CURVE_SECRETKEY str:{secret}")];
            (Security::curve_client(key, ours), options)
        }
    }
}

/// Connects one of ours with one of libzmq's, in each way, and has them do something.
async fn each_way(ours: fn(Options) -> Socket, theirs: &str, act: impl AsyncFn(&mut Socket, &mut Peer)) {
    let directory = tempfile::tempdir().unwrap();
    let mut peer = Peer::start().await;
    for (number, way) in ways().into_iter().enumerate() {
        // A REQ of libzmq that is the server of a mechanism closes the connection when its peer first sends, whoever that
        // is: it takes the name that its authenticator found for a part of the reply.
        if theirs == "REQ" && way.mechanism != "NULL" && !way.we_serve {
            continue;
        }
        eprintln!("{theirs}: {way:?}");
        let (security, their_options) = credentials(&mut peer, way).await;
        let mut options = options(security);
        options.identity = Some(Identity::new("ours").unwrap());
        let mut socket = ours(options);
        peer.socket("s", theirs, &their_options).await;
        peer.ask("option s IDENTITY str:theirs").await;
        let endpoint = match way.ipc {
            true => format!("ipc://{}", directory.path().join(number.to_string()).display()),
            false => "tcp://127.0.0.1:*".to_owned(),
        };
        let mut events = socket.events();
        if way.we_bind {
            let bound = socket.bind(&endpoint.parse().unwrap()).await.unwrap();
            peer.ask(&format!("connect s {bound}")).await;
        } else {
            let bound = peer.ask(&format!("bind s {endpoint}")).await;
            socket.connect(&bound.parse().unwrap()).unwrap();
        }
        connected(&mut events).await;
        act(&mut socket, &mut peer).await;
        assert_eq!(socket.counters().discarded, 0);
        socket.close().await;
        peer.ask("option s LINGER int:0").await;
        peer.ask("close s").await;
    }
}

/// Messages of all shapes.
fn shapes() -> Vec<Message> {
    vec![
        "x".into(),
        "".into(),
        Message::from(["", "", "x", ""]),
        // With the envelope of a request, 64 frames.
        (0..63).map(|number| Bytes::from(vec![number; 9])).collect(),
        Message::from([vec![0, 255, 128], vec![7; 255], vec![8; 256], vec![9; 65_536]]),
    ]
}

#[tokio::test]
async fn libzmq_rep_replies_to_req() {
    each_way(Socket::req, "REP", async |req, peer| {
        for message in shapes() {
            req.send(message.clone()).await.unwrap();
            assert_eq!(peer.recv("s").await, message);
            peer.send("s", &message).await;
            assert_eq!(req.recv().await.unwrap(), message);
        }
    })
    .await;
}

#[tokio::test]
async fn libzmq_req_gets_replies_of_rep() {
    each_way(Socket::rep, "REQ", async |rep, peer| {
        for message in shapes() {
            peer.send("s", &message).await;
            assert_eq!(rep.recv().await.unwrap(), message);
            rep.send(message.clone()).await.unwrap();
            assert_eq!(peer.recv("s").await, message);
        }
    })
    .await;
}

#[tokio::test]
async fn libzmq_dealer_talks_to_router() {
    each_way(Socket::router, "DEALER", async |router, peer| {
        for message in shapes() {
            peer.send("s", &message).await;
            let (identity, received) = router.recv_from().await.unwrap();
            assert_eq!((identity.as_bytes(), &received), (&b"theirs"[..], &message));
            router.send_to(b"theirs", message.clone()).await.unwrap();
            assert_eq!(peer.recv("s").await, message);
        }
    })
    .await;
}

#[tokio::test]
async fn libzmq_router_talks_to_dealer() {
    each_way(Socket::dealer, "ROUTER", async |dealer, peer| {
        for message in shapes() {
            dealer.send(message.clone()).await.unwrap();
            let mut addressed = message.clone();
            addressed.push_front("ours");
            assert_eq!(peer.recv("s").await, addressed);
            peer.send("s", &addressed).await;
            assert_eq!(dealer.recv().await.unwrap(), message);
        }
    })
    .await;
}

#[tokio::test]
async fn libzmq_router_talks_to_router() {
    each_way(Socket::router, "ROUTER", async |router, peer| {
        // libzmq drops what it sends to a peer that it does not know yet, so it is sent to first.
        router.send_to(b"theirs", "hello").await.unwrap();
        assert_eq!(peer.recv("s").await, Message::from(["ours", "hello"]));
        peer.send("s", &Message::from(["ours", "answer"])).await;
        assert_eq!(router.recv().await.unwrap(), Message::from(["theirs", "answer"]));
    })
    .await;
}

#[tokio::test]
async fn libzmq_pull_gets_what_push_sends() {
    each_way(Socket::push, "PULL", async |push, peer| {
        for message in shapes() {
            push.send(message.clone()).await.unwrap();
            assert_eq!(peer.recv("s").await, message);
        }
    })
    .await;
}

#[tokio::test]
async fn libzmq_push_sends_to_pull() {
    each_way(Socket::pull, "PUSH", async |pull, peer| {
        for message in shapes() {
            peer.send("s", &message).await;
            assert_eq!(pull.recv().await.unwrap(), message);
        }
    })
    .await;
}

#[tokio::test]
async fn libzmq_sub_gets_what_it_subscribed_to() {
    each_way(Socket::publisher, "SUB", async |publisher, peer| {
        peer.ask("option s SUBSCRIBE str:a.").await;
        peer.ask("option s SUBSCRIBE str:end").await;
        peer.ask("option s RCVTIMEO int:20").await;
        // Until the subscriptions have arrived.
        loop {
            publisher.send(Message::from(["a.1", "body"])).await.unwrap();
            publisher.send("b.1").await.unwrap();
            publisher.send("end").await.unwrap();
            peer.tell("recv s").await;
            let line = peer.answers.next_line().await.unwrap().unwrap();
            if let Some(received) = line.strip_prefix("ok ") {
                assert!([Message::from(["a.1", "body"]), "end".into()].contains(&unhex(received)), "{received}");
                break;
            }
        }
        peer.ask("option s RCVTIMEO int:20000").await;
        peer.ask("option s UNSUBSCRIBE str:a.").await;
        peer.ask("option s SUBSCRIBE str:marker").await;
        peer.ask("option s RCVTIMEO int:20").await;
        loop {
            publisher.send("marker").await.unwrap();
            peer.tell("recv s").await;
            let line = peer.answers.next_line().await.unwrap().unwrap();
            if line == format!("ok {}", hex(&"marker".into())) {
                break;
            }
        }
        // What comes after the new subscription comes after the end of the old one.
        publisher.send("a.2").await.unwrap();
        publisher.send("marker-last").await.unwrap();
        peer.ask("option s RCVTIMEO int:20000").await;
        loop {
            let received = peer.recv("s").await;
            assert!(!received[0].starts_with(b"a."), "{received:?}");
            if received == Message::from("marker-last") {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn libzmq_pub_sends_what_sub_subscribed_to() {
    each_way(Socket::subscriber, "PUB", async |subscriber, peer| {
        subscriber.subscribe(b"a.").unwrap();
        loop {
            peer.send("s", &"b.1".into()).await;
            peer.send("s", &Message::from(["a.1", "body"])).await;
            if let Ok(received) = tokio::time::timeout(Duration::from_millis(20), subscriber.recv()).await {
                assert_eq!(received.unwrap(), Message::from(["a.1", "body"]));
                break;
            }
        }
        subscriber.sender().cancel(b"a.").unwrap();
        subscriber.subscribe(b"marker").unwrap();
        loop {
            peer.send("s", &"marker".into()).await;
            let received = tokio::time::timeout(Duration::from_millis(20), subscriber.recv()).await;
            if received.is_ok_and(|received| received.unwrap() == Message::from("marker")) {
                break;
            }
        }
    })
    .await;
}

/// A SUB that was there before the PUB subscribes when the PUB comes.
#[tokio::test]
async fn libzmq_xpub_hears_of_subscriptions_made_before_it_came() {
    let mut peer = Peer::start().await;
    let subscriber = Socket::subscriber(options(Security::null()));
    subscriber.subscribe(b"early").unwrap();
    peer.socket("s", "XPUB", &[]).await;
    let bound = peer.ask("bind s tcp://127.0.0.1:*").await;
    subscriber.connect(&bound.parse().unwrap()).unwrap();
    assert_eq!(peer.recv("s").await, Message::from("\u{1}early"));
    subscriber.sender().cancel(b"early").unwrap();
    assert_eq!(peer.recv("s").await, Message::from("\0early"));
}

#[tokio::test]
async fn libzmq_exchanges_large_and_many_messages_in_order() {
    for mechanism in ["NULL", "CURVE"] {
        // Encryption is slow in a debug build.
        let part = if mechanism == "CURVE" { 8 } else { 1 };
        for (size, count) in [((5 << 20) / part, 3), (200, 20_000 / part), (9000, 2000 / part)] {
            let way = Way { ipc: false, mechanism, we_bind: true, we_serve: true };
            let mut peer = Peer::start().await;
            let (security, their_options) = credentials(&mut peer, way).await;
            let mut router = Socket::router(options(security));
            let bound = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
            peer.socket("s", "DEALER", &their_options).await;
            peer.ask("option s IDENTITY str:theirs").await;
            peer.ask(&format!("connect s {bound}")).await;
            peer.tell(&format!("send_many s {size} {count}")).await;
            for number in 0..count {
                let message = router.recv().await.unwrap();
                assert_eq!(message[1], (number as u32).to_be_bytes().as_slice());
                assert_eq!(message[2].len(), size);
                assert!(message[2].iter().all(|byte| *byte == b'x'));
            }
            peer.answer().await;
            peer.tell(&format!("recv_many s {size} {count}")).await;
            let body = Bytes::from(vec![b'x'; size]);
            for number in 0..count {
                let message = Message::from([Bytes::from((number as u32).to_be_bytes().to_vec()), body.clone()]);
                router.send_to(b"theirs", message).await.unwrap();
            }
            peer.answer().await;
        }
    }
}

#[tokio::test]
async fn libzmq_keeps_and_is_kept_by_heartbeats() {
    for mechanism in ["NULL", "CURVE"] {
        let way = Way { ipc: false, mechanism, we_bind: true, we_serve: true };
        let mut peer = Peer::start().await;
        let (security, mut their_options) = credentials(&mut peer, way).await;
        their_options
            .extend(["IVL int:20", "TIMEOUT int:2000", "TTL int:2000"].map(|option| format!("HEARTBEAT_{option}")));
        let mut ours = options(security);
        ours.heartbeat =
            Some(Heartbeat { interval: Duration::from_millis(20), ..Heartbeat::every(Duration::from_secs(1)) });
        // A REQ of libzmq 4.2 takes heartbeats for malformed replies.
        let mut router = Socket::router(ours);
        let bound = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        peer.socket("s", "DEALER", &their_options).await;
        peer.ask(&format!("connect s {bound}")).await;
        // Some twenty PINGs each way, before and behind which the connection is the same.
        let before = router.counters().bytes_received;
        while router.counters().bytes_received < before + 64 + 41 + 20 * 9 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        peer.send("s", &"x".into()).await;
        let (identity, message) = router.recv_from().await.unwrap();
        assert_eq!(message, "x".into());
        router.send_to(identity.as_bytes(), "y").await.unwrap();
        assert_eq!(peer.recv("s").await, "y".into());
        assert_eq!((router.counters().connected, router.counters().disconnected), (1, 0));
    }
}

#[tokio::test]
async fn libzmq_and_we_refuse_each_others_wrong_credentials() {
    let mut peer = Peer::start().await;
    let tcp: Endpoint = "tcp://127.0.0.1:0".parse().unwrap();
    let theirs = peer.ask("keys").await;
    let (public, secret) = theirs.split_once(' ').unwrap();
    let keys = KeyPair::generate();
    // They come to us: with a name that is not known, a key that is not allowed, the wrong key of ours.
    let curve = |server: String| {
        vec![
            format!("CURVE_PUBLICKEY str:{public}"),
            format!("CURVE_SECRETKEY str:{secret}"),
            format!("CURVE_SERVERKEY str:{server}"),
        ]
    };
    let any = || Security::curve_server(keys.clone(), AllowedKeys::Any);
    let plain = vec!["PLAIN_USERNAME str:a".to_owned(), "PLAIN_PASSWORD str:b".to_owned()];
    for (number, (security, options_of_theirs, expected)) in [
        (Security::plain_server(|_, _| false), plain, "the peer's credentials are not accepted"),
        (
            Security::curve_server(keys.clone(), [].into_iter().collect()),
            curve(keys.public().to_string()),
            "the peer's credentials are not accepted",
        ),
        (
            any(),
            curve(KeyPair::generate().public().to_string()),
            "the box in HELLO cannot be opened: the keys do not match",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = Socket::router(options(security));
        let mut events = socket.events();
        let bound = socket.bind(&tcp).await.unwrap();
        let name = format!("client{number}");
        peer.socket(&name, "DEALER", &options_of_theirs).await;
        peer.ask(&format!("connect {name} {bound}")).await;
        assert_eq!(failed(&mut events).await.to_string(), expected);
        assert_eq!(socket.counters().connected, 0);
        peer.ask(&format!("option {name} LINGER int:0")).await;
        peer.ask(&format!("close {name}")).await;
    }
    // libzmq closes before its own greeting is out if ours has another mechanism.
    for socket_is_bound in [true, false] {
        let socket = Socket::router(options(any()));
        let mut events = socket.events();
        let name = format!("null{socket_is_bound}");
        peer.socket(&name, "DEALER", &[]).await;
        if socket_is_bound {
            let bound = socket.bind(&tcp).await.unwrap();
            peer.ask(&format!("connect {name} {bound}")).await;
        } else {
            let bound = peer.ask(&format!("bind {name} tcp://127.0.0.1:*")).await;
            socket.connect(&bound.parse().unwrap()).unwrap();
        }
        let reason = failed(&mut events).await.to_string();
        let expected = ["the peer's mechanism is NULL, and CURVE is this socket's", "the peer closed the connection"];
        assert!(expected.contains(&reason.as_str()), "{reason}");
    }
    // We come to them.
    peer.ask("auth plain user word").await;
    peer.ask(&format!("auth curve {}", keys.public())).await;
    peer.socket("plain", "ROUTER", &["PLAIN_SERVER int:1".to_owned()]).await;
    peer.socket("curve", "ROUTER", &["CURVE_SERVER int:1".to_owned(), format!("CURVE_SECRETKEY str:{secret}")]).await;
    let their_key: PublicKey = public.parse().unwrap();
    for (server, security, expected) in [
        ("plain", Security::plain_client("user", "guess").unwrap(), "the peer refused: \"400\""),
        ("curve", Security::curve_client(their_key, KeyPair::generate()), "the peer refused: \"400\""),
        ("curve", Security::curve_client(KeyPair::generate().public(), keys.clone()), "the peer closed the connection"),
    ] {
        let bound = peer.ask(&format!("bind {server} tcp://127.0.0.1:*")).await;
        let socket = Socket::dealer(options(security));
        let mut events = socket.events();
        socket.connect(&bound.parse().unwrap()).unwrap();
        assert_eq!(failed(&mut events).await.to_string(), expected);
        assert_eq!(socket.counters().connected, 0);
    }
}

#[tokio::test]
async fn libzmq_push_is_accepted_by_a_router_that_is_told_to() {
    let mut peer = Peer::start().await;
    let mut ours = options(Security::null());
    ours.router_accepts_push = true;
    let mut router = Socket::router(ours);
    let bound = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    peer.socket("s", "PUSH", &[]).await;
    peer.ask("option s IDENTITY str:worker").await;
    peer.ask(&format!("connect s {bound}")).await;
    peer.send("s", &Message::from(["\u{2}", "worker"])).await;
    let (identity, message) = router.recv_from().await.unwrap();
    assert!(identity.is_generated());
    assert_eq!(message, Message::from(["\u{2}", "worker"]));
    // Its DEALER with the same name is another peer.
    peer.socket("d", "DEALER", &[]).await;
    peer.ask("option d IDENTITY str:worker").await;
    peer.ask(&format!("connect d {bound}")).await;
    peer.send("d", &"\u{1}".into()).await;
    assert_eq!(router.recv().await.unwrap(), Message::from(["worker", "\u{1}"]));
    router.send_to(b"worker", "task").await.unwrap();
    assert_eq!(peer.recv("d").await, "task".into());
}

#[tokio::test]
async fn libzmq_finds_us_again_and_we_find_it() {
    let mut peer = Peer::start().await;
    // We go away and come back.
    let mut rep = Socket::rep(options(Security::null()));
    let bound = rep.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    peer.socket("client", "REQ", &["RECONNECT_IVL int:5".to_owned()]).await;
    peer.ask(&format!("connect client {bound}")).await;
    for number in 0..3_u8 {
        peer.send("client", &vec![number].into()).await;
        assert_eq!(rep.recv().await.unwrap(), vec![number].into());
        rep.send(vec![number]).await.unwrap();
        assert_eq!(peer.recv("client").await, vec![number].into());
        rep.close().await;
        rep = Socket::rep(options(Security::null()));
        rep.bind(&bound).await.unwrap();
    }
    // It goes away with a request of ours and comes back.
    let mut req = Socket::req(options(Security::null()));
    peer.socket("server", "REP", &[]).await;
    let bound = peer.ask("bind server tcp://127.0.0.1:*").await;
    req.connect(&bound.parse().unwrap()).unwrap();
    req.send("one").await.unwrap();
    assert_eq!(peer.recv("server").await, "one".into());
    peer.ask("close server").await;
    assert_eq!(req.recv().await, Err(ReceiveError::PeerLost));
    peer.socket("server", "REP", &[]).await;
    peer.ask(&format!("bind server {bound}")).await;
    req.send("two").await.unwrap();
    assert_eq!(peer.recv("server").await, "two".into());
    peer.send("server", &"reply".into()).await;
    assert_eq!(req.recv().await.unwrap(), "reply".into());
}
