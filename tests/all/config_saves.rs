//! `cage.toml` may be saved in place, by steps, under load: nobody notices. `WASMCAGE_SAVES` sets how often (300 for a long
//! run), `WASMCAGE_SAVE_PAUSE_MS` the pause between the steps of one save.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use wasmcage_tests::{Client, TestCage, eventually};

const SAVES: usize = 12;
const PAUSE_MS: usize = 300;

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The ways in which programs save a file in place.
fn save(file: &Path, text: &str, way: usize, pause: Duration) {
    let (first, second) = text.as_bytes().split_at(text.len() / 2);
    match way % 4 {
        // Emptied and written by one program.
        0 => {
            let mut file = File::create(file).unwrap();
            std::thread::sleep(pause);
            file.write_all(text.as_bytes()).unwrap();
        }
        // Emptied by one, written by another.
        1 => {
            File::create(file).unwrap();
            std::thread::sleep(pause);
            fs::write(file, text).unwrap();
        }
        // Written in two pieces.
        2 => {
            let mut file = File::create(file).unwrap();
            file.write_all(first).unwrap();
            std::thread::sleep(pause);
            file.write_all(second).unwrap();
        }
        // Removed and made anew.
        _ => {
            fs::remove_file(file).unwrap();
            std::thread::sleep(pause);
            fs::write(file, text).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn saves_in_place_refuse_no_connection() {
    let (saves, pause) = (variable("WASMCAGE_SAVES", SAVES), variable("WASMCAGE_SAVE_PAUSE_MS", PAUSE_MS));
    // The port must stay the same over all saves: one that the system gave.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = |number: usize| {
        format!(
            "[interfaces.web]\nprotocol = \"http\"\nlisten = \"127.0.0.1:{port}\"\nmodule = \"hello\"\n# {}\n\
             [modules.other.state]\nmax_mb = {}\n",
            "x".repeat(200),
            number + 1,
        )
    };
    let cage = TestCage::new().config(&text(0)).module("hello", "hello").start().await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served) = (stop.clone(), served.clone());
            tokio::spawn(async move {
                while !stop.load(SeqCst) {
                    // A connection of its own for each request: one that is refused is a panic.
                    let answer = Client::new(&format!("127.0.0.1:{port}")).get("/").await;
                    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "Hello, world !"));
                    served.fetch_add(1, SeqCst);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    let file = cage.directory().join("cage.toml");
    for number in 1..=saves {
        let (file, text) = (file.clone(), text(number));
        let pause = Duration::from_millis(pause as u64);
        tokio::task::spawn_blocking(move || save(&file, &text, number, pause)).await.unwrap();
        assert!(!clients.iter().any(tokio::task::JoinHandle::is_finished), "a client was refused at save {number}");
    }
    // The last one is taken.
    let last = (saves as u64 + 1) << 20;
    let applied = || (cage.host().cage(cage.name())?.state_quota()("other").bytes == last).then_some(());
    eventually("the last configuration", applied).await;
    stop.store(true, SeqCst);
    for client in clients {
        client.await.expect("every request was answered");
    }
    let log = cage.log();
    assert!(!log.contains("interface is stopping") && !log.contains("cage.toml refused"), "{log}");
    assert!(served.load(SeqCst) > saves, "{} requests are too few to show anything", served.load(SeqCst));
    assert!(cage.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_after_an_empty_one_leaves_what_was_before_both() {
    let cage = TestCage::new().http("web").module("hello", "interface_web").start().await;
    let file = cage.directory().join("cage.toml");
    fs::write(&file, "").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    fs::write(&file, "[interfaces.web\n").unwrap();
    cage.logged("cage.toml refused").await;
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    assert!(!cage.log().contains("interface is stopping"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_leads_nowhere_is_a_mistake_and_changes_nothing() {
    let cage = TestCage::new().http("web").module("hello", "interface_web").start().await;
    let link = cage.directory().join(".link");
    std::os::unix::fs::symlink("nowhere.toml", &link).unwrap();
    fs::rename(link, cage.directory().join("cage.toml")).unwrap();
    let log = cage.logged("cage.toml refused").await;
    assert!(log.contains("a link to nowhere.toml, which does not exist"), "{log}");
    assert_eq!(cage.client("web").get("/").await.text(), "Hello, world !");
    // The target comes: what was refused is read again without anybody telling.
    fs::write(cage.directory().join("nowhere.toml"), "log_level = \"debug\"\n").unwrap();
    cage.logged("cage.toml applied").await;
}
