//! Beginning and end: of the port, of connections, of the interface.

use std::time::Duration;

use tokio::net::TcpStream;

use super::super::config::HttpConfig;
use super::fake::{PATIENCE, Running, config, header, until};
use wasmcage_protocol::{InterfaceError, RouteKind};

#[tokio::test]
async fn a_port_in_use_is_an_error() {
    let first = Running::start(config(), RouteKind::Whole).await;
    let second = HttpConfig { listen: first.address.to_string(), ..config() };
    let Err(InterfaceError::Listen { interface, address, .. }) = Running::try_start(second, None).await else {
        panic!("the port is taken");
    };
    assert_eq!((interface.as_str(), address), ("my_http", first.address.to_string()));
}

#[tokio::test]
async fn connections_past_the_limit_are_closed() {
    let server = Running::start(HttpConfig { connections_max: 3, ..config() }, RouteKind::Whole).await;
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
    // Those that were in are served on, and one that leaves makes room.
    seated[0].send("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(seated[0].rest().await.ends_with("GET / "));
    let found_room = async {
        while server.exchange("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found_room).await.unwrap();
}

#[tokio::test]
async fn a_drain_finishes_what_is_in_flight() {
    let mut server = Running::start(config(), RouteKind::Whole).await;
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
    // The port is free for a successor while the last request is still in work.
    let successor = HttpConfig { listen: server.address.to_string(), ..config() };
    until(|| std::net::TcpListener::bind(server.address).is_ok()).await;
    let successor = Running::start(successor, RouteKind::Whole).await;
    successor.check_alive().await;
    assert!(!server.task.is_finished());
    server.fake.gate.open.add_permits(1);
    let answer = busy.rest().await;
    assert!(answer.ends_with("waited"), "{answer}");
    assert_eq!(header(&answer, "connection"), Some("close"));
    tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap().unwrap();
    assert!(server.drain.complete(PATIENCE).await);
}

/// Requests that are sent after the drain began, on connections from before: new ones, used ones, and ones in the kernel.
#[tokio::test]
async fn a_drain_loses_no_request_of_connections_from_before() {
    let server = Running::start(HttpConfig { stop_grace: PATIENCE, ..config() }, RouteKind::Whole).await;
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
    assert!(server.drain.complete(PATIENCE).await);
}

#[tokio::test]
async fn a_client_that_ends_its_sending_gets_its_answer() {
    let server = Running::start(config(), RouteKind::Whole).await;
    for version in ["1.0", "1.1"] {
        let mut client = server.connect().await;
        client.send(format!("GET /wait HTTP/{version}\r\nhost: x\r\n\r\n")).await;
        server.until_inside(1).await;
        client.end().await;
        // The server has learnt of it before there is an answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.fake.gate.open.add_permits(1);
        assert!(client.rest().await.ends_with("waited"), "{version}");
        server.fake.gate.inside.store(0, std::sync::atomic::Ordering::SeqCst);
        // Together with the request, and in the middle of its body.
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
async fn requests_that_do_not_wait_for_the_answer_are_served_in_order() {
    let server = Running::start(config(), RouteKind::Whole).await;
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
    let mut server = Running::start(config(), RouteKind::Whole).await;
    let mut busy = server.connect().await;
    busy.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.until_inside(1).await;
    assert!(!server.drain.complete(Duration::from_millis(10)).await);
    assert_eq!(busy.rest().await, "");
    tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn connections_end_with_the_interface() {
    let server = Running::start(config(), RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    client.answer().await;
    server.task.abort();
    assert_eq!(client.rest().await, "");
    until(|| std::net::TcpStream::connect(server.address).is_err()).await;
}

#[tokio::test]
async fn a_client_that_is_gone_frees_its_place() {
    let server = Running::start(HttpConfig { connections_max: 1, ..config() }, RouteKind::Whole).await;
    let mut client = server.connect().await;
    client.send("GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await;
    server.until_inside(1).await;
    // As when its process was killed with something unread, or its machine. One that only ends its sending wants the answer.
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
    tokio::time::timeout(PATIENCE, found_room).await.unwrap();
}

#[tokio::test]
async fn keep_alive_can_be_off() {
    let server = Running::start(HttpConfig { keep_alive: false, ..config() }, RouteKind::Whole).await;
    let answers = server.exchange("GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answers.ends_with("GET /a "), "{answers}");
}

/// Many connections, opened and closed at once, all served.
#[tokio::test]
async fn a_crowd_is_served() {
    let server = Running::start(HttpConfig { connections_max: 1000, ..config() }, RouteKind::Whole).await;
    let address = server.address;
    let crowd = (0..300).map(|number| {
        tokio::spawn(async move {
            let mut client = super::fake::Client::new(TcpStream::connect(address).await.unwrap());
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
