//! What a test needs beside the toolchain and the built guests, and may not find on a machine: servers, rights, file systems.
//!
//! A test fails where its need is missing; none passes without having run. `tests/run` gets what it can, and leaves out the
//! tests of what it could not get by a part of their paths: a test lies in a module that is named after its need.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// Something that tests need and that a machine may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    RabbitMq,
    /// A Python 3 with the package `pika`.
    Pika,
    /// A Python 2.7 with the original Postage.
    Postage,
    Postgres,
    PgBouncer,
    MariaDb,
    /// Guests written in Python, which componentize-py builds.
    PythonGuests,
    Superuser,
    MountNamespace,
    /// A directory on another file system than temporary files.
    SecondFileSystem,
    /// Machines that reach each other by multicast: network namespaces, or the loopback interface.
    Multicast,
}

impl Need {
    pub const ALL: [Self; 11] = [
        Self::RabbitMq,
        Self::Pika,
        Self::Postage,
        Self::Postgres,
        Self::PgBouncer,
        Self::MariaDb,
        Self::PythonGuests,
        Self::Superuser,
        Self::MountNamespace,
        Self::SecondFileSystem,
        Self::Multicast,
    ];

    /// The part of a test's path by which `tests/run` leaves it out.
    pub fn filter(self) -> &'static str {
        match self {
            Self::RabbitMq => "with_rabbitmq",
            Self::Pika => "with_pika",
            Self::Postage => "with_postage",
            Self::Postgres => "with_postgres",
            Self::PgBouncer => "with_postgres_behind_pgbouncer",
            Self::MariaDb => "with_mariadb",
            Self::PythonGuests => "with_python",
            Self::Superuser => "as_superuser",
            Self::MountNamespace => "in_mount_namespace",
            Self::SecondFileSystem => "with_second_file_system",
            Self::Multicast => "with_multicast",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::RabbitMq => "install rabbitmq-server, or name its script by RABBITMQ_SERVER",
            Self::Pika => "install pika 1.3.2 for python3, or name a Python that has it by PIKA_PYTHON",
            Self::Postage => "name a Python 2.7 that has postage 1.2.1 by POSTAGE_PYTHON",
            Self::Postgres => "install postgresql, or name the directory of its programs by POSTGRES_BIN",
            Self::PgBouncer => "install pgbouncer, or name its program by PGBOUNCER",
            Self::MariaDb => "install mariadb-server-core, or name the program mariadbd by MARIADBD",
            Self::PythonGuests => "install componentize-py 0.25.1 and build the guests by `tests/run guests`",
            Self::Superuser => "run the tests as root",
            Self::MountNamespace => "run the tests as root, where namespaces are permitted",
            Self::SecondFileSystem => {
                "mount a writable file system at /dev/shm, or set TMPDIR to a directory elsewhere"
            }
            Self::Multicast => {
                "run the tests where `ip netns add` is permitted, or multicast over the loopback interface"
            }
        }
    }
}

/// Fails the test, which cannot run here. `found` says how that was seen.
///
/// # Panics
/// Always.
#[track_caller]
pub fn missing(need: Need, found: impl Display) -> ! {
    let (remedy, filter) = (need.remedy(), need.filter());
    panic!("this test cannot run here: {found}; {remedy}. `cargo test -- --skip {filter}` leaves out such tests")
}

pub fn is_superuser() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Fails a test that is not run by root.
///
/// # Panics
/// When it is not.
#[track_caller]
pub fn require_superuser() {
    if !is_superuser() {
        missing(Need::Superuser, "only root can give files to another user");
    }
}
