//! Tests of the resource, as a pool uses it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::FileProtocol;
use wasmcage_config::testing::resource_section;
use wasmcage_core::request::Deadline;
use wasmcage_protocol::Protocol as _;
use wasmcage_resource::{Connection, Operation, OperationReply, Resource, ResourceError};

struct Fixture {
    directory: TempDir,
    resource: Box<dyn Resource>,
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn resource(directory: &Path, lines: &str) -> Result<Box<dyn Resource>, String> {
    let section = resource_section("file", directory, lines).map_err(|error| error.to_string())?;
    FileProtocol.resource(section).map_err(|error| error.to_string())
}

impl Fixture {
    fn new(lines: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let resource = resource(directory.path(), &format!("directory = \".\"\n{lines}")).unwrap();
        Self { directory, resource }
    }

    async fn begun(&self) -> Box<dyn Connection> {
        let mut connection = self.resource.connect(soon()).await.unwrap();
        connection.begin(&[], soon()).await.unwrap();
        connection
    }

    async fn alone(&self, operation: Operation) -> Result<OperationReply, ResourceError> {
        self.resource.check(&operation)?;
        self.resource.connect(soon()).await?.execute_alone(operation, &[], soon()).await
    }

    async fn code(&self, operation: Operation) -> String {
        let error = self.alone(operation).await.unwrap_err();
        assert!(error.recoverable && !error.terminal, "{error:?}");
        error.code
    }

    /// Every file beneath the directory, with its content.
    fn files(&self) -> Vec<(String, String)> {
        let mut open = vec![self.directory.path().to_owned()];
        let mut files = Vec::new();
        while let Some(path) = open.pop() {
            for entry in fs::read_dir(path).unwrap().flatten() {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => open.push(entry.path()),
                    kind if kind.is_file() => {
                        let name = entry.path().strip_prefix(self.directory.path()).unwrap().display().to_string();
                        files.push((name, fs::read_to_string(entry.path()).unwrap()));
                    }
                    _ => {}
                }
            }
        }
        files.sort();
        files
    }
}

fn operation(action: &str, target: &str) -> Operation {
    Operation { action: action.into(), target: target.into(), ..Operation::default() }
}

fn write(target: &str, body: &str) -> Operation {
    Operation { body: body.to_owned().into(), ..operation("write", target) }
}

fn with(operation: Operation, name: &str, value: &str) -> Operation {
    Operation { headers: vec![(name.into(), value.into())], ..operation }
}

fn owned(files: &[(&str, &str)]) -> Vec<(String, String)> {
    files.iter().map(|(name, content)| ((*name).into(), (*content).into())).collect()
}

#[tokio::test]
async fn a_written_file_appears_at_the_commit_and_not_before() {
    let fixture = Fixture::new("permissions = \"640\"");
    fs::write(fixture.directory.path().join("a"), "old").unwrap();
    let mut connection = fixture.begun().await;
    connection.execute(write("a", "new"), soon()).await.unwrap();
    connection.execute(write("sub/deep/b", "b"), soon()).await.unwrap();
    assert_eq!(fs::read_to_string(fixture.directory.path().join("a")).unwrap(), "old");
    assert!(!fixture.directory.path().join("sub/deep/b").exists());
    connection.commit(soon()).await.unwrap();
    assert_eq!(fixture.files(), owned(&[("a", "new"), ("sub/deep/b", "b")]));
    let mode = fs::metadata(fixture.directory.path().join("a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[tokio::test]
async fn a_rollback_or_a_dropped_connection_leaves_nothing() {
    let fixture = Fixture::new("");
    fs::write(fixture.directory.path().join("a"), "old").unwrap();
    let mut connection = fixture.begun().await;
    connection.execute(write("a", "new"), soon()).await.unwrap();
    connection.execute(operation("delete", "a"), soon()).await.unwrap();
    assert_eq!(fixture.files().len(), 2);
    connection.rollback(soon()).await.unwrap();
    assert_eq!(fixture.files(), owned(&[("a", "old")]));

    let mut connection = fixture.begun().await;
    connection.execute(write("b", "new"), soon()).await.unwrap();
    drop(connection);
    assert_eq!(fixture.files(), owned(&[("a", "old")]));
}

#[tokio::test]
async fn a_file_that_must_not_be_replaced_is_not() {
    let fixture = Fixture::new("");
    let carefully = |body| with(write("a", body), "overwrite", "false");
    // Of two concurrent transactions the second fails at its commit.
    let (mut first, mut second) = (fixture.begun().await, fixture.begun().await);
    first.execute(carefully("first"), soon()).await.unwrap();
    second.execute(carefully("second"), soon()).await.unwrap();
    first.commit(soon()).await.unwrap();
    let error = second.commit(soon()).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.recoverable), ("exists", true));
    assert_eq!(fixture.code(carefully("third")).await, "exists");
    assert_eq!(fixture.files(), owned(&[("a", "first")]));
}

#[tokio::test]
async fn a_commit_that_fails_halfway_says_so() {
    let fixture = Fixture::new("");
    let mut connection = fixture.begun().await;
    connection.execute(write("a", "a"), soon()).await.unwrap();
    connection.execute(write("b", "b"), soon()).await.unwrap();
    fs::create_dir(fixture.directory.path().join("b")).unwrap();
    let error = connection.commit(soon()).await.unwrap_err();
    assert!(!error.recoverable, "{error:?}");
    assert_eq!(fixture.files(), owned(&[("a", "a")]));
}

#[tokio::test]
async fn files_are_read_listed_and_removed() {
    let fixture = Fixture::new("max_bytes = 10");
    for name in ["a", "b", "c", "sub/d"] {
        fixture.alone(write(name, "content")).await.unwrap();
    }
    let reply = fixture.alone(operation("read", "a")).await.unwrap();
    assert_eq!((reply.status, &*reply.body), (200, &b"content"[..]));
    assert_eq!(reply.headers[0], ("size".into(), "7".into()));
    assert_eq!(fixture.code(operation("read", "z")).await, "not-found");
    assert_eq!(fixture.code(operation("read", "sub")).await, "not-a-file");

    let listed = async |target: &str, name: &str, value: &str| {
        let reply = fixture.alone(with(operation("list", target), name, value)).await.unwrap();
        let files: Vec<Value> = serde_json::from_slice(&reply.body).unwrap();
        let names: Vec<_> = files.iter().map(|file| file["name"].as_str().unwrap().to_owned()).collect();
        (names.join(" "), reply.headers[0].1.clone())
    };
    assert_eq!(listed("", "limit", "2").await, ("a b".into(), "true".into()));
    assert_eq!(listed("", "after", "b").await, ("c sub".into(), "false".into()));
    assert_eq!(listed("sub", "limit", "9").await, ("d".into(), "false".into()));

    let stat = fixture.alone(operation("stat", "sub")).await.unwrap();
    assert!(stat.headers.contains(&("kind".into(), "directory".into())));
    assert_eq!(fixture.alone(operation("stat", "z/z")).await.unwrap().status, 404);
    assert_eq!(fixture.alone(operation("delete", "z")).await.unwrap().status, 404);
    assert_eq!(fixture.alone(operation("delete", "b")).await.unwrap().status, 200);
    fixture.alone(with(operation("read", "c"), "remove", "true")).await.unwrap();
    assert_eq!(fixture.files(), owned(&[("a", "content"), ("sub/d", "content")]));
}

#[tokio::test]
async fn a_long_file_comes_in_parts() {
    let fixture = Fixture::new("max_bytes = 10");
    let content: String = (0..30_000).map(|number| format!("{number}\n")).collect();
    fs::write(fixture.directory.path().join("long"), &content).unwrap();
    assert_eq!(fixture.code(operation("read", "long")).await, ResourceError::TOO_LARGE);
    let connection = fixture.resource.connect(soon()).await.unwrap();
    let (reply, mut stream) = connection.open(operation("read", "long"), &[], soon()).await.unwrap();
    assert_eq!(reply.headers[0].1, content.len().to_string());
    let mut parts = Vec::new();
    while let Some(part) = stream.next().await.unwrap() {
        parts.push(part);
    }
    assert!(parts.len() > 2 && parts.concat() == content.as_bytes());
}

#[tokio::test]
async fn nothing_leads_out_of_the_directory() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let fixture = Fixture::new("");
    symlink(outside.path(), fixture.directory.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), fixture.directory.path().join("link")).unwrap();
    for name in ["../x", "/etc/passwd", "a/../../x", ""] {
        assert_eq!(fixture.code(operation("read", name)).await, ResourceError::BAD_OPERATION, "{name}");
    }
    assert_eq!(fixture.code(operation("read", "link")).await, "not-a-file");
    assert_eq!(fixture.code(operation("read", "out/secret")).await, "not-a-file");
    assert_eq!(fixture.code(write("out/x", "x")).await, "not-a-file");
    assert_eq!(fixture.code(operation("list", "out")).await, "not-a-file");
    assert_eq!(fixture.code(operation("delete", "link")).await, "not-a-file");
    // A link is replaced, not followed.
    fixture.alone(write("link", "mine")).await.unwrap();
    assert_eq!(fixture.files(), owned(&[("link", "mine")]));
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn opening_a_pipe_does_not_wait() {
    let fixture = Fixture::new("");
    let pipe = fixture.directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(fixture.code(operation("read", "pipe")).await, "not-a-file");
}

#[tokio::test]
async fn leftovers_of_a_crash_are_removed_and_files_in_use_are_not() {
    let fixture = Fixture::new("");
    fs::write(fixture.directory.path().join(".wasmcage-0123.tmp"), "half").unwrap();
    let mut writing = fixture.begun().await;
    assert_eq!(fixture.files(), []);
    writing.execute(write("a", "a"), soon()).await.unwrap();
    // Another resource with the same directory starts meanwhile.
    let other = resource(fixture.directory.path(), "directory = \".\"").unwrap();
    other.connect(soon()).await.unwrap();
    assert_eq!(fixture.files().len(), 1);
    writing.commit(soon()).await.unwrap();
    assert_eq!(fixture.files(), owned(&[("a", "a")]));
}

#[tokio::test]
async fn invalid_operations_are_refused() {
    let fixture = Fixture::new("");
    for operation in [
        operation("append", "a"),
        with(write("a", ""), "overwrite", "perhaps"),
        with(operation("read", "a"), "overwrite", "true"),
        write(".wasmcage-1.tmp", "x"),
    ] {
        assert_eq!(fixture.code(operation).await, ResourceError::BAD_OPERATION);
    }
    let mut connection = fixture.resource.connect(soon()).await.unwrap();
    let error = connection.begin(&[("isolation".into(), "x".into())], soon()).await.unwrap_err();
    assert_eq!(error.code, ResourceError::BAD_OPERATION);

    let gone = resource(fixture.directory.path(), "directory = \"gone\"").unwrap();
    let error = gone.connect(soon()).await.err().unwrap();
    assert_eq!((error.code.as_str(), error.recoverable), ("not-found", true));
    let refused = resource(fixture.directory.path(), "permissions = \"rw\"\nmax_byte = 1").err().unwrap();
    for text in ["directory: required", "three octal digits", "did you mean `max_bytes`"] {
        assert!(refused.contains(text), "{refused}");
    }
}

/// A directory on another file system than temporary files. `tests/run` leaves out by their name tests that need one.
fn elsewhere() -> TempDir {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let found = ["/dev/shm", "/run", "/var/tmp", "/tmp"].into_iter().find_map(|place| {
        let directory = TempDir::new_in(place).ok()?;
        (device(directory.path()) != device(&std::env::temp_dir())).then_some(directory)
    });
    found.expect(
        "this test cannot run here: there is no second file system that can be written. `cargo test -- --skip \
         with_second_file_system` leaves out such tests",
    )
}

#[tokio::test]
async fn with_second_file_system_a_file_comes_whole_from_there_too() {
    let elsewhere = elsewhere();
    let fixture = Fixture::new(&format!("temporary = {:?}\npermissions = \"640\"", elsewhere.path()));
    fixture.alone(write("a/b", "one")).await.unwrap();
    fixture.alone(write("a/b", "two")).await.unwrap();
    assert_eq!(fixture.code(with(write("a/b", "three"), "overwrite", "false")).await, "exists");
    assert_eq!(fixture.files(), [("a/b".to_owned(), "two".to_owned())], "nothing unfinished is left");
    let mode = fs::metadata(fixture.directory.path().join("a/b")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "nor where it was written");
}
