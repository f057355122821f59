//! Exchanges, queues and bindings: their configuration and their declaration at the broker. They are declared whenever
//! a connection is made, and every now and then while it lasts; a repeated declaration changes nothing.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use super::link::{BrokerLink, LiveConnection};
use super::value::{short, table_of};
use wasmcage_config::Section;
use wasmcage_core::request::Deadline;

/// The time to get a channel for the declarations.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct ExchangeDeclaration {
    pub(super) name: ShortString,
    kind: ExchangeKind,
    options: ExchangeDeclareOptions,
    arguments: FieldTable,
}

#[derive(Clone, Debug)]
pub(super) struct QueueDeclaration {
    pub(super) name: ShortString,
    options: QueueDeclareOptions,
    arguments: FieldTable,
}

#[derive(Clone, Debug)]
pub(super) struct QueueBinding {
    pub(super) exchange: ShortString,
    pub(super) queue: ShortString,
    pub(super) key: ShortString,
    arguments: FieldTable,
}

/// All that an interface declares; it consumes every queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Topology {
    pub(super) exchanges: Vec<ExchangeDeclaration>,
    pub(super) queues: Vec<QueueDeclaration>,
    pub(super) bindings: Vec<QueueBinding>,
}

/// The result of declaring a topology.
#[derive(Debug, Default)]
pub(super) struct DeclarationReport {
    /// True for each queue that exists as it was declared.
    pub(super) queues: Vec<bool>,
    /// Why the broker refused the other declarations, such as which property differs.
    pub(super) problems: Vec<String>,
}

impl ExchangeDeclaration {
    /// The exchange that Postage declares: direct and durable.
    pub(super) fn direct(name: ShortString) -> Self {
        Self {
            name,
            kind: ExchangeKind::Direct,
            options: ExchangeDeclareOptions { durable: true, ..Default::default() },
            arguments: FieldTable::default(),
        }
    }

    fn read(name: ShortString, section: Section) -> Self {
        use ExchangeKind::{Direct, Fanout, Headers, Topic};
        let kinds = [("direct", Direct), ("fanout", Fanout), ("topic", Topic), ("headers", Headers)];
        let kind = section.choice("type", &kinds, Direct);
        let options = ExchangeDeclareOptions {
            passive: section.flag("passive", false),
            durable: section.flag("durable", true),
            auto_delete: section.flag("auto_delete", false),
            internal: section.flag("internal", false),
            nowait: false,
        };
        let arguments = arguments(&section);
        // The enclosing section reports its mistakes, too.
        let _ = section.finish();
        Self { name, kind, options, arguments }
    }

    /// Returns whether only the broker may publish to it. A client's message would close the channel.
    pub(super) fn is_internal(&self) -> bool {
        self.options.internal
    }

    async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let Self { name, kind, options, arguments } = self;
        let declared = channel.exchange_declare(name.clone(), kind.clone(), *options, arguments.clone()).await;
        declared.map_err(|error| format!("cannot declare exchange {name}: {error}"))
    }
}

/// The tables `[x.exchanges.NAME]`.
pub(super) fn exchanges(section: &Section) -> Vec<ExchangeDeclaration> {
    let tables = named(section, "exchanges", "the name of an exchange").into_iter();
    tables.map(|(name, section)| ExchangeDeclaration::read(name, section)).collect()
}

/// Returns whether the broker has this exchange without any declaration: the default exchange, and those that begin
/// with `amq.`.
pub(super) fn is_the_brokers_own(exchange: &str) -> bool {
    exchange.is_empty() || exchange.starts_with("amq.")
}

impl QueueDeclaration {
    /// The queue that Postage declares if it knows only its name.
    pub(super) fn named(name: ShortString, auto_delete: bool) -> Self {
        Self {
            name,
            options: QueueDeclareOptions { auto_delete, ..Default::default() },
            arguments: FieldTable::default(),
        }
    }

    fn read(name: ShortString, section: Section) -> Self {
        let is_quorum = section.choice("type", &[("classic", false), ("quorum", true)], false);
        let options = QueueDeclareOptions {
            passive: section.flag("passive", false),
            durable: section.flag("durable", is_quorum),
            exclusive: section.flag("exclusive", false),
            auto_delete: section.flag("auto_delete", false),
            nowait: false,
        };
        if is_quorum && (!options.durable || options.exclusive || options.auto_delete) {
            section.problem("type", "a quorum queue is durable, and neither exclusive nor auto_delete");
        }
        let mut arguments = arguments(&section);
        if is_quorum {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        }
        // The enclosing section reports its mistakes, too.
        let _ = section.finish();
        Self { name, options, arguments }
    }

    async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let Self { name, options, arguments } = self;
        let declared = channel.queue_declare(name.clone(), *options, arguments.clone()).await;
        declared.map(drop).map_err(|error| format!("cannot declare queue {name}: {error}"))
    }
}

impl QueueBinding {
    pub(super) fn new(exchange: ShortString, queue: ShortString, key: ShortString) -> Self {
        Self { exchange, queue, key, arguments: FieldTable::default() }
    }

    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let Self { exchange, queue, key, arguments } = self;
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(queue.clone(), exchange.clone(), key.clone(), options, arguments.clone()).await;
        bound.map_err(|error| format!("cannot bind queue {queue} to exchange {exchange} with key {key}: {error}"))
    }

    pub(super) async fn remove(&self, channel: &Channel) -> Result<(), String> {
        let Self { exchange, queue, key, arguments } = self;
        let unbound = channel.queue_unbind(queue.clone(), exchange.clone(), key.clone(), arguments.clone()).await;
        unbound.map_err(|error| format!("cannot unbind queue {queue} from exchange {exchange}: {error}"))
    }
}

impl Topology {
    /// Reads the keys `exchanges`, `queues` and `bindings`. An exchange or queue that only a binding names is declared
    /// as Postage does. Mistakes are recorded in `section`.
    pub(super) fn read(section: &Section) -> Self {
        let mut topology = Self { exchanges: exchanges(section), ..Self::default() };
        let queues = named(section, "queues", "the name of a queue").into_iter();
        topology.queues = queues.map(|(name, section)| QueueDeclaration::read(name, section)).collect();
        for table in section.tables("bindings") {
            let (exchange, queue) = (required_name(&table, "exchange"), required_name(&table, "queue"));
            let (key, arguments) = (key(&table), arguments(&table));
            let _ = table.finish();
            if let (Some(exchange), Some(queue)) = (exchange, queue) {
                topology.bind(QueueBinding { exchange, queue, key, arguments });
            }
        }
        topology
    }

    /// Adds a binding, and its exchange and queue if they are new.
    pub(super) fn bind(&mut self, binding: QueueBinding) {
        let exchange = &binding.exchange;
        if !is_the_brokers_own(exchange.as_str()) && !self.exchanges.iter().any(|known| known.name == *exchange) {
            self.exchanges.push(ExchangeDeclaration::direct(exchange.clone()));
        }
        if !self.queues.iter().any(|queue| queue.name == binding.queue) {
            self.queues.push(QueueDeclaration::named(binding.queue.clone(), false));
        }
        self.bindings.push(binding);
    }

    /// Declares everything, and the bindings in `more`. A declaration that the broker refuses does not keep the others
    /// from it.
    ///
    /// # Errors
    /// Why the connection has failed.
    pub(super) async fn declare(&self, more: &[QueueBinding], link: &BrokerLink) -> Result<DeclarationReport, String> {
        let mut declarer = Declarer { link, open: None };
        let (mut report, mut unusable) = (DeclarationReport::default(), Vec::new());
        for exchange in &self.exchanges {
            if let Err(problem) = declarer.attempt(async |channel| exchange.declare(channel).await).await? {
                report.problems.push(problem);
                unusable.push(&exchange.name);
            }
        }
        for queue in &self.queues {
            let result = declarer.attempt(async |channel| queue.declare(channel).await).await?;
            report.queues.push(result.is_ok());
            report.problems.extend(result.err());
        }
        let usable = |binding: &&QueueBinding| {
            let is_known = self
                .queues
                .iter()
                .zip(&report.queues)
                .any(|(queue, is_declared)| *is_declared && queue.name == binding.queue);
            is_known && !unusable.contains(&&binding.exchange)
        };
        for binding in self.bindings.iter().chain(more).filter(usable) {
            let result = declarer.attempt(async |channel| binding.declare(channel).await).await?;
            report.problems.extend(result.err());
        }
        Ok(report)
    }
}

/// Makes one declaration after the other. The broker closes the channel when it refuses one, so that the next needs a
/// new channel.
struct Declarer<'a> {
    link: &'a BrokerLink,
    open: Option<(Channel, Arc<LiveConnection>)>,
}

impl Declarer<'_> {
    /// The inner error is a refused declaration, the outer one a failed connection.
    async fn attempt(
        &mut self,
        declare: impl AsyncFnOnce(&Channel) -> Result<(), String>,
    ) -> Result<Result<(), String>, String> {
        let (channel, live) = match self.open.take() {
            Some(open) => open,
            None => self.link.channel(Deadline::after(CHANNEL_TIMEOUT)).await?,
        };
        match declare(&channel).await {
            Ok(()) => {
                self.open = Some((channel, live));
                Ok(Ok(()))
            }
            Err(problem) if live.is_up() => Ok(Err(problem)),
            Err(why) => Err(why),
        }
    }
}

/// # Errors
/// Why an exchange cannot be declared; the channel is closed then.
pub(super) async fn declare_exchanges(exchanges: &[ExchangeDeclaration], channel: &Channel) -> Result<(), String> {
    for exchange in exchanges {
        exchange.declare(channel).await?;
    }
    Ok(())
}

/// The tables within the table `key`, by their names, which are names in AMQP. A name that AMQP cannot have is recorded
/// as a mistake of the outer table, since it may be too long to be shown as a key.
fn named(section: &Section, key: &str, what: &str) -> Vec<(ShortString, Section)> {
    let mut found = Vec::new();
    for (name, table) in section.sections(key) {
        match name_of(&name, what) {
            Ok(name) => found.push((name, table)),
            Err(text) => section.problem(key, text),
        }
    }
    found
}

/// The name under a key that is required. None, with a mistake recorded, if it is missing or AMQP cannot have it.
pub(super) fn required_name(section: &Section, key: &str) -> Option<ShortString> {
    if !section.has(key) {
        section.required_string(key);
        return None;
    }
    match name_of(&section.string(key, "x"), "a name") {
        Ok(name) => Some(name),
        Err(text) => {
            section.problem(key, text);
            None
        }
    }
}

fn name_of(name: &str, what: &str) -> Result<ShortString, String> {
    match name.is_empty() {
        true => Err(format!("{what} must not be empty")),
        false => short(name, what),
    }
}

/// A routing key, which may be empty.
pub(super) fn key(section: &Section) -> ShortString {
    short(&section.string("key", ""), "a routing key").unwrap_or_else(|text| {
        section.problem("key", text);
        ShortString::default()
    })
}

fn arguments(section: &Section) -> FieldTable {
    table_of(section.json_table("arguments")).unwrap_or_else(|text| {
        section.problem("arguments", text);
        FieldTable::default()
    })
}
