//! A watched directory: its files become requests, one at a time, in order. A file is removed when its request succeeded, and
//! handed again when that is not known: at least once.
//!
//! `config.rs` reads `[interfaces.x]`, `source.rs` is the directory, `memory.rs` what is known of its files, `pattern.rs`
//! which are meant.

mod config;
mod memory;
mod pattern;
mod source;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::spawn_blocking;

use self::config::SourceConfig;
use self::memory::{End, Memory};
use self::source::{Content, Found, Source};
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::{Facts, Request, RequestContext};
use wasmcage_protocol::{Address, Interface, InterfaceContext, InterfaceError};

/// Between two looks whether another one has let go of the directory.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// `[interfaces.x]` with `protocol = "file"`.
pub(super) struct FileInterface {
    config: SourceConfig,
}

impl FileInterface {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        Ok(Self { config: SourceConfig::read(section)? })
    }
}

#[async_trait]
impl Interface for FileInterface {
    async fn run(self: Box<Self>, cx: InterfaceContext) -> Result<(), InterfaceError> {
        let mut source = open(&self.config, &cx).await?;
        while let Some(found) = source {
            let listening = cx.endpoint.listen(Address::Outside(format!("file:{}", self.config.directory.display())));
            let mut watch = Watch {
                config: self.config.clone(),
                source: Arc::new(found),
                memory: Memory::default(),
                trouble: None,
                cx: cx.clone(),
            };
            let result = watch.run().await;
            drop(listening);
            source = match result? {
                Ended::Draining => None,
                Ended::Gone => open_again(&self.config, &cx).await?,
            };
        }
        Ok(())
    }
}

/// Why a directory is not watched any more.
enum Ended {
    Draining,
    /// The path leads to another directory, or to none.
    Gone,
}

/// Once the path of the configuration leads to a directory again. None when the drain came first.
async fn open_again(config: &SourceConfig, cx: &InterfaceContext) -> Result<Option<Source>, InterfaceError> {
    let (cage, interface, directory) = (&*cx.endpoint.cage, &*cx.endpoint.interface, config.directory.display());
    tracing::warn!(cage, interface, %directory, "the directory was removed or replaced: taking files from what its path leads to");
    let source = loop {
        match open(config, cx).await {
            Err(InterfaceError::Setup { source: Some(error), .. }) if is_not_found(&*error) => {
                cx.endpoint.set_status(Some(format!("waits for directory {directory} to be there")));
            }
            opened => break opened,
        }
        if cx.drain.unless_begun(tokio::time::sleep(LOCK_INTERVAL)).await.is_none() {
            break Ok(None);
        }
    };
    cx.endpoint.set_status(None);
    source
}

fn is_not_found(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// None when the drain came first.
async fn open(config: &SourceConfig, cx: &InterfaceContext) -> Result<Option<Source>, InterfaceError> {
    let mut told = false;
    while !cx.drain.begun() {
        let source = Source::open(config.clone());
        let source = source.map_err(|error| setup(cx, format!("directory {}", config.directory.display()), error))?;
        if source.is_some() {
            return Ok(source);
        }
        if !told {
            told = true;
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

fn setup(cx: &InterfaceContext, text: String, error: io::Error) -> InterfaceError {
    InterfaceError::Setup { interface: cx.endpoint.interface.to_string(), text, source: Some(error.into()) }
}

struct Watch {
    config: SourceConfig,
    source: Arc<Source>,
    memory: Memory,
    /// Told last, so that it is not told with every pass.
    trouble: Option<String>,
    cx: InterfaceContext,
}

/// What became of a file's request.
enum Outcome {
    Done,
    /// It is another file by now.
    Changed,
    /// Later may help.
    Failed(String),
    /// Nothing will help.
    Never(String),
    /// Nobody could be asked.
    NotNow(String),
}

impl Watch {
    async fn run(&mut self) -> Result<Ended, InterfaceError> {
        let _in_work = self.cx.drain.token();
        while !self.cx.drain.begun() {
            let text = || format!("directory {}", self.config.directory.display());
            if self.blocking(Source::is_gone).await.map_err(|error| setup(&self.cx, text(), error))? {
                return Ok(Ended::Gone);
            }
            let pause = self.pass().await?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.cx.drain.stopping() => {}
            }
        }
        Ok(Ended::Draining)
    }

    /// Hands every file that may be handed now. Returns how long to wait for the next pass.
    async fn pass(&mut self) -> Result<Duration, InterfaceError> {
        let text = || format!("directory {}", self.config.directory.display());
        let found = self.blocking(Source::look).await.map_err(|error| setup(&self.cx, text(), error))?;
        self.memory.update(&found);
        let mut pause = self.config.interval;
        for found in found {
            if self.cx.drain.begun() {
                break;
            }
            match self.memory.end(&found) {
                None => {}
                Some(End::Handled) => {
                    self.finish(&found).await;
                    continue;
                }
                Some(End::GivenUp(why)) => {
                    self.give_up(&found, &why).await;
                    continue;
                }
            }
            let unrest = self.memory.unrest(&found, self.config.settle);
            if !unrest.is_zero() {
                // It takes its turn when it is complete.
                pause = pause.min(unrest);
                continue;
            }
            let wait = self.memory.pause(&found);
            if !wait.is_zero() {
                pause = pause.min(wait);
                if self.config.keep_going {
                    continue;
                }
                break;
            }
            match self.hand(&found).await {
                Outcome::Done => {
                    self.trouble = None;
                    self.memory.ended(&found, End::Handled);
                    self.finish(&found).await;
                    // More may have come meanwhile.
                    pause = Duration::ZERO;
                }
                Outcome::Changed => pause = pause.min(self.config.settle),
                Outcome::Never(text) => self.give_up(&found, &text).await,
                Outcome::Failed(text) => {
                    let failures = self.memory.failures(&found) + 1;
                    if failures >= self.config.attempts_max {
                        self.give_up(&found, &format!("{text}\nattempts: {failures}")).await;
                        continue;
                    }
                    let wait = self.config.retry_after(failures);
                    self.memory.failed(&found, wait);
                    if !self.config.keep_going {
                        return Ok(wait.min(self.config.interval));
                    }
                }
                Outcome::NotNow(text) => {
                    self.tell(text);
                    return Ok(self.config.interval);
                }
            }
        }
        Ok(pause)
    }

    async fn hand(&self, found: &Found) -> Outcome {
        let Ok(name) = found.name.to_str() else {
            return Outcome::Never("the file's name is no text (UTF-8), which modules need".into());
        };
        let body = {
            let file = found.clone();
            match self.blocking(move |source| source.read(&file)).await {
                Ok(Content::Whole(body)) => body,
                Ok(Content::Changed) => return Outcome::Changed,
                Ok(Content::TooLarge) => {
                    let max = self.config.bytes_max;
                    let text = format!(
                        "the file has more than {max} bytes: raise max_bytes, or set content = false and have the module read \
                         it through a resource"
                    );
                    return Outcome::Never(text);
                }
                Err(error) => {
                    self.warn(found, &error.to_string(), "file cannot be read");
                    return Outcome::Failed(format!("the file cannot be read: {error}"));
                }
            }
        };
        self.request(name, found, body).await
    }

    async fn request(&self, name: &str, found: &Found, body: Bytes) -> Outcome {
        let endpoint = &self.cx.endpoint;
        let route = match self.cx.dispatch.route() {
            Ok(Some(route)) => route,
            Ok(None) => return Outcome::NotNow(format!("module {} is not there", endpoint.module)),
            Err(error) => return Outcome::NotNow(error.to_string()),
        };
        let context = RequestContext::new(
            endpoint.interface.clone(),
            super::NAME,
            endpoint.timeout(),
            Arc::new(Facts::default()),
        );
        let context = Arc::new(context);
        let headers = vec![
            ("size".to_owned(), found.stamp.size.to_string()),
            ("modified".to_owned(), found.stamp.modified()),
            ("attempt".to_owned(), (self.memory.failures(found) + 1).to_string()),
        ];
        let request = Request {
            context: context.clone(),
            action: super::NAME.to_owned(),
            target: name.to_owned(),
            headers,
            body,
            body_room: None,
        };
        let told = |error: &DispatchError| format!("{error}\nrequest: {}", context.id);
        // Guests run on the lanes.
        let work = self.cx.tasks.watched("a file's request", self.cx.dispatch.handle(route, request));
        let result = match self.cx.lanes.next().spawn(work).await {
            Ok(Some(result)) => result,
            Ok(None) => return Outcome::Failed(format!("the host panicked\nrequest: {}", context.id)),
            // The lanes are stopping, and so is the process.
            Err(error) => return Outcome::NotNow(error.to_string()),
        };
        match result {
            Ok(_) => Outcome::Done,
            Err(error @ (DispatchError::Refused(_) | DispatchError::BadRequest(_))) => Outcome::Never(told(&error)),
            Err(
                error @ (DispatchError::Overloaded(_)
                | DispatchError::Unreachable(_)
                | DispatchError::Draining
                | DispatchError::Host(_)),
            ) => Outcome::NotNow(error.to_string()),
            Err(
                error @ (DispatchError::Failed(_)
                | DispatchError::Trap(_)
                | DispatchError::DeadlineExceeded(_)
                | DispatchError::Lost(_)
                | DispatchError::NoSuchCage(_)
                | DispatchError::NoSuchModule(_)
                | DispatchError::NoSuchFunction(_)
                | DispatchError::NotPermitted(_)),
            ) => Outcome::Failed(told(&error)),
        }
    }

    /// A file that cannot be removed is not handed again; removing it is tried again with every pass.
    async fn finish(&mut self, found: &Found) {
        let file = found.clone();
        match self.blocking(move |source| source.finish(&file)).await {
            Ok(()) => self.memory.forget(found),
            Err(error) => {
                let file = String::from_utf8_lossy(found.name.to_bytes()).into_owned();
                self.tell(format!("{file} was handled and cannot be put away: {error}"));
            }
        }
    }

    /// A file that cannot be moved aside is not handed again; moving it is tried again with every pass.
    async fn give_up(&mut self, found: &Found, why: &str) {
        let (file, text) = (found.clone(), why.to_owned());
        match self.blocking(move |source| source.give_up(&file, &text)).await {
            Ok(no_note) => {
                self.warn(found, why, "file given up and moved aside");
                if let Some(error) = no_note {
                    self.warn(found, &error.to_string(), "the reason could not be written beside the file");
                }
                self.memory.forget(found);
            }
            Err(error) => {
                self.memory.ended(found, End::GivenUp(why.to_owned()));
                let file = String::from_utf8_lossy(found.name.to_bytes()).into_owned();
                self.tell(format!("{file} was given up ({why}) and cannot be moved aside: {error}"));
            }
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Source) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let source = self.source.clone();
        spawn_blocking(move || work(&source)).await.map_err(io::Error::other)?
    }

    fn warn(&self, found: &Found, error: &str, text: &'static str) {
        let (cage, interface) = (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface);
        let file = String::from_utf8_lossy(found.name.to_bytes());
        tracing::warn!(cage, interface, %file, error, "{text}");
    }

    fn tell(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            let (cage, interface) = (&*self.cx.endpoint.cage, &*self.cx.endpoint.interface);
            tracing::warn!(cage, interface, error = %text, "files are waiting");
            self.trouble = Some(text);
        }
    }
}
