//! Addresses of a name, tried one after the other.

use tokio::net::TcpListener;

use super::*;

/// An address where nothing listens.
async fn closed_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[test]
fn an_address_loses_its_brackets_and_a_name_has_none() {
    assert_eq!((bare("[::1]"), bare("db.internal"), bare("[x"), bare("")), ("::1", "db.internal", "[x", ""));
}

#[tokio::test]
async fn an_address_that_refuses_is_followed_by_the_next() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = listener.local_addr().unwrap();
    let addresses = VecDeque::from([closed_address().await, closed_address().await, open]);
    let stream = first_to_answer(addresses).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), open);
}

#[tokio::test]
async fn the_last_failure_is_told_when_no_address_answers() {
    let addresses = VecDeque::from([closed_address().await, closed_address().await]);
    let error = first_to_answer(addresses).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(first_to_answer(VecDeque::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn an_address_in_a_url_is_its_own_only_address() {
    let found = addresses("127.0.0.1", 81).await.unwrap();
    assert_eq!(found, [SocketAddr::from(([127, 0, 0, 1], 81))]);
    let found = addresses(bare("[::1]"), 81).await.unwrap();
    assert_eq!(found, [SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 81))]);
}

#[test]
fn failures_of_tcp_have_their_kinds() {
    let kind = |kind: io::ErrorKind| of_tcp(&io::Error::from(kind), "a.example", 80).kind;
    assert_eq!(kind(io::ErrorKind::ConnectionRefused), WebErrorKind::Refused);
    assert_eq!(kind(io::ErrorKind::HostUnreachable), WebErrorKind::Unreachable);
    assert_eq!(kind(io::ErrorKind::NetworkUnreachable), WebErrorKind::Unreachable);
    assert_eq!(kind(io::ErrorKind::TimedOut), WebErrorKind::ConnectTimedOut);
    assert_eq!(kind(io::ErrorKind::AddrNotAvailable), WebErrorKind::Connect);
    let error = of_tcp(&io::Error::from(io::ErrorKind::ConnectionRefused), "a.example", 80);
    assert!(error.text.starts_with("a.example:80: ") && !error.sent, "{error:?}");
}
