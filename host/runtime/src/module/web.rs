//! Components that speak `wasi:http`: the request comes in as a stream, the response goes out as one, and the guest may
//! go on after its head was sent. `wasi:http` is a standard that a module exports, like `handler`; that HTTP brings such
//! requests is the protocol's affair.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::Scheme;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use wasmtime_wasi_http::p2::bindings::http::types as p2_types;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _, p3};

use super::exports::Web;
use super::version::Lease;
use wasmcage_core::body::StreamBody;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{RequestContext, StreamDeadline};
use wasmcage_core::task;

type Answer = Result<http::Response<WasiBody>, String>;

/// Resolves when the head of the response is there. The instance goes back to its pool when the guest has finished; a
/// guest that streams on does so in a task of its own, up to the request's deadline. `late` is told if it fails there, or leaves
/// its body unfinished: its client has the head by then, and sees that the body breaks off.
///
/// # Errors
/// As an instance's, or `Failed` when the guest answered with an error or not at all.
pub async fn serve(
    lease: Lease,
    context: Arc<RequestContext>,
    request: http::Request<StreamBody>,
    late: impl Fn(&DispatchError) + Clone + Send + Unpin + 'static,
) -> Result<http::Response<StreamBody>, DispatchError> {
    let (answer_tx, mut answer_rx) = oneshot::channel();
    let (sent_tx, sent_rx) = oneshot::channel();
    let breaks = Arc::new(Breaks::default());
    let moved = context.stream().cloned();
    let request = request.map(|body| RequestBody { body, breaks: breaks.clone(), moved: moved.clone() }.boxed_unsync());
    let mut guest = Box::pin(run(lease, context, request, answer_tx, BreakOnDrop(Some(breaks.clone())), sent_rx));
    let (late_guest, breaks_of_guest) = (late.clone(), breaks.clone());
    let answer = tokio::select! {
        // The guest first: most have finished by the time their answer is looked at, and need no task of their own.
        biased;
        finished = &mut guest => {
            // Nothing has been sent yet, so that the answer of a guest that failed after all need not break off.
            let lease = finished?;
            let answer = answer_rx.try_recv().ok();
            if answer.is_some() {
                lease.keep();
            }
            answer
        }
        answer = &mut answer_rx => match answer {
            Ok(answer) => {
                tokio::spawn(async move {
                    let caught = task::catch_panic_async(guest).await;
                    let ended = caught.unwrap_or_else(|panic| Err(DispatchError::Host(panic.to_string())));
                    match ended {
                        Ok(lease) => lease.keep(),
                        Err(error) if !breaks_of_guest.told.swap(true, Ordering::AcqRel) => late_guest(&error),
                        Err(_) => {}
                    }
                });
                Some(answer)
            }
            Err(_) => {
                guest.await?;
                None
            }
        }
    };
    let answer = answer.ok_or_else(|| DispatchError::Failed("the module gave no response".into()))?;
    let response = answer.map_err(|text| DispatchError::Failed(format!("the module answered {text}")))?;
    let mut response = response.map(|body| Response {
        body,
        first: None,
        ended: false,
        breaks,
        moved,
        // A body that breaks off at once may still be answered with an error.
        late: None,
        sent: Some(sent_tx),
    });
    if let Some(Err(error)) = response.body_mut().look_ahead().await {
        let text = format!("the body of the module's answer broke off: {error}");
        response.body().breaks.told.store(true, Ordering::Release);
        return Err(match response.body().breaks.client.load(Ordering::Acquire) {
            true => DispatchError::BadRequest(text),
            false => DispatchError::Failed(text),
        });
    }
    response.body_mut().late = Some(late);
    Ok(response.map(|body| body.boxed_unsync()))
}

/// How an exchange came to break off.
#[derive(Default)]
struct Breaks {
    /// The guest did not come to its end.
    guest: AtomicBool,
    /// The client's body did not.
    client: AtomicBool,
    /// The operator knows.
    told: AtomicBool,
}

/// A request's body on its way to the guest.
struct RequestBody {
    body: StreamBody,
    breaks: Arc<Breaks>,
    moved: Option<Arc<StreamDeadline>>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.moved.iter().for_each(|moved| moved.record_progress());
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                self.breaks.client.store(true, Ordering::Release);
                Error::InternalError(Some(error.to_string()))
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body that does not pass for complete when its guest broke off: streams that are dropped with their store
/// look like ended ones.
struct Response<L> {
    body: WasiBody,
    /// What was taken of the body before anybody asked for it.
    first: Option<Frame<Bytes>>,
    ended: bool,
    breaks: Arc<Breaks>,
    moved: Option<Arc<StreamDeadline>>,
    /// Told when the body breaks off by the guest's own doing, once.
    late: Option<L>,
    /// Dropped when nothing more is wanted of the guest.
    sent: Option<oneshot::Sender<()>>,
}

impl<L: Fn(&DispatchError) + Send + Unpin> Response<L> {
    /// The body's beginning, if it is there; it is kept.
    async fn look_ahead(&mut self) -> Option<Result<(), Box<dyn std::error::Error + Send + Sync>>> {
        let mut frame = pin!(poll_fn(|cx| match Pin::new(&mut *self).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => Poll::Ready(None),
        }));
        match (&mut frame).await?? {
            Ok(frame) => {
                self.first = Some(frame);
                Some(Ok(()))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Unless the client is the cause, or the guest's own failure, which is told by itself.
    fn tell(&mut self, error: &Error) {
        let Some(late) = self.late.take() else { return };
        let elsewhere = self.breaks.guest.load(Ordering::Acquire) || self.breaks.client.load(Ordering::Acquire);
        if !elsewhere && !self.breaks.told.swap(true, Ordering::AcqRel) {
            late(&DispatchError::Failed(format!("the body of the module's answer broke off: {error}")));
        }
    }
}

impl<L: Fn(&DispatchError) + Send + Unpin> Body for Response<L> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.moved.iter().for_each(|moved| moved.record_progress());
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => {
                self.tell(&error);
                Some(Err(error.into()))
            }
            None if self.breaks.guest.load(Ordering::Acquire) => {
                Some(Err("the module ended before its answer did".into()))
            }
            None => {
                self.ended = true;
                self.sent = None;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let unbroken = || !self.breaks.guest.load(Ordering::Acquire);
        self.first.is_none() && (self.ended || (self.body.is_end_stream() && unbroken()))
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(first));
        }
        hint.set_lower(hint.lower().saturating_add(first));
        hint
    }
}

/// Says that a guest did not come to its end. Must be dropped before the guest's store is, which ends its streams.
struct BreakOnDrop(Option<Arc<Breaks>>);

impl BreakOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for BreakOnDrop {
    fn drop(&mut self) {
        if let Some(breaks) = &self.0 {
            breaks.guest.store(true, Ordering::Release);
        }
    }
}

/// The guest's part, from the request's head to the last byte of its response. Returns the lease of an instance that came
/// to its end, for whoever knows whether it answered: one that did not is in no state to serve again.
async fn run(
    mut lease: Lease,
    context: Arc<RequestContext>,
    request: http::Request<WasiBody>,
    answer: oneshot::Sender<Answer>,
    unfinished: BreakOnDrop,
    sent: oneshot::Receiver<()>,
) -> Result<Lease, DispatchError> {
    let version = lease.version().clone();
    // A local, so that it is dropped before the lease.
    let unfinished = unfinished;
    match &version.exports.web {
        Some(Web::P2(indices)) => run_p2(&mut lease, indices, context, request, answer).await?,
        Some(Web::P3(indices)) => run_p3(&mut lease, indices, context, request, answer, sent).await?,
        None => return Err(DispatchError::Host("the module has no wasi:http export".into())),
    }
    unfinished.disarm();
    Ok(lease)
}

async fn run_p2(
    lease: &mut Lease,
    indices: &wasmtime_wasi_http::p2::bindings::ProxyIndices,
    context: Arc<RequestContext>,
    request: http::Request<WasiBody>,
    answer: oneshot::Sender<Answer>,
) -> Result<(), DispatchError> {
    let deadline = context.deadline;
    let guest = lease.guest;
    let scheme = match request.uri().scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => p2_types::Scheme::Https,
        Some(scheme) if *scheme != Scheme::HTTP => p2_types::Scheme::Other(scheme.to_string()),
        _ => p2_types::Scheme::Http,
    };
    let known = lease.proxy.take();
    let proxy = lease
        .enter(Some(context), deadline, async |store| {
            let proxy = match known {
                Some(proxy) => proxy,
                None => indices.load(&mut *store, &guest)?,
            };
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(scheme, request)?;
            let out = http.new_response_outparam_from_callback(move |result| {
                // Nobody waits for the answer any more when the client has left.
                let _ = answer.send(result.map_err(|code| format!("{code:?}")));
            })?;
            proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await?;
            Ok(proxy)
        })
        .await?;
    lease.proxy = Some(proxy);
    Ok(())
}

async fn run_p3(
    lease: &mut Lease,
    indices: &p3::bindings::ServiceIndices,
    context: Arc<RequestContext>,
    request: http::Request<WasiBody>,
    answer: oneshot::Sender<Answer>,
    sent: oneshot::Receiver<()>,
) -> Result<(), DispatchError> {
    let deadline = context.deadline;
    let guest = lease.guest;
    lease
        .enter(Some(context), deadline, async |store| {
            let service = indices.load(&mut *store, &guest)?;
            let (request, processed) = p3::Request::from_http(store.data_mut().http().hooks, request);
            store
                .run_concurrent(async |accessor| -> wasmtime::Result<()> {
                    let answered = match service.handle(accessor, request).await? {
                        Ok(response) => Ok(accessor.with(|store| response.into_http(store, processed))?),
                        Err(code) => Err(format!("{code:?}")),
                    };
                    // Nobody waits for the answer any more when the client has left.
                    let _ = answer.send(answered);
                    // The body is written by tasks of the guest that go on after `handle` has returned.
                    poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    // What they left in streams and futures moves on only while the store runs. The sender has no
                    // message: it is dropped when the client has everything, or wants nothing more.
                    let _ = sent.await;
                    Ok(())
                })
                .await?
        })
        .await
}
