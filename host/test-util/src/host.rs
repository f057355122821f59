//! A host for one interface.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::contract::TIMEOUT;
use crate::dispatch::{InterfaceTestDispatch, TestDispatch};
use wasmcage_config::testing::section_in;
use wasmcage_config::{ConfigError, RequestTarget};
use wasmcage_core::body_budget::BodyBudget;
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::store_settings::StoreSettings;
use wasmcage_core::task::{self, Tasks};
use wasmcage_protocol::{Endpoint, InterfaceContext, InterfaceError, Protocol};
use wasmcage_store::Store;

/// Name of the interface, and of the queue that it serves if it serves one.
const INTERFACE: &str = "test";
/// Of bodies that are kept whole.
const BODY_BYTES: u64 = 256 << 20;
/// Before an interface that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What a cage gives to its interfaces, with a dispatch that does what the test says.
pub struct TestHost {
    pub dispatch: Arc<TestDispatch>,
    pub store: Arc<Store>,
    pub tasks: Tasks,
    lanes: Arc<Lanes>,
    directory: tempfile::TempDir,
}

/// An interface that is kept running, as a cage does it. Dropping it cuts it off.
pub struct TestInterface {
    pub endpoint: Arc<Endpoint>,
    pub drain: Drain,
    /// Why it failed last.
    pub error: Arc<Mutex<Option<InterfaceError>>>,
    task: JoinHandle<()>,
}

impl Default for TestHost {
    fn default() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = StoreSettings { minimum_free_bytes: 0 };
        Self {
            dispatch: Arc::default(),
            store: Arc::new(Store::new("runner", &directory.path().join("state"), settings)),
            tasks: Tasks::new("runner"),
            lanes: Arc::new(Lanes::start(2).unwrap()),
            directory,
        }
    }
}

impl TestHost {
    /// A directory of this host's own.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// All that an interface of the protocol is given.
    pub fn context(&self, protocol: &dyn Protocol) -> InterfaceContext {
        let info = protocol.info();
        let module = match info.target {
            RequestTarget::Handler | RequestTarget::HandlerOrWasiHttp => "work",
            RequestTarget::NamedModule => "",
        };
        let endpoint = Endpoint::new(INTERFACE.into(), info.name, "runner".into(), module.into(), TIMEOUT);
        InterfaceContext {
            dispatch: Arc::new(InterfaceTestDispatch(self.dispatch.clone())),
            endpoint: Arc::new(endpoint),
            drain: Drain::new(),
            lanes: self.lanes.clone(),
            store: self.store.clone(),
            tasks: self.tasks.clone(),
            node: "n1".into(),
            runtime_directory: self.directory.path().into(),
            bodies: Arc::new(BodyBudget::new(BODY_BYTES)),
        }
    }

    /// Runs an interface with these keys; one that fails or panics is run again, as a cage does it.
    ///
    /// # Errors
    /// What is wrong with the keys.
    pub fn start(&self, protocol: Box<dyn Protocol>, keys: &str) -> Result<TestInterface, ConfigError> {
        let cx = self.context(&*protocol);
        // Of its own: what protocols share within a cage, such as connections, is not shared with another test's.
        let directory = self.directory.path().to_owned();
        protocol.interface(section_in(&directory, keys))?;
        let (endpoint, drain, error) = (cx.endpoint.clone(), cx.drain.clone(), Arc::<Mutex<_>>::default());
        let (keys, last_error) = (keys.to_owned(), error.clone());
        let task = tokio::spawn(async move {
            loop {
                let interface = protocol.interface(section_in(&directory, &keys)).expect("the keys were good");
                let ended = tokio::select! {
                    ended = task::catch_panic_async(interface.run(cx.clone())) => ended,
                    () = cx.drain.forcing() => return,
                };
                match ended {
                    Ok(Ok(())) => return,
                    Ok(Err(failure)) => *last_error.lock() = Some(failure),
                    Err(panic) => cx.tasks.report("interface", &panic),
                }
                if cx.drain.unless_begun(tokio::time::sleep(RETRY_PAUSE)).await.is_none() {
                    return;
                }
            }
        });
        Ok(TestInterface { endpoint, drain, error, task })
    }
}

impl TestInterface {
    /// The address at which it listens, once it does, without its scheme.
    ///
    /// # Panics
    /// After 60 seconds.
    pub async fn address(&self) -> String {
        let listens = async {
            loop {
                if let Some(address) = self.endpoint.addresses().first() {
                    let text = address.text();
                    return text.split_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/').to_owned();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let listens = tokio::time::timeout(TIMEOUT, listens).await;
        listens.unwrap_or_else(|_| panic!("it does not listen: {:?}", *self.error.lock()))
    }

    /// Whether `run` has returned.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Resolves when `run` has returned.
    ///
    /// # Panics
    /// After 60 seconds.
    pub async fn ended(mut self) {
        let ended = tokio::time::timeout(TIMEOUT, &mut self.task).await;
        ended.expect("a drained interface ends").expect("the task that runs it does not panic");
    }
}

impl Drop for TestInterface {
    fn drop(&mut self) {
        self.drain.force();
    }
}
