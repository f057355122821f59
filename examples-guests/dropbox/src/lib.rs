//! Takes files from a watched directory, and writes what it makes of each through the resource `results`.

use wasmcage_guest::file::files;
use wasmcage_guest::{Error, Request, Response, Result, handler};

#[handler]
fn handle(request: Request) -> Result<Response> {
    let text = String::from_utf8(request.body).map_err(|_| Error::bad_arguments("the file is no text"))?;
    if text.starts_with("later") {
        return Err(Error::failed("not today"));
    }
    files("results").write(&request.target, text.to_uppercase())?;
    Ok(Response::new(204))
}
