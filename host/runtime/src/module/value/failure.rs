//! Makes the result of a function that returns `result<_, E>` when a call through a binding failed, if `E` can carry a text.
//! If it cannot, the caller traps instead.

use wasmtime::component::Val;

use super::shape::Shape;

/// The cases that are chosen when none is named like the error's code, in the order of preference.
const FAILURE_CASES: [&str; 4] = ["failed", "other", "error", "internal"];

/// Returns the result with `text` as its error, or `None` if `E` is neither a string nor a variant that has cases with a
/// string. Of these cases it takes the one named like the code, else the first of `FAILURE_CASES`, else the last.
pub(super) fn result(shape: &Shape, code: &str, text: &str) -> Option<Val> {
    let Shape::Result(_, Some(error)) = shape else { return None };
    let error = match &**error {
        Shape::String => Val::String(text.to_owned()),
        Shape::Variant(cases) => {
            let texts = || cases.iter().filter(|(_, shape)| *shape == Some(Shape::String)).map(|(name, _)| name);
            let named = |wanted: &str| texts().find(|name| *name == wanted);
            let case =
                named(code).or_else(|| FAILURE_CASES.into_iter().find_map(named)).or_else(|| texts().next_back())?;
            Val::Variant(case.clone(), Some(Box::new(Val::String(text.to_owned()))))
        }
        _ => return None,
    };
    Some(Val::Result(Err(Some(Box::new(error)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_finds_its_place_in_the_result() {
        let check = |error: Shape, code: &str, case: Option<Option<&str>>| {
            let text = || Val::String("why".into());
            let expected = case.map(|case| match case {
                None => text(),
                Some(case) => Val::Variant(case.into(), Some(text().into())),
            });
            let expected = expected.map(|error| Val::Result(Err(Some(error.into()))));
            assert_eq!(result(&Shape::Result(None, Some(error.into())), code, "why"), expected);
        };
        let variant = |names: &[&str]| {
            let case = |name: &&str| match name.strip_prefix('-') {
                Some(name) => (name.to_owned(), None),
                None => ((*name).to_owned(), Some(Shape::String)),
            };
            Shape::Variant(names.iter().map(case).collect())
        };
        check(Shape::String, "lost", Some(None));
        check(variant(&["failed", "lost", "z"]), "lost", Some(Some("lost")));
        check(variant(&["other", "failed", "z"]), "lost", Some(Some("failed")));
        check(variant(&["a", "internal", "z"]), "lost", Some(Some("internal")));
        check(variant(&["a", "b", "-lost"]), "lost", Some(Some("b")));
        check(variant(&["-a", "-lost"]), "lost", None);
        check(Shape::U32, "lost", None);
        check(Shape::Enum(vec!["failed".into()]), "lost", None);
        assert_eq!(result(&Shape::String, "lost", "why"), None);
        assert_eq!(result(&Shape::Result(Some(Shape::String.into()), None), "lost", "why"), None);
    }
}
