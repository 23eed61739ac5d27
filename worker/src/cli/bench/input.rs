use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use dataset::read_file;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::pictures;

#[derive(clap::Args)]
#[command(after_help = "Example: worker bench input --threads 2 data/coco/val2014")]
/// Time how images become pixels: files are read, decoded, scaled and cropped as in training.
///
/// Without a folder pictures are made, like those of COCO in their size and in how well they can be compressed.
pub struct Input {
    /// Images to read, or to make.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
    /// Pixels on a side of what comes out.
    #[arg(long, default_value_t = 224, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    size: u32,
    /// Threads [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Times that all images are read, after a first that is not counted.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Make images in this folder, and leave them there.
    #[arg(long, value_name = "FOLDER", conflicts_with = "folder")]
    make: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Folder of images, of which the first by name are read.
    folder: Option<PathBuf>,
}

/// What one pass over the images took.
struct Pass {
    seconds: f64,
    /// Of all cores together.
    core_seconds: f64,
}

impl Input {
    pub fn run(self) -> Result<(), String> {
        let count = self.images as usize;
        // Lives as long as its files are read.
        let temporary = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
        let paths = match (&self.folder, &self.make) {
            (Some(folder), _) => images_in(folder, count)?,
            (None, Some(folder)) => {
                std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
                pictures::write(folder, count)?
            }
            (None, None) => pictures::write(temporary.path(), count)?,
        };
        let threads = self.threads.map_or_else(|| thread::available_parallelism().map_or(1, NonZero::get), usize::from);
        self.pass(&paths, threads)?;
        let mut passes = (0..self.steps).map(|_| self.pass(&paths, threads)).collect::<Result<Vec<_>, _>>()?;
        let images = paths.len() as f64;
        let rate = images / median(&mut passes, |pass| pass.seconds);
        let rate_of_core = images / median(&mut passes, |pass| pass.core_seconds);
        let bytes: u64 = paths.iter().filter_map(|path| path.metadata().ok()).map(|metadata| metadata.len()).sum();
        if self.json {
            crate::cli::print(format_args!(
                "{}",
                json!({
                    "images_per_s": rate,
                    "images_per_core_s": rate_of_core,
                    "images": paths.len(),
                    "bytes_per_image": bytes as f64 / images,
                    "size": self.size,
                    "threads": threads,
                })
            ))?;
            return Ok(());
        }
        let kilobytes = bytes as f64 / images / 1e3;
        crate::cli::print(format_args!(
            "{rate:.0} images a second by {threads} threads; {rate_of_core:.0} for each second of a core"
        ))?;
        crate::cli::print(format_args!("{} images of {kilobytes:.0} kB, medians of {}", paths.len(), self.steps))?;
        Ok(())
    }

    fn pass(&self, paths: &[PathBuf], threads: usize) -> Result<Pass, String> {
        let (started, core_started) = (Instant::now(), core_seconds());
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let encoded = read_file(path).map_err(|error| error.to_string())?;
                            let pixels = image_preprocess::square(&encoded, self.size);
                            std::hint::black_box(pixels.map_err(|problem| format!("{}: {problem}", path.display()))?);
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("decoding does not panic"))
        })
        .map(|()| Pass { seconds: started.elapsed().as_secs_f64(), core_seconds: core_seconds() - core_started })
    }
}

/// Processor time of this process, all threads together.
fn core_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(passes: &mut [Pass], value: impl Fn(&Pass) -> f64) -> f64 {
    passes.sort_by(|a, b| value(a).total_cmp(&value(b)));
    value(&passes[passes.len() / 2])
}

/// The first `count` images of a folder by name.
fn images_in(folder: &Path, count: usize) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let is_image = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        ["jpg", "jpeg", "png", "webp"].iter().any(|known| extension.eq_ignore_ascii_case(known))
    };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_image).collect();
    if paths.is_empty() {
        return Err(format!("{}: there are no images (.jpg, .jpeg, .png, .webp) in it", folder.display()));
    }
    paths.sort();
    paths.truncate(count);
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        assert!(images_in(folder.path(), 2).unwrap_err().contains("no images"));
        ["b.JPG", "a.png", "c.webp", "notes.txt"]
            .iter()
            .for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        let found = images_in(folder.path(), 2).unwrap();
        assert_eq!(found, ["a.png", "b.JPG"].map(|name| folder.path().join(name)));
        assert!(images_in(&folder.path().join("nowhere"), 2).is_err());
    }
}
