//! The run file: one YAML document that says what to train, on what, in which stages and with how many workers.
//!
//! The coordinator reads and checks it; workers receive it as JSON at join, so they cannot disagree about a setting.
//! Every key is known: a wrong one is refused with file, line, column and the nearest valid key.

mod error;
mod schema;

pub use error::Error;
pub use schema::*;

use std::path::Path;

impl RunFile {
    /// Reads, parses and checks the run file at `path`. Relative paths inside it are taken from the current folder and
    /// made absolute, because workers may run elsewhere.
    ///
    /// # Errors
    /// Names the file, and the line and column where they are known.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let mut run = Self::parse(path, &text)?;
        run.absolutise().map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Ok(run)
    }

    /// Parses and checks `text`, with or without a byte-order mark; `path` is only for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let run: Self = serde_saphyr::from_str(text).map_err(|error| Error::from_yaml(path, text, &error))?;
        run.check().map_err(|(key, problem)| Error::Value { path: path.to_owned(), key, problem })?;
        Ok(run)
    }

    fn absolutise(&mut self) -> std::io::Result<()> {
        for path in self.paths_mut() {
            *path = std::path::absolute(&*path)?;
        }
        if let Some(tars) = &mut self.data.webdataset {
            for pattern in [&mut tars.train, &mut tars.validation].into_iter().chain(tars.test.as_mut()) {
                if !pattern.contains("://") {
                    *pattern = std::path::absolute(&*pattern)?.to_string_lossy().into_owned();
                }
            }
        }
        Ok(())
    }

    fn paths_mut(&mut self) -> impl Iterator<Item = &mut std::path::PathBuf> {
        let Data { karpathy, coco, scenes, features, positives, .. } = &mut self.data;
        let karpathy = karpathy.as_mut().map(|Karpathy { annotations, images }| [annotations, images]);
        let coco = coco.as_mut().map(|Coco { train, validation, test }| [Some(train), Some(validation), test.as_mut()]);
        let coco = coco.into_iter().flatten().flatten();
        let coco = coco.flat_map(|CocoSplit { annotations, images }| [annotations, images]);
        let positives = positives.as_mut().map(|Positives { images, captions }| [images, captions]);
        let Scoring { meteor_jar, meteor_paraphrases, spice_jar } = &mut self.scoring;
        let models = [&mut self.captioner.weights, &mut self.captioner.vision, &mut self.evaluator.weights];
        let optional = [scenes, features, meteor_jar, meteor_paraphrases, spice_jar].into_iter().chain(models);
        std::iter::once(&mut self.output)
            .chain(karpathy.into_iter().flatten())
            .chain(coco)
            .chain(optional.chain(positives.into_iter().flatten()).flatten())
    }
}
