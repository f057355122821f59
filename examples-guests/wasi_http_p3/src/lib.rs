//! A component that knows nothing of wasmcage: WASI HTTP 0.3, with bodies and trailers streamed both ways. The path
//! chooses, as in `wasi_http_p2`:
//!
//! | path | answer |
//! |---|---|
//! | `/` | Hello, world ! |
//! | `/echo` | the request's body and trailers, chunk by chunk while they come |
//! | `/pass` | the same, the streams handed over without a look at them |
//! | `/early` | at once one line; when the request's body has ended another, with its size |
//! | `/slow-body?n=10&ms=100&bytes=0` | `n` lines of `bytes` at least, with a pause before each |
//! | `/never-reads` | a text; the request's body is not touched |
//! | `/hang` | none |
//! | `/trap`, `/trap-late` | a panic before the answer, or in the middle of its body |
//! | `/error` | an error code in place of the answer |
//! | anything else | 404 |
//!
//! `CONNECT echo:1` chooses like the path `/echo`, and so on: the two bodies are a tunnel then.

wit_bindgen::generate!({ world: "streaming", generate_all });

use exports::wasi::http::handler::Guest;
use wasi::clocks::monotonic_clock::wait_for;
use wasi::http::types::{ErrorCode, Fields, Method, Request, Response};
use wit_bindgen::{FutureReader, StreamReader, StreamResult, StreamWriter, spawn_local};

const CHUNK_BYTES: usize = 64 * 1024;
const NS_PER_MS: u64 = 1_000_000;

type Trailers = FutureReader<Result<Option<Fields>, ErrorCode>>;

struct Component;
export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = match request.get_method() {
            Method::Connect => {
                let authority = request.get_authority().unwrap_or_default();
                format!("/{}", authority.split(':').next().unwrap_or_default())
            }
            _ => request.get_path_with_query().unwrap_or_default(),
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(match path {
            "/" => text(200, "Hello, world !"),
            "/echo" => {
                let announced = announced_trailers(&request);
                let (body, trailers) = consume(request);
                let (output, contents) = wit_stream::new();
                spawn_local(copy(body, output));
                respond_with(200, &announced, contents, trailers)
            }
            "/pass" => {
                let announced = announced_trailers(&request);
                let (body, trailers) = consume(request);
                respond_with(200, &announced, body, trailers)
            }
            "/early" => {
                let (body, _trailers) = consume(request);
                let (output, contents) = wit_stream::new();
                spawn_local(answer_early(body, output));
                respond(200, contents, no_trailers())
            }
            "/slow-body" => {
                let (lines, pause_ms) = (number(query, "n", 10), number(query, "ms", 100));
                let bytes = number(query, "bytes", 0);
                let (mut output, contents) = wit_stream::new();
                spawn_local(async move {
                    for line in 0..lines {
                        wait_for(pause_ms * NS_PER_MS).await;
                        if !output.write_all(text_of(line, bytes).into()).await.is_empty() {
                            return; // the client left
                        }
                    }
                });
                respond(200, contents, no_trailers())
            }
            "/never-reads" => text(200, "not read"),
            "/hang" => {
                wait_for(u64::MAX).await;
                text(200, "the end of time")
            }
            "/trap" => panic!("as asked"),
            "/trap-late" => {
                let (mut output, contents) = wit_stream::new();
                spawn_local(async move {
                    output.write_all(b"the beginning\n".to_vec()).await;
                    // The beginning is on its way by then.
                    wait_for(50 * NS_PER_MS).await;
                    panic!("as asked");
                });
                respond(200, contents, no_trailers())
            }
            "/error" => return Err(ErrorCode::InternalError(Some("as asked".into()))),
            _ => text(404, "no such path"),
        })
    }
}

async fn copy(mut body: StreamReader<u8>, mut output: StreamWriter<u8>) {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    loop {
        let (result, came) = body.read(chunk).await;
        // A write of nothing may wait for a reader who waits for something.
        if came.is_empty() {
            return;
        }
        chunk = output.write_all(came).await;
        if !chunk.is_empty() || !matches!(result, StreamResult::Complete(_)) {
            return; // the client left, or the body has ended
        }
        chunk.reserve(CHUNK_BYTES);
    }
}

async fn answer_early(mut body: StreamReader<u8>, mut output: StreamWriter<u8>) {
    output.write_all(b"answered early\n".to_vec()).await;
    let mut size = 0;
    loop {
        let (result, came) = body.read(Vec::with_capacity(CHUNK_BYTES)).await;
        size += came.len();
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    // When the client has left by now, there is nobody to tell.
    output.write_all(format!("{size} bytes followed\n").into()).await;
}

fn consume(request: Request) -> (StreamReader<u8>, Trailers) {
    let (_, received) = wit_future::new(|| Ok(()));
    Request::consume_body(request, received)
}

/// With its end, it has so many bytes at least.
fn text_of(line: u64, bytes: u64) -> String {
    let text = format!("line {line}");
    let missing = (bytes as usize).saturating_sub(text.len() + 1);
    text + &" ".repeat(missing) + "\n"
}

fn text(status: u16, text: &'static str) -> Response {
    let (mut output, contents) = wit_stream::new();
    spawn_local(async move {
        // When the client has left by now, there is nobody to tell.
        output.write_all(text.into()).await;
    });
    respond(status, contents, no_trailers())
}

fn respond(status: u16, contents: StreamReader<u8>, trailers: Trailers) -> Response {
    respond_with(status, &[], contents, trailers)
}

fn respond_with(status: u16, announced: &[Vec<u8>], contents: StreamReader<u8>, trailers: Trailers) -> Response {
    let headers = Fields::new();
    headers.set("content-type", &[b"text/plain".to_vec()]).expect("the header is well-formed");
    headers.set("trailer", announced).expect("the header came like this");
    let (response, _sent) = Response::new(headers, Some(contents), trailers);
    response.set_status_code(status).expect("the status is a valid one");
    response
}

/// HTTP/1.1 servers send only the trailers that the headers announce.
fn announced_trailers(request: &Request) -> Vec<Vec<u8>> {
    request.get_headers().get("trailer")
}

fn no_trailers() -> Trailers {
    wit_future::new(|| Ok(None)).1
}

fn number(query: &str, name: &str, default: u64) -> u64 {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(known, _)| *known == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(default)
}
