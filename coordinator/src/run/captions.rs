//! Captions of an evaluation: collected range by range, within bounds.
//!
//! The validation split is shared out in ranges, and a range is reported whole or not at all. So whatever a generation got
//! done before it ended stays done, and every image is captioned once.

use std::collections::{BTreeMap, HashSet};

use proto::{EVALUATION_RANGE, v1};

use super::shares;

/// Most images of a validation split; bounds what a directive and its answers can be made to hold.
pub const MOST_IMAGES: u64 = 1 << 22;
/// Bytes that the items of an evaluation may take in memory, by [`Item::bytes`].
const BUDGET: usize = 2 << 30;
/// Longest image name, caption or reference, in bytes.
const LONGEST_TEXT: usize = 4 << 10;
/// Most references of an image.
const MOST_REFERENCES: usize = 32;
/// Longest embedding.
const LONGEST_EMBEDDING: usize = 4096;
/// What a score takes in memory, name included.
const SCORE_BYTES: usize = 64;

/// The scores that workers may report of a caption, because they need the models or the scenes; a bounded set, because they
/// become metric labels.
const SCORES: [&str; 7] = ["pac_s", "ref_pac_s", "clip_s", "ref_clip_s", "grammatical", "truthful", "details"];

/// Images `begin..end` of the validation split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Images {
    /// The first.
    pub begin: u64,
    /// The one after the last.
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

/// The ranges of a split of so many images.
fn ranges(images: u64) -> impl Iterator<Item = Images> {
    let begins = (0..images.div_ceil(EVALUATION_RANGE)).map(|index| index * EVALUATION_RANGE);
    begins.map(move |begin| Images { begin, end: images.min(begin + EVALUATION_RANGE) })
}

/// The part of some ranges that falls to `rank` of `world`.
#[must_use]
pub fn share(ranges: &[Images], world: u32, rank: u32) -> &[Images] {
    let part = shares::equal(ranges.len() as u32, world, rank);
    &ranges[part.start as usize..part.end as usize]
}

/// One image's caption and what is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// Name of the image, which no other image of the split has: data sets make it so when they are loaded.
    pub image: String,
    /// Its number in its data set, if it has one.
    pub image_id: Option<u64>,
    /// What the captioner wrote.
    pub caption: String,
    /// What people wrote.
    pub references: Vec<String>,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
    /// The evaluator's embedding of the image, if it has one, of unit length.
    pub image_embedding: Vec<f32>,
    /// The evaluator's embedding of the caption, as long as that of the image.
    pub text_embedding: Vec<f32>,
}

impl Item {
    /// Reads an item; says what is wrong with it if a worker cannot have meant it.
    fn read(item: v1::EvaluationItem) -> Result<Self, String> {
        let v1::EvaluationItem { image, caption, references, scores, image_id, image_embedding, text_embedding } = item;
        if [&image, &caption].into_iter().chain(&references).any(|text| text.len() > LONGEST_TEXT) {
            return Err(format!("a text of more than {LONGEST_TEXT} bytes in an evaluation"));
        }
        if references.len() > MOST_REFERENCES {
            return Err(format!("more than {MOST_REFERENCES} references of an image"));
        }
        let odd = |(name, score): &(&String, &f64)| !SCORES.contains(&name.as_str()) || !score.is_finite();
        if let Some((name, score)) = scores.iter().find(odd) {
            return Err(format!("score `{}` = {score}: unknown or not finite", name.escape_debug()));
        }
        let (width, other) = (image_embedding.len(), text_embedding.len());
        if width != other || width > LONGEST_EMBEDDING {
            return Err(format!(
                "embeddings of {width} and {other} numbers: they must be equally long, with {LONGEST_EMBEDDING} at most"
            ));
        }
        if image_embedding.iter().chain(&text_embedding).any(|x| !x.is_finite()) {
            return Err("an embedding that is not finite".into());
        }
        let scores = scores.into_iter().collect();
        Ok(Self { image, image_id, caption, references, scores, image_embedding, text_embedding })
    }

    /// What it takes in memory.
    fn bytes(&self) -> usize {
        // The name is in the set of names, too.
        let texts = 2 * self.image.len() + size_of::<String>() + self.caption.len();
        let references: usize = self.references.iter().map(|text| size_of::<String>() + text.len()).sum();
        let embeddings = (self.image_embedding.len() + self.text_embedding.len()) * size_of::<f32>();
        size_of::<Self>() + texts + references + self.scores.len() * SCORE_BYTES + embeddings
    }
}

/// Captions of a split, as far as they are reported.
#[derive(Debug)]
pub struct Captions {
    images: u64,
    reported: BTreeMap<Images, Vec<Item>>,
    /// Names of the images that are reported.
    names: HashSet<String>,
    bytes: usize,
    /// Numbers of an embedding; the first item says.
    width: Option<usize>,
}

impl Captions {
    /// Captions of a split of so many images, at most [`MOST_IMAGES`], none of them reported yet.
    #[must_use]
    pub fn new(images: u64) -> Self {
        Self { images, reported: BTreeMap::new(), names: HashSet::new(), bytes: 0, width: None }
    }

    /// The ranges that are not reported yet.
    #[must_use]
    pub fn missing(&self) -> Vec<Images> {
        ranges(self.images).filter(|range| !self.reported.contains_key(range)).collect()
    }

    /// Whether all ranges are reported.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.reported.len() as u64 == self.images.div_ceil(EVALUATION_RANGE)
    }

    /// Takes in a range that was missing; says what is wrong with its items if a worker cannot have meant them.
    pub fn add(&mut self, range: Images, items: Vec<v1::EvaluationItem>) -> Result<(), String> {
        if items.len() as u64 > range.end - range.begin {
            return Err(format!("{} items for the images {}..{}", items.len(), range.begin, range.end));
        }
        let items = items.into_iter().map(Item::read).collect::<Result<Vec<_>, _>>()?;
        let bytes = items.iter().map(Item::bytes).sum::<usize>() + self.bytes;
        if bytes > BUDGET {
            return Err(format!("an evaluation of more than {BUDGET} bytes"));
        }
        let mut width = self.width;
        for other in items.iter().map(|item| item.text_embedding.len()) {
            let width = *width.get_or_insert(other);
            if other != width {
                return Err(format!("an embedding of {other} numbers where others of the evaluation have {width}"));
            }
        }
        let mut names = HashSet::with_capacity(items.len());
        let again = items.iter().find(|item| self.names.contains(&item.image) || !names.insert(item.image.clone()));
        if let Some(Item { image, .. }) = again {
            return Err(format!("the image `{}` twice in an evaluation", image.escape_debug()));
        }
        self.names.extend(names);
        (self.bytes, self.width) = (bytes, width);
        self.reported.insert(range, items);
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
        let embedding = vec![0.5; width];
        v1::EvaluationItem { image_embedding: embedding.clone(), text_embedding: embedding, ..item("a", 1.0) }
    }

    #[test]
    fn every_score_of_a_caption_is_one_of_an_evaluation() {
        let known = statistics::names::EVALUATION.map(|(name, _)| name);
        assert!(SCORES.iter().all(|score| known.contains(score)));
    }

    #[test]
    fn items_are_sorted_and_every_image_is_there_once() {
        let mut captions = Captions::new(EVALUATION_RANGE + 2);
        let [first, second] = captions.missing()[..] else { panic!("two ranges") };
        assert_eq!(second, Images { begin: EVALUATION_RANGE, end: EVALUATION_RANGE + 2 });
        // Whoever is first to report.
        captions.add(second, vec![item("b", 9.0)]).unwrap();
        assert_eq!((captions.missing(), captions.complete()), (vec![first], false));
        for twice in [vec![item("b", 1.0)], vec![item("c", 1.0), item("c", 2.0)]] {
            assert!(captions.add(first, twice).unwrap_err().ends_with("twice in an evaluation"));
        }
        captions.add(first, vec![item("c", 1.0), item("a", 0.5)]).unwrap();
        assert!(captions.complete());
        let items = captions.into_items();
        let scores: Vec<_> = items.iter().map(|item| (item.image.as_str(), item.scores["pac_s"])).collect();
        assert_eq!(scores, [("a", 0.5), ("b", 9.0), ("c", 1.0)]);
    }

    #[test]
    fn a_peer_cannot_send_without_bounds() {
        let long = v1::EvaluationItem { caption: "x".repeat(LONGEST_TEXT + 1), ..Default::default() };
        let many = v1::EvaluationItem { references: vec![String::new(); MOST_REFERENCES + 1], ..Default::default() };
        let unknown = v1::EvaluationItem { scores: [("mean_length".into(), 1.0)].into(), ..Default::default() };
        let wide = embedded(LONGEST_EMBEDDING + 1);
        let lame = v1::EvaluationItem { text_embedding: vec![1.0], ..embedded(2) };
        let infinite = v1::EvaluationItem { image_embedding: vec![f32::INFINITY], ..embedded(1) };
        for item in [long, many, unknown, item("a", f64::NAN), wide, lame, infinite] {
            Captions::new(1).add(Images { begin: 0, end: 1 }, vec![item]).unwrap_err();
        }
        let mut captions = Captions::new(EVALUATION_RANGE * 2);
        let [first, second] = captions.missing()[..] else { panic!("two ranges") };
        captions.add(first, (0..=EVALUATION_RANGE).map(|i| item(&i.to_string(), 1.0)).collect()).unwrap_err();
        captions.add(first, vec![embedded(4), v1::EvaluationItem { image: "b".into(), ..embedded(3) }]).unwrap_err();
        captions.add(first, vec![embedded(4)]).unwrap();
        captions.add(second, vec![v1::EvaluationItem { image: "b".into(), ..embedded(3) }]).unwrap_err();
        // What was refused has left no trace.
        assert_eq!(captions.missing(), [second]);
        captions.bytes = BUDGET - 100;
        captions.add(second, vec![v1::EvaluationItem { image: "b".into(), ..embedded(4) }]).unwrap_err();
    }

    proptest! {
        #[test]
        fn every_range_falls_to_one_rank(images in 0..5_000_u64, world in 1..40_u32) {
            let all = Captions::new(images).missing();
            let shares: Vec<&[Images]> = (0..world).map(|rank| share(&all, world, rank)).collect();
            prop_assert_eq!(shares.concat(), all.clone());
            prop_assert!(shares.iter().all(|share| share.len() - all.len() / world as usize <= 1));
            let covered: Vec<u64> = all.iter().flat_map(|range| range.begin..range.end).collect();
            prop_assert_eq!(covered, (0..images).collect::<Vec<_>>());
        }
    }
}
