//! Words: with hyphens, slashes and ampersands, before clitics, with apostrophes and full stops that belong to them.

use super::addresses::tag;
use super::characters::{SOFT_HYPHEN, is_digit, is_letter, is_line_end, is_space, is_whole_letter};
use super::longest::{LongestMatch, TokenForm, first, one_of, run, run_up_to, starts_with};
use super::lookahead::{Lookahead, RunEnd};

/// Words that keep their full stop.
const ABBREVIATIONS: &[&str] = &[
    "al", "ala", "apr", "ariz", "assn", "aug", "bancorp", "bhd", "bldg", "blvd", "bros", "calif", "co", "colo", "conn",
    "corp", "cos", "ct", "dak", "dec", "ed.d", "esq", "est", "etc", "ext", "feb", "fla", "fri", "ga", "inc", "ind",
    "intl", "jan", "jr", "jul", "jun", "kan", "kans", "ky", "ltd", "mar", "md", "mich", "minn", "mo", "mon", "mont",
    "neb", "nev", "nov", "oct", "okla", "penn", "ph.d", "plc", "ppte", "pptes", "ppty", "pptys", "pte", "ptes", "pty",
    "ptys", "rd", "rt", "sep", "sept", "seq", "sq", "sr", "sys", "tel", "tenn", "thu", "thurs", "tue", "tues", "univ",
    "va", "vt", "wed", "wis", "wisc", "wyo",
];

/// Words that keep their full stop only when capitalised, because most are other words, too.
const CAPITALISED: &[&str] = &["ark", "az", "del", "ill", "la", "mass", "miss", "ore", "pa", "tex", "wash"];

/// Words that keep their full stop and stand before a name; no word with a full stop inside is looked for.
const TITLES: &[&str] = &[
    "adj", "adm", "adv", "alex", "assoc", "asst", "atty", "attys", "ave", "brig", "capt", "cf", "cie", "cmdr", "col",
    "comdr", "cpl", "dept", "det", "dr", "drs", "elec", "ens", "ft", "gen", "gov", "govs", "hon", "insp", "invt",
    "jos", "lieut", "lt", "maj", "messrs", "mfg", "mlle", "mme", "mr", "mrs", "ms", "msgr", "mt", "mtg", "natl", "pfc",
    "ph", "pres", "prof", "profs", "pvt", "rep", "reps", "rev", "sen", "sens", "sfc", "sgt", "spc", "st", "ste",
    "supt", "supts", "treas", "vs", "wm",
];

/// Words that keep their full stop only before a number.
const BEFORE_NUMBERS: &[&str] = &["art", "bldg", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"];

/// Words that start a sentence when capitalised, so that a full stop before them ends one.
const OPENERS: &[&str] = &[
    "a",
    "about",
    "according",
    "additionally",
    "after",
    "an",
    "as",
    "at",
    "but",
    "earlier",
    "he",
    "her",
    "here",
    "however",
    "if",
    "in",
    "it",
    "last",
    "many",
    "more",
    "mr.",
    "ms.",
    "now",
    "once",
    "one",
    "other",
    "our",
    "she",
    "since",
    "so",
    "some",
    "such",
    "that",
    "the",
    "their",
    "then",
    "there",
    "these",
    "they",
    "this",
    "we",
    "what",
    "when",
    "while",
    "yet",
    "you",
];

/// Words that are two tokens, and the length of the first.
const SPLIT: &[(&str, usize)] =
    &[("cannot", 3), ("gimme", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("wanna", 3), ("'tis", 2), ("'twas", 2)];

/// How names of files end.
const EXTENSIONS: &[&str] = &[
    "bat", "bmp", "c", "cgi", "class", "cpp", "dll", "doc", "docx", "exe", "gif", "gz", "h", "htm", "html", "jar",
    "java", "jpeg", "jpg", "mov", "mp3", "pdf", "php", "pl", "png", "ppt", "ps", "py", "sql", "tar", "txt", "wav", "x",
    "xml", "zip",
];

/// What follows an apostrophe in a clitic. That of `n't` is found where its word is.
const CLITICS: &[&str] = &["ll", "re", "ve", "d", "m", "s"];

/// Words with an apostrophe in front, which is part of them.
const ELISIONS: &[&str] = &["cause", "em", "n", "till", "til"];

/// Beginnings with a plain apostrophe inside that no rule tells.
const APOSTROPHISED: &[&str] = &["c'mon", "cont'd.", "e'er", "ev'ry", "li'l", "nat'l", "nor'easter", "s'mores"];

/// Words that keep the apostrophe at their end.
const CLIPPED: &[&str] = &["d", "dunkin", "j", "l", "ol", "somethin"];

/// Odd ones.
const WHOLE: &[&str] = &["anti-", "pro-", "s&ls", "s&amp;ls", "s&p-500", "s&amp;p-500"];

/// The first part of the word at the start of `text` if it is plain and two tokens.
pub(super) fn split(word: &str) -> Option<usize> {
    SPLIT.iter().find(|(whole, _)| whole.eq_ignore_ascii_case(word)).map(|&(_, first)| first)
}

/// Offers what starts with the letter, digit or letter's entity at the start of `text`.
pub(super) fn offer(text: &str, lookahead: &mut Lookahead, longest: &mut LongestMatch) {
    let initial = run_up_to(text, text.len(), |byte| byte.is_ascii_alphabetic());
    if let Some(first) = split(&text[..initial]) {
        longest.offer_within(initial, first, TokenForm::Word);
    }
    let word = plain(text);
    offer_before_clitic(text, word, longest);
    longest.offer(word, TokenForm::Word);
    offer_abbreviation(text, initial, &mut lookahead.declaration, longest);
    offer_with_full_stop(text, word, TokenForm::Word, longest);
    offer_file(text, lookahead, longest);
    longest.offer(with_apostrophe(text), TokenForm::Word);
    for length in [compound(text), listed(text, &mut lookahead.list)] {
        longest.offer(length, TokenForm::Word);
        offer_with_full_stop(text, length, TokenForm::Word, longest);
    }
    offer_negation(text, longest);
    longest.offer(alternatives(text), TokenForm::Word);
    let length = joined_capitals(text);
    longest.offer(length, TokenForm::Ampersand);
    offer_with_full_stop(text, length, TokenForm::Ampersand, longest);
    offer_odd(text, initial, longest);
}

/// Offers the token of `length` with a full stop that is not the end of a sentence, as more of it follows.
fn offer_with_full_stop(text: &str, length: usize, form: TokenForm, longest: &mut LongestMatch) {
    if length > 0
        && let Some(after) = text[length..].strip_prefix('.')
        && let c @ (',' | ';' | ':' | '\u{3001}') = first(after)
    {
        longest.offer_within(length + 1 + c.len_utf8(), length + 1, form);
    }
}

/// The length of a letter that is written as an entity, `&eacute;`.
pub(super) fn letter_entity(text: &str) -> Option<usize> {
    let rest = text.strip_prefix('&')?;
    let accent = rest.strip_prefix(|c: char| "aeiouAEIOU".contains(c))?;
    one_of(accent, &["acute;", "grave;", "uml;"]).map(|length| 2 + length)
}

/// Letters and digits, a letter first.
fn simple(text: &str) -> usize {
    if letters(text, |_| false) > 0 { letters(text, is_digit) } else { 0 }
}

/// Letters, with entities for some, and what else `belongs`.
pub(super) fn letters(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    let mut length = 0;
    loop {
        length += run(&text[length..], |c| is_letter(c) || belongs(c));
        match letter_entity(&text[length..]) {
            Some(more) => length += more,
            None => return length,
        }
    }
}

/// Offers the name of a file before white space or the end of a sentence.
fn offer_file(text: &str, lookahead: &mut Lookahead, longest: &mut LongestMatch) {
    let extensions = &text[letters(text, is_digit)..];
    let file = *lookahead.file.get(extensions, || last_file(extensions));
    if let Some(File { end, context, .. }) = file.filter(|file| file.stop <= extensions.len()) {
        let length = text.len() - end;
        longest.offer_within(length + context, length, TokenForm::Word);
    }
}

/// The end of a file's name. Positions are those of [`super::lookahead::Cached`].
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    /// The position of the full stop before the extension.
    stop: usize,
    end: usize,
    /// How many bytes what follows has.
    context: usize,
}

/// The length of the parts at the start of `text`, each after a full stop, and the last that may be
/// a file's extension.
fn last_file(text: &str) -> (usize, Option<File>) {
    let (mut length, mut last) = (0, None);
    while let Some(rest) = text[length..].strip_prefix('.') {
        let more = letters(rest, is_digit);
        if more == 0 {
            break;
        }
        let (extension, after) = rest.split_at(more);
        let next = first(after);
        let ends = is_space(next) || is_line_end(next) || matches!(next, '.' | '?' | '!' | ',');
        if ends && EXTENSIONS.iter().any(|entry| entry.eq_ignore_ascii_case(extension)) {
            last = Some(File { stop: text.len() - length, end: after.len(), context: next.len_utf8() });
        }
        length += 1 + more;
    }
    (length, last)
}

/// Letters and digits, with single points, exclamation and question marks between them.
fn plain(text: &str) -> usize {
    let mut length = simple(text);
    while length > 0 && text[length..].starts_with(['.', '!', '?']) {
        let more = simple(&text[length + 1..]);
        if more == 0 {
            break;
        }
        length += 1 + more;
    }
    length
}

/// The length of an apostrophe in any of its forms.
pub(super) fn apostrophe(text: &str) -> Option<usize> {
    match first(text) {
        c @ ('\'' | '\u{92}' | '’') => Some(c.len_utf8()),
        '&' => one_of(text, &["&apos;"]),
        _ => None,
    }
}

/// The length of an apostrophe or of what is written for one inside a word.
pub(super) fn any_apostrophe(text: &str) -> Option<usize> {
    apostrophe(text).or_else(|| match first(text) {
        c @ ('`' | '\u{91}' | '‘' | '‛') => Some(c.len_utf8()),
        _ => None,
    })
}

/// The length of a clitic with its apostrophe.
pub(super) fn clitic(text: &str) -> Option<usize> {
    let apostrophe = apostrophe(text)?;
    one_of(&text[apostrophe..], CLITICS).map(|length| apostrophe + length)
}

/// The length of `'t`.
fn negation(text: &str) -> Option<usize> {
    let apostrophe = any_apostrophe(text)?;
    starts_with(&text[apostrophe..], "t").then_some(apostrophe + 1)
}

/// Offers the word of length `word`, or what is before its `n`, if a clitic follows.
fn offer_before_clitic(text: &str, word: usize, longest: &mut LongestMatch) {
    let (word, after) = text.split_at(word);
    let length = word.len();
    if length == 0 {
        return;
    }
    if let Some(clitic) = clitic(after) {
        longest.offer_within(length + clitic, length, TokenForm::Word);
    }
    if word.len() > 1
        && let Some(before) = word.strip_suffix(['n', 'N'])
        && before.ends_with(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'n' | 'N'))
        && before.chars().all(|c| c.is_ascii_alphabetic() || c == SOFT_HYPHEN)
        && let Some(negation) = negation(after)
    {
        longest.offer_within(length + negation, length - 1, TokenForm::Word);
    }
}

/// Offers `n't`.
fn offer_negation(text: &str, longest: &mut LongestMatch) {
    if text.starts_with(['n', 'N'])
        && let Some(negation) = negation(&text[1..])
    {
        let length = 1 + negation;
        let next = first(&text[length..]);
        let context = if next.is_ascii_alphabetic() { 0 } else { next.len_utf8() };
        longest.offer_within(length + context, length, TokenForm::Clitic);
    }
}

/// Offers the abbreviation that starts with `initial` letters, and single letters with full stops after each.
fn offer_abbreviation(text: &str, initial: usize, declarations: &mut RunEnd, longest: &mut LongestMatch) {
    let acronym = acronym(text);
    longest.offer(acronym, TokenForm::Word);
    if acronym > 0
        && let Some(reach) = opener(&text[acronym..], declarations)
    {
        // The last full stop is a token of its own, and the acronym's, too, if it has others.
        longest.offer_within(acronym + reach, if acronym > 2 { acronym } else { 1 }, TokenForm::Word);
    }
    let dotted = one_of(text, &["ed.d", "ph.d"]).unwrap_or(initial);
    for length in [initial, dotted] {
        let (word, after) = text.split_at(length);
        let Some(after) = after.strip_prefix('.') else { continue };
        let is_in = |list: &[&str]| list.iter().any(|entry| entry.eq_ignore_ascii_case(word));
        let length = length + 1;
        if is_in(ABBREVIATIONS) || word.starts_with(|c: char| c.is_ascii_uppercase()) && is_in(CAPITALISED) {
            // With the next two characters, where the line has as many.
            let mut rest = after.chars();
            let context = match (rest.next(), rest.next()) {
                (Some(one), two) => one.len_utf8() + two.map_or(1, char::len_utf8),
                (None, _) => 0,
            };
            longest.offer_within(length + context, length, TokenForm::Word);
        }
        if is_in(TITLES) {
            longest.offer(length, TokenForm::Word);
        }
        if is_in(BEFORE_NUMBERS) {
            let number = after.strip_prefix(|c| is_space(c) || is_line_end(c)).unwrap_or(after);
            if is_digit(first(number)) {
                longest.offer_within(text.len() - number.len() + 1, length, TokenForm::Word);
            }
        }
    }
}

/// Single letters with a full stop after each: `U.S.`.
fn acronym(text: &str) -> usize {
    let pairs = text.as_bytes().chunks_exact(2);
    2 * pairs.take_while(|pair| pair[0].is_ascii_alphabetic() && pair[1] == b'.').count()
}

/// How far the word or tag that starts a sentence reaches, if that is next, with the white space around it.
fn opener(text: &str, declarations: &mut RunEnd) -> Option<usize> {
    let white = |c| is_space(c) || is_line_end(c);
    let next = text.trim_start_matches(white);
    if next.len() == text.len() {
        return None;
    }
    let length = tag(next, declarations).or_else(|| {
        let word = &next[..run(next, |c| c.is_ascii_alphabetic() || c == '.')];
        let opens = word.starts_with(|c: char| c.is_ascii_uppercase())
            && OPENERS.iter().any(|entry| entry.eq_ignore_ascii_case(word));
        opens.then_some(word.len())
    })?;
    let after = first(&next[length..]);
    white(after).then(|| text.len() - next.len() + length + after.len_utf8())
}

/// Parts of letters and digits with hyphens or underscores between them.
fn compound(text: &str) -> usize {
    let mut length = part(text);
    while length > 0 {
        let rest = &text[length..];
        let Some(next) = rest.strip_prefix(['-', '_', '\u{58a}', '\u{2010}', '\u{2011}']) else { break };
        let more = part(next);
        if more == 0 {
            break;
        }
        length = text.len() - next.len() + more;
    }
    length
}

/// Letters and digits, maybe after an elided article: `l'eau`.
fn part(text: &str) -> usize {
    let belongs = |c| is_whole_letter(c) || is_digit(c);
    let article = text.strip_prefix(['d', 'D', 'o', 'O', 'l', 'L']);
    if let Some(rest) = article
        && let Some(apostrophe) = any_apostrophe(rest)
    {
        let noun = &rest[apostrophe..];
        let length = run(noun, belongs);
        if length > first(noun).len_utf8() {
            return text.len() - noun.len() + length;
        }
    }
    run(text, belongs)
}

/// Letters, digits, points and commas, then hyphens before letters, digits or acronyms: `U.S.-based`.
fn listed(text: &str, ends: &mut RunEnd) -> usize {
    let belongs = |c: char| c.is_ascii_alphanumeric() || c == SOFT_HYPHEN;
    if text.starts_with(SOFT_HYPHEN) {
        return 0;
    }
    let mut length = ends.length(text, |c| belongs(c) || matches!(c, '.' | ','));
    let mut whole = 0;
    while length > 0
        && let Some(next) = text[length..].strip_prefix('-')
    {
        let acronym = Some(acronym(next)).filter(|&length| length > 2);
        let more = acronym.unwrap_or_else(|| run(next, belongs));
        if more == 0 {
            break;
        }
        length += 1 + more;
        whole = length;
    }
    whole
}

/// Two or three words with slashes between them: `and/or`.
fn alternatives(text: &str) -> usize {
    let alternative = |text: &str| {
        let mut length = run(text, |c| c.is_ascii_alphanumeric());
        for _ in 0..2 {
            match text[length..].strip_prefix('-').map(|next| run(next, |c| c.is_ascii_alphabetic())) {
                Some(more) if length > 0 && more > 0 => length += 1 + more,
                _ => break,
            }
        }
        length
    };
    let mut length = alternative(text);
    let mut whole = 0;
    for _ in 0..2 {
        let rest = &text[length..];
        let Some(next) = rest.strip_prefix("\\/").or_else(|| rest.strip_prefix('/')) else { break };
        let more = alternative(next);
        if length == 0 || more == 0 {
            break;
        }
        length = text.len() - next.len() + more;
        whole = length;
    }
    whole
}

/// Capitals with `&` or `+` between them: `AT&T`.
fn joined_capitals(text: &str) -> usize {
    let capitals = |text: &str| run(text, |c| c.is_ascii_uppercase());
    let mut length = capitals(text);
    let mut whole = 0;
    while length > 0
        && let Some(joint) = one_of(&text[length..], &["&amp;", "&", "+"])
    {
        let more = capitals(&text[length + joint..]);
        if more == 0 {
            break;
        }
        length += joint + more;
        whole = length;
    }
    whole
}

/// Letters around an apostrophe that is no clitic's: `O'Brien`, `o'clock`, `ma'am`.
fn with_apostrophe(text: &str) -> usize {
    let before = run(text, is_whole_letter);
    let Some(apostrophe) = any_apostrophe(&text[before..]) else { return 0 };
    let (word, after) = (&text[..before], &text[before + apostrophe..]);
    let letters = run(after, is_whole_letter);
    let (start, next) = (first(word), first(after));
    let whole = if word.len() == 1 {
        let name = start.is_ascii_uppercase() && !matches!(start, 'I' | 'Y') || matches!(start, 'd' | 'l' | 'n' | 'o');
        name && letters > next.len_utf8()
    } else {
        let vowel = |c: char| matches!(c.to_ascii_lowercase(), 'a' | 'e' | 'i' | 'o' | 'u');
        let last = word.chars().next_back().is_some_and(|c| vowel(c) || matches!(c, 'y' | 'Y'));
        last && before > last_length(word) && (vowel(next) || next.is_ascii_uppercase())
    };
    if whole { before + apostrophe + letters } else { 0 }
}

fn last_length(word: &str) -> usize {
    word.chars().next_back().map_or(0, char::len_utf8)
}

/// Offers what is in no pattern.
fn offer_odd(text: &str, initial: usize, longest: &mut LongestMatch) {
    if let Some(length) = one_of(text, APOSTROPHISED).or_else(|| one_of(text, WHOLE)) {
        longest.offer(length, if text[..length].contains('&') { TokenForm::Ampersand } else { TokenForm::Word });
    }
    let (word, after) = text.split_at(initial);
    if let Some(apostrophe) = any_apostrophe(after) {
        let next = initial + apostrophe;
        for (head, tail) in [("c", "mon"), ("o", "o")] {
            if word.eq_ignore_ascii_case(head) && starts_with(&text[next..], tail) {
                longest.offer(next + tail.len(), TokenForm::Word);
            }
        }
    }
    if let Some(length) = one_of(text, &["c#", "f#", "c++"]) {
        longest.offer(length, TokenForm::Word);
    }
    if let Some(apostrophe) = apostrophe(after) {
        let next = &after[apostrophe..];
        let is = |whole: &str| word.eq_ignore_ascii_case(whole);
        let with_apostrophe = initial + apostrophe;
        if is("y") && is_whole_letter(first(next)) {
            longest.offer_within(with_apostrophe + first(next).len_utf8(), with_apostrophe, TokenForm::Word);
        }
        if CLIPPED.iter().any(|entry| is(entry)) {
            longest.offer(with_apostrophe, TokenForm::Word);
        }
        if let Some(length) = [("c", "est"), ("cap", "n")]
            .iter()
            .find(|(head, tail)| is(head) && starts_with(next, tail))
            .map(|(_, tail)| tail.len())
        {
            longest.offer(with_apostrophe + length, TokenForm::Word);
        }
    }
}

/// Offers what starts with the apostrophe, of `length`, at the start of `text`.
pub(super) fn offer_apostrophe(text: &str, length: usize, longest: &mut LongestMatch) {
    let after = &text[length..];
    if let Some(&(whole, first)) = SPLIT.iter().find(|(whole, _)| starts_with(text, whole)) {
        longest.offer_within(whole.len(), first, TokenForm::Word);
    }
    if let Some(clitic) = clitic(text) {
        let next = first(&text[clitic..]);
        if !next.is_ascii_alphabetic() {
            longest.offer_within(clitic + next.len_utf8(), clitic, TokenForm::Clitic);
        }
    }
    let year = after.as_bytes();
    if let [b'0'..=b'9', b'0'..=b'9', ..] = year
        && let next = first(&after[2..])
        && (is_space(next) || is_line_end(next))
    {
        longest.offer_within(length + 2 + next.len_utf8(), length + 2, TokenForm::Word);
    }
    if let [b'2'..=b'9', b'0', b's' | b'S', ..] = year {
        longest.offer(length + 3, TokenForm::Word);
    }
    if let Some(elision) = one_of(after, ELISIONS) {
        longest.offer(length + elision, TokenForm::Word);
    }
    if starts_with(after, "n")
        && let Some(closing) = apostrophe(&after[1..])
    {
        longest.offer(length + 1 + closing, TokenForm::Word);
    }
    // A quotation, unless something above is as long.
    let mut next = after.chars();
    if text.starts_with('\'')
        && let (Some(letter), Some(c)) = (next.next(), next.next())
        && letter.is_ascii_alphabetic()
        && !matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{a0}')
    {
        longest.offer_within(length + 1 + c.len_utf8(), length, TokenForm::Dropped);
    }
    if let Some(clitic) = clitic(text) {
        longest.offer(clitic, TokenForm::Clitic);
    }
}
