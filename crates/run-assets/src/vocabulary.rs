//! The vocabulary of models that are trained from scratch.

use checkpoint_store::Checkpoints;
use config::RunFile;
use dataset::{DataSet, Split};
use tokenizer::Vocabulary;
use weights::model_folder;

use crate::Error;

/// The initial vocabulary of a run with these data.
#[must_use]
pub fn initial_vocabulary(run: &RunFile, data: &DataSet) -> Vocabulary {
    match run.vocabulary {
        config::Vocabulary::Full => Vocabulary::full(),
        config::Vocabulary::Corpus => {
            let captions = data.split(Split::Train).iter().flat_map(|item| &item.captions);
            Vocabulary::of_corpus(captions.map(String::as_str))
        }
    }
}

/// The corpus vocabulary of a run's newest readable checkpoint; none if the run builds no corpus
/// vocabulary or has no readable checkpoint. The vocabulary of a run does not change, even if the
/// training data are corrected.
///
/// # Errors
/// The checkpoints cannot be read.
pub fn saved_vocabulary(run: &RunFile, checkpoints: &Checkpoints) -> Result<Option<Vocabulary>, Error> {
    if run.vocabulary == config::Vocabulary::Full || run.captioner.weights.is_some() {
        return Ok(None);
    }
    for checkpoint in checkpoints.list().map_err(Error::Checkpoints)?.sealed.into_iter().rev() {
        match checkpoints.read_file(&checkpoint, model_folder::MANIFEST_FILE) {
            Ok(manifest) => {
                let manifest: model_folder::Manifest = serde_json::from_slice(&manifest)
                    .map_err(|source| Error::CheckpointManifest { checkpoint, source })?;
                return Ok(Some(Vocabulary::from_manifest(&manifest.vocabulary)));
            }
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(Error::Checkpoints(error)),
        }
    }
    Ok(None)
}
