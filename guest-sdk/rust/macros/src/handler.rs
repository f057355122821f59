//! `#[handler]`: one function to the export `wasmcage:cage/handler`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, FnArg, ItemFn};

/// The function with the glue beside it.
pub(crate) fn expand(item: TokenStream) -> syn::Result<TokenStream> {
    let function: ItemFn = syn::parse2(item)?;
    let signature = &function.sig;
    crate::check(signature)?;
    if signature.inputs.len() != 1 || matches!(signature.inputs[0], FnArg::Receiver(_)) {
        return Err(Error::new_spanned(&signature.inputs, "a handler takes one parameter, the `Request`"));
    }
    let name = &signature.ident;
    let answer = if crate::returns_result(signature) {
        quote! { self::#name(request).map_err(::wasmcage_guest::Error::from)? }
    } else {
        quote! { self::#name(request) }
    };
    Ok(quote! {
        #function

        const _: () = {
            use ::wasmcage_guest::export as glue;

            fn answer(request: ::wasmcage_guest::Request) -> ::wasmcage_guest::Result<::wasmcage_guest::Response> {
                ::core::result::Result::Ok(::core::convert::Into::into(#answer))
            }

            struct Glue;
            impl glue::handler::exports::wasmcage::cage::handler::Guest for Glue {
                fn handle(
                    request: ::wasmcage_guest::Request,
                ) -> ::core::result::Result<::wasmcage_guest::Response, glue::RawError> {
                    glue::enter();
                    answer(request).map_err(glue::RawError::from)
                }
            }
            glue::handler::export_handler!(Glue with_types_in ::wasmcage_guest::export::handler);
        };
    })
}
