//! The client against servers of the tests' own, on loopback ports: what becomes of a request when its server closes, sends
//! half, says too much or nothing at all.

mod answers;
mod connections;
mod proxies;
mod tls;

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);
/// How long is waited for a server that never does what is waited for.
const SHORT: Duration = Duration::from_millis(50);
/// A deadline that leaves enough time for a connection and the part of an answer that comes at once.
const ENOUGH: Duration = Duration::from_secs(2);

fn settings() -> ClientSettings {
    ClientSettings {
        tls: Tls::public(),
        proxy: None,
        http2: Http2::Never,
        connect_timeout: LONG,
        idle_timeout: LONG,
        response_header_bytes_max: 64 * 1024,
        connections_max: 100,
    }
}

fn times() -> Timeouts {
    Timeouts { connect: None, first_byte: None, between_bytes: None, deadline: Deadline::after(LONG) }
}

/// A server on a port of its own that handles each connection by `serve`, which gets the connection's number. Returns
/// `127.0.0.1:port`.
async fn server<F, W>(serve: F) -> String
where
    F: Fn(usize, TcpStream) -> W + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(number, stream));
        }
    });
    address
}

/// A server that reads one request of each connection, writes `answer`, and closes the connection.
async fn closing_server(answer: &'static str) -> String {
    server(move |_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await
}

/// A server that reads one request of each connection, writes `answer`, and keeps silent from then on.
async fn silent_server(answer: &'static str) -> String {
    server(move |_, mut stream| async move {
        read_head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Until the client closes.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}

/// The head of the next request; none when the client has closed the connection.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

fn head(method: Method, url: &str) -> Parts {
    Request::builder().method(method).uri(url).body(()).unwrap().into_parts().0
}

fn empty() -> RequestBody {
    RequestBody::Whole(Bytes::new())
}

async fn get(client: &Client, url: &str, times: Timeouts) -> Result<Response<ResponseBody>, WebError> {
    client.send(head(Method::GET, url), empty(), times).await
}

/// The error of a GET of `http://<address>/`.
async fn get_error(settings: &ClientSettings, address: &str, times: Timeouts) -> WebError {
    match get(&Client::new(settings), &format!("http://{address}/"), times).await {
        Ok(response) => panic!("an answer: {}", response.status()),
        Err(error) => error,
    }
}

/// The body's bytes up to its end or its error.
async fn read_body(response: Response<ResponseBody>) -> (Vec<u8>, Option<WebError>) {
    let (mut body, mut bytes) = (pin!(response.into_body()), Vec::new());
    loop {
        match poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            None => return (bytes, None),
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap()),
            Some(Err(error)) => return (bytes, Some(error)),
        }
    }
}

/// The status and the whole body of a GET.
async fn answer(client: &Client, url: &str) -> (u16, String) {
    let response = get(client, url, times()).await.unwrap_or_else(|error| panic!("{error:?}"));
    let status = response.status().as_u16();
    let (bytes, error) = read_body(response).await;
    assert_eq!(error, None);
    (status, String::from_utf8(bytes).unwrap())
}
