//! Imports both interfaces of `calculator`: a value of every WIT type goes through a binding and back.

mod bindings {
    wit_bindgen::generate!({ world: "user", path: "../calculator/wit", additional_derives: [PartialEq] });
}

use wasmcage_guest::service;

#[service]
mod calculator_user {
    use crate::bindings::acme::calculator::arithmetic::{self, Problem};
    use crate::bindings::acme::calculator::echoes::*;

    /// Functions that gave back another value than they got.
    pub fn differing() -> Vec<String> {
        let mut differing = Vec::new();
        let mut check = |same: bool, name: &str| {
            if !same {
                differing.push(name.to_owned());
            }
        };
        macro_rules! same {
            ($($function:ident: $($value:expr),+;)*) => {
                $($(check($function($value) == $value, stringify!($function));)+)*
            };
        }
        let point = |x, y| Point { x, y };
        let drawing = || Drawing {
            name: "Zeichnung \u{1f600}".into(),
            points: vec![point(i32::MIN, 0), point(-1, i32::MAX)],
            colour: Some(Colour::DarkBlue),
            shape: Shape::Named(("n".into(), 7)),
            access: Permissions::READ | Permissions::RUN_IT,
        };
        same! {
            boolean: true, false;
            byte: 0, 255;
            short: 65535;
            word: u32::MAX;
            long: u64::MAX;
            signed_byte: -128, 127;
            signed_short: i16::MIN;
            signed_word: i32::MIN;
            signed_long: i64::MIN, i64::MAX;
            single: 0.5, -1e30, f32::INFINITY;
            double: 0.1, f64::NEG_INFINITY;
            character: 'ß', '\u{1f600}';
            text: "", "ä\u{0}\n";
            a_colour: Colour::Red, Colour::DarkBlue;
            some_permissions: Permissions::empty(), Permissions::WRITE, drawing().access;
            perhaps_twice: None, Some(None), Some(Some(7));
            bare_outcome: Ok(()), Err(());
        }
        check(double(f64::NAN).is_nan(), "double");
        check(bytes(&[0, 1, 255]) == [0, 1, 255] && bytes(&[]).is_empty(), "bytes");
        check(words(&["a".into(), String::new()]) == ["a", ""], "words");
        check(pair((-1, "one")) == (-1, "one".into()), "pair");
        check(a_point(point(1, -2)) == point(1, -2), "a_point");
        for shape in [Shape::Nothing, Shape::Circle(1.5), Shape::Polygon(vec![point(1, 2)]), drawing().shape] {
            check(a_shape(&shape) == shape, "a_shape");
        }
        check(perhaps(Some("here")).as_deref() == Some("here") && perhaps(None).is_none(), "perhaps");
        check(outcome(Ok(7)) == Ok(7) && outcome(Err("no")) == Err("no".into()), "outcome");
        check(a_drawing(&drawing()) == drawing(), "a_drawing");
        let all = [None, Some(drawing()), None];
        check(drawings(&all) == all, "drawings");
        differing
    }

    /// The same text, there and back.
    pub fn echo(x: &str) -> String {
        text(x)
    }

    /// Errors of the callee's come as values of its type.
    pub fn divide(dividend: i64, divisor: i64) -> String {
        match arithmetic::divide(dividend, divisor) {
            Ok(quotient) => quotient.to_string(),
            Err(Problem::DivisionByZero) => "division by zero".into(),
            Err(Problem::Overflow(text)) => format!("overflow: {text}"),
        }
    }
}
