//! `[rpc]`: which cages may call which functions of this one, and which functions of other cages are idempotent. The dispatcher
//! checks this at each call between cages, whether the caller runs in this process or on another machine.

use super::nearest::nearest;
use super::section::Section;
use super::{NAME_RULE, is_name};

/// The settings of one cage for calls between cages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallsConfig {
    /// Who may call which functions; none: every cage of the flock may call every exported function.
    allow: Option<Vec<Rule>>,
    /// Functions of other cages that may run twice without harm.
    idempotent: Vec<(CagePattern, FunctionPattern)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    functions: FunctionPattern,
    cages: Vec<CagePattern>,
}

/// A cage's name; none: any cage.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CagePattern(Option<String>);

/// `module.function`, `module.*` or `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FunctionPattern {
    module: Option<String>,
    function: Option<String>,
}

impl CallsConfig {
    /// Returns whether another cage may call this function here.
    pub fn permits(&self, caller: &str, module: &str, function: &str) -> bool {
        let Some(rules) = &self.allow else { return true };
        rules
            .iter()
            .any(|rule| rule.functions.fits(module, function) && rule.cages.iter().any(|cage| cage.fits(caller)))
    }

    /// Returns whether a function of another cage may run twice without harm.
    pub fn is_idempotent(&self, cage: &str, module: &str, function: &str) -> bool {
        self.idempotent.iter().any(|(cages, functions)| cages.fits(cage) && functions.fits(module, function))
    }

    pub(super) fn read(section: Option<Section>) -> Self {
        let Some(section) = section else { return Self::default() };
        let allow = section.table("allow").map(|table| {
            let rules = table.keys().into_iter().filter_map(|key| Rule::read(&table, &key)).collect();
            // Its mistakes are reported with those of the file.
            let _ = table.finish();
            rules
        });
        let mut idempotent = Vec::new();
        for text in section.strings("idempotent", &[]) {
            match idempotent_function(&text) {
                Some(function) => idempotent.push(function),
                None => section.problem(
                    "idempotent",
                    format!("{text:?} is not cage/module.function, such as \"worker/work.get\" or \"worker/work.*\""),
                ),
            }
        }
        // Its mistakes are reported with those of the file.
        let _ = section.finish();
        Self { allow, idempotent }
    }
}

impl Rule {
    fn read(table: &Section, key: &str) -> Option<Self> {
        let names = table.strings(key, &[]);
        let Some(functions) = FunctionPattern::parse(key) else {
            table.problem(key, "not a function: write \"module.function\", \"module.*\" or \"*\"");
            return None;
        };
        let cages = names.iter().map(|name| {
            let pattern = CagePattern::parse(name);
            if pattern.is_none() {
                table.problem(
                    key,
                    format!("{name:?} cannot name a cage: {NAME_RULE}; \"*\" is every cage of the flock"),
                );
            }
            pattern
        });
        Some(Self { functions, cages: cages.collect::<Vec<_>>().into_iter().flatten().collect() })
    }
}

fn idempotent_function(text: &str) -> Option<(CagePattern, FunctionPattern)> {
    let (cage, function) = text.split_once('/')?;
    Some((CagePattern::parse(cage)?, FunctionPattern::parse(function)?))
}

impl CagePattern {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "*" => Some(Self(None)),
            name => is_name(name).then(|| Self(Some(name.to_owned()))),
        }
    }

    fn fits(&self, cage: &str) -> bool {
        self.0.as_deref().is_none_or(|name| name == cage)
    }
}

impl FunctionPattern {
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self { module: None, function: None });
        }
        let (module, function) = text.split_once('.')?;
        if !is_name(module) || function.is_empty() {
            return None;
        }
        Some(Self { module: Some(module.to_owned()), function: (function != "*").then(|| function.to_owned()) })
    }

    fn fits(&self, module: &str, function: &str) -> bool {
        self.module.as_deref().is_none_or(|name| name == module)
            && self.function.as_deref().is_none_or(|name| name == function)
    }
}

/// Reads the flock that the cage belongs to.
pub(super) fn flock(section: &Section) -> String {
    let flock = section.string("flock", super::DEFAULT_FLOCK);
    if !super::is_flock_name(&flock) {
        let meant = nearest(&flock, [super::DEFAULT_FLOCK].into_iter());
        let hint = meant.map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default();
        section.problem("flock", format!("{flock:?} cannot name a flock: {}{hint}", super::FLOCK_NAME_RULE));
    }
    flock
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Environment;

    fn read(text: &str) -> Result<CallsConfig, String> {
        let environment = Environment {
            cage: "worker",
            node: "node",
            directory: Path::new("/cages/worker"),
            protocols: &[],
            left_out: &[],
            variables: &|_| None,
        };
        let parsed = crate::parse(&[("cage.toml".into(), text.to_owned())], &environment);
        parsed.map(|config| config.calls).map_err(|error| error.to_string())
    }

    #[test]
    fn callers_may_be_listed() {
        let check = |text: &str, caller: &str, function: (&str, &str), expected: bool| {
            assert_eq!(read(text).unwrap().permits(caller, function.0, function.1), expected, "{text} {caller}");
        };
        check("", "anyone", ("work", "handle"), true);
        check("[rpc]\nallow = {}", "anyone", ("work", "handle"), false);
        let listed =
            "[rpc.allow]\n\"work.handle\" = [\"runner\"]\n\"work.acme:api/x#f\" = [\"*\"]\n\"open.*\" = [\"a\", \"b\"]";
        check(listed, "runner", ("work", "handle"), true);
        check(listed, "other", ("work", "handle"), false);
        check(listed, "runner", ("work", "other"), false);
        check(listed, "other", ("work", "acme:api/x#f"), true);
        check(listed, "b", ("open", "anything"), true);
        check(listed, "c", ("open", "anything"), false);
        check("[rpc.allow]\n\"*\" = [\"runner\"]", "runner", ("any", "thing"), true);
    }

    #[test]
    fn functions_elsewhere_may_be_idempotent() {
        let config = read("[rpc]\nidempotent = [\"worker/work.get\", \"store/*\"]").unwrap();
        assert!(config.is_idempotent("worker", "work", "get") && config.is_idempotent("store", "a", "b"));
        assert!(!config.is_idempotent("worker", "work", "set"));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, words: &[&str]| {
            let error = read(text).unwrap_err();
            words.iter().for_each(|word| assert!(error.contains(word), "{word} is not in {error}"));
        };
        check("[rpc.allow]\n\"handle\" = [\"runner\"]", &["rpc.allow", "module.function"]);
        check("[rpc.allow]\n\"work.handle\" = [\"no cage\"]", &["cannot name a cage"]);
        check("[rpc]\nidempotent = [\"work.get\"]", &["worker/work.get"]);
        check("[rpc]\nallowed = 1", &["rpc.allowed", "did you mean `allow`"]);
        check("flock = \"Big One\"", &["flock", "lower-case"]);
    }
}
