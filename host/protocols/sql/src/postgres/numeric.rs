//! The binary form of PostgreSQL's `numeric`: groups of four decimal digits. All digits are kept in both directions.

const NEGATIVE: u16 = 0x4000;

/// Encodes the text of a `Decimal`.
pub(super) fn encode(text: &str) -> Result<Vec<u8>, String> {
    let (sign, digits) = text.strip_prefix('-').map_or((0, text), |digits| (NEGATIVE, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0');
    let groups_before = whole.len().div_ceil(4);
    let padded = format!(
        "{whole:0>before$}{fraction:0<after$}",
        before = groups_before * 4,
        after = fraction.len().div_ceil(4) * 4
    );
    let mut groups = Vec::with_capacity(padded.len() / 4);
    for start in (0..padded.len()).step_by(4) {
        let group: u16 = padded[start..start + 4].parse().map_err(|_| "not a number".to_owned())?;
        groups.push(group);
    }
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    let mut groups = &groups[zeros..];
    while let [rest @ .., 0] = groups {
        groups = rest;
    }
    let weight = groups_before as i64 - zeros as i64 - 1;
    let weight = i16::try_from(if groups.is_empty() { 0 } else { weight }).map_err(|_| "too many digits".to_owned())?;
    let scale = u16::try_from(fraction.len()).map_err(|_| "too many digits".to_owned())?;
    let count = u16::try_from(groups.len()).map_err(|_| "too many digits".to_owned())?;
    let mut bytes = Vec::with_capacity(8 + groups.len() * 2);
    for part in [count, weight.cast_unsigned(), sign, scale].iter().chain(groups) {
        bytes.extend_from_slice(&part.to_be_bytes());
    }
    Ok(bytes)
}

/// Decodes a number to its text, or to `NaN`, `Infinity` or `-Infinity`.
pub(super) fn decode(bytes: &[u8]) -> Result<String, String> {
    let mut parts = bytes.chunks_exact(2).map(|part| u16::from_be_bytes([part[0], part[1]]));
    let (Some(count), Some(weight), Some(sign), Some(scale)) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("not a number".into());
    };
    let groups: Vec<u16> = parts.take(count.into()).collect();
    match sign {
        0xC000 => return Ok("NaN".into()),
        0xD000 => return Ok("Infinity".into()),
        0xF000 => return Ok("-Infinity".into()),
        _ => {}
    }
    let weight = i32::from(weight.cast_signed());
    let group =
        |exponent: i32| usize::try_from(weight - exponent).ok().and_then(|at| groups.get(at)).copied().unwrap_or(0);
    let mut text = String::from(if sign == NEGATIVE { "-" } else { "" });
    if weight < 0 {
        text.push('0');
    }
    for exponent in (0..=weight).rev() {
        match exponent == weight {
            true => text.push_str(&group(exponent).to_string()),
            false => text.push_str(&format!("{:04}", group(exponent))),
        }
    }
    if scale > 0 {
        text.push('.');
        let end = text.len() + usize::from(scale);
        let mut exponent = -1;
        while text.len() < end {
            text.push_str(&format!("{:04}", group(exponent)));
            exponent -= 1;
        }
        text.truncate(end);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_digit_is_kept() {
        for text in [
            "0",
            "1",
            "-1",
            "1.10",
            "0.00",
            "-0.0001",
            "10000",
            "12345.6789",
            "0.00000001",
            "100000000.00000000",
            "9999",
            "-123456789012345678901234567890.123456789012345678901234567890",
            "0.10",
            "10000000000000000.5",
        ] {
            assert_eq!(decode(&encode(text).unwrap()).unwrap(), text);
        }
        assert_eq!(decode(&encode("007.5").unwrap()).unwrap(), "7.5");
        // 12345.678 as the server sends it.
        let known = [0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c];
        assert_eq!(encode("12345.678").unwrap(), known);
        assert_eq!(decode(&known).unwrap(), "12345.678");
        assert_eq!(decode(&[0, 0, 0, 0, 0xC0, 0, 0, 0]).unwrap(), "NaN");
        assert!(decode(&[0]).is_err());
    }
}
