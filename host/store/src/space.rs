//! The tables of the file.

use redb::TableDefinition;

pub(super) type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Tables of the file: keys and values are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Of modules' keys.
    Keys,
    /// Of modules' queues.
    Queues,
    /// Bytes and keys of each module.
    Usage,
    /// Retried calls: the calls themselves, when they are due, names that were seen.
    Calls,
    CallsDue,
    CallsSeen,
    /// Of interfaces: what they must know again after a restart.
    Interfaces,
}

impl Space {
    pub(super) const COUNT: usize = 7;
    pub(super) const ALL: [Self; Self::COUNT] =
        [Self::Keys, Self::Queues, Self::Usage, Self::Calls, Self::CallsDue, Self::CallsSeen, Self::Interfaces];

    pub(super) fn table(self) -> Table {
        TableDefinition::new(match self {
            Self::Keys => "keys",
            Self::Queues => "queues",
            Self::Usage => "usage",
            Self::Calls => "calls",
            Self::CallsDue => "calls_due",
            Self::CallsSeen => "calls_seen",
            Self::Interfaces => "interfaces",
        })
    }
}
