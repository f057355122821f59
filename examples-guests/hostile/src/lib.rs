//! Everything that a bad guest can do, one path each, for the tests that show that it harms nobody else. As a service
//! (`hostile.misbehave("/loop")`) it does the same when it is called.
//!
//! Without end: `/loop`, `/loop-host` (in calls to the host), `/loop-print`, `/recurse`, `/cycle` (calls itself),
//! `/memory`. Too much: `/leak?mb=` (kept), `/stdout?mb=`, `/stderr?mb=`, `/log?mb=` (one line), `/log-lines?n=`,
//! `/huge?mb=`, `/headers?n=`, `/describe?mb=`, `/call?mb=` (as argument), `/long?in=&mb=` (a text in a record). Not allowed: `/bad-header?kind=`,
//! `/status?code=`, `/connect?to=`, `/resolve?name=`. Its own end: `/panic`, `/unreachable`, `/exit?code=`. Late: `/sleep?ms=`.

use std::hint::black_box;
use std::io::Write;
use std::time::Duration;

use wasmcage_guest::log::Level;
use wasmcage_guest::resource::{Caching, Operation};
use wasmcage_guest::{
    Error, Request, Response, Result, context, handler, log, module, resource, service, state, transaction,
};

const MB: usize = 1 << 20;

#[handler]
fn handle(request: Request) -> Result<Response> {
    match request.path() {
        "/huge" => Ok(Response::bytes(vec![b'x'; number(&request, "mb", 64)? * MB])),
        "/headers" => Ok(many_headers(number(&request, "n", 100_000)?)),
        "/bad-header" => bad_header(&request.parameter("kind").unwrap_or("value-crlf".into())),
        "/status" => Ok(Response::text("which status is this").status(number(&request, "code", 7)? as u16)),
        "/stdout" => print(std::io::stdout(), number(&request, "mb", 100)?),
        "/stderr" => print(std::io::stderr(), number(&request, "mb", 100)?),
        "/log" => {
            log!(Level::Error, "{}", "x".repeat(number(&request, "mb", 100)? * MB));
            Ok(().into())
        }
        "/log-lines" => {
            for line in 0..number(&request, "n", 1_000_000)? {
                log!(Level::Error, "line {line}");
            }
            Ok(().into())
        }
        "/describe" => {
            context::describe(&"x\n".repeat(number(&request, "mb", 10)? * MB / 2));
            Ok(().into())
        }
        "/call" => {
            let argument = "x".repeat(number(&request, "mb", 64)? * MB);
            Ok(module(&context::module()).call::<String>("misbehave", (argument,))?.into())
        }
        "/long" => {
            let place = request.parameter("in").unwrap_or_default();
            Ok(long(&place, number(&request, "mb", 140)?)?.into())
        }
        "/sleep" => {
            std::thread::sleep(Duration::from_millis(number(&request, "ms", 60_000)? as u64));
            Ok("slept".into())
        }
        "/leak" => {
            black_box(vec![1u8; number(&request, "mb", 1)? * MB].leak());
            Ok("leaked".into())
        }
        "/connect" => {
            let to = request.parameter("to").unwrap_or_default();
            std::net::TcpStream::connect(to.parse::<std::net::SocketAddr>()?)?;
            Ok("connected".into())
        }
        "/resolve" => {
            use std::net::ToSocketAddrs as _;
            let name = request.parameter("name").unwrap_or("localhost".into());
            Ok(format!("{:?}", (name, 80).to_socket_addrs()?.collect::<Vec<_>>()).into())
        }
        "/exit" => std::process::exit(number(&request, "code", 1)? as i32),
        path => service::misbehave(path).map(Response::text),
    }
}

#[service]
mod service {
    use super::*;

    /// What needs no numbers.
    pub fn misbehave(path: &str) -> Result<String> {
        match path {
            "/loop" => loop {
                black_box(());
            },
            "/loop-host" => loop {
                black_box(context::request_id());
            },
            "/loop-print" => loop {
                println!("and again");
            },
            "/recurse" => Ok(recurse(1).to_string()),
            "/cycle" => Ok(module(&context::module()).call("misbehave", ("/cycle",))?),
            "/memory" => {
                let mut hoard = Vec::new();
                loop {
                    hoard.push(black_box(vec![1u8; MB]));
                }
            }
            "/panic" => panic!("as asked"),
            "/unreachable" => std::process::abort(),
            _ => Err(Error::bad_arguments(format_args!("hostile does not know {path}"))),
        }
    }
}

/// What the host says of a text of so many MiB at that place.
fn long(place: &str, mb: usize) -> Result<String> {
    let (long, own) = ("x".repeat(mb * MB), context::module());
    let operation = || Operation::of("get", "/");
    Ok(match place {
        "id of a retried call" => told(module(&own).retried().id(&long).call("misbehave", ())),
        "function of a retried call" => told(module(&own).retried().call(&long, ())),
        "queue of a retried call" => told(module(&own).retried().queue(&long).call("misbehave", ())),
        "prefix of a scan" => told(state::scan(&long).keys().next().transpose()),
        "end of a scan" => told(state::scan("").to(&long).keys().next().transpose()),
        "value" => told(state::set_bytes("key", long)),
        "key of a step" => {
            let mut steps = state::transaction();
            steps.delete(&long);
            told(steps.commit())
        }
        "value of a step" => {
            let mut steps = state::transaction();
            steps.delete("key");
            steps.set_bytes("key", long);
            told(steps.commit())
        }
        "target of an operation" => told(resource("any").execute(Operation::of("get", &long))),
        "header of an operation" => told(resource("any").open(operation().header("x", &long))),
        "name that is read" => told(resource("any").caching(Caching::new().reads(&long)).execute(operation())),
        "target in a transaction" => {
            let mut all = transaction();
            all.operation("any", Operation::of("get", &long));
            told(all.execute())
        }
        "function in a transaction" => {
            let mut all = transaction();
            all.call::<()>(None, &own, &long, ())?;
            told(all.execute())
        }
        "path" => told(std::fs::metadata(format!("/data/{long}"))),
        "new path" => told(std::fs::rename("/data/a", format!("/data/{long}"))),
        _ => return Err(Error::bad_arguments(format_args!("there is no text in {place}"))),
    })
}

fn told<T, E: std::fmt::Display>(result: Result<T, E>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "it was taken".into())
}

#[expect(unconditional_recursion, reason = "that is the point")]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[63]
}

fn many_headers(count: usize) -> Response {
    (0..count).fold(Response::text("see the headers"), |response, index| response.header(format!("x-{index}"), "value"))
}

fn bad_header(kind: &str) -> Result<Response> {
    let (name, value) = match kind {
        "value-crlf" => ("x-bad", "a\r\nset-cookie: stolen=1\r\n\r\n<html>".to_owned()),
        "value-nul" => ("x-bad", "a\0b".to_owned()),
        "value-huge" => ("x-bad", "x".repeat(MB)),
        "name-crlf" => ("x-bad: 1\r\nx-worse", "1".to_owned()),
        "name-nul" => ("x\0bad", "1".to_owned()),
        "name-empty" => ("", "1".to_owned()),
        "name-space" => ("x bad", "1".to_owned()),
        "name-not-ascii" => ("x-bäd", "1".to_owned()),
        "length" => ("content-length", "7000000".to_owned()),
        "chunked" => ("transfer-encoding", "chunked".to_owned()),
        "connection" => ("connection", "upgrade".to_owned()),
        _ => return Err(Error::bad_arguments(format_args!("hostile does not know the bad header {kind}"))),
    };
    Ok(Response::text("see the headers").header(name, value))
}

fn print(mut to: impl Write, mb: usize) -> Result<Response> {
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    for _ in 0..mb * 1024 {
        to.write_all(&line)?;
    }
    Ok(().into())
}

fn number(request: &Request, name: &str, default: usize) -> Result<usize> {
    let Some(value) = request.parameter(name) else { return Ok(default) };
    value.parse().map_err(|_| Error::bad_arguments(format_args!("the parameter {name} is no number")))
}
