//! Sends the outgoing HTTP requests of guests (`wasi:http/outgoing-handler`, `wasi:http/client`). They may go to granted hosts
//! only, and use connections that no other version of a module uses.
//!
//! A grant names hosts as they are in the URL. The owner of a domain decides which address a name has, so a granted name, or
//! `*`, may lead to this machine or another one in its network.

use std::sync::Arc;
use std::time::Duration;

use http_body::Body as _;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::Home;
use wasmcage_config::url_port;
use wasmcage_core::request::{Deadline, StreamDeadline};
use wasmcage_core::telemetry::Level;
use wasmcage_web_client::{
    Client, ClientSettings, Http2, RequestBody, ResponseBody, StreamedBody, Timeouts, Tls, WebError, WebErrorKind,
};

/// The greatest timeout for a connection to be made. A guest may set a shorter one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const RESPONSE_HEADER_BYTES_MAX: usize = 64 << 10;
/// The greatest number of connections of one version of a module, to all hosts together.
const CONNECTIONS_MAX: usize = 1_000;

/// The result of a request: the response, and a future that resolves when the exchange has ended.
type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

pub(super) struct OutgoingGrant {
    home: Arc<Home>,
    /// The deadline of the guest's current request.
    deadline: Deadline,
    /// The deadline of the guest's current request if its bodies stream.
    stream: Option<Arc<StreamDeadline>>,
}

impl OutgoingGrant {
    pub(super) fn new(home: Arc<Home>, deadline: Deadline) -> Self {
        Self { home, deadline, stream: None }
    }

    /// Sets the deadlines of a request. Must be called before each call into the guest.
    pub(super) fn begin(&mut self, stream: Option<Arc<StreamDeadline>>, deadline: Deadline) {
        (self.stream, self.deadline) = (stream, deadline);
    }

    fn allows(&self, uri: &http::Uri) -> bool {
        let (Some(host), Some(port)) = (uri.host(), url_port(uri)) else { return false };
        self.home.granted().http.iter().any(|pattern| pattern.allows(host, port))
    }

    /// Returns the timeouts of an outgoing request. If the bodies of the guest's own request stream, those of the outgoing
    /// request may stream as well: then the idle timeout applies to each part, and the latest deadline to the whole.
    fn times(&self, options: &RequestOptions) -> Timeouts {
        let idle = self.stream.as_ref().map(|stream| stream.idle());
        Timeouts {
            connect: options.connect_timeout,
            first_byte: options.first_byte_timeout.or(idle),
            between_bytes: options.between_bytes_timeout.or(idle),
            deadline: self.stream.as_ref().map_or(self.deadline, |stream| stream.latest()),
        }
    }

    fn client(&self) -> Client {
        let http = &self.home.settings.http;
        let settings = || ClientSettings {
            tls: http
                .authorities
                .as_ref()
                .map_or_else(Tls::public, |authorities| Tls::beside_public(&authorities.certificates)),
            proxy: http.proxy.clone(),
            http2: Http2::Auto,
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            response_header_bytes_max: RESPONSE_HEADER_BYTES_MAX,
            connections_max: CONNECTIONS_MAX,
        };
        self.home.web_client.get_or_init(|| Client::new(&settings())).clone()
    }
}

/// Makes a streamed body of the guest's body. If the body ends with an error, `kept` gets it with its code, since HTTP
/// libraries keep only the text of an error.
fn keep_error(body: WasiBody, kept: Arc<Mutex<Option<Error>>>) -> StreamedBody {
    body.map_err(move |error| {
        let text = error.to_string();
        *kept.lock() = Some(error);
        text.into()
    })
    .boxed_unsync()
}

impl WasiHttpHooks for OutgoingGrant {
    /// Returns false: the client sets the header where the version of HTTP needs it.
    fn set_host_header(&mut self) -> bool {
        false
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        if url_port(request.uri()).is_none() {
            return Box::new(std::future::ready(Err(Error::HttpRequestUriInvalid)));
        }
        if !self.allows(request.uri()) {
            let host = request.uri().authority().map_or("", |authority| authority.as_str());
            let text = format!("outgoing request denied: {host} is not in allow.http of cage.toml");
            // It is limited like the guest's own lines, since the guest decides how many there are.
            self.home.log.line(Level::Warn, &text, None);
            return Box::new(std::future::ready(Err(Error::HttpRequestDenied)));
        }
        let times = self.times(&options.unwrap_or_default());
        let client = self.client();
        Box::new(send(client, request, times))
    }
}

async fn send(client: Client, request: http::Request<WasiBody>, times: Timeouts) -> Result<Sent, Error> {
    let (head, body) = request.into_parts();
    let own_error = Arc::default();
    let body = match body.is_end_stream() {
        true => RequestBody::Whole(bytes::Bytes::new()),
        false => RequestBody::Streamed(keep_error(body, Arc::clone(&own_error))),
    };
    let sent = client.send(head, body, times).await;
    let response = sent.map_err(|failed| own_error.lock().take().unwrap_or_else(|| error(failed)))?;
    // Nothing is left to wait for, since the client owns the connection and ends it.
    let after: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(std::future::ready(Ok(())));
    Ok((response.map(|body: ResponseBody| body.map_err(error).boxed_unsync()), after))
}

/// Converts an error of the client to the error code of WASI.
fn error(error: WebError) -> Error {
    match error.kind {
        WebErrorKind::Dns => Error::DnsError { rcode: None, info_code: None },
        WebErrorKind::DnsTimedOut => Error::DnsTimeout,
        WebErrorKind::Refused => Error::ConnectionRefused,
        WebErrorKind::Unreachable => Error::DestinationIpUnroutable,
        WebErrorKind::Connect => Error::DestinationUnavailable,
        WebErrorKind::ConnectTimedOut => Error::ConnectionTimeout,
        WebErrorKind::ConnectionLimit => Error::ConnectionLimitReached,
        WebErrorKind::Certificate => Error::TlsCertificateError,
        WebErrorKind::Alert(id) => Error::TlsAlertReceived { alert_id: Some(id), alert_message: Some(error.text) },
        WebErrorKind::Tls => Error::TlsProtocolError,
        WebErrorKind::HeadTimedOut => Error::HttpResponseTimeout,
        WebErrorKind::BodyTimedOut => Error::ConnectionReadTimeout,
        WebErrorKind::HeadTooLarge => Error::HttpResponseHeaderSectionSize(None),
        WebErrorKind::Disconnected if error.sent => Error::HttpResponseIncomplete,
        WebErrorKind::Disconnected => Error::ConnectionTerminated,
        WebErrorKind::Protocol => Error::HttpProtocolError,
        WebErrorKind::Uri => Error::HttpRequestUriInvalid,
        WebErrorKind::Proxy => Error::DestinationUnavailable,
        WebErrorKind::RequestBody => Error::InternalError(Some(error.text)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_error_that_a_guests_own_body_ends_with_keeps_its_code() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Reads until the client closes the connection.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let frames = [Ok(Frame::data(Bytes::from_static(b"the beginning"))), Err(Error::HttpRequestBodySize(Some(18)))];
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let request = http::Request::post(format!("http://{address}/")).body(body).unwrap();
        let client = Client::new(&ClientSettings {
            tls: Tls::public(),
            proxy: None,
            http2: Http2::Auto,
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            response_header_bytes_max: RESPONSE_HEADER_BYTES_MAX,
            connections_max: 1,
        });
        let deadline = Deadline::after(CONNECT_TIMEOUT);
        let sent =
            send(client, request, Timeouts { connect: None, first_byte: None, between_bytes: None, deadline }).await;
        assert!(matches!(sent.err(), Some(Error::HttpRequestBodySize(Some(18)))));
        server.await.unwrap();
    }
}
