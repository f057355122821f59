//! Arguments or results of a call, by the types of the component model. Within the process they are passed as the runtime made
//! them, which is opaque to this crate; they are encoded only when a fabric needs their bytes.

use std::any::Any;
use std::fmt;

use bytes::Bytes;

/// A hash of a function's type: functions with equal fingerprints have the same type. The runtime's `module/value` makes it.
pub type Fingerprint = [u8; 16];

/// Values of the component model, with the fingerprint of the function's type.
pub struct Values {
    fingerprint: Fingerprint,
    content: ValueForm,
}

/// The form in which values are passed.
pub enum ValueForm {
    /// Encoded by the runtime's codec, as they came from a fabric.
    Encoded(Bytes),
    /// As the runtime of this process made them.
    Plain(Box<dyn PlainValues>),
}

/// Values that the runtime understands.
pub trait PlainValues: Any + Send + Sync {
    /// Encodes the values by the runtime's codec.
    fn encode(&self) -> Bytes;

    fn clone_box(&self) -> Box<dyn PlainValues>;

    /// Returns whether the other values have the same type and are equal.
    fn equals(&self, other: &dyn PlainValues) -> bool;
}

impl Values {
    /// Values as they came from a fabric.
    pub fn encoded(fingerprint: Fingerprint, bytes: Bytes) -> Self {
        Self { fingerprint, content: ValueForm::Encoded(bytes) }
    }

    /// Values as the runtime made them.
    pub fn plain(fingerprint: Fingerprint, values: impl PlainValues) -> Self {
        Self { fingerprint, content: ValueForm::Plain(Box::new(values)) }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub fn into_content(self) -> ValueForm {
        self.content
    }

    /// Encodes the values, for a fabric.
    #[must_use]
    pub(crate) fn into_encoded(self) -> Self {
        Self::encoded(self.fingerprint, self.bytes())
    }

    /// Returns the values encoded by the runtime's codec.
    pub fn bytes(&self) -> Bytes {
        match &self.content {
            ValueForm::Encoded(bytes) => bytes.clone(),
            ValueForm::Plain(values) => values.encode(),
        }
    }
}

impl Clone for Values {
    fn clone(&self) -> Self {
        let content = match &self.content {
            ValueForm::Encoded(bytes) => ValueForm::Encoded(bytes.clone()),
            ValueForm::Plain(values) => ValueForm::Plain(values.clone_box()),
        };
        Self { fingerprint: self.fingerprint, content }
    }
}

/// Values in different forms are never equal, which no code needs.
impl PartialEq for Values {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            && match (&self.content, &other.content) {
                (ValueForm::Encoded(bytes), ValueForm::Encoded(others)) => bytes == others,
                (ValueForm::Plain(values), ValueForm::Plain(others)) => values.equals(&**others),
                (ValueForm::Encoded(_), ValueForm::Plain(_)) | (ValueForm::Plain(_), ValueForm::Encoded(_)) => false,
            }
    }
}

impl Eq for Values {}

/// Shows the fingerprint only: values may be long or secret.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").field("fingerprint", &hex(&self.fingerprint)).finish_non_exhaustive()
    }
}

/// Formats a fingerprint as hexadecimal digits.
pub fn hex(fingerprint: &Fingerprint) -> String {
    fingerprint.iter().map(|byte| format!("{byte:02x}")).collect()
}
