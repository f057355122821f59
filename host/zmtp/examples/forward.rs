//! What `zmq.proxy` does: passes messages from the peers of a ROUTER to those of a DEALER, and back.
//!
//! `examples/forward.py` runs it against libzmq. Alone: `forward [one-thread]` prints the two endpoints and runs until its input ends.

use std::io::{Read as _, Write as _};

use zmtp::{Endpoint, Options, Receiver, Sender, Socket};

async fn pass(mut from: Receiver, to: Sender) {
    while let Ok(message) = from.recv().await {
        if let Err(error) = to.send(message).await {
            eprintln!("{error}");
        }
    }
}

async fn forward() {
    let local: Endpoint = "tcp://127.0.0.1:0".parse().expect("it is one");
    let (front, back) = (Socket::router(Options::default()), Socket::dealer(Options::default()));
    let front_bound = front.bind(&local).await.expect("a port is free");
    let back_bound = back.bind(&local).await.expect("a port is free");
    writeln!(std::io::stdout(), "{front_bound} {back_bound}").expect("somebody reads");
    let ((front_tx, front_rx), (back_tx, back_rx)) = (front.split(), back.split());
    tokio::spawn(pass(front_rx, back_tx));
    tokio::spawn(pass(back_rx, front_tx));
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = ended.await;
}

fn main() {
    let mut runtime = match std::env::args().nth(1).as_deref() {
        Some("one-thread") => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.enable_all().build().expect("a runtime starts").block_on(forward());
}
