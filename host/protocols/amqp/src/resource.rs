//! Resource `amqp`: a producer of messages and a caller. A connection of its pool is a channel; all of them share the cage's
//! connection for publishing. In a transaction messages are published at its commit.

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

use super::broker::Broker;
use super::config::{Format, fingerprint, reply_exchange};
use super::group::Group;
use super::link::{Link, Live, Purpose};
use super::message::Outcome;
use super::operation::{Asked, Defaults, Outgoing};
use super::producer::{failed, publish};
use super::raw::properties_of;
use super::rpc::{ReplyPlace, ReplyQueue, check_length, declare};
use super::topology::{Exchange, exchanges, is_the_brokers_own, key};
use super::value::short;
use wasmcage_config::{ConfigError, Section};
use wasmcage_core::request::Deadline;
use wasmcage_resource::{Connection, Operation, OperationReply, Phase, Resource, ResourceError};

const DAY_MS: u64 = 24 * 3600 * 1000;
/// Bytes of messages that wait for a transaction's commit.
const HELD_BYTES_MAX: usize = 64 << 20;
/// What is left of an operation's time when it gives up waiting, so that its caller learns why: a tenth, up to this.
const REPORT_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) struct AmqpResource {
    broker: Broker,
    cage_directory: PathBuf,
    exchanges: Arc<[Exchange]>,
    defaults: Arc<Defaults>,
    /// Where the connection is kept: the runtime that made this resource, if that runs on one.
    runtime: Option<Handle>,
    group: OnceLock<Arc<Group>>,
    replies: Arc<Replies>,
}

/// Where replies come.
struct Replies {
    place: ReplyPlace,
    /// Set once the broker was seen to have no direct reply-to.
    no_direct: AtomicBool,
}

impl Replies {
    fn place(&self) -> &ReplyPlace {
        match self.no_direct.load(Ordering::Relaxed) {
            true => &ReplyPlace::Queue,
            false => &self.place,
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
                exchanges.push(Exchange::direct(exchange.clone()));
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
        let places = [("direct", ReplyPlace::Direct), ("exclusive", ReplyPlace::Queue)];
        let mut place = section.choice("reply_queue", &places, ReplyPlace::Direct);
        let through = reply_exchange(&section, &mut exchanges);
        if !through.as_str().is_empty() {
            place = ReplyPlace::Exchange(through);
        }
        let cage_directory = section.directory().to_owned();
        section.finish()?;
        Ok(Self {
            broker,
            cage_directory,
            exchanges: exchanges.into(),
            defaults: Arc::new(defaults),
            runtime: Handle::try_current().ok(),
            group: OnceLock::new(),
            replies: Arc::new(Replies { place, no_direct: AtomicBool::new(false) }),
        })
    }
}

/// When an operation gives up waiting, so that something is left for telling why.
fn with_time_to_report(deadline: Deadline) -> Deadline {
    let left = deadline.left();
    deadline.within(left.saturating_sub((left / 10).min(REPORT_TIME_MAX)))
}

#[async_trait]
impl Resource for AmqpResource {
    fn check(&self, operation: &Operation) -> Result<(), ResourceError> {
        Asked::read(operation, &self.defaults).map(drop).map_err(|text| bad(Phase::Check, text))
    }

    /// A request is at its service before the commit, and a fetched reply is gone.
    fn can_roll_back(&self, operation: &Operation) -> bool {
        !matches!(operation.action.as_str(), "rpc" | "fetch")
    }

    fn trouble(&self) -> Option<String> {
        let why = self.group.get()?.link().trouble()?;
        Some(format!("{}: {why}", self.broker))
    }

    async fn connect(&self, deadline: Deadline) -> Result<Box<dyn Connection>, ResourceError> {
        let deadline = with_time_to_report(deadline);
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
            requests: 0,
            replies: self.replies.clone(),
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
    /// So far, on this channel.
    requests: u64,
    replies: Arc<Replies>,
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
                let mut queue = self.open_reply_queue(deadline).await?;
                let reply = queue.ask(&self.channel, &self.live, request, timeout, retries, deadline).await?;
                // A channel that cannot do that is not used again, and its reply is as good.
                let _ = queue.end(&self.channel).await;
                Ok(self.reply_of(reply))
            }
            Asked::Fetch { queue, timeout } => self.fetch(queue, deadline.within(timeout)).await,
        }
    }

    async fn commit(&mut self, deadline: Deadline) -> Result<(), ResourceError> {
        let deadline = with_time_to_report(deadline);
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

    fn is_used_up(&self) -> bool {
        !self.live.carries(&self.channel)
    }

    async fn is_healthy(&mut self) -> bool {
        !self.is_used_up()
    }
}

impl AmqpConnection {
    /// A broker without direct reply-to closes the channel that asks for it: that happens once.
    async fn open_reply_queue(&mut self, deadline: Deadline) -> Result<ReplyQueue, ResourceError> {
        self.requests += 1;
        let replies = self.replies.clone();
        match ReplyQueue::open(&self.channel, replies.place(), self.requests).await {
            Ok(queue) => return Ok(queue),
            Err(_) if *replies.place() == ReplyPlace::Direct && self.requests == 1 && self.live.is_up() => {
                replies.no_direct.store(true, Ordering::Relaxed);
            }
            Err(error) => return Err(failed(&error, Phase::Execute)),
        }
        let broken = |text: String| ResourceError::fatal(Phase::Execute, ResourceError::CONNECT, text);
        (self.channel, self.live) = self.group.link().channel(deadline).await.map_err(broken)?;
        let confirmed = self.channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirmed.map_err(|error| failed(&error, Phase::Execute))?;
        let opened = ReplyQueue::open(&self.channel, replies.place(), self.requests).await;
        opened.map_err(|error| failed(&error, Phase::Execute))
    }

    /// The reply's queue is all that is waited for; `fetch` takes the reply.
    async fn ask_into_queue(&self, request: Outgoing, deadline: Deadline) -> Result<OperationReply, ResourceError> {
        let place = match self.replies.place() {
            through @ ReplyPlace::Exchange(_) => through,
            ReplyPlace::Direct | ReplyPlace::Queue => &ReplyPlace::Queue,
        };
        let queue = declare(&self.channel, place).await.map_err(|error| failed(&error, Phase::Execute))?;
        let request = Outgoing { properties: request.properties.with_reply_to(queue.clone()), ..request };
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
        // The last consumer of such a queue takes it along.
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

    /// 200 with the value as JSON, and in `message` what was said with it; 422 with an error's text, 500 with an exception's; raw replies with
    /// all their properties.
    fn reply_of(&self, delivery: Delivery) -> OperationReply {
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        if self.defaults.format == Format::Raw {
            let headers = properties_of(&delivery.properties);
            return OperationReply { status: 200, headers, body: delivery.data.into() };
        }
        let (status, headers, body) = match Outcome::read(&delivery.data) {
            Outcome::Success { value, text: said } => {
                let said = Some(text("message", &said)).filter(|(_, said)| !said.is_empty());
                let headers = [text("content-type", "application/json")].into_iter().chain(said).collect();
                (200, headers, value.to_string())
            }
            Outcome::Error(error) => (422, Vec::new(), error),
            Outcome::Exception { name, text: error } => (500, vec![text("exception", &name)], error),
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
    fn names_that_are_no_names_of_amqp_are_told_with_their_keys() {
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
                let told = read(&keys.replace("NAME", &format!("'{}'", "x".repeat(bytes)))).expect_err(key);
                assert!(told.contains(key) && told.contains("longer than 255 bytes"), "{key}: {told}");
                assert!(told.len() < 1_000, "{key}: {} bytes", told.len());
            }
            assert_eq!(read(&keys.replace("NAME", &format!("'{}'", "x".repeat(255)))), Ok(()), "{key}");
        }
        // The default exchange has no name.
        assert_eq!(read("eks = [{ exchange = '', key = 'queue' }]"), Ok(()));
    }

    #[test]
    fn something_is_left_of_an_operations_time_for_telling_why() {
        let left = |seconds: u64| {
            let deadline = Deadline::after(Duration::from_secs(seconds));
            deadline.instant() - with_time_to_report(deadline).instant()
        };
        assert!(left(300) <= REPORT_TIME_MAX && left(300) > REPORT_TIME_MAX / 2);
        assert!(left(2) <= Duration::from_millis(200) && left(2) > Duration::from_millis(100));
        assert!(with_time_to_report(Deadline::after(Duration::ZERO)).passed());
    }
}
