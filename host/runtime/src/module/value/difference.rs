//! Describes where two function types differ, for `Signature::difference`, so that the message about a binding that does not
//! fit says what to change.

use super::Signature;
use super::shape::Shape;

pub(super) fn signatures(expected: &Signature, found: &Signature) -> Option<String> {
    if expected.fingerprint == found.fingerprint {
        return None;
    }
    if expected.is_async != found.is_async {
        return Some("one is async, the other is not".into());
    }
    let (ours, theirs) = (&expected.parameters, &found.parameters);
    if ours.len() != theirs.len() {
        return Some(format!("it has {} parameters instead of {}", theirs.len(), ours.len()));
    }
    for ((name, shape), (other, found)) in ours.iter().zip(theirs) {
        if name != other {
            return Some(format!("parameter `{name}` is expected, it has `{other}` there"));
        }
        if let Some(text) = shapes(&format!("parameter `{name}`"), shape, found) {
            return Some(text);
        }
    }
    let difference = match (&expected.result, &found.result) {
        (None, None) => None,
        (Some(expected), None) => Some(format!("the result: {expected} is expected, it has none")),
        (None, Some(found)) => Some(format!("the result: none is expected, it has {found}")),
        (Some(expected), Some(found)) => shapes("the result", expected, found),
    };
    Some(difference.unwrap_or_else(|| "its type has another fingerprint".into()))
}

/// Describes where two types differ. `place` names the part that is compared, such as `parameter `point`, field `x``.
fn shapes(place: &str, expected: &Shape, found: &Shape) -> Option<String> {
    if expected == found {
        return None;
    }
    let within = |part: &str, expected: &Shape, found: &Shape| shapes(&format!("{place}, {part}"), expected, found);
    let inner = match (expected, found) {
        (Shape::List(expected), Shape::List(found)) => within("element", expected, found),
        (Shape::FixedLengthList(expected, length), Shape::FixedLengthList(found, other)) if length == other => {
            within("element", expected, found)
        }
        (Shape::Map(key, value), Shape::Map(other, found)) => {
            within("key", key, other).or_else(|| within("value", value, found))
        }
        (Shape::Option(expected), Shape::Option(found)) => within("the value of the option", expected, found),
        (Shape::Result(ok, err), Shape::Result(other, found)) => {
            let both = |part, expected: &Option<Box<Shape>>, found: &Option<Box<Shape>>| match (expected, found) {
                (Some(expected), Some(found)) => within(part, expected, found),
                _ => None,
            };
            both("ok", ok, other).or_else(|| both("err", err, found))
        }
        (Shape::Tuple(expected), Shape::Tuple(found)) if expected.len() == found.len() => {
            let mut parts = expected.iter().zip(found).enumerate();
            parts.find_map(|(index, (expected, found))| within(&format!("element {index}"), expected, found))
        }
        (Shape::Record(expected), Shape::Record(found)) => {
            names(place, "field", expected.iter().map(|(name, _)| name), found.iter().map(|(name, _)| name)).or_else(
                || {
                    let mut parts = expected.iter().zip(found);
                    parts.find_map(|((name, expected), (_, found))| within(&format!("field `{name}`"), expected, found))
                },
            )
        }
        (Shape::Variant(expected), Shape::Variant(found)) => {
            names(place, "case", expected.iter().map(|(name, _)| name), found.iter().map(|(name, _)| name)).or_else(
                || {
                    let mut parts = expected.iter().zip(found);
                    parts.find_map(|((name, expected), (_, found))| {
                        within(&format!("case `{name}`"), expected.as_ref()?, found.as_ref()?)
                    })
                },
            )
        }
        (Shape::Enum(expected), Shape::Enum(found)) => names(place, "case", expected.iter(), found.iter()),
        (Shape::Flags(expected), Shape::Flags(found)) => names(place, "flag", expected.iter(), found.iter()),
        _ => None,
    };
    inner.or_else(|| Some(format!("{place}: {expected} is expected, it has {found}")))
}

/// Describes the first name that the other type does not have at the same position, or another number of names.
fn names<'n>(
    place: &str,
    kind: &str,
    expected: impl ExactSizeIterator<Item = &'n String>,
    found: impl ExactSizeIterator<Item = &'n String>,
) -> Option<String> {
    let (wanted, there) = (expected.len(), found.len());
    let differs = expected.zip(found).find(|(name, other)| name != other);
    match differs {
        Some((name, other)) => Some(format!("{place}: {kind} `{name}` is expected, it has `{other}` there")),
        None if wanted != there => Some(format!("{place}: it has {there} {kind}s instead of {wanted}")),
        None => None,
    }
}
