//! Serves requests with components that export `wasi:http`. The request comes in as a stream, the response goes out as one,
//! and the guest may go on after the head of the response was sent. This does not depend on the protocol of the requests.

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

/// Returns the response as soon as its head is there. A guest that goes on streams the body in a task of its own, until the
/// request's deadline. The instance goes back to its pool when the guest has finished. `late` is called if the guest fails
/// or leaves its body unfinished after the head was returned; the client then sees a body that breaks off.
///
/// # Errors
/// Returns the errors of an instance, `Failed` when the guest answered with an error or not at all, or `BadRequest` when the
/// body of the answer broke off at once because the client's body did.
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
        // The guest is polled first, because most guests have finished when their answer is there, and need no task.
        biased;
        finished = &mut guest => {
            // Nothing has been sent yet, so a guest that failed after its answer can still be answered with an error.
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
        // `late` is set below, because a body that breaks off at once is answered with an error.
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

/// The reasons for which a request or its response broke off.
#[derive(Default)]
struct Breaks {
    /// Is true if the guest did not finish.
    guest: AtomicBool,
    /// Is true if the client's body broke off.
    client: AtomicBool,
    /// Is true once the failure has been reported.
    told: AtomicBool,
}

/// The body of a request, as the guest reads it.
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

/// The body of a response. It ends with an error if its guest did not finish, because streams that are dropped with their
/// store look like complete ones.
struct Response<L> {
    body: WasiBody,
    /// The first frame, if it was read ahead.
    first: Option<Frame<Bytes>>,
    ended: bool,
    breaks: Arc<Breaks>,
    moved: Option<Arc<StreamDeadline>>,
    /// Is called once when the body breaks off because of the guest.
    late: Option<L>,
    /// Is dropped when the body is complete or no longer wanted.
    sent: Option<oneshot::Sender<()>>,
}

impl<L: Fn(&DispatchError) + Send + Unpin> Response<L> {
    /// Reads the first frame, if it is there, and keeps it. Returns the error if the body breaks off at once.
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

    /// Reports a body that broke off, unless the client is the cause or the guest failed, which is reported elsewhere.
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

/// Notes on drop that a guest did not finish. It must be dropped before the guest's store, which ends the guest's streams.
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

/// Runs the guest from the head of the request to the last byte of the response. Returns the lease of an instance that
/// finished; the caller keeps the instance only if it has answered.
async fn run(
    mut lease: Lease,
    context: Arc<RequestContext>,
    request: http::Request<WasiBody>,
    answer: oneshot::Sender<Answer>,
    unfinished: BreakOnDrop,
    sent: oneshot::Receiver<()>,
) -> Result<Lease, DispatchError> {
    let version = lease.version().clone();
    // This local variable is dropped before the lease, which is a parameter.
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
                // Sending fails only if the client has left.
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
                    // Sending fails only if the client has left.
                    let _ = answer.send(answered);
                    // Tasks of the guest that go on after `handle` has returned write the body.
                    poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    // Bytes left in streams and futures move only while the store runs. The sender sends no message: it is
                    // dropped when the body is complete or no longer wanted.
                    let _ = sent.await;
                    Ok(())
                })
                .await?
        })
        .await
}
