//! What the rules have seen ahead of the place that they look at.
//!
//! Some rules look far: whether `a,b,c` starts an e-mail address is known where the next space is. A rule that looks to the
//! end of such a run from each of its tokens takes time quadratic in its length. So what a rule finds for all places of a run
//! is remembered until the run ends, and a caption takes linear time.

use std::ops::Range;

use super::addresses::{Hosts, Mail};
use super::longest::run;
use super::words::File;

/// What is remembered of a caption.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Names after `www.`.
    pub(super) www: Hosts,
    /// Names that end with a well-known domain.
    pub(super) hosts: Hosts,
    /// The last e-mail address of a run.
    pub(super) mail: Remembered<Option<Mail>>,
    /// Where declarations in angle brackets end.
    pub(super) declaration: RunEnd,
    /// The last name of a file of a run.
    pub(super) file: Remembered<Option<File>>,
    /// Where letters, digits, points and commas end.
    pub(super) list: RunEnd,
}

/// A value that holds for every place of a range. Places are told by how many bytes of the caption are left there.
#[derive(Debug)]
pub(super) struct Remembered<T> {
    /// Of bytes left: from the last place, exclusive, to the first, inclusive.
    left: Range<usize>,
    value: T,
}

impl<T: Default> Default for Remembered<T> {
    fn default() -> Self {
        Self { left: 0..0, value: T::default() }
    }
}

impl<T> Remembered<T> {
    /// The value for the start of `rest`, which is what is left of the caption. Where it is not known, `find` returns how many
    /// bytes of `rest` it has looked at, from each of which it would find the same, and the value.
    pub(super) fn get(&mut self, rest: &str, find: impl FnOnce() -> (usize, T)) -> &T {
        let left = rest.len();
        if !(self.left.start < left && left <= self.left.end) {
            let (length, value) = find();
            *self = Self { left: left - length..left, value };
        }
        &self.value
    }
}

/// Where a run of characters ends.
#[derive(Debug, Default)]
pub(super) struct RunEnd(Remembered<usize>);

impl RunEnd {
    /// How many bytes of `rest`, which is what is left of the caption, `belongs` accepts. It must always be the same function.
    pub(super) fn length(&mut self, rest: &str, belongs: impl Fn(char) -> bool) -> usize {
        let end = *self.0.get(rest, || {
            let length = run(rest, belongs);
            (length, rest.len() - length)
        });
        rest.len() - end
    }
}
