//! A server with a fake dispatcher, and clients that write raw bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody as FrameStream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::super::config::HttpConfig;
use super::super::events::HttpEvents;
use super::super::forwarded::{ForwardedHeader, TrustedProxies};
use super::super::interface::InterfaceShared;
use super::super::server::HttpServer;
use wasmcage_core::body::StreamBody;
use wasmcage_core::body_budget::{BodyBudget, BodyShare};
use wasmcage_core::call::{Call, Remote};
use wasmcage_core::drain::Drain;
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::{Deadline, Facts, Payload, Reply, Request, RequestContext};
use wasmcage_core::run_to_end::RunToEnd;
use wasmcage_core::task::Tasks;
use wasmcage_protocol::{Address, Dispatch, Endpoint, InterfaceError, Route, RouteKind};
use wasmcage_store::CallEntry;

/// Longer than anything here takes; a test that reaches it has failed.
pub(super) const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The memory budget for bodies that are kept whole.
pub(super) const BODY_BYTES: u64 = 256 << 20;

/// The dispatcher behind the server. A request's target tells it what to do.
#[derive(Clone)]
pub(super) struct FakeDispatch {
    pub(super) kind: Option<RouteKind>,
    pub(super) had_module: Arc<AtomicBool>,
    pub(super) gate: Arc<RequestGate>,
    /// The body of the last request to `/listen` and the like, and how it ended; the gate counts them.
    pub(super) received: Arc<Mutex<String>>,
}

/// Holds the requests for `/wait` until the test releases them.
pub(super) struct RequestGate {
    pub(super) inside: AtomicUsize,
    pub(super) open: Semaphore,
}

impl FakeDispatch {
    pub(super) fn new(kind: Option<RouteKind>) -> Self {
        let had_module = Arc::new(AtomicBool::new(kind.is_some()));
        Self {
            kind,
            had_module,
            gate: Arc::new(RequestGate { inside: AtomicUsize::new(0), open: Semaphore::new(0) }),
            received: Arc::default(),
        }
    }

    /// Reads a request's body, and records it and how it ended.
    async fn receive(&self, mut body: StreamBody) {
        let mut body_text = String::new();
        let end = loop {
            match body.frame().await {
                Some(Ok(frame)) => body_text.push_str(&String::from_utf8_lossy(frame.data_ref().unwrap())),
                Some(Err(error)) => break error.to_string(),
                None => break "the end".to_owned(),
            }
        };
        *self.received.lock() = format!("{body_text}, {end}");
        self.gate.inside.fetch_add(1, Ordering::SeqCst);
    }

    async fn reply(&self, action: &str, target: &str, body: Bytes, facts: &Facts) -> Result<Reply, DispatchError> {
        let reply = |status, headers: Vec<(String, String)>, body: Bytes| Ok(Reply { status, headers, body });
        match target {
            "/wait" => {
                self.gate.inside.fetch_add(1, Ordering::SeqCst);
                self.gate.open.acquire().await.unwrap().forget();
                reply(200, Vec::new(), Bytes::from_static(b"waited"))
            }
            "/panic" => panic!("as asked"),
            "/facts" => {
                let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name}={value}")).collect();
                reply(200, Vec::new(), Bytes::from(facts.join(";")))
            }
            "/refused" => Err(DispatchError::Refused("a secret".to_owned())),
            "/overloaded" => Err(DispatchError::Overloaded("a secret".to_owned())),
            "/late" => Err(DispatchError::DeadlineExceeded("a secret".to_owned())),
            "/trap" => Err(DispatchError::Trap("a secret".to_owned())),
            "/missing" => Err(DispatchError::NoSuchModule("a secret".to_owned())),
            "/split" => reply(200, vec![("a".to_owned(), "b\r\nset-cookie: c".to_owned())], Bytes::new()),
            "/status" => reply(1000, Vec::new(), Bytes::new()),
            "/empty" => reply(204, Vec::new(), Bytes::from_static(b"not empty")),
            "/large" => reply(200, Vec::new(), Bytes::from(vec![b'x'; 64 << 20])),
            "/text" => {
                let kind = vec![("content-type".to_owned(), "text/plain".to_owned())];
                reply(200, kind, Bytes::from("text ".repeat(1000)))
            }
            _ => reply(200, Vec::new(), [format!("{action} {target} ").as_bytes(), &body].concat().into()),
        }
    }
}

#[async_trait]
impl Dispatch for FakeDispatch {
    fn route(&self) -> Result<Option<Route>, DispatchError> {
        Ok(self.kind.map(|kind| Route::new(kind, Arc::new(()))))
    }

    fn has_had_module(&self) -> bool {
        self.had_module.load(Ordering::SeqCst)
    }

    fn handle(&self, _: Route, request: Request) -> RunToEnd<Result<Reply, DispatchError>> {
        let this = self.clone();
        RunToEnd::new(async move {
            this.reply(&request.action, &request.target, request.body, &request.context.facts).await
        })
    }

    /// Echoes the body as it arrives, trailers included. For CONNECT the host is the target: `CONNECT echo:1` does the
    /// same as `/echo`.
    async fn stream(
        &self,
        _: Route,
        context: Arc<RequestContext>,
        request: http::Request<StreamBody>,
        _longest: Duration,
    ) -> Result<Response<StreamBody>, DispatchError> {
        let (parts, mut body) = request.into_parts();
        let target = match parts.uri.host() {
            Some(host) if parts.method == Method::CONNECT => format!("/{host}"),
            _ => parts.uri.path().to_owned(),
        };
        match &*target {
            "/forbidden" => {
                let fake = self.clone();
                let mut response = Response::new(async_stream(|sender| async move {
                    fake.receive(body).await;
                    // It fails only if the client has left.
                    let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"forbidden")))).await;
                }));
                *response.status_mut() = StatusCode::FORBIDDEN;
                Ok(response)
            }
            // Status 204 has no content but for CONNECT.
            "/length" => {
                let mut response = Response::new(whole(Bytes::from_static(b"bytes")));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response.headers_mut().insert("content-length", HeaderValue::from_static("5"));
                Ok(response)
            }
            // Ends its response, and goes on reading.
            "/listen" => {
                let fake = self.clone();
                tokio::spawn(async move { fake.receive(body).await });
                Ok(Response::new(whole(Bytes::from_static(b"listening"))))
            }
            // Responds after it has read everything.
            "/converse" => {
                let fake = self.clone();
                Ok(Response::new(async_stream(|sender| async move {
                    fake.receive(body).await;
                    // It fails only if the client has left.
                    let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"goodbye")))).await;
                })))
            }
            "/collect" => {
                let collected = body.collect().await.map_err(|error| DispatchError::Failed(error.to_string()))?;
                Ok(Response::new(whole(collected.to_bytes())))
            }
            "/early" => Ok(Response::new(whole(Bytes::from_static(b"early")))),
            "/echo" => {
                let frames = async_stream(move |sender| async move {
                    while let Some(Ok(frame)) = body.frame().await {
                        if sender.send(Ok(frame)).await.is_err() {
                            return;
                        }
                    }
                });
                Ok(Response::new(frames))
            }
            "/broken" => Ok(Response::new(async_stream(|sender| async move {
                // It fails only if the client has left.
                let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"half")))).await;
                let _ = sender.send(Err("broken".into())).await;
            }))),
            "/trailers" => {
                let mut response = Response::new(async_stream(|sender| async move {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-sum", HeaderValue::from_static("42"));
                    // It fails only if the client has left.
                    let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"body")))).await;
                    let _ = sender.send(Ok(Frame::trailers(trailers))).await;
                }));
                response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
                Ok(response)
            }
            "/connection" => {
                let mut response = Response::new(whole(Bytes::new()));
                response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
                Ok(response)
            }
            target => {
                let reply = self.reply(parts.method.as_str(), target, Bytes::new(), &context.facts).await?;
                Ok(Response::new(whole(reply.body)))
            }
        }
    }

    async fn call(&self, _: Arc<RequestContext>, _: &str, _: &str, _: Payload) -> Result<Payload, DispatchError> {
        unreachable!("HTTP calls no functions")
    }

    async fn answer_call(&self, _: Call) -> Result<Payload, DispatchError> {
        unreachable!("HTTP brings no calls")
    }

    async fn attempt(&self, _: &CallEntry, _: Vec<u8>, _: Deadline) -> Result<(), DispatchError> {
        unreachable!("HTTP has no queue")
    }

    fn flock(&self) -> String {
        unreachable!("HTTP is for everybody")
    }

    fn set_remote(&self, _: Arc<dyn Remote>) {
        unreachable!("HTTP carries no calls")
    }

    fn unset_remote(&self, _: &Arc<dyn Remote>) {
        unreachable!("HTTP carries no calls")
    }
}

type FrameResult = Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>;

fn whole(bytes: Bytes) -> StreamBody {
    StreamBody::new(http_body_util::Full::new(bytes).map_err(|never| match never {}))
}

fn async_stream<F>(feed: impl FnOnce(tokio::sync::mpsc::Sender<FrameResult>) -> F) -> StreamBody
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(feed(sender));
    let frames = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    StreamBody::new(FrameStream::new(frames))
}

pub(super) fn config() -> HttpConfig {
    HttpConfig {
        listen: "127.0.0.1:0".to_owned(),
        connections_max: 100,
        header_bytes_max: 2048,
        headers_max: 20,
        body_bytes: Some(1000),
        stream_timeout: TEST_TIMEOUT,
        response_header_bytes_max: 4096,
        streams_max: 10,
        keep_alive: true,
        idle_timeout: TEST_TIMEOUT,
        header_timeout: TEST_TIMEOUT,
        body_timeout: TEST_TIMEOUT,
        write_timeout: TEST_TIMEOUT,
        stop_grace: Duration::from_millis(200),
        allowed_methods: [Method::GET, Method::HEAD, Method::POST].to_vec(),
        allow: HeaderValue::from_static("GET, HEAD, POST"),
        trusted_proxies: TrustedProxies { nets: Vec::new(), header: ForwardedHeader::XForwarded },
        compress: None,
        tls: None,
    }
}

/// A running server; dropping it ends it.
pub(super) struct TestServer {
    pub(super) address: SocketAddr,
    pub(super) drain: Drain,
    pub(super) fake: FakeDispatch,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) budget: Arc<BodyBudget>,
    pub(super) task: JoinHandle<()>,
    _lanes: Arc<Lanes>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.drain.force();
    }
}

impl TestServer {
    pub(super) async fn try_start(config: HttpConfig, kind: Option<RouteKind>) -> Result<Self, InterfaceError> {
        Self::start_with(config, kind, BODY_BYTES).await
    }

    /// Starts a server with this memory budget for bodies.
    pub(super) async fn start_with(
        config: HttpConfig,
        kind: Option<RouteKind>,
        body_bytes: u64,
    ) -> Result<Self, InterfaceError> {
        let lanes = Arc::new(Lanes::start(2).unwrap());
        let fake = FakeDispatch::new(kind);
        let budget = Arc::new(BodyBudget::new(body_bytes));
        let bodies = Arc::new(BodyShare::new(budget.clone()));
        let events = HttpEvents::new("runner".into(), "my_http".into(), Tasks::new("runner"));
        let endpoint =
            Endpoint::new("my_http".into(), "http", "runner".into(), "interface_my_http".into(), TEST_TIMEOUT);
        let endpoint = Arc::new(endpoint);
        let shared =
            InterfaceShared { config, dispatch: Arc::new(fake.clone()), endpoint: endpoint.clone(), events, bodies };
        let server = HttpServer::bind(shared, lanes.clone()).await?;
        let url = server.url();
        let address = url.split('/').nth(2).unwrap().parse().unwrap();
        let drain = Drain::new();
        let task = tokio::spawn(server.run(endpoint.listen(Address::Outside(url)), drain.clone()));
        Ok(Self { address, drain, fake, endpoint, budget, task, _lanes: lanes })
    }

    pub(super) async fn start(config: HttpConfig, kind: RouteKind) -> Self {
        Self::try_start(config, Some(kind)).await.unwrap()
    }

    pub(super) async fn connect(&self) -> RawClient<TcpStream> {
        RawClient::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// Sends this on a new connection, and returns everything that the server sends until it closes.
    pub(super) async fn exchange(&self, sent: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(sent).await;
        client.rest().await
    }

    /// Checks that another client is served.
    pub(super) async fn check_alive(&self) {
        let answer = self.exchange("GET /alive HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    /// Waits until so many requests for `/wait` are at the gate.
    pub(super) async fn until_inside(&self, count: usize) {
        until(|| self.fake.gate.inside.load(Ordering::SeqCst) >= count).await;
    }
}

pub(super) async fn until(condition: impl Fn() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, met).await.expect("the condition is met in time");
}

/// A client that sends raw bytes and reads responses of HTTP/1.
pub(super) struct RawClient<S> {
    pub(super) stream: S,
    read: Vec<u8>,
}

/// The head and body of a response with a known length.
pub(super) struct RawResponse {
    pub(super) head: String,
    pub(super) body: String,
}

impl<S: AsyncRead + tokio::io::AsyncWrite + Unpin> RawClient<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The server may have answered and closed before it has taken everything.
        let _ = self.stream.write_all(bytes.as_ref()).await;
        let _ = self.stream.flush().await;
    }

    /// Closes the sending side; responses can still be read.
    pub(super) async fn end(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads everything until the end of the connection.
    pub(super) async fn rest(&mut self) -> String {
        let mut rest = std::mem::take(&mut self.read);
        let read = tokio::time::timeout(TEST_TIMEOUT, self.stream.read_to_end(&mut rest)).await;
        let rest = String::from_utf8_lossy(&rest).into_owned();
        // A reset after the response counts as an end, too.
        assert!(read.is_ok(), "the server does not end the connection after {rest:?}");
        rest
    }

    async fn more(&mut self) {
        let read = tokio::time::timeout(TEST_TIMEOUT, self.stream.read_buf(&mut self.read)).await;
        let count = read.expect("the server answers").expect("the connection is whole");
        assert!(count > 0, "the server closed after {:?}", String::from_utf8_lossy(&self.read));
    }

    /// Reads and drops at least so many bytes, and returns how many there were.
    pub(super) async fn skip(&mut self, bytes: usize) -> usize {
        let mut count = std::mem::take(&mut self.read).len();
        while count < bytes {
            self.more().await;
            count += std::mem::take(&mut self.read).len();
        }
        count
    }

    /// Reads exactly so many bytes.
    pub(super) async fn take(&mut self, bytes: usize) -> String {
        while self.read.len() < bytes {
            self.more().await;
        }
        String::from_utf8(self.read.drain(..bytes).collect()).unwrap()
    }

    /// Reads until the end of a head.
    pub(super) async fn head(&mut self) -> String {
        loop {
            if let Some(at) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..at + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            self.more().await;
        }
    }

    pub(super) async fn answer(&mut self) -> RawResponse {
        let head = self.head().await;
        let length = header(&head, "content-length").map_or(0, |value| value.parse().unwrap());
        while self.read.len() < length {
            self.more().await;
        }
        let body = self.read.drain(..length).collect();
        RawResponse { head, body: String::from_utf8(body).unwrap() }
    }
}

pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().filter_map(|line| line.split_once(": ")).find(|(found, _)| *found == name).map(|(_, value)| value)
}
