//! `#[handler]`: exports a function as `wasmcage:cage/handler`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn};

/// Returns the function, followed by the glue code.
pub(crate) fn expand(item: TokenStream) -> syn::Result<TokenStream> {
    let function: ItemFn = syn::parse2(item)?;
    let signature = &function.sig;
    crate::check(signature)?;
    if signature.inputs.len() != 1 || matches!(signature.inputs[0], FnArg::Receiver(_)) {
        return Err(Error::new_spanned(signature, "a handler takes one parameter, the `Request`"));
    }
    let name = &signature.ident;
    let answer = if crate::returns_result(signature) {
        quote! { #name(request).map_err(::wasmcage_guest::Error::from)? }
    } else {
        quote! { #name(request) }
    };
    // The span makes the compiler report a wrong type at the type.
    let answer = quote_spanned! { signature.output.span() => ::core::convert::Into::into(#answer) };
    Ok(quote! {
        #function

        #[allow(dead_code)]
        const _: () = {
            use ::wasmcage_guest::export as glue;

            fn __answer(request: ::wasmcage_guest::Request) -> ::wasmcage_guest::Result<::wasmcage_guest::Response> {
                ::core::result::Result::Ok(#answer)
            }

            struct Glue;
            impl glue::handler::exports::wasmcage::cage::handler::Guest for Glue {
                fn handle(
                    request: ::wasmcage_guest::Request,
                ) -> ::core::result::Result<::wasmcage_guest::Response, glue::RawError> {
                    glue::enter();
                    __answer(request).map_err(glue::RawError::from)
                }
            }
            // Only for wasm, so that the author's own tests can be linked.
            #[cfg(target_family = "wasm")]
            glue::handler::export_handler!(Glue with_types_in ::wasmcage_guest::export::handler);
        };
    })
}
