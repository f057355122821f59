//! The memory for bodies that are kept whole is limited, even if clients do not finish sending or do not read.

use std::net::Ipv4Addr;

use tokio::net::TcpSocket;

use super::super::config::HttpConfig;
use super::fake::{RawClient, TestServer, config, until};
use wasmcage_protocol::RouteKind;

const MIB: u64 = 1 << 20;

async fn server(body_bytes: u64) -> TestServer {
    let config = HttpConfig { body_bytes: Some(8 * MIB), ..config() };
    TestServer::start_with(config, Some(RouteKind::Whole), body_bytes).await.unwrap()
}

/// A request's head, and the beginning of its body of 8 MiB.
fn begun(megabytes: u64) -> Vec<u8> {
    let head = format!("POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 8 * MIB);
    [head.into_bytes(), vec![b'y'; (megabytes * MIB) as usize]].concat()
}

#[tokio::test]
async fn unfinished_bodies_share_a_limit_and_leave_room_for_others() {
    let server = server(32 * MIB).await;
    let mut unfinished = Vec::new();
    let mut refused = 0;
    while refused < 10 {
        let mut client = server.connect().await;
        client.send(begun(3)).await;
        let before = server.budget.in_use();
        // Either its bytes are read, or it is refused.
        tokio::select! {
            answer = client.head() => {
                assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
                refused += 1;
            }
            () = until(|| server.budget.in_use() >= before + 3 * MIB) => unfinished.push(client),
        }
        assert!(server.budget.in_use() <= 32 * MIB);
        assert!(unfinished.len() <= 10, "{}", unfinished.len());
    }
    assert!(unfinished.len() >= 3, "{}", unfinished.len());
    // Small requests need no room, and another client has a share of its own.
    server.check_alive().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into()).unwrap();
    let mut other = RawClient::new(socket.connect(server.address).await.unwrap());
    let body = "z".repeat(MIB as usize);
    other.send(format!("POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: {MIB}\r\n\r\n{body}")).await;
    assert_eq!(other.answer().await.body.len() as u64, MIB + 8);
    drop(other);
    // A client that leaves frees its share.
    drop(unfinished);
    until(|| server.budget.in_use() == 0).await;
    let mut client = server.connect().await;
    client.send(begun(8)).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
}

/// Each response has 64 MiB.
#[tokio::test]
async fn responses_that_nobody_reads_share_a_limit() {
    let server = server(256 * MIB).await;
    let request = "GET /large HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut client = server.connect().await;
        client.send(request).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200 "));
        waiting.push(client);
    }
    let mut refused = server.connect().await;
    refused.send(request).await;
    assert!(refused.head().await.starts_with("HTTP/1.1 503 "));
    // A response that is read makes room.
    assert_eq!(waiting[0].skip(64 << 20).await, 64 << 20);
    until(|| server.budget.in_use() == 64 * MIB).await;
    let mut client = server.connect().await;
    client.send(request).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 "));
    drop((waiting, client));
    until(|| server.budget.in_use() == 0).await;
}
