//! Access to a cage's state: over the control socket of a running cage, or by opening the store of one that does not run.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use wasmcage_config::CageConfig;
use wasmcage_store::Store;

use crate::control::state::{StateRequest, perform};
use crate::control::{CLIENT_TIMEOUT, CommandRefusal, ControlError, ask_with_timeout};
use crate::supervisor::pid_lock::LockHolder;
use crate::{CommandError, check_cage, config, directories, holder};

/// Access to the state of one cage.
pub(super) struct Access<'a> {
    root: &'a Path,
    cage: &'a str,
    /// None if the cage runs.
    opened: Option<OfflineStore>,
}

/// The store of a cage that does not run.
struct OfflineStore {
    config: CageConfig,
    store: Arc<Store>,
    runtime: Runtime,
}

impl<'a> Access<'a> {
    /// Finds out whether the cage runs, and opens its store if it does not.
    ///
    /// # Errors
    /// There is no such cage, or its `cage.toml` has mistakes.
    pub(super) fn new(root: &'a Path, cage: &'a str) -> Result<Self, CommandError> {
        check_cage(root, cage)?;
        let opened = match holder(root, cage)? {
            LockHolder::Pid(_) => None,
            LockHolder::None => Some(OfflineStore::new(root, cage)?),
        };
        Ok(Self { root, cage, opened })
    }

    pub(super) fn cage(&self) -> &str {
        self.cage
    }

    pub(super) fn root(&self) -> &Path {
        self.root
    }

    /// Performs a request.
    ///
    /// # Errors
    /// The store returns an error, or the cage cannot be asked.
    pub(super) fn ask<T: DeserializeOwned>(&self, request: StateRequest) -> Result<T, CommandError> {
        let timeout = request.timeout();
        let answer = match &self.opened {
            Some(OfflineStore { config, store, runtime }) => {
                let quota = |module: &str| config.module(module).state;
                runtime.block_on(perform(store, quota, request)).map_err(refused)?
            }
            None => {
                let arguments = serde_json::to_value(&request).expect("a request has text keys only");
                let answer_timeout = timeout + CLIENT_TIMEOUT;
                ask_with_timeout(&directories(self.root).run(self.cage), self.cage, "state", arguments, answer_timeout)
                    .map_err(|error| match error {
                        ControlError::Refused { code, text, .. } => refused(CommandRefusal { code, text }),
                        ControlError::Connect { .. } | ControlError::Answer { .. } => error.into(),
                    })?
            }
        };
        let unknown = |error| CommandError::failed("the cage answered in a way this version does not know", error);
        serde_json::from_value(answer).map_err(unknown)
    }
}

impl OfflineStore {
    fn new(root: &Path, cage: &str) -> Result<Self, CommandError> {
        let config = config(root, cage)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| CommandError::failed("cannot make a runtime", error))?;
        let store = Arc::new(Store::new(cage, &directories(root).state(cage), config.store));
        Ok(Self { config, store, runtime })
    }
}

fn refused(CommandRefusal { code, text }: CommandRefusal) -> CommandError {
    CommandError::Call { code, text }
}
