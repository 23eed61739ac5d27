//! Addresses of pages and people, names and topics of networks, XML tags.

use super::longest::{LongestMatch, TokenForm, one_of, run, run_up_to, starts_with};
use super::lookahead::{Cached, Lookahead, RunEnd};
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
pub(super) fn offer_page(text: &str, lookahead: &mut Lookahead, longest: &mut LongestMatch) {
    if let Some(scheme) = one_of(text, &["https://", "http://"]) {
        let address = &text[scheme..];
        let address = &address[..run(address, |c| !ends_address(c) && !matches!(c, '{' | '}'))];
        let address = address.trim_end_matches(ends_sentence);
        if address.chars().nth(1).is_some() {
            longest.offer(scheme + address.len(), TokenForm::Verbatim);
        }
    }
    if starts_with(text, "www.") {
        let part = |c| !ends_address(c) && (c == '-' || !ends_sentence(c));
        let domain =
            |text: &str| Some(run_up_to(text, 4, |byte| byte.is_ascii_alphabetic())).filter(|&length| length > 1);
        lookahead.www.offer(text, "www.".len(), part, domain, longest);
    }
    // All from the comma to the underscore, capitals and digits among it, is not in such a name: a slip of the
    // reference.
    let part = |c| !ends_address(c) && !matches!(c, '`' | '\'' | '$' | '!' | '{' | '}' | ','..='_');
    lookahead.hosts.offer(text, 0, part, |text| one_of(text, &["com", "net", "org", "edu"]), longest);
}

/// Runs of names with full stops between them, some of which are domains. Positions are those of
/// [`Cached`].
#[derive(Debug, Default)]
pub(super) struct Hosts {
    /// Of a run: the position of each full stop before a domain, and the farthest end of an address
    /// with this domain or a later one.
    domains: Cached<Vec<(usize, usize)>>,
    /// Where paths end.
    path: Cached<usize>,
}

impl Hosts {
    /// Offers names, from `start` on, that end with a `domain`, with the path that follows. All
    /// calls must pass the same `part` and `domain`.
    fn offer(
        &mut self,
        text: &str,
        start: usize,
        part: impl Fn(char) -> bool,
        domain: impl Fn(&str) -> Option<usize>,
        longest: &mut LongestMatch,
    ) {
        let names = &text[start..];
        if !names.starts_with(&part) {
            return;
        }
        let Self { domains, path } = self;
        let domains = domains.get(names, || find_domains(names, part, domain, path));
        let next = domains.partition_point(|&(stop, _)| stop >= names.len());
        if let Some(&(_, end)) = domains.get(next) {
            longest.offer(text.len() - end, TokenForm::Verbatim);
        }
    }
}

/// The length of the run of names at the start of `text`, and its [`Hosts::domains`].
fn find_domains(
    text: &str,
    part: impl Fn(char) -> bool,
    domain: impl Fn(&str) -> Option<usize>,
    paths: &mut Cached<usize>,
) -> (usize, Vec<(usize, usize)>) {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let length = run(&text[at..], &part);
        at += length;
        if length == 0 || !text[at..].starts_with('.') {
            break;
        }
        let stop = text.len() - at;
        at += 1;
        if let Some(length) = domain(&text[at..]) {
            let rest = &text[at + length..];
            let path = rest.strip_prefix('/').and_then(|rest| path(rest, paths));
            found.push((stop, rest.len() - path.map_or(0, |path| 1 + path)));
        }
    }
    for earlier in (1..found.len()).rev() {
        found[earlier - 1].1 = found[earlier - 1].1.min(found[earlier].1);
    }
    (at, found)
}

/// The length of the path at the start of `text`, at least two characters, without the end of a
/// sentence.
fn path(text: &str, ends: &mut Cached<usize>) -> Option<usize> {
    let end = *ends.get(text, || {
        let path = &text[..run(text, |c| !ends_address(c))];
        (path.len(), text.len() - path.trim_end_matches(ends_sentence).len())
    });
    let path = &text[..text.len().checked_sub(end)?];
    path.chars().nth(1).map(|_| path.len())
}

/// The positions of an e-mail address's `@` and end, as in [`Cached`].
#[derive(Debug, Clone, Copy)]
pub(super) struct EmailAddress {
    at: usize,
    end: usize,
}

/// Offers an e-mail address, maybe in angle brackets, at the start of `text`.
pub(super) fn offer_mail(text: &str, lookahead: &mut Lookahead, longest: &mut LongestMatch) {
    let opening = one_of(text, &["&lt;", "<"]).unwrap_or(0);
    let address = &text[opening..];
    if !address.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return;
    }
    let mail = *lookahead.mail.get(address, || {
        let belongs = |c| !ends_address(c) && !matches!(c, '{' | '}' | '\u{a0}');
        let length = run(address, belongs);
        let position = |at| address.len() - at;
        (length, last_mail(&address[..length]).map(|(at, end)| EmailAddress { at: position(at), end: position(end) }))
    });
    if let Some(EmailAddress { end, .. }) = mail.filter(|mail| mail.at < address.len()) {
        let end = text.len() - end;
        longest.offer(end + one_of(&text[end..], &["&gt;", ">"]).unwrap_or(0), TokenForm::Verbatim);
    }
}

/// Where the last `@` before names is, and where these end, which have one full stop between them.
fn last_mail(text: &str) -> Option<(usize, usize)> {
    text.match_indices('@').rev().find_map(|(at, _)| {
        let names = &text[at + 1..];
        if names.is_empty() || names.starts_with('.') {
            return None;
        }
        let end = names.find("..").unwrap_or(names.len());
        Some((at, at + 1 + names[..end].trim_end_matches('.').len()))
    })
}

/// Offers `@name` and `#topic`.
pub(super) fn offer_handle(text: &str, longest: &mut LongestMatch) {
    let rest = &text[1..];
    if text.starts_with('@') && rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        longest.offer(1 + run(rest, |c| c.is_ascii_alphanumeric() || c == '_'), TokenForm::Verbatim);
    }
    let letters = letters(rest, |_| false);
    if text.starts_with('#') && letters > 0 {
        longest.offer(1 + letters, TokenForm::Verbatim);
    }
}

/// Offers the XML tag or comment at the start of `text`.
pub(super) fn offer_tag(text: &str, lookahead: &mut Lookahead, longest: &mut LongestMatch) {
    if let Some(length) = tag(text, &mut lookahead.declaration) {
        longest.offer(length, TokenForm::Spaced);
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
///
/// Declarations may contain any character, so their ends are cached. Tags need no cache: no more
/// than three that start at different positions can all go on at one position.
pub(super) fn tag(text: &str, declarations: &mut RunEnd) -> Option<usize> {
    let inside = text.strip_prefix('<')?;
    let rest = if let Some(declaration) = inside.strip_prefix(['!', '?']) {
        let named = declaration.starts_with(|c: char| c.is_ascii_alphabetic() || c == '-');
        named.then(|| &declaration[declarations.length(declaration, |c| !matches!(c, '>' | '\n' | '\r'))..])?
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
