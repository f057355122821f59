//! Arguments or results of a call through a binding, on their way from one module to another. Made by the caller's host
//! function and by the callee's instance; within the process they travel as they are, and are encoded only when a fabric
//! asks for their bytes.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::Val;

use super::binary::{self, Malformed};
use super::shape::Shape;
use super::{Fingerprint, Signature};

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

/// Component values, named by the fingerprint of the function's type.
#[derive(Clone, PartialEq, Eq)]
pub struct Values {
    fingerprint: Fingerprint,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Encoded(Bytes),
    /// Of this signature: whoever made them had wasmtime check it.
    Plain(Arc<Signature>, Side, Vec<Item>),
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

impl Values {
    /// As a fabric brought them.
    pub fn encoded(fingerprint: Fingerprint, bytes: Bytes) -> Self {
        Self { fingerprint, content: Content::Encoded(bytes) }
    }

    /// Of values that wasmtime took for values of this signature.
    ///
    /// # Errors
    /// They are too many to be carried.
    pub(crate) fn plain(signature: &Arc<Signature>, side: Side, items: Vec<Item>) -> Result<Self, Malformed> {
        binary::check_bounds(&items)?;
        Ok(Self { fingerprint: signature.fingerprint(), content: Content::Plain(signature.clone(), side, items) })
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The same with `bytes` already made, for a fabric.
    #[must_use]
    pub fn into_encoded(self) -> Self {
        Self::encoded(self.fingerprint, self.bytes())
    }

    /// In the codec of `binary`; made here unless they came so.
    pub fn bytes(&self) -> Bytes {
        match &self.content {
            Content::Encoded(bytes) => bytes.clone(),
            Content::Plain(signature, side, items) => binary::encode(&signature.shapes(*side), items),
        }
    }

    /// The values for a function of that signature. `fast`: with bytes as `Item::Bytes` where that is possible.
    ///
    /// # Errors
    /// They are of another function type, or their bytes are not the codec's.
    pub(crate) fn into_items(self, signature: &Signature, side: Side, fast: bool) -> Result<Vec<Item>, Misfit> {
        if self.fingerprint != signature.fingerprint() {
            return Err(self.misfit(signature));
        }
        match self.content {
            Content::Plain(_, came, items) if came == side => Ok(items),
            // Arguments where a result is due, from a callee that answers with its question.
            Content::Plain(..) => Err(Misfit::Malformed { here: signature.to_string(), source: Malformed::Side }),
            Content::Encoded(bytes) => binary::decode(&signature.shapes(side), &bytes, fast)
                .map_err(|source| Misfit::Malformed { here: signature.to_string(), source }),
        }
    }

    fn misfit(&self, signature: &Signature) -> Misfit {
        let here = signature.to_string();
        match &self.content {
            Content::Plain(caller, ..) => Misfit::Type {
                here,
                there: caller.to_string(),
                difference: caller.difference(signature).unwrap_or_default(),
            },
            Content::Encoded(_) => Misfit::Fingerprint { here, known: signature.fingerprint(), came: self.fingerprint },
        }
    }
}

/// By what they are on the wire.
impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Encoded(bytes), Self::Encoded(others)) => bytes == others,
            (Self::Plain(signature, side, items), Self::Plain(other, other_side, others)) => {
                signature.fingerprint() == other.fingerprint() && side == other_side && items == others
            }
            (Self::Encoded(_), Self::Plain(..)) | (Self::Plain(..), Self::Encoded(_)) => false,
        }
    }
}

impl Eq for Content {}

/// Without the values, which may be long or secret.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").field("fingerprint", &hex(&self.fingerprint)).finish_non_exhaustive()
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

fn hex(fingerprint: &Fingerprint) -> String {
    fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
}
