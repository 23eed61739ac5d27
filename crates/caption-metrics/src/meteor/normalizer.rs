//! METEOR's normalizer, which the option `-norm` runs on captions that are already tokenized. It
//! splits hyphenated words, splits clitics at their apostrophe (`don't` and `do n't` both end in
//! `'t`), and separates punctuation.
//!
//! METEOR implements it as a series of regex replacements. Each match consumes the characters
//! before and after it, so only the first hyphen of `a-b-c` is replaced.

use std::collections::HashMap;

/// Words that keep their full stop (METEOR's "nonbreaking prefixes"), each with its rule.
pub(super) type NonbreakingPrefixes = HashMap<String, FullStopRule>;

/// When a word keeps its full stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FullStopRule {
    Always,
    BeforeNumber,
}

/// Splits `caption` into lower-case words.
pub(super) fn normalize(caption: &str, prefixes: &NonbreakingPrefixes) -> Vec<String> {
    // With spaces around it, so that the first and the last character have neighbours.
    let mut text = separate_symbols(&format!(" {caption} "));
    text = replace_between(text, is_not_digit, ',', is_not_digit, " , ");
    text = replace_between(text, is_digit, ',', is_not_digit, " , ");
    text = replace_between(text, is_not_digit, ',', is_digit, " , ");
    text = normalize_punctuation(&text);
    text = replace_between(text, |c| is_alphanumeric(c) || c == '.', '-', is_alphanumeric, " ");
    text = replace_between(text, is_not_letter, '\'', is_not_letter, " ' ");
    text = replace_between(text, |c| is_not_letter(c) && is_not_digit(c), '\'', is_letter, " ' ");
    text = replace_between(text, is_letter, '\'', is_not_letter, " ' ");
    text = replace_between(text, is_letter, '\'', is_letter, " '");
    text = replace_between(text, is_digit, '\'', |c| c == 's', " '");
    split_full_stops(&text, prefixes)
        .to_lowercase()
        .split(is_word_separator)
        .filter(|word| !word.is_empty())
        .map(Into::into)
        .collect()
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn is_not_digit(c: char) -> bool {
    !is_digit(c)
}

/// Whether `c` is one of the Latin, Cyrillic and phonetic letters that METEOR lists, which do not
/// include Greek.
fn is_letter(c: char) -> bool {
    matches!(c, 'A'..='Z' | 'a'..='z' | 'À'..='Ö' | 'Ø'..='ö' | 'ø'..='\u{17e}' | '\u{400}'..='\u{527}'
        | '\u{a640}'..='\u{a66e}' | '\u{a67e}'..='\u{a697}' | '\u{1d00}'..='\u{1d7f}')
}

fn is_not_letter(c: char) -> bool {
    !is_letter(c)
}

fn is_alphanumeric(c: char) -> bool {
    is_digit(c) || is_letter(c)
}

/// Whether `c` is white space in METEOR's regular expressions: a subset of Unicode's.
fn is_white_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}

/// Whether METEOR splits the normalized caption at `c`.
fn is_word_separator(c: char) -> bool {
    matches!(
        c,
        ' ' | '\t' | '\n' | '\u{c}' | '\r' | '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}'
    )
}

/// Puts spaces around symbols without a rule of their own, and around runs of full stops.
fn separate_symbols(text: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let stops = rest.len() - rest.trim_start_matches('.').len();
        let (length, is_separate) = if stops > 1 {
            (stops, true)
        } else {
            (
                c.len_utf8(),
                !(is_alphanumeric(c) || is_white_space(c) || matches!(c, '.' | '\'' | '`' | ',' | '-' | '‘' | '’')),
            )
        };
        let (piece, after) = rest.split_at(length);
        out.extend([if is_separate { " " } else { "" }, piece, if is_separate { " " } else { "" }]);
        rest = after;
    }
    out
}

/// Replaces quotation marks and dashes by ASCII characters; two single quotes become a double
/// quote.
fn normalize_punctuation(text: &str) -> String {
    let single = text.replace(['`', '‘', '’'], "'");
    single.replace("''", " \" ").replace(['“', '”'], " \" ").replace('–', "-").replace("--", "-")
}

/// Replaces `mark` by `replacement` if the characters before and after it match.
fn replace_between(
    text: String,
    before: impl Fn(char) -> bool,
    mark: char,
    after: impl Fn(char) -> bool,
    replacement: &str,
) -> String {
    if !text.contains(mark) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 8);
    // None if the previous replacement consumed the character.
    let mut previous = None;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == mark
            && previous.is_some_and(&before)
            && let Some(next) = rest.next_if(|&next| after(next))
        {
            out.push_str(replacement);
            out.push(next);
            previous = None;
        } else {
            out.push(c);
            previous = Some(c);
        }
    }
    out
}

/// Separates full stops from the ends of words, except after abbreviations and before a lower-case
/// letter. If a word with letters ends with a full stop and has another, all of its full stops are
/// removed: `u.s.` becomes `us`.
fn split_full_stops(text: &str, prefixes: &NonbreakingPrefixes) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut words = text.split([' ', '\t', '\n', '\u{c}', '\r']).filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        match word.strip_suffix('.') {
            // A run of full stops is one word.
            Some(bare) if !bare.trim_start_matches('.').is_empty() => {
                let next = words.peek().and_then(|next| next.chars().next());
                let before_number = || next.is_some_and(|c| c.is_ascii_digit());
                let before_lowercase = next.is_some_and(|c| c.is_ascii_lowercase());
                if bare.contains('.') && bare.contains(is_letter) {
                    out.extend(word.split('.'));
                } else if before_lowercase
                    || prefixes.get(bare).is_some_and(|&rule| rule == FullStopRule::Always || before_number())
                {
                    out.push_str(word);
                } else {
                    out.extend([bare, " ."]);
                }
            }
            _ => out.push_str(word),
        }
        out.push(' ');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_normalized_as_by_meteor() {
        let prefixes =
            NonbreakingPrefixes::from([("vs".into(), FullStopRule::Always), ("pp".into(), FullStopRule::BeforeNumber)]);
        // Expected values were printed by METEOR.
        for (caption, expected) in [
            ("a-b-c t-shirt one-two-three-four", "a b-c t shirt one two three four"),
            (
                "do n't can't dogs' 'tis y'all 1990's 2's x'1 1'x",
                "do n 't can 't dogs ' ' tis y 'all 1990 's 2 's x ' 1 1'x",
            ),
            ("a,b,c 1,000 a,5 5,a ,a", "a , b,c 1,000 a , 5 5 , a , a"),
            ("wait ... what .. a..b .", "wait ... what .. a .. b ."),
            ("u.s. army vs. them vs. 3 and pp. 7 pp. x", "us army vs. them vs. 3 and pp. 7 pp. x"),
            ("pp. X vs. X etc. and etc. 5 no. 7 3.5. a.", "pp . x vs. x etc. and etc . 5 no . 7 3.5. a ."),
            ("``quote'' “x” ‘y’ '''", "\" quote \" \" x \" ' y ' \" '"),
            ("$5 50% a&b #1 a_b x@y", "$ 5 50 % a & b # 1 a _ b x @ y"),
            ("café naïve žena Ελλάδα 日本 привет", "café naïve žena ε λ λ ά δ α 日 本 привет"),
            ("– -- --- a–b a--b 5-5 -5 a- -a .-a", "- - -- a - b a b 5 5 -5 a- -a . a"),
            ("1\u{a0}1/2 a\u{2009}b", "1 1 / 2 a b"),
            ("", ""),
            (" ", ""),
            (".", "."),
        ] {
            assert_eq!(normalize(caption, &prefixes).join(" "), expected, "{caption:?}");
        }
    }
}
