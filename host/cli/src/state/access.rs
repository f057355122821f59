//! A cage's state: the running cage is asked for it, the store of one that does not run is opened here.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use wasmcage_config::CageConfig;
use wasmcage_store::Store;

use crate::control::state::{StateRequest, perform};
use crate::control::{CLIENT_TIMEOUT, ControlError, Refusal, ask_patiently};
use crate::supervisor::pid_lock::Holder;
use crate::{CommandError, check_cage, config, directories, holder};

/// The state of one cage.
pub(super) struct Access<'a> {
    root: &'a Path,
    cage: &'a str,
    /// None: the cage runs.
    opened: Option<Opened>,
}

struct Opened {
    config: CageConfig,
    store: Arc<Store>,
    runtime: Runtime,
}

impl<'a> Access<'a> {
    /// # Errors
    /// There is no such cage, or its `cage.toml` has mistakes.
    pub(super) fn new(root: &'a Path, cage: &'a str) -> Result<Self, CommandError> {
        check_cage(root, cage)?;
        let opened = match holder(root, cage)? {
            Holder::Pid(_) => None,
            Holder::None => Some(Opened::new(root, cage)?),
        };
        Ok(Self { root, cage, opened })
    }

    pub(super) fn cage(&self) -> &str {
        self.cage
    }

    pub(super) fn root(&self) -> &Path {
        self.root
    }

    /// # Errors
    /// What the store says, and whatever keeps the cage from being asked.
    pub(super) fn ask<T: DeserializeOwned>(&self, request: StateRequest) -> Result<T, CommandError> {
        let timeout = request.timeout();
        let answer = match &self.opened {
            Some(Opened { config, store, runtime }) => {
                let quota = |module: &str| config.module(module).state;
                runtime.block_on(perform(store, quota, request)).map_err(refused)?
            }
            None => {
                let arguments = serde_json::to_value(&request).expect("a request has text keys only");
                let patience = timeout + CLIENT_TIMEOUT;
                ask_patiently(&directories(self.root).run(self.cage), self.cage, "state", arguments, patience).map_err(
                    |error| match error {
                        ControlError::Refused { code, text, .. } => refused(Refusal { code, text }),
                        ControlError::Connect { .. } | ControlError::Answer { .. } => error.into(),
                    },
                )?
            }
        };
        let unknown = |error| CommandError::failed("the cage answered in a way this version does not know", error);
        serde_json::from_value(answer).map_err(unknown)
    }
}

impl Opened {
    fn new(root: &Path, cage: &str) -> Result<Self, CommandError> {
        let config = config(root, cage)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| CommandError::failed("cannot make a runtime", error))?;
        let store = Arc::new(Store::new(cage, &directories(root).state(cage), config.store));
        Ok(Self { config, store, runtime })
    }
}

fn refused(Refusal { code, text }: Refusal) -> CommandError {
    CommandError::Call { code, text }
}
