//! `#[service]`: the public functions of a module, or one function, to the export `wasmcage:cage/service`.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt;
use syn::{Attribute, Error, FnArg, Item, ItemFn, ItemMod, Pat, PatType, Type, Visibility};

/// The item with the glue beside it, or inside it: the types of parameters are meant as they are seen from there.
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
        const _: () = {
            use ::wasmcage_guest::export as glue;

            fn call(function: &str, payload: ::wasmcage_guest::Payload)
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
                    call(&function, payload).map_err(glue::RawError::from)
                }
            }
            glue::service::export_service!(Glue with_types_in ::wasmcage_guest::export::service);
        };
    })
}

/// The arm of the match over function names that runs one function.
fn arm(function: &ItemFn) -> syn::Result<TokenStream> {
    let signature = &function.sig;
    crate::check(signature)?;
    let conditions = conditions(&function.attrs);
    let ident = &signature.ident;
    let name = ident.unraw().to_string();
    // `self::` passes by what the glue itself defines.
    let path = quote! { self::#ident };
    let question = crate::returns_result(signature).then(|| quote! { .map_err(::wasmcage_guest::Error::from)? });

    if let [FnArg::Typed(PatType { ty, .. })] = &*signature.inputs.iter().collect::<Vec<_>>()
        && crate::is_named(ty, "Payload")
    {
        return Ok(quote! { #(#conditions)* #name => glue::IntoPayload::into_payload(#path(payload) #question), });
    }
    let parameters = signature.inputs.iter().map(Parameter::of).collect::<syn::Result<Vec<_>>>()?;
    let described = parameters.iter().map(Parameter::describe);
    let taken = parameters.iter().enumerate().map(|(index, parameter)| parameter.take(index));
    let given = parameters.iter().enumerate().map(|(index, parameter)| parameter.give(index));
    let mutable = (!parameters.is_empty()).then(|| quote! { mut });
    Ok(quote! {
        #(#conditions)*
        #name => {
            const PARAMETERS: &[glue::Parameter] = &[#(#described),*];
            #[allow(unused_variables)]
            let #mutable arguments = glue::ParsedArguments::parse(#name, PARAMETERS, &payload)?;
            #(#taken)*
            glue::IntoPayload::into_payload(#path(#(#given),*) #question)
        }
    })
}

struct Parameter<'a> {
    name: String,
    /// As written.
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
        let kind = match self.kind {
            Type::Reference(reference) => {
                let target = &reference.elem;
                let mutable = reference.mutability;
                return quote! { let #mutable #variable: <#target as ::std::borrow::ToOwned>::Owned = arguments.take(#index)?; };
            }
            kind => kind,
        };
        quote! { let #variable: #kind = arguments.take(#index)?; }
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

/// The `#[cfg(..)]`s of a function, which hold for its export too.
fn conditions(attributes: &[Attribute]) -> Vec<&Attribute> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).collect()
}
