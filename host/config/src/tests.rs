//! Tests of reading configurations, and of the reported mistakes. `WASMCAGE_FUZZ_MS` is the budget of each `fuzz_`
//! test; a failure prints a seed, which `ARBTEST_SEED` replays.

use arbtest::arbtest;

use super::testing::section;
use super::*;

#[test]
fn a_wrong_scheme_is_called_that_and_nothing_else_of_the_url_is_shown() {
    let section = section("url = 'ftp://user:secret@host'\nother = 'https://host'\nno_url = 's3cret'");
    assert!(section.has_wrong_scheme("url", &["http", "https"]));
    assert!(!["other", "no_url", "absent"].iter().any(|key| section.has_wrong_scheme(key, &["http", "https"])));
    let told = section.finish().unwrap_err().to_string();
    assert!(
        told.contains("the URL's scheme ftp:// is none of http://, https://") && !told.contains("secret"),
        "{told}"
    );
}

/// Reads `cages/.shared/cage.toml` and `cages/runner/cage.toml`.
fn read_both(shared: &str, own: &str) -> Result<CageConfig, ConfigError> {
    let variables = |name: &str| match name {
        "SECRET" => Some("s3cr3t-password".to_owned()),
        "SIZE" => Some("7".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    let environment = Environment {
        cage: "runner",
        node: "n1",
        directory: Path::new("/cages/runner"),
        protocols: &[ProtocolInfo::new("http"), ProtocolInfo::new("schedule")],
        left_out: &[OmittedProtocol { protocol: "amqp", feature: "amqp" }],
        variables: &variables,
    };
    let sources = [("cages/.shared/cage.toml", shared), ("cages/runner/cage.toml", own)];
    parse(&sources.map(|(file, text)| (PathBuf::from(file), text.to_owned())), &environment)
}

fn read_own(own: &str) -> CageConfig {
    read_both("", own).unwrap()
}

/// Checks the reported mistakes of the cage's own file, without the file's name.
#[track_caller]
fn check(own: &str, expected: &[&str]) {
    let told = match read_both("", own) {
        Ok(config) => protocol_keys(&config).map_or_else(|error| error.to_string(), |()| String::new()),
        Err(error) => error.to_string(),
    };
    let told: Vec<&str> =
        told.lines().map(|line| line.strip_prefix("cages/runner/cage.toml:").unwrap_or(line)).collect();
    assert_eq!(told, expected);
}

/// Stands in for the protocols: reads keys of every kind.
fn protocol_keys(config: &CageConfig) -> Result<(), ConfigError> {
    let mut error = ConfigError::default();
    for interface in config.interfaces.values() {
        let section = interface.section.clone();
        section.parsed::<std::net::SocketAddr>(
            "listen",
            ([127, 0, 0, 1], 8080).into(),
            "an address such as 127.0.0.1:8080",
        );
        section.strings("methods", &["GET"]);
        section.optional_string("password");
        if let Some(tls) = section.table("tls") {
            tls.required_string("certificate");
            let _ = tls.finish();
        }
        if section.optional_string("password").is_some_and(|password| password.len() > 8) {
            section.problem("password", format!("{:?} is too long", section.string("password", "")));
        }
        error = error.merge(section.finish().err().unwrap_or_default());
    }
    error.into_result(())
}

#[test]
fn an_empty_cage_has_the_defaults() {
    let config = read_own("");
    assert_eq!((config.cage.as_str(), config.node.as_str()), ("runner", "n1"));
    assert_eq!((config.request_timeout, config.concurrency, config.queue), (Duration::from_secs(10), 1_000, 10_000));
    assert_eq!((config.log_level, config.log_format, config.call_depth), (Level::Info, LogFormat::Text, 16));
    assert!(config.interfaces.is_empty() && config.resources.is_empty() && config.modules.is_empty());
    assert_eq!(config.module("work"), ModuleConfig::default());
}

#[test]
fn all_keys_are_read() {
    let config = read_own(
        r#"
        log_level = "debug"
        log_format = "json"
        log_retention_days = 14
        request_timeout_ms = 10_000
        [interfaces.my_http]
        protocol = "http"
        listen = "0.0.0.0:8080"
        timeout_ms = 500
        export = "wasi:http"
        [interfaces.schedule]
        enabled = false
        module = "ticker"
        [modules.work]
        instances = { mode = "single", max = 2, max_uses = 10, idle_timeout_ms = 5 }
        memory_mb = 1
        timeout_ms = 2_000
        compatible = false
        state = { max_mb = 3, max_entries = 7 }
        source = "../../examples-guests/work"
        env = { REGION = "eu" }
        config = { greeting = "hello", n = [1, 2.5, true, 1979-05-27], t = { x = "${cage}" } }
        [modules.work.allow]
        cages = ["worker"]
        resources = ["db"]
        http = ["api.example.org:443"]
        files = [{ host = "data", guest = "/data", mode = "rw" }]
        "#,
    );
    assert_eq!((config.log_level, config.log_retention_days), (Level::Debug, Some(14)));
    let http = &config.interfaces["my_http"];
    assert_eq!((http.module.as_str(), http.timeout), ("interface_my_http", Some(Duration::from_millis(500))));
    assert_eq!((http.export, http.enabled, http.section.name()), (ExportChoice::WasiHttp, true, "my_http"));
    let schedule = &config.interfaces["schedule"];
    assert_eq!((schedule.protocol.as_str(), schedule.module.as_str(), schedule.enabled), ("schedule", "ticker", false));
    let work = config.module("work");
    assert_eq!((work.instances.mode, work.instances.max, work.memory_bytes), (Some(InstanceMode::Single), 2, 1 << 20));
    assert_eq!(work.source.as_deref(), Some(Path::new("/cages/runner/../../examples-guests/work")));
    assert_eq!(work.env, [("REGION".to_owned(), "eu".to_owned())]);
    assert_eq!(
        serde_json::Value::Object(work.config),
        serde_json::json!({ "greeting": "hello", "n": [1, 2.5, true, "1979-05-27"], "t": { "x": "runner" } })
    );
    assert_eq!((work.state.bytes, work.state.entries), (3 << 20, 7));
    let data = FileGrant { host: "/cages/runner/data".into(), guest: "/data".to_owned(), writable: true };
    assert_eq!((work.allow.files, work.allow.cages), (vec![data], vec!["worker".to_owned()]));
    assert_eq!(work.allow.http, ["api.example.org:443".parse().unwrap()]);
}

#[test]
fn the_cage_overlays_what_is_shared() {
    let shared = "queue = 5\n[interfaces.a]\nprotocol = \"http\"\nmethods = [\"GET\", \"PUT\"]\nlisten = \"${UNSET}\"";
    let config = read_both(shared, "interfaces.a.methods = []\ninterfaces.a.listen = '127.0.0.1:1'").unwrap();
    assert_eq!(config.queue, 5);
    assert_eq!(config.interfaces["a"].section.strings("methods", &["POST"]), Vec::<String>::new());
    let error =
        read_both("queue = 'x'\n\n[interfaces.a]\nprotocol = 'http'\nenabled = 3", "interfaces.a.timeout_ms = 0")
            .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cages/.shared/cage.toml:1: queue: expected an integer from 0 to 10000000, got the string \"x\"\n\
         cages/.shared/cage.toml:5: interfaces.a.enabled: expected true or false, got the integer 3\n\
         cages/runner/cage.toml:1: interfaces.a.timeout_ms: expected an integer from 1 to 86400000, got the integer 0"
    );
}

#[test]
fn a_reload_sees_what_changed() {
    let before = section("listen = '127.0.0.1:1'\nmethods = []");
    assert_eq!(before, section("methods = [] # moved\n\nlisten = '${NONE:-127.0.0.1}:1'"));
    assert_ne!(before, section("listen = '127.0.0.1:2'\nmethods = []"));
    assert_ne!(before, section("listen = '127.0.0.1:1'"));
}

#[test]
fn a_protocol_that_was_left_out_is_told_from_one_that_there_is_not() {
    check(
        "[interfaces.a]\nprotocol = 'amqp'",
        &["2: interfaces.a.protocol: this program was built without protocol amqp: build it with feature \"amqp\""],
    );
}

#[test]
fn mistakes_name_line_key_and_what_is_allowed() {
    // Syntax: what stands before the mistake is checked, the rest may be its consequence.
    check("a = \nqueue = 'x'", &["1: a: no value after `=`"]);
    check("queue = 1\nqueue = 2", &["2: queue: duplicate key"]);
    check("[interfaces.a]\n[interfaces.a]", &["2: interfaces.a: duplicate key"]);
    check(
        "queue = 'x'\n[interfaces.a]\nlisten = 1\nlisten = 2\nenabled = 3",
        &[
            "1: queue: expected an integer from 0 to 10000000, got the string \"x\"",
            "4: interfaces.a.listen: duplicate key",
        ],
    );
    check("log_level = INFO", &["1: log_level: a text is written in quotes, as in \"text\""]);
    check(
        "[interfaces.a]\nmodule = web # no",
        &["2: interfaces.a.module: a text is written in quotes, as in \"text\""],
    );
    check("[interfaces.a]\nenabled = True", &["2: interfaces.a.enabled: true and false are written in small letters"]);
    // Wrong type, out of range, unknown key, unknown choice: all at once, in the order of lines.
    check(
        "request_timeout_ms = '5'\nconcurrency = 0\nquue = 1\nlog_level = 'inf'\ncall_depth = 1.5\nlog_format = []",
        &[
            "1: request_timeout_ms: expected an integer from 1 to 86400000, got the string \"5\"",
            "2: concurrency: expected an integer from 1 to 1000000, got the integer 0",
            "3: quue: unknown key; did you mean `queue`? (allowed: call_depth, concurrency, flock, guest_memory_mb, \
             interfaces, log_day_mb, log_format, log_level, log_retention_days, modules, queue, request_timeout_ms, \
             resources, rpc, state)",
            "4: log_level: the string \"inf\" is not a choice; did you mean \"info\"? \
             (allowed: \"error\", \"warn\", \"info\", \"debug\", \"trace\")",
            "5: call_depth: expected an integer from 1 to 1000, got the float 1.5",
            "6: log_format: expected a string, got an array",
        ],
    );
    check(
        "[interfaces.a]\nprotocol = 'htp'\n[interfaces.b]\nlisten = 'x'\n[interfaces]\n\"my http\" = {}\nc = 5",
        &[
            "2: interfaces.a.protocol: the string \"htp\" is not a protocol; did you mean \"http\"? \
             (allowed: \"http\", \"schedule\")",
            "3: interfaces.b.protocol: required and not set; allowed: http, schedule",
            "6: interfaces.\"my http\": a name is 1 to 64 letters, digits, `_` or `-`",
            "6: interfaces.\"my http\".protocol: required and not set; allowed: http, schedule",
            "7: interfaces.c: expected a table, got the integer 5",
        ],
    );
    check(
        "[modules.work]\nmemory_mb = 5_000\ninstances = { mod = 'reuse' }\nenv = { A = 1, \"B=\" = '' }\n\
         allow.http = ['http://x', 7]\nallow.cages = ['../x']\nallow.files = [{ host = 'a', mode = 'x' }]\n\
         config.x = nan\nstate = { max_mb = 0, max_keys = 1 }",
        &[
            "2: modules.work.memory_mb: expected an integer from 1 to 4096, got the integer 5000",
            "3: modules.work.instances.mod: unknown key; did you mean `mode`? \
             (allowed: idle_timeout_ms, keep_mb, max, max_uses, mode)",
            "4: modules.work.env: \"B=\" cannot be an environment variable",
            "4: modules.work.env.A: expected a string, got the integer 1",
            "5: modules.work.allow.http[0]: expected a host such as \"api.example.org:443\", \"*.example.org\", \
             \"10.0.0.1:80\" or \"*\", got the string \"http://x\"",
            "5: modules.work.allow.http[1]: expected a host such as \"api.example.org:443\", \"*.example.org\", \
             \"10.0.0.1:80\" or \"*\", got the integer 7",
            "6: modules.work.allow.cages: \"../x\": a name is 1 to 64 letters, digits, `_` or `-`; \"*\" is every one",
            "7: modules.work.allow.files[0].guest: required and not set; expected a path",
            "7: modules.work.allow.files[0].mode: the string \"x\" is not a choice (allowed: \"ro\", \"rw\")",
            "8: modules.work.config.x: expected a finite number, got NaN",
            "9: modules.work.state.max_keys: unknown key (allowed: max_entries, max_mb)",
            "9: modules.work.state.max_mb: expected an integer from 1 to 1048576, got the integer 0",
        ],
    );
}

#[test]
fn a_protocol_reports_its_own_keys() {
    let keys = "allowed: enabled, export, listen, methods, module, password, protocol, timeout_ms, tls";
    check(
        "[interfaces.a]\nprotocol = 'http'\nlisten = 'nowhere'\nmethods = ['GET',\n3]\n\
         tls = { certificat = '' }\n[interfaces.b]\nprotocol = 'http'\nlisen = 1",
        &[
            "3: interfaces.a.listen: expected an address such as 127.0.0.1:8080, got the string \"nowhere\"",
            "5: interfaces.a.methods[1]: expected a string, got the integer 3",
            "6: interfaces.a.tls.certificat: unknown key; did you mean `certificate`? (allowed: certificate)",
            "6: interfaces.a.tls.certificate: required and not set; expected a string",
            &format!("9: interfaces.b.lisen: unknown key; did you mean `listen`? ({keys})"),
        ],
    );
}

#[test]
fn variables_are_put_in() {
    let config = read_own(
        r#"
        [modules.m.config]
        a = "${SIZE}-${NONE:-x:-y}"
        b = "$${SIZE} $$ $"
        c = "${EMPTY:-d}${EMPTY}"
        d = ["${cage}/${node}${cage_dir}"]
        "#,
    );
    assert_eq!(
        serde_json::Value::Object(config.module("m").config),
        serde_json::json!({ "a": "7-x:-y", "b": "${SIZE} $$ $", "c": "d", "d": ["runner/n1/cages/runner"] })
    );
    let config = read_own("queue = '${SIZE}'\nmodules.m.compatible = '${NONE:-false}'");
    assert_eq!((config.queue, config.module("m").compatible), (7, false));
    check("queue = '7'", &["1: queue: expected an integer from 0 to 10000000, got the string \"7\""]);
    check(
        "modules.m.env = { A = '${NONE}', B = '${a b}', C = '${SIZE' }",
        &[
            "1: modules.m.env.A: the environment variable NONE is not set; set it, or write a default as in \
             `${NONE:-default}`",
            "1: modules.m.env.B: `${a b}` names no variable; write `$${` for the two characters `${` themselves",
            "1: modules.m.env.C: `${` is not closed by `}`; write `$${` for the two characters themselves",
        ],
    );
}

#[test]
fn secrets_are_not_told() {
    check(
        "log_level = '${SECRET}'\nqueue = '${SECRET}'\n[interfaces.a]\nprotocol = 'x-${SECRET}'",
        &[
            "1: log_level: the string \"${SECRET}\" is not a choice \
             (allowed: \"error\", \"warn\", \"info\", \"debug\", \"trace\")",
            "2: queue: expected an integer from 0 to 10000000, got the string \"${SECRET}\"",
            "4: interfaces.a.protocol: the string \"x-${SECRET}\" is not a protocol (allowed: \"http\", \"schedule\")",
        ],
    );
    let broken = "[interfaces.a]\nprotocol = 'http'\npassword = '${SECRET}'\nlisten = 'u:${SECRET}'";
    check(
        broken,
        &[
            "3: interfaces.a.password: \"${SECRET}\" is too long",
            "4: interfaces.a.listen: expected an address such as 127.0.0.1:8080, got the string \"u:${SECRET}\"",
        ],
    );
    let config =
        read_own(&format!("{broken}\n[modules.m]\nenv = {{ A = '${{SECRET}}' }}\nconfig = {{ b = '${{SECRET}}' }}"));
    let shown = format!("{config:?} {:?} {:?}", config.interfaces, config.modules);
    assert!(!shown.contains("s3cr3t"), "{shown}");
}

#[test]
fn oversize_and_depth_are_refused() {
    let deep = format!("[a]\n{}x = 1", "a.".repeat(100_000));
    check(&deep, &["2: a key of more than 32 parts"]);
    let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let error = read_both("", &deep).unwrap_err();
    assert!(error.problems()[0].text.contains("recursion"), "{error}");
    let deep = format!("modules.m.config.x = {}{}", "[".repeat(40), "]".repeat(40));
    assert!(read_both("", &deep).unwrap_err().to_string().ends_with("nested deeper than 32 levels"));
    check(&"#".repeat(FILE_BYTES_MAX + 1), &[" longer than 1048576 bytes"]);
    let many: String = (0..50_000).map(|index| format!("key{index} = '${{NONE}}'\n")).collect();
    let error = read_both("", &many).unwrap_err();
    assert_eq!(error.problems().len(), 101);
    assert_eq!(error.problems()[0].text, "more than 100 mistakes; the rest is not listed");
}

#[test]
fn hosts_are_matched() {
    let check = |pattern: &str, allowed: &[(&str, u16)], refused: &[(&str, u16)]| {
        let parsed: HostPattern = pattern.parse().unwrap();
        assert_eq!(parsed.to_string().parse(), Ok(parsed.clone()), "{pattern}");
        for (host, port) in allowed {
            assert!(parsed.allows(host, *port), "{pattern} {host}:{port}");
        }
        for (host, port) in refused {
            assert!(!parsed.allows(host, *port), "{pattern} {host}:{port}");
        }
    };
    check(
        "API.example.org:443",
        &[("api.Example.org", 443), ("api.example.org.", 443)],
        &[("api.example.org", 80), ("x.api.example.org", 443)],
    );
    check(
        "*.example.org",
        &[("a.example.org", 1), ("a.b.example.org", 443)],
        &[("example.org", 443), ("badexample.org", 443), (".example.org", 1)],
    );
    check("10.0.0.1:80", &[("10.0.0.1", 80), ("::ffff:10.0.0.1", 80)], &[("10.0.0.10", 80), ("x10.0.0.1", 80)]);
    check("[::1]:80", &[("::1", 80), ("[::1]", 80), ("0:0:0:0:0:0:0:1", 80)], &[("::1", 81), ("localhost", 80)]);
    check("::1", &[("[::1]", 80)], &[("::2", 80)]);
    check("*", &[("a", 1), ("10.0.0.1", 2), ("::1", 3)], &[]);
    check("*:443", &[("a", 443)], &[("a", 80)]);
    check("*.0.0.1", &[], &[("10.0.0.1", 80)]);
    for broken in
        ["", "a b", "http://a", "a:0", "a:x", "a:99999", "*.*.a", "**", "a..b", "[::1", "[::1]:", "-a/b", "*."]
    {
        assert_eq!(broken.parse::<HostPattern>(), Err(grant::InvalidHostPattern), "{broken}");
    }
}

#[test]
fn files_are_read_and_complaints_name_them() {
    let root = std::env::temp_dir().join(format!("wasmcage-config-{}", std::process::id()));
    std::fs::create_dir_all(root.join("runner")).unwrap();
    let told = |cage: &str| {
        load(&root, cage, "n1", &[], &[]).unwrap_err().to_string().replace(root.to_str().unwrap(), "cages")
    };
    assert_eq!(load(&root, "runner", "n1", &[], &[]).unwrap().directory, root.join("runner"));
    std::fs::write(root.join("runner/cage.toml"), b"queue = 1\n\xff").unwrap();
    assert_eq!(told("runner"), "cages/runner/cage.toml: not UTF-8 after byte 10");
    std::fs::write(root.join("runner/cage.toml"), "\nqueue = true").unwrap();
    assert_eq!(
        told("runner"),
        "cages/runner/cage.toml:2: queue: expected an integer from 0 to 10000000, got the boolean true"
    );
    assert_eq!(told("../x"), "cages: \"../x\" cannot name a cage: a name is 1 to 64 letters, digits, `_` or `-`");
    std::fs::remove_dir_all(&root).unwrap();
}

fn budget_ms() -> u64 {
    std::env::var("WASMCAGE_FUZZ_MS").ok().and_then(|budget| budget.parse().ok()).unwrap_or(500)
}

/// Whatever comes, there is a configuration or a list of problems, each of which says something.
fn check_any(text: &str) {
    match read_both("[interfaces.a]\nprotocol = 'http'\n[modules.work]\nmemory_mb = 1", text) {
        Ok(config) => drop(protocol_keys(&config)),
        Err(error) => assert!(error.problems().iter().all(|problem| !problem.text.is_empty()), "{text:?}"),
    }
}

#[test]
fn fuzz_any_text_is_read_or_refused() {
    arbtest(|u| {
        let bytes: Vec<u8> = u.arbitrary()?;
        check_any(&String::from_utf8_lossy(&bytes));
        Ok(())
    })
    .budget_ms(budget_ms());
}

#[test]
fn fuzz_any_toml_is_read_or_refused() {
    arbtest(|u| {
        let mut text = String::new();
        while !u.is_empty() && text.len() < 10_000 {
            // Mostly sound lines, or else all that is tested is the parser's complaints.
            match u.int_in_range(0..=40)? {
                0 => text.push_str(u.choose(TOKENS)?),
                1..=8 => text.push_str(u.choose(HEADERS)?),
                _ => text.push_str(&format!("{} = {}\n", u.choose(KEYS)?, u.choose(VALUES)?)),
            }
        }
        check_any(&text);
        Ok(())
    })
    .size_max(64)
    .budget_ms(budget_ms());
}

#[test]
fn fuzz_any_host_pattern_is_read_or_refused() {
    arbtest(|u| {
        let mut text = String::new();
        while !u.is_empty() && text.len() < 40 {
            text.push_str(u.choose(&["*", ".", ":", "[", "]", "a", "b-c", "1", "443", "::", "10.0.0.1", "ß", "-"])?);
        }
        if let Ok(pattern) = text.parse::<HostPattern>() {
            assert_eq!(pattern.to_string().parse(), Ok(pattern), "{text:?}");
        }
        Ok(())
    })
    .size_max(256)
    .budget_ms(budget_ms());
}

const TOKENS: &[&str] = &["\n", "=", ".", ",", "{", "}", "[", "]", "\"", "'", "\'\'\'", "#", "a", "\u{fffd}", "\u{0}"];

const HEADERS: &[&str] = &[
    "[interfaces.a]\n",
    "[interfaces.b.tls]\n",
    "[modules.work]\n",
    "[modules.work.allow]\n",
    "[[modules.work.allow.files]]\n",
    "[resources.b]\n",
    "[x]\n",
];

const KEYS: &[&str] = &[
    "protocol",
    "listen",
    "methods",
    "password",
    "tls",
    "enabled",
    "export",
    "module",
    "allow",
    "http",
    "cages",
    "files",
    "host",
    "guest",
    "mode",
    "env",
    "config",
    "instances",
    "memory_mb",
    "state",
    "timeout_ms",
    "queue",
    "log_level",
    "source",
    "modules.work.env",
    "x",
    "'y z'",
    "interfaces.a",
];

const VALUES: &[&str] = &[
    "'http'",
    "'info'",
    "'${SECRET}'",
    "'${NONE:-a}'",
    "'${NONE}'",
    "'$${'",
    "'${'",
    "''",
    "'/data'",
    "0",
    "1_000",
    "-1",
    "0xff",
    "1.5",
    "inf",
    "nan",
    "99999999999999999999",
    "true",
    "1979-05-27T07:32:00Z",
    "[]",
    "['a', 'GET']",
    "[1, [2]]",
    "{}",
    "{ A = 'b' }",
    "{ mode = 'fresh', max = 1 }",
    "[{ host = 'a', guest = '/a' }]",
    "'127.0.0.1:1'",
];
