//! Looks at the headers of a hundred thousand image files before a run relies on them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::{Error, ImageRef, Item, preprocess};

/// Waiting for disks and file servers, not computing: more than there are cores.
const THREADS: usize = 16;

/// Takes out the items whose file is missing or no image, and says how many there were.
///
/// # Errors
/// There is such an item and `skip` is unset; the first is named.
pub fn keep_images(items: &mut Vec<Item>, skip: bool) -> Result<u64, Error> {
    let problems = problems(items);
    let mut skipped = 0;
    for (item, problem) in std::mem::take(items).into_iter().zip(problems) {
        match problem {
            None => items.push(item),
            Some(error) if skip => {
                tracing::warn!("leaving out {error}");
                skipped += 1;
            }
            Some(error) => return Err(error),
        }
    }
    Ok(skipped)
}

/// What is wrong with each item's image.
fn problems(items: &[Item]) -> Vec<Option<Error>> {
    let share = items.len().div_ceil(THREADS).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            items.chunks(share).map(|items| scope.spawn(|| items.iter().map(problem).collect::<Vec<_>>())).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn problem(item: &Item) -> Option<Error> {
    match &item.image {
        ImageRef::File(path) => check(path).err().map(|problem| Error::corrupt(path.display(), problem)),
        ImageRef::Member(_) => None,
    }
}

fn check(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    preprocess::check(BufReader::new(file))
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;

    fn items(paths: &[&Path]) -> Vec<Item> {
        paths
            .iter()
            .enumerate()
            .map(|(i, path)| Item::new(&i.to_string(), vec!["a".to_owned()], ImageRef::File((*path).to_owned())))
            .collect()
    }

    #[test]
    fn missing_and_broken_files_are_left_out_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let [good, broken, missing] = ["good.png", "broken.png", "missing.png"].map(|name| folder.path().join(name));
        RgbImage::new(3, 4).save(&good).unwrap();
        std::fs::write(&broken, "no image").unwrap();
        let paths: Vec<&Path> = std::iter::repeat_n([&*good, &broken, &missing], 20).flatten().collect();

        let mut kept = items(&paths);
        assert_eq!(keep_images(&mut kept, true).unwrap(), 40);
        let names: Vec<usize> = kept.iter().map(|item| item.name.parse().unwrap()).collect();
        assert_eq!(names, (0..20).map(|i| 3 * i).collect::<Vec<_>>());

        let error = keep_images(&mut items(&paths), false).unwrap_err().to_string();
        assert!(error.contains("broken.png") && error.contains("skip_corrupt"), "{error}");
    }

    #[test]
    fn no_items_are_no_problem() {
        assert_eq!(keep_images(&mut Vec::new(), false).unwrap(), 0);
    }
}
