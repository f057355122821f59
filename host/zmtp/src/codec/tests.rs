//! Two sides of a connection with each other, and one side with whatever bytes there are.

use std::sync::Arc;
use std::time::Duration;

use arbtest::arbitrary::{Result, Unstructured};
use bytes::{Bytes, BytesMut};

use super::*;
use crate::limits::Limits;
use crate::mechanism::{AllowedKeys, KeyPair, Security, User};
use crate::message::Message;
use crate::socket_type::SocketType;

fn config(socket_type: SocketType, security: Security) -> ConnectionConfig {
    ConnectionConfig {
        socket_type,
        identity: Bytes::from_static(b"me"),
        security,
        router_accepts_push: false,
        limits: Limits::default(),
    }
}

fn accepted(config: ConnectionConfig) -> Connection {
    Connection::new(Arc::new(config), true)
}

fn connecting(config: ConnectionConfig) -> Connection {
    Connection::new(Arc::new(config), false)
}

/// Client and server of each mechanism.
fn mechanisms() -> [(Security, Security); 3] {
    let keys = KeyPair::generate();
    let client = KeyPair::generate();
    let allowed: AllowedKeys = [client.public()].into_iter().collect();
    [
        (Security::null(), Security::null()),
        (
            Security::plain_client("user", "password").unwrap(),
            Security::plain_server(|user, password| user == "user" && password == "password"),
        ),
        (Security::curve_client(keys.public(), client), Security::curve_server(keys, allowed)),
    ]
}

/// Gives everything that one side has to say to the other, in pieces, and returns what came in there.
fn pass(
    from: &mut Connection,
    to: &mut Connection,
    held: &mut BytesMut,
    mut piece: impl FnMut(usize) -> usize,
) -> std::result::Result<Vec<Received>, ProtocolError> {
    let mut came = Vec::new();
    let mut bytes = from.output().take();
    while !bytes.is_empty() {
        let len = piece(bytes.len()).clamp(1, bytes.len());
        held.extend_from_slice(&bytes.split_to(len));
        while let Some(received) = to.receive(held)? {
            came.push(received);
        }
    }
    Ok(came)
}

/// Lets both sides complete their handshake.
fn shake(one: &mut Connection, other: &mut Connection) -> std::result::Result<(Peer, Peer), ProtocolError> {
    let (mut to_one, mut to_other) = (BytesMut::new(), BytesMut::new());
    let (mut of_one, mut of_other) = (None, None);
    for _ in 0..4 {
        for received in pass(one, other, &mut to_other, |len| len)? {
            let Received::Ready(peer) = received else { panic!("{received:?}") };
            of_other = Some(*peer);
        }
        for received in pass(other, one, &mut to_one, |len| len)? {
            let Received::Ready(peer) = received else { panic!("{received:?}") };
            of_one = Some(*peer);
        }
    }
    Ok((of_one.expect("ready"), of_other.expect("ready")))
}

#[test]
fn every_mechanism_tells_who_the_peer_is() {
    for (client, server) in mechanisms() {
        for client_accepts in [false, true] {
            let mut one = Connection::new(Arc::new(config(SocketType::Dealer, client.clone())), client_accepts);
            let mut other = Connection::new(Arc::new(config(SocketType::Router, server.clone())), !client_accepts);
            let (of_client, of_server) = shake(&mut one, &mut other).unwrap();
            assert_eq!((of_client.socket_type, of_server.socket_type), (SocketType::Router, SocketType::Dealer));
            assert_eq!(of_server.identity, "me");
            let expected = match format!("{client:?}").as_str() {
                "NULL" => None,
                "PLAIN client" => Some(User::Plain("user".to_owned())),
                _ => of_server.user.clone().filter(|user| matches!(user, User::Curve(_))),
            };
            assert_eq!(of_server.user, expected);
            assert!(one.is_ready() && other.is_ready());
        }
    }
}

/// RFC 37, "Worked Example": the bytes of both sides.
#[test]
fn a_handshake_is_that_of_the_worked_example() {
    let mut client =
        connecting(ConnectionConfig { identity: Bytes::new(), ..config(SocketType::Dealer, Security::null()) });
    let mut server =
        accepted(ConnectionConfig { identity: Bytes::new(), ..config(SocketType::Router, Security::null()) });
    let greeting = server.output().take();
    assert_eq!(greeting.len(), 64);
    let mut input = BytesMut::from(&greeting[..]);
    assert_eq!(client.receive(&mut input), Ok(None));
    let said = client.output().take();
    assert_eq!(&said[64..], b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0");
    let mut input = BytesMut::from(&said[..]);
    assert!(matches!(server.receive(&mut input), Ok(Some(Received::Ready(_)))));
    let said = server.output().take();
    // libzmq's ROUTER has an identity too, unlike that of the example.
    assert!(said.starts_with(b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06ROUTER"), "{said:?}");
}

#[test]
fn messages_pass_in_any_pieces_under_every_mechanism() {
    arbtest::arbtest(|u| {
        for (client, server) in mechanisms() {
            let mut one = connecting(config(SocketType::Dealer, client));
            let mut other = accepted(config(SocketType::Router, server));
            shake(&mut one, &mut other).unwrap();
            let mut held = BytesMut::new();
            let messages = messages(u)?;
            for message in &messages {
                one.send(message);
            }
            let sizes: Vec<usize> = (0..8).map(|_| u.int_in_range(1..=5000)).collect::<Result<_>>()?;
            let mut turn = 0;
            let came = pass(&mut one, &mut other, &mut held, |_| {
                turn += 1;
                sizes[turn % sizes.len()]
            });
            let expected: Vec<_> = messages.into_iter().map(Received::Message).collect();
            assert_eq!(came, Ok(expected));
            assert!(held.is_empty());
        }
        Ok(())
    });
}

fn messages(u: &mut Unstructured<'_>) -> Result<Vec<Message>> {
    (0..u.int_in_range(1..=5)?)
        .map(|_| {
            (0..u.int_in_range(1..=6)?)
                .map(|_| {
                    let len = *u.choose(&[0, 1, 2, 254, 255, 256, 2048, 2049, 4000])?;
                    Ok(Bytes::from(vec![u.arbitrary()?; len]))
                })
                .collect()
        })
        .collect()
}

#[test]
fn nobody_gets_in_with_wrong_credentials() {
    let keys = KeyPair::generate();
    let check = |client: Security, server: Security, expected: ProtocolError| {
        let mut one = connecting(config(SocketType::Dealer, client));
        let mut other = accepted(config(SocketType::Router, server));
        assert_eq!(shake(&mut one, &mut other).unwrap_err(), expected);
        assert!(!other.is_ready());
    };
    let curve_server = |allowed| Security::curve_server(keys.clone(), allowed);
    check(
        Security::curve_client(keys.public(), KeyPair::generate()),
        curve_server([].into_iter().collect()),
        ProtocolError::Denied,
    );
    check(
        Security::curve_client(KeyPair::generate().public(), KeyPair::generate()),
        curve_server(AllowedKeys::Any),
        ProtocolError::Box("HELLO"),
    );
    check(Security::plain_client("a", "b").unwrap(), Security::plain_server(|_, _| false), ProtocolError::Denied);
    check(
        Security::null(),
        curve_server(AllowedKeys::Any),
        ProtocolError::Mechanism { ours: MechanismName::CURVE, theirs: MechanismName::NULL },
    );
}

/// Somebody between the two can repeat or change what they say, and is found out.
#[test]
fn encrypted_frames_cannot_be_repeated_or_changed() {
    for attack in 0..3 {
        let [.., (client, server)] = mechanisms();
        let mut one = connecting(config(SocketType::Dealer, client));
        let mut other = accepted(config(SocketType::Router, server));
        shake(&mut one, &mut other).unwrap();
        one.send(&Message::from("secret"));
        let frame = one.output().take();
        assert!(!frame.windows(6).any(|part| part == b"secret"));
        let mut input = BytesMut::from(&frame[..]);
        let expected = match attack {
            0 => {
                input.extend_from_slice(&frame);
                assert!(matches!(other.receive(&mut input), Ok(Some(Received::Message(_)))));
                ProtocolError::Nonce
            }
            1 => {
                *input.last_mut().unwrap() ^= 1;
                ProtocolError::Box("MESSAGE")
            }
            _ => {
                input[10] ^= 0xff;
                ProtocolError::Box("MESSAGE")
            }
        };
        assert_eq!(other.receive(&mut input), Err(expected));
    }
}

#[test]
fn a_push_is_told_what_it_wants_to_hear_if_that_is_allowed() {
    for (client, server) in mechanisms() {
        let mut one = connecting(config(SocketType::Push, client));
        let mut other = accepted(ConnectionConfig { router_accepts_push: true, ..config(SocketType::Router, server) });
        let (of_push, of_router) = shake(&mut one, &mut other).unwrap();
        assert_eq!((of_push.socket_type, of_router.socket_type), (SocketType::Pull, SocketType::Push));
    }
}

/// Drives a NULL connection that has its handshake behind it.
fn in_traffic(socket_type: SocketType, peer_type: &str, limits: Limits) -> Connection {
    let mut connection = accepted(ConnectionConfig { limits, ..config(socket_type, Security::null()) });
    let mut input = BytesMut::from(&Greeting { minor: 0, ..Greeting::new(MechanismName::NULL, false) }.to_bytes()[..]);
    let mut data = BytesMut::new();
    Metadata::default().with("Socket-Type", peer_type.to_owned()).put(&mut data);
    put_command(&mut input, "READY", &data);
    assert!(matches!(connection.receive(&mut input), Ok(Some(Received::Ready(_)))));
    let _ = connection.output().take();
    connection
}

/// RFC 23 has subscriptions in messages, RFC 37 in commands; libzmq speaks both.
#[test]
fn subscriptions_are_understood_in_both_forms_and_sent_in_that_of_the_peer() {
    let mut publisher = in_traffic(SocketType::Pub, "SUB", Limits::default());
    let mut input =
        BytesMut::from(&b"\0\x02\x01a\0\x02\0a\x04\x0b\x09SUBSCRIBEb\x04\x08\x06CANCELb\0\x02\x02x\0\0"[..]);
    let mut came = Vec::new();
    while let Some(received) = publisher.receive(&mut input).unwrap() {
        came.push(received);
    }
    assert_eq!(
        came,
        [
            Received::Subscribe("a".into()),
            Received::Cancel("a".into()),
            Received::Subscribe("b".into()),
            Received::Cancel("b".into()),
            Received::Message("\u{2}x".into()),
            Received::Message("".into()),
        ]
    );
    let mut subscriber = in_traffic(SocketType::Sub, "PUB", Limits::default());
    subscriber.send_command(&Command::Subscribe("a".into()));
    subscriber.send_command(&Command::Cancel("a".into()));
    assert_eq!(subscriber.output().take(), &b"\0\x02\x01a\0\x02\0a"[..]);
}

#[test]
fn what_exceeds_a_limit_ends_the_connection_before_it_is_read() {
    let limits = Limits { frame_bytes_max: 1000, message_bytes_max: 1500, message_frames_max: 3, ..Limits::default() };
    let check = |input: &[u8], expected: ProtocolError| {
        let mut connection = in_traffic(SocketType::Router, "DEALER", limits.clone());
        let mut input = BytesMut::from(input);
        loop {
            match connection.receive(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => panic!("nothing was refused"),
                Err(error) => return assert_eq!(error, expected),
            }
        }
    };
    for bits in 35..64 {
        let mut header = vec![2];
        header.extend((1_u64 << bits).to_be_bytes());
        check(&header, ProtocolError::FrameTooLong { bytes: 1 << bits, max: 1000 });
        header[0] = 6;
        check(&header, ProtocolError::CommandTooLong { bytes: 1 << bits, max: 8192 });
    }
    check(b"\x02\0\0\0\0\0\0\x03\xe9", ProtocolError::FrameTooLong { bytes: 1001, max: 1000 });
    let first = [&b"\x03\0\0\0\0\0\0\x03\xe8"[..], &[0; 1000]].concat();
    check(&[&first[..], b"\x02\0\0\0\0\0\0\x01\xf5"].concat(), ProtocolError::MessageTooLong { max: 1500 });
    check(&b"\x01\0".repeat(4), ProtocolError::TooManyFrames { max: 3 });
    check(b"\x08\0", ProtocolError::Flags(8));
    // With a command between the frames of a message.
    let mut connection = in_traffic(SocketType::Router, "DEALER", limits.clone());
    let mut input = BytesMut::from(&b"\x01\x01a\x04\x07\x04PING\0\0\0\x01b"[..]);
    assert_eq!(connection.receive(&mut input), Ok(Some(Received::Ping { ttl_tenths: 0 })));
    assert_eq!(connection.receive(&mut input), Ok(Some(Received::Message(Message::from(["a", "b"])))));
}

/// A peer that sends PING and never reads makes nothing grow.
#[test]
fn pongs_do_not_pile_up() {
    let mut connection = in_traffic(SocketType::Router, "DEALER", Limits::default());
    let ping = b"\x04\x09\x04PING\0\0xy";
    let mut most = 0;
    for _ in 0..100_000 {
        let mut input = BytesMut::from(&ping[..]);
        assert!(matches!(connection.receive(&mut input), Ok(Some(Received::Ping { .. }))));
        most = most.max(connection.output().len());
    }
    assert!(most < 66_000, "{most}");
    let output = connection.output().take();
    assert_eq!(&output[..9], b"\x04\x07\x04PONGxy");
    assert_eq!(connection.output().take(), &b"\x04\x07\x04PONGxy"[..], "the last one was kept");
}

/// How long the searches below take: milliseconds, or what `ZMTP_FUZZ_SECONDS` says.
fn budget() -> Duration {
    let seconds =
        std::env::var("ZMTP_FUZZ_SECONDS").ok().map(|text| text.parse().expect("ZMTP_FUZZ_SECONDS is a number"));
    seconds.map_or(Duration::from_millis(300), Duration::from_secs)
}

/// Gives a connection bytes in pieces, and checks after each that it keeps within its limits.
fn feed(connection: &mut Connection, u: &mut Unstructured<'_>, limits: &Limits) -> Result<()> {
    let mut held = BytesMut::new();
    while !u.is_empty() {
        let len = u.int_in_range(0..=40)?.min(u.len());
        held.extend_from_slice(u.bytes(len)?);
        loop {
            match connection.receive(&mut held) {
                Ok(Some(Received::Message(message))) => {
                    assert!(
                        message.byte_len() <= limits.message_bytes_max && message.len() <= limits.message_frames_max
                    );
                    assert!(message.iter().all(|frame| frame.len() <= limits.frame_bytes_max));
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    assert_eq!(connection.receive(&mut held), Ok(None), "nothing is read after an error");
                    return Ok(());
                }
            }
        }
        // What waits is one frame at most, and its length is within the limit.
        assert!(held.len() <= 9 + limits.frame_bytes_max.max(limits.command_bytes_max) + 40);
        assert!(connection.wanted(&held) <= limits.frame_bytes_max.max(limits.command_bytes_max) + 64);
        assert!(connection.output().len() < 70_000);
    }
    Ok(())
}

#[test]
fn no_bytes_panic_or_make_a_connection_exceed_its_limits() {
    let limits = Limits {
        frame_bytes_max: 300,
        message_bytes_max: 400,
        message_frames_max: 4,
        command_bytes_max: 350,
        ..Limits::default()
    };
    let mechanisms = mechanisms();
    arbtest::arbtest(|u| {
        let (client, server) = u.choose(&mechanisms)?.clone();
        let socket_type = *u.choose(&[SocketType::Router, SocketType::Pub, SocketType::Dealer])?;
        let limits = limits.clone();
        match u.int_in_range(0..=3)? {
            // From the first byte.
            0 => {
                let security = if u.arbitrary()? { client } else { server };
                let config = ConnectionConfig { limits: limits.clone(), ..config(socket_type, security) };
                feed(&mut Connection::new(Arc::new(config), u.arbitrary()?), u, &limits)
            }
            // From the handshake on.
            1 => {
                let mut connection =
                    accepted(ConnectionConfig { limits: limits.clone(), ..config(socket_type, server.clone()) });
                let mut greeting =
                    BytesMut::from(&Greeting::new(server.mechanism(), client.is_server()).to_bytes()[..]);
                assert_eq!(connection.receive(&mut greeting), Ok(None));
                feed(&mut connection, u, &limits)
            }
            // In traffic.
            2 => {
                let peer = if socket_type == SocketType::Pub { "SUB" } else { "DEALER" };
                feed(&mut in_traffic(socket_type, peer, limits.clone()), u, &limits)
            }
            // A handshake in which somebody changes a byte.
            _ => {
                let mut one = connecting(config(SocketType::Dealer, client));
                let mut other = accepted(config(SocketType::Router, server));
                let (at, with): (usize, u8) = (u.int_in_range(0..=700)?, u.arbitrary()?);
                let mut seen = 0;
                for _ in 0..4 {
                    for towards_other in [true, false] {
                        let (from, to) = if towards_other { (&mut one, &mut other) } else { (&mut other, &mut one) };
                        let mut bytes = BytesMut::from(&from.output().take()[..]);
                        if let Some(byte) = at.checked_sub(seen).and_then(|at| bytes.get_mut(at)) {
                            *byte = with;
                        }
                        seen += bytes.len();
                        while let Ok(Some(_)) = to.receive(&mut bytes) {}
                    }
                }
                Ok(())
            }
        }
    })
    .size_min(64)
    .size_max(4096)
    .budget(budget());
}
