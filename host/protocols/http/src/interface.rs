//! From an HTTP request to the dispatcher and back. `HttpInterface` is what the cage runs; `answer` serves one request, on
//! whichever connection `connection.rs` read it from. Everything that can go wrong becomes a `Refusal` here.

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

use super::body::{BodyError, Content, Inbound, Outbound};
use super::compress::Offer;
use super::config::HttpConfig;
use super::events::Events;
use super::forwarded::Peer;
use super::page::{self, Reader, Refusal};
use super::pulse::{Active, Pulse};
use super::server::Server;
use super::tunnel::{self, Tunnel};
use super::{head, reply};
use wasmcage_core::body::StreamBody;
use wasmcage_core::body_budget::{BodyShare, NoRoom};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Facts, RequestContext, RequestId};
use wasmcage_core::task::{self, Panic};
use wasmcage_protocol::{Address, Dispatch, Endpoint, Interface, InterfaceContext, InterfaceError, Route, RouteKind};

/// HTTP's column of the error table.
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
        let InterfaceContext { dispatch, endpoint, drain, lanes, bodies, .. } = cx;
        let events = Events::new(endpoint.cage.clone(), endpoint.interface.clone());
        let bodies = Arc::new(BodyShare::new(bodies));
        let server =
            Server::bind(Site { config: self.config, dispatch, endpoint: endpoint.clone(), events, bodies }, lanes)
                .await?;
        let listening = endpoint.listen(Address::Outside(server.url()));
        server.run(listening, drain).await;
        Ok(())
    }
}

/// All that the connections of one interface share.
pub(super) struct Site {
    pub(super) config: HttpConfig,
    pub(super) dispatch: Arc<dyn Dispatch>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) events: Events,
    pub(super) bodies: Arc<BodyShare>,
}

/// A connection, as its requests see it.
pub(super) struct Visit {
    pub(super) site: Arc<Site>,
    pub(super) peer: Peer,
    pub(super) pulse: Arc<Pulse>,
    /// The interface's name, counted per connection: a count shared by all lanes would be fought over.
    pub(super) interface: Arc<str>,
    /// What a connection of HTTP/1 becomes after the answer that is being sent.
    pub(super) tunnel: Mutex<Option<Tunnel>>,
}

/// Serves one request; whatever happens, there is an answer.
pub(super) async fn answer(visit: Arc<Visit>, request: Request<Incoming>) -> Result<Response<Outbound>, Infallible> {
    let active = Active::begin(&visit.pulse);
    let config = &visit.site.config;
    let (parts, incoming) = request.into_parts();
    let reader = Reader::of(&parts);
    let offer = config.compress.as_ref().map(|compress| (compress, Offer::of(&parts.headers)));
    let body = Inbound::new(incoming, &visit.pulse);
    let served = task::catch_panic_async(serve(&visit, parts, body)).await;
    let mut response = match served.unwrap_or_else(|panic| Err(visit.panicked(&panic))) {
        Ok(response) => match offer {
            Some((compress, offer)) => compress.apply(offer, &reader.method, response).await,
            None => response,
        },
        Err(refusal) => refusal.page(&reader),
    };
    if visit.pulse.is_leaving() && reader.version < Version::HTTP_2 {
        // The next request would meet a closed connection.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|content| Outbound { content, active }))
}

async fn serve(visit: &Visit, parts: Parts, mut body: Inbound) -> Result<Response<Content>, Refusal> {
    let config = &visit.site.config;
    head::check(&parts, &config.allowed_methods).map_err(|fault| visit.head_refused(fault))?;
    // The version that is current now serves this request, however long its body takes.
    match visit.site.dispatch.route().map_err(|error| visit.not_routed(&error))? {
        None => visit.without_module(&parts),
        Some(route) => {
            let kind = route.kind();
            let allowed = body.allow(config.body_bytes_max(kind));
            allowed.map_err(|error| visit.body_refused(&error))?;
            match kind {
                RouteKind::Whole => whole(visit, route, parts, body).await,
                RouteKind::Streamed if parts.method == Method::CONNECT => tunnelled(visit, route, parts, body).await,
                RouteKind::Streamed => streamed(visit, route, parts, body).await,
            }
        }
    }
}

/// A `handler` module: it gets the body at once, and its deadline does not run while a slow client sends.
async fn whole(visit: &Visit, route: Route, parts: Parts, body: Inbound) -> Result<Response<Content>, Refusal> {
    let config = &visit.site.config;
    let mut room = visit.site.bodies.room(visit.peer.address);
    let body = match tokio::time::timeout(config.body_timeout, body.collect(&mut room)).await {
        Ok(body) => body.map_err(|error| visit.body_refused(&error))?,
        Err(_) => return Err(visit.body_late()),
    };
    let context = visit.context(&parts);
    let request = wasmcage_core::request::Request {
        context: context.clone(),
        action: parts.method.as_str().to_owned(),
        target: head::target(&parts.uri),
        headers: head::headers(&parts),
        body,
        body_room: Some(room),
    };
    let mut reply = visit.site.dispatch.handle(route, request).await.map_err(|error| refused(context.id, &error))?;
    let mut room = visit.site.bodies.room(visit.peer.address);
    room.grow(reply.body.len()).map_err(|error| visit.reply_without_room(&context, error))?;
    reply.body = room.hold(reply.body);
    reply::whole(reply, &parts.method, config.response_header_bytes_max).map_err(|error| visit.unfit(&context, &error))
}

/// A `wasi:http` module: bodies stream both ways; its deadline runs from here, and anew with each part that moves.
async fn streamed(visit: &Visit, route: Route, mut parts: Parts, body: Inbound) -> Result<Response<Content>, Refusal> {
    let context = visit.context(&parts);
    head::complete_target(&mut parts, context.facts.get(Facts::ENCRYPTED).is_some());
    let method = parts.method.clone();
    let (body, too_large) = body.stream();
    let request = Request::from_parts(parts, body);
    let longest = visit.site.config.stream_timeout;
    let response = visit.site.dispatch.stream(route, context.clone(), request, longest).await.map_err(|error| {
        if too_large.load(Ordering::Relaxed) {
            // The module could not but fail: the client's body is the cause.
            let bytes_max = visit.site.config.body_bytes_max(RouteKind::Streamed);
            return visit.body_refused(&BodyError::TooLarge { bytes_max });
        }
        refused(context.id, &error)
    })?;
    let header_bytes_max = visit.site.config.response_header_bytes_max;
    reply::streamed(response, &method, header_bytes_max).map_err(|error| visit.unfit(&context, &error))
}

/// CONNECT to a `wasi:http` module: if it answers with success, the connection or the stream becomes a tunnel; any other answer
/// is an ordinary one, after which a connection of HTTP/1 is closed: what a client sends into the tunnel that it hopes for must
/// not be taken for its next request.
async fn tunnelled(visit: &Visit, route: Route, mut parts: Parts, body: Inbound) -> Result<Response<Content>, Refusal> {
    let config = &visit.site.config;
    let closing = |mut refusal: Refusal| {
        visit.pulse.body_left_unread();
        refusal.close = true;
        refusal
    };
    head::check_connect(&parts, !body.is_end_stream()).map_err(|fault| closing(visit.head_refused(fault)))?;
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let version = parts.version;
    let context = visit.context(&parts);
    head::complete_target(&mut parts, context.facts.get(Facts::ENCRYPTED).is_some());
    let (door, entrance) = tunnel::entrance();
    let request = Request::from_parts(parts, StreamBody::new(entrance));
    let longest = config.stream_timeout;
    let answered = visit.site.dispatch.stream(route, context.clone(), request, longest).await;
    let response = answered.map_err(|error| closing(refused(context.id, &error)))?;
    let unfit = |error: reply::ReplyError| closing(visit.unfit(&context, &error));
    if !response.status().is_success() {
        door.close();
        let answer = reply::streamed(response, &Method::CONNECT, config.response_header_bytes_max);
        let mut answer = answer.map_err(unfit)?;
        if version < Version::HTTP_2 {
            visit.pulse.body_left_unread();
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        return Ok(answer);
    }
    let (answer, from_module) = reply::tunnel(response, config.response_header_bytes_max).map_err(unfit)?;
    let bytes_max = config.body_bytes_max(RouteKind::Streamed);
    // After the module's own last deadline, and the time for what it left.
    let latest = context.started + longest.max(visit.site.endpoint.timeout()) + config.write_timeout;
    let tunnel = Tunnel { door, from_module, bytes_max, latest, active: Active::begin(&visit.pulse) };
    match upgrade {
        Some(upgrade) if version == Version::HTTP_2 => run_in_stream(visit, context.id, upgrade, tunnel),
        Some(_) | None => *visit.tunnel.lock() = Some(tunnel),
    }
    Ok(answer)
}

/// The tunnel of a stream of HTTP/2 begins when hyper has sent the answer's head. It ends with its connection at the latest.
fn run_in_stream(visit: &Visit, request: RequestId, upgrade: OnUpgrade, tunnel: Tunnel) {
    let sender = tunnel::Sender::expected();
    let (site, peer) = (visit.site.clone(), visit.peer.address);
    tokio::spawn(async move {
        // It fails when the client has left by then.
        let Ok(upgraded) = upgrade.await else { return };
        let mut stream = TokioIo::new(upgraded);
        match task::catch_panic_async(tunnel.run(&mut stream, Bytes::new(), Some(&sender))).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => site.events.tunnel_cut(request, peer, &error),
            Err(panic) => site.events.panicked(request, &panic),
        }
        sender.cut().await;
        // Not before: it would end the stream in good order.
        drop(stream);
    });
}

/// Logged by the dispatcher, which knows the cause.
fn refused(request: RequestId, error: &DispatchError) -> Refusal {
    Refusal::new(request, status(error), error.code(), error.public_text())
}

impl Visit {
    fn context(&self, parts: &Parts) -> Arc<RequestContext> {
        let facts = self.peer.facts(&parts.headers, &self.site.config.trusted_proxies);
        Arc::new(RequestContext::new(self.interface.clone(), super::NAME, self.site.endpoint.timeout(), facts))
    }

    fn turned_away(&self, status: StatusCode, code: &'static str, text: &'static str, detail: &str) -> Refusal {
        let request = RequestId::new();
        self.site.events.turned_away(request, self.peer.address, code, detail);
        Refusal::new(request, status, code, text)
    }

    fn head_refused(&self, fault: head::HeadFault) -> Refusal {
        let mut refusal = self.turned_away(fault.status(), fault.code(), fault.text(), fault.text());
        if fault == head::HeadFault::Method {
            refusal.allow = Some(self.site.config.allow.clone());
        }
        refusal.close = matches!(fault, head::HeadFault::Chunks | head::HeadFault::Coding);
        refusal
    }

    fn body_refused(&self, error: &BodyError) -> Refusal {
        let (status, code, text) = match error {
            BodyError::TooLarge { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "the request's body is larger than allowed here")
            }
            BodyError::NoRoom(error) => {
                self.site.events.no_room_for_body(*error);
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded", "too many and too large requests at the moment")
            }
            BodyError::Broken(_) | BodyError::Reset => {
                (StatusCode::BAD_REQUEST, "bad-request", "the request's body cannot be read")
            }
        };
        let mut refusal = self.turned_away(status, code, text, &error.to_string());
        refusal.close = true;
        refusal
    }

    fn body_late(&self) -> Refusal {
        let text = "the request's body did not come in time";
        self.turned_away(StatusCode::REQUEST_TIMEOUT, "body-timeout", text, text)
    }

    /// No version of the module can serve now. A browser is told so in a friendly way while nobody has given the cage such a
    /// module; everything else may be work, which must not look as if it was done.
    fn without_module(&self, parts: &Parts) -> Result<Response<Content>, Refusal> {
        let endpoint = &self.site.endpoint;
        if !self.site.dispatch.has_had_module() && matches!(parts.method, Method::GET | Method::HEAD) {
            let target = head::target(&parts.uri);
            return Ok(page::up_and_running(&target, &endpoint.cage, &endpoint.module, &Reader::of(parts)));
        }
        endpoint.count_without_module();
        let request = RequestId::new();
        self.site.events.no_module(request, &endpoint.module);
        let text = "the module that answers here is not ready";
        Err(Refusal::new(request, StatusCode::SERVICE_UNAVAILABLE, "module-not-ready", text))
    }

    /// The module cannot serve this interface at all.
    fn not_routed(&self, error: &DispatchError) -> Refusal {
        let request = RequestId::new();
        self.site.events.not_routed(request, &self.site.endpoint.module, error);
        refused(request, error)
    }

    /// A module's answer that cannot be sent: 502, since the module is what stands behind this server.
    fn unfit(&self, context: &RequestContext, error: &reply::ReplyError) -> Refusal {
        self.site.events.reply_unfit(context, &self.site.endpoint.module, error);
        Refusal::new(context.id, StatusCode::BAD_GATEWAY, "invalid-reply", "the request failed")
    }

    /// The module's answer is too much to keep until its client has taken it. What the module did is done.
    fn reply_without_room(&self, context: &RequestContext, error: NoRoom) -> Refusal {
        self.site.events.no_room_for_reply(context, &self.site.endpoint.module, error);
        let text = "too many and too large answers at the moment";
        Refusal::new(context.id, StatusCode::SERVICE_UNAVAILABLE, "overloaded", text)
    }

    fn panicked(&self, panic: &Panic) -> Refusal {
        let request = RequestId::new();
        self.site.events.panicked(request, panic);
        refused(request, &DispatchError::Host(String::new()))
    }
}
