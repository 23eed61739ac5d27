//! How the token at a place is chosen: of all that the rules offer there, the one that reaches farthest.

/// What becomes of a token's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenForm {
    /// Not a token of the result: white space, punctuation, what the reference cannot read.
    Dropped,
    /// Without soft hyphens.
    Word,
    /// As it is.
    Verbatim,
    /// With a plain apostrophe for any.
    Clitic,
    /// Quotation marks as the reference writes them; of some, nothing is left.
    Quotes,
    /// With `&` for `&amp;`.
    Ampersand,
    /// With no-break spaces for spaces.
    Spaced,
    /// With no-break spaces for spaces, and names for round brackets.
    Bracketed,
    /// Something else instead.
    As(&'static str),
}

/// The offer that reaches farthest so far; of equals, the first.
#[derive(Debug)]
pub(super) struct LongestMatch {
    reach: usize,
    /// How many bytes the token has.
    pub(super) length: usize,
    pub(super) form: TokenForm,
}

impl LongestMatch {
    /// Nothing yet, if there must be something: a character of `length` that is no token.
    pub(super) fn at_least(length: usize) -> Self {
        Self { reach: 0, length, form: TokenForm::Dropped }
    }

    /// A token of `length`.
    pub(super) fn offer(&mut self, length: usize, form: TokenForm) {
        self.offer_within(length, length, form);
    }

    /// A token of `length` whose rule also looked at what follows, up to `reach`.
    pub(super) fn offer_within(&mut self, reach: usize, length: usize, form: TokenForm) {
        if reach > self.reach {
            *self = Self { reach, length, form };
        }
    }
}

/// How many bytes of `text`, from its start, `belongs` accepts.
pub(super) fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    let length = text.find(|c| !belongs(c)).unwrap_or(text.len());
    #[cfg(test)]
    count(length);
    length
}

/// As [`run`], of at most `most` bytes of ASCII.
pub(super) fn run_up_to(text: &str, most: usize, belongs: impl Fn(u8) -> bool) -> usize {
    let length = text.bytes().take(most).take_while(|&byte| belongs(byte)).count();
    #[cfg(test)]
    count(length);
    length
}

#[cfg(test)]
thread_local! {
    /// How many bytes [`run`] and [`run_up_to`] have looked at in this thread: nearly all the work
    /// that tokens take.
    pub(super) static BYTES_SEEN: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
fn count(length: usize) {
    BYTES_SEEN.set(BYTES_SEEN.get() + length + 1);
}

/// The first character of `text`. A caption ends with its line.
pub(super) fn first(text: &str) -> char {
    text.chars().next().unwrap_or('\n')
}

/// Whether `text` starts with `prefix`, in any case.
pub(super) fn starts_with(text: &str, prefix: &str) -> bool {
    text.as_bytes().get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// The length of the first of `options` that `text` starts with, in any case.
pub(super) fn one_of(text: &str, options: &[&str]) -> Option<usize> {
    options.iter().find(|option| starts_with(text, option)).map(|option| option.len())
}
