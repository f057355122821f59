//! Finds the exports of a component by its type when it is loaded, so that at serving time only called functions are looked up
//! by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use wasmtime::Engine;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Type};
use wasmtime_wasi_http::{p2, p3};

use super::carrier::{self, Carrier};
use super::value::{Signature, UnsupportedType};
use crate::host_api::GuestState;
use wasmcage_config::InstanceMode;

pub const HANDLER: &str = "wasmcage:cage/handler@0.1.0";
pub const SERVICE: &str = "wasmcage:cage/service@0.1.0";
pub const HANDOVER: &str = "wasmcage:cage/handover@0.1.0";
const INCOMING_HANDLER: &str = "wasi:http/incoming-handler@0.2";
pub const HTTP_HANDLER: &str = "wasi:http/handler@0.3";
const COMMAND: &str = "wasi:cli/run@";
/// The advice for a component whose types of `wasmcage:cage` differ from the host's.
pub const BUILD_AGAIN: &str =
    "it was built with the WIT of another wasmcage: build it again with the SDK, or the `wit/`, of this one";
/// The cases of the error that `handle` and `call` return.
const ERROR_CASES: [&str; 3] = ["bad-arguments", "refused", "failed"];

/// The exports of a component that the host can use.
#[derive(Default)]
pub struct Exports {
    pub handler: Option<ComponentExportIndex>,
    pub service: Option<Service>,
    pub web: Option<Web>,
    pub handover: Option<Handover>,
    /// The plain functions by name: `name` at the top level, `interface#name` within an exported interface, and also `name`
    /// alone for the latter unless it is ambiguous.
    pub functions: BTreeMap<String, PlainFunction>,
    /// The short names that functions of several interfaces share, with the full names of these functions.
    ambiguous: BTreeMap<String, Vec<String>>,
}

pub struct Service {
    pub call: ComponentExportIndex,
    pub functions: ComponentExportIndex,
}

pub struct Handover {
    pub save: ComponentExportIndex,
    pub restore: ComponentExportIndex,
}

/// The export of a standard WASI HTTP component, by its version.
pub enum Web {
    P2(p2::bindings::ProxyIndices),
    P3(p3::bindings::ServiceIndices),
}

pub struct PlainFunction {
    pub index: ComponentExportIndex,
    /// The type, or the reason why the function cannot be called by name.
    pub signature: Result<Arc<Signature>, UnsupportedType>,
    /// The typed path for functions that carry bytes, if there is one for this type.
    pub carrier: Option<&'static dyn Carrier>,
    /// Is true for `run` of a command, which takes words, may end by `exit` and runs once in an instance.
    pub is_command: bool,
    /// Is set by the first call, so that a later version without this function is refused.
    used: AtomicBool,
}

impl PlainFunction {
    /// Returns the function as text, such as `name: func(a: string, b: u32) -> bool`, for messages and to compare versions.
    pub fn describe(&self, name: &str) -> String {
        match &self.signature {
            Ok(signature) => signature.to_string(),
            Err(error) => format!("{name} ({error})"),
        }
    }

    pub fn mark_used(&self) {
        // The flag is read first, because a store on every call would move the cache line between cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    pub fn used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns a copy for another name of the same function.
    fn again(&self) -> Self {
        let signature = self.signature.clone();
        Self { signature, used: AtomicBool::new(false), ..*self }
    }
}

impl Exports {
    /// # Errors
    /// Returns an error for an export that has a known name and a wrong type.
    pub fn of(pre: &InstancePre<GuestState>) -> Result<Self, String> {
        let component = pre.component();
        let mut exports = Self::default();
        let ty = component.component_type();
        for (name, item) in ty.exports(component.engine()) {
            match item.ty {
                ComponentItem::ComponentFunc(ty) => exports.add_function(component, None, name, &ty),
                ComponentItem::ComponentInstance(instance) if name == HANDLER => {
                    check_error(component, &instance, name, "handle")?;
                    exports.handler = Some(member(component, name, "handle")?);
                }
                ComponentItem::ComponentInstance(instance) if name == SERVICE => {
                    check_error(component, &instance, name, "call")?;
                    let [call, functions] = ["call", "functions"].map(|function| member(component, name, function));
                    exports.service = Some(Service { call: call?, functions: functions? });
                }
                ComponentItem::ComponentInstance(_) if name == HANDOVER => {
                    let [save, restore] = ["save", "restore"].map(|function| member(component, name, function));
                    exports.handover = Some(Handover { save: save?, restore: restore? });
                }
                ComponentItem::ComponentInstance(_) if name.starts_with(HTTP_HANDLER) => {
                    exports.web = Some(Web::P3(indices(name, p3::bindings::ServiceIndices::new(pre))?));
                }
                ComponentItem::ComponentInstance(_) if name.starts_with(INCOMING_HANDLER) => {
                    if exports.web.is_none() {
                        exports.web = Some(Web::P2(indices(name, p2::bindings::ProxyIndices::new(pre))?));
                    }
                }
                // These are the functions with which componentize-py initialises its interpreter; they are not for callers.
                ComponentItem::ComponentInstance(_) if name == "exports" => {}
                ComponentItem::ComponentInstance(instance) => {
                    for (function, item) in instance.exports(component.engine()) {
                        if let ComponentItem::ComponentFunc(ty) = item.ty {
                            exports.add_function(component, Some(name), function, &ty);
                        }
                    }
                }
                ComponentItem::CoreFunc(_)
                | ComponentItem::Module(_)
                | ComponentItem::Component(_)
                | ComponentItem::Type(_)
                | ComponentItem::Resource(_) => {}
            }
        }
        exports.add_short_names();
        Ok(exports)
    }

    fn add_function(&mut self, component: &Component, instance: Option<&str>, name: &str, ty: &ComponentFunc) {
        let parent = instance.and_then(|instance| component.get_export_index(None, instance));
        let Some(index) = component.get_export_index(parent.as_ref(), name) else { return };
        let signature = Signature::new(name, ty).map(Arc::new);
        let carrier = signature.as_ref().ok().and_then(|signature| carrier::find(signature));
        let is_command = name == "run" && instance.is_some_and(|instance| instance.starts_with(COMMAND));
        let full_name = instance.map_or_else(|| name.to_owned(), |instance| format!("{instance}#{name}"));
        let function = PlainFunction { index, signature, carrier, is_command, used: AtomicBool::new(false) };
        self.functions.insert(full_name, function);
    }

    /// Adds the short name of each function of an interface, unless several functions share it or one at the top level has it.
    fn add_short_names(&mut self) {
        let mut by_name = BTreeMap::<String, Vec<String>>::new();
        for full_name in self.functions.keys() {
            let short = full_name.split_once('#').map(|(_, name)| name);
            if let Some(name) = short.filter(|name| !self.functions.contains_key(*name)) {
                by_name.entry(name.to_owned()).or_default().push(full_name.clone());
            }
        }
        for (name, full_names) in by_name {
            match full_names.as_slice() {
                [only] => {
                    let function = self.functions[only].again();
                    self.functions.insert(name, function);
                }
                _ => {
                    self.ambiguous.insert(name, full_names);
                }
            }
        }
    }

    /// Returns the plain function of that name. `interface@version#name` also finds one of a version that is compatible by the
    /// rules of semantic versions. `_` may stand for the `-` of WIT.
    pub fn function(&self, name: &str) -> Option<&PlainFunction> {
        self.named(name).or_else(|| self.named(&wit_name(name)?))
    }

    fn named(&self, name: &str) -> Option<&PlainFunction> {
        self.functions.get(name).or_else(|| {
            let (interface, function) = name.split_once('#')?;
            let wanted = compatible(interface)?;
            let same = |known: &str| {
                let (interface, other) = known.split_once('#')?;
                (other == function && compatible(interface)? == wanted).then_some(())
            };
            self.functions.iter().find(|(known, _)| same(known).is_some()).map(|(_, found)| found)
        })
    }

    /// Returns the full names of the functions that this name could mean, when there are several.
    pub fn candidates(&self, name: &str) -> Option<&[String]> {
        let candidates = self.ambiguous.get(name).or_else(|| self.ambiguous.get(&wit_name(name)?));
        candidates.map(Vec::as_slice)
    }

    /// Returns the mode of instances when `cage.toml` does not set it. Guests of `wasi:http@0.2` are made for hosts that use
    /// an instance once, and some toolchains do not support a second request. A command runs only once in an instance.
    pub fn instance_mode(&self) -> InstanceMode {
        let once = matches!(self.web, Some(Web::P2(_))) || self.functions.values().any(|function| function.is_command);
        if once { InstanceMode::Fresh } else { InstanceMode::Reuse }
    }

    pub fn is_empty(&self) -> bool {
        self.handler.is_none() && self.service.is_none() && self.web.is_none() && self.functions.is_empty()
    }
}

fn member(component: &Component, instance: &str, function: &str) -> Result<ComponentExportIndex, String> {
    let parent = component.get_export_index(None, instance);
    let index = parent.and_then(|parent| component.get_export_index(Some(&parent), function));
    index.ok_or_else(|| format!("export {instance} lacks function `{function}`"))
}

/// Compares the cases of the function's error with the host's, so that `wasmcage check`, which starts nothing, finds a
/// component that was built with an earlier WIT. The whole type is compared when an instance starts.
fn check_error(component: &Component, instance: &ComponentInstance, name: &str, function: &str) -> Result<(), String> {
    let item = instance.get_export(component.engine(), function).map(|export| export.ty);
    let Some(ComponentItem::ComponentFunc(ty)) = item else { return Ok(()) };
    let Some(Type::Result(result)) = ty.results().next() else { return Ok(()) };
    let Some(Type::Variant(error)) = result.err() else { return Ok(()) };
    let cases: Vec<_> = error.cases().map(|case| case.name).collect();
    if cases == ERROR_CASES {
        return Ok(());
    }
    let [cases, expected] = [&cases[..], &ERROR_CASES[..]].map(|cases| cases.join(", "));
    Err(format!(
        "export {name}#{function} has another type than the WIT says: its error has the cases {cases}, not {expected}; \
         {BUILD_AGAIN}"
    ))
}

/// Returns the name with `-` for `_`, as WIT writes it, or `None` if it has no `_`.
fn wit_name(name: &str) -> Option<String> {
    name.contains('_').then(|| name.replace('_', "-"))
}

/// Returns the name and the part of the version that all compatible versions of an interface share, or `None` if the version
/// is compatible only with itself.
fn compatible(interface: &str) -> Option<(&str, &str)> {
    let (name, version) = interface.split_once('@')?;
    Some((name, compatible_version(version)?))
}

/// Returns the part of a version that all compatible versions share, such as `1` of `1.2.3` or `0.2` of `0.2.3`, or `None` if
/// the version is compatible only with itself.
pub fn compatible_version(version: &str) -> Option<&str> {
    let end = |parts: usize| version.match_indices('.').nth(parts - 1).map(|(at, _)| at);
    let stands_alone = version.is_empty() || version.contains(['-', '+']) || version.starts_with("0.0.");
    let end = if version.starts_with("0.") { end(2) } else { end(1) };
    (!stands_alone).then(|| &version[..end.unwrap_or(version.len())])
}

fn indices<T>(name: &str, indices: wasmtime::Result<T>) -> Result<T, String> {
    indices.map_err(|error| {
        format!("export {name} has another type than wasi:http 0.2.12 or 0.3.0, which are served, say: {error:#}")
    })
}

/// Returns true for an exported interface of `wasi:http`, which a cage's interfaces use and other modules do not call by name.
pub fn is_web(name: &str) -> bool {
    name.starts_with(HTTP_HANDLER) || name.starts_with(INCOMING_HANDLER)
}

/// Returns the names of the component's imports, with their versions.
pub fn imports(component: &Component, engine: &Engine) -> Vec<String> {
    component.component_type().imports(engine).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_for_each_other_as_semantic_versions_do() {
        let check = |interface: &str, expected: Option<(&str, &str)>| assert_eq!(compatible(interface), expected);
        check("acme:work/api@1.2.3", Some(("acme:work/api", "1")));
        check("acme:work/api@0.2.3", Some(("acme:work/api", "0.2")));
        check("acme:work/api@0.0.3", None);
        check("acme:work/api@1.0.0-rc.1", None);
        check("acme:work/api", None);
    }
}
