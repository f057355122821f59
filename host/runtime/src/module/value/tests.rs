//! Tests each WIT type through JSON and back, values that do not fit, and arbitrary types, values and texts.
//! `WASMCAGE_FUZZ_MS` is the time of each `fuzz_` test; a failure prints a seed, which `ARBTEST_SEED` replays.

mod carried;

use arbtest::arbitrary::{self, Unstructured};
use arbtest::arbtest;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Val};
use wasmtime::{Config, Engine};

use super::arguments::{self, JSON_BYTES_MAX};
use super::read::VALUES_MAX;
use super::{Outcome, Shape, Signature, write};

/// A component that imports functions over each type, since an import needs no code.
const FUNCTIONS: &str = r#"(component
    (type $item' (record (field "name" string) (field "max-size" (option u32))))
    (import "item" (type $item (eq $item')))
    (type $color' (enum "red" "dark-red"))
    (import "color" (type $color (eq $color')))
    (type $access' (flags "read" "write"))
    (import "access" (type $access (eq $access')))
    (type $choice' (variant (case "nothing") (case "one" $item)))
    (import "choice" (type $choice (eq $choice')))
    (import "thing" (type $thing (sub resource)))

    (import "none" (func))
    (import "integers" (func (param "a" u8) (param "b" s64) (param "c" u64)))
    (import "floats" (func (param "a" f32) (param "b" f64)))
    (import "texts" (func (param "flag" bool) (param "letter" char) (param "text" string)))
    (import "bytes" (func (param "data" (list u8)) (result (list u8))))
    (import "items" (func (param "all-items" (list $item)) (param "limit" (option u32)) (result (option $item))))
    (import "named" (func (param "color" $color) (param "access" $access) (param "choice" $choice) (result $choice)))
    (import "pairs" (func (param "pairs" (list (tuple string u32))) (result (tuple string u32))))
    (import "nested" (func (param "x" (option (option u32))) (result (option (option u32)))))
    (import "outcome" (func (param "r" (result u32 (error string))) (result (result u32 (error string)))))
    (import "silent" (func (param "r" (result)) (result (result))))
    (import "mapped" (func (param "m" (map u32 string)) (result (map u32 string))))
    (import "fixed" (func (param "l" (list u8 3)) (result (list u8 3))))
    (import "own" (func (param "t" (own $thing))))
    (import "streamed" (func (result (list (stream u8)))))
    (import "later" (func (result (option (future string)))))
)"#;

fn signature(name: &str) -> Result<Signature, super::UnsupportedType> {
    let mut config = Config::new();
    config.wasm_component_model_async(true);
    config.wasm_component_model_map(true);
    config.wasm_component_model_fixed_length_lists(true);
    let engine = Engine::new(&config).unwrap();
    let component = Component::new(&engine, wat::parse_str(FUNCTIONS).unwrap()).unwrap();
    match component.component_type().get_import(&engine, name) {
        Some(found) => match found.ty {
            ComponentItem::ComponentFunc(ty) => Signature::new(name, &ty),
            other => panic!("{other:?}"),
        },
        None => panic!("no function {name}"),
    }
}

/// Checks what the arguments are read as: each value as JSON again, or the error.
fn check(function: &str, arguments: &str, expected: &str) {
    let signature = signature(function).unwrap();
    let found = match signature.arguments(arguments) {
        Ok(values) => {
            let shapes = signature.parameters.iter().map(|(_, shape)| shape);
            let json: Vec<String> =
                shapes.zip(&values).map(|(shape, value)| write::json(shape, value).unwrap()).collect();
            json.join(" ")
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(found, expected, "{function} {arguments}");
}

/// Checks that one argument is the same JSON after reading and writing.
fn check_same(function: &str, json: &str) {
    check(function, &format!("{{\"args\": [{json}]}}"), json);
}

#[test]
fn every_type_is_carried() {
    check("none", "{}", "");
    check("none", "{\"args\": [], \"kwargs\": {}}", "");
    check(
        "integers",
        r#"{"args": [255, -9223372036854775808, 18446744073709551615]}"#,
        "255 -9223372036854775808 18446744073709551615",
    );
    check(
        "integers",
        r#"{"args": [1.0, "-9007199254740993", "9007199254740993"]}"#,
        "1 -9007199254740993 9007199254740993",
    );
    check("floats", r#"{"args": [1, 0.1]}"#, "1.0 0.1");
    check("floats", r#"{"args": ["NaN", "-inf"]}"#, r#""NaN" "-inf""#);
    check("texts", r#"{"args": [true, "ß", "a\u0000\ud83d\ude00"]}"#, "true \"ß\" \"a\\u0000\u{1f600}\"");
    check("bytes", r#"{"args": [[104, 105]]}"#, r#""aGk=""#);
    check("bytes", r#"{"args": ["aGk"]}"#, r#""aGk=""#);
    check_same("bytes", r#""""#);
    check(
        "items",
        r#"{"args": [[{"max_size": 1, "name": "a"}, {"name": "b"}]]}"#,
        r#"[{"name":"a","max-size":1},{"name":"b","max-size":null}] null"#,
    );
    check("named", r#"{"args": ["dark_red", ["write", "write"], "nothing"]}"#, r#""dark-red" ["write"] "nothing""#);
    check(
        "named",
        r#"{"args": ["red", [], {"one": {"name": "a"}}]}"#,
        r#""red" [] {"one":{"name":"a","max-size":null}}"#,
    );
    check("named", r#"{"args": ["red", [], {"nothing": null}]}"#, r#""red" [] "nothing""#);
    check_same("pairs", r#"[["a",1],["b",2]]"#);
    check_same("nested", "null");
    check_same("nested", r#"{"some":null}"#);
    check_same("nested", r#"{"some":7}"#);
    check_same("outcome", r#"{"ok":7}"#);
    check_same("outcome", r#"{"err":"no"}"#);
    check("silent", r#"{"args": ["err"]}"#, r#"{"err":null}"#);
    check_same("silent", r#"{"ok":null}"#);
    check_same("mapped", r#"{"1":"a","2":"b"}"#);
    check_same("fixed", "[1,2,3]");
}

#[test]
fn arguments_come_by_position_and_by_name() {
    check("integers", r#"{"args": [1], "kwargs": {"c": 3, "b": 2}}"#, "1 2 3");
    check("integers", r#"{"kwargs": {"c": 3, "b": 2}, "args": [1]}"#, "1 2 3");
    check("items", r#"{"kwargs": {"all_items": [], "limit": 3}}"#, "[] 3");
    check("integers", r#"{"args": [1, 2], "kwargs": {"b": 2}}"#, "integers: parameter `b` comes twice");
    check("integers", r#"{"kwargs": {"a": 1}, "args": [1]}"#, "integers: parameter `a` comes by position and by name");
    check("integers", r#"{"kwargs": {"a": 1, "a": 1}}"#, "integers: parameter `a` comes twice");
    check("integers", r#"{"args": [1, 2]}"#, "integers: parameter `c` is missing; expected u64");
    check("integers", r#"{"args": [1, 2, 3, 4]}"#, "integers: too many positional arguments; it takes 3 (a, b, c)");
    check("none", r#"{"args": [1]}"#, "none: too many positional arguments; it takes 0");
    check(
        "items",
        r#"{"kwargs": {"limits": 3}}"#,
        "items: unknown parameter `limits`; did you mean `limit`? (all-items, limit)",
    );
    check("none", r#"{"arg": []}"#, "none: unknown key `arg` beside `args` and `kwargs`");
    check("none", r#"{"args": [], "args": []}"#, "none: `args` comes twice");
}

#[test]
fn what_does_not_fit_is_named() {
    let item = "record { name: string, max-size: option<u32> }";
    check(
        "integers",
        r#"{"args": [256]}"#,
        "integers: `a`: expected u8, got the number 256, which is out of its range",
    );
    let beyond = |c: &str, shown: &str| {
        let expected = format!("integers: `c`: expected u64, got the number {shown}");
        check("integers", &format!("{{\"args\": [1, 2, {c}]}}"), &expected);
    };
    beyond("18446744073709551616", "1.8446744073709552e19, which is out of its range");
    beyond("1e300", "1e300, which is out of its range");
    beyond("-1", "-1, which is out of its range");
    beyond("1e17", "1e17, which is not exact; write all its digits");
    beyond("1.5", "1.5");
    check("integers", r#"{"args": [1.5]}"#, "integers: `a`: expected u8, got the number 1.5");
    check("integers", r#"{"args": ["1"]}"#, "integers: `a`: expected u8, got the string \"1\"");
    check("integers", r#"{"args": [null]}"#, "integers: `a`: expected u8, got null");
    check(
        "integers",
        r#"{"args": [1, 1e19]}"#,
        "integers: `b`: expected s64, got the number 1e19, which is out of its range",
    );
    check(
        "floats",
        r#"{"args": [1e300]}"#,
        "floats: `a`: expected f32, got the number 1e300, which is out of its range",
    );
    check("texts", r#"{"args": [0]}"#, "texts: `flag`: expected bool, got the number 0");
    check("texts", r#"{"args": [true, "ab"]}"#, "texts: `letter`: expected char, got the string \"ab\"");
    check("texts", r#"{"args": [true, ""]}"#, "texts: `letter`: expected char, got the string \"\"");
    check("texts", r#"{"kwargs": {"text": {}}}"#, "texts: `text`: expected string, got an object");
    check(
        "bytes",
        r#"{"args": ["a!"]}"#,
        "bytes: `data`: expected list<u8>, got the string \"a!\", which is not base64",
    );
    check(
        "bytes",
        r#"{"args": [[1, 256]]}"#,
        "bytes: `data[1]`: expected u8, got the number 256, which is out of its range",
    );
    check(
        "items",
        r#"{"args": [[{"name": "a"}, {"name": 3}]]}"#,
        "items: `all-items[1].name`: expected string, got the number 3",
    );
    check(
        "items",
        r#"{"args": [[{}]]}"#,
        &format!("items: `all-items[0]`: expected {item}, got an object without the field `name`"),
    );
    check(
        "items",
        r#"{"args": [[{"nam": 1}]]}"#,
        &format!("items: `all-items[0]`: expected {item}, got the unknown field `nam`; did you mean `name`?"),
    );
    check(
        "items",
        r#"{"args": [[{"name": "", "name": ""}]]}"#,
        &format!("items: `all-items[0]`: expected {item}, got the field `name` twice"),
    );
    check("items", r#"{"args": [[], "x"]}"#, "items: `limit`: expected u32, got the string \"x\"");
    check("named", r#"{"args": ["blue"]}"#, "named: `color`: expected enum { red, dark-red }, got the string \"blue\"");
    check(
        "named",
        r#"{"args": ["red", ["x"]]}"#,
        "named: `access`: expected flags { read, write }, got the flag \"x\"",
    );
    check("named", r#"{"args": ["red", [1]]}"#, "named: `access[0]`: expected string, got the number 1");
    let choice = "variant { nothing, one(record { name: string, max-size: option<u32> }) }";
    let named = |argument: &str, got: &str| {
        let arguments = format!("{{\"args\": [\"red\", [], {argument}]}}");
        check("named", &arguments, &format!("named: `choice`: expected {choice}, got {got}"));
    };
    named(r#""one""#, "`one` without its payload");
    named(r#"{"nothing": 1}"#, "a payload for `nothing`, which has none");
    named(r#"{"two": 1}"#, "an object with the key \"two\"");
    named("{}", "an empty object");
    named(r#"{"nothing": null, "one": null}"#, "an object of more than one key");
    check("pairs", r#"{"args": [[["a"]]]}"#, "pairs: `pairs[0]`: expected tuple<string, u32>, got an array of 1");
    check(
        "pairs",
        r#"{"args": [[["a", 1, 2]]]}"#,
        "pairs: `pairs[0]`: expected tuple<string, u32>, got an array of more than 2",
    );
    check("pairs", r#"{"args": [7]}"#, "pairs: `pairs`: expected list<tuple<string, u32>>, got the number 7");
    check("nested", r#"{"args": [7]}"#, "nested: `x`: expected option<option<u32>>, got the number 7");
    check("outcome", r#"{"args": [{"ok": "x"}]}"#, "outcome: `r.ok`: expected u32, got the string \"x\"");
    check("mapped", r#"{"args": [{"a": "b"}]}"#, "mapped: `m.a`: expected u32, got the key \"a\"");
    check(
        "mapped",
        r#"{"args": [{"1": "b", "1": "c"}]}"#,
        "mapped: `m`: expected map<u32, string>, got the key \"1\" twice",
    );
    check("fixed", r#"{"args": [[1, 2]]}"#, "fixed: `l`: expected list<u8, 3>, got an array of 2");
}

#[test]
fn hostile_json_is_refused() {
    let check_start = |function: &str, arguments: &str, start: &str| {
        let text = signature(function).unwrap().arguments(arguments).unwrap_err().to_string();
        assert!(text.starts_with(&format!("{function}: arguments {start}")), "{text}");
    };
    check_start("none", "", "cannot be read: EOF");
    check_start("none", "[]", "cannot be read: invalid type: sequence, expected {\"args\": [..], \"kwargs\": {..}}");
    check_start("none", "{} {}", "cannot be read: trailing characters");
    check_start(
        "none",
        r#"{"args": {}}"#,
        "cannot be read: invalid type: map, expected an array of positional arguments",
    );
    check_start(
        "none",
        r#"{"kwargs": []}"#,
        "cannot be read: invalid type: sequence, expected an object of named arguments",
    );
    // Deep input is skipped without recursion, and a typed value nests no deeper than its type.
    let deep = format!("{{\"args\": [{}", "[".repeat(100_000));
    check_start("none", &deep, "cannot be read: EOF");
    check("nested", &deep, "nested: `x`: expected option<option<u32>>, got an array");
    check_start("texts", r#"{"kwargs": {"text": "\ud800"}}"#, "cannot be read: unexpected end of hex escape");
    check_start("floats", r#"{"args": [1e999]}"#, "cannot be read: number out of range");
    let many = format!("{{\"args\": [[{}0]]}}", "0,".repeat(VALUES_MAX));
    check_start("bytes", &many, &format!("of more than {VALUES_MAX} values"));
    let many = format!("{{\"args\": [\"{}\"]}}", "AAAA".repeat(VALUES_MAX / 2));
    check_start("bytes", &many, &format!("of more than {VALUES_MAX} values"));
    let long = " ".repeat(JSON_BYTES_MAX + 1);
    check_start("none", &long, &format!("of {} bytes, more than {JSON_BYTES_MAX}", long.len()));
}

#[test]
fn signatures_read_as_wit() {
    let wit = |name: &str| signature(name).map_or_else(|error| error.to_string(), |signature| signature.to_string());
    assert_eq!(wit("none"), "none: func()");
    assert_eq!(wit("bytes"), "bytes: func(data: list<u8>) -> list<u8>");
    assert_eq!(wit("silent"), "silent: func(r: result) -> result");
    assert_eq!(wit("outcome"), "outcome: func(r: result<u32, string>) -> result<u32, string>");
    assert_eq!(wit("own"), "parameter `t` has a resource, which a call cannot carry");
    assert_eq!(wit("streamed"), "the result has a stream, which a call cannot carry");
    assert_eq!(wit("later"), "the result has a future, which a call cannot carry");
    let wide = Shape::Enum((0..1_000).map(|index| format!("name-{index}")).collect());
    assert!(wide.to_string().len() < 200, "{wide}");
}

#[test]
fn outcomes_tell_results_from_errors() {
    let outcome =
        |name: &str, results: &[Val]| signature(name).unwrap().outcome(results).map_err(|error| error.to_string());
    let value = |json: &str| Ok(Outcome::Value(json.to_owned()));
    let error = |json: &str| Ok(Outcome::GuestError(json.to_owned()));
    assert_eq!(outcome("none", &[]), value("null"));
    assert_eq!(outcome("outcome", &[Val::Result(Ok(Some(Box::new(Val::U32(7)))))]), value("7"));
    assert_eq!(outcome("outcome", &[Val::Result(Err(Some(Box::new(Val::String("no".into())))))]), error("\"no\""));
    assert_eq!(outcome("silent", &[Val::Result(Ok(None))]), value("null"));
    assert_eq!(outcome("silent", &[Val::Result(Err(None))]), error("null"));
    assert_eq!(outcome("nested", &[Val::Option(None)]), value("null"));
    let twice = vec![(Val::U32(1), Val::String("a".into())), (Val::U32(1), Val::String("b".into()))];
    assert_eq!(outcome("mapped", &[Val::Map(twice)]), value(r#"{"1":"b"}"#));
    assert_eq!(outcome("none", &[Val::Bool(true)]), Err("the result does not fit none: func()".to_owned()));
    let long = write::json_within(&Shape::String, &Val::String("four".into()), 5);
    assert_eq!(long.unwrap_err().to_string(), "the result is longer than 5 bytes of JSON");
}

fn budget_ms() -> u64 {
    std::env::var("WASMCAGE_FUZZ_MS").ok().and_then(|budget| budget.parse().ok()).unwrap_or(500)
}

#[test]
fn fuzz_values_survive_the_round_trip() {
    arbtest(|u| {
        let shape = shape(u, 0)?;
        let value = value(u, &shape)?;
        let json = write::json(&shape, &value).unwrap();
        let parameters = [("a".to_owned(), shape)];
        let found = arguments::read("f", &parameters, &format!("{{\"args\": [{json}]}}"));
        assert_eq!(found.as_deref(), Ok([value].as_slice()), "{} {json}", parameters[0].1);
        Ok(())
    })
    .size_max(4096)
    .budget_ms(budget_ms());
}

#[test]
fn fuzz_any_json_gives_values_or_an_error() {
    arbtest(|u| {
        let parameters = [("a".to_owned(), shape(u, 0)?), ("b-c".to_owned(), shape(u, 0)?)];
        let mut text = String::from("{\"args\": [");
        while !u.is_empty() && text.len() < 10_000 {
            text.push_str(u.choose(TOKENS)?);
        }
        if let Ok(values) = arguments::read("f", &parameters, &text) {
            for ((_, shape), value) in parameters.iter().zip(&values) {
                write::json(shape, value).unwrap();
            }
        }
        Ok(())
    })
    .size_max(4096)
    .budget_ms(budget_ms());
}

#[test]
fn fuzz_any_text_gives_values_or_an_error() {
    arbtest(|u| {
        let parameters = [("a".to_owned(), shape(u, 0)?)];
        let bytes: Vec<u8> = u.arbitrary()?;
        let _ = arguments::read("f", &parameters, &String::from_utf8_lossy(&bytes));
        Ok(())
    })
    .size_max(4096)
    .budget_ms(budget_ms());
}

const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "]}",
    "\"kwargs\":",
    "\"a\":",
    "\"b_c\":",
    "\"ok\":",
    "\"err\":",
    "\"some\":",
    "null",
    "true",
    "0",
    "-1",
    "255",
    "1e9",
    "18446744073709551615",
    "0.5",
    "\"\"",
    "\"a\"",
    "\"a-b\"",
    "\"AAAA\"",
    "\"NaN\"",
    "\"\\ud83d\\ude00\"",
    "[]",
    "{}",
    "[0,1]",
    " ",
];

const NAMES: &[&str] = &["a", "a-b", "b", "max-size", "ok"];

fn shape(u: &mut Unstructured<'_>, depth: usize) -> arbitrary::Result<Shape> {
    use Shape::{Bool, Bytes, Char, Enum, FixedLengthList, Flags, Float32, Float64, List, Map, Record};
    use Shape::{S8, S16, S32, S64, String, Tuple, U8, U16, U32, U64, Variant};
    let simple = [Bool, S8, U8, S16, U16, S32, U32, S64, U64, Float32, Float64, Char, String, Bytes];
    let names: Vec<std::string::String> =
        NAMES[..u.int_in_range(1..=NAMES.len())?].iter().map(|name| (*name).to_owned()).collect();
    if depth > 4 || u.ratio(1, 3)? {
        return Ok(u.choose(&simple)?.clone());
    }
    let inner = |u: &mut Unstructured<'_>| shape(u, depth + 1);
    Ok(match u.int_in_range(0..=9)? {
        0 => match inner(u)? {
            U8 => Bytes,
            element => List(element.into()),
        },
        1 => FixedLengthList(inner(u)?.into(), u.int_in_range(1..=3)?),
        2 => Map(u.choose(&[String, U32, S8, U64, Bool, Char])?.clone().into(), inner(u)?.into()),
        3 => Record(names.into_iter().map(|name| Ok((name, inner(u)?))).collect::<Result<_, _>>()?),
        4 => Tuple((0..u.int_in_range(0..=3)?).map(|_| inner(u)).collect::<Result<_, _>>()?),
        5 => {
            let case = |name| Ok((name, if u.arbitrary()? { Some(inner(u)?) } else { None }));
            Variant(names.into_iter().map(case).collect::<Result<_, _>>()?)
        }
        6 => Enum(names),
        7 => Shape::Option(inner(u)?.into()),
        8 => Shape::Result(
            if u.arbitrary()? { Some(inner(u)?.into()) } else { None },
            if u.arbitrary()? { Some(inner(u)?.into()) } else { None },
        ),
        _ => Flags(names),
    })
}

fn value(u: &mut Unstructured<'_>, shape: &Shape) -> arbitrary::Result<Val> {
    let some = |u: &mut Unstructured<'_>, shape: &Option<Box<Shape>>| -> arbitrary::Result<Option<Box<Val>>> {
        shape.as_ref().map(|shape| value(u, shape).map(Box::new)).transpose()
    };
    Ok(match shape {
        Shape::Bool => Val::Bool(u.arbitrary()?),
        Shape::S8 => Val::S8(u.arbitrary()?),
        Shape::U8 => Val::U8(u.arbitrary()?),
        Shape::S16 => Val::S16(u.arbitrary()?),
        Shape::U16 => Val::U16(u.arbitrary()?),
        Shape::S32 => Val::S32(u.arbitrary()?),
        Shape::U32 => Val::U32(u.arbitrary()?),
        Shape::S64 => Val::S64(u.arbitrary()?),
        Shape::U64 => Val::U64(u.arbitrary()?),
        Shape::Float32 => Val::Float32(u.arbitrary()?),
        Shape::Float64 => Val::Float64(u.arbitrary()?),
        Shape::Char => Val::Char(u.arbitrary()?),
        Shape::String => Val::String(u.arbitrary()?),
        Shape::Bytes => Val::List(u.arbitrary::<Vec<u8>>()?.into_iter().map(Val::U8).collect()),
        Shape::List(shape) => {
            Val::List((0..u.int_in_range(0..=3)?).map(|_| value(u, shape)).collect::<Result<_, _>>()?)
        }
        Shape::FixedLengthList(shape, length) => {
            Val::FixedLengthList((0..*length).map(|_| value(u, shape)).collect::<Result<_, _>>()?)
        }
        // There is at most one pair, because objects are written in the order of keys, and with no key twice.
        Shape::Map(key, shape) => Val::Map(match u.arbitrary()? {
            true => vec![(value(u, key)?, value(u, shape)?)],
            false => Vec::new(),
        }),
        Shape::Record(fields) => {
            let fields = fields.iter().map(|(name, shape)| Ok((name.clone(), value(u, shape)?)));
            Val::Record(fields.collect::<Result<_, _>>()?)
        }
        Shape::Tuple(shapes) => Val::Tuple(shapes.iter().map(|shape| value(u, shape)).collect::<Result<_, _>>()?),
        Shape::Variant(cases) => {
            let (name, shape) = u.choose(cases)?;
            let payload = shape.as_ref().map(|shape| value(u, shape).map(Box::new)).transpose()?;
            Val::Variant(name.clone(), payload)
        }
        Shape::Enum(names) => Val::Enum(u.choose(names)?.clone()),
        Shape::Option(shape) => Val::Option(if u.arbitrary()? { Some(value(u, shape)?.into()) } else { None }),
        Shape::Result(ok, err) => Val::Result(if u.arbitrary()? { Ok(some(u, ok)?) } else { Err(some(u, err)?) }),
        Shape::Flags(names) => {
            let mut set = Vec::new();
            for name in names {
                if u.arbitrary()? {
                    set.push(name.clone());
                }
            }
            Val::Flags(set)
        }
    })
}
