//! Tests values through the binary codec and back, malformed bytes, and values of another function. The types and values
//! are those of the JSON tests.

use std::sync::Arc;

use arbtest::arbtest;
use bytes::Bytes;
use wasmtime::component::Val;

use super::super::read::VALUES_MAX;
use super::super::{Item, Malformed, Misfit, Shape, Side, Signature, binary, carry, items as items_of};
use super::{budget_ms, shape, value};
use wasmcage_core::values::Values;

#[test]
fn fuzz_values_survive_the_codec() {
    arbtest(|u| {
        let shapes = [shape(u, 0)?, shape(u, 0)?];
        let values = [value(u, &shapes[0])?, value(u, &shapes[1])?];
        let shapes: Vec<&Shape> = shapes.iter().collect();
        let bytes = binary::encode(&shapes, &values.clone().map(Item::Val));
        for fast in [false, true] {
            let found = binary::decode(&shapes, &bytes, fast).unwrap();
            // Both ways of decoding give the same bytes when encoded, and the same values of wasmtime's.
            assert_eq!(binary::encode(&shapes, &found), bytes);
            assert_eq!(binary::check_bounds(&found), Ok(()));
            let found: Vec<Val> = found.into_iter().map(Item::into_val).collect();
            assert_eq!(found, values);
        }
        // Bytes that are cut short or have more after them are refused.
        if !bytes.is_empty() {
            assert!(binary::decode(&shapes, &bytes.slice(..bytes.len() - 1), false).is_err());
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert_eq!(binary::decode(&shapes, &longer, true), Err(Malformed::Long(1)));
        Ok(())
    })
    .size_max(4096)
    .budget_ms(budget_ms());
}

#[test]
fn fuzz_any_bytes_give_values_or_an_error() {
    arbtest(|u| {
        let (first, second) = (shape(u, 0)?, shape(u, 0)?);
        let bytes: Vec<u8> = u.arbitrary()?;
        let bytes = Bytes::from(bytes);
        let shapes = [&first, &second];
        for fast in [false, true] {
            if let Ok(found) = binary::decode(&shapes, &bytes, fast) {
                assert_eq!(binary::encode(&shapes, &found), bytes);
            }
        }
        Ok(())
    })
    .size_max(4096)
    .budget_ms(budget_ms());
}

#[test]
fn hostile_bytes_are_refused() {
    let check = |shape: Shape, bytes: &[u8], expected: Malformed| {
        let bytes = Bytes::copy_from_slice(bytes);
        assert_eq!(binary::decode(&[&shape], &bytes, false), Err(expected.clone()), "{shape}");
        assert_eq!(binary::decode(&[&shape], &bytes, true), Err(expected), "{shape}");
    };
    let wrong = |at, what| Malformed::Value { at, what };
    check(Shape::Bool, &[2], wrong(1, "neither 0 nor 1"));
    check(Shape::Char, &[0, 0xd8, 0, 0], wrong(4, "not a character"));
    check(Shape::String, &[2, 0xc3, 0x28], wrong(3, "a string that is not UTF-8"));
    check(Shape::String, &[0xff, 0xff, 0xff, 0xff, 0x0f], Malformed::Short);
    check(Shape::Bytes, &[5, 1], Malformed::Short);
    check(Shape::Enum(vec!["a".into()]), &[1], wrong(1, "no such case of the enum"));
    check(Shape::Variant(vec![("a".into(), None)]), &[7], wrong(1, "no such case of the variant"));
    check(Shape::Flags(vec!["a".into()]), &[2], wrong(1, "a flag that the type does not have"));
    // Each number has only one form.
    check(Shape::String, &[0x80, 0], wrong(2, "a number that is not well formed"));
    check(Shape::String, &[0xff, 0xff, 0xff, 0xff, 0x1f], wrong(5, "a number that is not well formed"));
    check(Shape::String, &[0x80, 0x80, 0x80, 0x80, 0x80, 1], wrong(5, "a number of more than 5 bytes"));
    // The number of values is limited even if they take no bytes.
    let nothing = || Shape::List(Box::new(Shape::Tuple(Vec::new())));
    check(nothing(), &[0xff, 0xff, 0xff, 0xff, 0x0f], Malformed::TooMany);
    check(nothing(), &[0x80, 0x80, 0x40], Malformed::TooMany);
    let pairs = Shape::Map(Box::new(Shape::Tuple(Vec::new())), Box::new(nothing()));
    check(pairs, &[0xff, 0xff, 0xff, 0x7f], Malformed::TooMany);
    // Long names of fields count as values, too.
    let field = Shape::Record(vec![("x".repeat(1 << 20), Shape::Bool)]);
    check(Shape::List(Box::new(field)), &[vec![100], vec![0; 100]].concat(), Malformed::TooMany);
}

#[test]
fn bytes_go_the_fast_way_uncopied() {
    let shapes = [Shape::Result(Some(Shape::Option(Shape::Bytes.into()).into()), Some(Shape::String.into()))];
    let shapes: Vec<&Shape> = shapes.iter().collect();
    let bytes = Bytes::from(vec![7; 2 * VALUES_MAX]);
    let items = [Item::Ok(Box::new(Item::Some(Box::new(Item::Bytes(bytes)))))];
    let encoded = binary::encode(&shapes, &items);
    assert_eq!(binary::decode(&shapes, &encoded, true).as_deref(), Ok(&items[..]));
    assert_eq!(binary::decode(&shapes, &encoded, false), Err(Malformed::TooMany));
    let many = Item::Val(Val::List(vec![Val::U8(0); VALUES_MAX]));
    assert_eq!(binary::check_bounds(&[many]), Err(Malformed::TooMany));
}

#[test]
fn values_know_their_function() {
    let of = |parameters: &[(&str, Shape)], result: Option<Shape>| {
        let parameters = parameters.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect();
        Arc::new(Signature::of("f", false, parameters, result))
    };
    let check = |there: &Arc<Signature>, text: Option<&str>| {
        let here = of(&[("a", Shape::U8), ("b", Shape::Enum(vec!["x".into(), "y".into()]))], Some(Shape::U32));
        let items = || vec![Item::Val(Val::U8(1)), Item::Val(Val::Enum("y".into()))];
        let values = carry(there, Side::Arguments, items()).unwrap();
        let remote = Values::encoded(values.fingerprint(), Bytes::from_static(&[1, 1]));
        let (direct, remote) = (values, remote);
        match text {
            None => {
                assert_eq!(direct.bytes(), remote.bytes());
                assert_eq!(items_of(direct.clone(), &here, Side::Arguments, false).unwrap(), items());
                assert_eq!(items_of(remote, &here, Side::Arguments, false).unwrap(), items());
                let answered = items_of(direct, &here, Side::Result, false);
                assert!(matches!(answered, Err(Misfit::Malformed { .. })), "{answered:?}");
            }
            Some(text) => {
                let error = items_of(direct, &here, Side::Arguments, false).unwrap_err().to_string();
                assert!(error.ends_with(text), "{error}");
                assert!(matches!(items_of(remote, &here, Side::Arguments, false), Err(Misfit::Fingerprint { .. })));
            }
        }
    };
    let names = |names: &[&str]| Shape::Enum(names.iter().map(|name| (*name).to_owned()).collect());
    let b = || ("b", names(&["x", "y"]));
    check(&of(&[("a", Shape::U8), b()], Some(Shape::U32)), None);
    check(&of(&[("a", Shape::U16), b()], Some(Shape::U32)), Some(": parameter `a`: u16 is expected, it has u8"));
    check(&of(&[("z", Shape::U8), b()], Some(Shape::U32)), Some("parameter `z` is expected, it has `a` there"));
    check(&of(&[b()], Some(Shape::U32)), Some("it has 2 parameters instead of 1"));
    check(&of(&[("a", Shape::U8), b()], None), Some("the result: none is expected, it has u32"));
    let more = ("b", names(&["x", "y", "z"]));
    check(&of(&[("a", Shape::U8), more], Some(Shape::U32)), Some("parameter `b`: it has 2 cases instead of 3"));
    let other = ("b", names(&["x", "q"]));
    check(&of(&[("a", Shape::U8), other], Some(Shape::U32)), Some("case `q` is expected, it has `y` there"));
}
