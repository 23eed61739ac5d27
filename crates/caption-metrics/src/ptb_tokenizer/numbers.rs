//! The rules for numbers, dates, fractions and telephone numbers. Functions named `..._length`
//! return the length of the match in bytes; none without a match.

use super::character_classes::{SOFT_HYPHEN, is_digit};
use super::longest_match::{LongestMatch, TokenForm, ascii_run_length, run_length};

/// Matches the rules `NUMBER`, `DATE`, `FRAC` and `PHONE` at the start of `text`.
pub(super) fn match_number_rules(text: &str, longest: &mut LongestMatch) {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(length) = number_length(unsigned) {
        longest.propose(text.len() - unsigned.len() + length, TokenForm::Word);
    }
    if let Some(length) = date_length(text) {
        longest.propose(length, TokenForm::Word);
    }
    if let Some(length) = fraction_length(text) {
        longest.propose(length, TokenForm::NoBreakSpaces);
    }
    if let Some(length) = phone_length(text) {
        longest.propose(length, TokenForm::NoBreakSpacesAndBracketNames);
    }
}

/// The length of digits with separators before and between them: `1,000.5`, `3:45`, `.5`.
fn number_length(text: &str) -> Option<usize> {
    let separator = |c| matches!(c, '.' | ',' | ':' | SOFT_HYPHEN | '\u{66b}' | '\u{66c}');
    let mut length = run_length(text, is_digit);
    while let Some(rest) = text[length..].strip_prefix(separator) {
        let digits = run_length(rest, is_digit);
        if digits == 0 {
            break;
        }
        length = text.len() - rest.len() + digits;
    }
    (length > 0).then_some(length)
}

/// The length in bytes of at most `max` digits; none if there are fewer than `min`.
fn digits_length(text: &str, min: usize, max: usize) -> Option<usize> {
    let lengths = text.chars().take(max).take_while(|&c| is_digit(c)).map(char::len_utf8);
    let (count, length) = lengths.fold((0, 0), |(count, length), bytes| (count + 1, length + bytes));
    (count >= min).then_some(length)
}

/// The length of a date: `12/24/99`.
fn date_length(text: &str) -> Option<usize> {
    let part = |text| Some(&text[digits_length(text, 1, 2)?..]).and_then(|rest: &str| rest.strip_prefix(['-', '/']));
    let year = part(part(text)?)?;
    Some(text.len() - year.len() + digits_length(year, 2, 4)?)
}

/// The length of a fraction: `1/2`, `1 1/2`, `1-1/2`.
fn fraction_length(text: &str) -> Option<usize> {
    let simple = |text: &str| {
        let numerator = digits_length(text, 1, 4)?;
        let rest = &text[numerator..];
        let rest = rest.strip_prefix("\\/").or_else(|| rest.strip_prefix(['/', '\u{2044}']))?;
        Some(text.len() - rest.len() + digits_length(rest, 1, 4)?)
    };
    let mixed = || {
        let integer_part = digits_length(text, 1, 4)?;
        let rest = text[integer_part..].strip_prefix(is_group_separator)?;
        Some(text.len() - rest.len() + simple(rest)?)
    };
    simple(text).or_else(mixed)
}

/// Whether `c` may separate the parts of a fraction or telephone number.
fn is_group_separator(c: char) -> bool {
    matches!(c, '-' | ' ' | '\u{a0}')
}

/// The length of a telephone number: `(555) 555-1234`, `800-555-1234`, `+44 20 7946 0958`.
fn phone_length(text: &str) -> Option<usize> {
    if let Some(rest) = text.strip_prefix('(') {
        let area = ascii_digits_length(rest, 2, 3)?;
        let rest = rest[area..].strip_prefix(')')?;
        let rest = rest.strip_prefix([' ', '\u{a0}']).unwrap_or(rest);
        return Some(text.len() - rest.len() + subscriber_length(rest)?);
    }
    let rest = text.strip_prefix("++").or_else(|| text.strip_prefix('+')).unwrap_or(text);
    let group = |text: &str| {
        let length = ascii_digits_length(text, 2, 4)?;
        let rest = text[length..].strip_prefix(is_group_separator)?;
        Some(text.len() - rest.len())
    };
    let sign = text.len() - rest.len();
    let area = group(rest)?;
    let longer = group(&rest[area..]).and_then(|more| Some(area + more + subscriber_length(&rest[area + more..])?));
    let shorter = subscriber_length(&rest[area..]).map(|length| area + length);
    Some(sign + longer.max(shorter)?)
}

fn ascii_digits_length(text: &str, min: usize, max: usize) -> Option<usize> {
    let length = ascii_run_length(text, max, |byte| byte.is_ascii_digit());
    (length >= min).then_some(length)
}

/// The length of two groups of digits, maybe with a separator: 3 or 4, then 3 to 5.
fn subscriber_length(text: &str) -> Option<usize> {
    let ends = (3..=4).filter_map(|length| {
        ascii_digits_length(text, length, length)?;
        let rest = text[length..].strip_prefix(is_group_separator).unwrap_or(&text[length..]);
        Some(text.len() - rest.len() + ascii_digits_length(rest, 3, 5)?)
    });
    ends.max()
}
