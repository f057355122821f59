//! The keys of an interface.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::broker::Broker;
use super::handlers::Handlers;
use super::message::Fingerprint;
use super::topology::{Binding, Queue, Topology};
use crate::config::{ConfigError, Section};

/// Of Postage's class GenericApplication.
pub(super) const APPLICATION_EXCHANGE: &str = "generic-application-exchange";

#[derive(Clone)]
pub(super) struct AmqpConfig {
    pub(super) broker: Broker,
    /// Cages do not share connections.
    pub(super) cage_directory: PathBuf,
    pub(super) topology: Topology,
    /// Deliveries of one queue that are in work at once.
    pub(super) prefetch: u16,
    pub(super) format: Format,
    /// None: the interface's `handler` module answers everything.
    pub(super) handlers: Option<Handlers>,
    /// Functions get the whole message, not only its content.
    pub(super) whole: bool,
    /// The commands `quit` and `restart` are obeyed.
    pub(super) defaults: bool,
    /// How often a message that fails is tried, as far as the broker tells.
    pub(super) attempts: u64,
    pub(super) application: Option<Application>,
    pub(super) fingerprint: Fingerprint,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Postage,
    Raw,
}

/// A GenericApplication's names.
#[derive(Clone, Debug)]
pub(super) struct Application {
    pub(super) name: String,
    /// The queue that is this process's own.
    pub(super) own_queue: String,
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
        let application = name.map(|name| application(&mut topology, name, &groups, &fingerprint));
        if topology.queues.is_empty() {
            section.refuse("nothing to consume: [[x.bindings]], [x.queues.NAME] or `application` says which queues");
        }
        let handlers = Handlers::read(&section);
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
            whole: section.choice("pass", &[("content", false), ("message", true)], false),
            defaults: section.flag("defaults", true),
            attempts: section.integer("attempts", if format == Format::Raw { 2 } else { 1 }, 1..=1_000_000),
            application,
            fingerprint,
        };
        section.finish()?;
        Ok(config)
    }
}

/// What others learn of this cage by its messages; `fingerprint = { name, type }` says how it is called.
pub(super) fn fingerprint(section: &Section, application: Option<&str>, vhost: &str) -> Fingerprint {
    let table = section.table("fingerprint");
    let key = |key: &str| table.as_ref().and_then(|table| table.optional_string(key));
    let cage = section.directory().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = key("name").or_else(|| application.map(str::to_owned)).unwrap_or(cage);
    let kind = key("type").unwrap_or_else(|| "application".into());
    // The section around it reports its mistakes, too.
    let _ = table.map(Section::finish);
    Fingerprint {
        name,
        kind,
        pid: std::process::id().to_string(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        user: std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default(),
        vhost: vhost.to_owned(),
    }
}

/// By which an application is told from others at its host. The first of this process has the process's own number, as in the
/// original, where a process is one application; further ones have `.2`, `.3` behind it. The same cage and name, the same
/// text: an application keeps its queue when its configuration changes.
fn application_pid(cage_directory: &Path, name: &str) -> String {
    static APPLICATIONS: Mutex<Vec<(PathBuf, String)>> = Mutex::new(Vec::new());
    let mut known = APPLICATIONS.lock();
    let found = known.iter().position(|(directory, known)| directory == cage_directory && known == name);
    let place = found.unwrap_or_else(|| {
        known.push((cage_directory.to_owned(), name.to_owned()));
        known.len() - 1
    });
    let pid = std::process::id();
    if place == 0 { pid.to_string() } else { format!("{pid}.{}", place + 1) }
}

/// The queues and keys by which a GenericApplication is found: by its name, at its host, as this process, in groups.
fn application(topology: &mut Topology, name: String, groups: &[String], fingerprint: &Fingerprint) -> Application {
    let Fingerprint { pid, host, .. } = fingerprint;
    let (at_host, own) = (format!("{name}@{host}"), format!("{pid}@{host}"));
    for queue in [&name, &at_host, &own] {
        topology.queues.push(Queue::named(queue.clone(), true));
    }
    let mut bind = |queue: &str, key: String| topology.bind(Binding::new(APPLICATION_EXCHANGE, queue, key));
    bind(&name, format!("{name}/rr"));
    bind(&own, name.clone());
    bind(&own, format!("@{host}"));
    bind(&at_host, format!("{at_host}/rr"));
    bind(&own, at_host.clone());
    bind(&own, own.clone());
    for group in groups {
        let group = format!("{name}#{group}");
        bind(&own, group.clone());
        bind(&group, format!("{group}/rr"));
    }
    Application { name, own_queue: own }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::section;

    fn read(keys: &str) -> Result<AmqpConfig, String> {
        let section = section(keys);
        // Every interface has this key; the table within one does not.
        section.optional_string("protocol");
        AmqpConfig::read(section).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_refused(keys: &str, text: &str) {
        let told = read(keys).map(|_| ()).expect_err("it is refused");
        assert!(told.contains(text), "{told}");
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
        let Fingerprint { pid, host, .. } = &config.fingerprint;
        let bindings: Vec<_> = config.topology.bindings.iter().map(|b| format!("{} {}", b.queue, b.key)).collect();
        let own = format!("{pid}@{host}");
        let expected = [
            "a a/rr".to_owned(),
            format!("{own} a"),
            format!("{own} @{host}"),
            format!("a@{host} a@{host}/rr"),
            format!("{own} a@{host}"),
            format!("{own} {own}"),
            format!("{own} a#g"),
            "a#g a#g/rr".to_owned(),
        ];
        assert_eq!(bindings, expected);
        assert_eq!(config.topology.exchanges.len(), 1);
    }

    #[test]
    fn applications_of_one_process_are_told_apart() {
        let pid = |cage: &str, name: &str| application_pid(Path::new(cage), name);
        assert_eq!(pid("/c", "x"), pid("/c", "x"));
        let all = [pid("/c", "x"), pid("/c", "y"), pid("/d", "x")];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        assert!(all.iter().all(|pid| pid.starts_with(&std::process::id().to_string())), "{all:?}");
    }

    #[test]
    fn mistakes_are_told() {
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
}
