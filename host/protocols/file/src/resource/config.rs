//! The configuration of a resource: `[resources.x]` with `protocol = "file"`.

use std::path::PathBuf;

use rustix::fs::Mode;

use wasmcage_config::{ConfigError, Section};

pub(super) struct FileResourceConfig {
    pub(super) directory: PathBuf,
    /// The directory for unfinished files. On the same file system a commit is a rename, on another one a copy.
    pub(super) temporary: PathBuf,
    /// The permissions of new files; by default those of the process's umask.
    pub(super) permissions: Option<Mode>,
    /// The largest file that is read whole.
    pub(super) bytes_max: u64,
}

impl FileResourceConfig {
    /// # Errors
    /// All mistakes of the section.
    pub(super) fn read(section: Section) -> Result<Self, ConfigError> {
        if !section.has("directory") {
            section.problem("directory", "required and not set; expected a path");
        }
        let directory = section.path("directory").unwrap_or_default();
        let permissions = section.optional_parsed::<Permissions>("permissions", "three octal digits such as \"640\"");
        let config = Self {
            temporary: section.path("temporary").unwrap_or_else(|| directory.clone()),
            directory,
            permissions: permissions.map(|permissions| permissions.0),
            bytes_max: section.integer("max_bytes", 16 << 20, 1..=1 << 30),
        };
        section.finish()?;
        Ok(config)
    }
}

/// Permissions written as three octal digits.
struct Permissions(Mode);

impl std::str::FromStr for Permissions {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.len() == 3 && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits).ok_or(())?;
        Ok(Self(Mode::from_raw_mode(mode)))
    }
}
