//! How the port, connections and the interface begin and end.

use std::time::Duration;

use tokio::net::TcpStream;

use super::super::config::HttpConfig;
use super::fake::{TEST_TIMEOUT, TestServer, config, header, until};
use wasmcage_protocol::{InterfaceError, RouteKind};

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let first = TestServer::start(config(), RouteKind::Whole).await;
    let second = HttpConfig { listen: first.address.to_string(), ..config() };
    let Err(InterfaceError::Listen { interface, address, .. }) = TestServer::try_start(second, None).await else {
        panic!("the port is taken");
    };
    assert_eq!((interface.as_str(), address), ("my_http", first.address.to_string()));
}

#[tokio::test]
async fn connections_past_the_limit_are_closed() {
    let server = TestServer::start(HttpConfig { connections_max: 3, ..config() }, RouteKind::Whole).await;
    let mut seated = Vec::new();
    for _ in 0..3 {
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(client.answer().await.body, "GET / ");
        seated.push(client);
    }
    for _ in 0..20 {
        assert_eq!(server.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await, "");
    }
    // The open ones are still served, and one that closes makes room.
    seated[0].send("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(seated[0].rest().await.ends_with("GET / "));
    let found_room = async {
        while server.exchange("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, found_room).await.unwrap();
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight() {
    let mut server = TestServer::start(config(), RouteKind::Whole).await;
    let mut idle = server.connect().await;
    idle.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    idle.answer().await;
    let mut silent = server.connect().await;
    let mut busy = server.connect().await;
    busy.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.until_inside(1).await;
    server.drain.begin();
    assert_eq!(idle.rest().await, "");
    assert_eq!(silent.rest().await, "");
    // The port is free for a successor while the last request is still in flight.
    let successor = HttpConfig { listen: server.address.to_string(), ..config() };
    until(|| std::net::TcpListener::bind(server.address).is_ok()).await;
    let successor = TestServer::start(successor, RouteKind::Whole).await;
    successor.check_alive().await;
    assert!(!server.task.is_finished());
    server.fake.gate.open.add_permits(1);
    let answer = busy.rest().await;
    assert!(answer.ends_with("waited"), "{answer}");
    assert_eq!(header(&answer, "connection"), Some("close"));
    tokio::time::timeout(TEST_TIMEOUT, &mut server.task).await.unwrap().unwrap();
    assert!(server.drain.complete(TEST_TIMEOUT).await);
}

/// Requests that are sent after the drain began, on connections from before it: unused ones, used ones, and ones that
/// were not accepted yet.
#[tokio::test]
async fn a_drain_loses_no_request_of_connections_from_before() {
    let server = TestServer::start(HttpConfig { stop_grace: TEST_TIMEOUT, ..config() }, RouteKind::Whole).await;
    let mut used = server.connect().await;
    used.send("GET /a HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(header(&used.answer().await.head, "connection"), None);
    let mut clients = vec![used];
    for _ in 0..50 {
        clients.push(server.connect().await);
    }
    server.drain.begin();
    until(|| std::net::TcpListener::bind(server.address).is_ok()).await;
    for mut client in clients {
        client.send("GET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let answer = client.rest().await;
        assert_eq!(header(&answer, "connection"), Some("close"), "{answer:?}");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("GET /b "), "{answer:?}");
    }
    assert!(server.drain.complete(TEST_TIMEOUT).await);
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_response() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    for version in ["1.0", "1.1"] {
        let mut client = server.connect().await;
        client.send(format!("GET /wait HTTP/{version}\r\nhost: x\r\n\r\n")).await;
        server.until_inside(1).await;
        client.end().await;
        // The server learns of it before there is a response.
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.fake.gate.open.add_permits(1);
        assert!(client.rest().await.ends_with("waited"), "{version}");
        server.fake.gate.inside.store(0, std::sync::atomic::Ordering::SeqCst);
        // It happens together with the request, and in the middle of its body.
        let mut client = server.connect().await;
        client.send(format!("POST /a HTTP/{version}\r\nhost: x\r\ncontent-length: 3\r\n\r\nend")).await;
        client.end().await;
        assert!(client.rest().await.ends_with("POST /a end"), "{version}");
        let mut client = server.connect().await;
        client.send(format!("POST /a HTTP/{version}\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")).await;
        client.end().await;
        assert_eq!(&client.rest().await[9..12], "400", "{version}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_served_in_order() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.until_inside(1).await;
    let long = "y".repeat(900);
    client.send(format!("POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n{long}")).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.send("GET /c HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    server.fake.gate.open.add_permits(1);
    assert_eq!(client.answer().await.body, "waited");
    assert_eq!(client.answer().await.body, format!("POST /b {long}"));
    assert!(client.rest().await.ends_with("GET /c "));
}

#[tokio::test]
async fn a_forced_end_waits_for_nobody() {
    let mut server = TestServer::start(config(), RouteKind::Whole).await;
    let mut busy = server.connect().await;
    busy.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.until_inside(1).await;
    assert!(!server.drain.complete(Duration::from_millis(10)).await);
    assert_eq!(busy.rest().await, "");
    tokio::time::timeout(TEST_TIMEOUT, &mut server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_end_with_the_interface() {
    let server = TestServer::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    client.answer().await;
    server.task.abort();
    assert_eq!(client.rest().await, "");
    until(|| std::net::TcpStream::connect(server.address).is_err()).await;
}

#[tokio::test]
async fn a_client_that_has_gone_makes_room_for_another() {
    let server = TestServer::start(HttpConfig { connections_max: 1, ..config() }, RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.until_inside(1).await;
    // A reset, as when the client's process was killed. A client that only closes its sending side still waits for the
    // response.
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let found_room = async {
        loop {
            let mut client = server.connect().await;
            client.send("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if client.rest().await.ends_with("GET / ") {
                return;
            }
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, found_room).await.unwrap();
}

#[tokio::test]
async fn keep_alive_can_be_off() {
    let server = TestServer::start(HttpConfig { keep_alive: false, ..config() }, RouteKind::Whole).await;
    let answers = server.exchange("GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answers.ends_with("GET /a "), "{answers}");
}

#[tokio::test]
async fn many_connections_at_once_are_served() {
    let server = TestServer::start(HttpConfig { connections_max: 1000, ..config() }, RouteKind::Whole).await;
    let address = server.address;
    let crowd = (0..300).map(|number| {
        tokio::spawn(async move {
            let mut client = super::fake::RawClient::new(TcpStream::connect(address).await.unwrap());
            for _ in 0..5 {
                client.send(format!("GET /{number} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
                assert_eq!(client.answer().await.body, format!("GET /{number} "));
            }
        })
    });
    for one in crowd.collect::<Vec<_>>() {
        one.await.unwrap();
    }
}
