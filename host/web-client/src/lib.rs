//! Requests to servers outside: connections that are kept and used again, limits of time and size, errors that say what
//! went wrong where. Used by resources of the protocol that speaks HTTP and by guests' own requests; knows neither.
//!
//! `connect.rs` makes connections, `proxy.rs` those through a proxy, `tls.rs` secures them, `body.rs` bounds what comes
//! back, `error.rs` names failures.

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
use self::connect::{Connector, Uses};
pub use self::error::{WebError, WebErrorKind};
pub use self::tls::{Tls, TlsFileError, client_config};
use wasmcage_config::Proxy;
use wasmcage_core::request::Deadline;

/// A body on its way out.
pub type StreamedBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Kept connections that turn out to be closed, for one request; each costs an attempt.
const STALE_CONNECTIONS_MAX: usize = 3;

/// Which version of HTTP is spoken. Without TLS there is no negotiation: `Auto` is HTTP/1.1 there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2 {
    Auto,
    Only,
    Never,
}

#[derive(Clone, Debug)]
pub struct ClientSettings {
    pub tls: Tls,
    /// Between this client and all servers that it does not spare.
    pub proxy: Option<Proxy>,
    pub http2: Http2,
    /// From the name to the secured connection.
    pub connect_timeout: Duration,
    /// Unused for so long, a connection is closed.
    pub idle_timeout: Duration,
    pub response_header_bytes_max: usize,
    /// In use or idle.
    pub connections_max: usize,
}

/// How long one exchange may take, by its parts.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Until there is a connection; the client's own `connect_timeout` holds besides.
    pub connect: Option<Duration>,
    /// From then to the end of the response's head.
    pub first_byte: Option<Duration>,
    /// Between two parts of the response's body.
    pub between_bytes: Option<Duration>,
    pub deadline: Deadline,
}

pub enum RequestBody {
    /// Can be sent again.
    Whole(Bytes),
    Streamed(StreamedBody),
}

/// A pool of connections to any number of servers. A clone is the same.
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
            // hyper has a lower bound on its buffer, which holds a head.
            .http1_max_buf_size(settings.response_header_bytes_max.max(8 * 1024))
            .http2_max_header_list_size(u32::try_from(settings.response_header_bytes_max).unwrap_or(u32::MAX));
        let proxy = settings.proxy.clone().map(Arc::new);
        Self { pool: builder.build(Connector::new(settings, proxy.clone())), proxy }
    }

    /// Resolves when the response's head is there. `head` has an absolute URI. A request without side effects that met
    /// a kept connection just when the server closed it is sent again, if its body is whole.
    ///
    /// # Errors
    /// See the kinds.
    pub async fn send(&self, head: Parts, body: RequestBody, times: Times) -> Result<Response<ResponseBody>, WebError> {
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
        times: Times,
    ) -> Result<Response<ResponseBody>, FailedAttempt> {
        let mut request = Request::from_parts(head, body);
        self.introduce(&mut request);
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
    /// A proxy that reads the request wants to know who asks; through a tunnel it was told when that was made.
    fn introduce<B>(&self, request: &mut Request<B>) {
        let Some(proxy) = self.proxy.as_ref().filter(|_| request.uri().scheme() == Some(&Scheme::HTTP)) else { return };
        let Some(authorization) = proxy::authorization(proxy).filter(|_| proxy::leads_to(proxy, request.uri())) else {
            return;
        };
        request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
    }
}

struct FailedAttempt {
    error: WebError,
    /// A kept connection was closed before anything of an answer came.
    stale: bool,
}

async fn exchange(
    response: legacy::ResponseFuture,
    connection: &mut CaptureConnection,
    times: Times,
) -> Result<Response<Incoming>, WebError> {
    let mut response = pin!(response);
    let limit = |part: Option<Duration>| part.map_or(times.deadline, |part| times.deadline.within(part)).instant();
    let connected = async {
        // What it says is read later: it must not be held while others write it.
        drop(connection.wait_for_connection_metadata().await);
    };
    tokio::select! {
        // An answer first: a short one may be there together with the connection.
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

/// How many requests used the connection before; none if there was no connection. Asked once for each request.
fn uses(connection: &CaptureConnection) -> Option<usize> {
    let mut extensions = http::Extensions::new();
    connection.connection_metadata().as_ref()?.get_extras(&mut extensions);
    extensions.get::<Uses>().map(Uses::next)
}
