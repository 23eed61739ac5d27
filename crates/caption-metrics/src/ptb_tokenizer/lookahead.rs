//! A cache for rules that look far ahead.
//!
//! Whether `a,b,c` starts an e-mail address depends on all characters up to the next space. A rule
//! that scans these characters again at each token takes quadratic time. The result of a scan is
//! therefore cached for all positions for which it holds, so that a caption takes linear time.

use std::ops::Range;

use super::addresses::{EmailAddress, LikelyUrls};
use super::longest_match::run_length;
use super::words::FileName;

/// The cached results of the rules for one caption.
#[derive(Debug, Default)]
pub(super) struct LookaheadCache {
    /// Host names after `www.`.
    pub(super) www_urls: LikelyUrls,
    /// Host names that end with a well-known domain.
    pub(super) likely_urls: LikelyUrls,
    /// The last e-mail address of a run of characters.
    pub(super) email: RangeCache<Option<EmailAddress>>,
    /// The end of an SGML declaration or comment.
    pub(super) sgml_declaration: CachedRunEnd,
    /// The last file name of a run of characters.
    pub(super) file_name: RangeCache<Option<FileName>>,
    /// The end of a run of letters, digits, full stops and commas, for the rule `HTHING`.
    pub(super) hyphenated_list: CachedRunEnd,
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
