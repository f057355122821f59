//! Swaps under load, among which come broken, truncated and missing files: every request is answered by a version that was
//! good, and the last good file serves in the end. `WASMCAGE_SWAPS` sets how many.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use wasmcage_tests::{TestCage, guest};

const SWAPS: usize = 24;

fn greeting(number: usize) -> Vec<u8> {
    let from = b"Hello, world !";
    let to = format!("Hello, f{number:05}!");
    let mut bytes = fs::read(guest("hello")).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the greeting in the component");
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_and_truncated_files_between_good_ones_cost_no_request() {
    let swaps: usize = std::env::var("WASMCAGE_SWAPS").map_or(SWAPS, |text| text.parse().expect("a number"));
    let cage = TestCage::new()
        .config("request_timeout_ms = 60_000")
        .file("interface_web", &greeting(0))
        .http("web")
        .start()
        .await;
    cage.swapped("interface_web", None).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (cage.client("web"), stop.clone());
            tokio::spawn(async move {
                let mut served = 0_usize;
                while !stop.load(SeqCst) {
                    let answer = client.get("/").await;
                    assert!(answer.status == 200 && answer.text().starts_with("Hello, f"), "{}", answer.text());
                    served += 1;
                }
                served
            })
        })
        .collect();
    let file = cage.directory().join("interface_web.wasm");
    for swap in 1..=swaps {
        let good = greeting(swap % 4);
        match swap % 4 {
            // In place, half of it, and then the rest.
            0 => {
                fs::write(&file, &good[..good.len() / 2]).unwrap();
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            1 => cage.deploy("interface_web", b"\0asm\x0d\0\x01\0 and no component"),
            2 => fs::write(&file, "").unwrap(),
            // Removed to be replaced.
            _ => {
                fs::remove_file(&file).unwrap();
                // A removal counts after a second; a busy machine needs most of it for this sleep.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        cage.deploy("interface_web", &good);
        let text = format!("Hello, f{:05}!", swap % 4);
        let until = tokio::time::Instant::now() + Duration::from_secs(60);
        while cage.client("web").get("/").await.text() != text {
            assert!(tokio::time::Instant::now() < until, "version {swap} does not serve: {}", cage.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    stop.store(true, SeqCst);
    let mut served = 0;
    for client in clients {
        served += client.await.expect("every request was answered by a good version");
    }
    assert!(served > swaps, "{served} requests are too few to show anything");
    assert!(!cage.log().contains("module removed"), "{}", cage.log());
    assert!(cage.stop().await);
}
