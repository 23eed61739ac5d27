//! The rules for punctuation, symbols, entities and smileys. Functions named `..._length` return
//! the length of the match in bytes, and 0 or none without a match.

use super::character_classes::is_symbol;
use super::longest_match::{LongestMatch, TokenForm, ascii_run_length, first_char, prefix_length, run_length};

/// Matches the punctuation mark, symbol or entity at the start of `text`.
pub(super) fn match_symbol(text: &str, longest: &mut LongestMatch) {
    let symbol = first_char(text);
    let length = symbol.len_utf8();
    match symbol {
        '!' | '?' => {
            let length = run_length(text, |c| matches!(c, '!' | '?'));
            longest.propose(length, if length > 1 { TokenForm::Word } else { TokenForm::Discarded });
        }
        '-' => {
            let length = run_length(text, |c| c == '-');
            // Up to four hyphens are a dash.
            longest.propose(length, if length > 4 { TokenForm::Word } else { TokenForm::Discarded });
        }
        '_' | '*' | '#' | '@' => longest.propose(run_length(text, |c| c == symbol), TokenForm::Word),
        '.' => {
            let full_stops = ascii_run_length(text, 5, |byte| byte == b'.');
            longest.propose(if full_stops > 2 { full_stops } else { 1 }, TokenForm::Discarded);
        }
        '\\' if text[1..].starts_with('*') => longest.propose(escaped_asterisks_length(text), TokenForm::Word),
        ',' | ':' | ';' | '"' | '\'' => longest.propose(length, TokenForm::Discarded),
        '(' => longest.propose(length, TokenForm::Replacement("-lrb-")),
        ')' => longest.propose(length, TokenForm::Replacement("-rrb-")),
        '[' => longest.propose(length, TokenForm::Replacement("-lsb-")),
        ']' => longest.propose(length, TokenForm::Replacement("-rsb-")),
        '{' => longest.propose(length, TokenForm::Replacement("-lcb-")),
        '}' => longest.propose(length, TokenForm::Replacement("-rcb-")),
        '<' if text.starts_with("<<") => longest.propose(2, TokenForm::Word),
        '>' if text.starts_with(">>") => longest.propose(2, TokenForm::Word),
        '`' => longest.propose(quote_length(text), TokenForm::Quotes),
        '!'..='~' => longest.propose(length, TokenForm::Word),
        '¢' => longest.propose(length, TokenForm::Replacement("cents")),
        '£' => longest.propose(length, TokenForm::Replacement("#")),
        '\u{80}' | '¤' | '\u{20a0}' | '€' => longest.propose(length, TokenForm::Replacement("$")),
        '¼' => longest.propose(length, TokenForm::Replacement("1/4")),
        '½' => longest.propose(length, TokenForm::Replacement("1/2")),
        '¾' => longest.propose(length, TokenForm::Replacement("3/4")),
        '⅓' => longest.propose(length, TokenForm::Replacement("1/3")),
        '⅔' => longest.propose(length, TokenForm::Replacement("2/3")),
        '¥' | '\u{60b}' | '\u{e3f}' | '₤' | '￠' | '￡' | '￥' | '￦' | '⅕'..='⅞' => {
            longest.propose(length, TokenForm::Word);
        }
        '⁺' | '⁻' | '₊' | '₋' | '⁰' | '¹' | '²' | '³' | '⁴'..='⁹' | '₀'..='₉' => {
            longest.propose(sub_or_superscript_length(text), TokenForm::Word);
        }
        _ if is_quote(symbol) => longest.propose(quote_length(text), TokenForm::Quotes),
        _ if is_symbol(symbol) => longest.propose(length, TokenForm::Word),
        _ => {}
    }
    if symbol == '&' {
        match_entity(text, longest);
    }
}

/// The length of superscript or subscript digits, maybe with a sign (rule `SUBSUPNUM`).
fn sub_or_superscript_length(text: &str) -> usize {
    let sign = text.strip_prefix(['⁺', '⁻', '₊', '₋']).map_or(0, |rest| text.len() - rest.len());
    let superscript = run_length(&text[sign..], |c| matches!(c, '⁰' | '¹' | '²' | '³' | '⁴'..='⁹'));
    let subscript = run_length(&text[sign..], |c| matches!(c, '₀'..='₉'));
    sign + superscript.max(subscript)
}

/// Matches the SGML entity at the start of `text`. Entities of letters are parts of words instead.
fn match_entity(text: &str, longest: &mut LongestMatch) {
    let kept_entities = ["&ht;", "&tl;", "&ur;", "&lr;", "&qc;", "&ql;", "&qr;", "&odq;", "&cdq;"];
    if let Some(length) = prefix_length(text, &["&nbsp;", "&quot;", "&apos;", "&md;", "&mdash;", "&ndash;"]) {
        longest.propose(length, TokenForm::Discarded);
    } else if let Some(length) = prefix_length(text, &["&amp;"]) {
        longest.propose(length, TokenForm::Ampersand);
    } else if let Some(length) = prefix_length(text, &["&lt;"]) {
        longest.propose(length, TokenForm::Replacement("<"));
    } else if let Some(length) = prefix_length(text, &["&gt;"]) {
        longest.propose(length, TokenForm::Replacement(">"));
    } else if let Some(length) = prefix_length(text, &kept_entities) {
        longest.propose(length, TokenForm::Word);
    } else if let Some(number) = text.strip_prefix("&#") {
        let digits = run_length(number, |c| c.is_ascii_digit());
        if digits > 0 && number[digits..].starts_with(';') {
            longest.propose(2 + digits + 1, TokenForm::Word);
        }
    }
}

/// Matches capitals before a dollar sign: `US$` (rule `DOLSIGN`).
pub(super) fn match_dollar_sign(text: &str, longest: &mut LongestMatch) {
    let capitals = run_length(text, |c| c.is_ascii_uppercase());
    if text[capitals..].starts_with('$') {
        longest.propose(capitals + 1, TokenForm::Word);
    }
}

/// Matches the Penn Treebank name of a bracket, such as `-lrb-`.
pub(super) fn match_bracket_name(text: &str, longest: &mut LongestMatch) {
    if let Some(length) = prefix_length(text, &["-lrb-", "-rrb-", "-lcb-", "-rcb-", "-lsb-", "-rsb-"]) {
        longest.propose(length, TokenForm::Word);
    }
}

/// Matches the rules `SMILEY`, if no letter or digit follows, and `ASIANSMILEY` at the start of
/// `text`.
pub(super) fn match_smiley(text: &str, longest: &mut LongestMatch) {
    if let Some(length) = smiley_length(text) {
        let next = first_char(&text[length..]);
        if !next.is_ascii_alphanumeric() {
            longest.propose_with_context(length + next.len_utf8(), length, TokenForm::NoBreakSpacesAndBracketNames);
        }
    }
    if let Some(length) = asian_smiley_length(text.as_bytes()) {
        longest.propose(length, TokenForm::NoBreakSpacesAndBracketNames);
    }
}

/// The length of a smiley with all of its parts: `>:-(`.
fn smiley_length(text: &str) -> Option<usize> {
    let rest = text.strip_prefix(['<', '>']).unwrap_or(text);
    let rest = rest.strip_prefix([':', ';', '='])?;
    let is_mouth = |text: &'_ str| text.starts_with(|c| "()DPdpO\\{@|[]".contains(c));
    let rest = rest.strip_prefix(['-', 'o', '*', '\'']).filter(|rest| is_mouth(rest)).unwrap_or(rest);
    is_mouth(rest).then(|| text.len() - rest.len() + 1)
}

/// The length of an Asian smiley: `^_^`, `(^_^)`, `(^^)`.
fn asian_smiley_length(text: &[u8]) -> Option<usize> {
    let is_eye = |c: u8| b"-^x=~<>'".contains(&c);
    match *text {
        [a, b'_', b, ..] if is_eye(a) && is_eye(b) => Some(3),
        [b'(', a, b, b')', ..] if is_eye(a) && is_eye(b) => Some(4),
        [b'(', a, b'_' | b'.', b, b')', ..] if is_eye(a) && is_eye(b) => Some(5),
        [b'(', a, b'-', b, b')', ..] if a != b'-' && b != b'-' && is_eye(a) && (is_eye(b) || b == b'`') => Some(5),
        _ => None,
    }
}

/// Whether `c` is a backquote or a quotation mark outside ASCII.
fn is_quote(c: char) -> bool {
    matches!(c, '`' | '\u{91}'..='\u{94}' | '«' | '»' | '‘'..='‟' | '‹' | '›')
}

/// The length of one or two quotation marks, which are one token.
fn quote_length(text: &str) -> usize {
    text.chars().take(2).take_while(|&c| is_quote(c)).map(char::len_utf8).sum()
}

/// The reference's ASCII form of a quotation mark.
pub(super) fn ascii_quote(c: char) -> Option<&'static str> {
    match c {
        '`' | '\u{91}' | '‘' | '‛' | '‹' => Some("`"),
        '\u{92}' | '’' | '›' => Some("'"),
        '\u{93}' | '“' | '«' => Some("``"),
        '\u{94}' | '”' | '»' => Some("''"),
        _ => None,
    }
}

/// The length of a run of escaped asterisks: `\*\*`.
fn escaped_asterisks_length(text: &str) -> usize {
    text.as_bytes().chunks_exact(2).take_while(|pair| *pair == br"\*").count() * 2
}
