//! Lists the watched directories. This runs on a thread that may block, since a network file system may not answer.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::notifications::{Inodes, Notifications, inodes};
use crate::module::component_file::{ComponentFile, ContentHash};
use wasmcage_config as config;
use wasmcage_core::regular_file::FileStamp;

/// The largest number of ignored files that are reported; if there are more, their names are hardly mistakes.
const IGNORED_MAX: usize = 100;

/// A module's file as it was last looked at.
#[derive(Clone, Debug)]
pub(super) struct Sighting {
    pub(super) path: PathBuf,
    /// The stamp, or `None` if the file has no metadata to read, such as a link that leads nowhere.
    pub(super) stamp: Option<FileStamp>,
    /// The hash of the content, if it was read.
    pub(super) hash: Option<ContentHash>,
    /// Is true if a further write is certain to change the stamp.
    pub(super) is_sure: bool,
}

impl Sighting {
    pub(super) fn new(path: PathBuf) -> Self {
        let stamp = fs::metadata(&path).ok().map(|metadata| FileStamp::of(&metadata));
        let is_sure = stamp.as_ref().is_none_or(|stamp| !stamp.is_recent());
        Self { path, stamp, hash: None, is_sure }
    }

    /// Returns the sighting of a file that was read.
    pub(super) fn of(file: &ComponentFile) -> Self {
        let is_sure = !file.stamp.is_recent();
        Self { path: file.path.clone(), stamp: Some(file.stamp.clone()), hash: Some(file.hash), is_sure }
    }

    /// Returns true if both have the same path and the same stamp.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (&self.path, &self.stamp) == (&other.path, &other.stamp)
    }
}

/// The content of the watched directories.
pub(super) struct Look {
    /// The modules' files, by module name.
    pub(super) modules: BTreeMap<String, Sighting>,
    /// The files whose names look like those of modules, with the reason why they are not.
    pub(super) ignored: BTreeMap<PathBuf, &'static str>,
    /// Is false when a directory could not be read, so that a file which is missing here may exist.
    pub(super) is_whole: bool,
    /// New notifications, or the error, if the directories are other ones than those watched so far.
    pub(super) notifications: Option<notify::Result<Notifications>>,
}

impl Look {
    /// Lists the cage's own and the shared directory. A file in the first hides one of the same name in the second. `known`
    /// are the directories that are watched so far. Blocks.
    pub(super) fn take(directories: [&Path; 2], known: Option<Inodes>) -> Self {
        let notifications = (known != Some(inodes(directories))).then(|| Notifications::start(directories));
        let mut look = Self { modules: BTreeMap::new(), ignored: BTreeMap::new(), is_whole: true, notifications };
        for directory in directories {
            match fs::read_dir(directory) {
                Ok(entries) => entries.for_each(|entry| look.add(entry.map(|entry| entry.path()))),
                Err(error) => look.is_whole &= is_missing(&error),
            }
        }
        look
    }

    fn add(&mut self, path: io::Result<PathBuf>) {
        let Ok(path) = path else {
            self.is_whole = false;
            return;
        };
        if let Some(name) = module_name(&path) {
            self.modules.entry(name).or_insert_with(|| Sighting::new(path));
        } else if let Some(reason) = ignored(&path)
            && self.ignored.len() < IGNORED_MAX
        {
            self.ignored.insert(path, reason);
        }
    }
}

/// Returns the path of a module's file in the cage's own or else in the shared directory. Blocks.
///
/// # Errors
/// Returns an error when a directory cannot be searched, so that it is not known if there is a file.
pub(super) fn locate(directories: [&Path; 2], name: &str) -> io::Result<Option<PathBuf>> {
    for directory in directories {
        let path = directory.join(format!("{name}.wasm"));
        match fs::symlink_metadata(&path) {
            Ok(_) => return Ok(Some(path)),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns the name of the module in a file: `work` for `work.wasm`. Dot-files and other files are no modules.
pub fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".wasm")?;
    config::is_name(name).then(|| name.to_owned())
}

/// Returns why a file that looks like a module's is ignored, or `None` for modules and for all other files.
pub fn ignored(path: &Path) -> Option<&'static str> {
    const RULE: &str = "ignored: a module is called by its file's name, which is 1 to 64 letters a-z, digits, `_` or `-`, \
                        and .wasm; rename it";
    let name = path.file_name().map(OsStr::as_encoded_bytes).filter(|name| !name.starts_with(b"."))?;
    let end = name.len().checked_sub(b".wasm".len())?;
    (name[end..].eq_ignore_ascii_case(b".wasm") && module_name(path).is_none()).then_some(RULE)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[track_caller]
    fn check(path: &str, name: Option<&str>, is_ignored: bool) {
        let path = Path::new(path);
        assert_eq!((module_name(path).as_deref(), ignored(path).is_some()), (name, is_ignored));
    }

    #[test]
    fn only_plain_wasm_files_are_modules_and_what_looks_like_one_is_told() {
        check("/cages/runner/work.wasm", Some("work"), false);
        check("interface_my_http.wasm", Some("interface_my_http"), false);
        check(".work.wasm", None, false);
        check("work.wasm.part", None, false);
        check("cage.toml", None, false);
        check(".wasm", None, false);
        check("wasm", None, false);
        check("a b.wasm", None, true);
        check("hello.component.wasm", None, true);
        check("über.wasm", None, true);
        check("Work.WASM", None, true);
        assert!(ignored(Path::new(OsStr::from_bytes(b"\xff.wasm"))).is_some());
    }

    #[test]
    fn a_look_finds_modules_links_that_lead_nowhere_and_names_that_are_none() {
        let root = tempfile::tempdir().unwrap();
        let [own, shared] = ["own", "shared"].map(|name| root.path().join(name));
        fs::create_dir(&own).unwrap();
        let look = |known| Look::take([&own, &shared], known);
        fs::write(own.join("a.wasm"), "").unwrap();
        symlink("nowhere", own.join("b.wasm")).unwrap();
        fs::write(own.join("a.b.wasm"), "").unwrap();
        let first = look(None);
        assert!(first.is_whole && first.notifications.is_some());
        assert_eq!(first.modules.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(first.modules["b"].stamp.is_none() && first.ignored.len() == 1);
        // An entry of the cage's own directory hides the shared one of the same name, even if it is a link that leads nowhere.
        fs::create_dir(&shared).unwrap();
        ["a", "b", "c"].iter().for_each(|name| fs::write(shared.join(format!("{name}.wasm")), "").unwrap());
        let second = look(Some(inodes([&own, &shared])));
        assert!(second.notifications.is_none());
        assert_eq!(second.modules["b"].path, own.join("b.wasm"));
        assert_eq!(locate([&own, &shared], "c").unwrap(), Some(shared.join("c.wasm")));
        assert_eq!(locate([&own, &shared], "d").unwrap(), None);
    }
}
