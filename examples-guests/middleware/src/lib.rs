//! A middleware that knows nothing of wasmcage: hands requests on to the next `wasi:http/handler`, whichever module
//! `cage.toml` binds the import to, with the header `x-forwarded-by`. Bodies pass in both directions without a look at
//! them. A path that begins with `/private` is answered 403 here.

wit_bindgen::generate!({ path: "../wasi_http_p3/wit", world: "forwarding", generate_all });

use exports::wasi::http::handler::Guest;
use wasi::http::handler;
use wasi::http::types::{ErrorCode, Fields, Request, Response};

struct Component;
export!(Component);

impl Guest for Component {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query();
        if path.as_deref().is_some_and(|path| path.starts_with("/private")) {
            return Ok(forbidden());
        }
        let (method, scheme, authority) = (request.get_method(), request.get_scheme(), request.get_authority());
        let mut headers = request.get_headers().copy_all();
        headers.push(("x-forwarded-by".into(), b"middleware".to_vec()));
        let headers = Fields::from_list(&headers).expect("the headers came like this");
        let (_, received) = wit_future::new(|| Ok(()));
        let (body, trailers) = Request::consume_body(request, received);
        let (next, _sent) = Request::new(headers, Some(body), trailers, None);
        next.set_method(&method).expect("the method came like this");
        next.set_scheme(scheme.as_ref()).expect("the scheme came like this");
        next.set_authority(authority.as_deref()).expect("the authority came like this");
        next.set_path_with_query(path.as_deref()).expect("the path came like this");
        handler::handle(next).await
    }
}

fn forbidden() -> Response {
    let (response, _sent) = Response::new(Fields::new(), None, wit_future::new(|| Ok(None)).1);
    response.set_status_code(403).expect("the status is a valid one");
    response
}
