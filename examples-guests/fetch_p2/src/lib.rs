//! A component that knows nothing of wasmcage: asks other servers by WASI HTTP 0.2. `/http/host:port/path?first_byte_ms=100`
//! asks `http://host:port/path`, sends the request's body along if it is a POST, and answers what came, or 502 with the
//! name of the error.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
    OutgoingResponse, RequestOptions, ResponseOutparam, Scheme,
};
use wasip2::io::streams::StreamError;

const NS_PER_MS: u64 = 1_000_000;
const CHUNK_BYTES: u64 = 64 * 1024;

struct Component;
wasip2::http::proxy::export!(Component);

impl Guest for Component {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let (status, text) = match fetch(&request) {
            Ok((status, body)) => (status, body),
            Err(error) => (502, format!("{error:?}").into_bytes()),
        };
        let response = OutgoingResponse::new(Fields::new());
        response.set_status_code(status).expect("the status is a valid one");
        let body = response.body().expect("the body is taken once");
        ResponseOutparam::set(answer, Ok(response));
        let output = body.write().expect("the body is written once");
        for chunk in text.chunks(4096) {
            if output.blocking_write_and_flush(chunk).is_err() {
                return; // the client left
            }
        }
        drop(output);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn fetch(asked: &IncomingRequest) -> Result<(u16, Vec<u8>), ErrorCode> {
    let target = asked.path_with_query().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut parts = path.trim_start_matches('/').splitn(3, '/');
    let scheme = if parts.next() == Some("https") { Scheme::Https } else { Scheme::Http };
    let request = OutgoingRequest::new(Fields::new());
    request.set_scheme(Some(&scheme)).expect("a scheme");
    request.set_authority(parts.next()).expect("an authority");
    request.set_path_with_query(Some(&format!("/{}", parts.next().unwrap_or_default()))).expect("a path");
    let options = RequestOptions::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or_default();
        let time = value.parse::<u64>().ok().map(|ms| ms * NS_PER_MS);
        let _ = match name {
            "connect_ms" => options.set_connect_timeout(time),
            "first_byte_ms" => options.set_first_byte_timeout(time),
            "between_bytes_ms" => options.set_between_bytes_timeout(time),
            _ => Ok(()),
        };
    }
    let response = if matches!(asked.method(), Method::Post) {
        request.set_method(&Method::Post).expect("a method");
        let body = request.body().expect("the body is taken once");
        let response = outgoing_handler::handle(request, Some(options))?;
        pass_on(asked, body);
        response
    } else {
        outgoing_handler::handle(request, Some(options))?
    };
    response.subscribe().block();
    let response = response.get().expect("it is there").expect("it is taken once")?;
    Ok((response.status(), read(&response)?))
}

/// When the other server does not want it all, the answer says why.
fn pass_on(asked: &IncomingRequest, body: OutgoingBody) {
    let incoming = asked.consume().expect("the body is consumed once");
    let input = incoming.stream().expect("the body is read once");
    let output = body.write().expect("the body is written once");
    while output.blocking_splice(&input, CHUNK_BYTES).is_ok() {}
    drop(output);
    let _ = OutgoingBody::finish(body, None);
}

fn read(response: &IncomingResponse) -> Result<Vec<u8>, ErrorCode> {
    let body: IncomingBody = response.consume().expect("the body is consumed once");
    let input = body.stream().expect("the body is read once");
    let mut whole = Vec::new();
    loop {
        match input.blocking_read(CHUNK_BYTES) {
            Ok(part) => whole.extend(part),
            Err(StreamError::Closed) => return Ok(whole),
            Err(StreamError::LastOperationFailed(error)) => {
                // Hosts need not know a code for what breaks a body off.
                let text = || error.to_debug_string().lines().next().unwrap_or_default().to_owned();
                let code = wasip2::http::types::http_error_code(&error);
                return Err(code.unwrap_or_else(|| ErrorCode::InternalError(Some(text()))));
            }
        }
    }
}
