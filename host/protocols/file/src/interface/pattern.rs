//! Patterns of file names: `*.csv`, `order-????.xml`.

use std::str::FromStr;

/// The longest pattern. The work of a match is limited by this times the length of a name.
const BYTES_MAX: usize = 255;

/// A pattern: `*` stands for any bytes, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamePattern(Vec<u8>);

impl NamePattern {
    pub(super) fn any() -> Self {
        Self(vec![b'*'])
    }

    /// Returns whether the pattern matches the whole name.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        let pattern = &self.0;
        let (mut at, mut in_name) = (0, 0);
        // The position of the last `*`, and up to where it matches so far.
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, in_name));
                    at += 1;
                }
                Some(byte) if *byte == b'?' || *byte == name[in_name] => {
                    at += 1;
                    in_name += 1;
                }
                Some(_) | None => {
                    let Some((star_at, matched)) = star else { return false };
                    star = Some((star_at, matched + 1));
                    at = star_at + 1;
                    in_name = matched + 1;
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for NamePattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let fits = (1..=BYTES_MAX).contains(&text.len()) && !text.contains(['/', '\0']);
        if fits { Ok(Self(text.as_bytes().to_vec())) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let check = |pattern: &str, name: &str, fits| {
            let pattern: NamePattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(name.as_bytes()), fits, "{pattern:?} {name}");
        };
        check("*", "", true);
        check("*.csv", "a.csv", true);
        check("*.csv", "a.csv.part", false);
        check("*.csv", ".csv.csv", true);
        check("a?c", "abc", true);
        check("a?c", "ac", false);
        check("*a*b*", "xxaxxbxx", true);
        check("*a*b*", "xxbxxaxx", false);
        check("a[b]", "a[b]", true);
        assert!("a/b".parse::<NamePattern>().is_err());
        assert!("".parse::<NamePattern>().is_err());
    }
}
