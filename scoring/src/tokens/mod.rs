//! Penn Treebank tokens of captions, as the reference metrics see them: the Stanford tokeniser (CoreNLP 3.4.1) that
//! pycocoevalcap runs, with its lower-casing and its removal of punctuation.

mod addresses;
mod characters;
mod longest;
mod marks;
mod numbers;
mod words;

use characters::{SOFT_HYPHEN, is_digit, is_letter};
use longest::{Form, Longest, first};

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
    /// Calls `emit` with each token of `caption`: never empty, in lower case.
    pub fn each(&mut self, caption: &str, mut emit: impl FnMut(&str)) {
        let mut rest = caption;
        while !rest.is_empty() {
            let (length, form) = next(rest);
            let (token, after) = rest.split_at(length);
            rest = after;
            if form != Form::Dropped {
                self.write(token, form);
                if !self.token.is_empty() {
                    emit(&self.token);
                }
            }
        }
    }

    /// Puts the token that `text` becomes into the buffer.
    fn write(&mut self, text: &str, form: Form) {
        self.token.clear();
        match form {
            Form::Dropped => {}
            Form::As(other) => self.token.push_str(other),
            Form::Word if text.is_ascii() => {
                self.token.push_str(text);
                self.token.make_ascii_lowercase();
            }
            // Its lower case depends on its place in the word.
            _ if text.contains('Σ') => self.token.extend(text.to_lowercase().chars().filter(|&c| c != SOFT_HYPHEN)),
            Form::Word => self.extend(text, None),
            Form::Clitic => {
                let (before, after) = text.split_at(text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(0));
                self.extend(before, None);
                self.token.push('\'');
                self.extend(after.trim_start_matches(|c: char| !c.is_ascii_alphabetic()), None);
            }
            Form::Ampersand => {
                let mut rest = text;
                while let Some(at) = rest.find('&') {
                    self.extend(&rest[..=at], None);
                    rest = &rest[at + 1..];
                    rest = if longest::starts_with(rest, "amp;") { &rest[4..] } else { rest };
                }
                self.extend(rest, None);
            }
            Form::Spaced => self.extend(text, Some(false)),
            Form::Bracketed => self.extend(text, Some(true)),
        }
    }

    fn extend(&mut self, text: &str, special: Option<bool>) {
        for c in text.chars() {
            match (c, special) {
                (' ', Some(_)) => self.token.push('\u{a0}'),
                ('(', Some(true)) => self.token.push_str("-lrb-"),
                (')', Some(true)) => self.token.push_str("-rrb-"),
                (SOFT_HYPHEN, _) => {}
                _ => self.token.extend(c.to_lowercase()),
            }
        }
    }
}

/// The length of what comes next in `text`, which is not empty, and what becomes of it.
fn next(text: &str) -> (usize, Form) {
    let initial = first(text);
    if initial == ' ' {
        return (1, Form::Dropped);
    }
    if let Some(length) = ordinary(text) {
        return (length, Form::Word);
    }
    let mut longest = Longest::at_least(initial.len_utf8());
    let apostrophe = words::apostrophe(text);
    if is_letter(initial) || is_digit(initial) || words::letter_entity(text).is_some() {
        words::offer(text, &mut longest);
    }
    if is_digit(initial) || matches!(initial, '+' | '-' | '.' | ',' | ':' | '(' | SOFT_HYPHEN | '\u{66b}' | '\u{66c}') {
        numbers::offer(text, &mut longest);
    }
    if let Some(length) = apostrophe {
        if marks::doubled(text, length) {
            longest.offer(2 * length, Form::Dropped);
        }
        words::offer_apostrophe(text, length, &mut longest);
    }
    if initial == '<' {
        addresses::offer_tag(text, &mut longest);
    }
    addresses::offer_mail(text, &mut longest);
    if matches!(initial, '@' | '#') {
        addresses::offer_handle(text, &mut longest);
    }
    if initial == '-' {
        marks::offer_bracket_name(text, &mut longest);
    }
    marks::offer_currency(text, &mut longest);
    addresses::offer_page(text, &mut longest);
    marks::offer_smiley(text, &mut longest);
    if !is_letter(initial) && !is_digit(initial) {
        marks::offer(text, &mut longest);
    }
    (longest.length, longest.form)
}

/// The length of a word at the start of `text` that no rule but the simplest is about: of ASCII letters, before white
/// space or the last mark before it.
fn ordinary(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let length = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let ends = |at: usize| matches!(bytes.get(at), None | Some(b' '));
    let last = ends(length) || matches!(bytes[length], b',' | b';' | b'!' | b'?' | b'"') && ends(length + 1);
    (length > 0 && last && words::split(&text[..length]).is_none()).then_some(length)
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
                prop_assert!(!token.is_empty() && !token.contains(|c: char| c.is_whitespace() && c != '\u{a0}'), "{token:?}");
                prop_assert_eq!(token.to_lowercase(), token.as_str());
            }
        }

        #[test]
        fn white_space_at_the_ends_does_not_matter(caption in "[a-zA-Z'.,!0-9 -]{0,60}") {
            prop_assert_eq!(tokenise(&format!(" {caption}\n")), tokenise(&caption));
        }

        #[test]
        fn words_stay_whole(words in proptest::collection::vec("[a-z]{1,8}", 0..12)) {
            prop_assume!(words.iter().all(|word| words::split(word).is_none()));
            prop_assert_eq!(tokenise(&words.join(" ")), words);
        }
    }
}
