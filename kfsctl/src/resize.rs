//! `kfsctl resize`: a larger volume, or a smaller one on an image that nobody serves (`shrink.rs`).

use crate::args::Target;
use crate::shrink;
use crate::target::Executor;
use anyhow::Context;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use kfsctl::Request;
use serde_json::json;
use std::io::IsTerminal;
use std::str::FromStr;

/// The size that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) is_added: bool,
}

impl FromStr for Size {
    type Err = String;

    /// `20G`, `+512M`, `max`; without a unit, bytes.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self {
                bytes: 0,
                is_added: false,
            });
        }
        let (is_added, rest) = match text.strip_prefix('+') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let digits = rest.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match &rest[digits.len()..] {
            "" => 0,
            "K" | "k" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            unit => return Err(format!("{unit:?} is no unit: give K, M, G or T")),
        };
        let number: u64 = digits.parse().map_err(|_| {
            "a size is a number with a unit, such as 20G, or +5G, or max".to_string()
        })?;
        let bytes = number
            .checked_mul(1 << shift)
            .filter(|bytes| *bytes > 0)
            .ok_or("that is no size for a volume")?;
        Ok(Self { bytes, is_added })
    }
}

#[derive(serde::Deserialize)]
struct Progress {
    before_bytes: u64,
    size_bytes: u64,
    target_bytes: u64,
    next: Option<u32>,
}

/// Gives the volume another size and tells what it is then.
pub(crate) fn run(target: &Target, size: Size, as_json: bool) -> anyhow::Result<()> {
    let mut executor = Executor::find(target, false)?;
    let (before, after) = if let Some(shrinkable) = shrink::wanted(&executor, size) {
        executor.finish()?;
        shrink::run(shrinkable, size.bytes, as_json)?
    } else {
        let grown = grow(&mut executor, size, as_json);
        let finished = executor.finish();
        let sizes = grown?;
        finished?;
        sizes
    };
    if as_json {
        return crate::print(&format!(
            "{}\n",
            json!({ "before_bytes": before, "size_bytes": after })
        ));
    }
    let text = match before == after {
        true => format!("has {} already\n", HumanBytes(after)),
        false => format!("{} -> {}\n", HumanBytes(before), HumanBytes(after)),
    };
    crate::print(&text)
}

/// Returns the size before and after.
fn grow(executor: &mut Executor, size: Size, as_json: bool) -> anyhow::Result<(u64, u64)> {
    let bar = bar(as_json);
    let mut request = Request::Resize {
        size_bytes: size.bytes,
        is_added: size.is_added,
        cursor: 0,
    };
    let mut before = None;
    loop {
        let value = executor.request(&request)?;
        let progress: Progress =
            serde_json::from_value(value).context("the answer cannot be read")?;
        let before = *before.get_or_insert(progress.before_bytes);
        let Some(next) = progress.next else {
            bar.finish_and_clear();
            return Ok((before, progress.size_bytes));
        };
        bar.set_length(progress.target_bytes.saturating_sub(before));
        bar.set_position(progress.size_bytes.saturating_sub(before));
        // What is to be added must not be added twice.
        request = Request::Resize {
            size_bytes: progress.target_bytes,
            is_added: false,
            cursor: next,
        };
    }
}

/// A bar on a terminal, nothing elsewhere.
fn bar(as_json: bool) -> ProgressBar {
    if as_json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {bytes} of {total_bytes}  {eta:>4}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let size = |bytes, is_added| Ok(Size { bytes, is_added });
        assert_eq!("20G".parse(), size(20 << 30, false));
        assert_eq!("+512M".parse(), size(512 << 20, true));
        assert_eq!("4096".parse(), size(4096, false));
        assert_eq!("max".parse(), size(0, false));
        for text in ["", "+", "G", "-5G", "5X", "0", "99999999999T", "1.5G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
