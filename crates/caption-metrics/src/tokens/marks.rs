//! What is no word and no number: punctuation, symbols, entities, smileys.

use super::characters::is_symbol;
use super::longest::{LongestMatch, TokenForm, first, one_of, run, run_up_to};

/// Offers the mark at the start of `text`.
pub(super) fn offer(text: &str, longest: &mut LongestMatch) {
    let mark = first(text);
    let length = mark.len_utf8();
    match mark {
        '!' | '?' => {
            let length = run(text, |c| matches!(c, '!' | '?'));
            longest.offer(length, if length > 1 { TokenForm::Word } else { TokenForm::Dropped });
        }
        '-' => {
            let length = run(text, |c| c == '-');
            // Up to four are a dash.
            longest.offer(length, if length > 4 { TokenForm::Word } else { TokenForm::Dropped });
        }
        '_' | '*' | '#' | '@' => longest.offer(run(text, |c| c == mark), TokenForm::Word),
        '.' => {
            let points = run_up_to(text, 5, |byte| byte == b'.');
            longest.offer(if points > 2 { points } else { 1 }, TokenForm::Dropped);
        }
        '\\' if text[1..].starts_with('*') => longest.offer(escaped_asterisks(text), TokenForm::Word),
        ',' | ':' | ';' | '"' | '\'' => longest.offer(length, TokenForm::Dropped),
        '(' => longest.offer(length, TokenForm::As("-lrb-")),
        ')' => longest.offer(length, TokenForm::As("-rrb-")),
        '[' => longest.offer(length, TokenForm::As("-lsb-")),
        ']' => longest.offer(length, TokenForm::As("-rsb-")),
        '{' => longest.offer(length, TokenForm::As("-lcb-")),
        '}' => longest.offer(length, TokenForm::As("-rcb-")),
        '<' if text.starts_with("<<") => longest.offer(2, TokenForm::Word),
        '>' if text.starts_with(">>") => longest.offer(2, TokenForm::Word),
        '`' => longest.offer(quotes(text), TokenForm::Quotes),
        '!'..='~' => longest.offer(length, TokenForm::Word),
        '¢' => longest.offer(length, TokenForm::As("cents")),
        '£' => longest.offer(length, TokenForm::As("#")),
        '\u{80}' | '¤' | '\u{20a0}' | '€' => longest.offer(length, TokenForm::As("$")),
        '¼' => longest.offer(length, TokenForm::As("1/4")),
        '½' => longest.offer(length, TokenForm::As("1/2")),
        '¾' => longest.offer(length, TokenForm::As("3/4")),
        '⅓' => longest.offer(length, TokenForm::As("1/3")),
        '⅔' => longest.offer(length, TokenForm::As("2/3")),
        '¥' | '\u{60b}' | '\u{e3f}' | '₤' | '￠' | '￡' | '￥' | '￦' | '⅕'..='⅞' => {
            longest.offer(length, TokenForm::Word)
        }
        '⁺' | '⁻' | '₊' | '₋' | '⁰' | '¹' | '²' | '³' | '⁴'..='⁹' | '₀'..='₉' => {
            longest.offer(index(text), TokenForm::Word)
        }
        _ if is_quote(mark) => longest.offer(quotes(text), TokenForm::Quotes),
        _ if is_symbol(mark) => longest.offer(length, TokenForm::Word),
        _ => {}
    }
    if mark == '&' {
        offer_entity(text, longest);
    }
}

/// Digits above or below the line, maybe with a sign.
fn index(text: &str) -> usize {
    let sign = text.strip_prefix(['⁺', '⁻', '₊', '₋']).map_or(0, |rest| text.len() - rest.len());
    let above = run(&text[sign..], |c| matches!(c, '⁰' | '¹' | '²' | '³' | '⁴'..='⁹'));
    let below = run(&text[sign..], |c| matches!(c, '₀'..='₉'));
    sign + above.max(below)
}

/// Offers the entity at the start of `text`; those of letters are parts of words.
fn offer_entity(text: &str, longest: &mut LongestMatch) {
    let kept = ["&ht;", "&tl;", "&ur;", "&lr;", "&qc;", "&ql;", "&qr;", "&odq;", "&cdq;"];
    if let Some(length) = one_of(text, &["&nbsp;", "&quot;", "&apos;", "&md;", "&mdash;", "&ndash;"]) {
        longest.offer(length, TokenForm::Dropped);
    } else if let Some(length) = one_of(text, &["&amp;"]) {
        longest.offer(length, TokenForm::Ampersand);
    } else if let Some(length) = one_of(text, &["&lt;"]) {
        longest.offer(length, TokenForm::As("<"));
    } else if let Some(length) = one_of(text, &["&gt;"]) {
        longest.offer(length, TokenForm::As(">"));
    } else if let Some(length) = one_of(text, &kept) {
        longest.offer(length, TokenForm::Word);
    } else if let Some(number) = text.strip_prefix("&#") {
        let digits = run(number, |c| c.is_ascii_digit());
        if digits > 0 && number[digits..].starts_with(';') {
            longest.offer(2 + digits + 1, TokenForm::Word);
        }
    }
}

/// Offers capitals before a dollar sign: `US$`.
pub(super) fn offer_currency(text: &str, longest: &mut LongestMatch) {
    let capitals = run(text, |c| c.is_ascii_uppercase());
    if text[capitals..].starts_with('$') {
        longest.offer(capitals + 1, TokenForm::Word);
    }
}

/// Offers a bracket that is spelled as the reference spells it.
pub(super) fn offer_bracket_name(text: &str, longest: &mut LongestMatch) {
    if let Some(length) = one_of(text, &["-lrb-", "-rrb-", "-lcb-", "-rcb-", "-lsb-", "-rsb-"]) {
        longest.offer(length, TokenForm::Word);
    }
}

/// Offers the smiley at the start of `text`: lying, if no letter or digit follows, or upright.
pub(super) fn offer_smiley(text: &str, longest: &mut LongestMatch) {
    if let Some(length) = lying(text) {
        let next = first(&text[length..]);
        if !next.is_ascii_alphanumeric() {
            longest.offer_within(length + next.len_utf8(), length, TokenForm::Bracketed);
        }
    }
    if let Some(length) = upright(text.as_bytes()) {
        longest.offer(length, TokenForm::Bracketed);
    }
}

/// Hat, eyes, nose, mouth: `>:-(`.
fn lying(text: &str) -> Option<usize> {
    let rest = text.strip_prefix(['<', '>']).unwrap_or(text);
    let rest = rest.strip_prefix([':', ';', '='])?;
    let mouth = |text: &'_ str| text.starts_with(|c| "()DPdpO\\{@|[]".contains(c));
    let rest = rest.strip_prefix(['-', 'o', '*', '\'']).filter(|rest| mouth(rest)).unwrap_or(rest);
    mouth(rest).then(|| text.len() - rest.len() + 1)
}

/// `^_^`, `(^_^)`, `(^^)`.
fn upright(text: &[u8]) -> Option<usize> {
    let eye = |c: u8| b"-^x=~<>'".contains(&c);
    match *text {
        [a, b'_', b, ..] if eye(a) && eye(b) => Some(3),
        [b'(', a, b, b')', ..] if eye(a) && eye(b) => Some(4),
        [b'(', a, b'_' | b'.', b, b')', ..] if eye(a) && eye(b) => Some(5),
        [b'(', a, b'-', b, b')', ..] if a != b'-' && b != b'-' && eye(a) && (eye(b) || b == b'`') => Some(5),
        _ => None,
    }
}

/// Whether `c` is a quotation mark other than those of ASCII; the back quote is taken for one.
fn is_quote(c: char) -> bool {
    matches!(c, '`' | '\u{91}'..='\u{94}' | '«' | '»' | '‘'..='‟' | '‹' | '›')
}

/// The length of one or two quotation marks, which are one token.
fn quotes(text: &str) -> usize {
    text.chars().take(2).take_while(|&c| is_quote(c)).map(char::len_utf8).sum()
}

/// What the reference writes for a quotation mark.
pub(super) fn plain_quote(c: char) -> Option<&'static str> {
    match c {
        '`' | '\u{91}' | '‘' | '‛' | '‹' => Some("`"),
        '\u{92}' | '’' | '›' => Some("'"),
        '\u{93}' | '“' | '«' => Some("``"),
        '\u{94}' | '”' | '»' => Some("''"),
        _ => None,
    }
}

/// The length of `\*\*`.
fn escaped_asterisks(text: &str) -> usize {
    text.as_bytes().chunks_exact(2).take_while(|pair| *pair == br"\*").count() * 2
}
