//! The attributes of `wasmcage-guest`, which documents and re-exports them. They check that a function can be exported, and
//! generate the glue code between the component's exports and the author's functions. The glue code calls
//! `wasmcage_guest::export`.

mod handler;
mod service;

use proc_macro::TokenStream;
use proc_macro2::TokenStream as TokenStream2;
use quote::quote;
use syn::{Error, ReturnType, Signature, Type};

/// Exports a function as `wasmcage:cage/handler`: it answers the requests of interfaces.
///
/// The function takes a `Request` and returns a `Response`, anything that converts into one (texts, and `()` for an
/// empty one), or a `Result` of these.
#[proc_macro_attribute]
pub fn handler(attributes: TokenStream, item: TokenStream) -> TokenStream {
    expand(attributes, item, "handler", handler::expand)
}

/// Exports functions as `wasmcage:cage/service`: other modules can call them by name.
///
/// On a module, it exports all public functions; on a function, that function alone. A component has one service.
///
/// Parameters are anything that serde can read from JSON, or references to that. They are passed by position or by name; those
/// of type `Option` may be missing. Results are anything that serde can write as JSON, or a `Result` of that. A function with a
/// single parameter of type `Payload` gets the unconverted arguments, and one that returns a `Payload` may return bytes.
#[proc_macro_attribute]
pub fn service(attributes: TokenStream, item: TokenStream) -> TokenStream {
    expand(attributes, item, "service", service::expand)
}

/// Expands an attribute. An item with a mistake is returned as it is, so that there are no further errors in the author's crate.
fn expand(
    attributes: TokenStream,
    item: TokenStream,
    name: &str,
    with_glue: fn(TokenStream2) -> syn::Result<TokenStream2>,
) -> TokenStream {
    let (attributes, item): (TokenStream2, TokenStream2) = (attributes.into(), item.into());
    let expanded = match attributes.is_empty() {
        true => with_glue(item.clone()),
        false => Err(Error::new_spanned(attributes, format!("#[{name}] takes no arguments"))),
    };
    let expanded = expanded.unwrap_or_else(|error| {
        let error = error.into_compile_error();
        quote! { #item #error }
    });
    expanded.into()
}

/// Checks a function's signature.
///
/// # Errors
/// The host could not call the function.
fn check(signature: &Signature) -> syn::Result<()> {
    if let Some(token) = &signature.asyncness {
        return Err(Error::new_spanned(token, "exported functions cannot be async"));
    }
    if let Some(token) = &signature.unsafety {
        return Err(Error::new_spanned(token, "exported functions cannot be unsafe"));
    }
    if let Some(token) = &signature.variadic {
        return Err(Error::new_spanned(token, "exported functions cannot be variadic"));
    }
    match signature.generics.params.iter().find(|parameter| !matches!(parameter, syn::GenericParam::Lifetime(_))) {
        Some(parameter) => Err(Error::new_spanned(parameter, "exported functions cannot be generic")),
        None => Ok(()),
    }
}

/// Returns whether the function returns a `Result`, by the name of its type as written.
fn returns_result(signature: &Signature) -> bool {
    matches!(&signature.output, ReturnType::Type(_, output) if is_named(output, "Result"))
}

fn is_named(kind: &Type, name: &str) -> bool {
    matches!(kind, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == name))
}
