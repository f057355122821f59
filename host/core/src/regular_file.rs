//! Opens files by paths that others may have written: regular files only. Opening a pipe would block until a writer comes, a
//! terminal or a socket has no end, and opening a device may have effects.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustls::pki_types::pem;

/// Opens a regular file for reading. Links are followed.
///
/// # Errors
/// Those of the system; `InvalidInput`, with the kind of the file, for anything but a regular file; `NotFound`, with the
/// target, for a link to a file that does not exist.
pub fn open(path: &Path) -> io::Result<File> {
    // Checked before, because opening a device may have effects, and after, because the file may have been replaced meanwhile.
    let metadata = fs::metadata(path).map_err(|error| explained(path, error))?;
    check(&metadata)?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// Reads the whole content of a regular file.
///
/// # Errors
/// Those of `open`; `FileTooLarge` for more than `bytes_max` bytes.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let bytes = read_beginning(path, bytes_max.saturating_add(1))?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Reads a file of certificates or keys.
///
/// # Errors
/// Those of `read`; `FileTooLarge` for more than 1 MiB.
pub fn read_pem(path: &Path) -> Result<Vec<u8>, pem::Error> {
    const BYTES_MAX: u64 = 1 << 20;
    read(path, BYTES_MAX).map_err(pem::Error::Io)
}

/// Reads up to `bytes_max` bytes from the beginning of a regular file.
///
/// # Errors
/// Those of `open`.
pub fn read_beginning(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns whether nothing has this name, not even a link to a file that does not exist.
pub fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Checks that a file is a regular one.
///
/// # Errors
/// `InvalidInput`, with the kind of the file.
pub fn check(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let text = format!("it is {}, and only regular files are read", kind(metadata.file_type()));
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

fn kind(kind: FileType) -> &'static str {
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() || kind.is_char_device() => "a device",
        () => "neither a file nor a directory",
    }
}

/// Explains that a path is a link to a file that does not exist.
fn explained(path: &Path, error: io::Error) -> io::Error {
    match fs::read_link(path) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), format!("it is a link to {}, which does not exist", target.display()))
        }
        Ok(_) | Err(_) => error,
    }
}

/// What is known of a file without reading it. A changed file has another stamp, unless two writes of the same length fall
/// into one tick of the file system's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Time of the last write, in seconds and nanoseconds.
    modified: (i64, i64),
    /// Time of the last change of content, owner, mode or links, which programs cannot set.
    changed: (i64, i64),
}

impl FileStamp {
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether this is another file than `other`, rather than the same file after a write.
    pub fn is_another_file(&self, other: &Self) -> bool {
        (self.device, self.inode) != (other.device, other.inode)
    }

    /// Returns whether the file was changed less than two seconds ago, so that a further write might not change the stamp: file
    /// systems store times in steps of up to two seconds.
    pub fn is_recent(&self) -> bool {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        // A time in the future comes from another machine's clock, or was set by hand.
        self.changed.0.max(self.modified.0).abs_diff(now) <= 2
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_are_read_and_the_rest_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("file"), "text").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        symlink("/dev/null", at("device")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(
            (read(&at("file"), 4).unwrap(), read(&at("link"), 4).unwrap()),
            (b"text".to_vec(), b"text".to_vec())
        );
        for (name, expected) in [
            ("pipe", "a pipe"),
            ("directory", "a directory"),
            ("device", "a device"),
            ("dangling", "a link to nowhere, which does not exist"),
            ("absent", "No such file"),
        ] {
            let error = open(&at(name)).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert_eq!(read(&at("file"), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(is_absent(&at("absent")) && !is_absent(&at("dangling")));
    }

    #[test]
    fn a_change_in_place_of_equal_size_and_time_is_another_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "one").unwrap();
        let before = fs::metadata(&path).unwrap();
        // The system's clock for files goes on in steps.
        while fs::metadata(&path).unwrap().ctime_nsec() == before.ctime_nsec() {
            fs::write(&path, "two").unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
        }
        let after = fs::metadata(&path).unwrap();
        assert_eq!(after.modified().unwrap(), before.modified().unwrap());
        assert_ne!(FileStamp::of(&after), FileStamp::of(&before));
        assert!(FileStamp::of(&after).is_recent() && !FileStamp::of(&after).is_another_file(&FileStamp::of(&before)));
    }
}
