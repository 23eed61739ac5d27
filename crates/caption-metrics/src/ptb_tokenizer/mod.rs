//! A port of the Penn Treebank tokenizer that pycocoevalcap runs (`PTBTokenizer`: Stanford CoreNLP
//! 3.4.1), with lower-casing and removal of punctuation.
//!
//! The reference is a JFlex lexer (`PTBLexer.flex`). At each position all rules are tried, and the
//! longest match gives the token ([`longest_match`]). Comments name the lexer's rules. Tokens are
//! equal on the 30,000 captions of Flickr8k's training set and on all strings of
//! `tests/parity/ptb.txt`.
//!
//! A token may contain no-break spaces: `1 1/2`, `(555) 555-1234` and `<a dog>` are single tokens.
//! The reference's BLEU and CIDEr-D split a token at its no-break spaces; its ROUGE-L does not.
//!
//! Known differences:
//! - The reference reads all captions as lines of one file, and matches may extend over line
//!   breaks: in `vitamin C.` the full stop is removed if the next caption starts with `A`, in `no.`
//!   it is kept if the next caption starts with a digit, and some tags and quoted strings extend
//!   into the next caption. This tokenizer reads each caption as a separate line.
//! - In the reference the last caption has no line break: if it ends with `they'll`, its tokens are
//!   `they ll`.
//! - A line break inside a caption is white space here. In the reference all line breaks but `\n`
//!   shift the captions after it.
//! - The lower case of a capital sigma in a URL, after an entity, or next to letters without case
//!   may be the other of its two forms.
//! - Tokens differ where a soft hyphen is right before `n't` or inside a host name that ends with
//!   `.com`, and where the address or path of a URL is a single character beyond the basic plane.
//!
//! | module | content |
//! |---|---|
//! | `words`, `numbers`, `symbols`, `addresses` | the rules of the lexer |
//! | `word_lists`, `character_classes` | the words and characters that the rules list |
//! | `longest_match` | chooses the longest match |
//! | `lookahead` | a cache for rules that look far ahead |

mod addresses;
mod character_classes;
mod longest_match;
mod lookahead;
mod numbers;
mod symbols;
mod word_lists;
mod words;

use character_classes::{SOFT_HYPHEN, is_digit, is_letter, is_space};
use longest_match::{LongestMatch, TokenForm, first_char, run_length};
use lookahead::LookaheadCache;

/// Splits `caption` into tokens, in lower case and without punctuation.
///
/// ```
/// let caption = "The dog's owner can't see: it's a \"half-hidden\" ball.";
/// let tokens = caption_metrics::ptb_tokenizer::tokenize(caption);
/// assert_eq!(tokens.join(" "), "the dog 's owner ca n't see it 's a half-hidden ball");
/// ```
#[must_use]
pub fn tokenize(caption: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    PtbTokenizer::default().for_each_token(caption, |token| tokens.push(token.to_owned()));
    tokens
}

/// Splits captions into tokens. It reuses its buffer.
#[derive(Debug, Default)]
pub struct PtbTokenizer {
    token: String,
}

impl PtbTokenizer {
    /// Calls `emit` with each token of `caption`. Tokens are in lower case, not empty, and without
    /// plain spaces.
    pub fn for_each_token(&mut self, caption: &str, mut emit: impl FnMut(&str)) {
        let mut rest = caption;
        let mut lookahead = LookaheadCache::default();
        while !rest.is_empty() {
            let (length, form) = match_next_token(rest, &mut lookahead);
            let (token, after) = rest.split_at(length);
            rest = after;
            if form != TokenForm::Discarded {
                self.set_token(token, form);
                if !self.token.is_empty() {
                    emit(&self.token);
                }
            }
        }
    }

    /// Sets the buffer to the token for `text`; an empty buffer means no token.
    fn set_token(&mut self, text: &str, form: TokenForm) {
        self.token.clear();
        match form {
            TokenForm::Discarded => {}
            TokenForm::Replacement(replacement) => self.token.push_str(replacement),
            TokenForm::Word | TokenForm::Verbatim if text.is_ascii() => {
                self.token.push_str(text);
                self.token.make_ascii_lowercase();
            }
            TokenForm::Word if text.contains(SOFT_HYPHEN) => self.push_lowercase(&text.replace(SOFT_HYPHEN, "")),
            TokenForm::Word | TokenForm::Verbatim => self.push_lowercase(text),
            TokenForm::Clitic => {
                let (before, rest) = text.split_at(run_length(text, |c| c.is_ascii_alphabetic()));
                let (apostrophe, after) = rest.split_at(words::any_apostrophe_length(rest).unwrap_or(0));
                self.push_lowercase(before);
                self.token.push_str(symbols::ascii_quote(first_char(apostrophe)).unwrap_or("'"));
                self.push_lowercase(after);
            }
            TokenForm::Quotes => self.push_quotes(text),
            TokenForm::Ampersand => self.push_lowercase(&text.to_ascii_lowercase().replace("&amp;", "&")),
            TokenForm::NoBreakSpaces => self.push_lowercase(&text.replace(' ', "\u{a0}")),
            TokenForm::NoBreakSpacesAndBracketNames => {
                self.push_lowercase(&text.replace(' ', "\u{a0}").replace('(', "-lrb-").replace(')', "-rrb-"));
            }
        }
    }

    fn push_lowercase(&mut self, text: &str) {
        let is_cased = |c: char| c.is_lowercase() || c.is_uppercase();
        let mut after_cased = false;
        for (at, c) in text.char_indices() {
            // As in Java: a final sigma after any letter with a case and before none.
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
            match symbols::ascii_quote(c) {
                Some(plain) => self.token.push_str(plain),
                None => self.token.push(c),
            }
        }
        if matches!(&*self.token, "`" | "``" | "'" | "''") {
            self.token.clear();
        }
    }
}

/// Matches the next token of `text`, which is not empty. Returns its length and form. `lookahead`
/// caches results for the rest of the caption between calls.
fn match_next_token(text: &str, lookahead: &mut LookaheadCache) -> (usize, TokenForm) {
    let initial = first_char(text);
    if matches!(initial, ' ' | '\t') {
        return (run_length(text, is_space), TokenForm::Discarded);
    }
    if let Some(length) = plain_word_length(text) {
        return (length, TokenForm::Word);
    }
    let mut longest = LongestMatch::new(initial.len_utf8());
    // A URL or e-mail address may start with white space outside ASCII.
    longest.propose(run_length(text, is_space), TokenForm::Discarded);
    addresses::match_url(text, lookahead, &mut longest);
    addresses::match_email(text, lookahead, &mut longest);
    let apostrophe = words::apostrophe_length(text);
    if is_letter(initial) || is_digit(initial) || words::letter_entity_length(text).is_some() {
        words::match_word_rules(text, lookahead, &mut longest);
    }
    if is_digit(initial) || matches!(initial, '+' | '-' | '.' | ',' | ':' | '(' | SOFT_HYPHEN | '\u{66b}' | '\u{66c}') {
        numbers::match_number_rules(text, &mut longest);
    }
    if let Some(length) = apostrophe {
        if text.starts_with("''") {
            longest.propose(2, TokenForm::Discarded);
        }
        words::match_apostrophe_rules(text, length, &mut longest);
    }
    if initial == '<' {
        addresses::match_sgml(text, lookahead, &mut longest);
    }
    if matches!(initial, '@' | '#') {
        addresses::match_twitter(text, &mut longest);
    }
    if initial == '-' {
        symbols::match_bracket_name(text, &mut longest);
    }
    symbols::match_dollar_sign(text, &mut longest);
    symbols::match_smiley(text, &mut longest);
    if !is_letter(initial) && !is_digit(initial) {
        symbols::match_symbol(text, &mut longest);
    }
    (longest.token_length, longest.form)
}

/// The length of a word of ASCII letters before a space or the end of the caption, maybe with one
/// punctuation mark between. No other rule can match more text, so the general rules need not be
/// tried.
fn plain_word_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let length = bytes.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    let is_end = |at: usize| matches!(bytes.get(at), None | Some(b' '));
    let is_followed_by_end =
        is_end(length) || matches!(bytes[length], b',' | b';' | b'!' | b'?' | b'"') && is_end(length + 1);
    (length > 0 && is_followed_by_end && words::split_position(&text[..length]).is_none()).then_some(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Captions, and the tokens that pycocoevalcap's `PTBTokenizer` printed for them.
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
    fn tokens_equal_those_of_pycocoevalcap() {
        for (caption, tokens) in GOLDEN {
            assert_eq!(tokenize(caption).join(" "), *tokens, "{caption}");
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
            let tokens = tokenize(caption).join(" ");
            let differs = case[1] != tokens.as_str();
            if differs {
                eprintln!("{caption:?}\n  here      {tokens:?}\n  reference {}", case[1]);
            }
            differs
        });
        assert_eq!(differing.count(), 0, "of {} captions", captions.len());
    }

    #[test]
    fn tokens_of_edge_cases_equal_those_of_the_reference() {
        assert_equal_to_reference(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/scoring/ptb.json"));
    }

    #[test]
    fn tokens_of_a_data_set_equal_those_of_the_reference() {
        match std::env::var("DICO_CAPTION_TOKENS") {
            Ok(path) => assert_equal_to_reference(&path),
            Err(_) => eprintln!("skipped: DICO_CAPTION_TOKENS names no file that tests/parity/ptb.py wrote"),
        }
    }

    /// Fragments that begin, extend or end the matches of all rules.
    const FRAGMENTS: &[&str] = &[
        "a", "A", "ab", "aΣ", "Σ", "é", "日", "\u{301}", "\u{ad}", "1", "12", "\u{661}", "²", "⁺", "½", "&", "&amp;",
        "&lt;", "&gt;", "&eacute;", "&Euml;", "&#1", "@", "a@", "@.", "#", "#a", "$", "US$", "%", "'", "n't", "'s",
        "`", "’", "“", "\"", ",", ";", ":", ".", "..", "a.", "A.", ".txt", ".1a", ".com", ".com/", ".comb", "www.",
        "www.1/", "http://", "http://.", "/", "1/", "\\/", "\\*", "-", "--", "a-", "_", "*", "+", "=", "~", "!", "?",
        "(", ")", "(^", ":-", "<", ">", "<!a", "<a", "<a b='", " b='", " b=\"", "</a", "/>", "{", "}", "[", "|", "^",
        "\t", "\u{a0}", "\n", "\u{2009}", "cannot", "gonna", "'tis", "-lrb-", "no.", "Mr.", "♥", "🐶",
    ];

    /// The number of bytes that are scanned to tokenize `text`.
    fn bytes_scanned(text: &str) -> usize {
        let before = longest_match::BYTES_SCANNED.get();
        PtbTokenizer::default().for_each_token(text, |_| {});
        longest_match::BYTES_SCANNED.get() - before
    }

    /// Panics if the number of scanned bytes grows faster than the number of repetitions.
    fn assert_linear(start: &str, repeated: &str) {
        let scanned = |times: usize| bytes_scanned(&format!("{start}{}", repeated.repeat(times)));
        let (few, many) = (scanned(40), scanned(120));
        assert!(
            2 * many < 7 * few + 1000,
            "{start:?}, then {repeated:?}: {few} bytes scanned for 40 repetitions, {many} for 120"
        );
    }

    #[test]
    fn work_is_linear_in_length_for_all_pairs_of_fragments() {
        for first in FRAGMENTS {
            assert_linear("", first);
            for second in FRAGMENTS {
                assert_linear("", &format!("{first}{second}"));
                assert_linear(first, second);
            }
        }
    }

    #[test]
    fn very_long_captions_are_tokenized() {
        // With scans to the end from every token these would take hours.
        for (repeated, tokens) in [("a@", 1), ("a,", 500_000), ("a#", 500_001), (".1a", 750_000), ("http://", 1)] {
            let mut count = 0;
            PtbTokenizer::default().for_each_token(&repeated.repeat(500_000), |_| count += 1);
            assert_eq!(count, tokens, "{repeated}");
        }
    }

    /// Tokenizes `caption` without cached lookahead.
    fn tokenize_uncached(caption: &str) -> Vec<String> {
        let mut tokenizer = PtbTokenizer::default();
        let mut tokens = Vec::new();
        let mut rest = caption;
        while !rest.is_empty() {
            let (length, form) = match_next_token(rest, &mut LookaheadCache::default());
            tokenizer.set_token(&rest[..length], form);
            tokens.extend(Some(tokenizer.token.clone()).filter(|token| !token.is_empty()));
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
            prop_assert_eq!(tokenize(&caption), tokenize_uncached(&caption));
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
            for token in tokenize(&caption) {
                prop_assert!(!token.is_empty() && !token.contains(' '), "{token:?}");
                prop_assert_eq!(token.to_lowercase(), token.as_str());
            }
        }

        #[test]
        fn surrounding_white_space_is_ignored(caption in "[a-zA-Z'.,!0-9 -]{0,60}") {
            prop_assert_eq!(tokenize(&format!(" {caption}\n")), tokenize(&caption));
        }

        #[test]
        fn plain_words_are_single_tokens(words in proptest::collection::vec("[a-z]{1,8}", 0..12)) {
            prop_assume!(words.iter().all(|word| words::split_position(word).is_none()));
            prop_assert_eq!(tokenize(&words.join(" ")), words);
        }
    }
}
