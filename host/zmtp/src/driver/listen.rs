//! Accepting connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::gate::{Origin, origin};
use super::link::{Link, Start};
use super::pipe::{End, Pipe};
use super::shared::{Activity, Shared};
use super::stream::{Listener, Stream};
use super::tasks::contained;
use crate::endpoint::Endpoint;
use crate::event::{DisconnectReason, Event, count};

/// After accepting failed for lack of something, such as file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts until told to stop. The connections go on without it.
pub(crate) async fn run(shared: Arc<Shared>, listener: Listener, endpoint: Endpoint, activity: Arc<Activity>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = activity.stopped() => return,
        };
        match accepted {
            Ok(stream) => {
                admit(&shared, stream, &endpoint);
                // Handshakes go on while others come, or the newest would drive out the oldest before these had a chance.
                tokio::task::yield_now().await;
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                shared.tell(Event::AcceptFailed { endpoint: endpoint.clone(), error: Arc::new(error) });
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = activity.stopped() => return,
                }
            }
        }
    }
}

/// Whether the next connection may well be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, InvalidInput, NotConnected};
    // The last two: options cannot be set on a stream that its peer has reset.
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | InvalidInput | NotConnected)
}

/// Ends with the connection's task, however that ends.
struct Accepted {
    shared: Arc<Shared>,
    pipe: Arc<Pipe>,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.shared.accepted.lock().remove(&self.pipe.id);
    }
}

fn admit(shared: &Arc<Shared>, stream: Stream, endpoint: &Endpoint) {
    let pipe = shared.new_pipe();
    let address = stream.address();
    let from: Origin = address.map(|address| origin(address.ip()));
    let Some(ticket) = shared.gate.enter(from, pipe.clone()) else {
        count(&shared.counting.refused, 1);
        let reason = DisconnectReason::TooManyConnections;
        return shared.tell(Event::HandshakeFailed { endpoint: endpoint.clone(), address, reason });
    };
    shared.accepted.lock().insert(pipe.id, pipe.clone());
    if shared.is_closed() {
        // Closing may have passed over it.
        pipe.end(End::Kill(DisconnectReason::ClosedHere));
    }
    let accepted = Accepted { shared: shared.clone(), pipe: pipe.clone() };
    let start = Start { stream, endpoint: endpoint.clone(), pipe, kept: false, ticket: Some(ticket) };
    let link = Link::new(shared.clone(), start);
    shared.spawn(async move {
        let shared = accepted.shared.clone();
        let _accepted = accepted;
        if let Err(message) = contained(link.run()).await {
            shared.panicked(message);
        }
    });
}
