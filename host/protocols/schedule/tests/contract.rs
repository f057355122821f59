//! The contract of a protocol. A scheduled request has no client that could be told how it ends.

use async_trait::async_trait;
use wasmcage_protocol::Protocol;
use wasmcage_schedule::ScheduleProtocol;
use wasmcage_test_util::contract::{Answer, Subject};
use wasmcage_test_util::{TestHost, TestInterface};

#[derive(Default)]
struct ScheduleSubject;

#[async_trait]
impl Subject for ScheduleSubject {
    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(ScheduleProtocol)
    }

    fn keys(&self, _: &TestHost) -> String {
        "every = '1s'\noverlap = 'skip'".to_owned()
    }

    /// A scheduled request waits for its module as long as it may take.
    fn keeps_requests(&self) -> bool {
        true
    }

    async fn ask(&self, host: &TestHost, _: &TestInterface) -> Answer {
        let (begun, without_module) = (host.dispatch.begun(), host.dispatch.without_module());
        while host.dispatch.begun() == begun && host.dispatch.without_module() == without_module {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        Answer::Untold
    }
}

wasmcage_test_util::contract!(ScheduleSubject);
