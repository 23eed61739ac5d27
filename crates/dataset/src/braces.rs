//! Brace expansion as in bash: `coco-{000..113}.tar`, `{train,val}/{a..c}.tar`, with nesting.
//!
//! There is no escaping. Unmatched braces are errors, where bash would leave them unchanged: in a
//! pattern they are a mistake.

/// Maximal number of names; more than the tars of any data set.
const MAX_NAMES: usize = 100_000;
/// Maximal length of a pattern in bytes; longer than any path.
const MAX_PATTERN_LENGTH: usize = 4096;

/// All names that `pattern` expands to, the leftmost group varying slowest; itself if it has no
/// braces.
///
/// # Errors
/// The braces do not match, or there are more than 100,000 names.
pub fn expand(pattern: &str) -> Result<Vec<String>, String> {
    if pattern.len() > MAX_PATTERN_LENGTH {
        return Err(format!("pattern of more than {MAX_PATTERN_LENGTH} bytes"));
    }
    sequence(pattern)
}

/// Expands a sequence of text and groups.
fn sequence(text: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = text.split_once('{') else {
        return if text.contains('}') { Err(unmatched('}')) } else { Ok(vec![text.to_owned()]) };
    };
    if before.contains('}') {
        return Err(unmatched('}'));
    }
    let close = closing(rest).ok_or_else(|| unmatched('{'))?;
    let (inside, after) = rest.split_at(close);
    let middles = group(inside)?;
    let ends = sequence(&after[1..])?;
    bounded(middles.len().saturating_mul(ends.len()))?;
    Ok(middles.iter().flat_map(|middle| ends.iter().map(move |end| format!("{before}{middle}{end}"))).collect())
}

/// The position of the brace that closes the one before `text`.
fn closing(text: &str) -> Option<usize> {
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

/// Expands the content of matching braces: alternatives, a range, or neither; then the braces stay.
fn group(inside: &str) -> Result<Vec<String>, String> {
    let alternatives = alternatives(inside);
    if alternatives.len() > 1 {
        let mut names = Vec::new();
        for alternative in alternatives {
            names.append(&mut sequence(alternative)?);
            bounded(names.len())?;
        }
        return Ok(names);
    }
    if let Some(names) = range(inside)? {
        return Ok(names);
    }
    Ok(sequence(inside)?.into_iter().map(|name| format!("{{{name}}}")).collect())
}

/// Splits at the commas that are not inside inner braces.
fn alternatives(inside: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let separates = |c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    inside.split(separates).collect()
}

/// A range `first..last` or `first..last..step` of integers or letters; none if it is not of this
/// form.
fn range(inside: &str) -> Result<Option<Vec<String>>, String> {
    let parts: Vec<&str> = inside.split("..").collect();
    let (first, last, step) = match parts[..] {
        [first, last] => (first, last, Some(1)),
        [first, last, step] => (first, last, step.parse::<i64>().ok()),
        _ => return Ok(None),
    };
    let Some(step) = step else { return Ok(None) };
    if let (Some(first), Some(last)) = (letter(first), letter(last)) {
        let codes = steps(i64::from(first), i64::from(last), step)?;
        return Ok(Some(
            codes.filter_map(|code| u8::try_from(code).ok()).map(|code| char::from(code).into()).collect(),
        ));
    }
    let (Ok(from), Ok(to)) = (first.parse::<i64>(), last.parse::<i64>()) else { return Ok(None) };
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    Ok(Some(steps(from, to, step)?.map(|number| format!("{number:0width$}")).collect()))
}

fn letter(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Some(*letter),
        _ => None,
    }
}

/// Whether a number has leading zeros, which are kept.
fn padded(number: &str) -> bool {
    let digits = number.trim_start_matches(['-', '+']);
    digits.len() > 1 && digits.starts_with('0')
}

/// The values from `first` to `last`, up or down. The sign of a step is ignored, and 0 means 1.
fn steps(first: i64, last: i64, step: i64) -> Result<impl Iterator<Item = i64>, String> {
    let step = step.unsigned_abs().max(1);
    let count = first.abs_diff(last) / step;
    bounded(usize::try_from(count).unwrap_or(usize::MAX).saturating_add(1))?;
    let reached = move |i: u64| {
        if first <= last { first.checked_add_unsigned(i * step) } else { first.checked_sub_unsigned(i * step) }
    };
    Ok((0..=count).filter_map(reached))
}

fn bounded(names: usize) -> Result<(), String> {
    if names > MAX_NAMES { Err(format!("pattern of more than {MAX_NAMES} names")) } else { Ok(()) }
}

fn unmatched(brace: char) -> String {
    format!("`{brace}` without its counterpart")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(pattern: &str) -> String {
        expand(pattern).unwrap().join(" ")
    }

    /// Each line was compared with `bash -c "echo PATTERN"`.
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
            assert!(expand(pattern).unwrap_err().contains("without its counterpart"), "{pattern}");
        }
    }

    #[test]
    fn the_limit_is_named() {
        assert_eq!(expand("{1..100000}").unwrap().len(), MAX_NAMES);
        let ten = "{0..9}";
        for pattern in [
            "{0..100000}".to_owned(),
            format!("{}..{}", "{-9223372036854775808", "9223372036854775807}"),
            ten.repeat(6),
            ten.repeat(600),
            format!("{{{0},{0}}}", "{1..60000}"),
        ] {
            assert!(expand(&pattern).unwrap_err().contains("100000 names"), "{pattern}");
        }
        assert!(expand(&"{".repeat(10_000)).unwrap_err().contains("4096"));
    }

    #[test]
    fn numbers_at_the_ends_of_their_type_are_kept() {
        assert_eq!(joined("{9223372036854775806..9223372036854775807}"), "9223372036854775806 9223372036854775807");
        assert_eq!(joined("{-9223372036854775808..9223372036854775807..9223372036854775807}").split(' ').count(), 3);
    }

    /// A pattern, and its expansion by construction.
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
            let chained = proptest::collection::vec(inner.clone(), 2..3).prop_map(|parts| {
                let mut names = vec![String::new()];
                for (_, endings) in &parts {
                    names =
                        names.iter().flat_map(|name| endings.iter().map(move |end| format!("{name}{end}"))).collect();
                }
                (parts.iter().map(|(pattern, _)| pattern.as_str()).collect(), names)
            });
            let either = proptest::collection::vec(inner, 2..4).prop_map(|parts| {
                let alternatives: Vec<&str> = parts.iter().map(|(pattern, _)| pattern.as_str()).collect();
                let names = parts.iter().flat_map(|(_, names)| names.clone()).collect();
                (format!("{{{}}}", alternatives.join(",")), names)
            });
            prop_oneof![chained, either]
        })
    }

    proptest! {
        #[test]
        fn expansion_follows_the_construction((pattern, names) in patterns()) {
            match expand(&pattern) {
                Ok(found) => prop_assert_eq!(found, names),
                Err(problem) => prop_assert!(problem.contains("100000 names") && names.len() > MAX_NAMES, "{}", problem),
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[{},.0-9a-z-]{0,40}") {
            let _ = expand(&text);
        }
    }
}
