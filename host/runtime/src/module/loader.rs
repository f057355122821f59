//! The loader makes a version from a component's file: it compiles it, checks that its imports are provided, links it,
//! reads the exports, starts one instance, asks it for its functions and compares them with the version that serves now.
//! If any step fails, the old version goes on serving.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::broadcast;
use wasmtime::component::types::{ComponentFunc, ComponentItem};
use wasmtime::component::{Component, Linker};

use super::binding::{self, BoundFunction, BoundInterface};
use super::compiler::{CompileError, Compiled, Compiler};
use super::component_file::ComponentFile;
use super::engine::{EngineKind, Engines};
use super::exports::{self, Exports, Handover};
use super::places::Places;
use super::retry::Retry;
use super::slot::Slot;
use super::value::Signature;
use super::version::{Lease, Linked, Version};
use crate::host_api::interfaces::{self, Known};
use crate::host_api::{self, GuestState, Home};
use wasmcage_config::{InstanceMode, ModuleConfig};
use wasmcage_core::admission::{AdmissionError, EntryKind};
use wasmcage_core::error::DispatchError;
use wasmcage_core::lanes::Lanes;
use wasmcage_core::request::Deadline;

/// The largest number of functions that a `service` may list.
const FUNCTIONS_MAX: usize = 10_000;
/// The number of news of modules that are kept for a cage; a cage that misses some examines all its refused modules that
/// have bindings.
const NEWS_MAX: usize = 256;
/// The largest number of bytes that a `single` instance may hand over to the next version.
const HANDOVER_BYTES_MAX: usize = 16 << 20;
/// The numbers of quick and of slow reads of files at one time; a slow one waits for a disk or a file server.
const READS: (usize, usize) = (4, 64);
/// The numbers of quick and of slow starts of first instances at one time.
const STARTS: (usize, usize) = (4, 16);
/// A read or a start that takes longer than this counts as slow, and makes room for the next one.
const SLOW_AFTER: Duration = Duration::from_millis(250);
/// The least timeout of a `save`, even if that of a start is shorter: a `save` that is interrupted ends the instance, and
/// its memory is lost.
const SAVE_TIMEOUT: Duration = Duration::from_secs(60);
/// The number of mistakes that a message lists; `wasmcage check` shows all.
const MISTAKES_SHOWN_MAX: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot be compiled")]
    Compile(#[from] CompileError),
    #[error("{}", import_list(.0))]
    Imports(Vec<ImportProblem>),
    #[error("cannot be linked: {0}")]
    Link(String),
    #[error("{0}")]
    Export(String),
    #[error(
        "exports nothing that a cage can use: neither wasmcage:cage/handler, wasmcage:cage/service, \
         wasi:http/incoming-handler, wasi:http/handler, nor a plain function"
    )]
    NothingExported,
    #[error("its first instance did not start")]
    Start(#[source] DispatchError),
    #[error("its function list was not given")]
    Functions(#[source] DispatchError),
    #[error("its predecessor did not hand over")]
    Save(#[source] DispatchError),
    #[error(
        "`save` of its predecessor failed and ended that instance: its memory is lost, and the old version goes on with \
         a new one; to begin anew with this file, remove it and put it there again"
    )]
    MemoryLost(#[source] DispatchError),
    #[error("it did not take over from its predecessor")]
    Restore(#[source] DispatchError),
    #[error("{}; set compatible = false in [modules.{module}] to replace it all the same", shortlist(.missing))]
    Incompatible { module: String, missing: Vec<String> },
}

impl LoadError {
    /// Returns when to try the same file again although neither it nor its settings or bindings have changed.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Compile(error) => error.retry(),
            // The start of a guest may depend on other systems, so it is tried again, but seldom: each attempt costs much.
            Self::Start(error) | Self::Functions(error) | Self::Restore(error) => match error {
                DispatchError::Host(_) | DispatchError::Overloaded(_) => Retry::Soon,
                _ => Retry::Seldom,
            },
            // `BadRequest` means that the predecessor saved too much. Otherwise it may have been busy until the deadline.
            Self::Save(DispatchError::BadRequest(_)) => Retry::Seldom,
            Self::Save(_) => Retry::Soon,
            // After `MemoryLost` the same `save` would end the next instance, too.
            Self::MemoryLost(_)
            | Self::Imports(_)
            | Self::Link(_)
            | Self::Export(_)
            | Self::NothingExported
            | Self::Incompatible { .. } => Retry::Never,
        }
    }
}

/// An import that keeps a component from being loaded, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportProblem {
    pub import: String,
    pub reason: String,
}

fn import_list(problems: &[ImportProblem]) -> String {
    let lines: Vec<_> =
        problems.iter().map(|problem| format!("import {}: {}", problem.import, problem.reason)).collect();
    shortlist(&lines)
}

/// Joins the first mistakes and says how many more there are, so that a log line stays readable.
fn shortlist(texts: &[String]) -> String {
    let shown = texts.iter().take(MISTAKES_SHOWN_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    match texts.len().saturating_sub(MISTAKES_SHOWN_MAX) {
        0 => shown,
        more => format!("{shown}; and {more} more, which `wasmcage check` shows"),
    }
}

/// The result of `wasmcage check` for one component.
#[derive(Debug, Serialize)]
pub struct Inspection {
    pub sha256: String,
    pub engine: &'static str,
    /// The mode in which its instances would serve, or `None` when it cannot be linked.
    pub mode: Option<InstanceMode>,
    pub imports: Vec<ImportReport>,
    /// The interfaces that `cage.toml` binds and the component does not import.
    pub unused_bindings: Vec<String>,
    pub exports: Vec<String>,
    /// Remarks that do not keep it from being loaded, such as functions that no other module can call.
    pub notes: Vec<String>,
    /// The reasons why it would be refused. If there are none, it would be loaded, as far as can be seen without starting it.
    pub problems: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct ImportReport {
    pub name: String,
    pub granted: bool,
    /// The module that answers it, as `cage/module` or `module`, when `cage.toml` binds it to one.
    pub bound: Option<String>,
    /// The reason why it is not granted.
    pub reason: Option<String>,
    /// A function that the import lacks although it is granted.
    pub caveat: Option<&'static str>,
}

/// The loader that all cages of the process share.
pub struct Loader {
    compiler: Arc<Compiler>,
    linkers: [Linker<GuestState>; 2],
    lanes: Arc<Lanes>,
    reads: Places,
    starts: Places,
    /// The cage and the module of each version that begins to serve.
    news: broadcast::Sender<(Arc<str>, Arc<str>)>,
}

impl Loader {
    /// # Errors
    /// Returns wasmtime's error when the host's own interfaces clash, which is a bug.
    pub fn new(engines: &Engines, compiler: Arc<Compiler>, lanes: Arc<Lanes>) -> wasmtime::Result<Self> {
        let [plain, concurrent] = EngineKind::ALL.map(|kind| host_api::linker(engines.get(kind), kind));
        let (news, _) = broadcast::channel(NEWS_MAX);
        let [reads, starts] = [READS, STARTS].map(|(quick, slow)| Places::new(quick, slow, SLOW_AFTER));
        Ok(Self { compiler, linkers: [plain?, concurrent?], lanes, reads, starts, news })
    }

    /// Returns why compiled files are not kept in the preferred directory, or `None` if they are.
    pub fn cache_problem(&self) -> Option<String> {
        self.compiler.cache_problem()
    }

    /// Runs `look`, which reads a file, on a thread that may block. A few files whose file system does not answer do not
    /// delay the others.
    ///
    /// # Panics
    /// Panics when `look` panics.
    pub async fn read<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> T {
        let read = async { tokio::task::spawn_blocking(look).await };
        self.reads.within(read).await.unwrap_or_else(|error| panic!("reading a file: {error}"))
    }

    /// Tells all cages that another version of a module serves, since modules of theirs may be bound to it.
    pub fn tell(&self, home: &Home) {
        // Sending fails only when there are no receivers.
        let _ = self.news.send((home.cage.clone(), home.module.clone()));
    }

    /// Returns a receiver of the cage and the module of each version that begins to serve from now on.
    pub fn news(&self) -> broadcast::Receiver<(Arc<str>, Arc<str>)> {
        self.news.subscribe()
    }

    fn linker(&self, kind: EngineKind) -> &Linker<GuestState> {
        match kind {
            EngineKind::Plain => &self.linkers[0],
            EngineKind::Concurrent => &self.linkers[1],
        }
    }

    /// Makes a version for `slot`, but does not put it there.
    ///
    /// # Errors
    /// Returns the error of the first step that failed. The slot keeps its version.
    pub async fn load(
        &self,
        slot: &Slot,
        home: Arc<Home>,
        source: Arc<ComponentFile>,
        start_timeout: Duration,
    ) -> Result<(Arc<Version>, Option<Lease>), LoadError> {
        let hash = source.hash;
        let compiled = self.compiler.component(source).await?;
        let (bound, mut problems) = bound_imports(&compiled, &home.settings);
        problems.extend(target_problems(&home, &bound));
        if !problems.is_empty() {
            return Err(LoadError::Imports(problems));
        }
        for binding in binding::unused(&compiled.component, &home.settings.imports) {
            let (cage, module, interface) = (&*home.cage, &*home.module, &*binding.interface);
            tracing::warn!(cage, module, interface, "binding not used: the module does not import it");
        }
        let pre = self.pre(&compiled, &bound)?;
        let exports = Exports::of(&pre).map_err(LoadError::Export)?;
        if exports.is_empty() {
            return Err(LoadError::NothingExported);
        }
        let linked = Linked { pre, exports, bound };
        let mut version = Version::new(hash, slot.next_number(), home, linked, compiled, self.lanes.count());
        let names = self.starts.within(self.first_call(&version, start_timeout)).await?;
        version.set_service_functions(names);
        let version = Arc::new(version);
        let misfits = unfit_bindings(&version);
        if let Some(old) = slot.current().filter(|_| version.home.settings.compatible) {
            let mut missing = missing_exports(&old, &version);
            missing.extend(misfits);
            if !missing.is_empty() {
                return Err(LoadError::Incompatible { module: slot.name.to_string(), missing });
            }
        } else {
            for error in misfits {
                let (cage, module) = (&*version.home.cage, &*version.home.module);
                tracing::warn!(cage, module, %error, "binding does not fit, its calls will fail");
            }
        }
        let predecessor = self.hand_over(slot, &version, start_timeout).await?;
        Ok((version, predecessor))
    }

    fn pre(
        &self,
        compiled: &Compiled,
        bound: &[BoundInterface],
    ) -> Result<wasmtime::component::InstancePre<GuestState>, LoadError> {
        let linker = self.linker(compiled.kind);
        let pre = match bound {
            [] => linker.instantiate_pre(&compiled.component),
            bound => binding::link(linker, bound).and_then(|linker| linker.instantiate_pre(&compiled.component)),
        };
        pre.map_err(|error| LoadError::Link(link_text(&format!("{error:#}"), &compiled.component)))
    }

    /// Starts one instance, which goes to the version's pool, and returns the functions that its `service` lists.
    async fn first_call(&self, version: &Version, timeout: Duration) -> Result<Vec<String>, LoadError> {
        let deadline = Deadline::after(timeout);
        let mut instance = version.start(deadline).await.map_err(LoadError::Start)?;
        instance.check_types(&version.exports).map_err(|error| match error {
            DispatchError::Host(text) => LoadError::Export(text),
            other => LoadError::Start(other),
        })?;
        let names = match &version.exports.service {
            Some(service) => instance.functions(&service.functions, deadline).await.map_err(LoadError::Functions)?,
            None => Vec::new(),
        };
        if names.len() > FUNCTIONS_MAX {
            return Err(LoadError::Export(format!(
                "its service lists {} functions, at most {FUNCTIONS_MAX} are taken",
                names.len()
            )));
        }
        version.put_back(instance);
        Ok(names)
    }

    /// Hands a `single` instance's memory over to `new`. The caller holds the returned lease of the old instance until the
    /// new version is in the slot, so that no call reaches the old memory after it was saved.
    async fn hand_over(&self, slot: &Slot, new: &Arc<Version>, timeout: Duration) -> Result<Option<Lease>, LoadError> {
        let Some(old) = slot.current().filter(|old| old.mode == InstanceMode::Single) else {
            return Ok(None);
        };
        let deadline = Deadline::after(timeout);
        // A handover is no call from outside, so it takes no place of the cage.
        let mut lease = match old.enter(EntryKind::Within, deadline).await {
            Ok(place) => old.clone().lease(place, deadline).await.map_err(LoadError::Save)?,
            Err(AdmissionError::Closed) => return Ok(None),
            Err(refusal) => return Err(LoadError::Save(refusal.into())),
        };
        let (Some(from), Some(to)) = (&old.exports.handover, &new.exports.handover) else { return Ok(Some(lease)) };
        let saved = match lease.save(&from.save, Deadline::after(timeout.max(SAVE_TIMEOUT))).await {
            Ok(saved) => saved,
            Err(error @ DispatchError::Host(_)) => {
                // The guest was not called, so its instance is unchanged.
                lease.keep();
                return Err(LoadError::Save(error));
            }
            Err(error) => return Err(LoadError::MemoryLost(error)),
        };
        if saved.len() > HANDOVER_BYTES_MAX {
            lease.keep();
            let text = format!("it saved {} bytes, at most {HANDOVER_BYTES_MAX} are carried over", saved.len());
            return Err(LoadError::Save(DispatchError::BadRequest(text)));
        }
        // The restore has a timeout of its own, since the save may have used up the first one.
        let deadline = Deadline::after(timeout);
        if let Err(error) = restore(new, to, saved, deadline).await {
            // A `save` does not change the old instance, so it goes on serving.
            lease.keep();
            return Err(LoadError::Restore(error));
        }
        Ok(Some(lease))
    }

    /// Inspects a component without starting it.
    ///
    /// # Errors
    /// Returns an error when it cannot be compiled.
    pub async fn inspect(&self, source: ComponentFile, settings: &ModuleConfig) -> Result<Inspection, CompileError> {
        let hash = source.hash;
        let compiled = self.compiler.component(Arc::new(source)).await?;
        let (bound, problems) = bound_imports(&compiled, settings);
        let engine = compiled.component.engine();
        let imports = exports::imports(&compiled.component, engine)
            .into_iter()
            .map(|name| {
                let reason =
                    problems.iter().find(|problem| problem.import == name).map(|problem| problem.reason.clone());
                let bound = bound.iter().find(|bound| bound.import == name).map(|bound| bound.target.to_string());
                let caveat = interfaces::caveat(&name, !settings.allow.http.is_empty());
                ImportReport { granted: reason.is_none(), name, bound, reason, caveat }
            })
            .collect();
        let (mut texts, mut notes, mut mode) = (Vec::new(), Vec::new(), None);
        if problems.is_empty() {
            match self.pre(&compiled, &bound) {
                Ok(pre) => match Exports::of(&pre) {
                    Ok(exports) if exports.is_empty() => texts.push(LoadError::NothingExported.to_string()),
                    Ok(exports) => {
                        mode = Some(settings.instances.mode.unwrap_or_else(|| exports.instance_mode()));
                        notes.extend(unsupported(&exports));
                    }
                    Err(text) => texts.push(text),
                },
                Err(error) => texts.push(error.to_string()),
            }
        } else {
            texts.push(import_list(&problems));
        }
        Ok(Inspection {
            sha256: hash.to_string(),
            engine: compiled.kind.name(),
            mode,
            imports,
            unused_bindings: binding::unused(&compiled.component, &settings.imports)
                .into_iter()
                .map(|binding| binding.interface.clone())
                .collect(),
            exports: export_lines(&compiled),
            notes,
            problems: texts,
        })
    }
}

/// Calls `restore` of the new version's first instance with the bytes that the old one saved.
async fn restore(
    version: &Arc<Version>,
    handover: &Handover,
    saved: Vec<u8>,
    deadline: Deadline,
) -> Result<(), DispatchError> {
    let place = version.enter(EntryKind::Within, deadline).await?;
    let mut successor = version.clone().lease(place, deadline).await?;
    successor.restore(&handover.restore, saved, deadline).await?;
    successor.keep();
    Ok(())
}

/// Returns the imports that are bound to other modules, and the problems of those that nobody provides or that cannot be
/// bound.
fn bound_imports(compiled: &Compiled, settings: &ModuleConfig) -> (Vec<BoundInterface>, Vec<ImportProblem>) {
    let (component, engine) = (&compiled.component, compiled.component.engine());
    let (bound, mut problems) = binding::resolve(component, &settings.imports);
    let types_only = binding::with_types_only(component);
    for (name, _) in component.component_type().imports(engine) {
        let answered = bound.iter().any(|bound| bound.import == name)
            || problems.iter().any(|problem| problem.import == name)
            || types_only.iter().any(|import| import == name);
        let reason = if answered { None } else { import_reason(name, settings) };
        problems.extend(reason.map(|reason| ImportProblem { import: name.to_owned(), reason }));
    }
    (bound, problems)
}

/// Returns the bound imports that the version which serves their target in this process cannot answer. A target that is not
/// loaded yet is checked by the first call.
fn target_problems(home: &Home, bound: &[BoundInterface]) -> Vec<ImportProblem> {
    let Some(dispatcher) = home.dispatcher.upgrade() else { return Vec::new() };
    let problem = |interface: &BoundInterface| {
        let target = dispatcher.serving(&interface.target)?;
        let misfits = binding::misfits(interface, &target.exports);
        let reason = format!("{} does not fit: {}", interface.target, shortlist(&misfits));
        (!misfits.is_empty()).then(|| ImportProblem { import: interface.import.clone(), reason })
    };
    bound.iter().filter_map(problem).collect()
}

/// Returns the functions that modules of this process are bound to and that this version does not have, each as a sentence.
fn unfit_bindings(version: &Version) -> Vec<String> {
    let Some(dispatcher) = version.home.dispatcher.upgrade() else { return Vec::new() };
    let bound = dispatcher.bound_to(&version.home.module).into_iter();
    let misfit = |(caller, function): (String, Arc<BoundFunction>)| {
        let misfit = binding::misfit(&function, &version.exports)?;
        Some(format!("{caller} is bound to function `{}`, and {misfit}", function.name))
    };
    bound.filter_map(misfit).collect()
}

fn import_reason(import: &str, settings: &ModuleConfig) -> Option<String> {
    match interfaces::known(import) {
        Known::Served => None,
        Known::OtherVersions(versions) => Some(format!("this version is not served; there are: {versions}")),
        Known::Unknown(meant) => {
            let meant = meant.map(|meant| format!("; was {meant} meant?")).unwrap_or_default();
            let own = import.starts_with("wasi:") || import.starts_with("wasmcage:");
            let bindable = !own || import.starts_with(exports::HTTP_HANDLER);
            let hint = if bindable { binding::hint(import, &settings.imports) } else { String::new() };
            Some(format!("nobody provides it{meant}{hint}"))
        }
    }
}

/// Returns wasmtime's text about an import that does not fit, with the versions that are served or advice to build it again.
fn link_text(text: &str, component: &Component) -> String {
    let imports = exports::imports(component, component.engine());
    let named = imports.iter().find(|import| text.contains(&format!("`{import}`")));
    if named.is_some_and(|import| import.starts_with("wasmcage:")) {
        return format!("{text}; {}", exports::BUILD_AGAIN);
    }
    match named.and_then(|import| Some((import, interfaces::served_versions(import)?))) {
        Some((import, versions)) => format!("{text}; of {import} there are the versions {versions}"),
        None => text.to_owned(),
    }
}

/// Returns the exports of the serving version that are in use and that the new one lacks, each as a sentence.
fn missing_exports(old: &Version, new: &Version) -> Vec<String> {
    let mut missing = Vec::new();
    let serves = |version: &Version| version.exports.handler.is_some() || version.exports.web.is_some();
    if serves(old) && !serves(new) {
        missing.push("it no longer exports a handler, which an interface may use".into());
    }
    for name in old.used_service_functions() {
        if !new.service_functions().any(|function| function == name) && !new.exports.functions.contains_key(name) {
            missing.push(format!("its service no longer lists function `{name}`, which was called"));
        }
    }
    for (name, function) in old.exports.functions.iter().filter(|(_, function)| function.used()) {
        let was = function.describe(name);
        match new.exports.functions.get(name) {
            None if new.exports.candidates(name).is_some() => {
                missing.push(format!("function `{name}`, which was called, is now exported by several interfaces"))
            }
            None if new.service_functions().any(|function| function == name) => {}
            None => missing.push(format!("it no longer exports function `{was}`, which was called")),
            Some(function) => {
                let is = function.describe(name);
                if is != was {
                    missing.push(format!("function `{was}`, which was called, is now `{is}`"));
                }
            }
        }
    }
    missing
}

/// Returns the plain functions that cannot be called by name, with the reason.
fn unsupported(exports: &Exports) -> impl Iterator<Item = String> {
    exports.functions.iter().filter_map(|(name, function)| {
        let reason = function.signature.as_ref().err()?;
        Some(format!("function `{name}` cannot be called by other modules: {reason}"))
    })
}

fn export_lines(compiled: &Compiled) -> Vec<String> {
    let engine = compiled.component.engine();
    let signature = |name: &str, ty: &ComponentFunc| {
        Signature::new(name, ty)
            .map_or_else(|error| format!("{name}: func ({error})"), |signature| signature.to_string())
    };
    let ty = compiled.component.component_type();
    let lines = ty.exports(engine).flat_map(|(name, item)| match item.ty {
        ComponentItem::ComponentFunc(ty) => vec![signature(name, &ty)],
        ComponentItem::ComponentInstance(_) if exports::is_web(name) => {
            vec![format!("{name}: answers requests of http interfaces")]
        }
        ComponentItem::ComponentInstance(instance) => {
            let functions = instance.exports(engine).filter_map(|(function, item)| match item.ty {
                ComponentItem::ComponentFunc(ty) => Some(format!("{name}#{}", signature(function, &ty))),
                _ => None,
            });
            functions.collect()
        }
        _ => vec![name.to_owned()],
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_known_or_explained() {
        #[track_caller]
        fn check(import: &str, expected: Option<&str>) {
            let reason = import_reason(import, &ModuleConfig::default());
            assert_eq!(reason.as_deref(), expected);
        }
        check("wasmcage:cage/log@0.1.0", None);
        check("wasi:cli/environment@0.2.9", None);
        check("wasi:http/outgoing-handler@0.2.0", None);
        check("wasmcage:cage/logs@0.1.0", Some("nobody provides it; was wasmcage:cage/log meant?"));
        check("wasi:blobstore/container", Some("nobody provides it"));
        check("wasi:http/types@0.3.0-rc-2025-09-16", Some("this version is not served; there are: 0.2.12, 0.3.0"));
        check(
            "acme:missing/thing@1.0.0",
            Some(
                "nobody provides it; a module can: \"acme:missing/thing\" = \"cage/module\" in [modules.NAME.imports] of \
                 cage.toml",
            ),
        );
    }

    #[test]
    fn many_mistakes_make_a_short_message() {
        let problem = |number| ImportProblem { import: format!("a:b/c{number}"), reason: "nobody provides it".into() };
        let problems: Vec<_> = (0..19).map(problem).collect();
        let text = import_list(&problems);
        assert!(text.starts_with("import a:b/c0: nobody provides it; import a:b/c1"), "{text}");
        assert!(text.ends_with("; and 14 more, which `wasmcage check` shows"), "{text}");
        assert_eq!(import_list(&problems[..1]), "import a:b/c0: nobody provides it");
    }
}
