//! Interning of strings.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Assigns an id to each different text, from 0 in order of appearance. It is made for millions of
/// short texts: they are in one block of memory, and most look-ups read a single slot of the hash
/// table.
#[derive(Debug, Default)]
pub(super) struct StringInterner {
    /// All texts, without separators.
    bytes: Vec<u8>,
    /// The slots of a hash table with open addressing; their number is 0 or a power of two.
    slots: Vec<Option<HashSlot>>,
    /// The number of texts.
    len: u32,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct HashSlot {
    id: u32,
    /// The hash of the text.
    hash: u32,
    /// The start of the text in [`StringInterner::bytes`].
    start: u32,
    length: u32,
}

/// The error of interning more texts than there are ids, or more than 4 GiB of texts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InternerFullError;

impl StringInterner {
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The id of `text`; none if it was not interned.
    pub fn find(&self, text: &[u8]) -> Option<u32> {
        let (_, slot) = self.find_slot(text, self.hash(text))?;
        slot.map(|slot| slot.id)
    }

    /// The id of `text`; a new id for a new text.
    pub fn intern(&mut self, text: &[u8]) -> Result<u32, InternerFullError> {
        // At most half full, so that collisions are rare.
        if self.slots.len() <= 2 * self.len() {
            self.grow();
        }
        let hash = self.hash(text);
        let (index, slot) = self.find_slot(text, hash).ok_or(InternerFullError)?;
        if let Some(slot) = slot {
            return Ok(slot.id);
        }
        let [start, length] =
            [self.bytes.len(), text.len()].map(|bytes| u32::try_from(bytes).map_err(|_| InternerFullError));
        let (id, start, length) = (self.len, start?, length?);
        self.len = id.checked_add(1).ok_or(InternerFullError)?;
        self.bytes.extend_from_slice(text);
        self.slots[index] = Some(HashSlot { id, hash, start, length });
        Ok(id)
    }

    fn hash(&self, text: &[u8]) -> u32 {
        self.hasher.hash_one(text) as u32
    }

    /// The slot of `text` and its index, or the index of the empty slot for it; none if there are
    /// no slots.
    fn find_slot(&self, text: &[u8], hash: u32) -> Option<(usize, Option<HashSlot>)> {
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
        fn ids_equal_those_of_a_hash_map(texts in prop::collection::vec("[ab]{0,6}", 0..200)) {
            let mut interner = StringInterner::default();
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
