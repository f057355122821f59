//! Making a connection, and making it again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::link::{Link, Outcome, Start};
use super::pipe::End;
use super::shared::{Activity, Shared};
use super::stream::Stream;
use super::tasks::contained;
use crate::endpoint::Endpoint;
use crate::event::{DisconnectReason, Event, count};

/// What a connection is made for: the place among the socket's peers that it keeps while there is no connection.
pub(crate) struct Dial {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    activity: Arc<Activity>,
}

impl Drop for Dial {
    fn drop(&mut self) {
        if let Some(pipe) = &self.activity.kept {
            self.shared.remove(pipe);
            self.shared.forget_request(pipe);
            self.shared.room.notify_waiters();
        }
        let mut dials = self.shared.dials.lock();
        // Another may have been made in its place.
        if dials.get(&self.endpoint).is_some_and(|known| Arc::ptr_eq(known, &self.activity)) {
            dials.remove(&self.endpoint);
        }
    }
}

impl Dial {
    /// Takes a place among the peers that are sent to in turn: RFC 28, "The DEALER Socket Type", and RFC 30, "The PUSH
    /// Socket Type", want a queue whether or not the connection is established.
    pub(crate) fn new(shared: Arc<Shared>, endpoint: Endpoint) -> (Self, Arc<Activity>) {
        let kept = shared.socket_type.takes_turns().then(|| shared.new_pipe());
        if let Some(pipe) = &kept {
            shared.ring.lock().pipes.push(pipe.clone());
            shared.room.notify_waiters();
        }
        let activity = Arc::new(Activity::new(kept));
        (Self { shared, endpoint, activity: activity.clone() }, activity)
    }

    /// Whether there is nothing to do any more: it was told to stop, and nothing waits to be sent.
    fn is_over(&self) -> bool {
        self.activity.is_stopped() && self.activity.kept.as_ref().is_none_or(|pipe| pipe.is_empty())
    }

    pub(crate) async fn run(self) {
        let linger = async {
            self.activity.stopped().await;
            tokio::time::sleep(self.shared.options.linger).await;
        };
        // What is being sent over a connection has the connection's own end of lingering, so this one comes after.
        tokio::select! {
            () = self.connect_again() => {}
            () = async { linger.await; tokio::time::sleep(Duration::from_millis(100)).await } => {}
        }
    }

    async fn connect_again(&self) {
        let reconnect = self.shared.options.reconnect.clone();
        let mut failures = 0_u32;
        while !self.is_over() {
            let Outcome { reason, connected } = self.attempt().await;
            if self.is_over() {
                return;
            }
            failures = match connected {
                Some(since) if since.elapsed() >= reconnect.good_after => 1,
                Some(_) | None => failures.saturating_add(1),
            };
            let pause = if reason.is_lasting() {
                reconnect.refused.map(crate::options::jittered)
            } else {
                Some(reconnect.pause(failures))
            };
            count(&self.shared.counting.retries, usize::from(pause.is_some()));
            self.shared.tell(Event::Retry { endpoint: self.endpoint.clone(), pause, failures });
            let Some(pause) = pause else {
                // Given up, but not forgotten: what waits to be sent stays until it is told to stop.
                return self.activity.stopped().await;
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.activity.stopped() => {
                    // What waits is worth an attempt without any further pause, and no more than one at a time.
                    if !self.is_over() {
                        tokio::time::sleep(pause.min(Duration::from_millis(100))).await;
                    }
                }
            }
        }
    }

    /// Connects, and lets the connection run to its end.
    async fn attempt(&self) -> Outcome {
        let connecting = timeout(self.shared.options.limits.handshake_timeout, Stream::connect(&self.endpoint));
        let connected = tokio::select! {
            connected = connecting => connected,
            // What waits may still be sent.
            () = self.stopped_empty() => return failed(DisconnectReason::ClosedHere),
        };
        let reason = match connected {
            Ok(Ok(stream)) => return self.hold(stream).await,
            Ok(Err(error)) => DisconnectReason::Io(Arc::new(error)),
            Err(_) => DisconnectReason::HandshakeTimeout,
        };
        count(&self.shared.counting.handshakes_failed, 1);
        let endpoint = self.endpoint.clone();
        self.shared.tell(Event::HandshakeFailed { endpoint, address: None, reason: reason.clone() });
        failed(reason)
    }

    async fn stopped_empty(&self) {
        self.activity.stopped().await;
        if !self.is_over() {
            std::future::pending::<()>().await;
        }
    }

    async fn hold(&self, stream: Stream) -> Outcome {
        let pipe = self.activity.kept.clone().unwrap_or_else(|| self.shared.new_pipe());
        let start = Start {
            stream,
            endpoint: self.endpoint.clone(),
            pipe: pipe.clone(),
            kept: self.activity.kept.is_some(),
            ticket: None,
        };
        let mut running = std::pin::pin!(contained(Link::new(self.shared.clone(), start).run()));
        let outcome = tokio::select! {
            outcome = &mut running => outcome,
            () = self.activity.stopped() => {
                pipe.end(End::Finish);
                running.await
            }
        };
        outcome.unwrap_or_else(|message| {
            self.shared.panicked(message);
            failed(DisconnectReason::Panicked)
        })
    }
}

fn failed(reason: DisconnectReason) -> Outcome {
    Outcome { reason, connected: None::<Instant> }
}
