//! Brace expansion as in bash: `coco-{000..113}.tar`, `{train,val}/{a..c}.tar`, with nesting.
//!
//! There is no escaping. Unmatched braces are errors, because in a pattern they are a mistake; bash
//! leaves them unchanged.

/// Maximal number of names that a pattern expands to; more than the tars of any data set.
const MAX_NAMES: usize = 100_000;
/// Maximal length of a pattern in bytes; longer than any path.
const MAX_PATTERN_BYTES: usize = 4096;

/// A pattern that cannot be expanded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The pattern is too long.
    #[error("pattern of more than {MAX_PATTERN_BYTES} bytes")]
    TooLong,
    /// The pattern expands to too many names.
    #[error("pattern of more than {MAX_NAMES} names")]
    TooManyNames,
    /// A brace is not matched by another.
    #[error("`{0}` without its counterpart")]
    Unmatched(char),
}

/// All names that `pattern` expands to, in the order of bash: the leftmost group varies slowest. A
/// pattern without braces expands to itself.
///
/// # Errors
/// The braces do not match, the pattern has more than 4,096 bytes, or there are more than 100,000
/// names.
pub fn expand(pattern: &str) -> Result<Vec<String>, PatternError> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(PatternError::TooLong);
    }
    expand_sequence(pattern)
}

/// Expands a sequence of text and groups.
fn expand_sequence(text: &str) -> Result<Vec<String>, PatternError> {
    let Some((before, rest)) = text.split_once('{') else {
        return if text.contains('}') { Err(PatternError::Unmatched('}')) } else { Ok(vec![text.to_owned()]) };
    };
    if before.contains('}') {
        return Err(PatternError::Unmatched('}'));
    }
    let close = closing_brace(rest).ok_or(PatternError::Unmatched('{'))?;
    let (inside, after) = rest.split_at(close);
    let middles = expand_group(inside)?;
    let ends = expand_sequence(&after[1..])?;
    check_name_count(middles.len().saturating_mul(ends.len()))?;
    Ok(middles.iter().flat_map(|middle| ends.iter().map(move |end| format!("{before}{middle}{end}"))).collect())
}

/// The position of the brace that closes the one before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1usize;
    text.bytes().position(|byte| {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        open == 0
    })
}

/// Expands the content of matching braces: alternatives or a range. Otherwise the braces remain.
fn expand_group(inside: &str) -> Result<Vec<String>, PatternError> {
    let alternatives = split_alternatives(inside);
    if alternatives.len() > 1 {
        let mut names = Vec::new();
        for alternative in alternatives {
            names.append(&mut expand_sequence(alternative)?);
            check_name_count(names.len())?;
        }
        return Ok(names);
    }
    if let Some(names) = expand_range(inside)? {
        return Ok(names);
    }
    Ok(expand_sequence(inside)?.into_iter().map(|name| format!("{{{name}}}")).collect())
}

/// Splits at the commas that are not inside inner braces.
fn split_alternatives(inside: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let is_separator = |c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    inside.split(is_separator).collect()
}

/// Expands a range `first..last` or `first..last..step` of integers or letters; none if `inside` is
/// not of this form.
fn expand_range(inside: &str) -> Result<Option<Vec<String>>, PatternError> {
    let fields: Vec<&str> = inside.split("..").collect();
    let (first, last, step) = match fields[..] {
        [first, last] => (first, last, Some(1)),
        [first, last, step] => (first, last, step.parse::<i64>().ok()),
        _ => return Ok(None),
    };
    let Some(step) = step else { return Ok(None) };
    if let (Some(first), Some(last)) = (as_letter(first), as_letter(last)) {
        let codes = range_values(i64::from(first), i64::from(last), step)?;
        return Ok(Some(
            codes.filter_map(|code| u8::try_from(code).ok()).map(|code| char::from(code).into()).collect(),
        ));
    }
    let (Ok(from), Ok(to)) = (first.parse::<i64>(), last.parse::<i64>()) else { return Ok(None) };
    let width = if is_zero_padded(first) || is_zero_padded(last) { first.len().max(last.len()) } else { 0 };
    Ok(Some(range_values(from, to, step)?.map(|number| format!("{number:0width$}")).collect()))
}

fn as_letter(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Some(*letter),
        _ => None,
    }
}

/// Whether a number has leading zeros, which are kept.
fn is_zero_padded(number: &str) -> bool {
    let digits = number.trim_start_matches(['-', '+']);
    digits.len() > 1 && digits.starts_with('0')
}

/// The values from `first` to `last`, up or down. The sign of a step is ignored, and 0 means 1.
fn range_values(first: i64, last: i64, step: i64) -> Result<impl Iterator<Item = i64>, PatternError> {
    let step = step.unsigned_abs().max(1);
    let count = first.abs_diff(last) / step;
    check_name_count(usize::try_from(count).unwrap_or(usize::MAX).saturating_add(1))?;
    let value = move |i: u64| {
        if first <= last { first.checked_add_unsigned(i * step) } else { first.checked_sub_unsigned(i * step) }
    };
    Ok((0..=count).filter_map(value))
}

fn check_name_count(names: usize) -> Result<(), PatternError> {
    if names > MAX_NAMES { Err(PatternError::TooManyNames) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(pattern: &str) -> String {
        expand(pattern).unwrap().join(" ")
    }

    /// Each expansion equals that of `bash -c "echo PATTERN"`.
    #[test]
    fn patterns_expand_as_in_bash() {
        for (pattern, names) in [
            ("plain.tar", "plain.tar"),
            ("a{1..3}b", "a1b a2b a3b"),
            ("{000..003}", "000 001 002 003"),
            ("{08..11}", "08 09 10 11"),
            ("{8..011}", "008 009 010 011"),
            ("{0..3}", "0 1 2 3"),
            ("{3..1}", "3 2 1"),
            ("{1..10..4}", "1 5 9"),
            ("{10..1..-4}", "10 6 2"),
            ("{1..3..0}", "1 2 3"),
            ("{-2..1}", "-2 -1 0 1"),
            ("{-01..1}", "-01 000 001"),
            ("{a..e..2}", "a c e"),
            ("{c..a}", "c b a"),
            ("{x,y}{1,2}", "x1 x2 y1 y2"),
            ("a{,b}", "a ab"),
            ("{a,b{1..2},c}", "a b1 b2 c"),
            ("{{a,b},{c,d}}", "a b c d"),
            ("{{a,b}}", "{a} {b}"),
            ("{a}", "{a}"),
            ("{}", "{}"),
            ("{a..}", "{a..}"),
            ("{1..a}", "{1..a}"),
            ("{1..2..x}", "{1..2..x}"),
            ("{1.5..2}", "{1.5..2}"),
        ] {
            assert_eq!(joined(pattern), names, "{pattern}");
        }
    }

    #[test]
    fn unmatched_braces_are_errors() {
        for pattern in ["{", "}", "a{b", "a}b", "{a,{b}", "{a}}", "}{"] {
            assert!(expand(pattern).unwrap_err().to_string().contains("without its counterpart"), "{pattern}");
        }
    }

    #[test]
    fn too_long_patterns_and_too_many_names_are_errors() {
        assert_eq!(expand("{1..100000}").unwrap().len(), MAX_NAMES);
        let ten = "{0..9}";
        for pattern in [
            "{0..100000}".to_owned(),
            format!("{}..{}", "{-9223372036854775808", "9223372036854775807}"),
            ten.repeat(6),
            ten.repeat(600),
            format!("{{{0},{0}}}", "{1..60000}"),
        ] {
            assert!(expand(&pattern).unwrap_err().to_string().contains("100000 names"), "{pattern}");
        }
        assert!(expand(&"{".repeat(10_000)).unwrap_err().to_string().contains("4096"));
    }

    #[test]
    fn ranges_reach_the_ends_of_the_integer_type() {
        assert_eq!(joined("{9223372036854775806..9223372036854775807}"), "9223372036854775806 9223372036854775807");
        assert_eq!(joined("{-9223372036854775808..9223372036854775807..9223372036854775807}").split(' ').count(), 3);
    }

    /// A pattern with its expansion.
    fn patterns() -> impl Strategy<Value = (String, Vec<String>)> {
        let literal = "[a-z/.]{0,4}".prop_map(|text| (text.clone(), vec![text]));
        let range = (0u32..30, 0u32..30, 1usize..4).prop_map(|(first, last, width)| {
            let name = |number: u32| format!("{number:0width$}");
            let width = if width > 1 { name(first).len().max(name(last).len()) } else { 0 };
            let number = |number: u32| format!("{number:0width$}");
            let names = if first <= last {
                (first..=last).map(number).collect()
            } else {
                (last..=first).rev().map(number).collect()
            };
            (format!("{{{}..{}}}", number(first), number(last)), names)
        });
        prop_oneof![literal, range].prop_recursive(3, 16, 3, |inner| {
            let concatenation = proptest::collection::vec(inner.clone(), 2..3).prop_map(|parts| {
                let mut names = vec![String::new()];
                for (_, suffixes) in &parts {
                    names = names
                        .iter()
                        .flat_map(|name| suffixes.iter().map(move |suffix| format!("{name}{suffix}")))
                        .collect();
                }
                (parts.iter().map(|(pattern, _)| pattern.as_str()).collect(), names)
            });
            let alternatives = proptest::collection::vec(inner, 2..4).prop_map(|parts| {
                let alternatives: Vec<&str> = parts.iter().map(|(pattern, _)| pattern.as_str()).collect();
                let names = parts.iter().flat_map(|(_, names)| names.clone()).collect();
                (format!("{{{}}}", alternatives.join(",")), names)
            });
            prop_oneof![concatenation, alternatives]
        })
    }

    proptest! {
        #[test]
        fn constructed_patterns_expand_as_constructed((pattern, names) in patterns()) {
            match expand(&pattern) {
                Ok(expanded) => prop_assert_eq!(expanded, names),
                Err(error) => prop_assert!(error == PatternError::TooManyNames && names.len() > MAX_NAMES, "{}", error),
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[{},.0-9a-z-]{0,40}") {
            let _ = expand(&text);
        }
    }
}
