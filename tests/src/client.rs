//! A small HTTP client for tests, and raw sockets for what no client would send.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// No test waits longer for an answer.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpConnector, Full<Bytes>>,
    address: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// # Panics
    /// When the body is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Kind and text of the error that a call ended with, as the guest `echo` tells them at `/try_call`.
    ///
    /// # Panics
    /// When the call had a result.
    pub fn call_error(&self) -> (String, String) {
        let answer = self.json();
        let kind = answer["error"].as_str().and_then(|error| error.split('(').next());
        let kind = kind.unwrap_or_else(|| panic!("no error: {answer}"));
        (kind.to_owned(), answer["text"].as_str().expect("a text").to_owned())
    }

    /// # Panics
    /// When the header is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name}: {:?}", self.headers))
            .to_str()
            .expect("ASCII")
    }
}

/// Checks what `call_error` found.
///
/// # Panics
/// When the kind is another, or a word is missing.
#[track_caller]
pub fn check_call_error(found: (String, String), kind: &str, words: &[&str]) {
    assert_eq!(found.0, kind, "{}", found.1);
    for word in words {
        assert!(found.1.contains(word), "{word:?} is not in {:?}", found.1);
    }
}

impl Client {
    pub fn new(address: &str) -> Self {
        Self { http: legacy::Client::builder(TokioExecutor::new()).build_http(), address: address.to_owned() }
    }

    /// HTTP/2 without TLS, by prior knowledge.
    pub fn http2(address: &str) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { http, address: address.to_owned() }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.send(Method::GET, target, &[], Bytes::new()).await
    }

    pub async fn post(&self, target: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, target, &[], body.into()).await
    }

    /// # Panics
    /// When there is no answer.
    pub async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        self.try_send(method, target, headers, body).await.unwrap_or_else(|error| panic!("{target}: {error}"))
    }

    /// # Errors
    /// When the connection fails, or no answer comes.
    pub async fn try_send(
        &self,
        method: Method,
        target: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{target}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let answer = async {
            let response = self.http.request(request).await?;
            let (head, body) = response.into_parts();
            anyhow::Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
        };
        tokio::time::timeout(TIMEOUT, answer).await?
    }
}

/// A target with parameters, of which the values may be any text.
pub fn query(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (index, (name, value)) in parameters.iter().enumerate() {
        target += if index == 0 { "?" } else { "&" };
        target += name;
        target += "=";
        target.extend(value.bytes().map(|byte| format!("%{byte:02X}")));
    }
    target
}

/// Sends these bytes and returns everything that comes back until the server closes the connection.
///
/// # Panics
/// When it cannot connect, or nothing ends the connection.
pub async fn raw(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    // The server may have answered and closed before it read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await;
    // A reset after the answer is an end, too.
    let _ = read.expect("the server ends the connection");
    String::from_utf8_lossy(&answer).into_owned()
}
