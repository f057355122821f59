//! Opens and hashes the file of a component. It is never read into memory here: the compiler's process reads it from the same
//! open file, and reports the hash of the bytes that it has read.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::compiler::CompileError;
use wasmcage_core::regular_file::{self, FileStamp};

/// The largest size of a component's file, in bytes.
pub const COMPONENT_BYTES_MAX: u64 = 512 << 20;
/// The number of bytes that are read from a file at a time.
const PIECE_BYTES: usize = 256 << 10;
/// The length of the header, which tells what kind of file it is.
const HEADER_BYTES: u64 = 8;

/// The SHA-256 of a component's file, which identifies its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentHash([u8; 32]);

impl ContentHash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads to the end, and returns the hash and the number of bytes.
    ///
    /// # Errors
    /// Returns the reader's error.
    pub fn of_reader(reader: &mut impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut bytes = 0;
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Ok((Self(hasher.finalize().into()), bytes)),
                Ok(read) => {
                    hasher.update(&piece[..read]);
                    bytes += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl std::fmt::Display for ContentHash {
    /// Writes it as `sha256sum` prints it; `{:.12}` gives a short form.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.pad(&digits)
    }
}

impl std::fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// An open file whose header is that of a component.
#[derive(Debug)]
pub struct ComponentFile {
    pub(super) file: File,
    pub path: PathBuf,
    pub hash: ContentHash,
    /// The stamp of the file before it was read.
    pub stamp: FileStamp,
}

impl ComponentFile {
    /// Opens and hashes the file. Blocks.
    ///
    /// # Errors
    /// Returns an error when the file cannot be read, is too large, does not begin like a component, or was changed meanwhile.
    pub fn open(path: &Path) -> Result<Self, CompileError> {
        let failed = |source| CompileError::Read { file: path.to_owned(), source };
        let mut file = regular_file::open(path).map_err(failed)?;
        let stamp = FileStamp::of(&file.metadata().map_err(failed)?);
        if stamp.bytes() > COMPONENT_BYTES_MAX {
            return Err(CompileError::TooLarge { bytes: stamp.bytes() });
        }
        let mut header = Vec::new();
        (&file).take(HEADER_BYTES).read_to_end(&mut header).map_err(failed)?;
        check_header(&header)?;
        file.rewind().map_err(failed)?;
        let (hash, bytes) = ContentHash::of_reader(&mut (&file).take(COMPONENT_BYTES_MAX + 1)).map_err(failed)?;
        file.rewind().map_err(failed)?;
        let after = FileStamp::of(&file.metadata().map_err(failed)?);
        if bytes != stamp.bytes() || after != stamp {
            return Err(CompileError::Changed);
        }
        Ok(Self { file, path: path.to_owned(), hash, stamp })
    }
}

/// Returns the error for a file that is no component, as far as its header tells.
fn check_header(header: &[u8]) -> Result<(), CompileError> {
    match header {
        [b'\0', b'a', b's', b'm', _, _, 1, 0] => Ok(()),
        [b'\0', b'a', b's', b'm', _, _, 0, 0] => Err(CompileError::CoreModule),
        [b'\0', b'a', b's', b'm', ..] => Err(CompileError::Invalid("the header is cut short".into())),
        [] => Err(CompileError::Empty),
        other => Err(CompileError::NotWasm { found: String::from_utf8_lossy(other).into_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content: &[u8], expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.wasm");
        std::fs::write(&path, content).unwrap();
        let error = ComponentFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_no_component_is_told_by_its_first_bytes() {
        check(b"", "empty");
        check(b"#!/bin/sh\n", "not WebAssembly");
        check(b"\0asm\x01\0\0\0", "core module");
        check(b"\0asm\x0d", "cut short");
    }

    #[test]
    fn a_large_file_of_nothing_is_refused_by_its_first_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.wasm");
        let file = File::create(&path).unwrap();
        file.set_len(COMPONENT_BYTES_MAX).unwrap();
        assert!(matches!(ComponentFile::open(&path), Err(CompileError::NotWasm { .. })));
        file.set_len(COMPONENT_BYTES_MAX + 1).unwrap();
        assert!(matches!(ComponentFile::open(&path), Err(CompileError::TooLarge { .. })));
    }

    #[test]
    fn the_hash_is_that_of_the_whole_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.wasm");
        let mut content = b"\0asm\x0d\0\x01\0".to_vec();
        content.resize(PIECE_BYTES * 2 + 7, 7);
        std::fs::write(&path, &content).unwrap();
        assert_eq!(ComponentFile::open(&path).unwrap().hash, ContentHash::of(&content));
    }
}
