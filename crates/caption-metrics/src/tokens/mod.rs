//! Penn Treebank tokens of captions, as the reference metrics see them: the Stanford tokeniser (CoreNLP 3.4.1) that
//! pycocoevalcap runs, with its lower-casing and its removal of punctuation.
//!
//! As there, all rules look at each place, and the token is what the one that reaches farthest says ([`longest`]);
//! tokens are equal on the 30,000 captions of Flickr8k's training set and on all strings of `tests/parity/ptb.txt`.
//!
//! A token may hold no-break spaces: `1 1/2`, `(555) 555-1234` and `<a dog>` are one. The reference's BLEU and CIDEr-D
//! split such a token at them, its ROUGE-L does not.
//!
//! Known differences:
//! - The reference reads a job's captions as lines of one file and looks across their ends: in `vitamin C.` the full
//!   stop goes if the next caption starts with `A`, in `no.` it stays if that starts with a digit, and some tags and
//!   quoted strings go on. Here a caption is read as if it were alone, as a line with its end.
//! - The last caption of a job has no line end there: of one that ends in `they'll` nothing but `they ll` is left.
//! - A line break inside a caption is white space; all kinds but `\n` shift the captions after it in the reference.
//! - Of a capital sigma in an address, after an entity or next to letters without case, the lower case may be the other
//!   form.
//! - A soft hyphen right before `n't`, or inside a name that ends with `.com`; an address that is one character beyond the
//!   basic plane.

mod addresses;
mod characters;
mod longest;
mod lookahead;
mod marks;
mod numbers;
mod words;

use characters::{SOFT_HYPHEN, is_digit, is_letter, is_space};
use longest::{LongestMatch, TokenForm, first, run};
use lookahead::Lookahead;

/// The tokens of `caption`, in lower case and without punctuation.
///
/// ```
/// let tokens = caption_metrics::tokens::tokenise("The dog's owner can't see: it's a \"half-hidden\" ball.");
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
    /// Calls `emit` with each token of `caption`: never empty, without plain spaces, in lower case.
    pub fn each(&mut self, caption: &str, mut emit: impl FnMut(&str)) {
        let mut rest = caption;
        let mut lookahead = Lookahead::default();
        while !rest.is_empty() {
            let (length, form) = next(rest, &mut lookahead);
            let (token, after) = rest.split_at(length);
            rest = after;
            if form != TokenForm::Dropped {
                self.write(token, form);
                if !self.token.is_empty() {
                    emit(&self.token);
                }
            }
        }
    }

    /// Puts the token that `text` becomes into the buffer; none if that is empty then.
    fn write(&mut self, text: &str, form: TokenForm) {
        self.token.clear();
        match form {
            TokenForm::Dropped => {}
            TokenForm::As(other) => self.token.push_str(other),
            TokenForm::Word | TokenForm::Verbatim if text.is_ascii() => {
                self.token.push_str(text);
                self.token.make_ascii_lowercase();
            }
            TokenForm::Word if text.contains(SOFT_HYPHEN) => self.push_lower(&text.replace(SOFT_HYPHEN, "")),
            TokenForm::Word | TokenForm::Verbatim => self.push_lower(text),
            TokenForm::Clitic => {
                let (before, rest) = text.split_at(run(text, |c| c.is_ascii_alphabetic()));
                let (apostrophe, after) = rest.split_at(words::any_apostrophe(rest).unwrap_or(0));
                self.push_lower(before);
                self.token.push_str(marks::plain_quote(first(apostrophe)).unwrap_or("'"));
                self.push_lower(after);
            }
            TokenForm::Quotes => self.push_quotes(text),
            TokenForm::Ampersand => self.push_lower(&text.to_ascii_lowercase().replace("&amp;", "&")),
            TokenForm::Spaced => self.push_lower(&text.replace(' ', "\u{a0}")),
            TokenForm::Bracketed => {
                self.push_lower(&text.replace(' ', "\u{a0}").replace('(', "-lrb-").replace(')', "-rrb-"));
            }
        }
    }

    fn push_lower(&mut self, text: &str) {
        let is_cased = |c: char| c.is_lowercase() || c.is_uppercase();
        let mut after_cased = false;
        for (at, c) in text.char_indices() {
            // As Java has it: final after any letter with a case, and before none.
            if c == 'Σ' && after_cased && !text[at + c.len_utf8()..].contains(is_cased) {
                self.token.push('ς');
            } else {
                self.token.extend(c.to_lowercase());
            }
            after_cased |= is_cased(c);
        }
    }

    fn push_quotes(&mut self, text: &str) {
        for c in text.chars() {
            match marks::plain_quote(c) {
                Some(plain) => self.token.push_str(plain),
                None => self.token.push(c),
            }
        }
        if matches!(&*self.token, "`" | "``" | "'" | "''") {
            self.token.clear();
        }
    }
}

/// The length of what comes next in `text`, which is not empty, and what becomes of it. `lookahead`
/// is what earlier calls have cached of the rest of the caption.
fn next(text: &str, lookahead: &mut Lookahead) -> (usize, TokenForm) {
    let initial = first(text);
    if matches!(initial, ' ' | '\t') {
        return (run(text, is_space), TokenForm::Dropped);
    }
    if let Some(length) = ordinary(text) {
        return (length, TokenForm::Word);
    }
    let mut longest = LongestMatch::at_least(initial.len_utf8());
    // An address could start with white space that is not ASCII.
    longest.offer(run(text, is_space), TokenForm::Dropped);
    addresses::offer_page(text, lookahead, &mut longest);
    addresses::offer_mail(text, lookahead, &mut longest);
    let apostrophe = words::apostrophe(text);
    if is_letter(initial) || is_digit(initial) || words::letter_entity(text).is_some() {
        words::offer(text, lookahead, &mut longest);
    }
    if is_digit(initial) || matches!(initial, '+' | '-' | '.' | ',' | ':' | '(' | SOFT_HYPHEN | '\u{66b}' | '\u{66c}') {
        numbers::offer(text, &mut longest);
    }
    if let Some(length) = apostrophe {
        if text.starts_with("''") {
            longest.offer(2, TokenForm::Dropped);
        }
        words::offer_apostrophe(text, length, &mut longest);
    }
    if initial == '<' {
        addresses::offer_tag(text, lookahead, &mut longest);
    }
    if matches!(initial, '@' | '#') {
        addresses::offer_handle(text, &mut longest);
    }
    if initial == '-' {
        marks::offer_bracket_name(text, &mut longest);
    }
    marks::offer_currency(text, &mut longest);
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

    /// Checks the captions of a file that `tests/parity/ptb.py` wrote.
    fn assert_equal_to_reference(path: &str) {
        let file = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let file: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
        let captions = file["captions"].as_array().expect("captions");
        assert!(!captions.is_empty());
        let differing = captions.iter().filter(|case| {
            let caption = case[0].as_str().expect("a caption");
            let tokens = tokenise(caption).join(" ");
            let differs = case[1] != tokens.as_str();
            if differs {
                eprintln!("{caption:?}\n  here      {tokens:?}\n  reference {}", case[1]);
            }
            differs
        });
        assert_eq!(differing.count(), 0, "of {} captions", captions.len());
    }

    #[test]
    fn awkward_strings_are_as_in_the_reference() {
        assert_equal_to_reference(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/scoring/ptb.json"));
    }

    #[test]
    fn captions_of_a_data_set_are_as_in_the_reference() {
        match std::env::var("DICO_CAPTION_TOKENS") {
            Ok(path) => assert_equal_to_reference(&path),
            Err(_) => eprintln!("skipped: DICO_CAPTION_TOKENS names no file that tests/parity/ptb.py wrote"),
        }
    }

    /// Something of each kind that a rule looks for or stops at.
    const FRAGMENTS: &[&str] = &[
        "a", "A", "ab", "aΣ", "Σ", "é", "日", "\u{301}", "\u{ad}", "1", "12", "\u{661}", "²", "⁺", "½", "&", "&amp;",
        "&lt;", "&gt;", "&eacute;", "&Euml;", "&#1", "@", "a@", "@.", "#", "#a", "$", "US$", "%", "'", "n't", "'s",
        "`", "’", "“", "\"", ",", ";", ":", ".", "..", "a.", "A.", ".txt", ".1a", ".com", ".com/", ".comb", "www.",
        "www.1/", "http://", "http://.", "/", "1/", "\\/", "\\*", "-", "--", "a-", "_", "*", "+", "=", "~", "!", "?",
        "(", ")", "(^", ":-", "<", ">", "<!a", "<a", "<a b='", " b='", " b=\"", "</a", "/>", "{", "}", "[", "|", "^",
        "\t", "\u{a0}", "\n", "\u{2009}", "cannot", "gonna", "'tis", "-lrb-", "no.", "Mr.", "♥", "🐶",
    ];

    /// How many bytes are looked at for the tokens of `text`.
    fn work(text: &str) -> usize {
        let before = longest::BYTES_SEEN.get();
        Tokeniser::default().each(text, |_| {});
        longest::BYTES_SEEN.get() - before
    }

    /// Panics if the work grows faster than repetitions do.
    fn assert_linear(start: &str, repeated: &str) {
        let work = |times: usize| work(&format!("{start}{}", repeated.repeat(times)));
        let (few, many) = (work(40), work(120));
        assert!(
            2 * many < 7 * few + 1000,
            "{start:?}, then {repeated:?}: {few} bytes seen, of three times as many {many}"
        );
    }

    #[test]
    fn work_is_linear_in_length_whatever_repeats() {
        for first in FRAGMENTS {
            assert_linear("", first);
            for second in FRAGMENTS {
                assert_linear("", &format!("{first}{second}"));
                assert_linear(first, second);
            }
        }
    }

    #[test]
    fn long_captions_have_tokens() {
        // Each looked through to its end from every token would take hours.
        for (repeated, tokens) in [("a@", 1), ("a,", 500_000), ("a#", 500_001), (".1a", 750_000), ("http://", 1)] {
            let mut count = 0;
            Tokeniser::default().each(&repeated.repeat(500_000), |_| count += 1);
            assert_eq!(count, tokens, "{repeated}");
        }
    }

    /// The tokens of `caption` without a cache.
    fn tokenise_uncached(caption: &str) -> Vec<String> {
        let mut tokeniser = Tokeniser::default();
        let mut tokens = Vec::new();
        let mut rest = caption;
        while !rest.is_empty() {
            let (length, form) = next(rest, &mut Lookahead::default());
            tokeniser.write(&rest[..length], form);
            tokens.extend(Some(tokeniser.token.clone()).filter(|token| !token.is_empty()));
            rest = &rest[length..];
        }
        tokens
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_lookahead_cache_does_not_change_tokens(
            fragments in proptest::collection::vec(proptest::sample::select(FRAGMENTS), 0..40),
        ) {
            let caption = fragments.concat();
            prop_assert_eq!(tokenise(&caption), tokenise_uncached(&caption));
        }

        #[test]
        fn work_is_linear_in_length(
            start in proptest::collection::vec(proptest::sample::select(FRAGMENTS), 0..5),
            repeated in proptest::collection::vec(proptest::sample::select(FRAGMENTS), 1..7),
        ) {
            assert_linear(&start.concat(), &repeated.concat());
        }
    }

    proptest! {
        #[test]
        fn tokens_are_lower_case_and_without_plain_space(caption in "(\\PC|[a-zN'.,&;#0-9 -]){0,60}") {
            for token in tokenise(&caption) {
                prop_assert!(!token.is_empty() && !token.contains(' '), "{token:?}");
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
