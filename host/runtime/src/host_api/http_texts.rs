//! Limits the length of texts in `wasi:http/types`: names and values of headers, and parts of an address, are copied out of the
//! guest only if none is too long. These functions replace wasmtime's, and pass their arguments on to them.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Resource};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p3::bindings::http::types as p3;

use super::GuestState;
use super::text::{Few, Text, TooLong};
use crate::module::engine::EngineKind;

/// The names in wasmtime's linker, which also serves imports of compatible versions with them.
const TYPES_P2: &str = "wasi:http/types@0.2.12";
const TYPES_P3: &str = "wasi:http/types@0.3.0";

/// The greatest length of a name, a value or a part of an address: wasmtime's limit for all headers of a message.
const LINE_BYTES_MAX: usize = 128 << 10;
/// The greatest number of headers in one call: more than fit in wasmtime's table of headers.
const FIELDS_MAX: usize = 40_000;

type Line = Text<LINE_BYTES_MAX>;
type Value = Few<u8, LINE_BYTES_MAX>;
type Store<'a> = StoreContextMut<'a, GuestState>;

/// Replaces wasmtime's functions.
pub(super) fn add_to_linker(linker: &mut Linker<GuestState>, kind: EngineKind) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    add_p2(linker)?;
    if kind == EngineKind::Concurrent {
        add_p3(linker)?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

/// Adds the functions that both versions have.
macro_rules! add_shared {
    ($functions:ident, $types:ident, $request:ident, $host_request:ident, $prefix:literal) => {
        $functions.func_wrap(
            "[static]fields.from-list",
            |mut store: Store<'_>, (entries,): (Few<(Line, Value), FIELDS_MAX>,)| {
                let Ok(entries) = whole_entries(entries) else {
                    return Ok((Err($types::HeaderError::InvalidSyntax),));
                };
                let made = $types::HostFields::from_list(&mut store.data_mut().http(), entries);
                Ok((made.map(Ok).or_else(|error| error.downcast().map(Err))?,))
            },
        )?;
        $functions.func_wrap(
            "[method]fields.get",
            |mut store: Store<'_>, (fields, name): (Resource<$types::Fields>, Line)| {
                let Ok(name) = whole_line(name) else { return Ok((Vec::new(),)) };
                Ok(($types::HostFields::get(&mut store.data_mut().http(), fields, name)?,))
            },
        )?;
        $functions.func_wrap(
            "[method]fields.has",
            |mut store: Store<'_>, (fields, name): (Resource<$types::Fields>, Line)| {
                let Ok(name) = whole_line(name) else { return Ok((false,)) };
                Ok(($types::HostFields::has(&mut store.data_mut().http(), fields, name)?,))
            },
        )?;
        $functions.func_wrap(
            "[method]fields.set",
            |mut store: Store<'_>, (fields, name, values): (Resource<$types::Fields>, Line, Few<Value, FIELDS_MAX>)| {
                let (Ok(name), Ok(values)) = (whole_line(name), whole_values(values)) else {
                    return Ok((Err($types::HeaderError::InvalidSyntax),));
                };
                let done = $types::HostFields::set(&mut store.data_mut().http(), fields, name, values);
                Ok((done.map(Ok).or_else(|error| error.downcast().map(Err))?,))
            },
        )?;
        $functions.func_wrap(
            "[method]fields.append",
            |mut store: Store<'_>, (fields, name, value): (Resource<$types::Fields>, Line, Value)| {
                let (Ok(name), Ok(value)) = (whole_line(name), whole_value(value)) else {
                    return Ok((Err($types::HeaderError::InvalidSyntax),));
                };
                let done = $types::HostFields::append(&mut store.data_mut().http(), fields, name, value);
                Ok((done.map(Ok).or_else(|error| error.downcast().map(Err))?,))
            },
        )?;
        $functions.func_wrap(
            "[method]fields.delete",
            |mut store: Store<'_>, (fields, name): (Resource<$types::Fields>, Line)| {
                let Ok(name) = whole_line(name) else { return Ok((Err($types::HeaderError::InvalidSyntax),)) };
                let done = $types::HostFields::delete(&mut store.data_mut().http(), fields, name);
                Ok((done.map(Ok).or_else(|error| error.downcast().map(Err))?,))
            },
        )?;
        $functions.func_wrap(
            concat!("[method]", $prefix, ".set-method"),
            |mut store: Store<'_>, (request, method): (Resource<$types::$request>, Method)| {
                let method = match method {
                    Method::Get => $types::Method::Get,
                    Method::Head => $types::Method::Head,
                    Method::Post => $types::Method::Post,
                    Method::Put => $types::Method::Put,
                    Method::Delete => $types::Method::Delete,
                    Method::Connect => $types::Method::Connect,
                    Method::Options => $types::Method::Options,
                    Method::Trace => $types::Method::Trace,
                    Method::Patch => $types::Method::Patch,
                    Method::Other(name) => match whole_line(name) {
                        Ok(name) => $types::Method::Other(name),
                        Err(_) => return Ok((Err(()),)),
                    },
                };
                Ok(($types::$host_request::set_method(&mut store.data_mut().http(), request, method)?,))
            },
        )?;
        $functions.func_wrap(
            concat!("[method]", $prefix, ".set-scheme"),
            |mut store: Store<'_>, (request, scheme): (Resource<$types::$request>, Option<Scheme>)| {
                let scheme = match scheme {
                    None => None,
                    Some(Scheme::Http) => Some($types::Scheme::Http),
                    Some(Scheme::Https) => Some($types::Scheme::Https),
                    Some(Scheme::Other(name)) => match whole_line(name) {
                        Ok(name) => Some($types::Scheme::Other(name)),
                        Err(_) => return Ok((Err(()),)),
                    },
                };
                Ok(($types::$host_request::set_scheme(&mut store.data_mut().http(), request, scheme)?,))
            },
        )?;
        $functions.func_wrap(
            concat!("[method]", $prefix, ".set-path-with-query"),
            |mut store: Store<'_>, (request, path): (Resource<$types::$request>, Option<Line>)| {
                let Ok(path) = path.map(whole_line).transpose() else { return Ok((Err(()),)) };
                Ok(($types::$host_request::set_path_with_query(&mut store.data_mut().http(), request, path)?,))
            },
        )?;
        $functions.func_wrap(
            concat!("[method]", $prefix, ".set-authority"),
            |mut store: Store<'_>, (request, authority): (Resource<$types::$request>, Option<Line>)| {
                let Ok(authority) = authority.map(whole_line).transpose() else { return Ok((Err(()),)) };
                Ok(($types::$host_request::set_authority(&mut store.data_mut().http(), request, authority)?,))
            },
        )?;
    };
}

fn add_p2(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance(TYPES_P2)?;
    add_shared!(functions, p2, OutgoingRequest, HostOutgoingRequest, "outgoing-request");
    Ok(())
}

fn add_p3(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance(TYPES_P3)?;
    add_shared!(functions, p3, Request, HostRequest, "request");
    functions.func_wrap(
        "[method]fields.get-and-delete",
        |mut store: Store<'_>, (fields, name): (Resource<p3::Fields>, Line)| {
            let Ok(name) = whole_line(name) else { return Ok((Err(p3::HeaderError::InvalidSyntax),)) };
            let done = p3::HostFields::get_and_delete(&mut store.data_mut().http(), fields, name);
            Ok((done.map(Ok).or_else(|error| error.downcast().map(Err))?,))
        },
    )
}

#[derive(ComponentType, Lift)]
#[component(variant)]
enum Method {
    #[component(name = "get")]
    Get,
    #[component(name = "head")]
    Head,
    #[component(name = "post")]
    Post,
    #[component(name = "put")]
    Put,
    #[component(name = "delete")]
    Delete,
    #[component(name = "connect")]
    Connect,
    #[component(name = "options")]
    Options,
    #[component(name = "trace")]
    Trace,
    #[component(name = "patch")]
    Patch,
    #[component(name = "other")]
    Other(Line),
}

#[derive(ComponentType, Lift)]
#[component(variant)]
enum Scheme {
    #[component(name = "HTTP")]
    Http,
    #[component(name = "HTTPS")]
    Https,
    #[component(name = "other")]
    Other(Line),
}

fn whole_line(line: Line) -> Result<String, TooLong> {
    line.whole("a text")
}

fn whole_value(value: Value) -> Result<Vec<u8>, TooLong> {
    value.whole("a value", "bytes")
}

fn whole_values(values: Few<Value, FIELDS_MAX>) -> Result<Vec<Vec<u8>>, TooLong> {
    values.whole("a header", "values")?.into_iter().map(whole_value).collect()
}

fn whole_entries(entries: Few<(Line, Value), FIELDS_MAX>) -> Result<Vec<(String, Vec<u8>)>, TooLong> {
    let entries = entries.whole("a message", "headers")?.into_iter();
    entries.map(|(name, value)| Ok((whole_line(name)?, whole_value(value)?))).collect()
}
