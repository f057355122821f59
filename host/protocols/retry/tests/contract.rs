//! The contract of a protocol. A retried call is acknowledged when the store keeps it no more.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use wasmcage_core::request::Deadline;
use wasmcage_protocol::Protocol;
use wasmcage_retry::RetryProtocol;
use wasmcage_store::{CallFilter, NewCall, StoredTarget};
use wasmcage_test_util::contract::{Answer, Subject, TIMEOUT};
use wasmcage_test_util::{TestHost, TestInterface};

#[derive(Default)]
struct RetrySubject {
    calls: AtomicUsize,
}

#[async_trait]
impl Subject for RetrySubject {
    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(RetryProtocol)
    }

    fn keys(&self, _: &TestHost) -> String {
        "retry_interval_ms = 10".to_owned()
    }

    fn keeps_requests(&self) -> bool {
        true
    }

    async fn ask(&self, host: &TestHost, interface: &TestInterface) -> Answer {
        let queue = interface.endpoint.interface.to_string();
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let id = format!("call-{number}.");
        let target = StoredTarget {
            origin: "runner".to_owned(),
            cage: None,
            module: "work".to_owned(),
            function: "handle".to_owned(),
        };
        let call = NewCall {
            queue: queue.clone(),
            id: id.clone(),
            target,
            message: Vec::new(),
            expires: None,
            not_before: None,
            attempts_max: None,
            priority: 0,
        };
        host.store.accept_call(call, Deadline::after(TIMEOUT)).await.unwrap();
        loop {
            let wanted = CallFilter { queue: Some(queue.clone()), dead: false, limit: 100 };
            let pending = host.store.read_without_blocking(move |store| store.calls(&wanted)).await.unwrap();
            if pending.iter().all(|call| call.id != id) {
                return Answer::Done;
            }
            // Once it is made again, it was not acknowledged before.
            if host.dispatch.begun_with(&id) >= 2 {
                return Answer::NotDone;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

wasmcage_test_util::contract!(RetrySubject);
