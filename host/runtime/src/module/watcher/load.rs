//! Examines one module's file, which becomes the version that serves or is refused with a reason.

use std::sync::Arc;

use tokio::time::Instant;

use super::Watched;
use super::look::{Sighting, locate};
use crate::host_api::Home;
use crate::module::compiler::CompileError;
use crate::module::component_file::{ComponentFile, ContentHash};
use crate::module::loader::LoadError;
use crate::module::retry::Retry;
use crate::module::slot::Slot;
use crate::module::version::{Lease, Version};
use wasmcage_config::ModuleConfig;
use wasmcage_core::{task, telemetry};

/// The result of examining a file, for the watcher.
pub(super) struct Examined {
    /// The file as it was examined, if there is one.
    pub(super) sighting: Option<Sighting>,
    pub(super) then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Nothing,
    /// The file is gone, so the module is removed.
    Remove,
    Again(Retry),
}

impl Watched {
    /// Reads a module's file, and loads it unless it has the `known` content.
    pub(super) async fn examine(self: Arc<Self>, name: &str, known: Option<ContentHash>) -> Examined {
        match task::catch_panic_async(self.examine_unguarded(name, known)).await {
            Ok(examined) => examined,
            Err(panic) => {
                self.services.tasks.report(&format!("load of module {name}"), &panic);
                let slot = self.modules.get_or_create(name);
                slot.set_loading(false);
                self.refuse(&slot, format!("loading it {panic}"), Retry::Soon);
                Examined { sighting: None, then: Then::Again(Retry::Soon) }
            }
        }
    }

    async fn examine_unguarded(self: &Arc<Self>, name: &str, known: Option<ContentHash>) -> Examined {
        let (this, file) = (self.clone(), name.to_owned());
        let read = move || {
            let path = locate(this.directories(), &file)?;
            Ok(path.map(|path| {
                let opened = ComponentFile::open(&path);
                let sighting = match &opened {
                    Ok(file) => Sighting::of(file),
                    Err(_) => Sighting::new(path),
                };
                (sighting, opened)
            }))
        };
        let found: std::io::Result<_> = self.loader.read(read).await;
        let (sighting, opened) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Examined { sighting: None, then: Then::Remove },
            Err(error) => {
                if let Some(slot) = self.modules.get(name) {
                    self.refuse(&slot, format!("{name}.wasm: cannot be looked at: {error}"), Retry::Soon);
                }
                return Examined { sighting: None, then: Then::Again(Retry::Soon) };
            }
        };
        if known.is_some() && sighting.hash == known {
            return Examined { sighting: Some(sighting), then: Then::Nothing };
        }
        let slot = self.modules.get_or_create(name);
        slot.set_loading(true);
        let loaded = match opened {
            Ok(source) => self.load(&slot, source).await,
            Err(error) => Err(LoadError::Compile(error)),
        };
        slot.set_loading(false);
        let Err(error) = loaded else { return Examined { sighting: Some(sighting), then: Then::Nothing } };
        let retry = error.retry();
        // A file that is being written is not refused, since it is read again when it is complete.
        if !matches!(error, LoadError::Compile(CompileError::Changed)) {
            let text = format!("{}: {}", sighting.path.display(), telemetry::error_chain(&error));
            self.refuse(&slot, text, retry);
        }
        Examined { sighting: Some(sighting), then: Then::Again(retry) }
    }

    /// Loads the file with the current settings. If they change during the load, it is repeated with the new ones.
    async fn load(&self, slot: &Slot, source: ComponentFile) -> Result<(), LoadError> {
        let begun = Instant::now();
        let source = Arc::new(source);
        loop {
            let settings = self.settings(slot);
            let serves = |version: &Arc<Version>| version.hash == source.hash && version.home.settings == settings;
            if slot.current().as_ref().is_some_and(serves) {
                slot.confirm();
                return Ok(());
            }
            let timeout = settings.timeout.unwrap_or(self.config.load().request_timeout);
            let (cage, services) = (self.cage().as_str().into(), self.services.clone());
            let (dispatcher, level) = (self.dispatcher.clone(), self.level.clone());
            let home = Home::new(cage, slot.name.clone(), settings.clone(), services, dispatcher, level);
            let loaded = self.loader.load(slot, Arc::new(home), source.clone(), timeout).await;
            self.tell_cache_problem();
            if settings == self.settings(slot) {
                let (version, predecessor) = loaded?;
                self.swap(slot, version, predecessor, begun);
                return Ok(());
            }
            if let Ok((_, Some(predecessor))) = loaded {
                // A `save` does not change the old instance, so it goes on serving.
                predecessor.keep();
            }
        }
    }

    fn settings(&self, slot: &Slot) -> ModuleConfig {
        self.config.load().module(&slot.name)
    }

    fn swap(&self, slot: &Slot, version: Arc<Version>, predecessor: Option<Lease>, begun: Instant) {
        let home = version.home.clone();
        let (number, sha256) = (version.number, format!("{:.12}", version.hash));
        slot.swap(Some(version));
        drop(predecessor);
        // Grants may have been revoked since the settings were compared.
        home.narrow(&self.settings(slot).allow);
        self.loader.tell(&home);
        let (cage, module) = (self.cage(), &*slot.name);
        let elapsed_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(%cage, %module, version = number, %sha256, elapsed_ms, "module loaded");
    }

    /// Refuses the file. The same reason is logged only once, however often the load is tried again.
    fn refuse(&self, slot: &Slot, mut error: String, retry: Retry) {
        if retry != Retry::Never {
            error.push_str("; tried again by itself");
        }
        if slot.refuse(error.clone()) {
            let (cage, module) = (self.cage(), &*slot.name);
            let serving = slot.current().map_or_else(|| "none".to_owned(), |version| version.number.to_string());
            tracing::error!(%cage, %module, %error, version_serving = %serving, "module refused");
        }
    }

    fn tell_cache_problem(&self) {
        let problem = self.loader.cache_problem();
        let mut told = self.cache_problem.lock();
        if let Some(problem) = problem.as_ref().filter(|problem| Some(*problem) != told.as_ref()) {
            tracing::warn!(cage = %self.cage(), problem, "compiled files are not kept where they should be");
        }
        *told = problem;
    }
}
