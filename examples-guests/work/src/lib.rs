//! The module `work` of the cage `worker`: does the work that `interface_my_http` asks for.

use wasmcage_guest::service;

#[service]
mod work {
    pub fn handle(request_target: &str) -> String {
        format!("Working on {request_target}")
    }
}
