//! Texts by number.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Gives each different text a number, from 0 in order of appearance. Made for millions of short texts: they lie in one
/// piece, without an allocation for each.
#[derive(Debug, Default)]
pub(super) struct Interner {
    bytes: Vec<u8>,
    /// Where each text ends in `bytes`.
    ends: Vec<usize>,
    /// Open addressing, a power of two of slots; of each, the number of the text and 1, or 0 for none.
    slots: Vec<u32>,
    hasher: RandomState,
}

/// More texts than there are numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Interner {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The number of `text`, if it has one.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        self.slots.get(self.slot(text)?).and_then(|&slot| slot.checked_sub(1))
    }

    /// The number of `text`, which it may get now.
    pub fn intern(&mut self, text: &[u8]) -> Result<u32, Full> {
        // At most half full.
        if self.slots.len() <= 2 * self.len() {
            self.grow();
        }
        let slot = self.slot(text).ok_or(Full)?;
        if let Some(number) = self.slots[slot].checked_sub(1) {
            return Ok(number);
        }
        let taken = u32::try_from(self.len() + 1).map_err(|_| Full)?;
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
        self.slots[slot] = taken;
        Ok(taken - 1)
    }

    fn text(&self, number: usize) -> &[u8] {
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        &self.bytes[start..self.ends[number]]
    }

    /// The slot of `text`, or the empty one where it would be; none if there are no slots.
    fn slot(&self, text: &[u8]) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut slot = self.hasher.hash_one(text) as usize & mask;
        while let Some(number) = self.slots[slot].checked_sub(1) {
            if self.text(number as usize) == text {
                break;
            }
            slot = (slot + 1) & mask;
        }
        Some(slot)
    }

    fn grow(&mut self) {
        let slots = (4 * self.len()).next_power_of_two().max(16);
        self.slots.clear();
        self.slots.resize(slots, 0);
        for number in 0..self.len() {
            let mut slot = self.hasher.hash_one(self.text(number)) as usize & (slots - 1);
            while self.slots[slot] != 0 {
                slot = (slot + 1) & (slots - 1);
            }
            self.slots[slot] = number as u32 + 1;
        }
    }
}
