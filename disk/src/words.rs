//! Sizes and counts in messages for people.
//!
//! All tools write them alike: a size as `1.50 GiB`, a count with its noun as `1 file` or `2,000 files`.
//! What is to be typed back or read by a program is a plain number instead.

use std::fmt;

/// A size in bytes, shown in the largest unit that it has one of: `512 B`, `1.50 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let Some(index) = (self.0.max(1).ilog2() / 10).checked_sub(1) else {
            return f.pad(&format!("{} B", self.0));
        };
        let shift = 10 * (index + 1);
        let hundredths = (u128::from(self.0) * 100 + (1 << (shift - 1))) >> shift;
        let unit = UNITS[index as usize];
        f.pad(&format!(
            "{}.{:02} {unit}",
            hundredths / 100,
            hundredths % 100
        ))
    }
}

/// So many of something, which is given as one of it: `1 file`, `2,000 files`, `0 directories`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, noun) = *self;
        let digits = count.to_string();
        for (at, digit) in digits.char_indices() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        if count == 1 {
            return write!(f, " {noun}");
        }
        match noun.strip_suffix('y') {
            Some(stem) => write!(f, " {stem}ies"),
            None if noun.ends_with('h') => write!(f, " {noun}es"),
            None => write!(f, " {noun}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (300 << 20, "300.00 MiB"),
            ((1 << 30) - 1, "1024.00 MiB"),
            (5 << 40, "5.00 TiB"),
            (u64::MAX, "16.00 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn one_is_no_plural() {
        for (count, text) in [
            (Count(0, "file"), "0 files"),
            (Count(1, "file"), "1 file"),
            (Count(999, "file"), "999 files"),
            (Count(1000, "file"), "1,000 files"),
            (Count(1_234_567, "block"), "1,234,567 blocks"),
            (Count(1, "directory"), "1 directory"),
            (Count(2, "directory"), "2 directories"),
            (Count(2, "flush"), "2 flushes"),
        ] {
            assert_eq!(count.to_string(), text);
        }
    }
}
