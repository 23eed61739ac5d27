//! Addresses of pages and people, names and topics of networks, XML tags.

use super::longest::{Form, Longest, one_of, run, run_up_to, starts_with};
use super::words::letters;

/// What ends a page's address, at the latest.
fn ends_address(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{c}' | '\r' | '"' | '<' | '>' | '|' | '(' | ')')
}

/// What an address does not end with, because it belongs to the sentence.
fn ends_sentence(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | ',' | '-' | '{' | '}')
}

/// Offers a page's address at the start of `text`.
pub(super) fn offer_page(text: &str, longest: &mut Longest) {
    if let Some(scheme) = one_of(text, &["https://", "http://"])
        && let Some(length) = trimmed(&text[scheme..], |c| !ends_address(c) && !matches!(c, '{' | '}'))
    {
        longest.offer(scheme + length, Form::Verbatim);
    }
    if starts_with(text, "www.") {
        let part = |c| !ends_address(c) && (c == '-' || !ends_sentence(c));
        let domain =
            |text: &str| Some(run_up_to(text, 4, |byte| byte.is_ascii_alphabetic())).filter(|&length| length > 1);
        offer_host(text, "www.".len(), part, domain, longest);
    }
    // All from the comma to the underscore, capitals and digits among it, is not in such a name: a slip of the
    // reference.
    let part = |c| !ends_address(c) && !matches!(c, '`' | '\'' | '$' | '!' | '{' | '}' | ','..='_');
    offer_host(text, 0, part, |text| one_of(text, &["com", "net", "org", "edu"]), longest);
}

/// Offers names with full stops between them, from `start` on, that end with a `domain`, with the path that follows.
fn offer_host(
    text: &str,
    start: usize,
    part: impl Fn(char) -> bool,
    domain: impl Fn(&str) -> Option<usize>,
    longest: &mut Longest,
) {
    let mut at = start;
    loop {
        let length = run(&text[at..], &part);
        if length == 0 || !text[at + length..].starts_with('.') {
            return;
        }
        at += length + 1;
        if let Some(length) = domain(&text[at..]) {
            let end = at + length;
            let path = text[end..].strip_prefix('/').and_then(|path| trimmed(path, |c| !ends_address(c)));
            longest.offer(end + path.map_or(0, |path| 1 + path), Form::Verbatim);
        }
    }
}

/// The length of what `belongs` accepts, at least two characters, without the end of a sentence.
fn trimmed(text: &str, belongs: impl Fn(char) -> bool) -> Option<usize> {
    let address = text[..run(text, belongs)].trim_end_matches(ends_sentence);
    address.chars().nth(1).map(|_| address.len())
}

/// Offers an e-mail address, maybe in angle brackets, at the start of `text`.
pub(super) fn offer_mail(text: &str, longest: &mut Longest) {
    let opening = one_of(text, &["&lt;", "<"]).unwrap_or(0);
    let address = &text[opening..];
    if !address.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return;
    }
    let belongs = |c| !ends_address(c) && !matches!(c, '{' | '}' | '\u{a0}');
    let address = &address[..run(address, belongs)];
    for (at, _) in address.match_indices('@').rev() {
        // Names with one full stop between them.
        let host = &address[at + 1..];
        let end = host.find("..").unwrap_or(host.len());
        let host = host[..end].trim_end_matches('.');
        if host.is_empty() || host.starts_with('.') {
            continue;
        }
        let end = opening + at + 1 + host.len();
        longest.offer(end + one_of(&text[end..], &["&gt;", ">"]).unwrap_or(0), Form::Verbatim);
    }
}

/// Offers `@name` and `#topic`.
pub(super) fn offer_handle(text: &str, longest: &mut Longest) {
    let rest = &text[1..];
    if text.starts_with('@') && rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        longest.offer(1 + run(rest, |c| c.is_ascii_alphanumeric() || c == '_'), Form::Verbatim);
    }
    let letters = letters(rest, |_| false);
    if text.starts_with('#') && letters > 0 {
        longest.offer(1 + letters, Form::Verbatim);
    }
}

/// Offers the XML tag or comment at the start of `text`.
pub(super) fn offer_tag(text: &str, longest: &mut Longest) {
    if let Some(length) = tag(text) {
        longest.offer(length, Form::Spaced);
    }
}

/// `text` without the spaces in front.
fn spaces(text: &str) -> &str {
    text.trim_start_matches(' ')
}

/// What follows the name of a tag or attribute at the start of `text`.
fn name(text: &str) -> Option<&str> {
    let belongs = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '-');
    text.starts_with(|c: char| c.is_ascii_alphabetic()).then(|| &text[run(text, belongs)..])
}

/// The length of the XML tag or comment at the start of `text`.
pub(super) fn tag(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('<')?;
    let rest = if let Some(declaration) = inside.strip_prefix(['!', '?']) {
        let named = declaration.starts_with(|c: char| c.is_ascii_alphabetic() || c == '-');
        named.then(|| &declaration[run(declaration, |c| !matches!(c, '>' | '\n' | '\r'))..])?
    } else if let Some(closing) = inside.strip_prefix('/') {
        spaces(name(closing)?)
    } else {
        let mut rest = name(inside)?;
        while let Some(attribute) = rest.strip_prefix(' ').map(spaces).and_then(name) {
            rest = attribute;
            if let Some(value) = spaces(rest).strip_prefix('=').map(spaces) {
                let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
                rest = value[1..].split_once(quote)?.1;
            }
        }
        let rest = spaces(rest);
        spaces(rest.strip_prefix('/').unwrap_or(rest))
    };
    rest.starts_with('>').then(|| text.len() - rest.len() + 1)
}
