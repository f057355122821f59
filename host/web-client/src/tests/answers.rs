//! Answers that are none, break off, are too large, or do not come.

use super::*;

#[tokio::test]
async fn an_answer_comes_with_its_status_headers_and_body() {
    let address =
        closing_server("HTTP/1.1 418 I'm a teapot\r\nx-tea: green\r\ncontent-length: 5\r\n\r\nhello and more").await;
    let response = get(&Client::new(&settings()), &format!("http://{address}/"), times()).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-tea"]), (418, &"green".parse().unwrap()));
    assert!(!response.body().is_end_stream());
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert_eq!(read_body(response).await, (b"hello".to_vec(), None));
}

#[tokio::test]
async fn a_redirect_is_the_callers_to_follow() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let address = server(move |_, mut stream| {
        let requests = counted.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                requests.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        }
    })
    .await;
    let response = get(&Client::new(&settings()), &format!("http://{address}/"), times()).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["location"]), (302, &"/elsewhere".parse().unwrap()));
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_server_that_closes_before_the_answers_head_ends_was_reached_and_is_gone() {
    for answer in ["", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nx-half: "] {
        let error = get_error(&settings(), &closing_server(answer).await, times()).await;
        assert_eq!((error.kind, error.sent), (WebErrorKind::Disconnected, true), "{answer:?}: {error}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_after_what_came() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf",
    ] {
        let address = closing_server(answer).await;
        let response = get(&Client::new(&settings()), &format!("http://{address}/"), times()).await.unwrap();
        let (bytes, error) = read_body(response).await;
        let error = error.expect("half is not all");
        assert_eq!((&*bytes, error.kind, error.sent), (&b"half"[..], WebErrorKind::Disconnected, true), "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_its_connection() {
    let address = closing_server("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nall").await;
    assert_eq!(answer(&Client::new(&settings()), &format!("http://{address}/")).await, (200, "all".into()));
}

#[tokio::test]
async fn what_is_not_http_is_told_as_such() {
    for answer in ["SSH-2.0-OpenSSH_9\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n"] {
        let error = get_error(&settings(), &closing_server(answer).await, times()).await;
        assert_eq!((error.kind, error.sent), (WebErrorKind::Protocol, true), "{answer:?}: {error}");
    }
    let address = closing_server("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n").await;
    let response = get(&Client::new(&settings()), &format!("http://{address}/"), times()).await.unwrap();
    let error = read_body(response).await.1.expect("a chunk without a size");
    assert!(error.sent && error.text.contains("chunk size"), "{error}");
}

#[tokio::test]
async fn a_head_beyond_the_limit_is_refused() {
    let answer = format!("HTTP/1.1 200 OK\r\nx-long: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(20_000));
    let address = closing_server(answer.leak()).await;
    let limited = |response_header_bytes_max| ClientSettings { response_header_bytes_max, ..settings() };
    let error = get_error(&limited(10_000), &address, times()).await;
    assert_eq!((error.kind, error.sent), (WebErrorKind::HeadTooLarge, true), "{error}");
    let client = Client::new(&limited(30_000));
    assert_eq!(answer_status(&client, &address).await, 200);
}

async fn answer_status(client: &Client, address: &str) -> u16 {
    answer(client, &format!("http://{address}/")).await.0
}

#[tokio::test]
async fn a_server_that_never_answers_costs_no_more_than_the_time_allowed() {
    let address = silent_server("").await;
    let first_byte = || Timeouts { first_byte: Some(SHORT), ..times() };
    let deadline = || Timeouts { deadline: Deadline::after(ENOUGH), ..times() };
    let both = || Timeouts { first_byte: Some(LONG), ..deadline() };
    for limited in [&first_byte as &dyn Fn() -> Timeouts, &deadline, &both] {
        let error = get_error(&settings(), &address, limited()).await;
        assert_eq!((error.kind, error.sent), (WebErrorKind::HeadTimedOut, true), "{error}");
    }
    // One that stops in the middle of its head has not answered either.
    let address = silent_server("HTTP/1.1 200 OK\r\ncontent-").await;
    let error = get_error(&settings(), &address, Timeouts { first_byte: Some(SHORT), ..times() }).await;
    assert_eq!((error.kind, error.sent), (WebErrorKind::HeadTimedOut, true), "{error}");
}

#[tokio::test]
async fn a_body_that_stops_coming_costs_no_more_than_the_time_allowed() {
    let address = silent_server("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let between_bytes = || Timeouts { between_bytes: Some(SHORT), ..times() };
    let deadline = || Timeouts { deadline: Deadline::after(ENOUGH), ..times() };
    for limited in [&between_bytes as &dyn Fn() -> Timeouts, &deadline] {
        let response = get(&Client::new(&settings()), &format!("http://{address}/"), limited()).await.unwrap();
        let (bytes, error) = read_body(response).await;
        let error = error.expect("half is not all");
        assert_eq!((&*bytes, error.kind, error.sent), (&b"half"[..], WebErrorKind::BodyTimedOut, true), "{error}");
    }
}

#[tokio::test]
async fn the_callers_own_body_that_breaks_off_is_no_fault_of_the_server() {
    let address = silent_server("").await;
    let broken = http_body_util::StreamBody::new(futures_util::stream::iter([
        Ok(http_body::Frame::data(Bytes::from_static(b"half"))),
        Err("the caller is gone".into()),
    ]));
    let post = head(Method::POST, &format!("http://{address}/"));
    let body = RequestBody::Streamed(broken.boxed_unsync());
    let error = Client::new(&settings()).send(post, body, times()).await.err().expect("no answer");
    assert_eq!((error.kind, error.sent), (WebErrorKind::RequestBody, true), "{error}");
}
