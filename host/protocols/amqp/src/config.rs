//! The configuration of an interface.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lapin::types::ShortString;
use parking_lot::Mutex;

use super::broker::Broker;
use super::handlers::Handlers;
use super::message::PostageFingerprint;
use super::topology::{ExchangeDeclaration, QueueBinding, QueueDeclaration, Topology, is_the_brokers_own};
use super::user::user;
use super::value::short;
use wasmcage_config::{ConfigError, Section};

/// The exchange of Postage's class GenericApplication.
const APPLICATION_EXCHANGE: &str = "generic-application-exchange";
/// The most groups of an application.
pub(super) const GROUPS_MAX: usize = 1_000;

#[derive(Clone)]
pub(super) struct AmqpConfig {
    pub(super) broker: Broker,
    /// Connections are shared within this cage only.
    pub(super) cage_directory: PathBuf,
    pub(super) topology: Topology,
    /// The most unsettled deliveries of each queue.
    pub(super) prefetch: u16,
    pub(super) format: Format,
    /// None if the interface's `handler` module gets all messages.
    pub(super) handlers: Option<Handlers>,
    /// The exchange of replies, whose routing key is the requester's `reply_to`; empty for the default exchange.
    pub(super) reply_exchange: ShortString,
    /// True if messages may give the commands `quit` and `restart`.
    pub(super) defaults: bool,
    /// The most attempts for a message that fails, as far as the broker counts them.
    pub(super) attempts: u64,
    pub(super) application: Option<Application>,
    pub(super) fingerprint: PostageFingerprint,
}

/// The format of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Postage,
    Raw,
}

/// The names of a GenericApplication.
#[derive(Clone, Debug)]
pub(super) struct Application {
    name: String,
    /// The queue of this process alone.
    own_queue: ShortString,
    /// The groups that it joins at its start.
    pub(super) groups: BTreeSet<String>,
}

impl Application {
    /// The binding by which the application's own queue gets the messages to all members of a group.
    ///
    /// # Errors
    /// The group's name is too long.
    pub(super) fn group_binding(&self, group: &str) -> Result<QueueBinding, String> {
        let key = short(&format!("{}#{group}", self.name), "the key of a group")?;
        Ok(QueueBinding::new(APPLICATION_EXCHANGE.into(), self.own_queue.clone(), key))
    }
}

impl AmqpConfig {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        let broker = Broker::read(&section);
        let format = section.choice("format", &[("postage", Format::Postage), ("raw", Format::Raw)], Format::Postage);
        let name = section.optional_string("application");
        let mut fingerprint = fingerprint(&section, name.as_deref(), &broker.vhost);
        if let Some(name) = &name {
            fingerprint.pid = application_pid(section.directory(), name);
        }
        let mut topology = Topology::read(&section);
        let groups = section.strings("groups", &[]);
        if !groups.is_empty() && name.is_none() {
            section.problem("groups", "groups are an application's: `application` is not set");
        }
        if name.is_some() && format == Format::Raw {
            section.problem("application", "an application speaks format \"postage\"");
        }
        let application = name.and_then(|name| {
            let made = application(&mut topology, name, &groups, &fingerprint);
            made.inspect_err(|(key, text)| section.problem(key, text)).ok()
        });
        let reply_exchange = reply_exchange(&section, &mut topology.exchanges);
        if topology.queues.is_empty() {
            section.refuse("nothing to consume: [[x.bindings]], [x.queues.NAME] or `application` says which queues");
        }
        let whole = section.choice("pass", &[("content", false), ("message", true)], false);
        let handlers = Handlers::read(&section, whole);
        if handlers.is_some() && format == Format::Raw {
            section
                .problem("handlers", "keys are those of format \"postage\"; raw messages go to the `handler` module");
        }
        let config = Self {
            broker,
            cage_directory: section.directory().to_owned(),
            topology,
            prefetch: section.integer("prefetch", 32, 1..=10_000) as u16,
            format,
            handlers,
            reply_exchange,
            defaults: section.flag("defaults", true),
            attempts: section.integer("attempts", if format == Format::Raw { 2 } else { 1 }, 1..=1_000_000),
            application,
            fingerprint,
        };
        section.finish()?;
        Ok(config)
    }
}

/// Reads `reply_exchange`, and adds its declaration to `exchanges` unless the broker has it anyway.
pub(super) fn reply_exchange(section: &Section, exchanges: &mut Vec<ExchangeDeclaration>) -> ShortString {
    let name = short(&section.string("reply_exchange", ""), "the name of an exchange").unwrap_or_else(|text| {
        section.problem("reply_exchange", text);
        ShortString::default()
    });
    if !is_the_brokers_own(name.as_str()) && !exchanges.iter().any(|known| known.name == name) {
        exchanges.push(ExchangeDeclaration::direct(name.clone()));
    }
    name
}

/// This cage as its messages name it; `fingerprint = { name, type }` in the configuration changes name and type.
pub(super) fn fingerprint(section: &Section, application: Option<&str>, vhost: &str) -> PostageFingerprint {
    let table = section.table("fingerprint");
    let key = |key: &str| table.as_ref().and_then(|table| table.optional_string(key));
    let cage = section.directory().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = key("name").or_else(|| application.map(str::to_owned)).unwrap_or(cage);
    let kind = key("type").unwrap_or_else(|| "application".into());
    // The enclosing section reports its mistakes, too.
    let _ = table.map(Section::finish);
    PostageFingerprint {
        name,
        kind,
        pid: std::process::id().to_string(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        user: user(),
        vhost: vhost.to_owned(),
    }
}

/// The id that distinguishes an application from others at its host. The first application of this process has the
/// process id, as in Postage, where a process is one application; further ones have `.2`, `.3` behind it. The same cage
/// and name always get the same id, so an application keeps its queue when its configuration changes.
fn application_pid(cage_directory: &Path, name: &str) -> String {
    static APPLICATIONS: Mutex<Vec<(PathBuf, String)>> = Mutex::new(Vec::new());
    let mut known = APPLICATIONS.lock();
    let found = known.iter().position(|(directory, known)| directory == cage_directory && known == name);
    let index = found.unwrap_or_else(|| {
        known.push((cage_directory.to_owned(), name.to_owned()));
        known.len() - 1
    });
    let pid = std::process::id();
    if index == 0 { pid.to_string() } else { format!("{pid}.{}", index + 1) }
}

/// Adds the queues and bindings of a GenericApplication to `topology`. It is addressed by its name, by name and host,
/// by process id and host, and by its groups.
///
/// # Errors
/// The key of the configuration that makes a name too long, and a text that says how long.
fn application(
    topology: &mut Topology,
    name: String,
    groups: &[String],
    fingerprint: &PostageFingerprint,
) -> Result<Application, (&'static str, String)> {
    let PostageFingerprint { pid, host, .. } = fingerprint;
    let of_name = |text: String| short(&text, "a name of the application's").map_err(|why| ("application", why));
    if name.is_empty() {
        return Err(("application", "an application has a name".into()));
    }
    if groups.len() > GROUPS_MAX {
        return Err(("groups", format!("at most {GROUPS_MAX} groups")));
    }
    let (own_name, at_host, own) =
        (of_name(name.clone())?, of_name(format!("{name}@{host}"))?, of_name(format!("{pid}@{host}"))?);
    for queue in [&own_name, &at_host, &own] {
        topology.queues.push(QueueDeclaration::named(queue.clone(), true));
    }
    let mut bind = |queue: &ShortString, key: ShortString| {
        topology.bind(QueueBinding::new(APPLICATION_EXCHANGE.into(), queue.clone(), key));
    };
    bind(&own_name, of_name(format!("{name}/rr"))?);
    bind(&own, own_name.clone());
    bind(&own, of_name(format!("@{host}"))?);
    bind(&at_host, of_name(format!("{name}@{host}/rr"))?);
    bind(&own, at_host.clone());
    bind(&own, own.clone());
    for group in groups {
        let of_group = |text: String| short(&text, "a name of the group's").map_err(|why| ("groups", why));
        let key = of_group(format!("{name}#{group}/rr"))?;
        bind(&of_group(format!("{name}#{group}"))?, key);
    }
    Ok(Application { name, own_queue: own, groups: groups.iter().cloned().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasmcage_config::testing::section;

    fn read(keys: &str) -> Result<AmqpConfig, String> {
        let section = section(keys);
        // Every interface has this key; the table within one does not.
        section.optional_string("protocol");
        AmqpConfig::read(section).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_refused(keys: &str, text: &str) {
        let error = read(keys).map(|_| ()).expect_err("it is refused");
        assert!(error.contains(text), "{error}");
    }

    #[test]
    fn brokers_are_named_without_their_passwords() {
        let config = read("application = 'a'\nurl = 'amqp://me:hush@host:77/%2Fv'").unwrap();
        assert_eq!(config.broker.to_string(), "amqp://me@host:77//v");
        assert_eq!(config.broker.uri().authority.userinfo.password, "hush");
        let config = read("application = 'a'\nhost = 'b'\nuser = 'u'\npassword = 'p'\nvhost = 'v'\ntls = {}").unwrap();
        assert_eq!(config.broker.to_string(), "amqps://u@b:5671/v");
        assert!(read("application = 'a'\nurl = 'amqps://host'").unwrap().broker.tls.is_some());
    }

    #[test]
    fn an_application_has_its_queues_and_keys() {
        let config = read("application = 'a'\ngroups = ['g']").unwrap();
        let PostageFingerprint { pid, host, .. } = &config.fingerprint;
        let bindings: Vec<_> = config.topology.bindings.iter().map(|b| format!("{} {}", b.queue, b.key)).collect();
        let own = format!("{pid}@{host}");
        let expected = [
            "a a/rr".to_owned(),
            format!("{own} a"),
            format!("{own} @{host}"),
            format!("a@{host} a@{host}/rr"),
            format!("{own} a@{host}"),
            format!("{own} {own}"),
            "a#g a#g/rr".to_owned(),
        ];
        assert_eq!(bindings, expected);
        let application = config.application.unwrap();
        let group = application.group_binding(application.groups.first().unwrap()).unwrap();
        assert_eq!(format!("{} {}", group.queue, group.key), format!("{own} a#g"));
        assert_eq!(config.topology.exchanges.len(), 1);
    }

    #[test]
    fn applications_of_one_process_have_different_ids() {
        let pid = |cage: &str, name: &str| application_pid(Path::new(cage), name);
        assert_eq!(pid("/c", "x"), pid("/c", "x"));
        let all = [pid("/c", "x"), pid("/c", "y"), pid("/d", "x")];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        assert!(all.iter().all(|pid| pid.starts_with(&std::process::id().to_string())), "{all:?}");
    }

    #[test]
    fn mistakes_are_reported() {
        check_refused("", "nothing to consume");
        check_refused("application = 'a'\nurl = 'http://x'", "scheme http:// is none of amqp://");
        check_refused("application = 'a'\nurl = 'x'", "expected amqp://");
        check_refused("application = 'a'\nurl = 'amqp://x'\nhost = 'y'", "said by url, too");
        check_refused("application = 'a'\nformat = 'raw'", "speaks format");
        check_refused("groups = ['a']", "groups are an application's");
        check_refused("application = 'a'\nprefetch = 0", "an integer from 1");
        check_refused("application = 'a'\ntls = { ca = 'none.pem' }", "cannot use");
        check_refused("application = 'a'\nhandlers = { x = 'a.b' }", "expected a key such as");
        check_refused("queues.q = { type = 'quorum', durable = false }", "a quorum queue is durable");
        check_refused("queues.q = { durble = false }", "did you mean `durable`");
        check_refused("bindings = [{ queue = 'q' }]", "required");
    }

    /// Each key that takes a name accepts 255 bytes, and reports a longer name with the key.
    #[test]
    fn names_that_amqp_cannot_have_are_reported_with_their_keys() {
        let places = [
            ("queues.NAME = {}", "interfaces.test.queues"),
            ("queues.q = {}\nexchanges.NAME = {}", "interfaces.test.exchanges"),
            ("bindings = [{ exchange = NAME, queue = 'q' }]", "bindings[0].exchange"),
            ("bindings = [{ exchange = 'e', queue = NAME }]", "bindings[0].queue"),
            ("bindings = [{ exchange = 'e', queue = 'q', key = NAME }]", "bindings[0].key"),
            ("bindings = [{ exchange = 'e', queue = 'q', arguments = { NAME = 1 } }]", "bindings[0].arguments"),
            ("queues.q = { arguments = { NAME = 1 } }", "queues.q.arguments"),
            ("queues.q = { arguments = { a = { NAME = 1 } } }", "queues.q.arguments"),
            ("queues.q = {}\nexchanges.e = { arguments = { NAME = 1 } }", "exchanges.e.arguments"),
            ("application = NAME", "application"),
            ("application = 'a'\ngroups = [NAME]", "groups"),
            ("queues.q = {}\nvhost = NAME", "vhost"),
            ("queues.q = {}\nreply_exchange = NAME", "reply_exchange"),
        ];
        for (keys, key) in places {
            for bytes in [256, 260, 100_000] {
                let name = format!("'{}'", "x".repeat(bytes));
                let error = read(&keys.replace("NAME", &name)).map(|_| ()).expect_err(key);
                assert!(error.contains(key) && error.contains("longer than 255 bytes"), "{key}: {error}");
                assert!(error.len() < 1_000, "{key}: {} bytes", error.len());
            }
        }
        for keys in ["queues.NAME = {}", "bindings = [{ exchange = NAME, queue = 'q' }]", "application = NAME"] {
            let error = read(&keys.replace("NAME", "''")).map(|_| ()).expect_err(keys);
            assert!(error.contains("must not be empty") || error.contains("has a name"), "{error}");
        }
        let longest = format!("'{}'", "x".repeat(255));
        for (keys, key) in places.into_iter().filter(|(_, key)| !matches!(*key, "application" | "groups")) {
            let read = read(&keys.replace("NAME", &longest));
            assert!(read.is_ok(), "{key}: {}", read.err().unwrap_or_default());
        }
    }
}
