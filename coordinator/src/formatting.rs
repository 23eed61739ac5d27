//! Formats numbers, durations, times and the phases of workers for people.

use chrono::{DateTime, Local, Utc};
use proto::v1;

/// The name of a worker's phase in lower case, such as `compute`.
#[must_use]
pub fn phase_name(phase: v1::Phase) -> String {
    let name = phase.as_str_name();
    name.strip_prefix("PHASE_").unwrap_or(name).to_lowercase()
}

/// Formats a number with at most three decimals, and fewer the larger it is. Magnitudes from 1e-12
/// to 0.001 and from a million on are in scientific notation; smaller ones are 0.
#[must_use]
pub fn format_number(value: f64) -> String {
    let magnitude = value.abs();
    // A smaller number is the rounding error of a sum that should be zero.
    if magnitude < 1e-12 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&magnitude) {
        return format!("{value:.1e}");
    }
    let decimals = if magnitude >= 100.0 {
        1
    } else if magnitude >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Formats a count with its digits in groups of three.
#[must_use]
pub fn format_count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            // A non-breaking space separates the groups.
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

/// Formats a count with the singular or plural of its noun.
#[must_use]
pub fn format_plural(count: u64, singular: &str, plural: &str) -> String {
    format!("{}\u{a0}{}", format_count(count), if count == 1 { singular } else { plural })
}

/// Formats seconds as `1 d 2 h`, `3 h 20 min`, `3 min 20 s` or `4.25 s`, with non-breaking spaces
/// before units. Negative and infinite values and NaN are `?`.
#[must_use]
pub fn format_duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    if seconds < 60.0 {
        return format!("{}\u{a0}s", format_number((seconds * 100.0).round() / 100.0));
    }
    let total = seconds.round() as u64;
    let (days, hours, minutes, seconds) = (total / 86_400, total / 3_600 % 24, total / 60 % 60, total % 60);
    let units = match (days, hours) {
        (0, 0) => [(minutes, "min"), (seconds, "s")],
        (0, _) => [(hours, "h"), (minutes, "min")],
        _ => [(days, "d"), (hours, "h")],
    };
    units.into_iter().map(|(n, unit)| format!("{n}\u{a0}{unit}")).collect::<Vec<_>>().join(" ")
}

/// Formats a Unix time in seconds as date and time in UTC: `2026-11-27 18:20:01 UTC`. An
/// implausible time is `?`.
#[must_use]
pub fn format_time(at: f64) -> String {
    utc_time(at).map_or_else(|| "?".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// Formats a Unix time in seconds in the local time zone, with its offset: `2026-11-27 19:20:01
/// +01:00`. An implausible time is `?`.
#[must_use]
pub fn format_local_time(at: f64) -> String {
    let local = utc_time(at).map(|at| at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S %:z").to_string());
    local.unwrap_or_else(|| "?".to_owned())
}

/// Converts a Unix time in seconds; `None` if it is before 1970 or not below 1e11, about the year
/// 5138.
fn utc_time(at: f64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(Some(at).filter(|at| (0.0..1e11).contains(at))? as i64, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_fewer_decimals_the_larger_they_are() {
        let cases =
            [(0.0, "0"), (1.0, "1"), (0.12345, "0.123"), (12.345, "12.35"), (1234.56, "1234.6"), (-0.5, "-0.5")];
        for (value, text) in cases.into_iter().chain([(1e-5, "1.0e-5"), (2.5e7, "2.5e7"), (1e-17, "0"), (100.0, "100")])
        {
            assert_eq!(format_number(value), text);
        }
        assert_eq!([7, 1_000, 1_234_567].map(format_count), ["7", "1\u{a0}000", "1\u{a0}234\u{a0}567"]);
    }

    #[test]
    fn durations_from_a_minute_on_have_two_units() {
        let cases =
            [(4.234, "4.23 s"), (0.0, "0 s"), (60.0, "1 min 0 s"), (200.4, "3 min 20 s"), (3_660.0, "1 h 1 min")];
        for (seconds, text) in cases.into_iter().chain([(90_000.0, "1 d 1 h"), (-1.0, "?"), (f64::NAN, "?")]) {
            assert_eq!(format_duration(seconds).replace('\u{a0}', " "), text);
        }
    }

    #[test]
    fn times_are_formatted_as_dates() {
        assert_eq!(format_time(0.0), "1970-01-01 00:00:00 UTC");
        assert_eq!(format_time(951_782_400.0), "2000-02-29 00:00:00 UTC");
        assert_eq!(format_time(1_795_737_068.8), "2026-11-26 23:51:08 UTC");
        assert_eq!(format_time(f64::NAN), "?");
    }
}
