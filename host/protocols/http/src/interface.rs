//! Turns an HTTP request into a request to the dispatcher, and the reply into a response. The cage runs
//! `HttpInterface`; `respond` serves one request of any connection. Every failure becomes an `ErrorResponse` here.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::activity::{ActiveRequest, ConnectionActivity};
use super::body::{BodyError, IncomingBody, OutgoingBody, ResponseContent};
use super::compress::AcceptedEncodings;
use super::config::HttpConfig;
use super::events::HttpEvents;
use super::forwarded::ClientIdentity;
use super::page::{self, ErrorResponse, RequestSummary};
use super::server::HttpServer;
use super::tunnel::{self, Tunnel};
use super::{head, reply};
use wasmcage_core::body::StreamBody;
use wasmcage_core::body_budget::{BodyShare, NoRoom};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Facts, RequestContext, RequestId};
use wasmcage_core::task::{self, Panic};
use wasmcage_protocol::{Address, Dispatch, Endpoint, Interface, InterfaceContext, InterfaceError, Route, RouteKind};

/// The HTTP status of each error of the dispatcher.
fn status(error: &DispatchError) -> StatusCode {
    match error {
        DispatchError::BadRequest(_) => StatusCode::BAD_REQUEST,
        DispatchError::NoSuchCage(_) | DispatchError::NoSuchModule(_) | DispatchError::NoSuchFunction(_) => {
            StatusCode::NOT_FOUND
        }
        DispatchError::NotPermitted(_) => StatusCode::FORBIDDEN,
        DispatchError::Refused(_) => StatusCode::UNPROCESSABLE_ENTITY,
        DispatchError::Failed(_) | DispatchError::Trap(_) | DispatchError::Lost(_) | DispatchError::Host(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        DispatchError::DeadlineExceeded(_) => StatusCode::GATEWAY_TIMEOUT,
        DispatchError::Unreachable(_) | DispatchError::Overloaded(_) | DispatchError::Draining => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

pub(super) struct HttpInterface {
    pub(super) config: HttpConfig,
}

#[async_trait]
impl Interface for HttpInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let InterfaceContext { dispatch, endpoint, drain, lanes, bodies, tasks, .. } = cx;
        let events = HttpEvents::new(endpoint.cage.clone(), endpoint.interface.clone(), tasks);
        let bodies = Arc::new(BodyShare::new(bodies));
        let server = HttpServer::bind(
            InterfaceShared { config: self.config, dispatch, endpoint: endpoint.clone(), events, bodies },
            lanes,
        )
        .await?;
        let listening = endpoint.listen(Address::Outside(server.url()));
        server.run(listening, drain).await;
        Ok(())
    }
}

/// The state that the connections of one interface share.
pub(super) struct InterfaceShared {
    pub(super) config: HttpConfig,
    pub(super) dispatch: Arc<dyn Dispatch>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) events: HttpEvents,
    pub(super) bodies: Arc<BodyShare>,
}

/// The state that the requests of one connection share.
pub(super) struct ConnectionContext {
    pub(super) shared: Arc<InterfaceShared>,
    pub(super) peer: ClientIdentity,
    pub(super) activity: Arc<ConnectionActivity>,
    /// The interface's name. It has a reference count for each connection, since all lanes would contend for a shared
    /// one.
    pub(super) interface: Arc<str>,
    /// The tunnel that an HTTP/1 connection becomes once the current response is sent.
    pub(super) tunnel: Mutex<Option<Tunnel>>,
}

/// Serves one request. There is a response whatever happens.
pub(super) async fn respond(
    connection: Arc<ConnectionContext>,
    request: Request<Incoming>,
) -> Result<Response<OutgoingBody>, Infallible> {
    let active = ActiveRequest::begin(&connection.activity);
    let config = &connection.shared.config;
    let (parts, incoming) = request.into_parts();
    let summary = RequestSummary::of(&parts);
    let accepted = config.compress.as_ref().map(|compress| (compress, AcceptedEncodings::of(&parts.headers)));
    let body = IncomingBody::new(incoming, &connection.activity);
    let served = task::catch_panic_async(serve(&connection, parts, body)).await;
    let mut response = match served.unwrap_or_else(|panic| Err(connection.report_panic(&panic))) {
        Ok(response) => match accepted {
            Some((compress, accepted)) => compress.apply(accepted, &summary.method, response).await,
            None => response,
        },
        Err(refusal) => refusal.page(&summary),
    };
    if connection.activity.is_stopping() && summary.version < Version::HTTP_2 {
        // The connection is closed after this response.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|content| OutgoingBody { content, active }))
}

async fn serve(
    connection: &ConnectionContext,
    parts: Parts,
    mut body: IncomingBody,
) -> Result<Response<ResponseContent>, ErrorResponse> {
    let config = &connection.shared.config;
    head::check(&parts, &config.allowed_methods).map_err(|fault| connection.refuse_head(fault))?;
    // The module's version that is current now serves this request, however long its body takes.
    match connection.shared.dispatch.route().map_err(|error| connection.refuse_not_routed(&error))? {
        None => connection.respond_without_module(&parts),
        Some(route) => {
            let kind = route.kind();
            let allowed = body.allow(config.body_bytes_max(kind));
            allowed.map_err(|error| connection.refuse_body(&error))?;
            match kind {
                RouteKind::Whole => serve_whole(connection, route, parts, body).await,
                RouteKind::Streamed if parts.method == Method::CONNECT => {
                    serve_connect(connection, route, parts, body).await
                }
                RouteKind::Streamed => serve_streamed(connection, route, parts, body).await,
            }
        }
    }
}

/// Serves a request by a `handler` module, which gets the whole body. Its deadline starts when a slow client has sent
/// that.
async fn serve_whole(
    connection: &ConnectionContext,
    route: Route,
    parts: Parts,
    body: IncomingBody,
) -> Result<Response<ResponseContent>, ErrorResponse> {
    let config = &connection.shared.config;
    let mut room = connection.shared.bodies.room(connection.peer.address);
    let body = match tokio::time::timeout(config.body_timeout, body.collect(&mut room)).await {
        Ok(body) => body.map_err(|error| connection.refuse_body(&error))?,
        Err(_) => return Err(connection.refuse_late_body()),
    };
    let context = connection.context(&parts);
    let request = wasmcage_core::request::Request {
        context: context.clone(),
        action: parts.method.as_str().to_owned(),
        target: head::target(&parts.uri),
        headers: head::headers(&parts),
        body,
        body_room: Some(room),
    };
    let mut reply =
        connection.shared.dispatch.handle(route, request).await.map_err(|error| dispatch_error(context.id, &error))?;
    let mut room = connection.shared.bodies.room(connection.peer.address);
    room.grow(reply.body.len()).map_err(|error| connection.refuse_reply_without_room(&context, error))?;
    reply.body = room.hold(reply.body);
    reply::whole(reply, &parts.method, config.response_header_bytes_max)
        .map_err(|error| connection.refuse_invalid_reply(&context, &error))
}

/// Serves a request by a `wasi:http` module: both bodies are streamed. Its deadline starts here, and again with each
/// part of a body.
async fn serve_streamed(
    connection: &ConnectionContext,
    route: Route,
    mut parts: Parts,
    body: IncomingBody,
) -> Result<Response<ResponseContent>, ErrorResponse> {
    let context = connection.context(&parts);
    head::complete_target(&mut parts, context.facts.get(Facts::ENCRYPTED).is_some());
    let method = parts.method.clone();
    let (body, too_large) = body.stream();
    let request = Request::from_parts(parts, body);
    let longest = connection.shared.config.stream_timeout;
    let response =
        connection.shared.dispatch.stream(route, context.clone(), request, longest).await.map_err(|error| {
            if too_large.load(Ordering::Relaxed) {
                // The module failed because the client's body was cut.
                let bytes_max = connection.shared.config.body_bytes_max(RouteKind::Streamed);
                return connection.refuse_body(&BodyError::TooLarge { bytes_max });
            }
            dispatch_error(context.id, &error)
        })?;
    let header_bytes_max = connection.shared.config.response_header_bytes_max;
    reply::streamed(response, &method, header_bytes_max)
        .map_err(|error| connection.refuse_invalid_reply(&context, &error))
}

/// Serves CONNECT by a `wasi:http` module. If that responds with success, the connection (HTTP/1) or the stream
/// (HTTP/2) becomes a tunnel. After any other response an HTTP/1 connection is closed, since bytes that the client
/// sends into the expected tunnel must not be read as its next request.
async fn serve_connect(
    connection: &ConnectionContext,
    route: Route,
    mut parts: Parts,
    body: IncomingBody,
) -> Result<Response<ResponseContent>, ErrorResponse> {
    let config = &connection.shared.config;
    let closing = |mut refusal: ErrorResponse| {
        connection.activity.body_left_unread();
        refusal.close = true;
        refusal
    };
    head::check_connect(&parts, !body.is_end_stream()).map_err(|fault| closing(connection.refuse_head(fault)))?;
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let version = parts.version;
    let context = connection.context(&parts);
    head::complete_target(&mut parts, context.facts.get(Facts::ENCRYPTED).is_some());
    let (input, request_body) = tunnel::request_body();
    let request = Request::from_parts(parts, StreamBody::new(request_body));
    let longest = config.stream_timeout;
    let answered = connection.shared.dispatch.stream(route, context.clone(), request, longest).await;
    let response = answered.map_err(|error| closing(dispatch_error(context.id, &error)))?;
    let invalid = |error: reply::ReplyError| closing(connection.refuse_invalid_reply(&context, &error));
    if !response.status().is_success() {
        input.close();
        let answer = reply::streamed(response, &Method::CONNECT, config.response_header_bytes_max);
        let mut answer = answer.map_err(invalid)?;
        if version < Version::HTTP_2 {
            connection.activity.body_left_unread();
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        return Ok(answer);
    }
    let (answer, from_module) = reply::tunnel(response, config.response_header_bytes_max).map_err(invalid)?;
    let bytes_max = config.body_bytes_max(RouteKind::Streamed);
    // The module's own last deadline, and the time for the client to read the rest.
    let latest = context.started + longest.max(connection.shared.endpoint.timeout()) + config.write_timeout;
    let tunnel = Tunnel { input, from_module, bytes_max, latest, active: ActiveRequest::begin(&connection.activity) };
    match upgrade {
        Some(upgrade) if version == Version::HTTP_2 => run_in_stream(connection, context.id, upgrade, tunnel),
        Some(_) | None => *connection.tunnel.lock() = Some(tunnel),
    }
    Ok(answer)
}

/// Spawns the tunnel of an HTTP/2 stream. It begins when hyper has sent the response's head, and ends with its
/// connection at the latest.
fn run_in_stream(connection: &ConnectionContext, request: RequestId, upgrade: OnUpgrade, tunnel: Tunnel) {
    let send_task = tunnel::SendTask::expect();
    let (shared, peer) = (connection.shared.clone(), connection.peer.address);
    tokio::spawn(async move {
        // The upgrade fails if the client has left by then.
        let Ok(upgraded) = upgrade.await else { return };
        let mut stream = TokioIo::new(upgraded);
        match task::catch_panic_async(tunnel.run(&mut stream, Bytes::new(), Some(&send_task))).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => shared.events.tunnel_cut(request, peer, &error),
            Err(panic) => shared.events.panicked(request, &panic),
        }
        send_task.cut().await;
        // An earlier drop would end the stream in good order.
        drop(stream);
    });
}

/// The response to an error of the dispatcher, which has logged it.
fn dispatch_error(request: RequestId, error: &DispatchError) -> ErrorResponse {
    ErrorResponse::new(request, status(error), error.code(), error.public_text())
}

impl ConnectionContext {
    fn context(&self, parts: &Parts) -> Arc<RequestContext> {
        let facts = self.peer.facts(&parts.headers, &self.shared.config.trusted_proxies);
        Arc::new(RequestContext::new(self.interface.clone(), super::NAME, self.shared.endpoint.timeout(), facts))
    }

    fn refuse(&self, status: StatusCode, code: &'static str, text: &'static str, detail: &str) -> ErrorResponse {
        let request = RequestId::new();
        self.shared.events.request_refused(request, self.peer.address, code, detail);
        ErrorResponse::new(request, status, code, text)
    }

    fn refuse_head(&self, fault: head::HeadFault) -> ErrorResponse {
        let mut refusal = self.refuse(fault.status(), fault.code(), fault.text(), fault.text());
        if fault == head::HeadFault::Method {
            refusal.allow = Some(self.shared.config.allow.clone());
        }
        refusal.close = matches!(fault, head::HeadFault::Chunks | head::HeadFault::Coding);
        refusal
    }

    fn refuse_body(&self, error: &BodyError) -> ErrorResponse {
        let (status, code, text) = match error {
            BodyError::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the request's body is larger than allowed here")
            }
            BodyError::NoRoom(error) => {
                self.shared.events.no_room_for_body(*error);
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many and too large requests at the moment")
            }
            BodyError::Broken(_) | BodyError::Reset => {
                (StatusCode::BAD_REQUEST, "bad-request", "the request's body cannot be read")
            }
        };
        let mut refusal = self.refuse(status, code, text, &error.to_string());
        refusal.close = true;
        refusal
    }

    fn refuse_late_body(&self) -> ErrorResponse {
        let text = "the request's body did not come in time";
        self.refuse(StatusCode::REQUEST_TIMEOUT, "body-timeout", text, text)
    }

    /// The response if no version of the module can serve now. While the cage has never had such a module, GET and HEAD
    /// get the welcome page; any other request may have an effect, and a success would look as if it had happened.
    fn respond_without_module(&self, parts: &Parts) -> Result<Response<ResponseContent>, ErrorResponse> {
        let endpoint = &self.shared.endpoint;
        if !self.shared.dispatch.has_had_module() && matches!(parts.method, Method::GET | Method::HEAD) {
            let target = head::target(&parts.uri);
            return Ok(page::welcome(&target, &endpoint.cage, &endpoint.module, &RequestSummary::of(parts)));
        }
        endpoint.count_without_module();
        let request = RequestId::new();
        self.shared.events.no_module(request, &endpoint.module);
        let text = "the module that answers here is not ready";
        Err(ErrorResponse::new(request, StatusCode::SERVICE_UNAVAILABLE, "module-not-ready", text))
    }

    /// The response if the module cannot serve this interface at all.
    fn refuse_not_routed(&self, error: &DispatchError) -> ErrorResponse {
        let request = RequestId::new();
        self.shared.events.not_routed(request, &self.shared.endpoint.module, error);
        dispatch_error(request, error)
    }

    /// The response if the module's cannot be sent. The status is 502, since this server is a gateway to the module.
    fn refuse_invalid_reply(&self, context: &RequestContext, error: &reply::ReplyError) -> ErrorResponse {
        self.shared.events.invalid_reply(context, &self.shared.endpoint.module, error);
        ErrorResponse::new(context.id, StatusCode::BAD_GATEWAY, "invalid-reply", "the request failed")
    }

    /// The response if there is no memory to keep the module's until the client has read it. The module has done its
    /// work by then.
    fn refuse_reply_without_room(&self, context: &RequestContext, error: NoRoom) -> ErrorResponse {
        self.shared.events.no_room_for_reply(context, &self.shared.endpoint.module, error);
        let text = "too many and too large answers at the moment";
        ErrorResponse::new(context.id, StatusCode::SERVICE_UNAVAILABLE, "overloaded", text)
    }

    fn report_panic(&self, panic: &Panic) -> ErrorResponse {
        let request = RequestId::new();
        self.shared.events.panicked(request, panic);
        dispatch_error(request, &DispatchError::Host(String::new()))
    }
}
