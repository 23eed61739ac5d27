//! Which of the possible matches of two captions to use: the reference's beam search over the words of the reference
//! caption. It prefers more matched words, then fewer chunks, then less distance, but what it returns also depends on
//! the order of the matches, on the width of the beam and on how it adds up the distance; all three are as there.

use std::cmp::Reverse;
use std::rc::Rc;

use super::matches::Match;

/// How many partial alignments survive each word of the reference caption.
const BEAM: usize = 40;

/// The matches of an alignment, no word in two of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    /// In the order of the reference caption, last first.
    pub matches: Vec<Match>,
    /// Into how many runs the matches fall that are adjacent and in the same order in both captions.
    pub chunks: usize,
}

/// Aligns a candidate of `candidate_length` words with a reference caption of as many words as there are entries in
/// `starting`: the possible matches by the word of the reference caption they start at, in order of preference.
pub(super) fn align(starting: Vec<Vec<Match>>, candidate_length: usize) -> Alignment {
    align_within(BEAM, starting, candidate_length)
}

fn align_within(beam: usize, mut starting: Vec<Vec<Match>>, candidate_length: usize) -> Alignment {
    let (fixed, used) = fix_unrivalled(&mut starting, candidate_length);
    let mut search = Search { taken: Vec::new() };
    let mut paths = vec![Path { used: used.into(), ..Path::default() }];
    for (position, matches) in starting.iter().enumerate() {
        let survivors = best(paths, beam);
        paths = Vec::with_capacity(survivors.len() * (matches.len() + 1));
        for mut path in survivors {
            path.occupy();
            if position < path.next {
                // Inside a match that is longer than one word.
            } else if let Some(only) = fixed[position] {
                path.distance += only.distance();
                search.take(&mut path, only);
            } else {
                search.branch(&mut path, matches, &mut paths);
            }
            paths.push(path);
        }
    }
    let mut finished = best(paths, beam);
    finished.iter_mut().for_each(Path::end_chunk);
    finished.sort_by_key(Path::rank);
    let Path { chunks, last, .. } = finished.swap_remove(0);
    Alignment { matches: search.matches_up_to(last), chunks }
}

/// Takes the matches out of `starting` that are alone at their start and share no word with any other match, and drops
/// those that share a word with one taken out. Returns those taken out, by start, and the words of the candidate that
/// they use.
fn fix_unrivalled(starting: &mut [Vec<Match>], candidate_length: usize) -> (Vec<Option<Match>>, Vec<bool>) {
    let mut rivals = (vec![0_u32; candidate_length], vec![0_u32; starting.len()]);
    for found in starting.iter().flatten() {
        rivals.0[found.candidate.words()].iter_mut().for_each(|count| *count += 1);
        rivals.1[found.reference.words()].iter_mut().for_each(|count| *count += 1);
    }
    let alone = |found: &Match| {
        rivals.0[found.candidate.words()].iter().chain(&rivals.1[found.reference.words()]).all(|&count| count == 1)
    };
    let mut used = vec![false; candidate_length];
    let fixed = starting
        .iter_mut()
        .map(|matches| {
            let only = matches.pop_if(|found| alone(found))?;
            used[only.candidate.words()].fill(true);
            Some(only)
        })
        .collect();
    (fixed, used)
}

/// The first `beam` of the paths by rank; those of the same rank stay in their order.
fn best(mut paths: Vec<Path>, beam: usize) -> Vec<Path> {
    paths.sort_by_key(Path::rank);
    paths.truncate(beam);
    paths
}

/// A partial alignment: what has become of the words of the reference caption so far.
#[derive(Debug, Default, Clone)]
struct Path {
    /// Matched words of both captions, in which only half the words of an inexact match count, rounded down.
    matched: usize,
    chunks: usize,
    distance: usize,
    /// Where in the reference caption it goes on.
    next: usize,
    /// The candidate's word that would continue the chunk, if one is open.
    open: Option<usize>,
    /// The last match taken, in [`Search::taken`].
    last: Option<usize>,
    /// Which words of the candidate are used, but for those of `entered`.
    used: Rc<[bool]>,
    /// The last match, while it is not in `used`: most paths do not survive to need that.
    entered: Option<Match>,
}

impl Path {
    /// The less, the better.
    fn rank(&self) -> (Reverse<usize>, usize, usize) {
        (Reverse(self.matched), self.chunks, self.distance)
    }

    fn occupy(&mut self) {
        if let Some(entered) = self.entered.take() {
            Rc::make_mut(&mut self.used)[entered.candidate.words()].fill(true);
        }
    }

    fn end_chunk(&mut self) {
        self.chunks += usize::from(self.open.take().is_some());
    }
}

/// The matches of all paths, in trees that share what their paths share.
struct Search {
    /// Each with the one before it on its path.
    taken: Vec<(Match, Option<usize>)>,
}

impl Search {
    /// Extends `path` by a match that starts where it goes on.
    fn take(&mut self, path: &mut Path, found: Match) {
        path.matched += found.gain();
        if path.open != Some(found.candidate.start) {
            path.end_chunk();
        }
        path.open = Some(found.candidate.end());
        path.next = found.reference.end();
        self.taken.push((found, path.last));
        path.last = Some(self.taken.len() - 1);
    }

    /// Adds a copy of `path` for each of the matches that it can take, and makes `path` the one that takes none.
    fn branch(&mut self, path: &mut Path, matches: &[Match], paths: &mut Vec<Path>) {
        for &found in matches {
            if path.used[found.candidate.words()].contains(&true) {
                continue;
            }
            let mut taking = path.clone();
            self.take(&mut taking, found);
            taking.entered = Some(found);
            paths.push(taking);
            // The distance of a match goes to the path that could have taken it, and thereby to the copies that take
            // a later one, but not to the copy that takes it: a slip of the reference, which decides ties.
            path.distance += found.distance();
        }
        path.end_chunk();
        path.next += 1;
    }

    fn matches_up_to(&self, last: Option<usize>) -> Vec<Match> {
        std::iter::successors(last, |&index| self.taken[index].1).map(|index| self.taken[index].0).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::matches::Span;
    use super::super::tables::Stage;
    use super::*;

    /// Words of each caption.
    const LENGTH: usize = 6;

    fn any_match() -> impl Strategy<Value = Match> {
        let span =
            || (0..LENGTH, 1..=2_usize).prop_map(|(start, length)| Span { start, length: length.min(LENGTH - start) });
        let stage = prop_oneof![Just(Stage::Exact), Just(Stage::Synonym)];
        (span(), span(), stage).prop_map(|(candidate, reference, stage)| Match { stage, candidate, reference })
    }

    fn overlap(a: &Match, b: &Match) -> bool {
        let share = |a: Span, b: Span| a.start < b.end() && b.start < a.end();
        share(a.candidate, b.candidate) || share(a.reference, b.reference)
    }

    fn are_disjoint(matches: &[Match]) -> bool {
        matches.iter().enumerate().all(|(index, a)| !matches[..index].iter().any(|b| overlap(a, b)))
    }

    fn gain(matches: &[Match]) -> usize {
        matches.iter().map(Match::gain).sum()
    }

    fn chunks(matches: &[Match]) -> usize {
        let continues =
            |a: &Match, b: &Match| a.candidate.end() == b.candidate.start && a.reference.end() == b.reference.start;
        matches.iter().filter(|b| !matches.iter().any(|a| continues(a, b))).count()
    }

    /// The most gain, then the fewest chunks, of all choices of disjoint matches that have those without rivals.
    fn optimum(matches: &[Match]) -> (Reverse<usize>, usize) {
        let unrivalled = |index: usize| {
            !matches.iter().enumerate().any(|(other, found)| other != index && overlap(found, &matches[index]))
        };
        let forced = (0..matches.len()).filter(|&index| unrivalled(index)).fold(0, |bits, index| bits | 1_u32 << index);
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

    fn starting(matches: &[Match]) -> Vec<Vec<Match>> {
        let mut starting = vec![Vec::new(); LENGTH];
        matches.iter().for_each(|&found| starting[found.reference.start].push(found));
        starting
    }

    proptest! {
        #[test]
        fn a_beam_wide_enough_finds_the_best_of_all_alignments(
            matches in prop::collection::vec(any_match(), 0..11),
        ) {
            let alignment = align_within(usize::MAX, starting(&matches), LENGTH);
            prop_assert!(are_disjoint(&alignment.matches));
            prop_assert_eq!(alignment.chunks, chunks(&alignment.matches));
            prop_assert_eq!((Reverse(gain(&alignment.matches)), alignment.chunks), optimum(&matches));
        }

        #[test]
        fn a_narrow_beam_finds_an_alignment(
            matches in prop::collection::vec(any_match(), 0..30),
            beam in 1..3_usize,
        ) {
            let alignment = align_within(beam, starting(&matches), LENGTH);
            prop_assert!(are_disjoint(&alignment.matches));
            prop_assert_eq!(alignment.chunks, chunks(&alignment.matches));
            prop_assert!(alignment.matches.iter().all(|found| matches.contains(found)));
        }
    }

    fn word(candidate: usize, reference: usize) -> Match {
        let span = |start| Span { start, length: 1 };
        Match { stage: Stage::Exact, candidate: span(candidate), reference: span(reference) }
    }

    #[test]
    fn fewer_chunks_are_preferred() {
        // Word 0 of the reference is words 0 and 2 of the candidate, word 1 is its word 3.
        let starting = vec![vec![word(0, 0), word(2, 0)], vec![word(3, 1)]];
        assert_eq!(align(starting, 4), Alignment { matches: vec![word(3, 1), word(2, 0)], chunks: 1 });
    }

    #[test]
    fn what_matches_nothing_has_no_chunks() {
        assert_eq!(align(vec![Vec::new(); 3], 2), Alignment { matches: Vec::new(), chunks: 0 });
        assert_eq!(align(Vec::new(), 0), Alignment { matches: Vec::new(), chunks: 0 });
    }
}
