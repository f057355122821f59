//! Exchanges, queues and bindings: what the configuration says of them, and their declaration. Declared anew whenever a
//! connection was made, and every now and then while it lasts; the broker takes a declaration that changes nothing.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use super::link::{Link, Live};
use super::value::{short, table_of};
use wasmcage_config::Section;
use wasmcage_core::request::Deadline;

/// For a channel to declare on.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) name: ShortString,
    kind: ExchangeKind,
    options: ExchangeDeclareOptions,
    arguments: FieldTable,
}

#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) name: ShortString,
    options: QueueDeclareOptions,
    arguments: FieldTable,
}

#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub(super) exchange: ShortString,
    pub(super) queue: ShortString,
    pub(super) key: ShortString,
    arguments: FieldTable,
}

/// All that an interface declares; it consumes every queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Topology {
    pub(super) exchanges: Vec<Exchange>,
    pub(super) queues: Vec<Queue>,
    pub(super) bindings: Vec<Binding>,
}

/// What came of a declaration.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// For each queue, whether it is there as it was declared.
    pub(super) queues: Vec<bool>,
    /// What the broker says of the rest: which property differs.
    pub(super) problems: Vec<String>,
}

impl Exchange {
    /// As Postage declares one: direct and durable.
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
        // The section around it reports its mistakes, too.
        let _ = section.finish();
        Self { name, kind, options, arguments }
    }

    /// Whether a message to it would close the channel.
    pub(super) fn is_internal(&self) -> bool {
        self.options.internal
    }

    async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let Self { name, kind, options, arguments } = self;
        let declared = channel.exchange_declare(name.clone(), kind.clone(), *options, arguments.clone()).await;
        declared.map_err(|error| format!("cannot declare exchange {name}: {error}"))
    }
}

/// `[x.exchanges.NAME]`, each.
pub(super) fn exchanges(section: &Section) -> Vec<Exchange> {
    let tables = named(section, "exchanges", "the name of an exchange").into_iter();
    tables.map(|(name, section)| Exchange::read(name, section)).collect()
}

/// Whether the broker has an exchange of that name without anybody's declaration.
pub(super) fn is_the_brokers_own(exchange: &str) -> bool {
    exchange.is_empty() || exchange.starts_with("amq.")
}

impl Queue {
    /// As Postage declares one that is given by its name, or with `auto_delete` only.
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
        // The section around it reports its mistakes, too.
        let _ = section.finish();
        Self { name, options, arguments }
    }

    async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let Self { name, options, arguments } = self;
        let declared = channel.queue_declare(name.clone(), *options, arguments.clone()).await;
        declared.map(drop).map_err(|error| format!("cannot declare queue {name}: {error}"))
    }
}

impl Binding {
    pub(super) fn new(exchange: ShortString, queue: ShortString, key: ShortString) -> Self {
        Self { exchange, queue, key, arguments: FieldTable::default() }
    }

    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let Self { exchange, queue, key, arguments } = self;
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(queue.clone(), exchange.clone(), key.clone(), options, arguments.clone()).await;
        bound.map_err(|error| format!("cannot bind queue {queue} to exchange {exchange} with key {key}: {error}"))
    }

    /// Takes it back.
    pub(super) async fn remove(&self, channel: &Channel) -> Result<(), String> {
        let Self { exchange, queue, key, arguments } = self;
        let unbound = channel.queue_unbind(queue.clone(), exchange.clone(), key.clone(), arguments.clone()).await;
        unbound.map_err(|error| format!("cannot unbind queue {queue} from exchange {exchange}: {error}"))
    }
}

impl Topology {
    /// Exchanges and queues that a binding names without a table of their own are declared as Postage does. Mistakes are
    /// recorded in `section`.
    pub(super) fn read(section: &Section) -> Self {
        let mut topology = Self { exchanges: exchanges(section), ..Self::default() };
        let queues = named(section, "queues", "the name of a queue").into_iter();
        topology.queues = queues.map(|(name, section)| Queue::read(name, section)).collect();
        for table in section.tables("bindings") {
            let (exchange, queue) = (required_name(&table, "exchange"), required_name(&table, "queue"));
            let (key, arguments) = (key(&table), arguments(&table));
            let _ = table.finish();
            if let (Some(exchange), Some(queue)) = (exchange, queue) {
                topology.bind(Binding { exchange, queue, key, arguments });
            }
        }
        topology
    }

    /// Adds a binding, and its ends where they are new.
    pub(super) fn bind(&mut self, binding: Binding) {
        let exchange = &binding.exchange;
        if !is_the_brokers_own(exchange.as_str()) && !self.exchanges.iter().any(|known| known.name == *exchange) {
            self.exchanges.push(Exchange::direct(exchange.clone()));
        }
        if !self.queues.iter().any(|queue| queue.name == binding.queue) {
            self.queues.push(Queue::named(binding.queue.clone(), false));
        }
        self.bindings.push(binding);
    }

    /// Declares everything, and `more` bindings. What cannot be declared keeps nothing else from it.
    ///
    /// # Errors
    /// Why the connection is of no more use.
    pub(super) async fn declare(&self, more: &[Binding], link: &Link) -> Result<Declared, String> {
        let mut declaring = Declaring { link, open: None };
        let (mut declared, mut unusable) = (Declared::default(), Vec::new());
        for exchange in &self.exchanges {
            if let Err(problem) = declaring.attempt(async |channel| exchange.declare(channel).await).await? {
                declared.problems.push(problem);
                unusable.push(&exchange.name);
            }
        }
        for queue in &self.queues {
            let result = declaring.attempt(async |channel| queue.declare(channel).await).await?;
            declared.queues.push(result.is_ok());
            declared.problems.extend(result.err());
        }
        let usable = |binding: &&Binding| {
            let is_known = self
                .queues
                .iter()
                .zip(&declared.queues)
                .any(|(queue, is_there)| *is_there && queue.name == binding.queue);
            is_known && !unusable.contains(&&binding.exchange)
        };
        for binding in self.bindings.iter().chain(more).filter(usable) {
            let result = declaring.attempt(async |channel| binding.declare(channel).await).await?;
            declared.problems.extend(result.err());
        }
        Ok(declared)
    }
}

/// Declares one thing after the other. The broker closes the channel at one that it does not take.
struct Declaring<'a> {
    link: &'a Link,
    open: Option<(Channel, Arc<Live>)>,
}

impl Declaring<'_> {
    /// The step's own failure within; without, that of the connection.
    async fn attempt(
        &mut self,
        step: impl AsyncFnOnce(&Channel) -> Result<(), String>,
    ) -> Result<Result<(), String>, String> {
        let (channel, live) = match self.open.take() {
            Some(open) => open,
            None => self.link.channel(Deadline::after(CHANNEL_TIMEOUT)).await?,
        };
        match step(&channel).await {
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
/// What cannot be declared; the channel is then closed.
pub(super) async fn declare_exchanges(exchanges: &[Exchange], channel: &Channel) -> Result<(), String> {
    for exchange in exchanges {
        exchange.declare(channel).await?;
    }
    Ok(())
}

/// The tables of a table whose names are those of the wire. Others are mistakes, told at the outer table: such a name is no key
/// to repeat whole.
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

/// The name under a key that must be set; none, and a mistake, if it is none.
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
