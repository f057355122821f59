//! Components that speak `wasi:http`: the request comes in as a stream, the response goes out as one, and the guest may
//! go on after its head was sent. `wasi:http` is a standard that a module exports, like `handler`; that HTTP brings such
//! requests is the protocol's affair.

use std::future::poll_fn;
use std::sync::Arc;

use http::uri::Scheme;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use wasmtime_wasi_http::p2::bindings::http::types as p2_types;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _, p3};

use super::exports::Web;
use super::version::Lease;
use crate::dispatcher::{DispatchError, StreamBody};
use crate::request::RequestContext;

type Answer = Result<http::Response<WasiBody>, String>;

/// Resolves when the head of the response is there. The instance goes back to its pool when the guest has finished; a
/// guest that streams on does so in a task of its own, up to the request's deadline.
///
/// # Errors
/// As an instance's, or `Failed` when the guest answered with an error or not at all.
pub async fn serve(
    lease: Lease,
    context: Arc<RequestContext>,
    request: http::Request<StreamBody>,
) -> Result<http::Response<StreamBody>, DispatchError> {
    let (answer_tx, mut answer_rx) = oneshot::channel();
    let request =
        request.map(|body| body.map_err(|error| Error::InternalError(Some(error.to_string()))).boxed_unsync());
    let mut guest = Box::pin(run(lease, context, request, answer_tx));
    let finished = tokio::select! {
        // The guest first: most have finished by the time their answer is looked at, and need no task of their own.
        biased;
        finished = &mut guest => finished,
        answer = &mut answer_rx => {
            if let Ok(answer) = answer {
                tokio::spawn(async move {
                    if let Err(error) = guest.await {
                        tracing::debug!(%error, "guest ended while it was streaming");
                    }
                });
                return respond(answer);
            }
            guest.await
        }
    };
    match answer_rx.try_recv() {
        Ok(answer) => respond(answer),
        Err(_) => finished.and(Err(DispatchError::Failed("the module gave no response".into()))),
    }
}

fn respond(answer: Answer) -> Result<http::Response<StreamBody>, DispatchError> {
    let response = answer.map_err(|text| DispatchError::Failed(format!("the module answered {text}")))?;
    Ok(response.map(|body| {
        body.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { Box::new(error) }).boxed_unsync()
    }))
}

/// The guest's part, from the request's head to the last byte of its response.
async fn run(
    mut lease: Lease,
    context: Arc<RequestContext>,
    request: http::Request<WasiBody>,
    answer: oneshot::Sender<Answer>,
) -> Result<(), DispatchError> {
    let version = lease.version().clone();
    match &version.exports.web {
        Some(Web::P2(indices)) => run_p2(&mut lease, indices, context, request, answer).await?,
        Some(Web::P3(indices)) => run_p3(&mut lease, indices, context, request, answer).await?,
        None => return Err(DispatchError::Host("the module has no wasi:http export".into())),
    }
    lease.keep();
    Ok(())
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
    lease
        .enter(Some(context), deadline, async |store| {
            let proxy = indices.load(&mut *store, &guest)?;
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(scheme, request)?;
            let out = http.new_response_outparam_from_callback(move |result| {
                // Nobody waits for the answer any more when the client has left.
                let _ = answer.send(result.map_err(|code| format!("{code:?}")));
            })?;
            proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await
        })
        .await
}

async fn run_p3(
    lease: &mut Lease,
    indices: &p3::bindings::ServiceIndices,
    context: Arc<RequestContext>,
    request: http::Request<WasiBody>,
    answer: oneshot::Sender<Answer>,
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
                    Ok(())
                })
                .await?
        })
        .await
}
