//! Which names are meant: `*.csv`, `order-????.xml`.

use std::str::FromStr;

/// Characters of a pattern; the work of a match is bounded by this times those of a name.
const BYTES_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<u8>);

impl Pattern {
    pub(super) fn any() -> Self {
        Self(vec![b'*'])
    }

    /// `?` is one byte.
    pub(super) fn fits(&self, name: &[u8]) -> bool {
        let pattern = &self.0;
        let (mut at, mut in_name) = (0, 0);
        // Where the last `*` is, and what it has swallowed so far.
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
                    let Some((star_at, swallowed)) = star else { return false };
                    star = Some((star_at, swallowed + 1));
                    at = star_at + 1;
                    in_name = swallowed + 1;
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
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
    fn patterns_fit_whole_names() {
        let check = |pattern: &str, name: &str, fits| {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.fits(name.as_bytes()), fits, "{pattern:?} {name}");
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
        assert!("a/b".parse::<Pattern>().is_err());
        assert!("".parse::<Pattern>().is_err());
    }
}
