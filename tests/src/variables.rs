//! Numbers that the environment gives to a test: seeds, and how much to do.

/// The number in a variable, if it is set.
///
/// # Panics
/// When it is no number: a test that then does something else would deceive.
#[must_use]
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = text.parse();
    Some(parsed.unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The seeds of a run: `KFS_SEED`, or as many as the variable says, from `KFS_FIRST_SEED` on.
#[must_use]
pub fn seeds(count_name: &str, default: u64) -> Vec<u64> {
    if let Some(seed) = number("KFS_SEED") {
        return vec![seed];
    }
    let first = number("KFS_FIRST_SEED").unwrap_or(1);
    (first..first + number(count_name).unwrap_or(default)).collect()
}
