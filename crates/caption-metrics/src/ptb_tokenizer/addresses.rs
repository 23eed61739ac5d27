//! The rules for URLs, e-mail addresses, Twitter names and hashtags, and SGML tags. All lengths are
//! in bytes.

use super::longest_match::{
    LongestMatch, TokenForm, ascii_run_length, prefix_length, run_length, starts_with_ignore_case,
};
use super::lookahead::{CachedRunEnd, LookaheadCache, RangeCache};
use super::words::letters_length;

/// Whether `c` cannot be part of a URL.
fn is_url_delimiter(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\u{c}' | '\r' | '"' | '<' | '>' | '|' | '(' | ')')
}

/// Whether `c` cannot be the last character of a URL, because it belongs to the sentence.
fn is_trailing_punctuation(c: char) -> bool {
    matches!(c, '.' | '!' | '?' | ',' | '-' | '{' | '}')
}

/// Matches the rules `FULLURL` and `LIKELYURL` at the start of `text`.
pub(super) fn match_url(text: &str, lookahead: &mut LookaheadCache, longest: &mut LongestMatch) {
    if let Some(scheme) = prefix_length(text, &["https://", "http://"]) {
        let address = &text[scheme..];
        let address = &address[..run_length(address, |c| !is_url_delimiter(c) && !matches!(c, '{' | '}'))];
        let address = address.trim_end_matches(is_trailing_punctuation);
        if address.chars().nth(1).is_some() {
            longest.propose(scheme + address.len(), TokenForm::Verbatim);
        }
    }
    if starts_with_ignore_case(text, "www.") {
        let is_label_char = |c| !is_url_delimiter(c) && (c == '-' || !is_trailing_punctuation(c));
        let domain_length = |text: &str| {
            Some(ascii_run_length(text, 4, |byte| byte.is_ascii_alphabetic())).filter(|&length| length > 1)
        };
        lookahead.www_urls.match_host(text, "www.".len(), is_label_char, domain_length, longest);
    }
    // The reference's character class `,-_` excludes all characters from the comma to the
    // underscore, and thereby digits and capitals.
    let is_label_char = |c| !is_url_delimiter(c) && !matches!(c, '`' | '\'' | '$' | '!' | '{' | '}' | ','..='_');
    lookahead.known_domain_urls.match_host(
        text,
        0,
        is_label_char,
        |text| prefix_length(text, &["com", "net", "org", "edu"]),
        longest,
    );
}

/// Cached URLs without a scheme such as `https://`: a host name, which is a run of labels with full
/// stops between them, and maybe a path. Positions are those of [`RangeCache`].
#[derive(Debug, Default)]
pub(super) struct SchemelessUrls {
    /// For a run of labels: the position of each full stop before a top-level domain, and the
    /// farthest end of a URL with this domain or a later one.
    domains: RangeCache<Vec<(usize, usize)>>,
    /// The ends of URL paths.
    path_ends: RangeCache<usize>,
}

impl SchemelessUrls {
    /// Matches a host name from `start` on that ends with a top-level domain, and the path after
    /// it. `domain_length` returns the length of the top-level domain at the start of a text. All
    /// calls must pass the same `is_label_char` and `domain_length`.
    fn match_host(
        &mut self,
        text: &str,
        start: usize,
        is_label_char: impl Fn(char) -> bool,
        domain_length: impl Fn(&str) -> Option<usize>,
        longest: &mut LongestMatch,
    ) {
        let host = &text[start..];
        if !host.starts_with(&is_label_char) {
            return;
        }
        let Self { domains, path_ends } = self;
        let domains = domains.get(host, || find_domains(host, is_label_char, domain_length, path_ends));
        let next = domains.partition_point(|&(stop, _)| stop >= host.len());
        if let Some(&(_, end)) = domains.get(next) {
            longest.propose(text.len() - end, TokenForm::Verbatim);
        }
    }
}

/// The length of the run of labels at the start of `text`, and the run's
/// [`SchemelessUrls::domains`].
fn find_domains(
    text: &str,
    is_label_char: impl Fn(char) -> bool,
    domain_length: impl Fn(&str) -> Option<usize>,
    path_ends: &mut RangeCache<usize>,
) -> (usize, Vec<(usize, usize)>) {
    let mut domains = Vec::new();
    let mut offset = 0;
    loop {
        let length = run_length(&text[offset..], &is_label_char);
        offset += length;
        if length == 0 || !text[offset..].starts_with('.') {
            break;
        }
        let stop = text.len() - offset;
        offset += 1;
        if let Some(length) = domain_length(&text[offset..]) {
            let rest = &text[offset + length..];
            let path = rest.strip_prefix('/').and_then(|rest| url_path_length(rest, path_ends));
            domains.push((stop, rest.len() - path.map_or(0, |path| 1 + path)));
        }
    }
    for index in (1..domains.len()).rev() {
        domains[index - 1].1 = domains[index - 1].1.min(domains[index].1);
    }
    (offset, domains)
}

/// The length of the URL path at the start of `text`, at least two characters, without trailing
/// punctuation.
fn url_path_length(text: &str, path_ends: &mut RangeCache<usize>) -> Option<usize> {
    let end = *path_ends.get(text, || {
        let path = &text[..run_length(text, |c| !is_url_delimiter(c))];
        (path.len(), text.len() - path.trim_end_matches(is_trailing_punctuation).len())
    });
    let path = &text[..text.len().checked_sub(end)?];
    path.chars().nth(1).map(|_| path.len())
}

/// The positions of an e-mail address's `@` and end, as in [`RangeCache`].
#[derive(Debug, Clone, Copy)]
pub(super) struct EmailAddress {
    at_sign: usize,
    end: usize,
}

/// Matches the rule `EMAIL` at the start of `text`: an e-mail address, maybe in angle brackets.
pub(super) fn match_email(text: &str, lookahead: &mut LookaheadCache, longest: &mut LongestMatch) {
    let opening = prefix_length(text, &["&lt;", "<"]).unwrap_or(0);
    let address = &text[opening..];
    if !address.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return;
    }
    let email = *lookahead.email.get(address, || {
        let belongs = |c| !is_url_delimiter(c) && !matches!(c, '{' | '}' | '\u{a0}');
        let length = run_length(address, belongs);
        let position = |at| address.len() - at;
        (
            length,
            find_last_email(&address[..length])
                .map(|(at, end)| EmailAddress { at_sign: position(at), end: position(end) }),
        )
    });
    if let Some(EmailAddress { end, .. }) = email.filter(|email| email.at_sign < address.len()) {
        let end = text.len() - end;
        longest.propose(end + prefix_length(&text[end..], &["&gt;", ">"]).unwrap_or(0), TokenForm::Verbatim);
    }
}

/// The offsets of the last `@` before a host name, and of the end of that host name.
fn find_last_email(text: &str) -> Option<(usize, usize)> {
    text.match_indices('@').rev().find_map(|(at, _)| {
        let host = &text[at + 1..];
        if host.is_empty() || host.starts_with('.') {
            return None;
        }
        let end = host.find("..").unwrap_or(host.len());
        Some((at, at + 1 + host[..end].trim_end_matches('.').len()))
    })
}

/// Matches the rule `TWITTER` at the start of `text`: `@name` and `#hashtag`.
pub(super) fn match_twitter(text: &str, longest: &mut LongestMatch) {
    let rest = &text[1..];
    if text.starts_with('@') && rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        longest.propose(1 + run_length(rest, |c| c.is_ascii_alphanumeric() || c == '_'), TokenForm::Verbatim);
    }
    let letters = letters_length(rest, |_| false);
    if text.starts_with('#') && letters > 0 {
        longest.propose(1 + letters, TokenForm::Verbatim);
    }
}

/// Matches the rule `SGML` at the start of `text`: a tag, declaration or comment.
pub(super) fn match_sgml(text: &str, lookahead: &mut LookaheadCache, longest: &mut LongestMatch) {
    if let Some(length) = sgml_length(text, &mut lookahead.sgml_declaration) {
        longest.propose(length, TokenForm::NoBreakSpaces);
    }
}

/// `text` without leading spaces.
fn skip_spaces(text: &str) -> &str {
    text.trim_start_matches(' ')
}

/// `text` without the name of a tag or attribute at its start; none if there is no name.
fn skip_name(text: &str) -> Option<&str> {
    let belongs = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '-');
    text.starts_with(|c: char| c.is_ascii_alphabetic()).then(|| &text[run_length(text, belongs)..])
}

/// The length of the tag, declaration or comment at the start of `text`.
///
/// Declarations and comments may contain any character, so their ends are cached. Tags need no
/// cache: at most three tags that start at different positions can contain the same position.
pub(super) fn sgml_length(text: &str, declarations: &mut CachedRunEnd) -> Option<usize> {
    let inside = text.strip_prefix('<')?;
    let rest = if let Some(declaration) = inside.strip_prefix(['!', '?']) {
        let is_named = declaration.starts_with(|c: char| c.is_ascii_alphabetic() || c == '-');
        is_named.then(|| &declaration[declarations.length(declaration, |c| !matches!(c, '>' | '\n' | '\r'))..])?
    } else if let Some(closing) = inside.strip_prefix('/') {
        skip_spaces(skip_name(closing)?)
    } else {
        let mut rest = skip_name(inside)?;
        while let Some(attribute) = rest.strip_prefix(' ').map(skip_spaces).and_then(skip_name) {
            rest = attribute;
            if let Some(value) = skip_spaces(rest).strip_prefix('=').map(skip_spaces) {
                let quote = value.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
                rest = value[1..].split_once(quote)?.1;
            }
        }
        let rest = skip_spaces(rest);
        skip_spaces(rest.strip_prefix('/').unwrap_or(rest))
    };
    rest.starts_with('>').then(|| text.len() - rest.len() + 1)
}
