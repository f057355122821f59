//! Connections: none can be made, as many as there may be, kept ones, and those that the server has closed meanwhile.

use tokio::sync::{mpsc, watch};

use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn a_port_where_nothing_listens_refuses() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let error = get_error(&settings(), &address, times()).await;
    assert_eq!((error.kind, error.sent), (WebErrorKind::Refused, false), "{error}");
    assert!(error.text.starts_with(&address), "{error}");
}

#[tokio::test]
async fn a_port_that_is_none_is_told() {
    let error = get_error(&settings(), "127.0.0.1:99999", times()).await;
    assert_eq!((error.kind, error.sent), (WebErrorKind::Uri, false), "{error}");
}

/// Requests are sent until one of them is the second of its connection: one that has just been read to its end may come back
/// to the pool a moment after the next request has left.
#[tokio::test]
async fn a_connection_is_used_again() {
    let (second, mut second_came) = watch::channel(false);
    let second = Arc::new(second);
    let address = server(move |_, mut stream| {
        let second = second.clone();
        async move {
            for number in 0.. {
                if read_head(&mut stream).await.is_none() {
                    break;
                }
                stream.write_all(OK).await.unwrap();
                second.send_modify(|second| *second |= number > 0);
            }
        }
    })
    .await;
    let client = Client::new(&settings());
    let asking = async {
        loop {
            assert_eq!(answer(&client, &format!("http://{address}/")).await, (200, "ok".into()));
        }
    };
    tokio::select! {
        () = asking => {}
        came = second_came.wait_for(|second| *second) => drop(came.unwrap()),
        () = tokio::time::sleep(LONG) => panic!("no connection was used again"),
    }
}

/// A server that answers the first request of each connection, and closes it when the second one comes. Counts those.
async fn forgetful_server() -> (String, watch::Receiver<usize>) {
    let (closed, closings) = watch::channel(0);
    let closed = Arc::new(closed);
    let address = server(move |_, mut stream| {
        let closed = closed.clone();
        async move {
            if read_head(&mut stream).await.is_some() {
                stream.write_all(OK).await.unwrap();
                if read_head(&mut stream).await.is_some() {
                    closed.send_modify(|closed| *closed += 1);
                }
            }
        }
    })
    .await;
    (address, closings)
}

#[tokio::test]
async fn a_request_without_side_effects_survives_a_kept_connection_that_is_closed() {
    let (address, mut closings) = forgetful_server().await;
    let client = Client::new(&settings());
    let asking = async {
        loop {
            assert_eq!(answer(&client, &format!("http://{address}/")).await, (200, "ok".into()));
        }
    };
    tokio::select! {
        () = asking => {}
        enough = closings.wait_for(|closed| *closed >= 5) => drop(enough.unwrap()),
        () = tokio::time::sleep(LONG) => panic!("no connection was used again"),
    }
}

#[tokio::test]
async fn no_other_request_is_sent_twice() {
    for (method, is_whole) in [(Method::POST, true), (Method::DELETE, true), (Method::GET, false)] {
        let (address, closings) = forgetful_server().await;
        let client = Client::new(&settings());
        let body = || match is_whole {
            true => empty(),
            false => RequestBody::Streamed(
                http_body_util::Full::new(Bytes::from_static(b"x")).map_err(|never| match never {}).boxed_unsync(),
            ),
        };
        let asking = async {
            loop {
                match client.send(head(method.clone(), &format!("http://{address}/")), body(), times()).await {
                    Ok(response) => assert_eq!(read_body(response).await, (b"ok".to_vec(), None)),
                    Err(error) => break error,
                }
            }
        };
        let error = tokio::time::timeout(LONG, asking).await.expect("a kept connection is closed at some time");
        assert_eq!((error.kind, error.sent), (WebErrorKind::Disconnected, true), "{error}");
        assert_eq!(*closings.borrow(), 1, "the first one that met a closed connection failed");
    }
}

#[tokio::test]
async fn no_more_connections_are_made_than_there_may_be() {
    let (asked, mut requests) = mpsc::unbounded_channel();
    let (release, released) = watch::channel(false);
    let address = server(move |_, mut stream| {
        let (asked, mut released) = (asked.clone(), released.clone());
        async move {
            read_head(&mut stream).await;
            asked.send(()).unwrap();
            released.wait_for(|released| *released).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let client = Client::new(&ClientSettings { connections_max: 1, ..settings() });
    let url = format!("http://{address}/");
    let first = tokio::spawn({
        let (client, url) = (client.clone(), url.clone());
        async move { answer(&client, &url).await }
    });
    requests.recv().await.unwrap();
    let error = get(&client, &url, times()).await.err().expect("one is enough");
    assert_eq!((error.kind, error.sent), (WebErrorKind::ConnectionLimit, false), "{error}");
    release.send(true).unwrap();
    assert_eq!(first.await.unwrap().0, 200);
    // The place is given back with the connection.
    let asking = async {
        loop {
            match get(&client, &url, times()).await {
                Ok(response) => break response.status(),
                Err(error) => assert_eq!(error.kind, WebErrorKind::ConnectionLimit, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(tokio::time::timeout(LONG, asking).await.expect("the place comes back"), 200);
}
