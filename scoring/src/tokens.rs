//! Penn Treebank tokens of captions, as the reference metrics see them: the Stanford tokeniser (CoreNLP 3.4.1) that
//! pycocoevalcap runs, with its lower-casing and its removal of punctuation.
//!
//! Covered: clitics (`ca n't`, `dog 's`), the joined words that are split (`can not`, `gon na`) and the apostrophes that
//! are not (`o'clock`), inner hyphens and slashes, numbers, usual abbreviations, brackets (`-lrb-`), typographic quotes
//! and dashes, currency signs, fractions.
//!
//! Not covered, where tokens may differ from the reference:
//! - URLs, e-mail addresses, XML tags, smileys, telephone numbers, `US$`;
//! - HTML entities but the five of XML and the no-break space;
//! - tokens that hold a no-break space there (`1 1/2`), which are several here; for metrics that split on any white
//!   space they are several there too;
//! - abbreviations other than those listed, and the reference's look at the next word, even in the next caption, to
//!   decide whether a full stop after a single letter ends a sentence: here it does at the end of the caption only;
//! - scripts whose vowel signs or joiners are not alphabetic in Unicode (Devanagari's virama, for one).

use std::borrow::Cow;

/// Words that keep their full stop, in lower case.
const ABBREVIATIONS: &[&str] = &[
    "adm", "al", "ala", "alex", "apr", "ariz", "assn", "aug", "ave", "blvd", "brig", "bros", "calif", "capt", "cf",
    "cie", "co", "col", "colo", "conn", "corp", "cos", "cpl", "ct", "dec", "dept", "det", "dr", "drs", "esq", "est",
    "etc", "ext", "feb", "fla", "fri", "ft", "ga", "gen", "gov", "hon", "inc", "ind", "intl", "jan", "jos", "jr",
    "jul", "jun", "kan", "ky", "lieut", "lt", "ltd", "maj", "mar", "mich", "minn", "mo", "mon", "mont", "mr", "mrs",
    "ms", "mt", "neb", "nev", "nov", "oct", "okla", "penn", "ph.d", "plc", "pres", "prof", "pvt", "rd", "rep", "rev",
    "sen", "sep", "sept", "sgt", "sq", "sr", "st", "ste", "tel", "tenn", "thu", "thurs", "tue", "tues", "univ", "va",
    "vs", "vt", "wed", "wis", "wm", "wyo",
];

/// Words that keep their full stop only when capitalised, because they are other words, too, or the reference says so.
const CAPITALISED: &[&str] = &["Ark", "Del", "Ill", "La", "Mass", "Miss", "Ore", "Pa", "Tex", "Wash"];

/// Words that keep their full stop only before a number.
const BEFORE_NUMBERS: &[&str] = &["fig", "no", "nos", "pp"];

/// Words that are two tokens, and the length of the first.
const SPLIT: &[(&str, usize)] = &[("cannot", 3), ("gimme", 3), ("gonna", 3), ("gotta", 3), ("lemme", 3), ("wanna", 3)];

/// What follows an apostrophe in a clitic. That of `n't` is found where its word is.
const CLITICS: &[&str] = &["d", "ll", "m", "re", "s", "ve"];

/// Words with an apostrophe in front, which is part of them.
const ELISIONS: &[&str] = &["cause", "em", "n", "till", "til"];

/// Words with an apostrophe inside that no rule of [`joined_by_apostrophe`] tells.
const APOSTROPHISED: &[&str] = &["c'mon", "ev'ry", "li'l", "nat'l", "nor'easter", "s'mores"];

/// Words that keep the apostrophe at their end.
const CLIPPED: &[&str] = &["dunkin", "ol", "somethin"];

/// The tokens of `caption`, in lower case and without punctuation.
///
/// ```
/// let tokens = dico_scoring::tokens::tokenise("The dog's owner can't see: it's a \"half-hidden\" ball.");
/// assert_eq!(tokens.join(" "), "the dog 's owner ca n't see it 's a half-hidden ball");
/// ```
pub fn tokenise(caption: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    Tokeniser::default().each(caption, |token| tokens.push(token.to_owned()));
    tokens
}

/// Splits captions into tokens; keeps its buffer between them.
#[derive(Debug, Default)]
pub struct Tokeniser {
    token: String,
}

impl Tokeniser {
    /// Calls `emit` with each token of `caption`: never empty, without white space, in lower case.
    pub fn each(&mut self, caption: &str, mut emit: impl FnMut(&str)) {
        let text = plain(caption);
        let mut scanner = Scanner { text: &text, at: 0 };
        while let Some(token) = scanner.next() {
            self.token.clear();
            if token.is_ascii() {
                self.token.push_str(token);
                self.token.make_ascii_lowercase();
            } else {
                self.token = token.to_lowercase();
            }
            emit(bracket(&self.token));
        }
    }
}

/// The reference's names of brackets; other tokens are themselves. Its list of punctuation to drop has these names in
/// upper case, which no token is in any more, so they stay.
fn bracket(token: &str) -> &str {
    match token {
        "(" => "-lrb-",
        ")" => "-rrb-",
        "[" => "-lsb-",
        "]" => "-rsb-",
        "{" => "-lcb-",
        "}" => "-rcb-",
        other => other,
    }
}

/// `caption` with typographic characters and entities as the reference rewrites them.
fn plain(caption: &str) -> Cow<'_, str> {
    let has_entity = caption.contains('&') && caption.contains(';');
    if caption.is_ascii() && !has_entity {
        return Cow::Borrowed(caption);
    }
    let mut text = String::with_capacity(caption.len() + 16);
    for c in caption.chars() {
        match c {
            '‘' | '’' => text.push('\''),
            '“' | '”' | '«' | '»' | '‹' | '›' => text.push('"'),
            '–' | '—' => text.push_str("--"),
            '…' => text.push_str("..."),
            '£' => text.push('#'),
            '€' => text.push('$'),
            '¢' => text.push_str(" cents "),
            '½' => text.push_str(" 1/2 "),
            '¼' => text.push_str(" 1/4 "),
            '¾' => text.push_str(" 3/4 "),
            // A soft hyphen joins; other invisible characters and all beyond the basic plane separate.
            '\u{ad}' => {}
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{10000}'.. => {
                text.push(' ')
            }
            other => text.push(other),
        }
    }
    if has_entity {
        // `&amp;` last, so that nothing is decoded twice.
        for (entity, character) in
            [("&nbsp;", " "), ("&quot;", "\""), ("&apos;", "'"), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")]
        {
            if text.contains(entity) {
                text = text.replace(entity, character);
            }
        }
    }
    Cow::Owned(text)
}

/// Whether `c` can be inside a word.
fn in_word(c: char) -> bool {
    // Combining accents are not alphanumeric, but parts of letters.
    c.is_alphanumeric() || matches!(c, '\u{300}'..='\u{36f}')
}

/// Whether `text` goes on with a character that can be inside a word.
fn goes_on(text: &str) -> bool {
    text.starts_with(in_word)
}

/// How many bytes of `text`, from its start, `belongs` accepts.
fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

fn is_one_of(word: &str, list: &[&str]) -> bool {
    list.iter().any(|entry| entry.eq_ignore_ascii_case(word))
}

/// The entry of `list` that `text` starts with as a whole word.
fn leading_word<'a>(text: &str, list: &[&'a str]) -> Option<&'a str> {
    let word = &text[..run(text, in_word)];
    list.iter().copied().find(|entry| entry.eq_ignore_ascii_case(word))
}

/// Whether the letters before and after an apostrophe are one word.
fn joined_by_apostrophe(before: &str, after: &str) -> bool {
    let after = &after[..run(after, char::is_alphabetic)];
    let mut initials = before.chars();
    let (Some(first), alone) = (initials.next(), initials.next().is_none()) else { return false };
    if alone && after.len() > 1 && (first.is_ascii_uppercase() && !"IY".contains(first) || "dlo".contains(first)) {
        return true; // O'Brien, d'art, o'clock
    }
    let vowel = |c: char| "aeiou".contains(c);
    let between_vowels = before.ends_with(|c: char| vowel(c) || "yAEIOUY".contains(c))
        && after.starts_with(|c: char| vowel(c) || c.is_ascii_uppercase());
    if !alone && between_vowels && before.chars().all(char::is_alphabetic) {
        return true; // ma'am, ne'er
    }
    APOSTROPHISED.iter().any(|entry| {
        entry
            .split_once('\'')
            .is_some_and(|(head, tail)| head.eq_ignore_ascii_case(before) && tail.eq_ignore_ascii_case(after))
    })
}

/// Walks over plain text, token by token.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// The next token that is not dropped.
    fn next(&mut self) -> Option<&'a str> {
        loop {
            let rest = &self.text[self.at..];
            let first = rest.chars().next()?;
            let after = &rest[first.len_utf8()..];
            let (length, kept) = match first {
                c if in_word(c) => (word(rest), true),
                c if c.is_whitespace() || c.is_control() => (c.len_utf8(), false),
                '\'' if after.starts_with('\'') => (run(rest, |c| c == '\''), false),
                '\'' => apostrophe(rest),
                '.' | ',' | ':' if after.starts_with(|c: char| c.is_ascii_digit()) => (1 + number(after), true),
                '-' | '+' if after.starts_with(|c: char| c.is_ascii_digit()) => (1 + word(after), true),
                '-' => (run(rest, |c| c == '-'), false),
                '!' | '?' => {
                    let length = run(rest, |c| matches!(c, '!' | '?'));
                    (length, length > 1)
                }
                '.' | ',' | ':' | ';' | '"' | '`' => (1, false),
                '_' | '*' => (run(rest, |c| c == first), true),
                '#' | '@' if after.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                    (1 + run(after, |c| c.is_ascii_alphanumeric() || c == '_'), true)
                }
                other => (other.len_utf8(), true),
            };
            self.at += length;
            if kept {
                return Some(&rest[..length]);
            }
        }
    }
}

/// The length of what the apostrophe at the start of `text` begins, and whether that is a token.
fn apostrophe(text: &str) -> (usize, bool) {
    let after = &text[1..];
    if let Some(clitic) = leading_word(after, CLITICS) {
        return (1 + clitic.len(), true);
    }
    if let Some(elision) = leading_word(after, ELISIONS) {
        // Rock 'n' roll.
        let closed = elision == "n" && after[1..].starts_with('\'');
        return (1 + elision.len() + usize::from(closed), true);
    }
    if leading_word(after, &["tis", "twas"]).is_some() {
        return (2, true);
    }
    let (year, next) = after.split_at(run(after, in_word));
    match year.as_bytes() {
        // '07, but not the inches of 5'10".
        [b'0'..=b'9', b'0'..=b'9'] if run(next, char::is_whitespace) > 0 || next.is_empty() => (1 + year.len(), true),
        [b'2'..=b'9', b'0', b's' | b'S'] => (1 + year.len(), true),
        _ => (1, false),
    }
}

/// The length of the digits at the start of `text`, with separators between them: `1,000.5`, `3:45`.
fn number(text: &str) -> usize {
    let digits = |text: &str| run(text, |c| c.is_ascii_digit());
    let mut length = digits(text);
    while text[length..].starts_with(['.', ',', ':']) && digits(&text[length + 1..]) > 0 {
        length += 1 + digits(&text[length + 1..]);
    }
    length
}

/// The length of the token at the start of `text`, which starts with a letter or digit.
fn word(text: &str) -> usize {
    let (length, compound) = body(text);
    let (word, after) = text.split_at(length);

    if let Some(after) = after.strip_prefix('\'') {
        if word.ends_with(['n', 'N']) && leading_word(after, &["t"]).is_some() {
            // The next token starts at the `n`, unless that is here.
            return if length > 1 { length - 1 } else { length + 2 };
        }
        if word.eq_ignore_ascii_case("y") && goes_on(after) || is_one_of(word, CLIPPED) && !goes_on(after) {
            return length + 1;
        }
        return length;
    }
    if let Some(&(_, first)) = SPLIT.iter().find(|(whole, _)| whole.eq_ignore_ascii_case(word)) {
        return first;
    }
    if let Some(after) = after.strip_prefix('.')
        && (!compound || word.contains('.'))
        && keeps_full_stop(word, after)
    {
        return length + 1;
    }
    length
}

/// The length of letters, digits and what joins them at the start of `text`, without clitics and final full stops; and
/// whether a hyphen or slash is among the joints.
fn body(text: &str) -> (usize, bool) {
    let mut length = number(text);
    let mut compound = false;
    // Where the letters and digits since the last joint start.
    let mut segment = 0;
    loop {
        length += run(&text[length..], in_word);
        let mut rest = text[length..].chars();
        let (joint, next) = (rest.next(), rest.next());
        let part = &text[segment..length];
        let joined = match (joint, next) {
            (Some('-' | '/'), Some(c)) if in_word(c) => {
                compound = true;
                true
            }
            // The dot of `U.S.-based`.
            (Some('.'), Some('-')) if is_acronym(&text[..length]) && goes_on(&text[length + 2..]) => {
                length += 1;
                compound = true;
                true
            }
            (Some('_'), Some(c)) => in_word(c),
            (Some('.' | '!' | '?'), Some(c)) => !compound && c.is_alphabetic() && part.starts_with(char::is_alphabetic),
            (Some('&'), Some(c)) if c.is_ascii_uppercase() && part.bytes().all(|b| b.is_ascii_uppercase()) => {
                let second = &text[length + 1..];
                return (length + 1 + run(second, |c| c.is_ascii_uppercase()), compound);
            }
            (Some('\''), Some(_)) => {
                let after = &text[length + 1..];
                let negation = part.ends_with(['n', 'N']) && leading_word(after, &["t"]).is_some();
                !negation && leading_word(after, CLITICS).is_none() && joined_by_apostrophe(part, after)
            }
            _ => false,
        };
        if !joined {
            return (length, compound);
        }
        length += 1;
        segment = length;
    }
}

/// Whether `word` is single letters with full stops between them, at least two: `U.S`.
fn is_acronym(word: &str) -> bool {
    word.contains('.')
        && word.split('.').all(|part| part.len() == 1 && part.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// Whether the full stop between `word` and `after` belongs to the word.
fn keeps_full_stop(word: &str, after: &str) -> bool {
    if goes_on(after) || after.starts_with(['.', '!', '?']) {
        return false;
    }
    if after.starts_with([',', ';', ':'])
        || is_acronym(word)
        || is_one_of(word, ABBREVIATIONS)
        || CAPITALISED.contains(&word)
    {
        return true;
    }
    let next = after.trim_start();
    if is_one_of(word, BEFORE_NUMBERS) {
        return next.starts_with(|c: char| c.is_ascii_digit());
    }
    word.len() == 1 && word.starts_with(|c: char| c.is_ascii_alphabetic()) && !next.is_empty()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Captions of our own, and the tokens that pycocoevalcap's `PTBTokenizer` printed for them.
    const GOLDEN: &[(&str, &str)] = &[
        (
            "Two dogs race along the beach, one of them carrying a stick.",
            "two dogs race along the beach one of them carrying a stick",
        ),
        ("A man can't see; he's \"happy\", isn't he?", "a man ca n't see he 's happy is n't he"),
        ("The dogs' toys and the dog's bowl.", "the dogs toys and the dog 's bowl"),
        ("They cannot swim but they're gonna jump, y'all!", "they can not swim but they 're gon na jump y' all"),
        ("It's 5 o'clock somewhere, ma'am.", "it 's 5 o'clock somewhere ma'am"),
        ("'Tis a black-and-white t-shirt from the '90s", "'t is a black-and-white t-shirt from the '90s"),
        (
            "Mr. Smith and Dr. O'Brien walk in the U.S. with a no. 7 shirt.",
            "mr. smith and dr. o'brien walk in the u.s. with a no. 7 shirt",
        ),
        (
            "A train leaves at 3:45 p.m. with 1,000 people, or so.",
            "a train leaves at 3:45 p.m. with 1,000 people or so",
        ),
        ("A sign costs $5.50 or £5; 50% off!!", "a sign costs $ 5.50 or # 5 50 % off !!"),
        ("A (big) [red] {blue} box", "a -lrb- big -rrb- -lsb- red -rsb- -lcb- blue -rcb- box"),
        ("He said ‘hello’ – the “boss” didn’t… reply", "he said hello the boss did n't reply"),
        ("rock 'n' roll on AT&T and R&amp;B tapes #1", "rock 'n' roll on at&t and r&b tapes # 1"),
        ("He/she wouldn't've eaten 1/2 of it, or ½ of it.", "he/she would n't 've eaten 1/2 of it or 1/2 of it"),
        ("café naïve 日本 🐶dog ♥", "café naïve 日本 dog ♥"),
        ("dog,cat dog.Cat dog;cat dog:cat dog--cat", "dog cat dog.cat dog cat dog cat dog cat"),
        ("It''s a '57 Chevy, '57, 5'10\" and '90s.", "it s a '57 chevy 57 5 10 and '90s"),
        ("-dog cat- -5 *** a_b #tag", "dog cat -5 *** a_b #tag"),
    ];

    #[test]
    fn tokens_are_those_of_the_reference() {
        for (caption, tokens) in GOLDEN {
            assert_eq!(tokenise(caption).join(" "), *tokens, "{caption}");
        }
    }

    proptest! {
        #[test]
        fn tokens_are_lower_case_and_without_space(caption in "(\\PC|[a-zN'.,&;#0-9 -]){0,60}") {
            for token in tokenise(&caption) {
                prop_assert!(!token.is_empty() && !token.contains(char::is_whitespace), "{token:?}");
                prop_assert_eq!(token.to_lowercase(), token.as_str());
            }
        }

        #[test]
        fn white_space_at_the_ends_does_not_matter(caption in "[a-zA-Z'.,!0-9 -]{0,60}") {
            prop_assert_eq!(tokenise(&format!(" {caption}\n")), tokenise(&caption));
        }

        #[test]
        fn words_stay_whole(words in proptest::collection::vec("[a-z]{1,8}", 0..12)) {
            prop_assume!(words.iter().all(|word| SPLIT.iter().all(|(whole, _)| whole != word)));
            prop_assert_eq!(tokenise(&words.join(" ")), words);
        }
    }
}
