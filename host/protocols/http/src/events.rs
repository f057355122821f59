//! What an HTTP interface tells its operator: one function per event, which logs and counts it. Called by every other file
//! of this folder. What outsiders can cause at will is logged seldom, with the number of lines left out, or at debug.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tracing::{debug, error, info, warn};

use wasmcage_core::body_budget::NoRoom;
use wasmcage_core::request::{RequestContext, RequestId};
use wasmcage_core::task::Panic;
use wasmcage_core::telemetry::{Throttle, error_chain};

/// The events of one interface.
pub(super) struct Events {
    cage: Arc<str>,
    interface: Arc<str>,
    refused: Throttle,
    accept: Throttle,
    reply: Throttle,
    route: Throttle,
    missing: Throttle,
    room: Throttle,
}

impl Events {
    pub(super) fn new(cage: Arc<str>, interface: Arc<str>) -> Self {
        let seldom = Throttle::seldom;
        Self {
            cage,
            interface,
            refused: seldom(),
            accept: seldom(),
            reply: seldom(),
            route: seldom(),
            missing: seldom(),
            room: seldom(),
        }
    }

    pub(super) fn stopped(&self, connections: usize) {
        info!(cage = %self.cage, interface = %self.interface, connections, "interface stopped listening");
    }

    /// The limit on connections is reached: this one was closed unread.
    pub(super) fn connection_refused(&self, connections_max: usize) {
        self.refused.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, connections_max, suppressed, "connections refused");
        });
    }

    /// The process or the machine is out of something; the intake goes on after a pause.
    pub(super) fn accept_failed(&self, error: &io::Error) {
        self.accept.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, %error, suppressed, "connection not accepted");
        });
    }

    pub(super) fn connection_ended(&self, peer: SocketAddr, error: &dyn Display) {
        debug!(cage = %self.cage, interface = %self.interface, address = %peer, %error, "connection ended");
    }

    /// A tunnel over HTTP/2 was cut. What its module did wrong has been told by the dispatcher.
    pub(super) fn tunnel_cut(&self, request: RequestId, peer: IpAddr, error: &dyn std::error::Error) {
        let error = error_chain(error);
        debug!(
            cage = %self.cage, interface = %self.interface, address = %peer, error, request = %tail(request), "tunnel cut"
        );
    }

    /// A request's panic has been caught before; this is one of the connection itself.
    pub(super) fn connection_panicked(&self, peer: SocketAddr, panic: &Panic) {
        error!(cage = %self.cage, interface = %self.interface, address = %peer, error = %panic, "connection panicked");
    }

    pub(super) fn handshake_failed(&self, peer: SocketAddr, error: &dyn Display) {
        debug!(cage = %self.cage, interface = %self.interface, address = %peer, %error, "tls handshake failed");
    }

    pub(super) fn certificates_changed(&self, file: &Path) {
        info!(cage = %self.cage, interface = %self.interface, file = %file.display(), "certificate reloaded");
    }

    /// The files changed into something unusable; the old certificate serves on. Once per content of the files.
    pub(super) fn certificates_kept(&self, error: &dyn std::error::Error) {
        let error = error_chain(error);
        warn!(cage = %self.cage, interface = %self.interface, error, "certificate not reloaded");
    }

    /// Answered here, without a module: the client's fault or its absence.
    pub(super) fn turned_away(&self, request: RequestId, peer: IpAddr, code: &str, detail: &str) {
        debug!(
            cage = %self.cage, interface = %self.interface, address = %peer, code, error = detail, request = %tail(request),
            "request turned away"
        );
    }

    /// There is a module, and it cannot serve this interface.
    pub(super) fn not_routed(&self, request: RequestId, module: &str, error: &dyn Display) {
        if let Some(suppressed) = self.route.pass() {
            error!(
                cage = %self.cage, interface = %self.interface, module, %error, suppressed, request = %tail(request),
                "request not routed"
            );
        }
    }

    /// A request was turned away because the module is compiling, was refused, or has gone.
    pub(super) fn no_module(&self, request: RequestId, module: &str) {
        self.missing.log(|suppressed| {
            warn!(
                cage = %self.cage, interface = %self.interface, module, suppressed, request = %tail(request),
                "request turned away, no version of the module serves"
            );
        });
    }

    /// The module answered with something that HTTP cannot carry.
    pub(super) fn reply_unfit(&self, context: &RequestContext, module: &str, error: &dyn Display) {
        self.reply.log(|suppressed| {
            warn!(
                cage = %self.cage, interface = %self.interface, module, %error, suppressed, request = %context.tail(),
                "reply not sendable"
            );
        });
    }

    /// The budget for bodies has no fair share left for a request's.
    pub(super) fn no_room_for_body(&self, error: NoRoom) {
        self.room.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, %error, suppressed, "request's body refused");
        });
    }

    /// Nor for an answer, though the module has done its work.
    pub(super) fn no_room_for_reply(&self, context: &RequestContext, module: &str, error: NoRoom) {
        self.room.log(|suppressed| {
            warn!(
                cage = %self.cage, interface = %self.interface, module, %error, suppressed, request = %context.tail(),
                "answer's body refused"
            );
        });
    }

    pub(super) fn panicked(&self, request: RequestId, panic: &Panic) {
        error!(
            cage = %self.cage, interface = %self.interface, error = %panic, request = %tail(request),
            "request panicked"
        );
    }
}

/// How a line about a request ends that has no context yet.
fn tail(request: RequestId) -> impl Display {
    std::fmt::from_fn(move |f| write!(f, "RQ-{}", request.short()))
}
