//! Starts a host from a program that embeds it, and calls modules.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_protocol::{Protocol, Protocols};
use wasmcage_runtime::dispatcher::OperatorCall;
use wasmcage_runtime::module::compiler::CompileIn;

use crate::cage::Cage;
use crate::host::{Host, HostOptions, StartError};

/// Options of a host that is to be started; made by `Host::builder`.
pub struct HostBuilder {
    options: HostOptions,
    protocols: Vec<Box<dyn Protocol>>,
}

impl HostBuilder {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { options: HostOptions::new(root, Vec::<String>::new(), Protocols::default()), protocols: Vec::new() }
    }

    /// Adds a cage. It is the directory of this name in the root.
    #[must_use]
    pub fn cage(mut self, name: impl Into<String>) -> Self {
        self.options.cages.push(name.into());
        self
    }

    /// Adds a protocol that `protocol = ".."` in `cage.toml` may name.
    #[must_use]
    pub fn protocol(mut self, protocol: impl Protocol + 'static) -> Self {
        self.protocols.push(Box::new(protocol));
        self
    }

    /// Sets the number of threads that run guests; the default is one per core.
    #[must_use]
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.options.lanes = Some(lanes);
        self
    }

    /// Sets where modules are compiled. There is no default: see [`CompileIn`].
    #[must_use]
    pub fn compile_in(mut self, choice: impl Into<CompileIn>) -> Self {
        self.options.compiler = Some(choice.into());
        self
    }

    /// Changes options that have no method here.
    #[must_use]
    pub fn options(mut self, set: impl FnOnce(&mut HostOptions)) -> Self {
        set(&mut self.options);
        self
    }

    /// Starts the cages. Must be called on a multi-threaded tokio runtime with time and I/O enabled. Returns when the existing
    /// modules are loaded and all interfaces listen, or after the timeouts for both.
    ///
    /// # Errors
    /// A cage that cannot be started at all.
    pub async fn start(self) -> Result<Host, StartError> {
        let mut options = self.options;
        options.protocols = Protocols::new(self.protocols);
        Host::start(options).await
    }
}

impl Cage {
    /// Calls a function of one of the cage's modules, `module.function`, with the rights of the cage itself. JSON arguments are
    /// `{"args": [..], "kwargs": {..}}`, both optional. The guest runs on one of the host's lanes.
    /// Dropping the future ends the call: what it has done by then stays done.
    ///
    /// # Errors
    /// See the kinds; `BadRequest` when the name has no dot.
    pub async fn call(&self, function: &str, arguments: Payload, timeout: Duration) -> Result<Payload, DispatchError> {
        let Some((module, function)) = function.split_once('.') else {
            return Err(DispatchError::BadRequest(format!("{function:?} is no MODULE.FUNCTION")));
        };
        let call = OperatorCall {
            cage: self.name().to_owned(),
            module: module.to_owned(),
            function: function.to_owned(),
            arguments,
            timeout,
            idempotent: false,
        };
        let dispatcher = self.dispatcher().clone();
        let call = self.lanes().next().spawn(async move { dispatcher.call_for_operator(call).await });
        AbortOnDropHandle::new(call)
            .await
            .unwrap_or_else(|_| Err(DispatchError::Host("the call panicked, or the host has ended".into())))
    }
}
