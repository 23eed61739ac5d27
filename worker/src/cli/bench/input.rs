//! `worker bench input`: measures image preprocessing.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use dataset::read_file;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::synthetic_images;

/// Measure image preprocessing: reading, decoding, resizing and cropping, as in training.
///
/// Without a folder it uses synthetic images with COCO's size and compression rate. Prints images
/// per second.
#[derive(clap::Args)]
#[command(after_help = "Example: worker bench input --threads 2 data/coco/val2014")]
pub struct InputBench {
    /// Number of images to read, or to create.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
    /// Width and height of the preprocessed images, in pixels.
    #[arg(long, default_value_t = 224, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    size: u32,
    /// Number of threads [default: all cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Number of measured passes over the images, after one that is not measured.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Create synthetic images in this folder, and keep them.
    #[arg(long, value_name = "FOLDER", conflicts_with = "folder")]
    make: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Folder of images; the first in the order of names are read.
    folder: Option<PathBuf>,
}

/// The durations of a pass over the images.
struct PreprocessingPass {
    seconds: f64,
    /// CPU time of all threads together.
    cpu_seconds: f64,
}

impl InputBench {
    /// Runs the command.
    ///
    /// # Errors
    /// An image cannot be read or created.
    pub fn run(self) -> Result<()> {
        let count = self.images as usize;
        // Deletes its files when it is dropped.
        let temporary = tempfile::tempdir().context("cannot create a temporary folder")?;
        let paths = match (&self.folder, &self.make) {
            (Some(folder), _) => images_in(folder, count)?,
            (None, Some(folder)) => {
                std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
                synthetic_images::write(folder, count)?
            }
            (None, None) => synthetic_images::write(temporary.path(), count)?,
        };
        let threads = self.threads.map_or_else(|| thread::available_parallelism().map_or(1, NonZero::get), usize::from);
        self.run_pass(&paths, threads)?;
        let mut passes = (0..self.steps).map(|_| self.run_pass(&paths, threads)).collect::<Result<Vec<_>>>()?;
        let images = paths.len() as f64;
        let rate = images / median(&mut passes, |pass| pass.seconds);
        let rate_per_core = images / median(&mut passes, |pass| pass.cpu_seconds);
        let bytes: u64 = paths.iter().filter_map(|path| path.metadata().ok()).map(|metadata| metadata.len()).sum();
        if self.json {
            crate::cli::print(format_args!(
                "{}",
                json!({
                    "images_per_s": rate,
                    "images_per_core_s": rate_per_core,
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
            "{rate:.0} images/s with {threads} threads; {rate_per_core:.0} images per CPU second"
        ))?;
        crate::cli::print(format_args!(
            "{} images of {kilobytes:.0} kB; medians of {} passes",
            paths.len(),
            self.steps
        ))?;
        Ok(())
    }

    /// Preprocesses all images once.
    fn run_pass(&self, paths: &[PathBuf], threads: usize) -> Result<PreprocessingPass> {
        let (started_at, cpu_seconds_before) = (Instant::now(), cpu_seconds());
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let encoded = read_file(path)?;
                            let pixels = image_preprocess::preprocess(&encoded, self.size);
                            let pixels = pixels.with_context(|| path.display().to_string())?;
                            std::hint::black_box(pixels);
                        }
                        anyhow::Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("preprocessing does not panic"))
        })
        .map(|()| PreprocessingPass {
            seconds: started_at.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds() - cpu_seconds_before,
        })
    }
}

/// CPU time of this process, all threads together.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The median over the passes of a value of each.
fn median(passes: &mut [PreprocessingPass], value: impl Fn(&PreprocessingPass) -> f64) -> f64 {
    passes.sort_by(|a, b| value(a).total_cmp(&value(b)));
    value(&passes[passes.len() / 2])
}

/// The first `count` images of a folder in the order of names.
fn images_in(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let is_image = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        ["jpg", "jpeg", "png", "webp"].iter().any(|image_extension| extension.eq_ignore_ascii_case(image_extension))
    };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_image).collect();
    if paths.is_empty() {
        bail!("{}: the folder has no images (.jpg, .jpeg, .png, .webp)", folder.display());
    }
    paths.sort();
    paths.truncate(count);
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_selected_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        assert!(images_in(folder.path(), 2).unwrap_err().to_string().contains("no images"));
        ["b.JPG", "a.png", "c.webp", "notes.txt"]
            .iter()
            .for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        let images = images_in(folder.path(), 2).unwrap();
        assert_eq!(images, ["a.png", "b.JPG"].map(|name| folder.path().join(name)));
        assert!(images_in(&folder.path().join("nowhere"), 2).is_err());
    }
}
