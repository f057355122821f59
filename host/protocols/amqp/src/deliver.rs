//! The way of one delivery: checked, handled in the interface's format (`raw_delivery.rs`, `postage_delivery.rs`),
//! replied to. `consume.rs` calls this file and settles the delivery last, by the verdict that comes back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::config::{AmqpConfig, Format};
use super::events::AmqpEvents;
use super::interface::InterfaceCommand;
use super::link::LiveConnection;
use super::replies::{ReplySender, SendError};
use super::value::check_frame;
use super::verdict::DeliveryVerdict;
use wasmcage_core::error::DispatchError;
use wasmcage_core::readings;
use wasmcage_core::request::{Deadline, Facts, Reply, Request, RequestContext};
use wasmcage_core::task::Panic;
use wasmcage_protocol::InterfaceContext;

/// The pause before a message goes back to its queue for a fault that is not its own. The broker delivers it again at
/// once.
const RETURN_PAUSE: Duration = Duration::from_millis(500);

/// The state that all deliveries of an interface share.
pub(super) struct DeliveryReceiver {
    pub(super) config: AmqpConfig,
    pub(super) cx: InterfaceContext,
    pub(super) events: AmqpEvents,
    replies: ReplySender,
    pub(super) commands: mpsc::Sender<InterfaceCommand>,
    /// The groups that the application is a member of now.
    pub(super) groups: Mutex<BTreeSet<String>>,
}

impl DeliveryReceiver {
    pub(super) fn new(
        config: AmqpConfig,
        cx: InterfaceContext,
        events: AmqpEvents,
        replies: ReplySender,
        commands: mpsc::Sender<InterfaceCommand>,
    ) -> Self {
        let groups = config.application.as_ref().map(|application| application.groups.clone()).unwrap_or_default();
        Self { config, cx, events, replies, commands, groups: Mutex::new(groups) }
    }

    /// Reports a panic of the host while it handled a message of this queue.
    pub(super) fn report_panic(&self, queue: &str, panic: &Panic) {
        let part = format!("interface {}, queue {queue}", self.cx.endpoint.interface);
        self.cx.tasks.report(&part, panic);
    }

    /// Handles a delivery and returns how it is to be settled.
    pub(super) async fn receive(&self, queue: &str, delivery: Delivery, live: &LiveConnection) -> DeliveryVerdict {
        if let Some(reason) = live.withheld_reason(&delivery.properties) {
            self.events.message_withheld(queue, reason, self.config.broker.body_bytes_max);
            self.count(readings::Outcome::BadRequest);
            return DeliveryVerdict::Reject;
        }
        let verdict = match self.config.format {
            Format::Raw => self.receive_raw(delivery).await,
            Format::Postage => self.receive_postage(delivery).await,
        };
        if verdict == DeliveryVerdict::Return {
            tokio::select! {
                () = tokio::time::sleep(RETURN_PAUSE) => {}
                () = self.cx.drain.stopping() => {}
            }
        }
        verdict
    }

    /// Calls the interface's module.
    pub(super) async fn handle(
        &self,
        context: Arc<RequestContext>,
        action: &str,
        target: String,
        headers: Vec<(String, String)>,
        body: Bytes,
    ) -> Result<Reply, DispatchError> {
        let InterfaceContext { dispatch, endpoint, .. } = &self.cx;
        let Some(route) = dispatch.route()? else {
            self.events.no_module(&endpoint.module);
            endpoint.count_without_module();
            return Err(DispatchError::NoSuchModule(endpoint.module.to_string()));
        };
        let request = Request { context, action: action.to_owned(), target, headers, body, body_room: None };
        dispatch.handle(route, request).await
    }

    /// Sends the reply if the request asks for one. Returns `verdict` once the broker has confirmed the reply; if it
    /// has not, the request has to be handled again, or is rejected if its reply can never be sent.
    pub(super) async fn reply(
        &self,
        request: &BasicProperties,
        reply: BasicProperties,
        body: &[u8],
        context: &RequestContext,
        verdict: DeliveryVerdict,
    ) -> DeliveryVerdict {
        let Some(reply_to) = request.reply_to() else { return verdict };
        // The module may have used all of the request's time.
        let deadline = context.deadline.max(Deadline::after(RETURN_PAUSE));
        match self.replies.send(reply_to, correlated(request, reply), body, deadline).await {
            Ok(()) => verdict,
            Err(SendError::Permanent(why)) => {
                self.events.invalid_reply(&why, &context.tail());
                DeliveryVerdict::Reject
            }
            Err(SendError::Temporary(why)) => {
                self.events.reply_failed(&why);
                DeliveryVerdict::Return
            }
        }
    }

    /// The properties of a reply to this request.
    ///
    /// # Errors
    /// They do not fit into one frame.
    pub(super) fn checked_reply(
        &self,
        request: &BasicProperties,
        reply: BasicProperties,
    ) -> Result<BasicProperties, String> {
        let reply = correlated(request, reply);
        check_frame(&reply, self.replies.frame_bytes_max()).map(|()| reply)
    }

    pub(super) fn context(&self, properties: &BasicProperties) -> Arc<RequestContext> {
        let endpoint = &self.cx.endpoint;
        let mut facts = Facts::default();
        // RabbitMQ has compared this property with the user of the sender's connection.
        if let Some(user) = properties.user_id() {
            facts.set(Facts::USERNAME, user.as_str());
        }
        let interface = endpoint.interface.clone();
        Arc::new(RequestContext::new(interface, endpoint.protocol, endpoint.timeout(), Arc::new(facts)))
    }

    /// Counts a message that no module gets in the interface's readings.
    pub(super) fn count(&self, outcome: readings::Outcome) {
        let readings = &self.cx.endpoint.readings;
        readings.begin();
        readings.end(outcome, Duration::ZERO, Duration::ZERO);
    }
}

/// Gives a reply the request's correlation id and delivery mode (persistent or not).
fn correlated(request: &BasicProperties, mut reply: BasicProperties) -> BasicProperties {
    if let Some(correlation) = request.correlation_id() {
        reply = reply.with_correlation_id(correlation.clone());
    }
    match request.delivery_mode() {
        Some(mode) => reply.with_delivery_mode(*mode),
        None => reply,
    }
}
