//! Requests through a proxy: plain ones are handed to it whole, for others it makes a tunnel.

use super::*;

/// Through a proxy at this address, but for what `except` names.
fn through(address: &str, except: &[&str]) -> ClientSettings {
    let mut proxy: Proxy = format!("http://user:secret@{address}").parse().unwrap();
    proxy.except = except.iter().map(|pattern| pattern.parse().unwrap()).collect();
    ClientSettings { proxy: Some(proxy), ..settings() }
}

/// A server that answers with the head of the request that it got.
async fn telling_server() -> String {
    server(|_, mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_plain_request_is_handed_to_the_proxy_with_its_whole_url_and_who_asks() {
    let proxy = telling_server().await;
    let (status, head) = answer(&Client::new(&through(&proxy, &[])), "http://server.example:81/path?x=1").await;
    assert_eq!(status, 200);
    assert!(head.starts_with("GET http://server.example:81/path?x=1 HTTP/1.1\r\n"), "{head}");
    // user:secret
    assert!(head.to_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq=\r\n"), "{head}");
}

#[tokio::test]
async fn a_server_that_is_excepted_is_asked_directly_and_learns_nothing_of_the_proxy() {
    let (proxy, address) = (closing_server("HTTP/1.1 502 Bad Gateway\r\n\r\n").await, telling_server().await);
    let (status, head) =
        answer(&Client::new(&through(&proxy, &["127.0.0.1"])), &format!("http://{address}/path")).await;
    assert_eq!(status, 200);
    assert!(head.starts_with("GET /path HTTP/1.1\r\n") && !head.to_lowercase().contains("proxy-"), "{head}");
}

#[tokio::test]
async fn a_proxy_that_makes_no_tunnel_ends_the_request_before_it_is_sent() {
    let proxy = closing_server("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let error = get(&Client::new(&through(&proxy, &[])), "https://server.example/", times()).await.err().unwrap();
    assert_eq!((error.kind, error.sent), (WebErrorKind::Proxy, false), "{error}");
    assert!(error.text.contains("server.example:443") && error.text.contains("407"), "{error}");
    assert!(!error.text.contains("secret"), "{error}");
}

#[tokio::test]
async fn a_proxy_that_never_answers_costs_no_more_than_the_time_for_a_connection() {
    let settings = ClientSettings { connect_timeout: SHORT, ..through(&silent_server("HTTP/1.1 ").await, &[]) };
    let error = get(&Client::new(&settings), "https://server.example/", times()).await.err().unwrap();
    assert_eq!((error.kind, error.sent), (WebErrorKind::ConnectTimedOut, false), "{error}");
    assert!(error.text.contains("the proxy's answer took longer than 50 ms"), "{error}");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_refuses_as_a_server_does() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    for url in ["http://server.example/", "https://server.example/"] {
        let error = get(&Client::new(&through(&nobody, &[])), url, times()).await.err().unwrap();
        assert_eq!((error.kind, error.sent), (WebErrorKind::Refused, false), "{error}");
        assert!(error.text.starts_with(&nobody), "{error}");
    }
}
