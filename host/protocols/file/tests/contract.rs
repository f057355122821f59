//! The contract of a protocol. A file is acknowledged when it is taken from its directory.

#![allow(clippy::unwrap_used, reason = "a test fails by its panic")]

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use wasmcage_file::FileProtocol;
use wasmcage_protocol::Protocol;
use wasmcage_test_util::contract::{Answer, NeedsOthers, Subject, Unavailable};
use wasmcage_test_util::{TestHost, TestInterface};

#[derive(Default)]
struct FileSubject {
    files: AtomicUsize,
}

/// Makes the directory that the interface waits for.
struct MakeOnDrop(std::path::PathBuf);

impl Drop for MakeOnDrop {
    fn drop(&mut self) {
        fs::create_dir(&self.0).unwrap();
    }
}

#[async_trait]
impl Subject for FileSubject {
    fn protocol(&self) -> Box<dyn Protocol> {
        Box::new(FileProtocol)
    }

    fn keys(&self, host: &TestHost) -> String {
        let directory = host.directory().join("in");
        let _ = fs::create_dir(&directory);
        keys(&directory)
    }

    fn keeps_requests(&self) -> bool {
        true
    }

    fn is_sequential(&self) -> bool {
        true
    }

    async fn ask(&self, host: &TestHost, _: &TestInterface) -> Answer {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let (content, without_module) = (format!("file {number}."), host.dispatch.without_module());
        let file = host.directory().join("in").join(format!("{number}.txt"));
        fs::write(&file, &content).unwrap();
        while file.exists() {
            // Once it is handed again, it was not acknowledged before.
            if host.dispatch.begun_with(&content) >= 2 || host.dispatch.without_module() >= without_module + 2 {
                return Answer::NotDone;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Answer::Done
    }
}

fn keys(directory: &std::path::Path) -> String {
    format!("directory = '{}'\ninterval_ms = 10\nsettle_ms = 0\nretry_ms = 10\nkeep_going = true", directory.display())
}

#[async_trait]
impl NeedsOthers for FileSubject {
    async fn unavailable(&self, host: &TestHost) -> Unavailable {
        let directory = host.directory().join("in");
        let keys = keys(&directory);
        Unavailable { keys, text: "No such file", kept: Box::new(MakeOnDrop(directory)) }
    }
}

wasmcage_test_util::contract!(FileSubject, needs others);
