//! Parses names of files beneath a directory: `a.txt`, `2026/11/a.txt`.

use std::str::FromStr;

/// The most parts of a name.
const PARTS_MAX: usize = 32;
/// The longest part of a name, which is the limit of most file systems.
const PART_BYTES_MAX: usize = 255;

/// The beginning of the names of the host's own files, which are not complete yet.
pub(super) const OWN_PREFIX: &str = ".wasmcage-";

pub(super) fn is_own(name: &[u8]) -> bool {
    name.starts_with(OWN_PREFIX.as_bytes())
}

/// A name without parts that would lead out of its directory. Symbolic links are `directory.rs`'s concern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileName {
    pub(super) directories: Vec<String>,
    pub(super) file: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a name such as \"a.txt\" or \"2026/a.txt\": at most {PARTS_MAX} parts of {PART_BYTES_MAX} bytes, none of them \
     empty, `.`, `..` or the host's own"
)]
pub(super) struct InvalidName;

impl FromStr for FileName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut directories: Vec<String> = text.split('/').map(str::to_owned).collect();
        let is_valid = |part: &String| {
            (1..=PART_BYTES_MAX).contains(&part.len())
                && part != "."
                && part != ".."
                && !part.contains('\0')
                && !is_own(part.as_bytes())
        };
        if directories.len() > PARTS_MAX || !directories.iter().all(is_valid) {
            return Err(InvalidName);
        }
        let file = directories.pop().ok_or(InvalidName)?;
        Ok(Self { directories, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for outside in ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a\0b", ".wasmcage-1.tmp"] {
            assert_eq!(outside.parse::<FileName>(), Err(InvalidName), "{outside:?}");
        }
        assert!("x".repeat(256).parse::<FileName>().is_err());
        assert!(["a"; 33].join("/").parse::<FileName>().is_err());
        let name: FileName = "2026/.hidden/a b\u{1}ü.txt".parse().unwrap();
        assert_eq!((name.directories.len(), name.file.as_str()), (2, "a b\u{1}ü.txt"));
    }
}
