//! Times on a command line, such as `30s`, `5min` or `1h`.

use std::time::Duration;

/// Reads a time in whole seconds, or longer units.
///
/// # Errors
/// What is accepted, for people.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        |_| format!("'{text}' is no time: write a number with a unit, as in 30s, 5min or 1h");
    let duration: jiff::SignedDuration = text.parse().map_err(wrong)?;
    match Duration::try_from(duration) {
        Ok(duration) if duration >= Duration::from_secs(1) => Ok(duration),
        _ => Err(format!("'{text}' is too short: a second is the least")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [
            ("30s", 30),
            ("5m", 300),
            ("5min", 300),
            ("1h", 3600),
            ("1h30m", 5400),
            ("24h", 86_400),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn what_is_none_is_told_how_to_write_it() {
        for text in ["", "30", "soon", "1x", "h"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.contains("30s, 5min or 1h"), "{error}");
        }
        for text in ["0s", "-1h", "10ms"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.contains("too short"), "{error}");
        }
    }
}
