//! The log lines of this crate: one function per event. Events that a client can cause at will are throttled, and a
//! line says how many were suppressed before it; or they are logged at debug level.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use tracing::{debug, error, info, warn};

use wasmcage_core::body_budget::NoRoom;
use wasmcage_core::request::{RequestContext, RequestId};
use wasmcage_core::task::{Panic, Tasks};
use wasmcage_core::telemetry::{Throttle, error_chain};

/// The events of one interface.
pub(super) struct HttpEvents {
    cage: Arc<str>,
    interface: Arc<str>,
    refused: Throttle,
    accept: Throttle,
    reply: Throttle,
    route: Throttle,
    missing: Throttle,
    room: Throttle,
    /// Counts panics.
    tasks: Tasks,
}

impl HttpEvents {
    pub(super) fn new(cage: Arc<str>, interface: Arc<str>, tasks: Tasks) -> Self {
        let throttle = Throttle::seldom;
        Self {
            cage,
            interface,
            refused: throttle(),
            accept: throttle(),
            reply: throttle(),
            route: throttle(),
            missing: throttle(),
            room: throttle(),
            tasks,
        }
    }

    pub(super) fn stopped(&self, connections: usize) {
        info!(cage = %self.cage, interface = %self.interface, connections, "interface stopped listening");
    }

    /// A connection was closed unread at the limit on connections.
    pub(super) fn connection_refused(&self, connections_max: usize) {
        self.refused.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, connections_max, suppressed, "connections refused");
        });
    }

    /// The process or the machine is short of a resource; accepting continues after a pause.
    pub(super) fn accept_failed(&self, error: &io::Error) {
        self.accept.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, %error, suppressed, "connection not accepted");
        });
    }

    pub(super) fn connection_ended(&self, peer: SocketAddr, error: &dyn Display) {
        debug!(cage = %self.cage, interface = %self.interface, address = %peer, %error, "connection ended");
    }

    /// A tunnel over HTTP/2 was cut. If its module failed, the dispatcher has logged that.
    pub(super) fn tunnel_cut(&self, request: RequestId, peer: IpAddr, error: &dyn std::error::Error) {
        let error = error_chain(error);
        debug!(
            cage = %self.cage, interface = %self.interface, address = %peer, error, request = %tail(request), "tunnel cut"
        );
    }

    /// The connection's own task panicked; a panic of a request is `panicked`.
    pub(super) fn connection_panicked(&self, peer: SocketAddr, panic: &Panic) {
        error!(cage = %self.cage, interface = %self.interface, address = %peer, error = %panic, "connection panicked");
        self.tasks.count(&format!("a connection of interface {}", self.interface), panic);
    }

    pub(super) fn handshake_failed(&self, peer: SocketAddr, error: &dyn Display) {
        debug!(cage = %self.cage, interface = %self.interface, address = %peer, %error, "tls handshake failed");
    }

    pub(super) fn certificates_changed(&self, file: &Path) {
        info!(cage = %self.cage, interface = %self.interface, file = %file.display(), "certificate reloaded");
    }

    /// The files have changed and cannot be used; the old certificate stays in use. It is logged once for each content
    /// of the files.
    pub(super) fn certificates_kept(&self, error: &dyn std::error::Error) {
        let error = error_chain(error);
        warn!(cage = %self.cage, interface = %self.interface, error, "certificate not reloaded");
    }

    /// The interface refused a request because of the client, without a module.
    pub(super) fn request_refused(&self, request: RequestId, peer: IpAddr, code: &str, detail: &str) {
        debug!(
            cage = %self.cage, interface = %self.interface, address = %peer, code, error = detail, request = %tail(request),
            "request turned away"
        );
    }

    /// There is a module, but it cannot serve this interface.
    pub(super) fn not_routed(&self, request: RequestId, module: &str, error: &dyn Display) {
        if let Some(suppressed) = self.route.pass() {
            error!(
                cage = %self.cage, interface = %self.interface, module, %error, suppressed, request = %tail(request),
                "request not routed"
            );
        }
    }

    /// A request was refused because the module is compiling, cannot be loaded, or was removed.
    pub(super) fn no_module(&self, request: RequestId, module: &str) {
        self.missing.log(|suppressed| {
            warn!(
                cage = %self.cage, interface = %self.interface, module, suppressed, request = %tail(request),
                "request turned away, no version of the module serves"
            );
        });
    }

    /// HTTP cannot carry the module's response.
    pub(super) fn invalid_reply(&self, context: &RequestContext, module: &str, error: &dyn Display) {
        self.reply.log(|suppressed| {
            warn!(
                cage = %self.cage, interface = %self.interface, module, %error, suppressed, request = %context.tail(),
                "reply not sendable"
            );
        });
    }

    /// The memory budget for bodies has no fair share left for a request's body.
    pub(super) fn no_room_for_body(&self, error: NoRoom) {
        self.room.log(|suppressed| {
            warn!(cage = %self.cage, interface = %self.interface, %error, suppressed, "request's body refused");
        });
    }

    /// The memory budget for bodies has no fair share left for a response, though the module has done its work.
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
        self.tasks.count(&format!("a request of interface {}", self.interface), panic);
    }
}

/// The end of a log line about a request that has no context yet.
fn tail(request: RequestId) -> impl Display {
    std::fmt::from_fn(move |f| write!(f, "RQ-{}", request.short()))
}
