//! The captions of an evaluation: collected range by range, with limits on size and content.
//!
//! The validation split is divided into ranges. A range counts only when all of it is reported. So
//! the ranges that a generation completed before it ended stay complete, and each image counts
//! once.

use std::collections::{BTreeMap, HashSet};

use caption_metrics::Embeddings;
use config::{NamedEvaluator, RunFile};
use dataset::limits::{MAX_CAPTIONS, MAX_EMBEDDING, MAX_EVALUATION_BYTES, MAX_TEXT_BYTES, evaluation_item_bytes};
use proto::{EVALUATION_RANGE, v1};

use super::shares;

/// The names that workers may report for a caption. They are a fixed set, because scores become
/// metric labels.
#[derive(Clone, Debug)]
pub struct ReportableScores {
    /// Names of the scores that workers compute, with models or scenes.
    scores: Vec<String>,
    /// The name prefix of each evaluator's retrieval metrics.
    prefixes: Vec<String>,
}

impl ReportableScores {
    /// The names for the evaluations of a run.
    #[must_use]
    pub fn of(run: &RunFile) -> Self {
        let prefixes = run.named_evaluators().iter().map(NamedEvaluator::retrieval_prefix).collect();
        Self { scores: run.scores_by_workers(), prefixes }
    }
}

/// Images `begin..end` of the validation split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Images {
    /// The first image.
    pub begin: u64,
    /// The image after the last.
    pub end: u64,
}

impl From<v1::ImageRange> for Images {
    fn from(v1::ImageRange { begin, end }: v1::ImageRange) -> Self {
        Self { begin, end }
    }
}

impl From<Images> for v1::ImageRange {
    fn from(Images { begin, end }: Images) -> Self {
        Self { begin, end }
    }
}

/// The ranges of a split with this number of images, each of `EVALUATION_RANGE` images but the
/// last.
fn ranges(images: u64) -> impl Iterator<Item = Images> {
    let begins = (0..images.div_ceil(EVALUATION_RANGE)).map(|index| index * EVALUATION_RANGE);
    begins.map(move |begin| Images { begin, end: images.min(begin + EVALUATION_RANGE) })
}

/// The part of some ranges for `rank` of `world`.
#[must_use]
pub fn share(ranges: &[Images], world: u32, rank: u32) -> &[Images] {
    let part = shares::equal(ranges.len() as u32, world, rank);
    &ranges[part.start as usize..part.end as usize]
}

/// The caption of one image, with references, scores and embeddings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// The name of the image, unique in the split: data sets ensure that when they are loaded.
    pub image: String,
    /// The image's number in its data set, if it has one.
    pub image_id: Option<u64>,
    /// The captioner's output.
    pub caption: String,
    /// The reference captions.
    pub references: Vec<String>,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
    /// The evaluators' embeddings, by name prefix of the evaluator's retrieval metrics.
    pub embeddings: BTreeMap<String, Embeddings>,
}

impl Item {
    /// Reads an item of a report. Fails with a message if it exceeds a limit or has an unknown
    /// name. Workers check their data against the same [limits](dataset::limits).
    fn read(item: v1::EvaluationItem, reportable: &ReportableScores) -> Result<Self, String> {
        let v1::EvaluationItem { image, caption, references, scores, image_id, embeddings, continued: _ } = item;
        if [&image, &caption].into_iter().any(|text| text.len() > MAX_TEXT_BYTES) {
            return Err(format!("a text of more than {MAX_TEXT_BYTES} bytes in an evaluation"));
        }
        let odd = |(name, score): &(&String, &f64)| !reportable.scores.contains(name) || !score.is_finite();
        if let Some((name, score)) = scores.iter().find(odd) {
            return Err(format!("score `{}` = {score}: unknown or not finite", name.escape_debug()));
        }
        let mut by_evaluator = BTreeMap::new();
        for v1::Embeddings { prefix, image, text } in embeddings {
            if !reportable.prefixes.contains(&prefix) {
                return Err(format!("embeddings of the unknown evaluator `{}`", prefix.escape_debug()));
            }
            let (width, other) = (image.len(), text.len());
            if width != other || width == 0 {
                return Err(format!("embeddings of {width} and {other} numbers: they must be equally long"));
            }
            if image.iter().chain(&text).any(|x| !x.is_finite()) {
                return Err("an embedding that is not finite".into());
            }
            if by_evaluator.insert(prefix, Embeddings { image, text }).is_some() {
                return Err("embeddings of one evaluator twice".into());
            }
        }
        let numbers: usize = by_evaluator.values().map(|embeddings| embeddings.image.len()).sum();
        if numbers > MAX_EMBEDDING {
            return Err(format!("embeddings of {numbers} numbers, {MAX_EMBEDDING} at most"));
        }
        let scores = scores.into_iter().collect();
        let mut item = Self { image, image_id, caption, references: Vec::new(), scores, embeddings: by_evaluator };
        item.refer(references)?;
        Ok(item)
    }

    /// Adds further references of the image, from a continued item.
    fn refer(&mut self, references: Vec<String>) -> Result<(), String> {
        if references.iter().any(|text| text.len() > MAX_TEXT_BYTES) {
            return Err(format!("a reference of more than {MAX_TEXT_BYTES} bytes"));
        }
        if self.references.len() + references.len() > MAX_CAPTIONS {
            return Err(format!("more than {MAX_CAPTIONS} references of an image"));
        }
        self.references.extend(references);
        Ok(())
    }

    /// Its size in memory, in bytes.
    fn bytes(&self) -> usize {
        // The name is in the set of names, too.
        let texts = [&self.image, &self.image, &self.caption].into_iter().chain(&self.references);
        let numbers = self.embeddings.values().map(|embeddings| embeddings.image.len() + embeddings.text.len()).sum();
        evaluation_item_bytes(texts.map(String::len), numbers)
    }
}

/// The captions of a split that have been reported so far.
#[derive(Debug)]
pub struct Captions {
    images: u64,
    reported: BTreeMap<Images, Vec<Item>>,
    /// Ranges of which a first part is reported.
    partial: BTreeMap<Images, Vec<Item>>,
    /// The names of the images of `reported`.
    names: HashSet<String>,
    /// The size in memory of the items of both, in bytes.
    bytes: usize,
    /// The width of each evaluator's embeddings, by prefix; the first item with one sets it.
    widths: BTreeMap<String, usize>,
    reportable: ReportableScores,
}

impl Captions {
    /// The captions of a split with this number of images, none of them reported yet.
    #[must_use]
    pub fn new(images: u64, reportable: ReportableScores) -> Self {
        let (reported, partial, names) = (BTreeMap::new(), BTreeMap::new(), HashSet::new());
        Self { images, reported, partial, names, bytes: 0, widths: BTreeMap::new(), reportable }
    }

    /// Removes incomplete ranges: they will be reported from the start, as by another worker.
    pub fn restart(&mut self) {
        let partial = std::mem::take(&mut self.partial);
        self.bytes -= partial.values().flatten().map(Item::bytes).sum::<usize>();
    }

    /// The ranges that are not complete.
    #[must_use]
    pub fn missing(&self) -> Vec<Images> {
        ranges(self.images).filter(|range| !self.reported.contains_key(range)).collect()
    }

    /// Whether all ranges are complete.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.reported.len() as u64 == self.images.div_ceil(EVALUATION_RANGE)
    }

    /// Adds items of a missing range, the last of it unless `more` follow. Fails with a message if
    /// an item is invalid; then the range is missing again as a whole.
    pub fn add(&mut self, range: Images, items: Vec<v1::EvaluationItem>, more: bool) -> Result<(), String> {
        let mut whole = self.partial.remove(&range).unwrap_or_default();
        self.bytes -= whole.iter().map(Item::bytes).sum::<usize>();
        for item in items {
            if item.continued {
                let before = whole.last_mut().ok_or("references of no item")?;
                before.refer(item.references)?;
            } else {
                whole.push(Item::read(item, &self.reportable)?);
            }
        }
        if whole.len() as u64 > range.end - range.begin {
            return Err(format!("{} items for the images {}..{}", whole.len(), range.begin, range.end));
        }
        let bytes = whole.iter().map(Item::bytes).sum::<usize>() + self.bytes;
        if bytes > MAX_EVALUATION_BYTES {
            return Err(format!("an evaluation of more than {MAX_EVALUATION_BYTES} bytes"));
        }
        let mut widths = self.widths.clone();
        // An item with embeddings that are not finite has none.
        for (prefix, embeddings) in whole.iter().flat_map(|item| &item.embeddings) {
            let other = embeddings.text.len();
            let width = *widths.entry(prefix.clone()).or_insert(other);
            if other != width {
                return Err(format!("an embedding of {other} numbers where others of the evaluation have {width}"));
            }
        }
        let mut names = HashSet::with_capacity(whole.len());
        let again = whole.iter().find(|item| self.names.contains(&item.image) || !names.insert(item.image.clone()));
        if let Some(Item { image, .. }) = again {
            return Err(format!("the image `{}` twice in an evaluation", image.escape_debug()));
        }
        (self.bytes, self.widths) = (bytes, widths);
        if more {
            self.partial.insert(range, whole);
        } else {
            self.names.extend(names);
            self.reported.insert(range, whole);
        }
        Ok(())
    }

    /// All items, sorted by image name.
    #[must_use]
    pub fn into_items(self) -> Vec<Item> {
        let mut items: Vec<Item> = self.reported.into_values().flatten().collect();
        items.sort_by(|a, b| a.image.cmp(&b.image));
        items
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(image: &str, pac_s: f64) -> v1::EvaluationItem {
        v1::EvaluationItem { image: image.into(), scores: [("pac_s".into(), pac_s)].into(), ..Default::default() }
    }

    fn embedded(width: usize) -> v1::EvaluationItem {
        embedded_by("", vec![0.5; width], vec![0.5; width])
    }

    fn embedded_by(prefix: &str, image: Vec<f32>, text: Vec<f32>) -> v1::EvaluationItem {
        let embeddings = vec![v1::Embeddings { prefix: prefix.into(), image, text }];
        v1::EvaluationItem { embeddings, ..item("a", 1.0) }
    }

    fn of(images: u64) -> Captions {
        let reportable =
            ReportableScores { scores: vec!["pac_s".into()], prefixes: vec![String::new(), "clip_s_".into()] };
        Captions::new(images, reportable)
    }

    #[test]
    fn items_are_sorted_and_every_image_is_there_once() {
        let mut captions = of(EVALUATION_RANGE + 2);
        let [first, second] = captions.missing()[..] else { panic!("two ranges") };
        assert_eq!(second, Images { begin: EVALUATION_RANGE, end: EVALUATION_RANGE + 2 });
        // Ranges may be reported in any order.
        captions.add(second, vec![item("b", 9.0)], false).unwrap();
        assert_eq!((captions.missing(), captions.complete()), (vec![first], false));
        for twice in [vec![item("b", 1.0)], vec![item("c", 1.0), item("c", 2.0)]] {
            assert!(captions.add(first, twice, false).unwrap_err().ends_with("twice in an evaluation"));
        }
        captions.add(first, vec![item("c", 1.0), item("a", 0.5)], false).unwrap();
        assert!(captions.complete());
        let items = captions.into_items();
        let scores: Vec<_> = items.iter().map(|item| (item.image.as_str(), item.scores["pac_s"])).collect();
        assert_eq!(scores, [("a", 0.5), ("b", 9.0), ("c", 1.0)]);
    }

    #[test]
    fn a_peer_cannot_send_without_bounds() {
        let long = v1::EvaluationItem { caption: "x".repeat(MAX_TEXT_BYTES + 1), ..Default::default() };
        let many = v1::EvaluationItem { references: vec![String::new(); MAX_CAPTIONS + 1], ..Default::default() };
        let wordy = v1::EvaluationItem { references: vec!["x".repeat(MAX_TEXT_BYTES + 1)], ..Default::default() };
        let orphan = v1::EvaluationItem { continued: true, ..Default::default() };
        let unknown = v1::EvaluationItem { scores: [("mean_length".into(), 1.0)].into(), ..Default::default() };
        let wide = embedded(MAX_EMBEDDING + 1);
        let lame = embedded_by("", vec![0.5; 2], vec![1.0]);
        let empty = embedded_by("", vec![], vec![]);
        let infinite = embedded_by("", vec![f32::INFINITY], vec![0.5]);
        let stranger = embedded_by("judge_", vec![0.5], vec![0.5]);
        let [mut twice, mut broad] = [1, MAX_EMBEDDING].map(embedded);
        twice.embeddings.extend(embedded(1).embeddings);
        broad.embeddings.extend(embedded_by("clip_s_", vec![0.5], vec![0.5]).embeddings);
        let odd = [long, many, wordy, orphan, unknown, item("a", f64::NAN), wide, lame, empty, infinite, stranger];
        for item in odd.into_iter().chain([twice, broad]) {
            of(1).add(Images { begin: 0, end: 1 }, vec![item], false).unwrap_err();
        }
        let mut captions = of(EVALUATION_RANGE * 2);
        let [first, second] = captions.missing()[..] else { panic!("two ranges") };
        let crowd = (0..EVALUATION_RANGE).map(|number| item(&number.to_string(), 1.0));
        captions.add(first, crowd.collect(), true).unwrap();
        captions.add(first, vec![item("a", 1.0)], false).unwrap_err();
        let more =
            v1::EvaluationItem { references: vec![String::new(); MAX_CAPTIONS], continued: true, ..Default::default() };
        captions.add(first, vec![item("a", 1.0), more.clone()], true).unwrap();
        captions.add(first, vec![more], true).unwrap_err();
        let other = |width| v1::EvaluationItem { image: "b".into(), ..embedded(width) };
        captions.add(first, vec![embedded(4), other(3)], false).unwrap_err();
        captions.add(first, vec![embedded(4)], false).unwrap();
        captions.add(second, vec![other(3)], false).unwrap_err();
        // A refused report leaves no trace.
        assert_eq!(captions.missing(), [second]);
        captions.bytes = MAX_EVALUATION_BYTES - 100;
        captions.add(second, vec![other(4)], true).unwrap_err();
    }

    #[test]
    fn what_data_may_hold_is_taken_in_and_parts_of_a_range_count_when_the_last_is_there() {
        let text = |number: usize| format!("{number:04}{}", "x".repeat(MAX_TEXT_BYTES - 4));
        let with = |references: usize| v1::EvaluationItem {
            image: text(0),
            caption: text(1),
            references: (0..references).map(text).collect(),
            ..item("", 1.0)
        };
        for items in [vec![with(33)], vec![item("a", 1.0), with(MAX_CAPTIONS), item("b", 1.0)]] {
            let mut captions = of(EVALUATION_RANGE);
            let range = captions.missing()[0];
            let mut parts = proto::parts(items.clone());
            let last = parts.pop().unwrap();
            for part in &parts {
                captions.add(range, part.clone(), true).unwrap();
                assert_eq!((captions.missing(), captions.complete()), (vec![range], false));
            }
            // The worker that sent them is lost: another one begins from the start.
            captions.restart();
            assert_eq!(captions.bytes, 0);
            for part in parts {
                captions.add(range, part, true).unwrap();
            }
            captions.add(range, last, false).unwrap();
            assert!(captions.complete());
            let found = captions.into_items();
            let references = |items: Vec<Item>| items.into_iter().map(|item| item.references.len()).max();
            assert_eq!(references(found), items.iter().map(|item| item.references.len()).max());
        }
    }

    #[test]
    fn a_range_may_have_no_numbers_of_some_images() {
        let mut captions = of(EVALUATION_RANGE);
        let range = captions.missing()[0];
        let blind = v1::EvaluationItem { image: "b".into(), ..Default::default() };
        let last = v1::EvaluationItem { image: "c".into(), ..embedded(4) };
        captions.add(range, vec![embedded(4), blind, last], false).unwrap();
        assert!(captions.complete());
    }

    proptest! {
        #[test]
        fn every_range_falls_to_one_rank(images in 0..5_000_u64, world in 1..40_u32) {
            let all = of(images).missing();
            let shares: Vec<&[Images]> = (0..world).map(|rank| share(&all, world, rank)).collect();
            prop_assert_eq!(shares.concat(), all.clone());
            prop_assert!(shares.iter().all(|share| share.len() - all.len() / world as usize <= 1));
            let covered: Vec<u64> = all.iter().flat_map(|range| range.begin..range.end).collect();
            prop_assert_eq!(covered, (0..images).collect::<Vec<_>>());
        }
    }
}
