//! A service that panics when it is asked for its functions, which is before it is made current. (For components that
//! trap when they are instantiated see `tests/fixtures`.)

wit_bindgen::generate!({ path: "../../wit", world: "service-module" });

use exports::wasmcage::cage::service::{Error, Guest, Payload};

struct Service;
export!(Service);

impl Guest for Service {
    fn functions() -> Vec<String> {
        panic!("this module never starts");
    }

    fn call(_function: String, arguments: Payload) -> Result<Payload, Error> {
        Ok(arguments)
    }
}
