//! Copies texts and lists of limited length from guests. The length is checked before the copy: if a text of many megabytes
//! were copied only to be refused as a name, the lane's other requests would have to wait.

#![expect(
    unsafe_code,
    reason = "wasmtime's traits for values of guests are unsafe to implement; see the comments there"
)]

use wasmtime::ValRaw;
use wasmtime::component::__internal::wasmtime_environ::component::StringEncoding;
use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext};
use wasmtime::component::{ComponentType, Lift};

/// The bit in the length of a text that says that its units have two bytes.
const UTF16_TAG: u32 = 1 << 31;

/// The error of a guest's text or list that is too long, as a text for the guest.
pub(super) struct TooLong(pub(super) String);

/// A name. All valid names are shorter than this limit, so the functions that use one refuse a name that was cut.
pub(super) type Name = Text<2_048>;

/// A `string` of which at most `MAX` bytes are copied.
pub(super) struct Text<const MAX: usize> {
    text: String,
    /// The number of bytes, or of units of the guest's encoding, that were not copied.
    cut: usize,
}

impl<const MAX: usize> Text<MAX> {
    /// Returns the text, and how much of it is missing.
    pub(super) fn into_parts(self) -> (String, usize) {
        (self.text, self.cut)
    }

    /// Returns the text if all of it was copied.
    ///
    /// # Errors
    /// The text is longer than `MAX` bytes.
    pub(super) fn whole(self, what: &str) -> Result<String, TooLong> {
        let Self { text, cut } = self;
        match cut {
            0 => Ok(text),
            cut => Err(TooLong(format!("{what} has {} bytes, {MAX} are allowed", text.len() + cut))),
        }
    }

    /// Returns the text. If it was cut, a note at its end says so.
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

/// A `list` of which at most `MAX` elements are copied.
pub(super) struct Few<T, const MAX: usize> {
    elements: Vec<T>,
    /// The number of elements that were not copied.
    cut: usize,
}

impl<T, const MAX: usize> Few<T, MAX> {
    /// Returns the list if all of it was copied.
    ///
    /// # Errors
    /// The list has more than `MAX` elements.
    pub(super) fn whole(self, what: &str, elements: &str) -> Result<Vec<T>, TooLong> {
        let length = self.elements.len() + self.cut;
        match self.cut {
            0 => Ok(self.elements),
            _ => Err(TooLong(format!("{what} has {length} {elements}, {MAX} are allowed"))),
        }
    }
}

impl<T: Lift, const MAX: usize> Few<T, MAX> {
    fn lift(cx: &mut LiftContext<'_>, ty: InterfaceType, pointer: u32, length: u32) -> wasmtime::Result<Self> {
        let kept = length.min(u32::try_from(MAX).unwrap_or(u32::MAX));
        let elements = Vec::linear_lift_from_flat(cx, ty, &[ValRaw::u32(pointer), ValRaw::u32(kept)])?;
        Ok(Self { elements, cut: (length - kept) as usize })
    }
}

/// Returns the length of a text that is copied, and the length that is not. A UTF-8 text that is too long is cut to the whole
/// characters within `max` bytes. In the other encodings, which hardly any toolchain uses, nothing of it is copied.
fn shortened(cx: &LiftContext<'_>, pointer: u32, length: u32, max: usize) -> (u32, usize) {
    let units = match cx.options().string_encoding {
        StringEncoding::Utf8 if length as usize > max => {
            let begins = |end: &usize| cx.memory().get(pointer as usize + end).is_none_or(|byte| byte & 0xc0 != 0x80);
            // A character has at most four bytes. Invalid UTF-8 is refused when it is lifted.
            let end = (max.saturating_sub(3)..=max).rev().find(begins).unwrap_or(max);
            return (end as u32, length as usize - end);
        }
        StringEncoding::Utf8 => return (length, 0),
        StringEncoding::Utf16 => length,
        StringEncoding::CompactUtf16 => length & !UTF16_TAG,
    };
    if units as usize * 2 > max { (0, units as usize) } else { (length, 0) }
}

// SAFETY: `Text` is represented like a `String`, whose functions check and convert everything.
unsafe impl<const MAX: usize> ComponentType for Text<MAX> {
    type Lower = [ValRaw; 2];

    const ABI: CanonicalAbiInfo = <String as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        String::typecheck(ty, types)
    }
}

// SAFETY: `String` does the lifting, with a length that is no greater than the guest's.
unsafe impl<const MAX: usize> Lift for Text<MAX> {
    fn linear_lift_from_flat(cx: &mut LiftContext<'_>, ty: InterfaceType, src: &Self::Lower) -> wasmtime::Result<Self> {
        Self::lift(cx, ty, src[0].get_u32(), src[1].get_u32())
    }

    fn linear_lift_from_memory(cx: &mut LiftContext<'_>, ty: InterfaceType, bytes: &[u8]) -> wasmtime::Result<Self> {
        let (pointer, length) = place(bytes)?;
        Self::lift(cx, ty, pointer, length)
    }
}

// SAFETY: `Few` is represented like a `Vec`, whose functions check and convert everything.
unsafe impl<T: ComponentType, const MAX: usize> ComponentType for Few<T, MAX> {
    type Lower = [ValRaw; 2];

    const ABI: CanonicalAbiInfo = <Vec<T> as ComponentType>::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        Vec::<T>::typecheck(ty, types)
    }
}

// SAFETY: `Vec` does the lifting, with a length that is no greater than the guest's.
unsafe impl<T: Lift, const MAX: usize> Lift for Few<T, MAX> {
    fn linear_lift_from_flat(cx: &mut LiftContext<'_>, ty: InterfaceType, src: &Self::Lower) -> wasmtime::Result<Self> {
        Self::lift(cx, ty, src[0].get_u32(), src[1].get_u32())
    }

    fn linear_lift_from_memory(cx: &mut LiftContext<'_>, ty: InterfaceType, bytes: &[u8]) -> wasmtime::Result<Self> {
        let (pointer, length) = place(bytes)?;
        Self::lift(cx, ty, pointer, length)
    }
}

/// Reads the pointer and the length of a guest's text or list.
fn place(bytes: &[u8]) -> wasmtime::Result<(u32, u32)> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
    match (word(0), word(4)) {
        (Some(pointer), Some(length)) => Ok((pointer, length)),
        _ => Err(wasmtime::Error::msg("a text or list without pointer and length")),
    }
}
