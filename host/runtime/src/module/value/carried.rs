//! Arguments or results of a call through a binding, on their way from one module to another. Made by the caller's host
//! function and by the callee's instance; within the process they travel as they are, and are encoded only when a fabric
//! asks for their bytes.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use wasmcage_core::values::{Fingerprint, PlainValues, ValueForm, Values, hex};
use wasmtime::component::Val;

use super::Signature;
use super::binary::{self, Malformed};
use super::shape::Shape;

/// One argument or result. A function whose bytes go the fast way (`module/carrier.rs`) has `list<u8>` as `Bytes`, also
/// as the value of an option or the `ok` of a result; everything else is a value of wasmtime's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Val(Val),
    Bytes(Bytes),
    Some(Box<Item>),
    Ok(Box<Item>),
}

/// Which values of a function these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Arguments,
    /// None or one.
    Result,
}

/// Values of this signature: whoever made them had wasmtime check it.
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

/// Values that are not of the function they came to.
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

/// Values that wasmtime took for values of this signature, ready to travel.
///
/// # Errors
/// They are too many to be carried.
pub(crate) fn carry(signature: &Arc<Signature>, side: Side, items: Vec<Item>) -> Result<Values, Malformed> {
    binary::check_bounds(&items)?;
    Ok(Values::plain(signature.fingerprint(), Plain { signature: signature.clone(), side, items }))
}

/// The values that came for a function of that signature. `fast`: with bytes as `Item::Bytes` where that is possible.
///
/// # Errors
/// They are of another function type, or their bytes are not the codec's.
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
            // Arguments where a result is due, from a callee that answers with its question.
            if plain.side != side {
                return Err(Misfit::Malformed { here: here(), source: Malformed::Side });
            }
            Ok(plain.items)
        }
    }
}

impl Item {
    /// As a value of wasmtime's: a value for each byte.
    pub(crate) fn into_val(self) -> Val {
        match self {
            Self::Val(value) => value,
            Self::Bytes(bytes) => Val::List(bytes.iter().copied().map(Val::U8).collect()),
            Self::Some(item) => Val::Option(Some(Box::new(item.into_val()))),
            Self::Ok(item) => Val::Result(Ok(Some(Box::new(item.into_val())))),
        }
    }

    /// Whether a value of this type is one with `Bytes`.
    pub(super) fn is_fast(shape: &Shape) -> bool {
        match shape {
            Shape::Bytes => true,
            Shape::Option(inner) | Shape::Result(Some(inner), _) => Self::is_fast(inner),
            _ => false,
        }
    }
}
