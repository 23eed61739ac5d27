//! What the rules have seen of a caption ahead of the position that they look at.
//!
//! Some rules look far ahead: whether `a,b,c` starts an e-mail address depends on the characters up
//! to the next space. A rule that scans such a run from each of its tokens takes time quadratic in
//! the run's length. So what a rule finds is cached for all positions of the run, and a caption
//! takes linear time.

use std::ops::Range;

use super::addresses::{EmailAddress, Hosts};
use super::longest::run;
use super::words::File;

/// What the rules have cached of a caption. Its lifetime is one caption.
#[derive(Debug, Default)]
pub(super) struct Lookahead {
    /// Names after `www.`.
    pub(super) www: Hosts,
    /// Names that end with a well-known domain.
    pub(super) hosts: Hosts,
    /// The last e-mail address of a run.
    pub(super) mail: Cached<Option<EmailAddress>>,
    /// Where declarations in angle brackets end.
    pub(super) declaration: RunEnd,
    /// The last name of a file of a run.
    pub(super) file: Cached<Option<File>>,
    /// Where letters, digits, points and commas end.
    pub(super) list: RunEnd,
}

/// A value that holds for a range of positions. A position is the number of bytes of the caption
/// from there to its end, so positions decrease along the caption.
#[derive(Debug)]
pub(super) struct Cached<T> {
    /// From the last position, exclusive, to the first, inclusive.
    positions: Range<usize>,
    value: T,
}

impl<T: Default> Default for Cached<T> {
    fn default() -> Self {
        Self { positions: 0..0, value: T::default() }
    }
}

impl<T> Cached<T> {
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

/// Where a run of characters ends.
#[derive(Debug, Default)]
pub(super) struct RunEnd(Cached<usize>);

impl RunEnd {
    /// How many bytes at the start of `rest`, which is the rest of the caption, `belongs` accepts.
    /// All calls must pass the same function.
    pub(super) fn length(&mut self, rest: &str, belongs: impl Fn(char) -> bool) -> usize {
        let end = *self.0.get(rest, || {
            let length = run(rest, belongs);
            (length, rest.len() - length)
        });
        rest.len() - end
    }
}
