//! Exchanges, queues and bindings: what the configuration says of them, and their declaration. Declared anew whenever a
//! connection was made; the broker takes a declaration that changes nothing.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{Channel, ExchangeKind};
use serde_json::Value;

use crate::config::Section;

#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) name: String,
    kind: ExchangeKind,
    options: ExchangeDeclareOptions,
    arguments: FieldTable,
}

#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) name: String,
    options: QueueDeclareOptions,
    arguments: FieldTable,
}

#[derive(Clone, Debug)]
pub(super) struct Binding {
    pub(super) exchange: String,
    pub(super) queue: String,
    pub(super) key: String,
    arguments: FieldTable,
}

/// All that an interface declares; it consumes every queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Topology {
    pub(super) exchanges: Vec<Exchange>,
    pub(super) queues: Vec<Queue>,
    pub(super) bindings: Vec<Binding>,
}

impl Exchange {
    /// As Postage declares one: direct and durable.
    pub(super) fn direct(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: ExchangeKind::Direct,
            options: ExchangeDeclareOptions { durable: true, ..Default::default() },
            arguments: FieldTable::default(),
        }
    }

    fn read(name: &str, section: Section) -> Self {
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
        Self { name: name.to_owned(), kind, options, arguments }
    }
}

/// `[x.exchanges.NAME]`, each.
pub(super) fn exchanges(section: &Section) -> Vec<Exchange> {
    section.sections("exchanges").into_iter().map(|(name, section)| Exchange::read(&name, section)).collect()
}

impl Queue {
    /// As Postage declares one that is given by its name, or with `auto_delete` only.
    pub(super) fn named(name: String, auto_delete: bool) -> Self {
        Self {
            name,
            options: QueueDeclareOptions { auto_delete, ..Default::default() },
            arguments: FieldTable::default(),
        }
    }

    fn read(name: &str, section: Section) -> Self {
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
        Self { name: name.to_owned(), options, arguments }
    }
}

impl Binding {
    pub(super) fn new(exchange: &str, queue: &str, key: String) -> Self {
        let arguments = FieldTable::default();
        Self { exchange: exchange.to_owned(), queue: queue.to_owned(), key, arguments }
    }

    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), String> {
        let Self { exchange, queue, key, arguments } = self;
        let options = QueueBindOptions::default();
        let (to, from, by) = (queue.as_str().into(), exchange.as_str().into(), key.as_str().into());
        let bound = channel.queue_bind(to, from, by, options, arguments.clone()).await;
        bound.map_err(|error| format!("cannot bind queue {queue} to exchange {exchange} with key {key:?}: {error}"))
    }
}

impl Topology {
    /// Exchanges and queues that a binding names without a table of their own are declared as Postage does. Mistakes are
    /// recorded in `section`.
    pub(super) fn read(section: &Section) -> Self {
        let mut topology = Self { exchanges: exchanges(section), ..Self::default() };
        let queues = section.sections("queues").into_iter();
        topology.queues = queues.map(|(name, section)| Queue::read(&name, section)).collect();
        for table in section.tables("bindings") {
            let (exchange, queue) = (table.required_string("exchange"), table.required_string("queue"));
            let (key, arguments) = (table.string("key", ""), arguments(&table));
            let _ = table.finish();
            topology.bind(Binding { exchange, queue, key, arguments });
        }
        topology
    }

    /// Adds a binding, and its ends where they are new.
    pub(super) fn bind(&mut self, binding: Binding) {
        // Exchanges with such names are the broker's own.
        let is_own = binding.exchange.starts_with("amq.");
        if !is_own && !self.exchanges.iter().any(|exchange| exchange.name == binding.exchange) {
            self.exchanges.push(Exchange::direct(&binding.exchange));
        }
        if !self.queues.iter().any(|queue| queue.name == binding.queue) {
            self.queues.push(Queue::named(binding.queue.clone(), false));
        }
        self.bindings.push(binding);
    }

    /// # Errors
    /// What cannot be declared, and what the broker says of it: which property differs.
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), String> {
        declare_exchanges(&self.exchanges, channel).await?;
        for Queue { name, options, arguments } in &self.queues {
            let declared = channel.queue_declare(name.as_str().into(), *options, arguments.clone()).await;
            declared.map_err(|error| format!("cannot declare queue {name}: {error}"))?;
        }
        for binding in &self.bindings {
            binding.declare(channel).await?;
        }
        Ok(())
    }
}

/// # Errors
/// See `Topology::declare`.
pub(super) async fn declare_exchanges(exchanges: &[Exchange], channel: &Channel) -> Result<(), String> {
    for Exchange { name, kind, options, arguments } in exchanges {
        let declared = channel.exchange_declare(name.as_str().into(), kind.clone(), *options, arguments.clone()).await;
        declared.map_err(|error| format!("cannot declare exchange {name}: {error}"))?;
    }
    Ok(())
}

fn arguments(section: &Section) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in section.json_table("arguments") {
        table.insert(name.into(), value_of(value));
    }
    table
}

/// JSON as AMQP has it; the configuration and guests write JSON.
pub(super) fn value_of(value: Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(flag),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => AMQPValue::LongLongInt(integer),
            None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => AMQPValue::LongString(text.into()),
        Value::Array(values) => {
            AMQPValue::FieldArray(FieldArray::from(values.into_iter().map(value_of).collect::<Vec<_>>()))
        }
        Value::Object(values) => {
            let mut table = FieldTable::default();
            for (name, value) in values {
                table.insert(name.into(), value_of(value));
            }
            AMQPValue::FieldTable(table)
        }
    }
}
