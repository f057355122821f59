//! `#[service]`: exports the public functions of a module, or one function, as `wasmcage:cage/service`.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Error, FnArg, Item, ItemFn, ItemMod, Pat, PatType, Signature, Type, Visibility};

/// Returns the item with the glue code after it, or in it for a module, where the types of parameters are in scope.
pub(crate) fn expand(item: TokenStream) -> syn::Result<TokenStream> {
    match syn::parse2(item)? {
        Item::Fn(function) => {
            let glue = expand_functions(&[&function])?;
            Ok(quote! { #function #glue })
        }
        Item::Mod(mut module) => {
            let glue = expand_functions(&public_functions(&module)?)?;
            if let Some((_, items)) = &mut module.content {
                items.push(Item::Verbatim(glue));
            }
            Ok(module.into_token_stream())
        }
        other => Err(Error::new_spanned(other, "#[service] goes on a function or on a `mod` with public functions")),
    }
}

fn public_functions(module: &ItemMod) -> syn::Result<Vec<&ItemFn>> {
    let Some((_, items)) = &module.content else {
        return Err(Error::new_spanned(module, "#[service] needs the functions here, not in a file of their own"));
    };
    let functions: Vec<_> = items
        .iter()
        .filter_map(|item| match item {
            Item::Fn(function) if matches!(function.vis, Visibility::Public(_)) => Some(function),
            _ => None,
        })
        .collect();
    match functions.is_empty() {
        true => Err(Error::new_spanned(&module.ident, "a service needs at least one `pub fn`")),
        false => Ok(functions),
    }
}

fn expand_functions(functions: &[&ItemFn]) -> syn::Result<TokenStream> {
    let arms = functions.iter().map(|function| arm(function)).collect::<syn::Result<Vec<_>>>()?;
    let names = functions.iter().map(|function| {
        let (conditions, name) = (conditions(&function.attrs), function.sig.ident.unraw().to_string());
        quote! { #(#conditions)* #name }
    });
    Ok(quote! {
        #[allow(dead_code)]
        const _: () = {
            use ::wasmcage_guest::export as glue;

            fn __call(function: &str, payload: ::wasmcage_guest::Payload)
                -> ::wasmcage_guest::Result<::wasmcage_guest::Payload>
            {
                match function {
                    #(#arms)*
                    _ => ::core::result::Result::Err(glue::unknown(function)),
                }
            }

            struct Glue;
            impl glue::service::exports::wasmcage::cage::service::Guest for Glue {
                fn functions() -> ::std::vec::Vec<::std::string::String> {
                    glue::enter();
                    glue::names(&[#(#names),*])
                }

                fn call(
                    function: ::std::string::String,
                    payload: ::wasmcage_guest::Payload,
                ) -> ::core::result::Result<::wasmcage_guest::Payload, glue::RawError> {
                    glue::enter();
                    __call(&function, payload).map_err(glue::RawError::from)
                }
            }
            // Only for wasm, so that the author's own tests can be linked.
            #[cfg(target_family = "wasm")]
            glue::service::export_service!(Glue with_types_in ::wasmcage_guest::export::service);
        };
    })
}

/// Makes the match arm that runs one function.
fn arm(function: &ItemFn) -> syn::Result<TokenStream> {
    let signature = &function.sig;
    crate::check(signature)?;
    let conditions = conditions(&function.attrs);
    let ident = &signature.ident;
    let name = ident.unraw().to_string();
    let question = crate::returns_result(signature).then(|| quote! { .map_err(::wasmcage_guest::Error::from)? });

    if takes_payload(signature) {
        return Ok(quote! { #(#conditions)* #name => glue::IntoPayload::into_payload(#ident(payload) #question), });
    }
    let parameters = signature.inputs.iter().map(Parameter::of).collect::<syn::Result<Vec<_>>>()?;
    let described = parameters.iter().map(Parameter::describe);
    let taken = parameters.iter().enumerate().map(|(index, parameter)| parameter.take(index));
    let given = parameters.iter().enumerate().map(|(index, parameter)| parameter.give(index));
    let mutable = (!parameters.is_empty()).then(|| quote! { mut });
    let call =
        quote_spanned! { signature.output.span() => glue::IntoPayload::into_payload(#ident(#(#given),*) #question) };
    Ok(quote! {
        #(#conditions)*
        #name => {
            const PARAMETERS: &[glue::Parameter] = &[#(#described),*];
            #[allow(unused_variables)]
            let #mutable arguments = glue::ParsedArguments::parse(#name, PARAMETERS, &payload)?;
            #(#taken)*
            #call
        }
    })
}

fn takes_payload(signature: &Signature) -> bool {
    let mut inputs = signature.inputs.iter();
    let (first, second) = (inputs.next(), inputs.next());
    second.is_none() && matches!(first, Some(FnArg::Typed(PatType { ty, .. })) if crate::is_named(ty, "Payload"))
}

struct Parameter<'a> {
    name: String,
    /// The type as written.
    kind: &'a Type,
}

impl<'a> Parameter<'a> {
    fn of(input: &'a FnArg) -> syn::Result<Self> {
        let FnArg::Typed(PatType { pat, ty, .. }) = input else {
            return Err(Error::new_spanned(input, "exported functions have no `self`"));
        };
        match (&**pat, &**ty) {
            (_, Type::ImplTrait(_)) => Err(Error::new_spanned(ty, "exported functions cannot be generic")),
            (Pat::Ident(name), kind) => Ok(Self { name: name.ident.unraw().to_string(), kind }),
            _ => Err(Error::new_spanned(pat, "a parameter of a service needs a name: callers may use it")),
        }
    }

    fn describe(&self) -> TokenStream {
        let (name, kind) = (&self.name, self.kind.to_token_stream().to_string().replace(' ', ""));
        quote! { glue::Parameter { name: #name, kind: #kind } }
    }

    fn take(&self, index: usize) -> TokenStream {
        let variable = format_ident!("argument_{index}");
        // The span makes the compiler report a wrong type at the type.
        let taken = quote_spanned! { self.kind.span() => arguments.take(#index)? };
        match self.kind {
            Type::Reference(reference) => {
                let (mutable, target) = (reference.mutability, &reference.elem);
                quote! { let #mutable #variable: <#target as ::std::borrow::ToOwned>::Owned = #taken; }
            }
            kind => quote! { let #variable: #kind = #taken; },
        }
    }

    fn give(&self, index: usize) -> TokenStream {
        let variable = format_ident!("argument_{index}");
        match self.kind {
            Type::Reference(reference) => {
                let mutable = reference.mutability;
                quote! { &#mutable #variable }
            }
            _ => quote! { #variable },
        }
    }
}

/// Returns the `#[cfg(..)]` attributes of a function, which apply to its export, too.
fn conditions(attributes: &[Attribute]) -> Vec<&Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect()
}
