//! Names and numeric ids of a split's images.
//!
//! A name identifies an image within its split: the journal, reports, the web page and result files
//! refer to images by name. All images of a split have the shortest kind of name that is unique for
//! each of them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::{ImageRef, Item, Split, Splits};

/// Makes a longer name for an image, such as its path.
pub type LongerName<'a> = &'a dyn Fn(&Item) -> String;

/// Makes names unique within each split, and keeps ids only if they are unique.
///
/// If two images of a split have the same name, all get the first of the `longer_names` that is
/// unique for all; a suffix is added to images that are listed several times. Reasons for dropped
/// ids are added to the notes of `splits`.
pub fn make_unique(splits: &mut Splits, longer_names: &[LongerName<'_>]) {
    for split in Split::ALL {
        let items = splits.get_mut(split);
        make_names_unique(items, longer_names);
        let note = drop_ambiguous_ids(items).map(|problem| {
            format!("split `{split}`: {problem}: its result files identify images by name instead of by number")
        });
        splits.notes.extend(note);
        mark_shared(splits.get_mut(split));
    }
}

fn make_names_unique(items: &mut [Item], longer_names: &[LongerName<'_>]) {
    for longer_name in longer_names {
        if are_names_unique(items) {
            return;
        }
        for item in items.iter_mut() {
            let name = longer_name(item);
            let shorter = std::mem::replace(&mut item.name, name);
            item.path.get_or_insert(shorter);
        }
    }
    if !are_names_unique(items) {
        append_suffixes(items);
    }
}

fn are_names_unique(items: &[Item]) -> bool {
    let mut seen = HashSet::with_capacity(items.len());
    items.iter().all(|item| seen.insert(item.name.as_str()))
}

/// Appends suffixes: `a.jpg`, `a.jpg #2`, `a.jpg #3`. Takes time linear in the number of images.
fn append_suffixes(items: &mut [Item]) {
    let mut taken: HashSet<String> = items.iter().map(|item| item.name.clone()).collect();
    let mut last_suffix: HashMap<String, u64> = HashMap::new();
    for item in items {
        match last_suffix.entry(item.name.clone()) {
            Entry::Vacant(first) => _ = first.insert(1),
            Entry::Occupied(mut last) => {
                let unused = (*last.get() + 1..).find(|number| !taken.contains(&format!("{} #{number}", item.name)));
                let number = unused.unwrap_or(u64::MAX);
                last.insert(number);
                let name = format!("{} #{number}", item.name);
                taken.insert(name.clone());
                let original = std::mem::replace(&mut item.name, name);
                item.path.get_or_insert(original);
            }
        }
    }
}

/// Drops all ids unless each image has a unique one. Returns the reason.
fn drop_ambiguous_ids(items: &mut [Item]) -> Option<String> {
    let without_id = items.iter().filter(|item| item.id.is_none()).count();
    if without_id == items.len() {
        return None;
    }
    let mut by_id: HashMap<u64, &Item> = HashMap::with_capacity(items.len());
    let duplicate = items.iter().find_map(|item| {
        let id = item.id?;
        let other = by_id.insert(id, item)?;
        Some(format!("{} and {} both have the id {id}", other.name, item.name))
    });
    let missing = || {
        let item = items.iter().find(|item| item.id.is_none())?;
        Some(format!("{without_id} of {} images have no id, {} for one", items.len(), item.name))
    };
    let problem = duplicate.or_else(missing)?;
    items.iter_mut().for_each(|item| item.id = None);
    Some(problem)
}

/// Marks images whose path or file name is shared with other images.
fn mark_shared(items: &mut [Item]) {
    let paths = shared_names(items.iter().map(|item| (item.path(), &item.image)));
    let files = shared_names(items.iter().map(|item| (file_name(item.path()), &item.image)));
    if paths.is_empty() && files.is_empty() {
        return;
    }
    for item in items {
        item.shares_path = paths.contains(item.path());
        item.shares_file_name = files.contains(file_name(item.path()));
    }
}

/// The names that more than one image has. An image that is listed twice counts once.
fn shared_names<'a>(names: impl Iterator<Item = (&'a str, &'a ImageRef)>) -> HashSet<String> {
    let mut first = HashMap::new();
    let mut shared = HashSet::new();
    for (name, image) in names {
        if *first.entry(name).or_insert(image) != image && !shared.contains(name) {
            shared.insert(name.to_owned());
        }
    }
    shared
}

/// The last component of a path.
pub fn file_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

impl Item {
    /// The path below the folder of images, or the key in the tar. Images of several tars may share
    /// it.
    #[must_use]
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(&self.name)
    }

    /// Names by which other files may refer to this image, and which no other image of its split
    /// has: its path, its name, its file name, in this order.
    pub fn aliases(&self) -> impl Iterator<Item = &str> {
        let path = (!self.shares_path).then(|| self.path());
        let file = (!self.shares_file_name).then(|| file_name(self.path()));
        path.into_iter().chain([self.name.as_str()]).chain(file)
    }
}

/// The COCO id of an image with a COCO file name (`COCO_val2014_000000379613`, `000000379613`),
/// possibly after another number, as in the keys of DiCO's tars:
/// `177828__COCO_val2014_000000379613`.
pub fn coco_id(path: &str) -> Option<u64> {
    let stem = file_name(path);
    let stem = stem.split_once('.').map_or(stem, |(stem, _)| stem);
    let stem = stem.rsplit_once("__").map_or(stem, |(_, rest)| rest);
    let digits = match stem.strip_prefix("COCO_") {
        Some(rest) => rest.rsplit_once('_')?.1,
        None => stem,
    };
    (digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(path: &str, id: Option<u64>) -> Item {
        Item { id, ..Item::new(path, vec!["a".into()], ImageRef::File(path.into())) }
    }

    fn made_unique(mut items: Vec<Item>) -> (Vec<String>, Splits) {
        for item in &mut items {
            let path = std::mem::take(&mut item.name);
            item.name = file_name(&path).to_owned();
            item.path = Some(path);
        }
        let mut splits = Splits { validation: items, ..Splits::default() };
        make_unique(&mut splits, &[&|item| item.path().to_owned()]);
        (splits.validation.iter().map(|item| item.name.clone()).collect(), splits)
    }

    #[test]
    fn names_are_unique_and_as_short_as_possible() {
        let names = |paths: &[&str]| made_unique(paths.iter().map(|path| item(path, None)).collect()).0.join(", ");
        assert_eq!(names(&["a/0.jpg", "b/1.jpg"]), "0.jpg, 1.jpg");
        assert_eq!(names(&["a/0.jpg", "b/0.jpg", "c/2.jpg"]), "a/0.jpg, b/0.jpg, c/2.jpg");
        assert_eq!(names(&["a", "a", "a #2", "a", "b"]), "a, a #3, a #2, a #4, b");
        let many = made_unique((0..100_000).map(|_| item("a", None)).collect()).0;
        assert_eq!(many.iter().collect::<HashSet<_>>().len(), 100_000);
    }

    #[test]
    fn ids_are_kept_if_every_image_has_a_unique_one() {
        let (_, splits) = made_unique(vec![item("a", Some(7)), item("b", Some(3))]);
        assert_eq!((splits.validation[0].id, splits.notes.len()), (Some(7), 0));
        for (other, expected) in [
            (item("b", Some(7)), "split `val`: a and b both have the id 7: "),
            (item("b", None), "split `val`: 1 of 2 images have no id, b for one: "),
        ] {
            let (_, splits) = made_unique(vec![item("a", Some(7)), other]);
            assert!(splits.validation.iter().all(|item| item.id.is_none()));
            assert!(splits.notes[0].starts_with(expected), "{:?}", splits.notes);
        }
    }

    #[test]
    fn aliases_exclude_names_of_other_images() {
        let aliases = |item: &Item| item.aliases().collect::<Vec<_>>().join(" ");
        let (_, splits) = made_unique(vec![item("a/0.jpg", None), item("b/0.jpg", None), item("b/1.jpg", None)]);
        let [first, _, last] = &splits.validation[..] else { panic!("three") };
        assert_eq!((aliases(first), aliases(last)), ("a/0.jpg a/0.jpg".into(), "b/1.jpg b/1.jpg 1.jpg".into()));
        // An image that is listed twice is one image.
        let (_, splits) = made_unique(vec![item("a/0.jpg", None), item("a/0.jpg", None)]);
        assert_eq!(aliases(&splits.validation[1]), "a/0.jpg a/0.jpg #2 0.jpg");
    }

    #[test]
    fn coco_ids_are_parsed_from_file_names() {
        for name in [
            "177828__COCO_val2014_000000379613",
            "train/177828__COCO_train2014_000000379613",
            "COCO_val2014_000000379613.jpg",
            "val2017/000000379613.jpg",
            "000000379613",
        ] {
            assert_eq!(coco_id(name), Some(379_613), "{name}");
        }
        for name in ["379613", "000010", "1000092795.jpg", "COCO_379613", "COCO_val2014_00000037961x", "", "__", "é"] {
            assert_eq!(coco_id(name), None, "{name}");
        }
    }
}
