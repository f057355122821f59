//! Interface `file`: the files of a watched directory become requests, one at a time, in order. A file is removed when
//! its request has succeeded. If that is not known, the file is handled again, so each file is handled at least once.
//!
//! `config.rs` reads `[interfaces.x]`, `watched.rs` is the directory, `file_states.rs` remembers the state of its
//! files, `pattern.rs` selects them by their names.

mod config;
mod file_states;
mod pattern;
mod watched;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::spawn_blocking;

use self::config::FileInterfaceConfig;
use self::file_states::{FileStates, Leftover};
use self::watched::{FileContent, WatchedDirectory, WatchedFile};
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Facts, Request, RequestContext};
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError};

/// How often an attempt is made to open or lock the directory.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// `[interfaces.x]` with `protocol = "file"`.
pub(super) struct FileInterface {
    config: FileInterfaceConfig,
}

impl FileInterface {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        Ok(Self { config: FileInterfaceConfig::read(section)? })
    }
}

#[async_trait]
impl Interface for FileInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let mut opened = open(&self.config, &cx).await?;
        while let Some(directory) = opened {
            let listening = cx.endpoint.listen(Address::Outside(format!("file:{}", self.config.directory.display())));
            let mut watcher = DirectoryWatcher {
                config: self.config.clone(),
                directory: Arc::new(directory),
                states: FileStates::default(),
                problem: None,
                cx: cx.clone(),
            };
            let result = watcher.run().await;
            drop(listening);
            opened = match result? {
                WatchEnd::Draining => None,
                WatchEnd::Gone => open_again(&self.config, &cx).await?,
            };
        }
        Ok(())
    }
}

/// Why watching a directory ended.
enum WatchEnd {
    Draining,
    /// The path leads to another directory, or to none.
    Gone,
}

/// Waits until the configured path leads to a directory again, and opens it; none if the drain comes first.
async fn open_again(
    config: &FileInterfaceConfig,
    cx: &InterfaceContext,
) -> Result<Option<WatchedDirectory>, InterfaceError> {
    let (cage, interface, directory) = (&*cx.endpoint.cage, &*cx.endpoint.interface, config.directory.display());
    tracing::warn!(cage, interface, %directory, "the directory was removed or replaced: taking files from what its path leads to");
    let opened = loop {
        match open(config, cx).await {
            Err(InterfaceError::Setup { source: Some(error), .. }) if is_not_found(&*error) => {
                cx.endpoint.set_status(Some(format!("waits for directory {directory} to be there")));
            }
            result => break result,
        }
        if cx.drain.unless_begun(tokio::time::sleep(LOCK_INTERVAL)).await.is_none() {
            break Ok(None);
        }
    };
    cx.endpoint.set_status(None);
    opened
}

fn is_not_found(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Waits until the directory is not locked by another, and opens it; none if the drain comes first.
async fn open(config: &FileInterfaceConfig, cx: &InterfaceContext) -> Result<Option<WatchedDirectory>, InterfaceError> {
    let mut is_logged = false;
    while !cx.drain.begun() {
        let opened = WatchedDirectory::open(config.clone());
        let opened =
            opened.map_err(|error| setup_error(cx, format!("directory {}", config.directory.display()), error))?;
        if opened.is_some() {
            return Ok(opened);
        }
        if !is_logged {
            is_logged = true;
            let (cage, interface, directory) =
                (&*cx.endpoint.cage, &*cx.endpoint.interface, config.directory.display());
            tracing::warn!(cage, interface, %directory, "waiting: another interface or process takes the files from there");
        }
        tokio::select! {
            () = tokio::time::sleep(LOCK_INTERVAL) => {}
            () = cx.drain.stopping() => {}
        }
    }
    Ok(None)
}

/// The error of an interface that cannot use its directory.
fn setup_error(cx: &InterfaceContext, text: String, error: io::Error) -> InterfaceError {
    InterfaceError::Setup { interface: cx.endpoint.interface.to_string(), text, source: Some(error.into()) }
}

/// Watches one directory.
struct DirectoryWatcher {
    config: FileInterfaceConfig,
    directory: Arc<WatchedDirectory>,
    states: FileStates,
    /// The problem that was logged last, so that it is not logged at every pass.
    problem: Option<String>,
    cx: InterfaceContext,
}

/// The result of a file's request.
enum RequestResult {
    Done,
    /// The file changed before it was read.
    Changed,
    /// A retry may succeed.
    Failed(String),
    /// A retry would fail, too.
    Never(String),
    /// The module could not be called, or not run.
    NotNow(String),
}

impl DirectoryWatcher {
    async fn run(&mut self) -> Result<WatchEnd, InterfaceError> {
        let _in_flight = self.cx.drain.token();
        while !self.cx.drain.begun() {
            let text = || format!("directory {}", self.config.directory.display());
            if self.blocking(WatchedDirectory::is_gone).await.map_err(|error| setup_error(&self.cx, text(), error))? {
                return Ok(WatchEnd::Gone);
            }
            let pause = self.pass().await?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.cx.drain.stopping() => {}
            }
        }
        Ok(WatchEnd::Draining)
    }

    /// Handles every file that may be handled now. Returns how long to wait for the next pass.
    async fn pass(&mut self) -> Result<Duration, InterfaceError> {
        let text = || format!("directory {}", self.config.directory.display());
        let files =
            self.blocking(WatchedDirectory::scan).await.map_err(|error| setup_error(&self.cx, text(), error))?;
        self.states.update(&files);
        let mut pause = self.config.interval;
        for file in files {
            if self.cx.drain.begun() {
                break;
            }
            match self.states.leftover(&file) {
                None => {}
                Some(Leftover::Handled) => {
                    self.finish(&file).await;
                    continue;
                }
                Some(Leftover::GivenUp(why)) => {
                    self.give_up(&file, &why).await;
                    continue;
                }
            }
            let unsettled = self.states.unsettled_for(&file, self.config.settle);
            if !unsettled.is_zero() {
                // It is handled once it is complete.
                pause = pause.min(unsettled);
                continue;
            }
            let wait = self.states.retry_after(&file);
            if !wait.is_zero() {
                pause = pause.min(wait);
                if self.config.keep_going {
                    continue;
                }
                break;
            }
            match self.handle(&file).await {
                RequestResult::Done => {
                    self.problem = None;
                    self.states.set_leftover(&file, Leftover::Handled);
                    self.finish(&file).await;
                    // More files may have come meanwhile.
                    pause = Duration::ZERO;
                }
                RequestResult::Changed => pause = pause.min(self.config.settle),
                RequestResult::Never(text) => self.give_up(&file, &text).await,
                RequestResult::Failed(text) => {
                    let failures = self.states.failures(&file) + 1;
                    if failures >= self.config.attempts_max {
                        self.give_up(&file, &format!("{text}\nattempts: {failures}")).await;
                        continue;
                    }
                    let wait = self.config.retry_after(failures);
                    self.states.failed(&file, wait);
                    if !self.config.keep_going {
                        return Ok(wait.min(self.config.interval));
                    }
                }
                RequestResult::NotNow(text) => {
                    self.report_problem(text);
                    return Ok(self.config.interval);
                }
            }
        }
        Ok(pause)
    }

    async fn handle(&self, file: &WatchedFile) -> RequestResult {
        let Ok(name) = file.name.to_str() else {
            return RequestResult::Never("the file's name is no text (UTF-8), which modules need".into());
        };
        let body = {
            let to_read = file.clone();
            match self.blocking(move |directory| directory.read(&to_read)).await {
                Ok(FileContent::Whole(body)) => body,
                Ok(FileContent::Changed) => return RequestResult::Changed,
                Ok(FileContent::TooLarge) => {
                    let max = self.config.bytes_max;
                    let text = format!(
                        "the file has more than {max} bytes: raise max_bytes, or set content = false and have the module read \
                         it through a resource"
                    );
                    return RequestResult::Never(text);
                }
                Err(error) => {
                    self.warn(file, &error.to_string(), "file cannot be read");
                    return RequestResult::Failed(format!("the file cannot be read: {error}"));
                }
            }
        };
        self.request(name, file, body).await
    }

    async fn request(&self, name: &str, file: &WatchedFile, body: Bytes) -> RequestResult {
        let endpoint = &self.cx.endpoint;
        let route = match self.cx.dispatch.route() {
            Ok(Some(route)) => route,
            Ok(None) => return RequestResult::NotNow(format!("module {} is not there", endpoint.module)),
            Err(error) => return RequestResult::NotNow(error.to_string()),
        };
        let context = RequestContext::new(
            endpoint.interface.clone(),
            super::NAME,
            endpoint.timeout(),
            Arc::new(Facts::default()),
        );
        let context = Arc::new(context);
        let headers = vec![
            ("size".to_owned(), file.stamp.size.to_string()),
            ("modified".to_owned(), file.stamp.modified()),
            ("attempt".to_owned(), (self.states.failures(file) + 1).to_string()),
        ];
        let request = Request {
            context: context.clone(),
            action: super::NAME.to_owned(),
            target: name.to_owned(),
            headers,
            body,
            body_room: None,
        };
        let text = |error: &DispatchError| format!("{error}\nrequest: {}", context.id);
        // Guests run on the lanes.
        let work = self.cx.tasks.run_once("a file's request", self.cx.dispatch.handle(route, request));
        let result = match self.cx.lanes.next().spawn(work).await {
            Ok(Some(result)) => result,
            Ok(None) => return RequestResult::Failed(format!("the host panicked\nrequest: {}", context.id)),
            // The lanes are stopping, and so is the process.
            Err(error) => return RequestResult::NotNow(error.to_string()),
        };
        match result {
            Ok(_) => RequestResult::Done,
            Err(error @ (DispatchError::Refused(_) | DispatchError::BadRequest(_))) => {
                RequestResult::Never(text(&error))
            }
            Err(
                error @ (DispatchError::Overloaded(_)
                | DispatchError::Unreachable(_)
                | DispatchError::Draining
                | DispatchError::Host(_)),
            ) => RequestResult::NotNow(error.to_string()),
            Err(
                error @ (DispatchError::Failed(_)
                | DispatchError::Trap(_)
                | DispatchError::DeadlineExceeded(_)
                | DispatchError::Lost(_)
                | DispatchError::NoSuchCage(_)
                | DispatchError::NoSuchModule(_)
                | DispatchError::NoSuchFunction(_)
                | DispatchError::NotPermitted(_)),
            ) => RequestResult::Failed(text(&error)),
        }
    }

    /// Removes or moves a file that was handled. If that fails, the file is not handled again, and each pass tries to
    /// remove it.
    async fn finish(&mut self, file: &WatchedFile) {
        let to_finish = file.clone();
        match self.blocking(move |directory| directory.finish(&to_finish)).await {
            Ok(()) => self.states.forget(file),
            Err(error) => {
                let file = String::from_utf8_lossy(file.name.to_bytes()).into_owned();
                self.report_problem(format!("{file} was handled and cannot be put away: {error}"));
            }
        }
    }

    /// Moves a file aside that is given up. If that fails, the file is not handled again, and each pass tries to move
    /// it.
    async fn give_up(&mut self, file: &WatchedFile, why: &str) {
        let (to_move, text) = (file.clone(), why.to_owned());
        match self.blocking(move |directory| directory.give_up(&to_move, &text)).await {
            Ok(note_error) => {
                self.warn(file, why, "file given up and moved aside");
                if let Some(error) = note_error {
                    self.warn(file, &error.to_string(), "the reason could not be written beside the file");
                }
                self.states.forget(file);
            }
            Err(error) => {
                self.states.set_leftover(file, Leftover::GivenUp(why.to_owned()));
                let file = String::from_utf8_lossy(file.name.to_bytes()).into_owned();
                self.report_problem(format!("{file} was given up ({why}) and cannot be moved aside: {error}"));
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&WatchedDirectory) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let directory = self.directory.clone();
        spawn_blocking(move || work(&directory)).await.map_err(io::Error::other)?
    }

    fn warn(&self, file: &WatchedFile, error: &str, text: &'static str) {
        let (cage, interface) = (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface);
        let file = String::from_utf8_lossy(file.name.to_bytes());
        tracing::warn!(cage, interface, %file, error, "{text}");
    }

    /// Logs a problem, unless it is the one that was logged last.
    fn report_problem(&mut self, text: String) {
        if self.problem.as_ref() != Some(&text) {
            let (cage, interface) = (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface);
            tracing::warn!(cage, interface, error = %text, "files are waiting");
            self.problem = Some(text);
        }
    }
}
