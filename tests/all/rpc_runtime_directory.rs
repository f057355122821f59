//! The directory in which cages of a machine meet may vanish, as files in `/run` or `/tmp` do that somebody tidies: they
//! meet again all the same.

use std::fs;

use wasmcage_tests::{TestCage, check_call_error, eventually, query, unique_name};

#[tokio::test(flavor = "multi_thread")]
async fn cages_meet_again_after_their_directory_was_removed() {
    let meeting = tempfile::tempdir().unwrap();
    let worker_name = unique_name("worker");
    let worker = TestCage::named(&worker_name).meeting_at(meeting.path()).module("service_echo", "work").start().await;
    let front = async || {
        let allow = format!("[modules.interface_web]\nallow = {{ cages = [\"{worker_name}\"] }}");
        let front = TestCage::new().meeting_at(meeting.path()).module("echo", "interface_web").http("web");
        front.config(&allow).start().await
    };
    let parameters = [("cage", &*worker_name), ("module", "work"), ("function", "add"), ("args", "[2, 3]")];
    let call = query("/try_call", &parameters);
    let early = front().await;
    assert_eq!(early.client("web").get(&call).await.text(), "5");
    fs::remove_dir_all(meeting.path().join("meeting")).unwrap();
    // Connections that stand go on.
    assert_eq!(early.client("web").get(&call).await.text(), "5");
    worker.logged("was made again").await;
    let late = front().await;
    assert_eq!(late.client("web").get(&call).await.text(), "5");
    let sockets = || fs::read_dir(meeting.path().join("meeting/default")).map(Iterator::count).unwrap_or_default();
    eventually("a socket for each cage", || (sockets() == 3).then_some(())).await;
    // Files that are made anew are removed, too, when their cage ends.
    assert!(worker.stop().await);
    eventually("the worker's socket to go", || (sockets() == 2).then_some(())).await;
    eventually("the worker to be forgotten", || {
        late.snapshot().cages[0].members.iter().all(|m| m.cage != worker_name).then_some(())
    })
    .await;
    check_call_error(late.client("web").get(&call).await.call_error(), "NoSuchCage", &[&worker_name]);
}
