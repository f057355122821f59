//! A service that never says which functions it has, which is asked before it is made current. (For components that
//! loop when they are instantiated see `tests/fixtures`.)

wit_bindgen::generate!({ path: "../../wit", world: "service-module" });

use exports::wasmcage::cage::service::{Error, Guest, Payload};

struct Service;
export!(Service);

impl Guest for Service {
    fn functions() -> Vec<String> {
        loop {
            std::hint::spin_loop();
        }
    }

    fn call(_function: String, arguments: Payload) -> Result<Payload, Error> {
        Ok(arguments)
    }
}
