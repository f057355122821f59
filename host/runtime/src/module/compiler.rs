//! Makes a component from its file, by way of the compiled files on disk (`cache`). A child process compiles it
//! (`compile_worker`), with a low priority and limits on time and memory, so that compiling leaves no memory behind in the
//! serving process, whose engines never compile.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::COMPILE_VARIABLE;
use super::cache::{Cache, EntryName, Output, descriptor_path};
use super::compile_worker::{Failure, INVALID_EXIT, MACHINE_EXIT, Report, compile};
use super::component_file::{COMPONENT_BYTES_MAX, ComponentFile, ContentHash};
use super::engine::{EngineKind, Engines};
use super::places::Places;
use super::retry::Retry;
use wasmcage_core::task;

/// The longest a compilation may take.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(300);
/// A compilation that takes longer than this makes room for the next one.
const SLOW_AFTER: Duration = Duration::from_secs(5);
/// The largest part of a child's explanation that is kept, in bytes.
const EXPLANATION_BYTES_MAX: u64 = 8 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("cannot be read")]
    Read {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("it has {bytes} bytes, at most {COMPONENT_BYTES_MAX} are loaded")]
    TooLarge { bytes: u64 },
    #[error("the file was written to while it was read")]
    Changed,
    #[error("the file is empty")]
    Empty,
    #[error("not WebAssembly: it begins with {found:?}, not with \"\\0asm\"")]
    NotWasm { found: String },
    #[error(
        "a core module, not a component; build it with --target wasm32-wasip2, or wrap it by `wasm-tools component new`"
    )]
    CoreModule,
    #[error("not a valid component: {0}")]
    Invalid(String),
    #[error("compiling took longer than {} s", COMPILE_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the compiler ended with {status}: {explanation}")]
    Crashed { status: std::process::ExitStatus, explanation: String },
    #[error("cannot run the compiler {program}")]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the machine has no room to compile in: {0}")]
    NoRoom(String),
    #[error("the machine code just made cannot be loaded: {0}")]
    Unusable(String),
}

impl CompileError {
    /// Returns when to try to compile the same file again.
    pub fn retry(&self) -> Retry {
        match self {
            // A name that leads to no regular file is examined again when that changes.
            Self::Read { source, .. }
                if matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) =>
            {
                Retry::Never
            }
            Self::Read { .. } | Self::Changed | Self::Spawn { .. } | Self::NoRoom(_) | Self::Unusable(_) => Retry::Soon,
            // Either the file is at fault, or the machine is busy or short of memory.
            Self::TimedOut | Self::Crashed { .. } => Retry::Seldom,
            Self::TooLarge { .. } | Self::Empty | Self::NotWasm { .. } | Self::CoreModule | Self::Invalid(_) => {
                Retry::Never
            }
        }
    }
}

/// A component that is ready to be linked, and its kind of engine. It is unmapped when its last version is dropped.
pub struct Compiled {
    pub component: Component,
    pub kind: EngineKind,
    /// The open file, which stays locked, so that no process removes it as unused.
    _code: File,
}

/// The place where modules are compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompileIn {
    /// Each is compiled in a process of its own, with a low priority and limits on time and memory; its crash does no harm. The
    /// path is that of a `wasmcage`, or of a program that calls `wasmcage::host::compile_when_asked` first of all. It is run
    /// with the argument `compile`.
    Program(PathBuf),
    /// They are compiled on a thread of this process, so only trusted components should be. Time and memory are not limited,
    /// the process keeps the memory as long as the host runs, and a crash of the compiler ends the process.
    ThisProcess,
}

impl<P: Into<PathBuf>> From<P> for CompileIn {
    fn from(program: P) -> Self {
        Self::Program(program.into())
    }
}

/// The compiler that all cages of the process share.
pub struct Compiler {
    engines: Arc<Engines>,
    cache: Cache,
    compile_in: CompileIn,
    /// Limits the compilations in flight to one per core, and twice as many more that take long.
    places: Places,
    /// The components in use by any cage, so that the same file is mapped only once.
    loaded: Mutex<HashMap<ContentHash, Weak<Compiled>>>,
}

impl Compiler {
    pub fn new(engines: Arc<Engines>, cache: Cache, compile_in: CompileIn) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let places = Places::new(cores, cores * 2, SLOW_AFTER);
        Self { engines, cache, compile_in, places, loaded: Mutex::default() }
    }

    /// Returns why compiled files are not kept in the preferred directory, or `None` if they are.
    pub fn cache_problem(&self) -> Option<String> {
        self.cache.problem()
    }

    /// Returns the component of this file, from memory, from disk, or compiled now.
    ///
    /// # Errors
    /// Returns an error when the file is no valid component or cannot be compiled now.
    pub async fn component(self: &Arc<Self>, source: Arc<ComponentFile>) -> Result<Arc<Compiled>, CompileError> {
        let hash = source.hash;
        if let Some(compiled) = self.blocking(move |this| this.cached(hash)).await {
            return Ok(compiled);
        }
        let work = async {
            // Another module with the same content may have been compiled while this one waited for its place.
            match self.blocking(move |this| this.cached(hash)).await {
                Some(compiled) => Ok(compiled),
                None => self.compile(source).await,
            }
        };
        self.places.within(work).await
    }

    async fn blocking<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.expect("cache work does not panic")
    }

    fn entry(&self, hash: ContentHash, kind: EngineKind) -> EntryName {
        let compatibility = self.engines.compatibility(kind);
        EntryName::new(&format!("{hash:.40}-{compatibility:016x}-{}", kind.name()))
    }

    fn cached(&self, hash: ContentHash) -> Option<Arc<Compiled>> {
        if let Some(compiled) = self.loaded.lock().get(&hash).and_then(Weak::upgrade) {
            return Some(compiled);
        }
        EngineKind::ALL.into_iter().find_map(|kind| {
            let name = self.entry(hash, kind);
            let code = self.cache.find(&name)?;
            match self.load(hash, kind, code) {
                Ok(compiled) => Some(compiled),
                Err(error) => {
                    self.cache.remove(&name, &error);
                    None
                }
            }
        })
    }

    fn load(&self, hash: ContentHash, kind: EngineKind, code: File) -> Result<Arc<Compiled>, CompileError> {
        let component = deserialize(self.engines.get(kind), &code);
        let component = component.map_err(|error| CompileError::Unusable(format!("{error:#}")))?;
        let compiled = Arc::new(Compiled { component, kind, _code: code });
        let mut loaded = self.loaded.lock();
        loaded.retain(|_, compiled| compiled.strong_count() > 0);
        loaded.insert(hash, Arc::downgrade(&compiled));
        Ok(compiled)
    }

    async fn compile(self: &Arc<Self>, source: Arc<ComponentFile>) -> Result<Arc<Compiled>, CompileError> {
        let no_room = |error: io::Error| CompileError::NoRoom(error.to_string());
        let output = self.blocking(|this| this.cache.output()).await.map_err(no_room)?;
        let (output, report) = match self.run(&source, &output).await {
            // If the disk is full, the module is compiled to memory.
            Err(CompileError::NoRoom(_)) if !output.is_in_memory() => {
                let output = Output::in_memory().map_err(no_room)?;
                let report = self.run(&source, &output).await?;
                (output, report)
            }
            result => (output, result?),
        };
        if report.input != source.hash.to_string() {
            return Err(CompileError::Changed);
        }
        self.blocking(move |this| this.publish(source.hash, &report, output)).await
    }

    /// Keeps the new machine code for the next start if possible, and maps it.
    fn publish(&self, hash: ContentHash, report: &Report, output: Output) -> Result<Arc<Compiled>, CompileError> {
        let _ = rustix::fs::flock(&output.file, FlockOperation::NonBlockingLockShared);
        let name = self.entry(hash, report.kind);
        let published = self.cache.publish(&output, &name, &report.output).and_then(|()| self.cache.evict());
        if let Err(error) = published {
            tracing::warn!(%error, "compiled file is not kept, the next start compiles it again");
        }
        self.load(hash, report.kind, output.file)
    }

    /// Compiles the file into `output`, in a child process or in this one.
    async fn run(&self, source: &ComponentFile, output: &Output) -> Result<Report, CompileError> {
        let read = |error| CompileError::Read { file: source.path.clone(), source: error };
        let mut input = source.file.try_clone().map_err(read)?;
        input.rewind().map_err(read)?;
        let output = output.file.try_clone().map_err(|error| CompileError::NoRoom(error.to_string()))?;
        match &self.compile_in {
            CompileIn::Program(program) => run_program(program, input, output).await,
            CompileIn::ThisProcess => compile_here(input, output).await,
        }
    }
}

/// Compiles on a thread of this process that may block.
async fn compile_here(input: File, output: File) -> Result<Report, CompileError> {
    let compiled = tokio::task::spawn_blocking(|| task::catch_panic(|| compile(input, output))).await;
    match compiled.expect("the work's panic is caught") {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(Failure::Invalid(reason))) => Err(CompileError::Invalid(reason)),
        Ok(Err(Failure::Machine(reason))) => Err(CompileError::NoRoom(reason)),
        Err(panic) => Err(CompileError::Invalid(format!("the compiler panicked: {panic}"))),
    }
}

/// Compiles in a child process.
async fn run_program(program: &Path, input: File, output: File) -> Result<Report, CompileError> {
    let spawn = |error| CompileError::Spawn { program: program.to_owned(), source: error };
    let mut child = tokio::process::Command::new(program)
        .env(COMPILE_VARIABLE, "1")
        .arg("compile")
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
    let stderr = child.stderr.take().expect("standard error is a pipe");
    let ended = async { (explanation(stderr).await, child.wait().await) };
    let (text, status) = tokio::time::timeout(COMPILE_TIMEOUT, ended).await.map_err(|_| CompileError::TimedOut)?;
    let status = status.map_err(spawn)?;
    match (status.code(), text.parse()) {
        (Some(0), Ok(report)) => Ok(report),
        (Some(INVALID_EXIT), _) => Err(CompileError::Invalid(text)),
        (Some(MACHINE_EXIT), _) => Err(CompileError::NoRoom(text)),
        _ => Err(CompileError::Crashed { status, explanation: text }),
    }
}

/// Returns the beginning of the child's standard error, and reads the rest, so that the child never blocks on writing.
async fn explanation(stderr: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let mut stderr = stderr.take(EXPLANATION_BYTES_MAX);
    // After an error, the bytes read before it are used.
    let _ = stderr.read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Maps machine code without copying it, or copies it where the file system permits no code to be mapped or there is no
/// `/proc`.
#[expect(unsafe_code, reason = "compiled code is trusted: this user's host wrote it, and its hash was checked")]
fn deserialize(engine: &Engine, code: &File) -> wasmtime::Result<Component> {
    // SAFETY: the open file was made by this host's compiler or found by `Cache::find`, which checked its owner, its mode
    // and its hash; entries are replaced by new files, never overwritten.
    unsafe { Component::deserialize_file(engine, descriptor_path(code)) }.or_else(|error| {
        let mut bytes = Vec::new();
        let mut code = code.try_clone()?;
        code.rewind()?;
        code.read_to_end(&mut bytes)?;
        // SAFETY: these are the bytes of the same file.
        unsafe { Component::deserialize(engine, &bytes) }.map_err(|_| error)
    })
}
