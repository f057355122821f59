//! Names of files beneath a directory, as a module writes them: `a.txt`, `2026/11/a.txt`.

use std::str::FromStr;

/// Parts of a name.
const PARTS_MAX: usize = 32;
/// Bytes of a part, as file systems have it.
const PART_BYTES_MAX: usize = 255;

/// What the host's own names begin with: of files that are not complete yet.
pub(super) const OWN_PREFIX: &str = ".wasmcage-";

pub(super) fn is_own(name: &[u8]) -> bool {
    name.starts_with(OWN_PREFIX.as_bytes())
}

/// A name that does not leave the directory it is in, as far as a name can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) directories: Vec<String>,
    pub(super) file: String,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a name such as \"a.txt\" or \"2026/a.txt\": at most {PARTS_MAX} parts of {PART_BYTES_MAX} bytes, none of them \
     empty, `.`, `..` or the host's own"
)]
pub(super) struct InvalidName;

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut directories: Vec<String> = text.split('/').map(str::to_owned).collect();
        let fits = |part: &String| {
            (1..=PART_BYTES_MAX).contains(&part.len())
                && part != "."
                && part != ".."
                && !part.contains('\0')
                && !is_own(part.as_bytes())
        };
        if directories.len() > PARTS_MAX || !directories.iter().all(fits) {
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
            assert_eq!(outside.parse::<Name>(), Err(InvalidName), "{outside:?}");
        }
        assert!("x".repeat(256).parse::<Name>().is_err());
        assert!(["a"; 33].join("/").parse::<Name>().is_err());
        let name: Name = "2026/.hidden/a b\u{1}ü.txt".parse().unwrap();
        assert_eq!((name.directories.len(), name.file.as_str()), (2, "a b\u{1}ü.txt"));
    }
}
