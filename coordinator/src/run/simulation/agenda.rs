//! Virtual time: what is due, in order of time, and of what is due at the same time in the order in which it was planned.

use std::collections::BTreeMap;

use crate::run::Time;

/// What is due, and when. Time goes on only from one entry to the next.
#[derive(Debug)]
pub struct Agenda<D> {
    now: Time,
    planned: u64,
    due: BTreeMap<(Time, u64), D>,
}

impl<D> Default for Agenda<D> {
    fn default() -> Self {
        Self { now: Time::ZERO, planned: 0, due: BTreeMap::new() }
    }
}

impl<D> Agenda<D> {
    pub fn now(&self) -> Time {
        self.now
    }

    pub fn after(&mut self, delay: Time, due: D) {
        self.at(self.now + delay, due);
    }

    pub fn at(&mut self, time: Time, due: D) {
        self.planned += 1;
        self.due.insert((time.max(self.now), self.planned), due);
    }

    /// The next entry that is due by `until`. With none left it is `until`.
    pub fn next(&mut self, until: Time) -> Option<D> {
        match self.due.first_entry().filter(|entry| entry.key().0 <= until) {
            Some(entry) => {
                self.now = entry.key().0;
                Some(entry.remove())
            }
            None => {
                self.now = self.now.max(until);
                None
            }
        }
    }
}
