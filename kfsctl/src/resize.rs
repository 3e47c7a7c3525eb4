//! `kfsctl resize`: a larger volume, or a smaller one on an image that nobody serves (`shrink.rs`).

use crate::args::Target;
use crate::bar::Bar;
use crate::shrink;
use crate::target::Executor;
use anyhow::Context;
use kfs_disk::Bytes;
use kfsctl::Request;
use serde_json::json;
use std::str::FromStr;

/// The size that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// So many bytes.
    Bytes(u64),
    /// So many bytes more.
    Added(u64),
    /// All that the image has.
    Largest,
    /// As little as what is in use needs.
    Smallest,
}

impl FromStr for Size {
    type Err = String;

    /// `20G`, `+512M`, `max`, `min`; without a unit, bytes.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "max" => return Ok(Self::Largest),
            "min" => return Ok(Self::Smallest),
            _ => {}
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
            unit => return Err(format!("'{unit}' is no unit: give K, M, G or T")),
        };
        let number: u64 = digits.parse().map_err(|_| {
            "a size is a number with a unit, such as 20G, or +5G, or max, or min".to_string()
        })?;
        let bytes = number
            .checked_mul(1 << shift)
            .filter(|bytes| *bytes > 0)
            .ok_or("a volume cannot have that size")?;
        Ok(match is_added {
            true => Self::Added(bytes),
            false => Self::Bytes(bytes),
        })
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
    let mut bar = Bar::of_steps(as_json)?;
    let sizes = if let Some(shrinkable) = shrink::wanted(&mut executor, size)? {
        executor.finish()?;
        shrink::run(shrinkable, size, &mut bar)
    } else {
        let grown = grow(&mut executor, size, &mut bar);
        let finished = executor.finish();
        grown.and_then(|sizes| finished.map(|()| sizes))
    };
    bar.end();
    let (before, after) = sizes?;
    if as_json {
        return crate::print(&format!(
            "{}\n",
            json!({ "before_bytes": before, "size_bytes": after })
        ));
    }
    let text = match before == after {
        true => format!("has {} already\n", Bytes(after)),
        false => format!("{} -> {}\n", Bytes(before), Bytes(after)),
    };
    crate::print(&text)
}

/// Returns the size before and after.
fn grow(executor: &mut Executor, size: Size, bar: &mut Bar) -> anyhow::Result<(u64, u64)> {
    let (size_bytes, is_added) = match size {
        Size::Bytes(bytes) => (bytes, false),
        Size::Added(bytes) => (bytes, true),
        Size::Largest => (0, false),
        // Only a daemon is asked for that, and refuses. Nobody is to take it for the largest.
        Size::Smallest => (1, false),
    };
    let mut request = Request::Resize {
        size_bytes,
        is_added,
        cursor: 0,
    };
    let mut before = None;
    loop {
        let value = executor.request(&request)?;
        let progress: Progress =
            serde_json::from_value(value).context("the answer cannot be read")?;
        let before = *before.get_or_insert(progress.before_bytes);
        let Some(next) = progress.next else {
            return Ok((before, progress.size_bytes));
        };
        let done = progress.size_bytes.saturating_sub(before);
        let total = progress.target_bytes.saturating_sub(before);
        if done < total
            && let Err(stop) = bar.step("growing", done, total)
        {
            let target = Bytes(progress.target_bytes);
            let goes_on = format!("`resize {}` goes on to {target}", progress.target_bytes);
            return Err(stop).with_context(|| stopped(progress.size_bytes, &goes_on));
        }
        // What is to be added must not be added twice.
        request = Request::Resize {
            size_bytes: progress.target_bytes,
            is_added: false,
            cursor: next,
        };
    }
}

/// What is said of a volume whose change was stopped.
pub(crate) fn stopped(size_bytes: u64, goes_on: &str) -> String {
    let size = Bytes(size_bytes);
    format!("the volume is whole and has {size}; {goes_on}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!("20G".parse(), Ok(Size::Bytes(20 << 30)));
        assert_eq!("+512M".parse(), Ok(Size::Added(512 << 20)));
        assert_eq!("4096".parse(), Ok(Size::Bytes(4096)));
        assert_eq!("max".parse(), Ok(Size::Largest));
        assert_eq!("min".parse(), Ok(Size::Smallest));
        for text in ["", "+", "G", "-5G", "5X", "0", "99999999999T", "1.5G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
