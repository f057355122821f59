//! Overwriting a module's file changes the next answer, loses no request, and never brings an old version back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use wasmcage_tests::{Client, RunningCage, TestCage, eventually, guest};

/// Guest `hello` with another greeting of the same length: another component, as far as anybody can tell.
fn greeting(number: usize) -> Vec<u8> {
    let from = b"Hello, world !";
    let to = format!("Hello, v{number:05}!");
    assert_eq!(from.len(), to.len());
    let mut bytes = std::fs::read(guest("hello")).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the greeting in the component");
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    bytes
}

async fn started() -> RunningCage {
    TestCage::new().module("hello", "interface_web").http("web").start().await
}

async fn answers(client: &Client, text: &str) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let answer = client.get("/").await.text();
        if answer == text {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "still {answer:?}, expected {text:?}");
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_answer_is_the_new_versions() {
    let cage = started().await;
    let client = cage.client("web");
    assert_eq!(client.get("/").await.text(), "Hello, world !");
    cage.deploy("interface_web", &greeting(1));
    answers(&client, "Hello, v00001!").await;
    assert_eq!(cage.version("interface_web"), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_swaps_under_load_lose_nothing_and_never_go_back() {
    const VARIANTS: usize = 8;
    const SWAPS: usize = 100;
    let variants: Vec<_> = (0..VARIANTS).map(greeting).collect();
    let cage = started().await;
    let modules = cage.host().cage(cage.name()).unwrap().modules();
    let serving = || Arc::downgrade(&modules.get("interface_web").unwrap().current().expect("a version serves"));
    let mut old = Vec::new();
    // Compiled once each, so that the swaps themselves are quick.
    for (number, variant) in variants.iter().enumerate() {
        let before = cage.version("interface_web");
        old.push(serving());
        cage.deploy("interface_web", variant);
        cage.swapped("interface_web", before).await;
        assert_eq!(cage.client("web").get("/").await.text(), format!("Hello, v{number:05}!"));
    }
    // The number of swaps that are surely visible, and of those that may be: an answer comes from within this window.
    let visible = Arc::new(AtomicUsize::new(VARIANTS - 1));
    let begun = Arc::new(AtomicUsize::new(VARIANTS - 1));
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (client, visible, begun, stop) = (cage.client("web"), visible.clone(), begun.clone(), stop.clone());
            tokio::spawn(async move {
                let mut served = 0;
                while !stop.load(SeqCst) {
                    let oldest = visible.load(SeqCst);
                    let answer = client.get("/").await;
                    let newest = begun.load(SeqCst);
                    assert_eq!(answer.status, 200);
                    let allowed: Vec<_> =
                        (oldest..=newest).map(|swap| format!("Hello, v{:05}!", swap % VARIANTS)).collect();
                    assert!(allowed.contains(&answer.text()), "{} is not among {allowed:?}", answer.text());
                    served += 1;
                }
                served
            })
        })
        .collect();
    for swap in VARIANTS..VARIANTS + SWAPS {
        let before = cage.version("interface_web");
        old.push(serving());
        begun.store(swap, SeqCst);
        cage.deploy("interface_web", &variants[swap % VARIANTS]);
        cage.swapped("interface_web", before).await;
        visible.store(swap, SeqCst);
    }
    stop.store(true, SeqCst);
    let mut served = 0;
    for client in clients {
        served += client.await.expect("a client saw only answers of its time");
    }
    assert!(served > SWAPS, "{served} requests are too few to show anything");
    assert_eq!(cage.version("interface_web"), Some((1 + VARIANTS + SWAPS) as u64));
    // Old versions are gone with all that they held, instances and code; the one that serves is not.
    assert_eq!(old.len(), VARIANTS + SWAPS);
    let kept = || old.iter().filter(|version| version.strong_count() > 0).count();
    eventually("the end of all old versions", || (kept() == 0).then_some(())).await;
    assert!(serving().strong_count() > 0);
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replacements_within_a_moment_end_with_the_second() {
    let cage = started().await;
    let client = cage.client("web");
    cage.deploy("interface_web", &greeting(1));
    cage.deploy("interface_web", &greeting(2));
    answers(&client, "Hello, v00002!").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_copy_is_taken_when_it_is_complete() {
    use std::io::Write as _;
    let cage = started().await;
    let client = cage.client("web");
    let bytes = greeting(3);
    let mut file = std::fs::File::create(cage.directory().join("interface_web.wasm")).unwrap();
    for piece in bytes.chunks(bytes.len() / 5) {
        file.write_all(piece).unwrap();
        file.sync_all().unwrap();
        // Meanwhile the old version serves.
        assert_eq!(client.get("/").await.text(), "Hello, world !");
    }
    drop(file);
    answers(&client, "Hello, v00003!").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_leaves_the_old_version_serving() {
    let cage = started().await;
    let client = cage.client("web");
    let bytes = greeting(4);
    cage.deploy("interface_web", &bytes[..bytes.len() / 2]);
    let reason = cage.refused("interface_web").await;
    assert!(reason.contains("interface_web.wasm") && reason.contains("not a valid component"), "{reason}");
    assert_eq!(client.get("/").await.text(), "Hello, world !");
    // The rest of it heals.
    cage.deploy("interface_web", &bytes);
    answers(&client, "Hello, v00004!").await;
    assert_eq!(cage.refusal("interface_web"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_content_again_is_no_new_version() {
    let cage = started().await;
    cage.deploy("interface_web", &std::fs::read(guest("hello")).unwrap());
    cage.deploy("other", &greeting(5));
    // When the second file has been loaded, the first has been looked at, too.
    cage.swapped("other", None).await;
    assert_eq!(cage.version("interface_web"), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_private_file_brings_the_shared_one_back() {
    let test = TestCage::new();
    let shared = test.directory().parent().unwrap().join(".shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("interface_web.wasm"), greeting(6)).unwrap();
    let cage = test.file("interface_web", &greeting(7)).http("web").start().await;
    let client = cage.client("web");
    assert_eq!(client.get("/").await.text(), "Hello, v00007!");
    std::fs::remove_file(cage.directory().join("interface_web.wasm")).unwrap();
    answers(&client, "Hello, v00006!").await;
    // With neither file, requests are turned away.
    std::fs::remove_file(shared.join("interface_web.wasm")).unwrap();
    eventually("the module's end", || cage.version("interface_web").is_none().then_some(())).await;
    let answer = client.get("/x").await;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_symlink_is_followed() {
    use std::os::unix::fs::symlink;
    let test = TestCage::new();
    let releases = test.directory().parent().unwrap().join("releases");
    std::fs::create_dir(&releases).unwrap();
    for number in [8, 9] {
        std::fs::write(releases.join(format!("{number}.wasm")), greeting(number)).unwrap();
    }
    symlink(releases.join("8.wasm"), test.directory().join("interface_web.wasm")).unwrap();
    let cage = test.http("web").start().await;
    let client = cage.client("web");
    assert_eq!(client.get("/").await.text(), "Hello, v00008!");
    let link = cage.directory().join(".next");
    symlink(releases.join("9.wasm"), &link).unwrap();
    std::fs::rename(link, cage.directory().join("interface_web.wasm")).unwrap();
    answers(&client, "Hello, v00009!").await;
    // The target itself changes: no notification comes from here, the slow poll finds it.
    std::fs::write(releases.join("9.wasm"), greeting(10)).unwrap();
    answers(&client, "Hello, v00010!").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_what_is_in_use_is_refused() {
    let cage = started().await;
    let client = cage.client("web");
    cage.deploy("interface_web", &std::fs::read(guest("calculator")).unwrap());
    let reason = cage.refused("interface_web").await;
    assert!(reason.contains("no longer exports a handler") && reason.contains("compatible = false"), "{reason}");
    assert_eq!(client.get("/").await.text(), "Hello, world !");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_modules_start_and_each_can_be_swapped() {
    let mut test = TestCage::new().http("web");
    let hello = greeting(11);
    for number in 0..500 {
        test = test.file(&format!("module{number}"), &hello);
    }
    let cage = test.module("hello", "interface_web").start().await;
    eventually("500 modules", || (cage.host().cage(cage.name())?.modules().names().len() == 501).then_some(())).await;
    cage.deploy("module499", &greeting(12));
    assert_eq!(cage.swapped("module499", Some(1)).await, 2);
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
}
