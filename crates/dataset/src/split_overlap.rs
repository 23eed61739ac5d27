//! Detection of images that are in several splits: evaluations would score images that the model
//! was trained on.

use std::collections::HashSet;

use crate::{DataSet, Split};

impl DataSet {
    /// A line for each pair of splits that share images.
    #[must_use]
    pub fn overlaps(&self) -> Vec<String> {
        let locations = Split::ALL.map(|split| self.split(split).iter().map(|item| self.location(item)).collect());
        let pairs = [(Split::Train, Split::Validation), (Split::Train, Split::Test), (Split::Validation, Split::Test)];
        pairs.into_iter().filter_map(|(first, second)| overlap_message(&locations, first, second)).collect()
    }
}

/// The message that two splits share images; none if they do not. `locations` has the image
/// locations of each split.
fn overlap_message(locations: &[HashSet<String>; 3], first: Split, second: Split) -> Option<String> {
    let shared = locations[first as usize].intersection(&locations[second as usize]);
    let (count, example) = (shared.clone().count(), shared.min()?);
    Some(format!("{count} images are in both `{first}` and `{second}`, {example} for one"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageRef, Item, Splits};

    #[test]
    fn images_that_are_in_two_splits_are_counted_and_named() {
        let items = |names: &[&str]| -> Vec<Item> {
            names.iter().map(|name| Item::new(name, Vec::new(), ImageRef::File(format!("/i/{name}").into()))).collect()
        };
        let overlaps = |train: &[&str], validation: &[&str], test: &[&str]| {
            let splits =
                Splits { train: items(train), validation: items(validation), test: items(test), ..Splits::default() };
            DataSet { splits, ..DataSet::default() }.overlaps()
        };
        assert_eq!(overlaps(&["a", "b"], &["c"], &["d"]), [""; 0]);
        assert_eq!(
            overlaps(&["a", "b", "c"], &["c", "b", "d"], &["d"]),
            [
                "2 images are in both `train` and `val`, /i/b for one",
                "1 images are in both `val` and `test`, /i/d for one"
            ]
        );
    }
}
