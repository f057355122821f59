//! Carries the arguments or results of a call through a binding from one module to another. The caller's host function and the
//! callee's instance make them. They stay as they are within the process, and are encoded only when a fabric asks for their
//! bytes.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use wasmcage_core::values::{Fingerprint, PlainValues, ValueForm, Values, hex};
use wasmtime::component::Val;

use super::Signature;
use super::binary::{self, Malformed};
use super::shape::Shape;

/// One argument or result. A function with a carrier (`module/carrier.rs`) has `list<u8>` as `Bytes`, also as the value of
/// an option or the `ok` of a result; all else is a value of wasmtime's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Val(Val),
    Bytes(Bytes),
    Some(Box<Item>),
    Ok(Box<Item>),
}

/// The arguments or the result of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Arguments,
    /// The result, of which there is at most one.
    Result,
}

/// Values of this signature, which wasmtime has checked.
#[derive(Clone)]
struct Plain {
    signature: Arc<Signature>,
    side: Side,
    items: Vec<Item>,
}

impl PlainValues for Plain {
    fn encode(&self) -> Bytes {
        binary::encode(&self.signature.shapes(self.side), &self.items)
    }

    fn clone_box(&self) -> Box<dyn PlainValues> {
        Box::new(self.clone())
    }

    fn equals(&self, other: &dyn PlainValues) -> bool {
        (other as &dyn Any)
            .downcast_ref::<Self>()
            .is_some_and(|other| self.side == other.side && self.items == other.items)
    }
}

/// The error for values that do not belong to the function that they came to.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    #[error("its type is `{here}`, the caller was linked with `{there}`: {difference}")]
    Type { here: String, there: String, difference: String },
    #[error("its type is `{here}` ({}), the caller was linked with another ({})", hex(.known), hex(.came))]
    Fingerprint { here: String, known: Fingerprint, came: Fingerprint },
    #[error("values of `{here}` cannot be read")]
    Malformed {
        here: String,
        #[source]
        source: Malformed,
    },
}

/// Makes `Values` of items which wasmtime has checked against this signature.
///
/// # Errors
/// Returns an error when there are too many values.
pub(crate) fn carry(signature: &Arc<Signature>, side: Side, items: Vec<Item>) -> Result<Values, Malformed> {
    binary::check_bounds(&items)?;
    Ok(Values::plain(signature.fingerprint(), Plain { signature: signature.clone(), side, items }))
}

/// Returns the items of values that came for a function of that signature. With `fast`, encoded bytes become `Item::Bytes`
/// where that is possible.
///
/// # Errors
/// Returns an error when the values are of another function type or cannot be decoded.
pub(crate) fn items(values: Values, signature: &Signature, side: Side, fast: bool) -> Result<Vec<Item>, Misfit> {
    let came = values.fingerprint();
    let fits = came == signature.fingerprint();
    let here = || signature.to_string();
    match values.into_content() {
        ValueForm::Encoded(bytes) if fits => binary::decode(&signature.shapes(side), &bytes, fast)
            .map_err(|source| Misfit::Malformed { here: here(), source }),
        ValueForm::Encoded(_) => Err(Misfit::Fingerprint { here: here(), known: signature.fingerprint(), came }),
        ValueForm::Plain(values) => {
            let values: Box<dyn Any> = values;
            let plain = values.downcast::<Plain>().expect("no other runtime makes values in this process");
            if !fits {
                let difference = plain.signature.difference(signature).unwrap_or_default();
                return Err(Misfit::Type { here: here(), there: plain.signature.to_string(), difference });
            }
            // A callee that returns its arguments as the result ends up here.
            if plain.side != side {
                return Err(Misfit::Malformed { here: here(), source: Malformed::Side });
            }
            Ok(plain.items)
        }
    }
}

impl Item {
    /// Converts the item to a value of wasmtime's, with one value for each byte.
    pub(crate) fn into_val(self) -> Val {
        match self {
            Self::Val(value) => value,
            Self::Bytes(bytes) => Val::List(bytes.iter().copied().map(Val::U8).collect()),
            Self::Some(item) => Val::Option(Some(Box::new(item.into_val()))),
            Self::Ok(item) => Val::Result(Ok(Some(Box::new(item.into_val())))),
        }
    }

    /// Returns whether a value of this type may be an item with `Bytes`.
    pub(super) fn is_fast(shape: &Shape) -> bool {
        match shape {
            Shape::Bytes => true,
            Shape::Option(inner) | Shape::Result(Some(inner), _) => Self::is_fast(inner),
            _ => false,
        }
    }
}
