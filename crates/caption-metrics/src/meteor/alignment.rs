//! Chooses an alignment from the possible matches of two captions, by the beam search of the METEOR
//! program over the words of the reference caption. The search prefers a larger sum of
//! [`Match::search_gain`], then fewer chunks, then less distance. Its result also depends on the
//! order of the matches, the width of the beam, and the way it sums up distances; all three are as
//! in METEOR.

use std::cmp::Reverse;
use std::rc::Rc;

use super::matcher::Match;

/// The number of partial alignments that are kept at each word of the reference caption.
const BEAM_WIDTH: usize = 40;

/// An alignment: matches that share no words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// The matches, in reverse order of the reference caption.
    pub matches: Vec<Match>,
    /// The number of chunks: runs of matches that are adjacent and in the same order in both
    /// captions.
    pub chunks: usize,
}

/// Aligns a candidate of `candidate_length` words with a reference caption. `matches_by_start` has
/// the possible matches for each word of the reference caption at which they start, in order of
/// preference.
pub(super) fn align(matches_by_start: Vec<Vec<Match>>, candidate_length: usize) -> Alignment {
    align_with_beam_width(BEAM_WIDTH, matches_by_start, candidate_length)
}

fn align_with_beam_width(
    beam_width: usize,
    mut matches_by_start: Vec<Vec<Match>>,
    candidate_length: usize,
) -> Alignment {
    let (uncontested, used) = take_uncontested(&mut matches_by_start, candidate_length);
    let mut search = BeamSearch { nodes: Vec::new() };
    let mut hypotheses = vec![PartialAlignment { used: used.into(), ..PartialAlignment::default() }];
    for (position, matches) in matches_by_start.iter().enumerate() {
        let survivors = keep_best(hypotheses, beam_width);
        hypotheses = Vec::with_capacity(survivors.len() * (matches.len() + 1));
        for mut hypothesis in survivors {
            hypothesis.mark_used();
            if position < hypothesis.next {
                // Inside a match that is longer than one word.
            } else if let Some(matched) = uncontested[position] {
                hypothesis.distance += matched.distance();
                search.add_match(&mut hypothesis, matched);
            } else {
                search.branch(&mut hypothesis, matches, &mut hypotheses);
            }
            hypotheses.push(hypothesis);
        }
    }
    let mut final_hypotheses = keep_best(hypotheses, beam_width);
    final_hypotheses.iter_mut().for_each(PartialAlignment::end_chunk);
    final_hypotheses.sort_by_key(PartialAlignment::sort_key);
    let PartialAlignment { chunks, last_node, .. } = final_hypotheses.swap_remove(0);
    Alignment { matches: search.matches_up_to(last_node), chunks }
}

/// Takes the matches that share no word with any other match out of `matches_by_start`. Returns
/// them by start position, and which words of the candidate they use.
fn take_uncontested(matches_by_start: &mut [Vec<Match>], candidate_length: usize) -> (Vec<Option<Match>>, Vec<bool>) {
    // The number of matches that use each word.
    let mut candidate_counts = vec![0_u32; candidate_length];
    let mut reference_counts = vec![0_u32; matches_by_start.len()];
    for matched in matches_by_start.iter().flatten() {
        candidate_counts[matched.candidate.words()].iter_mut().for_each(|count| *count += 1);
        reference_counts[matched.reference.words()].iter_mut().for_each(|count| *count += 1);
    }
    let is_uncontested = |matched: &Match| {
        candidate_counts[matched.candidate.words()]
            .iter()
            .chain(&reference_counts[matched.reference.words()])
            .all(|&count| count == 1)
    };
    let mut used = vec![false; candidate_length];
    let uncontested = matches_by_start
        .iter_mut()
        .map(|matches| {
            let matched = matches.pop_if(|matched| is_uncontested(matched))?;
            used[matched.candidate.words()].fill(true);
            Some(matched)
        })
        .collect();
    (uncontested, used)
}

/// The first `beam_width` hypotheses by sort key, in a stable order.
fn keep_best(mut hypotheses: Vec<PartialAlignment>, beam_width: usize) -> Vec<PartialAlignment> {
    hypotheses.sort_by_key(PartialAlignment::sort_key);
    hypotheses.truncate(beam_width);
    hypotheses
}

/// A partial alignment: the hypothesis of the beam search for the first words of the reference
/// caption.
#[derive(Debug, Default, Clone)]
struct PartialAlignment {
    /// The sum of [`Match::search_gain`].
    gain: usize,
    chunks: usize,
    distance: usize,
    /// The index of the next word of the reference caption.
    next: usize,
    /// The candidate's word that would continue the current chunk, if there is one.
    open_chunk_end: Option<usize>,
    /// The index of the last match in [`BeamSearch::nodes`].
    last_node: Option<usize>,
    /// Which words of the candidate are used, without those of `pending`.
    used: Rc<[bool]>,
    /// The last match. Its words are added to `used` only when the hypothesis is extended, because
    /// most hypotheses are dropped before and need no copy of `used`.
    pending: Option<Match>,
}

impl PartialAlignment {
    /// The key by which hypotheses are sorted: the best one has the smallest key.
    fn sort_key(&self) -> (Reverse<usize>, usize, usize) {
        (Reverse(self.gain), self.chunks, self.distance)
    }

    fn mark_used(&mut self) {
        if let Some(pending) = self.pending.take() {
            Rc::make_mut(&mut self.used)[pending.candidate.words()].fill(true);
        }
    }

    fn end_chunk(&mut self) {
        self.chunks += usize::from(self.open_chunk_end.take().is_some());
    }
}

/// The matches of all hypotheses, as trees in which hypotheses share their first matches.
struct BeamSearch {
    /// A match, and the index of the previous match of the same hypothesis.
    nodes: Vec<(Match, Option<usize>)>,
}

impl BeamSearch {
    /// Adds a match that starts at the next word of `hypothesis`.
    fn add_match(&mut self, hypothesis: &mut PartialAlignment, matched: Match) {
        hypothesis.gain += matched.search_gain();
        if hypothesis.open_chunk_end != Some(matched.candidate.start) {
            hypothesis.end_chunk();
        }
        hypothesis.open_chunk_end = Some(matched.candidate.end());
        hypothesis.next = matched.reference.end();
        self.nodes.push((matched, hypothesis.last_node));
        hypothesis.last_node = Some(self.nodes.len() - 1);
    }

    /// Adds an extended copy of `hypothesis` for each match that it can use, and extends
    /// `hypothesis` itself without a match.
    fn branch(&mut self, hypothesis: &mut PartialAlignment, matches: &[Match], hypotheses: &mut Vec<PartialAlignment>) {
        for &matched in matches {
            if hypothesis.used[matched.candidate.words()].contains(&true) {
                continue;
            }
            let mut extended = hypothesis.clone();
            self.add_match(&mut extended, matched);
            extended.pending = Some(matched);
            hypotheses.push(extended);
            // METEOR adds the distance of a match to the original hypothesis, and thereby to the
            // copies for later matches, but not to the copy that uses the match. This quirk decides
            // ties.
            hypothesis.distance += matched.distance();
        }
        hypothesis.end_chunk();
        hypothesis.next += 1;
    }

    fn matches_up_to(&self, last: Option<usize>) -> Vec<Match> {
        std::iter::successors(last, |&index| self.nodes[index].1).map(|index| self.nodes[index].0).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::matcher::WordSpan;
    use super::super::tables::MatchStage;
    use super::*;

    /// Words of each caption.
    const LENGTH: usize = 6;

    fn any_match() -> impl Strategy<Value = Match> {
        let span = || {
            (0..LENGTH, 1..=2_usize).prop_map(|(start, length)| WordSpan { start, length: length.min(LENGTH - start) })
        };
        let stage = prop_oneof![Just(MatchStage::Exact), Just(MatchStage::Synonym)];
        (span(), span(), stage).prop_map(|(candidate, reference, stage)| Match { stage, candidate, reference })
    }

    fn overlap(a: &Match, b: &Match) -> bool {
        let share = |a: WordSpan, b: WordSpan| a.start < b.end() && b.start < a.end();
        share(a.candidate, b.candidate) || share(a.reference, b.reference)
    }

    fn are_disjoint(matches: &[Match]) -> bool {
        matches.iter().enumerate().all(|(index, a)| !matches[..index].iter().any(|b| overlap(a, b)))
    }

    fn gain(matches: &[Match]) -> usize {
        matches.iter().map(Match::search_gain).sum()
    }

    fn chunks(matches: &[Match]) -> usize {
        let continues =
            |a: &Match, b: &Match| a.candidate.end() == b.candidate.start && a.reference.end() == b.reference.start;
        matches.iter().filter(|b| !matches.iter().any(|a| continues(a, b))).count()
    }

    /// The maximal gain, then the minimal number of chunks, of all sets of disjoint matches that
    /// contain the uncontested ones.
    fn optimum(matches: &[Match]) -> (Reverse<usize>, usize) {
        let is_uncontested = |index: usize| {
            !matches.iter().enumerate().any(|(other, matched)| other != index && overlap(matched, &matches[index]))
        };
        let forced =
            (0..matches.len()).filter(|&index| is_uncontested(index)).fold(0, |bits, index| bits | 1_u32 << index);
        (0..1_u32 << matches.len())
            .filter(|choice| choice & forced == forced)
            .map(|choice| {
                (0..matches.len()).filter(|index| choice >> index & 1 == 1).map(|index| matches[index]).collect()
            })
            .filter(|chosen: &Vec<Match>| are_disjoint(chosen))
            .map(|chosen| (Reverse(gain(&chosen)), chunks(&chosen)))
            .min()
            .unwrap()
    }

    fn matches_by_start(matches: &[Match]) -> Vec<Vec<Match>> {
        let mut matches_by_start = vec![Vec::new(); LENGTH];
        matches.iter().for_each(|&matched| matches_by_start[matched.reference.start].push(matched));
        matches_by_start
    }

    proptest! {
        #[test]
        fn a_wide_beam_finds_the_optimal_alignment(
            matches in prop::collection::vec(any_match(), 0..11),
        ) {
            let alignment = align_with_beam_width(usize::MAX, matches_by_start(&matches), LENGTH);
            prop_assert!(are_disjoint(&alignment.matches));
            prop_assert_eq!(alignment.chunks, chunks(&alignment.matches));
            prop_assert_eq!((Reverse(gain(&alignment.matches)), alignment.chunks), optimum(&matches));
        }

        #[test]
        fn a_narrow_beam_finds_a_valid_alignment(
            matches in prop::collection::vec(any_match(), 0..30),
            beam_width in 1..3_usize,
        ) {
            let alignment = align_with_beam_width(beam_width, matches_by_start(&matches), LENGTH);
            prop_assert!(are_disjoint(&alignment.matches));
            prop_assert_eq!(alignment.chunks, chunks(&alignment.matches));
            prop_assert!(alignment.matches.iter().all(|matched| matches.contains(matched)));
        }
    }

    fn exact_match(candidate: usize, reference: usize) -> Match {
        let span = |start| WordSpan { start, length: 1 };
        Match { stage: MatchStage::Exact, candidate: span(candidate), reference: span(reference) }
    }

    #[test]
    fn fewer_chunks_are_preferred() {
        // Word 0 of the reference is words 0 and 2 of the candidate, word 1 is its word 3.
        let matches_by_start = vec![vec![exact_match(0, 0), exact_match(2, 0)], vec![exact_match(3, 1)]];
        assert_eq!(
            align(matches_by_start, 4),
            Alignment { matches: vec![exact_match(3, 1), exact_match(2, 0)], chunks: 1 }
        );
    }

    #[test]
    fn captions_without_matches_have_no_chunks() {
        assert_eq!(align(vec![Vec::new(); 3], 2), Alignment { matches: Vec::new(), chunks: 0 });
        assert_eq!(align(Vec::new(), 0), Alignment { matches: Vec::new(), chunks: 0 });
    }
}
