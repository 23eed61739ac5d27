//! The simulation's event queue, in virtual time. Events are in the order of their times; events of
//! the same time are in the order in which they were scheduled.

use std::collections::BTreeMap;

use dico_engine::Time;

/// An event queue. Virtual time advances only from one event to the next.
#[derive(Debug)]
pub struct EventQueue<E> {
    now: Time,
    /// The number of events that were scheduled so far.
    scheduled_count: u64,
    /// Events by time and sequence number.
    events: BTreeMap<(Time, u64), E>,
}

impl<E> Default for EventQueue<E> {
    fn default() -> Self {
        Self { now: Time::ZERO, scheduled_count: 0, events: BTreeMap::new() }
    }
}

impl<E> EventQueue<E> {
    /// The virtual time.
    pub fn now(&self) -> Time {
        self.now
    }

    pub fn schedule_after(&mut self, delay: Time, event: E) {
        self.schedule_at(self.now + delay, event);
    }

    /// Schedules an event at `time`, or now if that has passed.
    pub fn schedule_at(&mut self, time: Time, event: E) {
        self.scheduled_count += 1;
        self.events.insert((time.max(self.now), self.scheduled_count), event);
    }

    /// Removes the next event that is due by `until`. If there is none, time advances to `until`.
    pub fn pop_until(&mut self, until: Time) -> Option<E> {
        match self.events.first_entry().filter(|entry| entry.key().0 <= until) {
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
