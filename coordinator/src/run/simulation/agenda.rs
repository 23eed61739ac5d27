//! The simulation's event queue in virtual time: entries in order of time, and entries of the same
//! time in the order in which they were scheduled.

use std::collections::BTreeMap;

use crate::run::Time;

/// An event queue. Time advances only from one entry to the next.
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

    /// Removes the next entry that is due by `until`. If there is none, time advances to `until`.
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
