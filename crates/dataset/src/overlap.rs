//! Images in several splits, which evaluations would score although they were trained on.

use std::collections::HashSet;

use crate::{DataSet, Split};

impl DataSet {
    /// A line for each pair of splits that share images.
    #[must_use]
    pub fn overlaps(&self) -> Vec<String> {
        let places = Split::ALL.map(|split| self.split(split).iter().map(|item| self.place(item)).collect());
        let pairs = [(Split::Train, Split::Validation), (Split::Train, Split::Test), (Split::Validation, Split::Test)];
        pairs.into_iter().filter_map(|(first, second)| overlap(&places, first, second)).collect()
    }
}

/// `places` are those of the images of each split.
fn overlap(places: &[HashSet<String>; 3], first: Split, second: Split) -> Option<String> {
    let shared = places[first as usize].intersection(&places[second as usize]);
    let (count, example) = (shared.clone().count(), shared.min()?);
    Some(format!("{count} images are in both `{first}` and `{second}`, {example} for one"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageRef, Item, Splits};

    #[test]
    fn images_of_several_splits_are_counted_and_named() {
        let items = |names: &[&str]| -> Vec<Item> {
            names.iter().map(|name| Item::new(name, Vec::new(), ImageRef::File(format!("/i/{name}").into()))).collect()
        };
        let of = |train: &[&str], validation: &[&str], test: &[&str]| {
            let splits =
                Splits { train: items(train), validation: items(validation), test: items(test), ..Splits::default() };
            DataSet { splits, ..DataSet::default() }.overlaps()
        };
        assert_eq!(of(&["a", "b"], &["c"], &["d"]), [""; 0]);
        assert_eq!(
            of(&["a", "b", "c"], &["c", "b", "d"], &["d"]),
            [
                "2 images are in both `train` and `val`, /i/b for one",
                "1 images are in both `val` and `test`, /i/d for one"
            ]
        );
    }
}
