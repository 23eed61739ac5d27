//! Numbers, dates, fractions and telephone numbers.

use super::characters::{SOFT_HYPHEN, is_digit};
use super::longest::{LongestMatch, TokenForm, run, run_up_to};

/// Offers what starts with the digit, sign, point or bracket at the start of `text`.
pub(super) fn offer(text: &str, longest: &mut LongestMatch) {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(length) = number(unsigned) {
        longest.offer(text.len() - unsigned.len() + length, TokenForm::Word);
    }
    if let Some(length) = date(text) {
        longest.offer(length, TokenForm::Word);
    }
    if let Some(length) = fraction(text) {
        longest.offer(length, TokenForm::Spaced);
    }
    if let Some(length) = telephone(text) {
        longest.offer(length, TokenForm::Bracketed);
    }
}

/// Digits with separators before and between them: `1,000.5`, `3:45`, `.5`.
fn number(text: &str) -> Option<usize> {
    let separator = |c| matches!(c, '.' | ',' | ':' | SOFT_HYPHEN | '\u{66b}' | '\u{66c}');
    let mut length = run(text, is_digit);
    while let Some(rest) = text[length..].strip_prefix(separator) {
        let digits = run(rest, is_digit);
        if digits == 0 {
            break;
        }
        length = text.len() - rest.len() + digits;
    }
    (length > 0).then_some(length)
}

/// The length of at most `most` digits if they are at least `least`.
fn digits(text: &str, least: usize, most: usize) -> Option<usize> {
    let lengths = text.chars().take(most).take_while(|&c| is_digit(c)).map(char::len_utf8);
    let (count, length) = lengths.fold((0, 0), |(count, length), bytes| (count + 1, length + bytes));
    (count >= least).then_some(length)
}

/// `12/24/99`.
fn date(text: &str) -> Option<usize> {
    let part = |text| Some(&text[digits(text, 1, 2)?..]).and_then(|rest: &str| rest.strip_prefix(['-', '/']));
    let year = part(part(text)?)?;
    Some(text.len() - year.len() + digits(year, 2, 4)?)
}

/// `1/2`, `1 1/2`, `1-1/2`.
fn fraction(text: &str) -> Option<usize> {
    let simple = |text: &str| {
        let above = digits(text, 1, 4)?;
        let rest = &text[above..];
        let rest = rest.strip_prefix("\\/").or_else(|| rest.strip_prefix(['/', '\u{2044}']))?;
        Some(text.len() - rest.len() + digits(rest, 1, 4)?)
    };
    let mixed = || {
        let whole = digits(text, 1, 4)?;
        let rest = text[whole..].strip_prefix(is_joint)?;
        Some(text.len() - rest.len() + simple(rest)?)
    };
    simple(text).or_else(mixed)
}

/// What may be inside a fraction or telephone number.
fn is_joint(c: char) -> bool {
    matches!(c, '-' | ' ' | '\u{a0}')
}

/// `(555) 555-1234`, `800-555-1234`, `+44 20 7946 0958`.
fn telephone(text: &str) -> Option<usize> {
    if let Some(rest) = text.strip_prefix('(') {
        let area = digits_ascii(rest, 2, 3)?;
        let rest = rest[area..].strip_prefix(')')?;
        let rest = rest.strip_prefix([' ', '\u{a0}']).unwrap_or(rest);
        return Some(text.len() - rest.len() + subscriber(rest)?);
    }
    let rest = text.strip_prefix("++").or_else(|| text.strip_prefix('+')).unwrap_or(text);
    let group = |text: &str| {
        let length = digits_ascii(text, 2, 4)?;
        let rest = text[length..].strip_prefix(is_joint)?;
        Some(text.len() - rest.len())
    };
    let sign = text.len() - rest.len();
    let area = group(rest)?;
    let longer = group(&rest[area..]).and_then(|more| Some(area + more + subscriber(&rest[area + more..])?));
    let shorter = subscriber(&rest[area..]).map(|length| area + length);
    Some(sign + longer.max(shorter)?)
}

fn digits_ascii(text: &str, least: usize, most: usize) -> Option<usize> {
    let length = run_up_to(text, most, |byte| byte.is_ascii_digit());
    (length >= least).then_some(length)
}

/// Two groups of digits, with or without a joint: 3 or 4, then 3 to 5.
fn subscriber(text: &str) -> Option<usize> {
    let ends = (3..=4).filter_map(|length| {
        digits_ascii(text, length, length)?;
        let rest = text[length..].strip_prefix(is_joint).unwrap_or(&text[length..]);
        Some(text.len() - rest.len() + digits_ascii(rest, 3, 5)?)
    });
    ends.max()
}
