//! Arguments or results of a call by component types. Within the process they travel as the module's runtime made them, which
//! this crate does not look into; they are encoded only when a fabric asks for their bytes.

use std::any::Any;
use std::fmt;

use bytes::Bytes;

/// Of a function's type: two functions can stand for each other when theirs are equal. See `module/value` of the runtime for
/// how it is made.
pub type Fingerprint = [u8; 16];

/// Component values, named by the fingerprint of the function's type.
pub struct Values {
    fingerprint: Fingerprint,
    content: Content,
}

/// The form in which values travel.
pub enum Content {
    /// In the runtime's codec, as a fabric brought them.
    Encoded(Bytes),
    /// As the runtime of this process made them.
    Plain(Box<dyn PlainValues>),
}

/// Values that the runtime understands.
pub trait PlainValues: Any + Send + Sync {
    /// In the runtime's codec.
    fn encode(&self) -> Bytes;

    fn clone_box(&self) -> Box<dyn PlainValues>;

    /// Whether the other is of the same type and means the same.
    fn equals(&self, other: &dyn PlainValues) -> bool;
}

impl Values {
    /// As a fabric brought them.
    pub fn encoded(fingerprint: Fingerprint, bytes: Bytes) -> Self {
        Self { fingerprint, content: Content::Encoded(bytes) }
    }

    /// As the runtime made them.
    pub fn plain(fingerprint: Fingerprint, values: impl PlainValues) -> Self {
        Self { fingerprint, content: Content::Plain(Box::new(values)) }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub fn into_content(self) -> Content {
        self.content
    }

    /// The same with `bytes` already made, for a fabric.
    #[must_use]
    pub fn into_encoded(self) -> Self {
        Self::encoded(self.fingerprint, self.bytes())
    }

    /// In the runtime's codec; made here unless they came so.
    pub fn bytes(&self) -> Bytes {
        match &self.content {
            Content::Encoded(bytes) => bytes.clone(),
            Content::Plain(values) => values.encode(),
        }
    }
}

impl Clone for Values {
    fn clone(&self) -> Self {
        let content = match &self.content {
            Content::Encoded(bytes) => Content::Encoded(bytes.clone()),
            Content::Plain(values) => Content::Plain(values.clone_box()),
        };
        Self { fingerprint: self.fingerprint, content }
    }
}

/// Values in different forms are different: nobody compares a call with what a fabric made of it.
impl PartialEq for Values {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && match (&self.content, &other.content) {
                (Content::Encoded(bytes), Content::Encoded(others)) => bytes == others,
                (Content::Plain(values), Content::Plain(others)) => values.equals(&**others),
                (Content::Encoded(_), Content::Plain(_)) | (Content::Plain(_), Content::Encoded(_)) => false,
            }
    }
}

impl Eq for Values {}

/// Without the values, which may be long or secret.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").field("fingerprint", &hex(&self.fingerprint)).finish_non_exhaustive()
    }
}

/// A fingerprint as people read it.
pub fn hex(fingerprint: &Fingerprint) -> String {
    fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
}
