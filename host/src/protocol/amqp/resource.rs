//! Resource `amqp`: a producer of messages and a caller. A connection of its pool is a channel; all of them share the cage's
//! connection for publishing. In a transaction messages are published at its commit.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use tokio::runtime::Handle;

use super::broker::Broker;
use super::config::{Format, fingerprint};
use super::group::Group;
use super::link::{Link, Live, Purpose};
use super::message::Outcome;
use super::operation::{Asked, Defaults, Outgoing};
use super::producer::{failed, publish};
use super::rpc::{ReplyQueue, check_length, declare};
use super::topology::{Exchange, exchanges};
use crate::config::{ConfigError, Section};
use crate::protocol::{Connection, Resource};
use crate::request::Deadline;
use crate::resource::{Operation, OperationReply, Phase, ResourceError};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Bytes of messages that wait for a transaction's commit.
const HELD_BYTES_MAX: usize = 64 << 20;

pub(super) struct AmqpResource {
    broker: Broker,
    cage_directory: PathBuf,
    exchanges: Arc<[Exchange]>,
    defaults: Arc<Defaults>,
    /// Where the connection is kept: the runtime that made this resource, if that runs on one.
    runtime: Option<Handle>,
    group: OnceLock<Arc<Group>>,
    /// False once the broker was seen not to have it.
    direct: Arc<AtomicBool>,
}

impl AmqpResource {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let broker = Broker::read(&section);
        let mut exchanges = exchanges(&section);
        let mut targets = Vec::new();
        for table in section.tables("eks") {
            let (exchange, key) = (table.required_string("exchange"), table.string("key", ""));
            let _ = table.finish();
            let is_own = exchange.is_empty() || exchange.starts_with("amq.");
            if !is_own && !exchanges.iter().any(|known| known.name == exchange) {
                exchanges.push(Exchange::direct(&exchange));
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
            rpc_timeout: section.milliseconds("rpc_timeout_ms", std::time::Duration::from_secs(30), 1..=DAY_MS),
            rpc_retries: section.integer("rpc_retries", 4, 0..=1_000) as u32,
        };
        let direct = section.choice("reply_queue", &[("direct", true), ("exclusive", false)], true);
        let cage_directory = section.directory().to_owned();
        section.finish()?;
        Ok(Self {
            broker,
            cage_directory,
            exchanges: exchanges.into(),
            defaults: Arc::new(defaults),
            runtime: Handle::try_current().ok(),
            group: OnceLock::new(),
            direct: Arc::new(AtomicBool::new(direct)),
        })
    }
}

#[async_trait]
impl Resource for AmqpResource {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        Asked::read(operation, &self.defaults).map(drop).map_err(|text| bad(Phase::Check, text))
    }

    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        let group = self.group.get_or_init(|| {
            let runtime = self.runtime.clone().unwrap_or_else(Handle::current);
            let link = Link::of(&self.cage_directory, &self.broker, Purpose::Publish, &runtime);
            Arc::new(Group::new(link, self.exchanges.clone(), &runtime))
        });
        let made = group.link().publishing_channel(&self.exchanges, deadline).await;
        let (channel, live) =
            made.map_err(|text| ResourceError::harmless(Phase::Connect, ResourceError::CONNECT, text))?;
        Ok(Box::new(AmqpConnection {
            defaults: self.defaults.clone(),
            group: group.clone(),
            channel,
            live,
            held: Vec::new(),
            held_bytes: 0,
            reply_queue: None,
            used_up: false,
            direct: self.direct.clone(),
        }))
    }
}

struct AmqpConnection {
    defaults: Arc<Defaults>,
    group: Arc<Group>,
    /// For what is asked, and for what goes to exchanges that are not the resource's.
    channel: Channel,
    live: Arc<Live>,
    /// Published at the commit.
    held: Vec<Outgoing>,
    held_bytes: usize,
    reply_queue: Option<ReplyQueue>,
    /// Late replies may come on this channel.
    used_up: bool,
    direct: Arc<AtomicBool>,
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
        let asked = Asked::read(&operation, &self.defaults).map_err(|text| bad(Phase::Execute, text))?;
        match asked {
            Asked::Publish(message) => {
                self.held_bytes += message.body.len();
                if self.held_bytes > HELD_BYTES_MAX {
                    let text = format!("messages of more than {HELD_BYTES_MAX} bytes in one transaction");
                    return Err(ResourceError::harmless(Phase::Execute, ResourceError::TOO_LARGE, text));
                }
                self.held.push(message);
                Ok(OperationReply { status: 200, ..OperationReply::default() })
            }
            Asked::Rpc { request, queue_only: true, .. } => self.ask_into_queue(request, deadline).await,
            Asked::Rpc { request, timeout, retries, queue_only: false } => {
                let direct = self.direct.clone();
                if self.reply_queue.is_none() {
                    self.reply_queue = Some(self.open_reply_queue(&direct, deadline).await?);
                }
                let queue = self.reply_queue.as_mut().expect("it was just made");
                let answer = queue.ask(&self.channel, &self.live, request, timeout, retries, deadline).await?;
                self.used_up |= answer.repeated;
                Ok(self.reply_of(answer.delivery))
            }
            Asked::Fetch { queue, timeout } => self.fetch(&queue, deadline.within(timeout)).await,
        }
    }

    async fn commit(&mut self, deadline: Deadline) -> Result<(), ResourceError> {
        let held = std::mem::take(&mut self.held);
        self.held_bytes = 0;
        match held.is_empty() {
            true => Ok(()),
            false if self.group.takes(&held) => self.group.publish(held, deadline, Phase::Commit).await,
            false => publish(&self.channel, &self.live, &held, deadline, Phase::Commit).await,
        }
    }

    async fn rollback(&mut self, _deadline: Deadline) -> Result<(), ResourceError> {
        self.held.clear();
        self.held_bytes = 0;
        Ok(())
    }

    async fn is_healthy(&mut self) -> bool {
        !self.used_up && self.live.carries(&self.channel)
    }
}

impl AmqpConnection {
    /// A broker without direct reply-to closes the channel that asks for it: that happens once.
    async fn open_reply_queue(&mut self, direct: &AtomicBool, deadline: Deadline) -> Result<ReplyQueue, ResourceError> {
        if direct.load(Ordering::Relaxed) {
            match ReplyQueue::open(&self.channel, true).await {
                Ok(queue) => return Ok(queue),
                Err(_) if self.live.is_up() => direct.store(false, Ordering::Relaxed),
                Err(error) => return Err(failed(&error, Phase::Execute)),
            }
            let broken = |text: String| ResourceError::fatal(Phase::Execute, ResourceError::CONNECT, text);
            (self.channel, self.live) = self.group.link().channel(deadline).await.map_err(broken)?;
            let confirmed = self.channel.confirm_select(ConfirmSelectOptions::default()).await;
            confirmed.map_err(|error| failed(&error, Phase::Execute))?;
        }
        ReplyQueue::open(&self.channel, false).await.map_err(|error| failed(&error, Phase::Execute))
    }

    /// The reply's queue is all that is waited for; `fetch` takes the reply.
    async fn ask_into_queue(&self, request: Outgoing, deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let queue = declare(&self.channel).await.map_err(|error| failed(&error, Phase::Execute))?;
        let request = Outgoing { properties: request.properties.with_reply_to(queue.clone()), ..request };
        publish(&self.channel, &self.live, &[request], deadline, Phase::Execute).await?;
        let body = queue.to_string().into();
        Ok(OperationReply { status: 200, headers: Vec::new(), body })
    }

    async fn fetch(&self, queue: &str, deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let wrong = |error: lapin::Error| failed(&error, Phase::Execute);
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumed = self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut replies = consumed.await.map_err(wrong)?;
        let next = tokio::time::timeout_at(deadline.instant(), replies.next()).await;
        // The last consumer of such a queue takes it along.
        let cancelled = self.channel.basic_cancel(replies.tag(), BasicCancelOptions::default()).await;
        match next {
            Ok(Some(Ok(delivery))) => {
                cancelled.map_err(wrong)?;
                check_length(&self.channel, &self.live, &delivery)?;
                Ok(self.reply_of(delivery))
            }
            Ok(Some(Err(error))) => Err(wrong(error)),
            Ok(None) => Err(ResourceError::fatal(Phase::Execute, ResourceError::DISCONNECTED, "the queue is gone")),
            Err(_) => Err(ResourceError::fatal(Phase::Execute, ResourceError::TIMED_OUT, "no reply came")),
        }
    }

    /// 200 with the value as JSON, 422 with an error's text, 500 with an exception's; raw replies as they are.
    fn reply_of(&self, delivery: Delivery) -> OperationReply {
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        if self.defaults.format == Format::Raw {
            let kind = delivery.properties.content_type().as_ref();
            let headers = kind.map(|kind| text("content-type", kind.as_str())).into_iter().collect();
            return OperationReply { status: 200, headers, body: delivery.data.into() };
        }
        let (status, headers, body) = match Outcome::read(&delivery.data) {
            Outcome::Success(value) => (200, vec![text("content-type", "application/json")], value.to_string()),
            Outcome::Error(error) => (422, Vec::new(), error),
            Outcome::Exception { name, text: error } => (500, vec![text("exception", &name)], error),
        };
        OperationReply { status, headers, body: body.into() }
    }
}

fn bad(phase: Phase, text: String) -> ResourceError {
    ResourceError::harmless(phase, ResourceError::BAD_OPERATION, text)
}
