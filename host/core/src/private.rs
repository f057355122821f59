//! Files that only their owner may access: durable state, logs, keys, compiled code. Directories are created with mode 0700
//! and files with 0600, less what the umask removes. What root creates in a directory of another user is given to that user,
//! so that root can inspect a cage without locking its user out.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Creates a directory whose parent exists; one that exists already stays as it is.
///
/// # Errors
/// It cannot be created, or the path is no directory.
pub fn create_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Ok(()) => give_to_owner_of_parent(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Opens a file with these options. A file that this creates is private and belongs to the owner of its directory.
///
/// # Errors
/// Those of opening it.
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let existed = path.symlink_metadata().is_ok();
    let file = options.clone().mode(FILE_MODE).open(path)?;
    if !existed {
        give_to_owner_of_parent(path)?;
    }
    Ok(file)
}

/// Gives a file or directory that root has just created to the owner of its directory. Does nothing for other users, who
/// cannot change owners.
///
/// # Errors
/// The owner cannot be read or changed.
pub(crate) fn give_to_owner_of_parent(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.metadata()?;
    let made = path.symlink_metadata()?;
    if (made.uid(), made.gid()) == (parent.uid(), parent.gid()) {
        return Ok(());
    }
    // If the path is a link, the owner of the link changes, never that of its target.
    std::os::unix::fs::lchown(path, Some(parent.uid()), Some(parent.gid()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;

    #[test]
    fn what_is_made_is_private_and_what_is_there_keeps_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let (made, there) = (directory.path().join("made"), directory.path().join("there"));
        create_directory(&made).expect("made");
        assert_eq!(made.metadata().expect("there").mode() & 0o777, DIRECTORY_MODE);
        DirBuilder::new().mode(0o750).create(&there).expect("made");
        let mode = there.metadata().expect("there").mode();
        create_directory(&there).expect("there already");
        assert_eq!(there.metadata().expect("there").mode(), mode);

        let file = made.join("file");
        open(&file, OpenOptions::new().write(true).create(true)).expect("made");
        assert_eq!(file.metadata().expect("there").mode() & 0o777, FILE_MODE);
        assert!(create_directory(&file).is_err(), "a file is no directory");
    }

    #[test]
    fn a_file_belongs_to_its_maker_who_owns_the_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        open(&file, OpenOptions::new().write(true).create(true)).expect("made");
        let owner = directory.path().metadata().expect("there").uid();
        assert_eq!(file.metadata().expect("there").uid(), owner);
    }

    #[test]
    fn as_superuser_what_is_made_belongs_to_the_owner_of_the_directory() {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test cannot run here: only root can give files to another user. `cargo test -- --skip as_superuser` \
             leaves out such tests"
        );
        let directory = tempfile::tempdir().expect("a directory");
        chown(directory.path(), Some(65_534), Some(65_534)).expect("root may");
        let state = directory.path().join("state");
        create_directory(&state).expect("made");
        let file = state.join("file");
        open(&file, OpenOptions::new().write(true).create(true)).expect("made");
        for path in [&state, &file] {
            let metadata = path.metadata().expect("there");
            assert_eq!((metadata.uid(), metadata.gid()), (65_534, 65_534), "{}", path.display());
        }
    }
}
