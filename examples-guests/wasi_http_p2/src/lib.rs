//! A component that knows nothing of wasmcage: WASI HTTP 0.2, with bodies and trailers streamed both ways. The path
//! chooses, as in `wasi_http_p3`:
//!
//! | path | answer |
//! |---|---|
//! | `/` | Hello, world ! |
//! | `/echo` | the request's body and trailers, chunk by chunk while they come |
//! | `/early` | at once one line; when the request's body has ended another, with its size |
//! | `/slow-body?n=10&ms=100&bytes=0` | `n` lines of `bytes` at least, with a pause before each |
//! | `/never-reads` | a text; the request's body is not touched |
//! | `/hang` | none |
//! | `/trap`, `/trap-late` | a panic before the answer, or in the middle of its body |
//! | `/no-answer` | returns without one |
//! | `/unfinished`, `/unfinished-late` | a body that is dropped before its end, empty or after its beginning |
//! | `/once` | one, for the first such request in the life of an instance; then returns without |
//! | `/error` | an error code in place of the answer |
//! | anything else | 404 |
//!
//! `CONNECT echo:1` chooses like the path `/echo`, and so on: the two bodies are a tunnel then.

use std::sync::atomic::{AtomicBool, Ordering};

use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{OutputStream, StreamError};

/// Some toolchains keep no second request in mind.
static ASKED: AtomicBool = AtomicBool::new(false);

const CHUNK_BYTES: u64 = 64 * 1024;
const NS_PER_MS: u64 = 1_000_000;

/// What one `blocking_write_and_flush` takes at most, says WASI.
const WRITE_BYTES_MAX: usize = 4096;

struct Component;
wasip2::http::proxy::export!(Component);

impl Guest for Component {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let target = match request.method() {
            Method::Connect => {
                let authority = request.authority().unwrap_or_default();
                format!("/{}", authority.split(':').next().unwrap_or_default())
            }
            _ => request.path_with_query().unwrap_or_default(),
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        // An error is the client's leaving in the middle of the exchange: there is nobody to tell.
        let _ = match path {
            "/" => text(answer, 200, "Hello, world !"),
            "/echo" => echo(&request, answer),
            "/early" => answer_early(&request, answer),
            "/slow-body" => {
                let (lines, pause_ms) = (number(query, "n", 10), number(query, "ms", 100));
                answer_slowly(answer, lines, pause_ms, number(query, "bytes", 0))
            }
            "/never-reads" => text(answer, 200, "not read"),
            "/hang" => {
                subscribe_duration(u64::MAX).block();
                Ok(())
            }
            "/trap" => panic!("as asked"),
            "/trap-late" => {
                let body = respond(answer, 200);
                let output = body.write().expect("the body is written once");
                let _ = write(&output, b"the beginning\n");
                // The beginning is on its way by then.
                subscribe_duration(50 * NS_PER_MS).block();
                panic!("as asked");
            }
            "/no-answer" => Ok(()),
            "/unfinished" => {
                drop(respond(answer, 200));
                Ok(())
            }
            "/unfinished-late" => {
                let body = respond(answer, 200);
                let output = body.write().expect("the body is written once");
                let written = write(&output, b"the beginning\n");
                // The beginning is on its way by then.
                subscribe_duration(50 * NS_PER_MS).block();
                drop(output);
                drop(body);
                written
            }
            "/once" if ASKED.swap(true, Ordering::Relaxed) => Ok(()),
            "/once" => text(answer, 200, "the first"),
            "/error" => {
                ResponseOutparam::set(answer, Err(ErrorCode::InternalError(Some("as asked".into()))));
                Ok(())
            }
            _ => text(answer, 404, "no such path"),
        };
    }
}

fn echo(request: &IncomingRequest, answer: ResponseOutparam) -> Result<(), StreamError> {
    let incoming = request.consume().expect("the body is consumed once");
    // HTTP/1.1 servers send only the trailers that the headers announce.
    let announced = request.headers().get("trailer");
    let outgoing = respond_with(answer, 200, &announced);
    {
        let input = incoming.stream().expect("the body is read once");
        let output = outgoing.write().expect("the body is written once");
        loop {
            match output.blocking_splice(&input, CHUNK_BYTES) {
                Ok(_) => {}
                Err(StreamError::Closed) => break,
                Err(error) => return Err(error),
            }
        }
    }
    let trailers = IncomingBody::finish(incoming);
    trailers.subscribe().block();
    let trailers = match trailers.get() {
        Some(Ok(Ok(trailers))) => trailers,
        _ => None,
    };
    finish(outgoing, trailers)
}

fn answer_early(request: &IncomingRequest, answer: ResponseOutparam) -> Result<(), StreamError> {
    let incoming = request.consume().expect("the body is consumed once");
    let outgoing = respond(answer, 200);
    {
        let output = outgoing.write().expect("the body is written once");
        write(&output, b"answered early\n")?;
        let input = incoming.stream().expect("the body is read once");
        let mut size = 0;
        while let Ok(skipped) = input.blocking_skip(CHUNK_BYTES) {
            size += skipped;
        }
        write(&output, format!("{size} bytes followed\n").as_bytes())?;
    }
    finish(outgoing, None)
}

fn answer_slowly(answer: ResponseOutparam, lines: u64, pause_ms: u64, bytes: u64) -> Result<(), StreamError> {
    let body = respond(answer, 200);
    {
        let output = body.write().expect("the body is written once");
        for line in 0..lines {
            subscribe_duration(pause_ms * NS_PER_MS).block();
            write(&output, text_of(line, bytes).as_bytes())?;
        }
    }
    finish(body, None)
}

/// With its end, it has so many bytes at least.
fn text_of(line: u64, bytes: u64) -> String {
    let text = format!("line {line}");
    let missing = (bytes as usize).saturating_sub(text.len() + 1);
    text + &" ".repeat(missing) + "\n"
}

fn text(answer: ResponseOutparam, status: u16, text: &str) -> Result<(), StreamError> {
    let body = respond(answer, status);
    write(&body.write().expect("the body is written once"), text.as_bytes())?;
    finish(body, None)
}

/// Sends the head; the body follows.
fn respond(answer: ResponseOutparam, status: u16) -> OutgoingBody {
    respond_with(answer, status, &[])
}

fn respond_with(answer: ResponseOutparam, status: u16, announced_trailers: &[Vec<u8>]) -> OutgoingBody {
    let headers = Fields::new();
    headers.set("content-type", &[b"text/plain".to_vec()]).expect("the header is well-formed");
    headers.set("trailer", announced_trailers).expect("the header came like this");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("the status is a valid one");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(answer, Ok(response));
    body
}

fn write(output: &OutputStream, bytes: &[u8]) -> Result<(), StreamError> {
    bytes.chunks(WRITE_BYTES_MAX).try_for_each(|chunk| output.blocking_write_and_flush(chunk))
}

/// The body's streams must be dropped before.
fn finish(body: OutgoingBody, trailers: Option<Fields>) -> Result<(), StreamError> {
    OutgoingBody::finish(body, trailers).map_err(|_| StreamError::Closed)
}

fn number(query: &str, name: &str, default: u64) -> u64 {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(known, _)| *known == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(default)
}
