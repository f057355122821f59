//! How other commands ask a running cage: Unix sockets in `.run/` of a cage's directory, for the cage's own user only. One JSON object per line in
//! each direction: `{"command":"ps"}` is answered by `{"ok":..}` or `{"error":{"code":..,"text":..}}`. A client that closes its
//! side before a command is done gives it up. What comes in is bounded and never trusted.
//!
//! The secondary serves `control.sock`, whose clients are `ps`, `call`, `retry` and `state`; the primary `primary.sock`,
//! whose client is `stop`. Either makes its socket again when somebody has removed it.

pub(crate) mod call;
pub(crate) mod retry;
pub(crate) mod state;

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use wasmcage_core::unix_socket::{self, NamedListener};

/// Arguments or result of a call, before they are put into a line.
pub(crate) const CONTENT_BYTES_MAX: usize = 32 << 20;
/// The longest line in either direction: JSON within a string takes up to twice its room.
const LINE_BYTES_MAX: u64 = 2 * CONTENT_BYTES_MAX as u64 + (1 << 20);
/// Connections served at once; more of them wait. Calls may take long, and `ps` shall not wait for them.
const CONNECTIONS_MAX: usize = 128;
/// A connection that says nothing for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client waits for each piece of its answer, once the command should be done.
pub(crate) const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, for what it lacked to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks whether the socket is still at its path.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// One request line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub command: String,
    /// What the command needs; null if nothing.
    #[serde(default)]
    pub arguments: Value,
}

/// Why a command was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// Stable, for programs.
    pub code: String,
    pub text: String,
}

impl Refusal {
    pub(crate) fn new(code: &str, text: impl ToString) -> Self {
        Self { code: code.into(), text: text.to_string() }
    }
}

/// Does the commands of one cage.
#[async_trait]
pub(crate) trait Answer: Send + Sync + 'static {
    async fn answer(&self, request: Request) -> Result<Value, Refusal>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("cannot reach cage {cage} at {socket}")]
    Connect {
        cage: String,
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cage {cage} did not answer as it should")]
    Answer {
        cage: String,
        #[source]
        source: io::Error,
    },
    #[error("cage {cage} refused the command: {text} ({code})")]
    Refused { cage: String, code: String, text: String },
}

/// Of the process that serves.
pub(crate) fn socket_path(run: &Path) -> PathBuf {
    run.join("control.sock")
}

/// Of the process that watches over it.
pub(crate) fn primary_socket_path(run: &Path) -> PathBuf {
    run.join("primary.sock")
}

/// The socket of one cage, and who answers there.
pub(crate) struct Server {
    pub cage: String,
    pub listener: NamedListener,
    pub answer: Arc<dyn Answer>,
}

impl Server {
    /// Serves until the task is dropped.
    pub(crate) async fn serve(mut self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                (accepted, place) = self.accept(&places) => self.take(accepted, place).await,
                () = tick(&mut looks) => self.restore(),
            }
        }
    }

    async fn accept(&self, places: &Arc<Semaphore>) -> (io::Result<UnixStream>, OwnedSemaphorePermit) {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        (self.listener.accept().await, place)
    }

    async fn take(&self, accepted: io::Result<UnixStream>, place: OwnedSemaphorePermit) {
        let Ok(stream) = accepted else {
            // Out of descriptors or memory, most likely: no reason to stop listening.
            return sleep(ACCEPT_PAUSE).await;
        };
        let answer = self.answer.clone();
        tokio::spawn(async move {
            // A client that leaves, stays silent or sends nonsense has only itself to tell.
            let _ = converse(stream, &*answer).await;
            drop(place);
        });
    }

    fn restore(&mut self) {
        // A directory that is not there is no news for each second: it is tried again.
        if let Ok(true) = self.listener.restore() {
            let socket = self.listener.path().display();
            tracing::warn!(cage = %self.cage, %socket, "the control socket had been removed and was made again");
        }
    }
}

async fn tick(looks: &mut Interval) {
    looks.tick().await;
}

async fn converse(stream: UnixStream, answer: &dyn Answer) -> io::Result<()> {
    // The socket's mode should keep others out; not every file system heeds it.
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(LINE_BYTES_MAX);
        timeout(IDLE_TIMEOUT, bounded.read_until(b'\n', &mut line)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if line.is_empty() {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        let result = match serde_json::from_slice::<Request>(&line) {
            // An answer that is ready at once reaches a client that has said all it had to say.
            Ok(request) => tokio::select! {
                biased;
                result = answer.answer(request) => result,
                () = left(&mut reader) => return Ok(()),
            },
            Err(error) => Err(Refusal { code: "bad-request".into(), text: error.to_string() }),
        };
        let mut reply = match result {
            Ok(value) => json!({ "ok": value }),
            Err(refusal) => json!({ "error": refusal }),
        }
        .to_string();
        reply.push('\n');
        timeout(IDLE_TIMEOUT, writer.write_all(reply.as_bytes())).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if !complete {
            return Ok(());
        }
    }
}

/// Resolves when the client has closed its side; never when it has sent its next command already.
async fn left(reader: &mut (impl tokio::io::AsyncBufRead + Unpin)) {
    match reader.fill_buf().await {
        Ok([]) | Err(_) => {}
        Ok(_) => std::future::pending().await,
    }
}

/// Asks a running cage for something that it knows at once.
///
/// # Errors
/// When it cannot be reached, or does not do it.
pub(crate) fn ask(run: &Path, cage: &str, command: &str, arguments: Value) -> Result<Value, ControlError> {
    ask_patiently(run, cage, command, arguments, CLIENT_TIMEOUT)
}

/// Asks a running cage, and waits so long for its answer.
///
/// # Errors
/// When it cannot be reached, or does not do it.
pub(crate) fn ask_patiently(
    run: &Path,
    cage: &str,
    command: &str,
    arguments: Value,
    patience: Duration,
) -> Result<Value, ControlError> {
    let request = Request { command: command.to_owned(), arguments };
    ask_at(socket_path(run), cage, &request, patience)
}

/// Asks the process that watches over a running cage.
///
/// # Errors
/// When it cannot be reached, or does not do it.
pub(crate) fn ask_primary(run: &Path, cage: &str, command: &str, arguments: Value) -> Result<Value, ControlError> {
    let request = Request { command: command.to_owned(), arguments };
    ask_at(primary_socket_path(run), cage, &request, CLIENT_TIMEOUT)
}

fn ask_at(socket: PathBuf, cage: &str, request: &Request, patience: Duration) -> Result<Value, ControlError> {
    let connect = || -> io::Result<BlockingStream> {
        let stream = unix_socket::connect_blocking(&socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        Ok(stream)
    };
    let cage = cage.to_owned();
    let stream = match connect() {
        Ok(stream) => stream,
        Err(source) => return Err(ControlError::Connect { cage, socket, source }),
    };
    match exchange(&stream, request) {
        Ok(Reply::Ok(value)) => Ok(value),
        Ok(Reply::Error(Refusal { code, text })) => Err(ControlError::Refused { cage, code, text }),
        Err(source) => Err(ControlError::Answer { cage, source }),
    }
}

/// What came of a command, or of a part of it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply<T> {
    Ok(T),
    Error(Refusal),
}

fn exchange(mut stream: &BlockingStream, request: &Request) -> io::Result<Reply<Value>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = Vec::new();
    let read = BufReader::new(stream.take(LINE_BYTES_MAX)).read_until(b'\n', &mut reply);
    read.map_err(|error| match error.kind() {
        // How the system says that a read timed out.
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it said nothing for too long"),
        _ => error,
    })?;
    if reply.ends_with(b"\n") {
        return Ok(serde_json::from_slice(&reply)?);
    }
    Err(match reply.len() as u64 {
        LINE_BYTES_MAX.. => io::Error::other(format!("its answer is longer than {LINE_BYTES_MAX} bytes")),
        _ => io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection before it had answered"),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Echo;

    #[async_trait]
    impl Answer for Echo {
        async fn answer(&self, request: Request) -> Result<Value, Refusal> {
            match request.command.as_str() {
                "echo" => Ok(request.arguments),
                // Never answers.
                "wait" => {
                    let _given_up = GivenUp;
                    std::future::pending().await
                }
                "given-up" => Ok(json!(GIVEN_UP.load(std::sync::atomic::Ordering::SeqCst))),
                other => Err(Refusal { code: "unknown-command".into(), text: format!("no command `{other}`") }),
            }
        }
    }

    static GIVEN_UP: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

    struct GivenUp;

    impl Drop for GivenUp {
        fn drop(&mut self) {
            GIVEN_UP.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    /// Runs `client` against a socket in a directory of this name.
    fn check(directory_name: &str, client: impl FnOnce(&Path) + Send + 'static) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join(directory_name);
        fs::create_dir_all(&directory).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // What a process that was killed leaves behind.
            drop(unix_socket::bind(&socket_path(&directory)).unwrap());
            let listener = NamedListener::bind(&socket_path(&directory)).unwrap();
            let mode = fs::metadata(socket_path(&directory)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let server = Server { cage: "c".to_owned(), listener, answer: Arc::new(Echo) };
            let server = tokio::spawn(server.serve());
            let at = directory.clone();
            tokio::task::spawn_blocking(move || client(&at)).await.unwrap();
            server.abort();
        });
    }

    #[test]
    fn commands_are_answered_or_refused() {
        check("short", |directory| {
            let arguments = json!({ "n": [1, "two\n"] });
            assert_eq!(ask(directory, "c", "echo", arguments.clone()).unwrap(), arguments);
            let error = ask(directory, "c", "dance", Value::Null).unwrap_err();
            assert_eq!(error.to_string(), "cage c refused the command: no command `dance` (unknown-command)");
            let elsewhere = directory.join("other");
            assert!(matches!(ask(&elsewhere, "c", "echo", Value::Null), Err(ControlError::Connect { .. })));
        });
    }

    #[test]
    fn a_command_is_given_up_when_its_client_leaves() {
        check("leaving", |directory| {
            let patience = Duration::from_millis(20);
            let error = ask_patiently(directory, "c", "wait", Value::Null, patience).unwrap_err();
            assert!(wasmcage_core::telemetry::error_chain(&error).contains("nothing for too long"), "{error}");
            while ask(directory, "c", "given-up", Value::Null).unwrap() != json!(true) {}
        });
    }

    #[test]
    fn one_who_has_said_all_is_answered() {
        check("half-closed", |directory| {
            let mut stream = BlockingStream::connect(socket_path(directory)).unwrap();
            stream.write_all(b"{\"command\":\"echo\",\"arguments\":7}\n").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "{\"ok\":7}\n");
        });
    }

    #[test]
    fn a_socket_that_was_tidied_away_is_made_again() {
        check("tidied", |directory| {
            fs::rename(directory, directory.with_extension("away")).unwrap();
            fs::create_dir(directory).unwrap();
            let until = std::time::Instant::now() + Duration::from_secs(20);
            while ask(directory, "c", "echo", json!(1)).is_err() {
                assert!(std::time::Instant::now() < until);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    }

    #[test]
    fn some_mib_are_carried() {
        check("large", |directory| {
            let large = json!("\"".repeat(8 << 20));
            assert_eq!(ask(directory, "c", "echo", large.clone()).unwrap(), large);
        });
    }

    #[test]
    fn a_long_path_is_no_obstacle() {
        check(&"long".repeat(40), |directory| {
            assert_eq!(ask(directory, "c", "echo", json!(1)).unwrap(), json!(1));
        });
    }

    #[test]
    fn nonsense_is_answered_and_an_endless_line_is_cut() {
        check("nonsense", |directory| {
            let mut stream = BlockingStream::connect(socket_path(directory)).unwrap();
            stream.write_all(b"nonsense\n{\"command\":\"echo\",\"arguments\":7}\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert!(lines.next().unwrap().unwrap().contains("bad-request"));
            assert_eq!(lines.next().unwrap().unwrap(), r#"{"ok":7}"#);
            // The server hangs up before it has taken all of it.
            let _ = stream.write_all(&vec![b'x'; LINE_BYTES_MAX as usize + (1 << 20)]);
            assert!(lines.next().is_none_or(|line| line.is_err() || line.unwrap().contains("bad-request")));
        });
    }
}
