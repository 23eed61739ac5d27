//! Checks the image files of a data set when it is loaded. Checks run in parallel, because a data
//! set can have more than a hundred thousand files.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use image_preprocess::ImageWarnings;

/// Why an image file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageCheckError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] std::io::Error),
    /// The file is not a complete image.
    #[error(transparent)]
    Image(#[from] image_preprocess::Error),
}

/// The number of threads that check files: more than cores, because they wait for disks and file
/// servers.
const THREADS: usize = 16;

/// Checks each of these files with [`image_preprocess::check`]. Returns the results in order.
pub fn check_files(files: &[&Path]) -> Vec<Result<ImageWarnings, ImageCheckError>> {
    in_parallel(files.len(), THREADS, |index| {
        let file = File::open(files[index])?;
        Ok(image_preprocess::check(BufReader::new(file))?)
    })
}

/// Calls `work` for each of `0..count` on this number of threads. Returns the results in order.
pub fn in_parallel<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let run = || -> Vec<(usize, T)> {
        let indices = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        indices.take_while(|&index| index < count).map(|index| (index, work(index))).collect()
    };
    let mut results = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(count)).map(|_| scope.spawn(run)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;

    #[test]
    fn every_file_is_checked_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let [good, broken, missing] = ["good.png", "broken.png", "missing.png"].map(|name| folder.path().join(name));
        RgbImage::new(3, 4).save(&good).unwrap();
        std::fs::write(&broken, "no image").unwrap();
        let paths: Vec<&Path> = std::iter::repeat_n([&*good, &broken, &missing], 20).flatten().collect();
        let results = check_files(&paths);
        assert_eq!(results.len(), 60);
        let problem =
            |result: &Result<ImageWarnings, ImageCheckError>| result.as_ref().map_err(ToString::to_string).copied();
        for results in results.chunks(3) {
            assert_eq!(problem(&results[0]), Ok(ImageWarnings::default()));
            assert_eq!(problem(&results[1]), Err("not a JPEG, PNG or WebP".to_owned()));
            assert!(problem(&results[2]).is_err_and(|problem| problem.contains("No such file")));
        }
        assert!(check_files(&[]).is_empty());
    }
}
