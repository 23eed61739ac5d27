//! The rules for words: plain words, words with hyphens, slashes and ampersands, clitics,
//! abbreviations, and words with apostrophes. Functions named `..._length` return the length of the
//! match in bytes, and 0 or none without a match.

use super::addresses::sgml_length;
use super::character_classes::{SOFT_HYPHEN, is_base_letter, is_digit, is_letter, is_line_break, is_space};
use super::longest_match::{
    LongestMatch, TokenForm, ascii_run_length, first_char, prefix_length, run_length, starts_with_ignore_case,
};
use super::lookahead::{CachedRunEnd, LookaheadCache};
use super::word_lists::{
    ABBREVIATIONS, APOSTROPHE_ENDED, APOSTROPHE_EXCEPTIONS, CAPITALISED_ABBREVIATIONS, CLITICS, ELISIONS,
    FILE_EXTENSIONS, NUMBER_ABBREVIATIONS, OTHER_EXCEPTIONS, SENTENCE_STARTERS, SPLIT_WORDS, TITLE_ABBREVIATIONS,
};

/// The position at which `word` is split into two tokens; none if it is a single token.
pub(super) fn split_position(word: &str) -> Option<usize> {
    SPLIT_WORDS.iter().find(|(split_word, _)| split_word.eq_ignore_ascii_case(word)).map(|&(_, first)| first)
}

/// Matches all rules that begin with a letter, a digit, or the entity of a letter.
pub(super) fn match_word_rules(text: &str, lookahead: &mut LookaheadCache, longest: &mut LongestMatch) {
    let initial_letters = ascii_run_length(text, text.len(), |byte| byte.is_ascii_alphabetic());
    if let Some(first) = split_position(&text[..initial_letters]) {
        longest.propose_with_context(initial_letters, first, TokenForm::Word);
    }
    let word_length = word_length(text);
    match_before_clitic(text, word_length, longest);
    longest.propose(word_length, TokenForm::Word);
    match_abbreviation(text, initial_letters, &mut lookahead.sgml_declaration, longest);
    match_with_full_stop(text, word_length, TokenForm::Word, longest);
    match_file_name(text, lookahead, longest);
    longest.propose(word_with_apostrophe_length(text), TokenForm::Word);
    for length in [hyphenated_length(text), hyphenated_compound_length(text, &mut lookahead.compound_head)] {
        longest.propose(length, TokenForm::Word);
        match_with_full_stop(text, length, TokenForm::Word, longest);
    }
    match_negation(text, longest);
    longest.propose(slashed_length(text), TokenForm::Word);
    let length = joined_capitals_length(text);
    longest.propose(length, TokenForm::Ampersand);
    match_with_full_stop(text, length, TokenForm::Ampersand, longest);
    match_exceptions(text, initial_letters, longest);
}

/// Matches a token of `length` with the full stop after it, if a comma or similar mark shows that
/// the full stop does not end the sentence.
fn match_with_full_stop(text: &str, length: usize, form: TokenForm, longest: &mut LongestMatch) {
    if length > 0
        && let Some(after) = text[length..].strip_prefix('.')
        && let c @ (',' | ';' | ':' | '\u{3001}') = first_char(after)
    {
        longest.propose_with_context(length + 1 + c.len_utf8(), length + 1, form);
    }
}

/// The length of a letter that is written as an SGML entity: `&eacute;` (rule `SPLET`).
pub(super) fn letter_entity_length(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('&')?;
    let accent = rest.strip_prefix(|c: char| "aeiouAEIOU".contains(c))?;
    prefix_length(accent, &["acute;", "grave;", "uml;"]).map(|length| 2 + length)
}

/// The length of letters and digits, with a letter first.
fn letters_and_digits_length(text: &str) -> usize {
    if letters_length(text, |_| false) > 0 { letters_length(text, is_digit) } else { 0 }
}

/// The length of letters, entities of letters, and other characters that `belongs` accepts.
pub(super) fn letters_length(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    let mut length = 0;
    loop {
        length += run_length(&text[length..], |c| is_letter(c) || belongs(c));
        match letter_entity_length(&text[length..]) {
            Some(more) => length += more,
            None => return length,
        }
    }
}

/// Matches a file name before white space or punctuation (rule `FILENAME`).
fn match_file_name(text: &str, lookahead: &mut LookaheadCache, longest: &mut LongestMatch) {
    let extensions = &text[letters_length(text, is_digit)..];
    let file = *lookahead.file_name.get(extensions, || last_file_name(extensions));
    if let Some(FileName { end, context_length, .. }) = file.filter(|file| file.extension_stop <= extensions.len()) {
        let length = text.len() - end;
        longest.propose_with_context(length + context_length, length, TokenForm::Word);
    }
}

/// The end of a file name. Positions are those of [`super::lookahead::RangeCache`].
#[derive(Debug, Clone, Copy)]
pub(super) struct FileName {
    /// The position of the full stop before the extension.
    extension_stop: usize,
    end: usize,
    /// The length of the character after the name, in bytes.
    context_length: usize,
}

/// The length of the parts at the start of `text`, each after a full stop, and the last file name
/// that ends with one of them.
fn last_file_name(text: &str) -> (usize, Option<FileName>) {
    let (mut length, mut last) = (0, None);
    while let Some(rest) = text[length..].strip_prefix('.') {
        let more = letters_length(rest, is_digit);
        if more == 0 {
            break;
        }
        let (extension, after) = rest.split_at(more);
        let next = first_char(after);
        let ends = is_space(next) || is_line_break(next) || matches!(next, '.' | '?' | '!' | ',');
        if ends && FILE_EXTENSIONS.iter().any(|entry| entry.eq_ignore_ascii_case(extension)) {
            last = Some(FileName {
                extension_stop: text.len() - length,
                end: after.len(),
                context_length: next.len_utf8(),
            });
        }
        length += 1 + more;
    }
    (length, last)
}

/// The length of letters and digits with single full stops, exclamation marks and question marks
/// between them (rule `WORD`).
fn word_length(text: &str) -> usize {
    let mut length = letters_and_digits_length(text);
    while length > 0 && text[length..].starts_with(['.', '!', '?']) {
        let more = letters_and_digits_length(&text[length + 1..]);
        if more == 0 {
            break;
        }
        length += 1 + more;
    }
    length
}

/// The length of an apostrophe in one of its forms (rule `APOS`).
pub(super) fn apostrophe_length(text: &str) -> Option<usize> {
    match first_char(text) {
        c @ ('\'' | '\u{92}' | '’') => Some(c.len_utf8()),
        '&' => prefix_length(text, &["&apos;"]),
        _ => None,
    }
}

/// The length of an apostrophe, or of a quotation mark in its place inside a word (rule
/// `APOSETCETERA`).
pub(super) fn any_apostrophe_length(text: &str) -> Option<usize> {
    apostrophe_length(text).or_else(|| match first_char(text) {
        c @ ('`' | '\u{91}' | '‘' | '‛') => Some(c.len_utf8()),
        _ => None,
    })
}

/// The length of a clitic with its apostrophe (rule `REDAUX`).
pub(super) fn clitic_length(text: &str) -> Option<usize> {
    let apostrophe = apostrophe_length(text)?;
    prefix_length(&text[apostrophe..], CLITICS).map(|length| apostrophe + length)
}

/// The length of `'t`.
fn negation_length(text: &str) -> Option<usize> {
    let apostrophe = any_apostrophe_length(text)?;
    starts_with_ignore_case(&text[apostrophe..], "t").then_some(apostrophe + 1)
}

/// Matches the word of `word_length` bytes if a clitic follows, or the part before `n't` (rule
/// `SWORD`).
fn match_before_clitic(text: &str, word_length: usize, longest: &mut LongestMatch) {
    let (word, after) = text.split_at(word_length);
    let length = word.len();
    if length == 0 {
        return;
    }
    if let Some(clitic) = clitic_length(after) {
        longest.propose_with_context(length + clitic, length, TokenForm::Word);
    }
    if word.len() > 1
        && let Some(before) = word.strip_suffix(['n', 'N'])
        && before.ends_with(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'n' | 'N'))
        && before.chars().all(|c| c.is_ascii_alphabetic() || c == SOFT_HYPHEN)
        && let Some(negation) = negation_length(after)
    {
        longest.propose_with_context(length + negation, length - 1, TokenForm::Word);
    }
}

/// Matches `n't` (rule `SREDAUX`).
fn match_negation(text: &str, longest: &mut LongestMatch) {
    if text.starts_with(['n', 'N'])
        && let Some(negation) = negation_length(&text[1..])
    {
        let length = 1 + negation;
        let next = first_char(&text[length..]);
        let context = if next.is_ascii_alphabetic() { 0 } else { next.len_utf8() };
        longest.propose_with_context(length + context, length, TokenForm::Clitic);
    }
}

/// Matches an abbreviation that starts with `initial_letters` letters (rules `ABBREV1` to
/// `ABBREV3`), and an acronym (rule `ACRO`).
fn match_abbreviation(text: &str, initial_letters: usize, declarations: &mut CachedRunEnd, longest: &mut LongestMatch) {
    let acronym = acronym_length(text);
    longest.propose(acronym, TokenForm::Word);
    if acronym > 0
        && let Some(context) = sentence_start_length(&text[acronym..], declarations)
    {
        // The last full stop becomes a separate token, which is discarded as punctuation. An
        // acronym with several full stops keeps it as well.
        longest.propose_with_context(acronym + context, if acronym > 2 { acronym } else { 1 }, TokenForm::Word);
    }
    let dotted = prefix_length(text, &["ed.d", "ph.d"]).unwrap_or(initial_letters);
    for length in [initial_letters, dotted] {
        let (word, after) = text.split_at(length);
        let Some(after) = after.strip_prefix('.') else { continue };
        let is_listed = |list: &[&str]| list.iter().any(|entry| entry.eq_ignore_ascii_case(word));
        let length = length + 1;
        if is_listed(ABBREVIATIONS)
            || word.starts_with(|c: char| c.is_ascii_uppercase()) && is_listed(CAPITALISED_ABBREVIATIONS)
        {
            // The trailing context is the next two characters, or fewer at the end of the line.
            let mut rest = after.chars();
            let context = match (rest.next(), rest.next()) {
                (Some(first), second) => first.len_utf8() + second.map_or(1, char::len_utf8),
                (None, _) => 0,
            };
            longest.propose_with_context(length + context, length, TokenForm::Word);
        }
        if is_listed(TITLE_ABBREVIATIONS) {
            longest.propose(length, TokenForm::Word);
        }
        if is_listed(NUMBER_ABBREVIATIONS) {
            let number = after.strip_prefix(|c| is_space(c) || is_line_break(c)).unwrap_or(after);
            if is_digit(first_char(number)) {
                longest.propose_with_context(text.len() - number.len() + 1, length, TokenForm::Word);
            }
        }
    }
}

/// The length of single letters with a full stop after each: `U.S.`.
fn acronym_length(text: &str) -> usize {
    let pairs = text.as_bytes().chunks_exact(2);
    2 * pairs.take_while(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b'.').count()
}

/// The length of the word or tag that starts a sentence, with the white space around it.
fn sentence_start_length(text: &str, declarations: &mut CachedRunEnd) -> Option<usize> {
    let is_white_space = |c| is_space(c) || is_line_break(c);
    let next = text.trim_start_matches(is_white_space);
    if next.len() == text.len() {
        return None;
    }
    let length = sgml_length(next, declarations).or_else(|| {
        let word = &next[..run_length(next, |c| c.is_ascii_alphabetic() || c == '.')];
        let is_starter = word.starts_with(|c: char| c.is_ascii_uppercase())
            && SENTENCE_STARTERS.iter().any(|entry| entry.eq_ignore_ascii_case(word));
        is_starter.then_some(word.len())
    })?;
    let after = first_char(&next[length..]);
    is_white_space(after).then(|| text.len() - next.len() + length + after.len_utf8())
}

/// The length of parts with hyphens or underscores between them (rule `THING`).
fn hyphenated_length(text: &str) -> usize {
    let mut length = hyphenated_part_length(text);
    while length > 0 {
        let rest = &text[length..];
        let Some(next) = rest.strip_prefix(['-', '_', '\u{58a}', '\u{2010}', '\u{2011}']) else { break };
        let more = hyphenated_part_length(next);
        if more == 0 {
            break;
        }
        length = text.len() - next.len() + more;
    }
    length
}

/// The length of letters and digits, maybe after an elided article: `l'eau`.
fn hyphenated_part_length(text: &str) -> usize {
    let belongs = |c| is_base_letter(c) || is_digit(c);
    let article = text.strip_prefix(['d', 'D', 'o', 'O', 'l', 'L']);
    if let Some(rest) = article
        && let Some(apostrophe) = any_apostrophe_length(rest)
    {
        let noun = &rest[apostrophe..];
        let length = run_length(noun, belongs);
        if length > first_char(noun).len_utf8() {
            return text.len() - noun.len() + length;
        }
    }
    run_length(text, belongs)
}

/// The length of letters, digits, full stops and commas, followed by hyphens with letters, digits
/// or acronyms: `U.S.-based` (rule `HTHING`). `head` caches the end of the part before the first
/// hyphen.
fn hyphenated_compound_length(text: &str, head: &mut CachedRunEnd) -> usize {
    let belongs = |c: char| c.is_ascii_alphanumeric() || c == SOFT_HYPHEN;
    if text.starts_with(SOFT_HYPHEN) {
        return 0;
    }
    let mut length = head.length(text, |c| belongs(c) || matches!(c, '.' | ','));
    let mut matched = 0;
    while length > 0
        && let Some(next) = text[length..].strip_prefix('-')
    {
        let acronym = Some(acronym_length(next)).filter(|&length| length > 2);
        let more = acronym.unwrap_or_else(|| run_length(next, belongs));
        if more == 0 {
            break;
        }
        length += 1 + more;
        matched = length;
    }
    matched
}

/// The length of two or three words with slashes between them: `and/or` (rule `THING3`).
fn slashed_length(text: &str) -> usize {
    let alternative = |text: &str| {
        let mut length = run_length(text, |c| c.is_ascii_alphanumeric());
        for _ in 0..2 {
            match text[length..].strip_prefix('-').map(|next| run_length(next, |c| c.is_ascii_alphabetic())) {
                Some(more) if length > 0 && more > 0 => length += 1 + more,
                _ => break,
            }
        }
        length
    };
    let mut length = alternative(text);
    let mut matched = 0;
    for _ in 0..2 {
        let rest = &text[length..];
        let Some(next) = rest.strip_prefix("\\/").or_else(|| rest.strip_prefix('/')) else { break };
        let more = alternative(next);
        if length == 0 || more == 0 {
            break;
        }
        length = text.len() - next.len() + more;
        matched = length;
    }
    matched
}

/// The length of capitals with `&` or `+` between them: `AT&T` (rule `THINGA`).
fn joined_capitals_length(text: &str) -> usize {
    let capitals = |text: &str| run_length(text, |c| c.is_ascii_uppercase());
    let mut length = capitals(text);
    let mut matched = 0;
    while length > 0
        && let Some(separator) = prefix_length(&text[length..], &["&amp;", "&", "+"])
    {
        let more = capitals(&text[length + separator..]);
        if more == 0 {
            break;
        }
        length += separator + more;
        matched = length;
    }
    matched
}

/// The length of letters around an apostrophe that does not begin a clitic: `O'Brien`, `o'clock`,
/// `ma'am` (rule `APOWORD`).
fn word_with_apostrophe_length(text: &str) -> usize {
    let before = run_length(text, is_base_letter);
    let Some(apostrophe) = any_apostrophe_length(&text[before..]) else { return 0 };
    let (word, after) = (&text[..before], &text[before + apostrophe..]);
    let letters = run_length(after, is_base_letter);
    let (start, next) = (first_char(word), first_char(after));
    let is_match = if word.len() == 1 {
        let is_elision =
            start.is_ascii_uppercase() && !matches!(start, 'I' | 'Y') || matches!(start, 'd' | 'l' | 'n' | 'o');
        is_elision && letters > next.len_utf8()
    } else {
        let is_vowel = |c: char| matches!(c.to_ascii_lowercase(), 'a' | 'e' | 'i' | 'o' | 'u');
        let ends_with_vowel = word.chars().next_back().is_some_and(|c| is_vowel(c) || matches!(c, 'y' | 'Y'));
        ends_with_vowel && before > last_char_length(word) && (is_vowel(next) || next.is_ascii_uppercase())
    };
    if is_match { before + apostrophe + letters } else { 0 }
}

fn last_char_length(word: &str) -> usize {
    word.chars().next_back().map_or(0, char::len_utf8)
}

/// Matches words that have no general pattern.
fn match_exceptions(text: &str, initial_letters: usize, longest: &mut LongestMatch) {
    if let Some(length) = prefix_length(text, APOSTROPHE_EXCEPTIONS).or_else(|| prefix_length(text, OTHER_EXCEPTIONS)) {
        longest.propose(length, if text[..length].contains('&') { TokenForm::Ampersand } else { TokenForm::Word });
    }
    let (word, after) = text.split_at(initial_letters);
    if let Some(apostrophe) = any_apostrophe_length(after) {
        let next = initial_letters + apostrophe;
        for (head, tail) in [("c", "mon"), ("o", "o")] {
            if word.eq_ignore_ascii_case(head) && starts_with_ignore_case(&text[next..], tail) {
                longest.propose(next + tail.len(), TokenForm::Word);
            }
        }
    }
    if let Some(length) = prefix_length(text, &["c#", "f#", "c++"]) {
        longest.propose(length, TokenForm::Word);
    }
    if let Some(apostrophe) = apostrophe_length(after) {
        let next = &after[apostrophe..];
        let is_word = |text: &str| word.eq_ignore_ascii_case(text);
        let end = initial_letters + apostrophe;
        if is_word("y") && is_base_letter(first_char(next)) {
            longest.propose_with_context(end + first_char(next).len_utf8(), end, TokenForm::Word);
        }
        if APOSTROPHE_ENDED.iter().any(|entry| is_word(entry)) {
            longest.propose(end, TokenForm::Word);
        }
        if let Some(length) = [("c", "est"), ("cap", "n")]
            .iter()
            .find(|(head, tail)| is_word(head) && starts_with_ignore_case(next, tail))
            .map(|(_, tail)| tail.len())
        {
            longest.propose(end + length, TokenForm::Word);
        }
    }
}

/// Matches all rules that begin with an apostrophe, which has `length` bytes.
pub(super) fn match_apostrophe_rules(text: &str, length: usize, longest: &mut LongestMatch) {
    let after = &text[length..];
    if let Some(&(word, first)) = SPLIT_WORDS.iter().find(|(word, _)| starts_with_ignore_case(text, word)) {
        longest.propose_with_context(word.len(), first, TokenForm::Word);
    }
    if let Some(clitic) = clitic_length(text) {
        let next = first_char(&text[clitic..]);
        if !next.is_ascii_alphabetic() {
            longest.propose_with_context(clitic + next.len_utf8(), clitic, TokenForm::Clitic);
        }
    }
    let year = after.as_bytes();
    if let [b'0'..=b'9', b'0'..=b'9', ..] = year
        && let next = first_char(&after[2..])
        && (is_space(next) || is_line_break(next))
    {
        longest.propose_with_context(length + 2 + next.len_utf8(), length + 2, TokenForm::Word);
    }
    if let [b'2'..=b'9', b'0', b's' | b'S', ..] = year {
        longest.propose(length + 3, TokenForm::Word);
    }
    if let Some(elision) = prefix_length(after, ELISIONS) {
        longest.propose(length + elision, TokenForm::Word);
    }
    if starts_with_ignore_case(after, "n")
        && let Some(closing) = apostrophe_length(&after[1..])
    {
        longest.propose(length + 1 + closing, TokenForm::Word);
    }
    // An opening quotation mark, unless a rule above has a match of the same length.
    let mut next = after.chars();
    if text.starts_with('\'')
        && let (Some(letter), Some(c)) = (next.next(), next.next())
        && letter.is_ascii_alphabetic()
        && !matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{a0}')
    {
        longest.propose_with_context(length + 1 + c.len_utf8(), length, TokenForm::Discarded);
    }
    if let Some(clitic) = clitic_length(text) {
        longest.propose(clitic, TokenForm::Clitic);
    }
}
