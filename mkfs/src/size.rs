//! Sizes as people write them.

use crate::error::{Error, Result};

/// Reads a size in bytes: digits, and a suffix K, M, G, T or P of 1024s (also `s` for sectors of
/// 512 bytes). Without a suffix the number is multiplied by `unit`.
///
/// # Errors
/// [`Error::Size`] for anything else, and for sizes beyond 64 bits.
pub fn parse_size(text: &str, unit: u64) -> Result<u64> {
    let error = || Error::Size {
        text: text.to_string(),
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => unit,
        "s" => 512,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        _ => return Err(error()),
    };
    // `parse` would take a sign.
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(error());
    }
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(factor).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("1000M", 1).unwrap(), 1000 << 20);
        assert_eq!(parse_size("7", 1024).unwrap(), 7168);
        assert_eq!(parse_size("1t", 1).unwrap(), 1 << 40);
        assert_eq!(parse_size("8s", 1).unwrap(), 4096);
        for text in [
            "",
            "M",
            "-1",
            "+1",
            "1.5G",
            "1X",
            "99999999999P",
            "0x10",
            "1 M",
        ] {
            assert!(parse_size(text, 1).is_err(), "{text}");
        }
    }
}
