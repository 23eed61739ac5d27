//! A cache for rules of the lexer (`PTBLexer.flex`) that look far ahead.
//!
//! Whether `a,b,c` starts an e-mail address depends on all characters up to the next one that
//! addresses cannot contain, such as a space. A rule that scans these characters again at each
//! token takes quadratic time. The result of a scan is therefore cached for all positions for which
//! it holds, so that a caption takes linear time.
//!
//! Because the longest match counts, the matches at all positions of a run of characters that
//! addresses may contain, up to the `@` of the run's last address, end with this address. File
//! names are cached in the same way.

use std::ops::Range;

use super::addresses::{EmailAddress, SchemelessUrls};
use super::longest_match::run_length;
use super::words::FileName;

/// The cached results of the rules for one caption.
#[derive(Debug, Default)]
pub(super) struct LookaheadCache {
    /// Host names after `www.` (rule `LIKELYURL`).
    pub(super) www_urls: SchemelessUrls,
    /// Host names that end with `.com`, `.net`, `.org` or `.edu` (rule `LIKELYURL`).
    pub(super) known_domain_urls: SchemelessUrls,
    /// The last e-mail address of a run of characters that addresses may contain (rule `EMAIL`).
    pub(super) email: RangeCache<Option<EmailAddress>>,
    /// The end of an SGML declaration or comment (rule `SGML`).
    pub(super) sgml_declaration: CachedRunEnd,
    /// The last file name of a run of parts with full stops before them (rule `FILENAME`).
    pub(super) file_name: RangeCache<Option<FileName>>,
    /// The end of the part before the first hyphen of a compound like `U.S.-based`: ASCII letters,
    /// digits, soft hyphens, full stops and commas (rule `HTHING`).
    pub(super) compound_head: CachedRunEnd,
}

/// A value that holds for a range of positions. A position is the number of bytes from there to the
/// end of the caption, so positions decrease along the caption.
#[derive(Debug)]
pub(super) struct RangeCache<T> {
    /// The positions, from the last (exclusive) to the first (inclusive).
    positions: Range<usize>,
    value: T,
}

impl<T: Default> Default for RangeCache<T> {
    fn default() -> Self {
        Self { positions: 0..0, value: T::default() }
    }
}

impl<T> RangeCache<T> {
    /// The value at the start of `rest`, which is the rest of the caption. If it is not cached,
    /// `find` returns the value, and for how many bytes of `rest` it holds.
    pub(super) fn get(&mut self, rest: &str, find: impl FnOnce() -> (usize, T)) -> &T {
        let position = rest.len();
        if !(self.positions.start < position && position <= self.positions.end) {
            let (length, value) = find();
            *self = Self { positions: position - length..position, value };
        }
        &self.value
    }
}

/// The cached end of a run of characters.
#[derive(Debug, Default)]
pub(super) struct CachedRunEnd(RangeCache<usize>);

impl CachedRunEnd {
    /// The number of bytes at the start of `rest`, which is the rest of the caption, that `belongs`
    /// accepts. All calls must pass the same function.
    pub(super) fn length(&mut self, rest: &str, belongs: impl Fn(char) -> bool) -> usize {
        let end = *self.0.get(rest, || {
            let length = run_length(rest, belongs);
            (length, rest.len() - length)
        });
        rest.len() - end
    }
}
