//! An HTTP client with a pool of connections, limits of time and size, and errors that say what went wrong in which step. The
//! HTTP protocol's resources use it, and so do guests' own requests.
//!
//! `connect.rs` makes connections, `proxy.rs` those through a proxy, `tls.rs` has the settings of TLS, `body.rs` limits the
//! bodies of responses, `error.rs` has the errors.

mod body;
mod connect;
mod error;
mod proxy;
#[cfg(test)]
mod tests;
mod tls;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::request::Parts;
use http::uri::Scheme;
use http::{Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};

pub use self::body::ResponseBody;
use self::connect::{Connector, UseCount};
pub use self::error::{WebError, WebErrorKind};
pub use self::tls::{Tls, TlsFileError, client_config};
use wasmcage_config::Proxy;
use wasmcage_core::request::Deadline;

/// The streamed body of a request.
pub type StreamedBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Most pooled connections that turn out to be closed for one request. Each costs an attempt.
const STALE_CONNECTIONS_MAX: usize = 3;

/// The version of HTTP. Without TLS there is no negotiation, and `Auto` is HTTP/1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2 {
    Auto,
    Only,
    Never,
}

#[derive(Clone, Debug)]
pub struct ClientSettings {
    pub tls: Tls,
    /// The proxy for all servers, except those that it excepts.
    pub proxy: Option<Proxy>,
    pub http2: Http2,
    /// Timeout for making a connection, from the lookup of the name to the end of the TLS handshake.
    pub connect_timeout: Duration,
    /// A connection that was unused for so long is closed.
    pub idle_timeout: Duration,
    pub response_header_bytes_max: usize,
    /// Most connections, in use or idle.
    pub connections_max: usize,
}

/// Timeouts of the parts of one exchange.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until there is a connection; the client's `connect_timeout` holds, too.
    pub connect: Option<Duration>,
    /// From then to the end of the response's head.
    pub first_byte: Option<Duration>,
    /// Between two parts of the response's body.
    pub between_bytes: Option<Duration>,
    pub deadline: Deadline,
}

pub enum RequestBody {
    /// A whole body, which can be sent again.
    Whole(Bytes),
    Streamed(StreamedBody),
}

/// A client with a pool of connections to any number of servers. Clones share the pool.
#[derive(Clone)]
pub struct Client {
    pool: legacy::Client<Connector, StreamedBody>,
    proxy: Option<Arc<Proxy>>,
}

impl Client {
    pub fn new(settings: &ClientSettings) -> Self {
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle_timeout)
            .http2_only(settings.http2 == Http2::Only)
            // hyper requires a buffer of at least 8 KiB, which must have room for a head.
            .http1_max_buf_size(settings.response_header_bytes_max.max(8 * 1024))
            .http2_max_header_list_size(u32::try_from(settings.response_header_bytes_max).unwrap_or(u32::MAX));
        let proxy = settings.proxy.clone().map(Arc::new);
        Self { pool: builder.build(Connector::new(settings, proxy.clone())), proxy }
    }

    /// Sends a request, whose `head` has an absolute URI, and returns the response when its head is complete. If the server
    /// closed a pooled connection just when the request was sent on it, and the request has no side effects and a whole body, it
    /// is sent again.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn send(
        &self,
        head: Parts,
        body: RequestBody,
        times: Timeouts,
    ) -> Result<Response<ResponseBody>, WebError> {
        let whole = match body {
            RequestBody::Streamed(body) => return self.attempt(head, body, times).await.map_err(|failed| failed.error),
            RequestBody::Whole(bytes) => bytes,
        };
        let mut stale = 0;
        loop {
            let body = Full::new(whole.clone()).map_err(|never| match never {}).boxed_unsync();
            match self.attempt(head.clone(), body, times).await {
                Err(failed) if failed.stale && head.method.is_safe() && stale < STALE_CONNECTIONS_MAX => stale += 1,
                done => return done.map_err(|failed| failed.error),
            }
        }
    }

    async fn attempt(
        &self,
        head: Parts,
        body: StreamedBody,
        times: Timeouts,
    ) -> Result<Response<ResponseBody>, FailedAttempt> {
        let mut request = Request::from_parts(head, body);
        self.authorize(&mut request);
        let mut connection = capture_connection(&mut request);
        let result = exchange(self.pool.request(request), &mut connection, times).await;
        let used = uses(&connection);
        let answered = |response: Response<Incoming>| {
            let http2 = response.version() == Version::HTTP_2;
            response.map(|body| ResponseBody::new(body, http2, times))
        };
        result.map(answered).map_err(|mut error| {
            error.sent = used.is_some();
            FailedAttempt { stale: used.is_some_and(|before| before > 0) && error.kind.is_stale(), error }
        })
    }
}

impl Client {
    /// Adds the authorization for a proxy that gets the request itself. For a tunnel it was sent when the tunnel was made.
    fn authorize<B>(&self, request: &mut Request<B>) {
        let Some(proxy) = self.proxy.as_ref().filter(|_| request.uri().scheme() == Some(&Scheme::HTTP)) else { return };
        let Some(authorization) = proxy::authorization(proxy).filter(|_| proxy::leads_to(proxy, request.uri())) else {
            return;
        };
        request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
    }
}

struct FailedAttempt {
    error: WebError,
    /// A pooled connection was closed before any part of an answer came.
    stale: bool,
}

async fn exchange(
    response: legacy::ResponseFuture,
    connection: &mut CaptureConnection,
    times: Timeouts,
) -> Result<Response<Incoming>, WebError> {
    let mut response = pin!(response);
    let limit = |part: Option<Duration>| part.map_or(times.deadline, |part| times.deadline.within(part)).instant();
    let connected = async {
        // The metadata are read later; holding this reference would block those who write them.
        drop(connection.wait_for_connection_metadata().await);
    };
    tokio::select! {
        // The answer is checked first: a short one may come together with the connection.
        biased;
        answer = &mut response => return answer.map_err(|error| error::of_exchange(&error)),
        () = connected => {}
        () = tokio::time::sleep_until(limit(times.connect)) => {
            return Err(WebError::new(WebErrorKind::ConnectTimedOut, "no connection in time"));
        }
    }
    match tokio::time::timeout_at(limit(times.first_byte), response).await {
        Ok(answer) => answer.map_err(|error| error::of_exchange(&error)),
        Err(_) => Err(WebError::new(WebErrorKind::HeadTimedOut, "no answer in time")),
    }
}

/// Counts a request on its connection. Returns how many there were before; none if there was no connection.
fn uses(connection: &CaptureConnection) -> Option<usize> {
    let mut extensions = http::Extensions::new();
    connection.connection_metadata().as_ref()?.get_extras(&mut extensions);
    extensions.get::<UseCount>().map(UseCount::next)
}
