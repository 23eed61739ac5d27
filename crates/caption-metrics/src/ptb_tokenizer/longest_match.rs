//! Chooses the token at a position: the longest match of all rules, as in a JFlex lexer.

/// How the text of a match becomes a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenForm {
    /// The text becomes no token: it is white space, punctuation, or a character that the reference
    /// tokenizer does not know.
    Discarded,
    /// The text without soft hyphens.
    Word,
    /// The text unchanged.
    Verbatim,
    /// The text with an ASCII apostrophe.
    Clitic,
    /// Quotation marks in ASCII; the most common ones become no token.
    Quotes,
    /// The text with `&` for `&amp;`.
    Ampersand,
    /// The text with no-break spaces for spaces.
    NoBreakSpaces,
    /// The text with no-break spaces for spaces, and `-lrb-` and `-rrb-` for parentheses.
    NoBreakSpacesAndBracketNames,
    /// The token is this text instead.
    Replacement(&'static str),
}

/// The longest match so far; of equally long matches, the first.
#[derive(Debug)]
pub(super) struct LongestMatch {
    /// The length of the token and the rule's trailing context in bytes.
    matched_length: usize,
    /// The length of the token in bytes.
    pub(super) token_length: usize,
    pub(super) form: TokenForm,
}

impl LongestMatch {
    /// No match yet. If no rule matches, `fallback_length` bytes are discarded.
    pub(super) fn new(fallback_length: usize) -> Self {
        Self { matched_length: 0, token_length: fallback_length, form: TokenForm::Discarded }
    }

    /// Proposes a token of `token_length` bytes.
    pub(super) fn propose(&mut self, token_length: usize, form: TokenForm) {
        self.propose_with_context(token_length, token_length, form);
    }

    /// Proposes a token of `token_length` bytes from a rule with trailing context. `matched_length`
    /// includes the context, as when JFlex compares matches.
    pub(super) fn propose_with_context(&mut self, matched_length: usize, token_length: usize, form: TokenForm) {
        if matched_length > self.matched_length {
            *self = Self { matched_length, token_length, form };
        }
    }
}

/// The number of bytes at the start of `text` that `belongs` accepts.
pub(super) fn run_length(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    let length = text.find(|c| !belongs(c)).unwrap_or(text.len());
    #[cfg(test)]
    count_bytes(length);
    length
}

/// As [`run_length`], for at most `max_bytes` bytes of ASCII.
pub(super) fn ascii_run_length(text: &str, max_bytes: usize, belongs: impl Fn(u8) -> bool) -> usize {
    let length = text.bytes().take(max_bytes).take_while(|&byte| belongs(byte)).count();
    #[cfg(test)]
    count_bytes(length);
    length
}

#[cfg(test)]
thread_local! {
    /// The number of bytes that [`run_length`] and [`ascii_run_length`] have read in this thread:
    /// nearly all the work of tokenization.
    pub(super) static BYTES_SCANNED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
fn count_bytes(length: usize) {
    BYTES_SCANNED.set(BYTES_SCANNED.get() + length + 1);
}

/// The first character of `text`; a line break at the end of the caption.
pub(super) fn first_char(text: &str) -> char {
    text.chars().next().unwrap_or('\n')
}

/// Whether `text` starts with `prefix`, ignoring case.
pub(super) fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// The length of the first of `options` that `text` starts with, ignoring case.
pub(super) fn prefix_length(text: &str, options: &[&str]) -> Option<usize> {
    options.iter().find(|option| starts_with_ignore_case(text, option)).map(|option| option.len())
}
