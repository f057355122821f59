//! Outgoing HTTP requests of guests (`wasi:http/outgoing-handler`, `wasi:http/client`): to granted hosts only.

use std::sync::Arc;

use http::uri::Scheme;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks, default_send_request};

use super::Home;

/// A request on its way, as wasmtime's crate wants it.
type Sending = dyn Future<
        Output = Result<
            (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>),
            wasmtime_wasi_http::Error,
        >,
    > + Send;

pub(super) struct OutgoingGrant {
    home: Arc<Home>,
}

impl OutgoingGrant {
    pub(super) fn new(home: Arc<Home>) -> Self {
        Self { home }
    }

    fn allows(&self, uri: &http::Uri) -> bool {
        let default_port = if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
        let Some(host) = uri.host() else { return false };
        let port = uri.port_u16().unwrap_or(default_port);
        self.home.settings.allow.http.iter().flatten().any(|pattern| pattern.allows(host, port))
    }
}

impl WasiHttpHooks for OutgoingGrant {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<Sending> {
        if !self.allows(request.uri()) {
            let (cage, module) = (&*self.home.cage, &*self.home.module);
            let host = request.uri().authority().map_or("", |authority| authority.as_str());
            tracing::warn!(cage, module, host, "outgoing request denied, its host is not in allow.http");
            return Box::new(std::future::ready(Err(Error::HttpRequestDenied)));
        }
        Box::new(async move {
            use http_body_util::BodyExt as _;
            let (response, connection) = default_send_request(request, options).await?;
            let connection: Box<dyn Future<Output = Result<(), Error>> + Send> = Box::new(connection);
            Ok((response.map(|body| body.boxed_unsync()), connection))
        })
    }
}
