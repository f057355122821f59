//! Typed bindings are imports of a component that `cage.toml` binds to a module, in this process or elsewhere. When a version
//! is loaded, each function of such an import gets a host function (`host_api/bound.rs`) that calls the module's function
//! of the same type. Imports that cannot be bound are found here, before anything runs.

use std::sync::Arc;

use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime::component::{Component, Linker, ResourceType};
use wasmtime::{Engine, StoreContextMut};

use super::carrier::{self, Carrier};
use super::exports::{Exports, HTTP_HANDLER};
use super::loader::ImportProblem;
use super::value::{Item, Signature};
use crate::host_api::{GuestState, bound, forward};
use wasmcage_config::{Binding, BindingTarget, nearest};

/// An import and the module that answers it.
pub struct BoundInterface {
    /// The name of the import in the component, with its version.
    pub import: String,
    pub target: BindingTarget,
    /// The functions of the interface. `wasi:http/handler` has none here, since its requests are streamed to the target's own
    /// export of `wasi:http`.
    pub functions: Vec<Arc<BoundFunction>>,
    is_web: bool,
}

pub struct BoundFunction {
    /// The name by which it is called at the target, such as `acme:work/api@1.2.0#handle`.
    pub name: String,
    pub target: BindingTarget,
    pub signature: Arc<Signature>,
    /// The typed path for functions that carry bytes, if there is one for this type.
    pub carrier: Option<&'static dyn Carrier>,
}

/// Returns the imports of a component that bindings answer, and those that have a binding which cannot, with the reason.
pub fn resolve(component: &Component, bindings: &[Binding]) -> (Vec<BoundInterface>, Vec<ImportProblem>) {
    let engine = component.engine();
    let ty = component.component_type();
    let imports: Vec<(String, ComponentItem)> =
        ty.imports(engine).map(|(name, import)| (name.to_owned(), import.ty)).collect();
    let names: Vec<&str> = imports.iter().map(|(name, _)| name.as_str()).collect();
    let mut problems = Vec::new();
    let mut bound = Vec::new();
    for (import, item) in &imports {
        let Some(binding) = binding_of(import, bindings) else { continue };
        let resolved = match item {
            _ if !names_one(binding, &names) => {
                Err(format!("the binding \"{}\" names several imports; add the version", binding.interface))
            }
            ComponentItem::ComponentInstance(_) if import.starts_with(HTTP_HANDLER) => Ok(BoundInterface {
                import: import.clone(),
                target: binding.target.clone(),
                functions: Vec::new(),
                is_web: true,
            }),
            ComponentItem::ComponentInstance(instance) => interface(import, &binding.target, instance, engine),
            _ => Err("only an interface with functions can be bound to a module".into()),
        };
        match resolved {
            Ok(interface) => bound.push(interface),
            Err(reason) => problems.push(ImportProblem { import: import.clone(), reason }),
        }
    }
    (bound, problems)
}

/// Returns the bindings that no import of the component uses.
pub fn unused<'b>(component: &Component, bindings: &'b [Binding]) -> Vec<&'b Binding> {
    let ty = component.component_type();
    let imports: Vec<&str> = ty.imports(component.engine()).map(|(name, _)| name).collect();
    let used = |binding: &&Binding| imports.iter().any(|import| answers(binding, import));
    bindings.iter().filter(|binding| !used(binding)).collect()
}

/// Returns the imports that have only types, so that nobody has to provide them: types of values, and resources of other
/// imports under a second name (`use wasi:http/types.{response}`).
pub fn with_types_only(component: &Component) -> Vec<String> {
    let engine = component.engine();
    let mut resources = Vec::new();
    let mut names = Vec::new();
    for (name, import) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(instance) = import.ty else { continue };
        let own: Vec<ResourceType> = instance
            .exports(engine)
            .filter_map(|(_, member)| match member.ty {
                ComponentItem::Resource(resource) if !resources.contains(&resource) => Some(resource),
                _ => None,
            })
            .collect();
        let is_type = |item: &ComponentItem| matches!(item, ComponentItem::Type(_) | ComponentItem::Resource(_));
        if own.is_empty() && instance.exports(engine).all(|(_, member)| is_type(&member.ty)) {
            names.push(name.to_owned());
        }
        resources.extend(own);
    }
    names
}

/// Returns `; ..` with the binding that may have been meant for an import, or with an example of one.
pub fn hint(import: &str, bindings: &[Binding]) -> String {
    let interface = import.split_once('@').map_or(import, |(name, _)| name);
    match nearest(import, bindings.iter().map(|binding| binding.interface.as_str())) {
        Some(meant) => format!("; was the binding \"{meant}\" meant for it?"),
        None => format!("; a module can: \"{interface}\" = \"cage/module\" in [modules.NAME.imports] of cage.toml"),
    }
}

/// Returns the binding that names the import with its version, or else the one that names it without.
fn binding_of<'b>(import: &str, bindings: &'b [Binding]) -> Option<&'b Binding> {
    let exact = bindings.iter().find(|binding| binding.interface == import);
    exact.or_else(|| bindings.iter().find(|binding| answers(binding, import)))
}

fn answers(binding: &Binding, import: &str) -> bool {
    binding.interface == import || import.split_once('@').is_some_and(|(name, _)| name == binding.interface)
}

/// Returns whether a binding names exactly one import. Without a version it may match several.
fn names_one(binding: &Binding, imports: &[&str]) -> bool {
    imports.contains(&binding.interface.as_str())
        || imports.iter().filter(|import| answers(binding, import)).count() == 1
}

fn interface(
    import: &str,
    target: &BindingTarget,
    instance: &ComponentInstance,
    engine: &Engine,
) -> Result<BoundInterface, String> {
    let mut functions = Vec::new();
    for (name, member) in instance.exports(engine) {
        match member.ty {
            ComponentItem::ComponentFunc(ty) => functions.push(Arc::new(function(import, name, target, &ty)?)),
            ComponentItem::Type(_) => {}
            ComponentItem::Resource(_) => {
                return Err(format!("it has the resource `{name}`, and resources cannot cross a binding"));
            }
            ComponentItem::ComponentInstance(_)
            | ComponentItem::Component(_)
            | ComponentItem::Module(_)
            | ComponentItem::CoreFunc(_) => return Err(format!("`{name}` is no function, and cannot be bound")),
        }
    }
    Ok(BoundInterface { import: import.to_owned(), target: target.clone(), functions, is_web: false })
}

fn function(import: &str, name: &str, target: &BindingTarget, ty: &ComponentFunc) -> Result<BoundFunction, String> {
    let signature =
        Signature::new(name, ty).map_err(|error| format!("function `{name}` cannot be bound to a module: {error}"))?;
    if signature.is_async() {
        return Err(format!("function `{name}` cannot be bound to a module: it is async"));
    }
    Ok(BoundFunction {
        name: format!("{import}#{name}"),
        target: target.clone(),
        carrier: carrier::find(&signature),
        signature: Arc::new(signature),
    })
}

/// Returns a copy of the linker with the bound imports added.
///
/// # Errors
/// Returns wasmtime's error when an import is defined already.
pub fn link(linker: &Linker<GuestState>, bound: &[BoundInterface]) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = linker.clone();
    for interface in bound {
        if interface.is_web {
            forward::link(&mut linker, &interface.import, &interface.target)?;
            continue;
        }
        let mut instance = linker.instance(&interface.import)?;
        for function in &interface.functions {
            let name = function.name.rsplit_once('#').map_or(&*function.name, |(_, name)| name);
            if let Some(carrier) = function.carrier {
                carrier.link(&mut instance, name, function.clone())?;
                continue;
            }
            let function = function.clone();
            instance.func_new_async(name, move |store: StoreContextMut<'_, GuestState>, _, arguments, results| {
                let (caller, function) = (bound::Caller::of(store.data()), function.clone());
                Box::new(async move {
                    let arguments = arguments.iter().cloned().map(Item::Val).collect();
                    let items = bound::call(caller, &function, arguments).await?;
                    results.iter_mut().zip(items).for_each(|(result, item)| *result = item.into_val());
                    Ok(())
                })
            })?;
        }
    }
    Ok(linker)
}

/// Returns the functions of the import that the target's exports cannot answer, each as a sentence.
pub fn misfits(interface: &BoundInterface, exports: &Exports) -> Vec<String> {
    if interface.is_web && exports.web.is_none() {
        return vec!["it exports neither wasi:http/incoming-handler nor wasi:http/handler".into()];
    }
    interface.functions.iter().filter_map(|function| misfit(function, exports)).collect()
}

/// Returns why the function's target cannot answer it, or `None` when it can.
pub fn misfit(function: &BoundFunction, exports: &Exports) -> Option<String> {
    let (name, wanted) = (&function.name, &function.signature);
    let Some(found) = exports.function(name) else {
        let meant = nearest(name, exports.functions.keys().map(String::as_str));
        let meant = meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default();
        return Some(format!("it exports no function `{name}`{meant}"));
    };
    match &found.signature {
        Ok(signature) => wanted
            .difference(signature)
            .map(|difference| format!("its function `{signature}` is not `{wanted}`: {difference}")),
        Err(error) => Some(format!("its function `{name}` cannot be called: {error}")),
    }
}
