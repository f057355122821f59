//! What all links of a cage have in common, whichever side has made the connection: the greeting and its check, the
//! limits, and the handler of the peer's calls.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{LanInner, with_inner};
use crate::envelope::{self, Message};
use crate::fabric::CallHandler;
use crate::link::frame::Hello;
use crate::link::{Link, LinkHandler, SessionLimits};
use wasmcage_core::call::COMMAND_LINE;
use wasmcage_core::error::DispatchError;
use wasmcage_core::request::Payload;
use wasmcage_core::task::catch_panic_async;
use wasmcage_core::telemetry::Throttle;

/// Lists of members that are taken in of one connection within `MEMBER_LISTS_PERIOD`; further ones are ignored.
const MEMBER_LISTS_MAX: u64 = 20;
const MEMBER_LISTS_PERIOD: Duration = Duration::from_secs(10);

/// Handles the calls and member lists that come over one link.
pub(super) struct LanHandler {
    inner: Weak<LanInner>,
    cage: Arc<str>,
    /// The peer's cage: named by its certificate, or by its greeting on this machine.
    peer: Arc<str>,
    /// None where this side made the connection only to call.
    handler: Option<Arc<dyn CallHandler>>,
    body_bytes_max: usize,
    member_lists: Throttle,
}

impl LanInner {
    pub(super) fn hello(&self, reverse: bool) -> Hello {
        Hello {
            copy: self.local.copy.0,
            flock: self.local.flock.to_string(),
            cage: self.local.cage.to_string(),
            node: self.local.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen_port: self.listening.lock().map(|listening| listening.port()),
            reverse,
        }
    }

    /// Returns why the peer is refused; none if its greeting is accepted. `cage` is the cage that was wanted, or that the
    /// peer's certificate names.
    pub(super) fn greeting_mismatch(&self, hello: &Hello, cage: Option<&str>) -> Option<String> {
        if hello.flock != *self.local.flock {
            return Some(format!(
                "this is cage {} of flock {}, not of flock {}",
                self.local.cage, self.local.flock, hello.flock
            ));
        }
        if let Some(cage) = cage.filter(|cage| *cage != hello.cage) {
            return Some(format!("cage {cage} was expected, cage {} greeted", hello.cage));
        }
        // Without a certificate the peer is a process of this machine and user, such as the command line.
        let operator = cage.is_none() && hello.cage == COMMAND_LINE && !hello.reverse;
        if !operator && !wasmcage_config::is_name(&hello.cage) {
            return Some(format!("{:?} cannot name a cage", hello.cage));
        }
        (hello.copy == self.local.copy.0).then(|| "this is the same copy".to_owned())
    }

    pub(super) fn session_limits(&self) -> SessionLimits {
        SessionLimits {
            body_bytes_max: self.limits.body_bytes_max,
            calls_max: self.limits.calls_per_peer_max,
            assembly_bytes_max: 2 * self.limits.body_bytes_max,
        }
    }

    /// Remembers an inbound connection until it closes. Returns false when the drain has begun.
    pub(super) fn add_inbound(&self, link: &Link) -> bool {
        let mut inbound = self.inbound.lock();
        inbound.links.retain(|link| !link.is_closed());
        inbound.links.push(link.clone());
        !inbound.draining
    }
}

impl LanHandler {
    pub(super) fn new(inner: &Arc<LanInner>, peer: Arc<str>, handler: Option<Arc<dyn CallHandler>>) -> Arc<Self> {
        let (cage, body_bytes_max) = (inner.local.cage.clone(), inner.limits.body_bytes_max);
        let member_lists = Throttle::new(MEMBER_LISTS_MAX, MEMBER_LISTS_PERIOD);
        Arc::new(Self { inner: Arc::downgrade(inner), cage, peer, handler, body_bytes_max, member_lists })
    }

    async fn serve(&self, message: Message) -> Result<Payload, DispatchError> {
        let handler = self.handler.as_ref().ok_or(DispatchError::Draining)?;
        let call = envelope::decode_call(message, &self.peer);
        let call = call.map_err(|error| DispatchError::BadRequest(error.to_string()))?;
        if *call.cage != *self.cage {
            return Err(DispatchError::NoSuchCage(format!("this is cage {}, not {}", self.cage, call.cage)));
        }
        handler.serve(call).await
    }
}

impl LinkHandler for LanHandler {
    async fn answer(&self, call: Message) -> Message {
        // Also a panic is answered: the caller would wait until its deadline.
        let served = catch_panic_async(self.serve(call)).await.unwrap_or_else(|panic| {
            with_inner(&self.inner, |inner| inner.tasks.report("rpc: a call from elsewhere", &panic));
            Err(DispatchError::Host("panicked".into()))
        });
        envelope::encode_answer(served, self.body_bytes_max)
    }

    fn members_received(&self, members: &[u8]) {
        if self.member_lists.pass().is_some() {
            with_inner(&self.inner, |inner| inner.add_gossip(&self.peer, members));
        }
    }
}
