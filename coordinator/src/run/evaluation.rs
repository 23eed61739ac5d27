//! Evaluations: collecting the captions and scores that members send, within bounds.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use proto::v1;

use super::plan::Place;

/// The scores that workers may report of a caption; a bounded set, because they become metric labels.
pub const SCORES: [&str; 6] = ["pac_s", "retrieval_r1", "grammatical", "truthful", "details", "mean_length"];

/// Longest image name, caption or reference, in bytes.
const LONGEST_TEXT: usize = 4 << 10;
/// Most references of an image.
const MOST_REFERENCES: usize = 32;
/// Most items of an evaluation.
const MOST_ITEMS: usize = 1_000_000;

/// One image's caption and what is known of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// Name of the image.
    pub image: String,
    /// What the captioner wrote.
    pub caption: String,
    /// What people wrote.
    pub references: Vec<String>,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
}

/// An evaluation under way.
#[derive(Debug)]
pub struct Evaluation {
    /// Its number, as in the directive.
    pub number: u64,
    /// The state that is evaluated.
    pub place: Place,
    items: BTreeMap<String, Item>,
    duplicates: u64,
    done: BTreeSet<u32>,
}

impl Evaluation {
    /// An evaluation that nothing was reported of yet.
    #[must_use]
    pub fn new(number: u64, place: Place) -> Self {
        Self { number, place, items: BTreeMap::new(), duplicates: 0, done: BTreeSet::new() }
    }

    /// Takes in some items of `rank`; of an image that is known already the first item is kept.
    pub fn add(&mut self, rank: u32, items: Vec<v1::EvaluationItem>) -> Result<(), String> {
        if self.done.contains(&rank) {
            return Err("evaluation items after the evaluation was reported done".into());
        }
        for item in items {
            check(&item)?;
            let full = self.items.len() >= MOST_ITEMS;
            match self.items.entry(item.image.clone()) {
                Entry::Occupied(_) => self.duplicates += 1,
                Entry::Vacant(_) if full => return Err(format!("more than {MOST_ITEMS} items in an evaluation")),
                Entry::Vacant(entry) => {
                    let scores = item.scores.into_iter().collect();
                    let v1::EvaluationItem { image, caption, references, .. } = item;
                    entry.insert(Item { image, caption, references, scores });
                }
            }
        }
        Ok(())
    }

    /// Notes that `rank` has sent all of its items.
    pub fn done(&mut self, rank: u32) {
        self.done.insert(rank);
    }

    /// Whether `world` members have sent all of their items.
    #[must_use]
    pub fn complete(&self, world: usize) -> bool {
        self.done.len() >= world
    }

    /// All items, by image name, and how many more came for an image that was known already.
    #[must_use]
    pub fn into_items(self) -> (Vec<Item>, u64) {
        (self.items.into_values().collect(), self.duplicates)
    }
}

fn check(item: &v1::EvaluationItem) -> Result<(), String> {
    let texts = [&item.image, &item.caption].into_iter().chain(&item.references);
    if texts.into_iter().any(|text| text.len() > LONGEST_TEXT) {
        return Err(format!("a text of more than {LONGEST_TEXT} bytes in an evaluation"));
    }
    if item.references.len() > MOST_REFERENCES {
        return Err(format!("more than {MOST_REFERENCES} references of an image"));
    }
    match item.scores.iter().find(|(name, score)| !SCORES.contains(&name.as_str()) || !score.is_finite()) {
        Some((name, score)) => Err(format!("score `{}` = {score}: unknown or not finite", name.escape_debug())),
        None => Ok(()),
    }
}

/// The mean of every score over the items that have it.
#[must_use]
pub fn means(items: &[Item]) -> BTreeMap<String, f64> {
    let of = |name: &str| {
        let scores: Vec<f64> = items.iter().filter_map(|item| item.scores.get(name).copied()).collect();
        (!scores.is_empty()).then(|| (name.to_owned(), scores.iter().sum::<f64>() / scores.len() as f64))
    };
    SCORES.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(image: &str, pac_s: f64) -> v1::EvaluationItem {
        v1::EvaluationItem { image: image.into(), scores: [("pac_s".into(), pac_s)].into(), ..Default::default() }
    }

    #[test]
    fn items_are_sorted_and_the_first_of_an_image_counts() {
        let mut evaluation = Evaluation::new(1, Place::default());
        evaluation.add(0, vec![item("b", 1.0), item("a", 0.5)]).unwrap();
        evaluation.add(1, vec![item("b", 9.0)]).unwrap();
        evaluation.done(0);
        assert!(!evaluation.complete(2));
        evaluation.done(1);
        assert!(evaluation.complete(2));
        let (items, duplicates) = evaluation.into_items();
        assert_eq!(items.iter().map(|item| item.image.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((duplicates, means(&items)["pac_s"]), (1, 0.75));
    }

    #[test]
    fn a_peer_cannot_send_without_bounds() {
        let long = v1::EvaluationItem { caption: "x".repeat(LONGEST_TEXT + 1), ..Default::default() };
        let many = v1::EvaluationItem { references: vec![String::new(); MOST_REFERENCES + 1], ..Default::default() };
        let unknown = v1::EvaluationItem { scores: [("bleu".into(), 1.0)].into(), ..Default::default() };
        for item in [long, many, unknown, item("a", f64::NAN)] {
            Evaluation::new(1, Place::default()).add(0, vec![item]).unwrap_err();
        }
    }
}
