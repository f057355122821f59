//! Wasm bytes to a component, by way of the compiled files on disk. Compiling happens in a child process: it is niced, has
//! a bound on time and memory, and leaves nothing behind in the serving process, whose engines never compile.
//!
//! A compiled file is named by the hash of the Wasm bytes and the engine's compatibility, and a second file beside it
//! holds its own hash: an entry that does not fit is removed and made anew under a new inode, never written over, because
//! it may be mapped.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine::{EngineKind, Engines};

/// The longest a compilation may take.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(300);
/// Address space of a compiling child.
const COMPILE_MEMORY_BYTES_MAX: u64 = 16 << 30;
/// At most so much of a failed child's explanation is kept.
const EXPLANATION_BYTES_MAX: usize = 8 * 1024;
/// A component's file may not be larger.
pub const COMPONENT_BYTES_MAX: u64 = 512 << 20;

/// SHA-256 of a component's file: the identity of a version.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl std::fmt::Display for ContentHash {
    /// As `sha256sum` prints it; `{:.12}` for a short form.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.pad(&digits)
    }
}

impl std::fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
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
    #[error("cannot write compiled file {file}")]
    Write {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A component ready to be linked, and the engine it runs on. Unmapped when its last version is dropped.
pub struct Compiled {
    pub component: Component,
    pub kind: EngineKind,
}

/// Compiles for all cages of the process.
pub struct Compiler {
    engines: Arc<Engines>,
    directory: PathBuf,
    program: PathBuf,
    /// Compilations under way: one per core.
    places: Semaphore,
    /// Components in use by any cage, so that the same file is mapped once.
    loaded: Mutex<HashMap<ContentHash, Weak<Compiled>>>,
}

impl Compiler {
    /// `directory` holds the compiled files; `program` is this host's binary, which has the compiling subcommand.
    pub fn new(engines: Arc<Engines>, directory: PathBuf, program: PathBuf) -> Self {
        let places = Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from));
        Self { engines, directory, program, places, loaded: Mutex::default() }
    }

    /// The component of these bytes, from memory, from disk, or compiled now.
    ///
    /// # Errors
    /// What is wrong with the bytes, or what kept them from being compiled.
    pub async fn component(
        self: &Arc<Self>,
        hash: ContentHash,
        wasm: Arc<Vec<u8>>,
    ) -> Result<Arc<Compiled>, CompileError> {
        check_header(&wasm)?;
        if let Some(compiled) = self.blocking(move |this| this.cached(hash)).await {
            return Ok(compiled);
        }
        let _place = self.places.acquire().await.expect("the semaphore is never closed");
        // Another module with the same content may have been compiled while this one waited for its place.
        if let Some(compiled) = self.blocking(move |this| this.cached(hash)).await {
            return Ok(compiled);
        }
        let kind = self.compile(hash, wasm).await?;
        let file = self.file(hash, kind);
        self.blocking(move |this| this.open(hash, kind)).await.ok_or(CompileError::Write {
            file,
            source: io::Error::new(io::ErrorKind::InvalidData, "the file just written does not load"),
        })
    }

    async fn blocking<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let this = self.clone();
        tokio::task::spawn_blocking(move || work(&this)).await.expect("cache work does not panic")
    }

    fn file(&self, hash: ContentHash, kind: EngineKind) -> PathBuf {
        let compatibility = self.engines.compatibility(kind);
        self.directory.join(format!("{hash:.40}-{compatibility:016x}-{}.cwasm", kind.name()))
    }

    fn cached(&self, hash: ContentHash) -> Option<Arc<Compiled>> {
        if let Some(compiled) = self.loaded.lock().get(&hash).and_then(Weak::upgrade) {
            return Some(compiled);
        }
        EngineKind::ALL.into_iter().find_map(|kind| self.open(hash, kind))
    }

    /// The entry, if it is there and is what this host wrote.
    fn open(&self, hash: ContentHash, kind: EngineKind) -> Option<Arc<Compiled>> {
        let file = self.file(hash, kind);
        let expected = fs::read_to_string(sum_file(&file)).ok()?;
        let bytes = fs::read(&file).ok()?;
        let component = if ContentHash::of(&bytes).to_string() == expected {
            drop(bytes);
            deserialize(self.engines.get(kind), &file)
        } else {
            Err(wasmtime::format_err!("its content differs from what was written"))
        };
        match component {
            Ok(component) => {
                let compiled = Arc::new(Compiled { component, kind });
                let mut loaded = self.loaded.lock();
                loaded.retain(|_, compiled| compiled.strong_count() > 0);
                loaded.insert(hash, Arc::downgrade(&compiled));
                Some(compiled)
            }
            Err(error) => {
                tracing::warn!(file = %file.display(), error = %format!("{error:#}"), "compiled file ignored and removed");
                // Gone or not, it is not used; a remaining one is replaced by a rename.
                let _ = fs::remove_file(sum_file(&file));
                let _ = fs::remove_file(&file);
                None
            }
        }
    }

    async fn compile(&self, hash: ContentHash, wasm: Arc<Vec<u8>>) -> Result<EngineKind, CompileError> {
        let scratch = Scratch::new(&self.directory, hash)
            .map_err(|source| CompileError::Write { file: self.directory.clone(), source })?;
        fs::write(&scratch.input, wasm.as_slice())
            .map_err(|source| CompileError::Write { file: scratch.input.clone(), source })?;
        drop(wasm);
        let child = tokio::process::Command::new(&self.program)
            .arg("compile")
            .args([&scratch.input, &scratch.output])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| CompileError::Spawn { program: self.program.clone(), source })?;
        let output = tokio::time::timeout(COMPILE_TIMEOUT, child.wait_with_output())
            .await
            .map_err(|_| CompileError::TimedOut)?
            .map_err(|source| CompileError::Spawn { program: self.program.clone(), source })?;
        let explanation = || {
            let text = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(EXPLANATION_BYTES_MAX)]);
            text.trim().to_owned()
        };
        match (output.status.code(), output.stdout.as_slice()) {
            (Some(0), name) => {
                let kind = EngineKind::ALL.into_iter().find(|kind| kind.name().as_bytes() == name);
                let kind =
                    kind.ok_or_else(|| CompileError::Crashed { status: output.status, explanation: explanation() })?;
                let file = self.file(hash, kind);
                scratch.publish(&file).map_err(|source| CompileError::Write { file, source })?;
                Ok(kind)
            }
            (Some(INVALID_EXIT), _) => Err(CompileError::Invalid(explanation())),
            _ => Err(CompileError::Crashed { status: output.status, explanation: explanation() }),
        }
    }
}

/// What wasmtime maps, without copying, is trusted as machine code.
#[expect(unsafe_code, reason = "compiled code is trusted: the file was written by this host and its hash was checked")]
fn deserialize(engine: &Engine, file: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the directory belongs to this user alone, the file's hash was compared with the one recorded when it was
    // written, and entries are replaced by renames, never modified.
    unsafe { Component::deserialize_file(engine, file) }
}

fn sum_file(file: &Path) -> PathBuf {
    file.with_extension("sha256")
}

/// Tells the common mistakes apart before anything is started for them.
fn check_header(wasm: &[u8]) -> Result<(), CompileError> {
    match wasm {
        [b'\0', b'a', b's', b'm', _, _, 1, 0, ..] => Ok(()),
        [b'\0', b'a', b's', b'm', _, _, 0, 0, ..] => Err(CompileError::CoreModule),
        [b'\0', b'a', b's', b'm', ..] => Err(CompileError::Invalid("the header is cut short".into())),
        [] => Err(CompileError::Empty),
        other => {
            let found = String::from_utf8_lossy(&other[..other.len().min(8)]).into_owned();
            Err(CompileError::NotWasm { found })
        }
    }
}

/// Two files of one compilation, removed at its end whatever happens.
struct Scratch {
    input: PathBuf,
    output: PathBuf,
}

impl Scratch {
    fn new(directory: &Path, hash: ContentHash) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let mode = fs::metadata(directory)?.permissions().mode();
        if mode & 0o022 != 0 {
            fs::set_permissions(directory, fs::Permissions::from_mode(mode & 0o755))?;
        }
        let name = format!(".{hash:.16}-{}-{:08x}", std::process::id(), fastrand::u32(..));
        Ok(Self { input: directory.join(format!("{name}.wasm")), output: directory.join(format!("{name}.cwasm")) })
    }

    /// The hash goes last: an entry without one is no entry.
    fn publish(&self, file: &Path) -> io::Result<()> {
        let hash = ContentHash::of(&fs::read(&self.output)?);
        fs::rename(&self.output, file)?;
        let temporary = self.input.with_extension("sha256");
        fs::write(&temporary, hash.to_string())?;
        fs::rename(&temporary, sum_file(file))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for file in [&self.input, &self.output, &self.input.with_extension("sha256")] {
            // The ones that were published are not there any more.
            let _ = fs::remove_file(file);
        }
    }
}

/// Exit code of the child for bytes that are at fault, as opposed to a compiler that is.
const INVALID_EXIT: i32 = 3;

/// The child's whole life: `wasmcage compile INPUT OUTPUT`. Prints the engine's name, or the reason why not.
pub fn compile_worker(input: &Path, output: &Path) -> ExitCode {
    // Neither is vital: without them a compilation is only less polite.
    let _ = rustix::process::nice(10);
    let memory = rustix::process::Rlimit { current: Some(COMPILE_MEMORY_BYTES_MAX), maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::As, memory);
    let compiled =
        fs::read(input).map_err(|error| format!("cannot read {}: {error}", input.display())).and_then(|wasm| {
            let (kind, code) = precompile(&wasm)?;
            fs::write(output, code).map_err(|error| format!("cannot write {}: {error}", output.display()))?;
            Ok(kind)
        });
    let mut stdout = io::stdout();
    match compiled {
        Ok(kind) if stdout.write_all(kind.name().as_bytes()).and_then(|()| stdout.flush()).is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(reason) => {
            // The parent that would read it may be gone.
            let _ = writeln!(io::stderr(), "{reason}");
            ExitCode::from(INVALID_EXIT as u8)
        }
    }
}

/// Tries the plain engine first: it refuses what needs the other by validating, before it compiles anything.
fn precompile(wasm: &[u8]) -> Result<(EngineKind, Vec<u8>), String> {
    let attempt = |kind: EngineKind| kind.compiling().and_then(|engine| engine.precompile_component(wasm));
    attempt(EngineKind::Plain)
        .map(|code| (EngineKind::Plain, code))
        .or_else(|_| attempt(EngineKind::Concurrent).map(|code| (EngineKind::Concurrent, code)))
        .map_err(|error| format!("{error:#}"))
}
