//! AMQP where no broker is: nothing listens at its port, or something else does. Whoever waits learns why in time.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use wasmcage_tests::TestCage;

use crate::with_rabbitmq::failures::{EKS, asked};

/// Whoever waits for a broker has something left of its time when it learns that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_waits_for_a_broker_ends_before_its_callers_deadline() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let deadline = Duration::from_secs(4);
    let (error, took) = asked(&format!("host = '127.0.0.1'\nport = {nobody}\n{EKS}"), deadline).await;
    assert_eq!((error.code.as_str(), error.recoverable), ("connect", true), "{error}");
    assert!(error.text.contains("refused"), "{error}");
    assert!(took < deadline, "{took:?}");
}

/// A module that waits for a broker that is not there gets an error in time to answer by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_sees_why_its_message_was_not_sent() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cage = TestCage::new().module("amqp_sender", "interface_web").http("web").config(&format!(
        "timeout_ms = 5_000\n[modules.interface_web]\nallow = {{ resources = ['out'] }}\n[resources.out]\n\
         protocol = 'amqp'\nhost = '127.0.0.1'\nport = {nobody}\n{EKS}"
    ));
    let cage = cage.start().await;
    let answer = cage.client("web").get("/command?text=x").await;
    assert_eq!(answer.status, 500, "not 504: the module itself answered");
    cage.logged("request failed").await;
    assert!(cage.log().contains("connect: "), "{}", cage.log());
    // An operator sees the failure.
    let trouble = cage.snapshot().cages[0].resources[0].trouble.clone().expect("a trouble");
    assert!(trouble.contains(&nobody.to_string()) && trouble.contains("refused"), "{trouble}");
}

#[tokio::test(flavor = "multi_thread")]
async fn amqps_never_says_a_word_in_plain_text() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let first = tokio::task::spawn_blocking(move || {
        let mut first = [0];
        listener.accept().unwrap().0.read_exact(&mut first).unwrap();
        first[0]
    });
    let toml =
        format!("[interfaces.in]\nprotocol = 'amqp'\nurl = 'amqps://localhost:{}'\nqueues.q = {{}}", address.port());
    let _cage = TestCage::new().config(&toml).start().await;
    assert_eq!(first.await.unwrap(), 0x16, "the first byte is that of a TLS handshake");
}

/// Any program may answer at a broker's port.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_broker_is_told_and_survived() {
    let endless_frame = [1, 0, 0, 0xff, 0xff, 0xff, 0xff].repeat(10_000);
    for (bytes, told) in
        [(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "does not speak AMQP"), (endless_frame, "a frame of")]
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 8]);
                // Whoever has seen enough hangs up.
                let _ = stream.write_all(&bytes);
            }
        });
        let toml = format!("[interfaces.in]\nprotocol = 'amqp'\nurl = 'amqp://127.0.0.1:{port}'\nqueues.q = {{}}");
        let cage = TestCage::new().config(&toml).http("web").start().await;
        let log = cage.logged("broker cannot be reached").await;
        assert!(log.contains(told), "{log}");
        assert_eq!(cage.client("web").get("/").await.status, 200, "the cage serves on");
        assert!(cage.stop().await);
    }
}
