use serde::{Deserialize, Serialize};

use crate::{Checkpoints, Error};

/// The file with the metadata of a checkpoint.
pub const METADATA_FILE: &str = "state.json";
/// The version of the metadata's format; incremented when older programs cannot read newer
/// checkpoints.
pub const METADATA_FORMAT: u64 = 3;
/// The version before, which commit e9add16 wrote. It is read, too: a migrated journal has such
/// checkpoints.
const EARLIER_FORMAT: u64 = 2;

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
    /// The unique id of the run. Format 2 has no such field, nor the other fields below with
    /// `serde(default)`; see [`CheckpointMetadata::has_origin`].
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

impl CheckpointMetadata {
    /// Whether the metadata have the name of the checkpoint, its generation and its journal. Those
    /// of format 2 do not: their position and the SHA-256 of their parameters identify them.
    #[must_use]
    pub fn has_origin(&self) -> bool {
        self.format > EARLIER_FORMAT
    }
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
        if ![METADATA_FORMAT, EARLIER_FORMAT].contains(&metadata.format) {
            return Err(Error::Version { location: location(), found: metadata.format, known: METADATA_FORMAT });
        }
        Ok(metadata)
    }
}
