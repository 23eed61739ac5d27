//! Texts by number.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Gives each different text a number, from 0 in order of appearance. Made for millions of short texts: they lie in one
/// piece, without an allocation for each, and a look at one slot tells nearly always where a text is or that it is not
/// there.
#[derive(Debug, Default)]
pub(super) struct Interner {
    bytes: Vec<u8>,
    /// Open addressing; a power of two of them, or none.
    slots: Vec<Option<Slot>>,
    len: u32,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u32,
    /// Of the text.
    hash: u32,
    start: u32,
    length: u32,
}

/// More texts than there are numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InternerFull;

impl Interner {
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The number of `text`, if it has one.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        let (_, slot) = self.slot(text, self.hash(text))?;
        slot.map(|slot| slot.number)
    }

    /// The number of `text`, which it may get now.
    pub fn intern(&mut self, text: &[u8]) -> Result<u32, InternerFull> {
        // At most half full, so that texts that share a slot are few.
        if self.slots.len() <= 2 * self.len() {
            self.grow();
        }
        let hash = self.hash(text);
        let (index, slot) = self.slot(text, hash).ok_or(InternerFull)?;
        if let Some(slot) = slot {
            return Ok(slot.number);
        }
        let [start, length] =
            [self.bytes.len(), text.len()].map(|bytes| u32::try_from(bytes).map_err(|_| InternerFull));
        let (number, start, length) = (self.len, start?, length?);
        self.len = number.checked_add(1).ok_or(InternerFull)?;
        self.bytes.extend_from_slice(text);
        self.slots[index] = Some(Slot { number, hash, start, length });
        Ok(number)
    }

    fn hash(&self, text: &[u8]) -> u32 {
        self.hasher.hash_one(text) as u32
    }

    /// The slot of `text` and its index, or an empty one where it would be; none if there are no slots.
    fn slot(&self, text: &[u8], hash: u32) -> Option<(usize, Option<Slot>)> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut index = hash as usize & mask;
        while let Some(slot) = self.slots[index] {
            if slot.hash == hash && self.bytes[slot.start as usize..][..slot.length as usize] == *text {
                return Some((index, Some(slot)));
            }
            index = (index + 1) & mask;
        }
        Some((index, None))
    }

    fn grow(&mut self) {
        let slots = vec![None; (4 * self.len()).next_power_of_two().max(16)];
        let mask = slots.len() - 1;
        for slot in std::mem::replace(&mut self.slots, slots).into_iter().flatten() {
            let mut index = slot.hash as usize & mask;
            while self.slots[index].is_some() {
                index = (index + 1) & mask;
            }
            self.slots[index] = Some(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_those_of_a_map(texts in prop::collection::vec("[ab]{0,6}", 0..200)) {
            let mut interner = Interner::default();
            let mut map = HashMap::new();
            for text in &texts {
                prop_assert_eq!(interner.find(text.as_bytes()), map.get(text).copied());
                let next = map.len() as u32;
                prop_assert_eq!(interner.intern(text.as_bytes()), Ok(*map.entry(text).or_insert(next)));
                prop_assert_eq!(interner.len(), map.len());
            }
        }
    }
}
