//! The outside world: one folder per protocol, one line per protocol in `PROTOCOLS`. An interface turns what comes in
//! into requests for the dispatcher; it never sees a wasmtime type and knows no other protocol.

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod file;
pub mod http;
pub mod retry;
pub mod rpc;
pub mod schedule;
pub mod sql;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use wasmcage_core::body_budget::BodyBudget;
use wasmcage_config::{ConfigError, ExportChoice, Section};
use wasmcage_runtime::dispatcher::Dispatcher;
use crate::Endpoint;
use wasmcage_core::drain::Drain;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Operation, OperationReply, Phase, ReplyStream, ResourceError};
use wasmcage_runtime::services::Services;

/// Every protocol that `protocol = ".."` in `cage.toml` may name.
pub static PROTOCOLS: &[&dyn Protocol] = &[
    &http::Http,
    &rpc::Rpc,
    &rpc::ReverseRpc,
    &retry::Retry,
    &schedule::Schedule,
    &sql::Sql,
    &file::File,
    #[cfg(feature = "amqp")]
    &amqp::Amqp,
];

pub trait Protocol: Sync {
    /// The name in `cage.toml`.
    fn name(&self) -> &'static str;

    /// Whether every cage has an interface of this protocol, called like it, without naming it.
    fn unnamed(&self) -> bool {
        false
    }

    /// Whether an interface works off the queue of retried calls that is called like it.
    fn has_queue(&self) -> bool {
        false
    }

    /// Whether one module serves the interface; otherwise what comes in says which.
    fn has_module(&self) -> bool {
        true
    }

    /// Which export of a component serves this protocol, when the configuration names none.
    fn choice(&self, configured: ExportChoice) -> ExportChoice {
        match configured {
            ExportChoice::Auto => ExportChoice::Handler,
            chosen => chosen,
        }
    }

    /// # Errors
    /// All mistakes of the section, or that the protocol has no inbound side.
    fn interface(&self, section: Section) -> Result<Box<dyn Interface>, ConfigError> {
        Err(section.refused(format!("protocol {} has no inbound side: it is for [resources.x]", self.name())))
    }

    /// # Errors
    /// All mistakes of the section, or that the protocol has no outbound side.
    fn resource(&self, section: Section) -> Result<Box<dyn Resource>, ConfigError> {
        Err(section.refused(format!("protocol {} has no outbound side: it is for [interfaces.x]", self.name())))
    }
}

/// The inbound side. `run` is spawned to start it; it takes nothing new once `cx.drain` begins, finishes what it has,
/// then returns; its future is dropped at the drain's deadline.
#[async_trait]
pub trait Interface: Send + Sync {
    /// # Errors
    /// What keeps it from serving, such as a port in use. The cage logs it, goes on, and tries again later.
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError>;
}

/// All that an interface may touch.
#[derive(Clone)]
pub struct InterfaceContext {
    pub dispatcher: Dispatcher,
    /// The module that serves this interface, whichever version is current; names, timeout and readings with it.
    pub endpoint: Arc<Endpoint>,
    pub drain: Drain,
    pub lanes: Arc<Lanes>,
    /// The cage's store, resources and locks.
    pub services: Services,
    /// Label of this machine.
    pub node: Arc<str>,
    /// Where running cages of this user meet: see `host::runtime_directory`.
    pub runtime_directory: Arc<Path>,
    /// The process's budget for bodies that are kept whole.
    pub bodies: Arc<BodyBudget>,
}

#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error("interface {interface} cannot listen at {address}")]
    Listen {
        interface: String,
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("interface {interface}: {text}")]
    Setup {
        interface: String,
        text: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// The outbound side, one for each `[resources.x]`. `pool` and `cache` of its section are not its business.
#[async_trait]
pub trait Resource: Send + Sync {
    /// What can be said of an operation before there is a connection.
    ///
    /// # Errors
    /// In phase `Check`: it cannot be done.
    fn check(&self, _operation: &Operation) -> Result<(), ResourceError> {
        Ok(())
    }

    /// Whether a rollback takes back what this operation did.
    fn undoes(&self, _operation: &Operation) -> bool {
        true
    }

    /// What keeps it from working now, for an operator; none if nothing is known. Answers at once.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Whether a connection that one module has used is never given to another, since its session may hold what the module
    /// left there and `Connection::reset` does not take away.
    fn keeps_modules_apart(&self) -> bool {
        false
    }

    /// # Errors
    /// In phase `Connect`: the other side cannot be reached.
    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError>;
}

/// One connection, used by one participant at a time: `begin`, `execute` (once or several times), then `commit` or
/// `rollback`. A future that is dropped, at the deadline or because nobody waits, leaves a connection that is discarded. Errors
/// say whether anything irreversible happened, and whether the connection can be used again.
#[async_trait]
pub trait Connection: Send {
    /// Begins a transaction, where the protocol has such.
    ///
    /// # Errors
    /// In phase `Begin`; an option that is not known: `BAD_OPERATION`, harmless.
    async fn begin(&mut self, options: &[(String, String)], deadline: Deadline) -> Result<(), ResourceError>;

    /// # Errors
    /// In phase `Execute`.
    async fn execute(&mut self, operation: Operation, deadline: Deadline) -> Result<OperationReply, ResourceError>;

    /// # Errors
    /// In phase `Commit`.
    async fn commit(&mut self, deadline: Deadline) -> Result<(), ResourceError>;

    /// # Errors
    /// In phase `Rollback`.
    async fn rollback(&mut self, deadline: Deadline) -> Result<(), ResourceError>;

    /// One operation as a transaction of its own; overridden where that is cheaper than four steps.
    ///
    /// # Errors
    /// See the steps.
    async fn execute_alone(
        &mut self,
        operation: Operation,
        options: &[(String, String)],
        deadline: Deadline,
    ) -> Result<OperationReply, ResourceError> {
        self.begin(options, deadline).await?;
        match self.execute(operation, deadline).await {
            Ok(reply) => self.commit(deadline).await.map(|()| reply),
            Err(error) => {
                if !error.terminal && self.rollback(deadline).await.is_err() {
                    return Err(ResourceError { terminal: true, ..error });
                }
                Err(error)
            }
        }
    }

    /// One operation as a transaction of its own, whose reply comes in parts. The connection comes back with the end of the
    /// stream, if it can be used again.
    ///
    /// # Errors
    /// `BAD_OPERATION` where replies come whole only; see the steps.
    async fn open(
        self: Box<Self>,
        _operation: Operation,
        _options: &[(String, String)],
        _deadline: Deadline,
    ) -> Result<(OperationReply, Box<dyn ReplyStream>), ResourceError> {
        let text = "its replies come whole: use `execute`";
        Err(ResourceError::harmless(Phase::Check, ResourceError::BAD_OPERATION, text))
    }

    /// That it must not be used again. Asked when it is given back and before each use; answers at once, without the other side.
    fn is_used_up(&self) -> bool {
        false
    }

    /// Whether it can be used now, asked when it was unused for a while.
    async fn is_healthy(&mut self) -> bool;

    /// What must happen before somebody else uses it, asked when its user gives it back.
    fn reuse(&self) -> Reuse {
        Reuse::AsItIs
    }

    /// Takes away what its user has left in it. Done after the user has the reply.
    ///
    /// # Errors
    /// The connection is discarded.
    async fn reset(&mut self) -> Result<(), ResourceError> {
        Ok(())
    }
}

/// Whether another may use a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    AsItIs,
    /// Once `Connection::reset` has succeeded.
    AfterReset,
    /// It is closed.
    Never,
}

/// The protocol of that name.
pub fn find(name: &str) -> Option<&'static dyn Protocol> {
    PROTOCOLS.iter().copied().find(|protocol| protocol.name() == name)
}
