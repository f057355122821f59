//! A component that knows nothing of wasmcage: asks other servers by WASI HTTP 0.3, as `fetch_p2` does by 0.2.

wit_bindgen::generate!({ path: "../wasi_http_p3/wit", world: "fetching", generate_all });

use exports::wasi::http::handler::Guest;
use wasi::http::client;
use wasi::http::types::{ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme};
use wit_bindgen::{FutureReader, StreamResult, spawn_local};

const NS_PER_MS: u64 = 1_000_000;
const CHUNK_BYTES: usize = 64 * 1024;

struct Component;
export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let (status, text) = match fetch(request).await {
            Ok(answer) => answer,
            Err(error) => (502, format!("{error:?}").into_bytes()),
        };
        let (mut output, contents) = wit_stream::new();
        spawn_local(async move {
            // When the client has left by now, there is nobody to tell.
            output.write_all(text).await;
        });
        let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers());
        response.set_status_code(status).expect("the status is a valid one");
        Ok(response)
    }
}

async fn fetch(asked: Request) -> Result<(u16, Vec<u8>), ErrorCode> {
    let target = asked.get_path_with_query().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
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
    let is_post = matches!(asked.get_method(), Method::Post);
    let (request, _sent) = if is_post {
        let (_, received) = wit_future::new(|| Ok(()));
        let (body, trailers) = Request::consume_body(asked, received);
        Request::new(Fields::new(), Some(body), trailers, Some(options))
    } else {
        Request::new(Fields::new(), None, no_trailers(), Some(options))
    };
    if is_post {
        request.set_method(&Method::Post).expect("a method");
    }
    let mut parts = path.trim_start_matches('/').splitn(3, '/');
    let scheme = if parts.next() == Some("https") { Scheme::Https } else { Scheme::Http };
    request.set_scheme(Some(&scheme)).expect("a scheme");
    request.set_authority(parts.next()).expect("an authority");
    request.set_path_with_query(Some(&format!("/{}", parts.next().unwrap_or_default()))).expect("a path");
    let response = client::send(request).await?;
    let status = response.get_status_code();
    let (_, received) = wit_future::new(|| Ok(()));
    let (mut body, end) = Response::consume_body(response, received);
    let mut whole = Vec::new();
    loop {
        let (result, part) = body.read(Vec::with_capacity(CHUNK_BYTES)).await;
        whole.extend(part);
        if !matches!(result, StreamResult::Complete(_)) {
            break;
        }
    }
    end.await?;
    Ok((status, whole))
}

fn no_trailers() -> FutureReader<Result<Option<Fields>, ErrorCode>> {
    wit_future::new(|| Ok(None)).1
}
