use serde::{Deserialize, Serialize};

use crate::{Checkpoints, Error};

/// The file with the metadata of a checkpoint.
pub const METADATA_FILE: &str = "state.json";
/// The version of the metadata's format; incremented when older programs cannot read newer
/// checkpoints. Only this version is read.
pub const METADATA_FORMAT: u64 = 3;

/// Which run, position and parameters a checkpoint has. The seal covers the file with the metadata
/// like every other. If two checkpoints are exchanged, or if a checkpoint is copied to another
/// run's folder, its files match its seal, but its metadata show that it is not the expected
/// checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMetadata {
    /// The version of the format; [`METADATA_FORMAT`] in checkpoints of this program.
    pub format: u64,
    /// The name of the run.
    pub run: String,
    /// The unique id of the run. Older formats have no such field, nor the other fields below with
    /// `serde(default)`.
    #[serde(default)]
    pub run_id: String,
    /// The name of the checkpoint.
    #[serde(default)]
    pub checkpoint: String,
    /// The number of the stage in the run file, from 0.
    pub stage: u32,
    /// The name of the stage.
    pub stage_name: String,
    /// The number of steps of the stage that were applied to the parameters.
    pub step: u64,
    /// The SHA-256 of all parameters of the run's own models.
    pub parameters_sha256: String,
    /// The generation that saved the checkpoint.
    #[serde(default)]
    pub generation: u64,
    /// The head of the journal when the coordinator ordered the checkpoint.
    #[serde(default)]
    pub journal: JournalHead,
    /// The start of the stage's current sequence of samples.
    #[serde(default)]
    pub sequence: SampleSequence,
}

/// The head of the journal's hash chain: the last record. Its hash identifies all records up to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHead {
    /// The number of the last record, from 1; 0 if there is none.
    #[serde(rename = "sequence")]
    pub record_number: u64,
    /// The hash of that record and so of all earlier ones, SHA-256 in hex.
    pub hash: String,
}

impl std::fmt::Display for JournalHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.record_number, self.hash)
    }
}

/// The start of a stage's sequence of samples. It is later than the stage's first step if the
/// training data changed during the stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleSequence {
    /// The step whose first sample is the first of the sequence.
    pub step: u64,
    /// The number of the epoch with which the sequence begins.
    pub epoch: u64,
}

impl Checkpoints {
    /// The metadata of the checkpoint `name`.
    ///
    /// # Errors
    /// The metadata are damaged, of an unknown format, or cannot be read.
    pub fn metadata(&self, name: &str) -> Result<CheckpointMetadata, Error> {
        let bytes = self.read_file(name, METADATA_FILE)?;
        let location = || self.location_of(name, METADATA_FILE);
        let damaged = |problem: String| Error::Damaged { location: location(), problem };
        let metadata: CheckpointMetadata =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if metadata.format != METADATA_FORMAT {
            return Err(Error::Version { location: location(), found: metadata.format, known: METADATA_FORMAT });
        }
        Ok(metadata)
    }
}
