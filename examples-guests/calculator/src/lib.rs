//! A component that knows nothing of wasmcage: plain exports of its own WIT, called by name with JSON arguments. Its
//! functions use every WIT type that JSON can carry.

wit_bindgen::generate!({ world: "calculator" });

use exports::acme::calculator::arithmetic::{Guest as Arithmetic, Problem};
use exports::acme::calculator::echoes::{Colour, Drawing, Guest as Echoes, Permissions, Point, Shape};

struct Calculator;
export!(Calculator);

impl Guest for Calculator {
    fn square(root: f64) -> f64 {
        root * root
    }

    fn nothing() {}

    fn crash(text: String) {
        panic!("{text}");
    }
}

impl Arithmetic for Calculator {
    fn add(augend: i64, addend: i64) -> Result<i64, Problem> {
        augend.checked_add(addend).ok_or_else(|| Problem::Overflow(format!("{augend} + {addend}")))
    }

    fn divide(dividend: i64, divisor: i64) -> Result<i64, Problem> {
        match divisor {
            0 => Err(Problem::DivisionByZero),
            _ => dividend.checked_div(divisor).ok_or_else(|| Problem::Overflow(format!("{dividend} / {divisor}"))),
        }
    }

    fn sum(terms: Vec<f64>, start: Option<f64>) -> f64 {
        start.unwrap_or_default() + terms.iter().sum::<f64>()
    }
}

macro_rules! echoes {
    ($($name:ident: $kind:ty),* $(,)?) => {
        impl Echoes for Calculator {
            $(fn $name(x: $kind) -> $kind {
                x
            })*
        }
    };
}

echoes! {
    boolean: bool,
    byte: u8,
    short: u16,
    word: u32,
    long: u64,
    signed_byte: i8,
    signed_short: i16,
    signed_word: i32,
    signed_long: i64,
    single: f32,
    double: f64,
    character: char,
    text: String,
    bytes: Vec<u8>,
    words: Vec<String>,
    pair: (i32, String),
    a_point: Point,
    a_colour: Colour,
    a_shape: Shape,
    some_permissions: Permissions,
    perhaps: Option<String>,
    perhaps_twice: Option<Option<u8>>,
    outcome: Result<u32, String>,
    bare_outcome: Result<(), ()>,
    a_drawing: Drawing,
    drawings: Vec<Option<Drawing>>,
}
