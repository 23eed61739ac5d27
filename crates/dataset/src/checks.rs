//! Checks of image files, a hundred thousand or more, before a run relies on them.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use image_preprocess::Oddities;

/// The number of threads: more than cores, because they wait for disks and file servers.
const THREADS: usize = 16;

/// The results of checking each of these files: see [`image_preprocess::check`].
pub fn look(files: &[&Path]) -> Vec<Result<Oddities, String>> {
    in_parallel(files.len(), THREADS, |at| {
        let file = File::open(files[at]).map_err(|error| error.to_string())?;
        image_preprocess::check(BufReader::new(file)).map_err(|error| error.to_string())
    })
}

/// Calls `work` for each of `0..count` on this number of threads. Returns the results in order.
pub fn in_parallel<T: Send>(count: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let run = || -> Vec<(usize, T)> {
        let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        numbers.take_while(|&at| at < count).map(|at| (at, work(at))).collect()
    };
    let mut done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.min(count)).map(|_| scope.spawn(run)).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;

    #[test]
    fn every_file_is_looked_at_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let [good, broken, missing] = ["good.png", "broken.png", "missing.png"].map(|name| folder.path().join(name));
        RgbImage::new(3, 4).save(&good).unwrap();
        std::fs::write(&broken, "no image").unwrap();
        let paths: Vec<&Path> = std::iter::repeat_n([&*good, &broken, &missing], 20).flatten().collect();
        let found = look(&paths);
        assert_eq!(found.len(), 60);
        for of_kind in found.chunks(3) {
            assert_eq!(of_kind[0], Ok(Oddities::default()));
            assert_eq!(of_kind[1], Err("not a JPEG, PNG or WebP".to_owned()));
            assert!(of_kind[2].as_ref().is_err_and(|problem| problem.contains("No such file")));
        }
        assert!(look(&[]).is_empty());
    }
}
