//! Terms: which coordinator process has formed which generation.
//!
//! A generation's number alone does not identify it: if an operator restores an older copy of the
//! journal, the coordinator uses numbers of earlier generations again. Therefore each coordinator
//! process has a *term*, a random number. A generation is identified by its number and by the term
//! of the process that formed it. A Rendezvous directive contains both, and workers report both
//! when they attach. (In Raft a term is a number that increases; here it is only unique.)

use std::collections::BTreeMap;

/// The terms of all generations, as the first generation of each term.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TermLog(BTreeMap<u64, u64>);

impl TermLog {
    /// Records that `term` has formed `generation`. Generations are recorded in order.
    pub fn record(&mut self, generation: u64, term: u64) {
        if self.0.values().next_back() != Some(&term) {
            self.0.insert(generation, term);
        }
    }

    /// The term that formed `generation`; none if it was never formed. `generation` must not exceed
    /// the last generation.
    #[must_use]
    pub fn term_of(&self, generation: u64) -> Option<u64> {
        self.0.range(..=generation).next_back().map(|(_, term)| *term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_generation_has_the_term_that_formed_it() {
        let mut log = TermLog::default();
        for (generation, term) in [(3, 70), (4, 70), (5, 9), (9, 9), (10, 70)] {
            log.record(generation, term);
        }
        let terms = [2, 3, 4, 5, 7, 9, 10].map(|generation| log.term_of(generation));
        assert_eq!(terms, [None, Some(70), Some(70), Some(9), Some(9), Some(9), Some(70)]);
    }
}
