//! Names of the file's tables.

use redb::TableDefinition;

pub(super) type TableDef = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// A table of the file. Its keys and values are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Keys of modules.
    Keys,
    /// Queues of modules.
    Queues,
    /// Number of bytes and keys that each module has stored.
    Usage,
    /// Retried calls.
    Calls,
    /// When pending calls are due.
    CallsDue,
    /// Ids of calls that were accepted.
    CallsSeen,
    /// State of interfaces that must survive a restart.
    Interfaces,
}

impl Space {
    pub(super) const COUNT: usize = 7;
    pub(super) const ALL: [Self; Self::COUNT] =
        [Self::Keys, Self::Queues, Self::Usage, Self::Calls, Self::CallsDue, Self::CallsSeen, Self::Interfaces];

    pub(super) fn table(self) -> TableDef {
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
