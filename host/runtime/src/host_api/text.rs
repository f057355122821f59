//! Texts of guests that are short by nature. Their length is looked at before they are copied: to copy a text of many
//! megabytes, only to refuse it as a name, would take the lane from everybody else.

#![expect(
    unsafe_code,
    reason = "wasmtime's traits for values of guests are unsafe to implement; see the comments there"
)]

use wasmtime::ValRaw;
use wasmtime::component::__internal::wasmtime_environ::component::StringEncoding;
use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext};
use wasmtime::component::{ComponentType, Lift};

/// In the length of a text, says that its units have two bytes.
const UTF16_TAG: u32 = 1 << 31;

/// A name. None is as long as this, so that whoever takes one refuses those that were cut.
pub(super) type Name = Text<2_048>;

/// A `string` of which at most `MAX` bytes are copied.
pub(super) struct Text<const MAX: usize> {
    text: String,
    /// Bytes, or units of the guest's encoding, that were left where they are.
    cut: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// The text, and how much of it is missing.
    pub(super) fn into_parts(self) -> (String, usize) {
        (self.text, self.cut)
    }

    /// The text; a cut one says so at its end.
    pub(super) fn into_name(self) -> String {
        let Self { mut text, cut } = self;
        if cut > 0 {
            text.push_str(&format!("... ({cut} bytes more)"));
        }
        text
    }

    fn lift(cx: &mut LiftContext<'_>, ty: InterfaceType, pointer: u32, length: u32) -> wasmtime::Result<Self> {
        let (kept, cut) = shortened(cx, pointer, length, MAX);
        let text = String::linear_lift_from_flat(cx, ty, &[ValRaw::u32(pointer), ValRaw::u32(kept)])?;
        Ok(Self { text, cut })
    }
}

/// How much of a text is copied, and how much is not: all, or what is whole characters within `max` bytes. Of the encodings
/// with units of two bytes a text that is too long is left out altogether; hardly any toolchain has them.
fn shortened(cx: &LiftContext<'_>, pointer: u32, length: u32, max: usize) -> (u32, usize) {
    let units = match cx.options().string_encoding {
        StringEncoding::Utf8 if length as usize > max => {
            let begins = |end: &usize| cx.memory().get(pointer as usize + end).is_none_or(|byte| byte & 0xc0 != 0x80);
            // A character has four bytes at most; a text that is none is refused when it is lifted.
            let end = (max.saturating_sub(3)..=max).rev().find(begins).unwrap_or(max);
            return (end as u32, length as usize - end);
        }
        StringEncoding::Utf8 => return (length, 0),
        StringEncoding::Utf16 => length,
        StringEncoding::CompactUtf16 => length & !UTF16_TAG,
    };
    if units as usize * 2 > max { (0, units as usize) } else { (length, 0) }
}

// SAFETY: it is represented as a `String` is, whose functions check and convert everything.
unsafe impl<const MAX: usize> ComponentType for Text<MAX> {
    type Lower = [ValRaw; 2];

    const ABI: CanonicalAbiInfo = <String as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        String::typecheck(ty, types)
    }
}

// SAFETY: what is lifted is lifted by `String`, with a length that is no greater than the guest's.
unsafe impl<const MAX: usize> Lift for Text<MAX> {
    fn linear_lift_from_flat(cx: &mut LiftContext<'_>, ty: InterfaceType, src: &Self::Lower) -> wasmtime::Result<Self> {
        Self::lift(cx, ty, src[0].get_u32(), src[1].get_u32())
    }

    fn linear_lift_from_memory(cx: &mut LiftContext<'_>, ty: InterfaceType, bytes: &[u8]) -> wasmtime::Result<Self> {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        let (Some(pointer), Some(length)) = (word(0), word(4)) else {
            return Err(wasmtime::Error::msg("a text without pointer and length"));
        };
        Self::lift(cx, ty, pointer, length)
    }
}
