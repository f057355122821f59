//! Outgoing HTTP requests of guests (`wasi:http/outgoing-handler`, `wasi:http/client`): to granted hosts only, over
//! connections that the module's version keeps for itself.
//!
//! A grant names hosts as they are in the URL. Which address a name has is up to whoever runs its domain, so that a granted
//! name, and `*` all the more, may lead to this machine or its neighbours.

use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::Home;
use crate::request::Deadline;
use crate::web_client::{Client, ClientSettings, Http2, RequestBody, ResponseBody, Times, Tls, WebError, WebErrorKind};

/// A guest may ask for less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const RESPONSE_HEADER_BYTES_MAX: usize = 64 << 10;
/// Of one version of a module, to all hosts together.
const CONNECTIONS_MAX: usize = 1_000;

/// What a request ends with: the response, and a future for what follows it.
type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

pub(super) struct OutgoingGrant {
    home: Arc<Home>,
    /// Of the request in work.
    deadline: Deadline,
}

impl OutgoingGrant {
    pub(super) fn new(home: Arc<Home>, deadline: Deadline) -> Self {
        Self { home, deadline }
    }

    /// Before each call into the guest.
    pub(super) fn begin(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    fn allows(&self, uri: &http::Uri) -> bool {
        let default_port = if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
        let Some(host) = uri.host() else { return false };
        let port = uri.port_u16().unwrap_or(default_port);
        self.home.granted().http.iter().flatten().any(|pattern| pattern.allows(host, port))
    }

    fn client(&self) -> Client {
        let settings = || ClientSettings {
            tls: Tls::public(),
            http2: Http2::Auto,
            connect_timeout: CONNECT_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            response_header_bytes_max: RESPONSE_HEADER_BYTES_MAX,
            connections_max: CONNECTIONS_MAX,
        };
        self.home.web_client.get_or_init(|| Client::new(&settings())).clone()
    }
}

impl WasiHttpHooks for OutgoingGrant {
    /// The client does so, where the version of HTTP wants it.
    fn set_host_header(&mut self) -> bool {
        false
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        if !self.allows(request.uri()) {
            let (cage, module) = (&*self.home.cage, &*self.home.module);
            let host = request.uri().authority().map_or("", |authority| authority.as_str());
            tracing::warn!(cage, module, host, "outgoing request denied, its host is not in allow.http");
            return Box::new(std::future::ready(Err(Error::HttpRequestDenied)));
        }
        let options = options.unwrap_or_default();
        let times = Times {
            connect: options.connect_timeout,
            first_byte: options.first_byte_timeout,
            between_bytes: options.between_bytes_timeout,
            deadline: self.deadline,
        };
        let client = self.client();
        Box::new(async move {
            let (head, body) = request.into_parts();
            let body = match body.is_end_stream() {
                true => RequestBody::Whole(bytes::Bytes::new()),
                false => RequestBody::Streamed(body.map_err(Into::into).boxed_unsync()),
            };
            let response = client.send(head, body, times).await.map_err(error)?;
            // The connection belongs to the client, who sees to its end.
            let after: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(std::future::ready(Ok(())));
            Ok((response.map(|body: ResponseBody| body.map_err(error).boxed_unsync()), after))
        })
    }
}

/// What WASI calls it.
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
        WebErrorKind::RequestBody => Error::InternalError(Some(error.text)),
    }
}
