//! Asks another module by importing its interface, `acme:work/api`: an ordinary typed call here, which the host carries to
//! wherever `cage.toml` says:
//!
//! ```toml
//! [modules.front.imports]
//! "acme:work/api" = "worker/work"
//! ```

wit_bindgen::generate!({ world: "front", path: "../api_work/wit" });

use acme::work::api::{self, Problem};
use acme::work::types::Job;
use wasmcage_guest::{Request, Response, handler};

#[handler]
fn handle(request: Request) -> Response {
    let answer = match request.path() {
        "/title" => api::title(&String::from_utf8_lossy(&request.body)).map(Response::text),
        "/reverse" => Ok(Response::bytes(api::reverse(&request.body))),
        "/sort" => api::sort(&request.body).map(Response::bytes).map_err(told),
        target => api::handle(&Job { target: target.into(), tries: 3 }).map(Response::text).map_err(told),
    };
    answer.unwrap_or_else(|text| Response::text(text).status(502))
}

fn told(problem: Problem) -> String {
    match problem {
        Problem::Empty => "nothing to do".into(),
        Problem::Failed(text) => text,
    }
}
