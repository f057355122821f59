//! `[modules.NAME.imports]`: binds imports of a module to other modules. A binding is a grant, too: the module may call the
//! target through it, and only through it.

use std::fmt;

use super::section::Section;
use super::{NAME_RULE, is_name};

/// Namespaces of interfaces that the host itself provides.
const OWN_NAMESPACES: [&str; 2] = ["wasi", "wasmcage"];
/// The one interface among them that can be bound: another module then answers the request.
const HTTP_HANDLER: &str = "wasi:http/handler";

/// A binding such as `"acme:work/api" = "worker/work"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The interface as it is written, with or without a version.
    pub interface: String,
    pub target: BindingTarget,
}

/// The module that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingTarget {
    /// The module's cage; none: the cage of the module that imports.
    pub cage: Option<String>,
    pub module: String,
}

impl Binding {
    pub(super) fn read_all(section: Section) -> Vec<Self> {
        let bindings = section.keys().into_iter().filter_map(|key| Self::read(&section, key));
        let bindings = bindings.collect();
        // Mistakes that `finish` finds are reported with those of the whole configuration.
        let _ = section.finish();
        bindings
    }

    fn read(section: &Section, interface: String) -> Option<Self> {
        let target = section.optional_string(&interface)?;
        if let Err(text) = check_interface(&interface) {
            section.problem(&interface, text);
            return None;
        }
        let parsed = BindingTarget::parse(&target);
        if parsed.is_none() {
            let text = format!(
                "{target:?} is not a module: write \"cage/module\", or \"module\" for one of the same cage; {NAME_RULE}"
            );
            section.problem(&interface, text);
        }
        Some(Self { interface, target: parsed? })
    }
}

impl BindingTarget {
    fn parse(text: &str) -> Option<Self> {
        let (cage, module) = match text.split_once('/') {
            Some((cage, module)) => (Some(cage), module),
            None => (None, text),
        };
        let fits = cage.is_none_or(is_name) && is_name(module);
        fits.then(|| Self { cage: cage.map(str::to_owned), module: module.to_owned() })
    }
}

impl fmt::Display for BindingTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cage.as_ref().map_or(Ok(()), |cage| write!(f, "{cage}/"))?;
        f.write_str(&self.module)
    }
}

/// Checks that a name has the form `namespace:package/interface`, with or without `@version`.
fn check_interface(text: &str) -> Result<(), String> {
    let (name, version) = text.split_once('@').map_or((text, None), |(name, version)| (name, Some(version)));
    let word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_alphabetic())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let parts = name.split_once(':').and_then(|(namespace, rest)| Some((namespace, rest.split_once('/')?)));
    let namespace =
        parts.filter(|(namespace, (package, interface))| word(namespace) && word(package) && word(interface));
    let numbered = |version: &str| {
        version.starts_with(|first: char| first.is_ascii_digit())
            && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte))
    };
    match namespace {
        Some((namespace, _)) if OWN_NAMESPACES.contains(&namespace) && name != HTTP_HANDLER => Err(format!(
            "the host provides {namespace}:* itself; only interfaces of your own, and {HTTP_HANDLER}, can be bound to a \
             module"
        )),
        Some(_) if version.is_none_or(numbered) => Ok(()),
        Some(_) | None => {
            Err("not a WIT interface: write \"namespace:package/interface\", with \"@version\" or without".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Environment;

    fn read(line: &str) -> Result<Vec<Binding>, String> {
        let environment = Environment {
            cage: "runner",
            node: "node",
            directory: Path::new("/cages/runner"),
            protocols: &[],
            left_out: &[],
            variables: &|_| None,
        };
        let text = format!("[modules.front.imports]\n{line}\n");
        let parsed = crate::parse(&[("cage.toml".into(), text)], &environment);
        parsed.map(|config| config.module("front").imports).map_err(|error| error.to_string())
    }

    #[test]
    fn bindings_name_an_interface_and_a_module() {
        let check = |line: &str, interface: &str, cage: Option<&str>, module: &str| {
            let target = BindingTarget { cage: cage.map(str::to_owned), module: module.to_owned() };
            assert_eq!(read(line).unwrap(), [Binding { interface: interface.to_owned(), target }]);
        };
        check("\"acme:work/api\" = \"worker/work\"", "acme:work/api", Some("worker"), "work");
        check("\"acme:work/api@1.2.0-rc.1\" = \"work\"", "acme:work/api@1.2.0-rc.1", None, "work");
        check("\"wasi:http/handler\" = \"work\"", "wasi:http/handler", None, "work");
    }

    #[test]
    fn mistakes_are_named() {
        let check = |line: &str, words: &[&str]| {
            let error = read(line).unwrap_err();
            words.iter().for_each(|word| assert!(error.contains(word), "{word} is not in {error}"));
        };
        check("\"wasi:http/types\" = \"work\"", &["modules.front.imports", "the host provides wasi:* itself"]);
        check("\"wasmcage:cage/log@0.1.0\" = \"work\"", &["the host provides wasmcage:* itself"]);
        check("api = \"work\"", &["not a WIT interface", "namespace:package/interface"]);
        check("\"acme:work/api@new\" = \"work\"", &["not a WIT interface"]);
        check("\"acme:work/api\" = \"a/b/c\"", &["\"a/b/c\" is not a module", "cage/module"]);
        check("\"acme:work/api\" = \"\"", &["is not a module"]);
        check("\"acme:work/api\" = 7", &["expected a string"]);
    }
}
