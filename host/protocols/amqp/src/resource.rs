//! Resource `amqp`: a producer of messages and a caller. A connection of its pool is a channel; all of them share the
//! cage's connection for publishing. In a transaction messages are published at its commit.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, ConfirmSelectOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::runtime::Handle;

use super::batch::BatchPublisher;
use super::broker::Broker;
use super::config::{Format, fingerprint, reply_exchange};
use super::link::{BrokerLink, LiveConnection, Purpose};
use super::message::ReplyContent;
use super::operation::{AmqpAction, Defaults, OutgoingMessage};
use super::producer::{failed, publish};
use super::raw::property_headers;
use super::rpc::{ReplyAddress, ReplyQueue, check_length, declare};
use super::topology::{ExchangeDeclaration, exchanges, is_the_brokers_own, key};
use super::value::short;
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, OperationReply, Phase, Resource, ResourceError};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// The most bytes of messages that wait for a transaction's commit.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// An operation stops waiting before its deadline, so that its caller still gets the error: by a tenth of its time, and
/// by this at most.
const REPORT_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) struct AmqpResource {
    broker: Broker,
    cage_directory: PathBuf,
    exchanges: Arc<[ExchangeDeclaration]>,
    defaults: Arc<Defaults>,
    /// The runtime that the connection's task runs on: the one on which this resource was made, if any.
    runtime: Option<Handle>,
    publisher: OnceLock<Arc<BatchPublisher>>,
    reply_route: Arc<ReplyRoute>,
}

/// How replies reach this resource.
struct ReplyRoute {
    /// The configured address.
    address: ReplyAddress,
    /// Set once the broker has refused direct reply-to.
    no_direct: AtomicBool,
}

impl ReplyRoute {
    fn address(&self) -> &ReplyAddress {
        match self.no_direct.load(Ordering::Relaxed) {
            true => &ReplyAddress::Queue,
            false => &self.address,
        }
    }
}

impl AmqpResource {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let broker = Broker::read(&section);
        let mut exchanges = exchanges(&section);
        let mut targets = Vec::new();
        for table in section.tables("eks") {
            let (exchange, key) = (table.required_string("exchange"), key(&table));
            let exchange = short(&exchange, "the name of an exchange").unwrap_or_else(|text| {
                table.problem("exchange", text);
                ShortString::default()
            });
            let _ = table.finish();
            if !is_the_brokers_own(exchange.as_str()) && !exchanges.iter().any(|known| known.name == exchange) {
                exchanges.push(ExchangeDeclaration::direct(exchange.clone()));
            }
            targets.push((exchange, key));
        }
        let formats = [("postage", Format::Postage), ("raw", Format::Raw)];
        let defaults = Defaults {
            targets,
            format: section.choice("format", &formats, Format::Postage),
            fingerprint: fingerprint(&section, None, &broker.vhost),
            mandatory: section.flag("mandatory", true),
            persistent: section.flag("persistent", true),
            rpc_timeout: section.milliseconds("rpc_timeout_ms", Duration::from_secs(30), 1..=DAY_MS),
            rpc_retries: section.integer("rpc_retries", 4, 0..=1_000) as u32,
        };
        let addresses = [("direct", ReplyAddress::Direct), ("exclusive", ReplyAddress::Queue)];
        let mut address = section.choice("reply_queue", &addresses, ReplyAddress::Direct);
        let through = reply_exchange(&section, &mut exchanges);
        if !through.as_str().is_empty() {
            address = ReplyAddress::Exchange(through);
        }
        let cage_directory = section.directory().to_owned();
        section.finish()?;
        Ok(Self {
            broker,
            cage_directory,
            exchanges: exchanges.into(),
            defaults: Arc::new(defaults),
            runtime: Handle::try_current().ok(),
            publisher: OnceLock::new(),
            reply_route: Arc::new(ReplyRoute { address, no_direct: AtomicBool::new(false) }),
        })
    }
}

/// The time until which an operation waits; see `REPORT_TIME_MAX`.
fn with_time_to_report(deadline: Deadline) -> Deadline {
    let left = deadline.left();
    deadline.within(left.saturating_sub((left / 10).min(REPORT_TIME_MAX)))
}

#[async_trait]
impl Resource for AmqpResource {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        AmqpAction::read(operation, &self.defaults).map(drop).map_err(|text| bad(Phase::Check, text))
    }

    /// A request is sent before the commit, and a fetched reply is taken from its queue.
    fn can_roll_back(&self, operation: &Operation) -> bool {
        !matches!(operation.action.as_str(), "rpc" | "fetch")
    }

    fn trouble(&self) -> Option<String> {
        let why = self.publisher.get()?.link().problem()?;
        Some(format!("{}: {why}", self.broker))
    }

    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        let deadline = with_time_to_report(deadline);
        let publisher = self.publisher.get_or_init(|| {
            let runtime = self.runtime.clone().unwrap_or_else(Handle::current);
            let link = BrokerLink::shared(&self.cage_directory, &self.broker, Purpose::Publish, &runtime);
            Arc::new(BatchPublisher::new(link, self.exchanges.clone(), &runtime))
        });
        let made = publisher.link().publishing_channel(&self.exchanges, deadline).await;
        let (channel, live) =
            made.map_err(|text| ResourceError::harmless(Phase::Connect, ResourceError::CONNECT, text))?;
        Ok(Box::new(AmqpConnection {
            defaults: self.defaults.clone(),
            publisher: publisher.clone(),
            channel,
            live,
            pending: Vec::new(),
            pending_bytes: 0,
            requests: 0,
            reply_route: self.reply_route.clone(),
        }))
    }
}

struct AmqpConnection {
    defaults: Arc<Defaults>,
    publisher: Arc<BatchPublisher>,
    /// The channel for requests, and for messages that the batch publisher does not accept.
    channel: Channel,
    live: Arc<LiveConnection>,
    /// The messages to publish at the commit.
    pending: Vec<OutgoingMessage>,
    pending_bytes: usize,
    /// How many requests were sent on this channel.
    requests: u64,
    reply_route: Arc<ReplyRoute>,
}

#[async_trait]
impl Connection for AmqpConnection {
    async fn begin(&mut self, options: &[(String, String)], _deadline: Deadline) -> Result<(), ResourceError> {
        match options.first() {
            Some((name, _)) => Err(bad(Phase::Begin, format!("there is no option {name:?}"))),
            None => Ok(()),
        }
    }

    async fn execute(&mut self, operation: Operation, deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let deadline = with_time_to_report(deadline);
        let action = AmqpAction::read(&operation, &self.defaults).map_err(|text| bad(Phase::Execute, text))?;
        match action {
            AmqpAction::Publish(message) => {
                self.pending_bytes += message.body.len();
                if self.pending_bytes > PENDING_BYTES_MAX {
                    let text = format!("messages of more than {PENDING_BYTES_MAX} bytes in one transaction");
                    return Err(ResourceError::harmless(Phase::Execute, ResourceError::TOO_LARGE, text));
                }
                self.pending.push(message);
                Ok(OperationReply { status: 200, ..OperationReply::default() })
            }
            AmqpAction::Rpc { request, queue_only: true, .. } => self.request_into_queue(request, deadline).await,
            AmqpAction::Rpc { request, timeout, retries, queue_only: false } => {
                let mut queue = self.open_reply_queue(deadline).await?;
                let reply = queue.request(&self.channel, &self.live, request, timeout, retries, deadline).await?;
                // The reply counts even if this fails; the channel is not used again then.
                let _ = queue.close(&self.channel).await;
                Ok(self.reply_of(reply))
            }
            AmqpAction::Fetch { queue, timeout } => self.fetch(queue, deadline.within(timeout)).await,
        }
    }

    async fn commit(&mut self, deadline: Deadline) -> Result<(), ResourceError> {
        let deadline = with_time_to_report(deadline);
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        match pending.is_empty() {
            true => Ok(()),
            false if self.publisher.accepts(&pending) => self.publisher.publish(pending, deadline, Phase::Commit).await,
            false => publish(&self.channel, &self.live, &pending, deadline, Phase::Commit).await,
        }
    }

    async fn rollback(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }

    fn is_used_up(&self) -> bool {
        !self.live.is_open(&self.channel)
    }

    async fn is_healthy(&mut self) -> bool {
        !self.is_used_up()
    }
}

impl AmqpConnection {
    /// Opens the reply queue of a request. A broker without direct reply-to closes the channel that asks for it; from
    /// then on this resource declares queues.
    async fn open_reply_queue(&mut self, deadline: Deadline) -> Result<ReplyQueue, ResourceError> {
        self.requests += 1;
        let route = self.reply_route.clone();
        match ReplyQueue::open(&self.channel, route.address(), self.requests).await {
            Ok(queue) => return Ok(queue),
            Err(_) if *route.address() == ReplyAddress::Direct && self.requests == 1 && self.live.is_up() => {
                route.no_direct.store(true, Ordering::Relaxed);
            }
            Err(error) => return Err(failed(&error, Phase::Execute)),
        }
        let broken = |text: String| ResourceError::fatal(Phase::Execute, ResourceError::CONNECT, text);
        (self.channel, self.live) = self.publisher.link().channel(deadline).await.map_err(broken)?;
        let confirmed = self.channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirmed.map_err(|error| failed(&error, Phase::Execute))?;
        let opened = ReplyQueue::open(&self.channel, route.address(), self.requests).await;
        opened.map_err(|error| failed(&error, Phase::Execute))
    }

    /// Sends a request and returns the name of its reply queue without waiting for the reply; `fetch` takes that later.
    async fn request_into_queue(
        &self,
        request: OutgoingMessage,
        deadline: Deadline,
    ) -> Result<OperationReply, ResourceError> {
        let address = match self.reply_route.address() {
            through @ ReplyAddress::Exchange(_) => through,
            ReplyAddress::Direct | ReplyAddress::Queue => &ReplyAddress::Queue,
        };
        let queue = declare(&self.channel, address).await.map_err(|error| failed(&error, Phase::Execute))?;
        let request = OutgoingMessage { properties: request.properties.with_reply_to(queue.clone()), ..request };
        publish(&self.channel, &self.live, &[request], deadline, Phase::Execute).await?;
        let body = queue.to_string().into();
        Ok(OperationReply { status: 200, headers: Vec::new(), body })
    }

    async fn fetch(&self, queue: ShortString, deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let wrong = |error: lapin::Error| failed(&error, Phase::Execute);
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumed = self.channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let mut replies = consumed.await.map_err(wrong)?;
        let next = tokio::time::timeout_at(deadline.instant(), replies.next()).await;
        // The broker deletes the queue with its last consumer.
        let cancelled = self.channel.basic_cancel(replies.tag(), BasicCancelOptions::default()).await;
        match next {
            Ok(Some(Ok(delivery))) => {
                cancelled.map_err(wrong)?;
                check_length(&self.live, &delivery)?;
                Ok(self.reply_of(delivery))
            }
            Ok(Some(Err(error))) => Err(wrong(error)),
            Ok(None) => Err(ResourceError::fatal(Phase::Execute, ResourceError::DISCONNECTED, "the queue is gone")),
            Err(_) => Err(ResourceError::fatal(Phase::Execute, ResourceError::TIMED_OUT, "no reply came")),
        }
    }

    /// Turns a reply into the operation's: status 200 with the value as JSON and the text beside it in the header
    /// `message`, 422 with an error's text, or 500 with an exception's. A raw reply has status 200 and all its
    /// properties as headers.
    fn reply_of(&self, delivery: Delivery) -> OperationReply {
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        if self.defaults.format == Format::Raw {
            let headers = property_headers(&delivery.properties);
            return OperationReply { status: 200, headers, body: delivery.data.into() };
        }
        let (status, headers, body) = match ReplyContent::read(&delivery.data) {
            ReplyContent::Success { value, text: message } => {
                let message = Some(text("message", &message)).filter(|(_, message)| !message.is_empty());
                let headers = [text("content-type", "application/json")].into_iter().chain(message).collect();
                (200, headers, value.to_string())
            }
            ReplyContent::Error(error) => (422, Vec::new(), error),
            ReplyContent::Exception { name, text: error } => (500, vec![text("exception", &name)], error),
        };
        OperationReply { status, headers, body: body.into() }
    }
}

fn bad(phase: Phase, text: String) -> ResourceError {
    ResourceError::harmless(phase, ResourceError::BAD_OPERATION, text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use wasmcage_config::testing::resource_section;

    fn read(keys: &str) -> Result<(), String> {
        let section = resource_section("amqp", Path::new("/cage"), keys).map_err(|error| error.to_string())?;
        AmqpResource::read(section).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn names_that_amqp_cannot_have_are_reported_with_their_keys() {
        let places = [
            ("eks = [{ exchange = NAME }]", "eks[0].exchange"),
            ("eks = [{ exchange = 'e', key = NAME }]", "eks[0].key"),
            ("exchanges.NAME = {}", "resources.test.exchanges"),
            ("exchanges.e = { arguments = { NAME = 1 } }", "exchanges.e.arguments"),
            ("reply_exchange = NAME", "reply_exchange"),
            ("vhost = NAME", "vhost"),
        ];
        for (keys, key) in places {
            for bytes in [256, 260, 100_000] {
                let error = read(&keys.replace("NAME", &format!("'{}'", "x".repeat(bytes)))).expect_err(key);
                assert!(error.contains(key) && error.contains("longer than 255 bytes"), "{key}: {error}");
                assert!(error.len() < 1_000, "{key}: {} bytes", error.len());
            }
            assert_eq!(read(&keys.replace("NAME", &format!("'{}'", "x".repeat(255)))), Ok(()), "{key}");
        }
        // The default exchange has no name.
        assert_eq!(read("eks = [{ exchange = '', key = 'queue' }]"), Ok(()));
    }

    #[test]
    fn an_operation_keeps_some_of_its_time_to_report_an_error() {
        let left = |seconds: u64| {
            let deadline = Deadline::after(Duration::from_secs(seconds));
            deadline.instant() - with_time_to_report(deadline).instant()
        };
        assert!(left(300) <= REPORT_TIME_MAX && left(300) > REPORT_TIME_MAX / 2);
        assert!(left(2) <= Duration::from_millis(200) && left(2) > Duration::from_millis(100));
        assert!(with_time_to_report(Deadline::after(Duration::ZERO)).passed());
    }
}
