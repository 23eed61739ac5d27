use serde::{Deserialize, Serialize};

use crate::{Checkpoints, Error};

/// The file of a checkpoint that identifies its state.
pub const STAMP: &str = "state.json";
/// The version of the format; incremented when older programs cannot read newer checkpoints.
pub const STAMP_FORMAT: u64 = 3;

/// The identity of a checkpoint's state: run, point and parameters. The seal covers this file like
/// every other. If two checkpoints are exchanged, or one is copied to another run's folder, each is
/// intact, but its stamp shows that it is not the expected one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// [`STAMP_FORMAT`], or the version of an older program.
    pub format: u64,
    /// The name of the run.
    pub run: String,
    /// The unique id of the run. Empty in older formats, as are all following fields but the point
    /// of the run.
    #[serde(default)]
    pub run_id: String,
    /// The name of the checkpoint.
    #[serde(default)]
    pub checkpoint: String,
    /// The number of the stage in the run file, from 0.
    pub stage: u32,
    /// The name of the stage.
    pub stage_name: String,
    /// The number of steps of the stage that were applied.
    pub step: u64,
    /// The SHA-256 of all parameters of the run's own models.
    pub parameters_sha256: String,
    /// The generation that saved it.
    #[serde(default)]
    pub generation: u64,
    /// The head of the journal when the save was ordered.
    #[serde(default)]
    pub journal: JournalHead,
    /// The start of the stage's current sequence of samples.
    #[serde(default)]
    pub sequence: Sequence,
}

/// The head of the journal's hash chain: it identifies all records up to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHead {
    /// The number of the last record, from 1; 0 if there is none.
    pub sequence: u64,
    /// The hash of that record, SHA-256 in hex.
    pub hash: String,
}

impl std::fmt::Display for JournalHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash)
    }
}

/// The start of a stage's sequence of samples: not at its first step if the training data changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// The step whose first sample is the first of the sequence.
    pub step: u64,
    /// The number of the first epoch.
    pub epoch: u64,
}

impl Checkpoints {
    /// The stamp of the checkpoint `name`.
    ///
    /// # Errors
    /// It is damaged, of an unknown format, or cannot be read.
    pub fn stamp(&self, name: &str) -> Result<Stamp, Error> {
        let text = self.read_file(name, STAMP)?;
        let damaged = |problem: String| Error::Damaged { place: self.place_of(name, STAMP), problem };
        let stamp: Stamp = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if stamp.format != STAMP_FORMAT {
            return Err(Error::Version { place: self.place_of(name, STAMP), found: stamp.format, known: STAMP_FORMAT });
        }
        Ok(stamp)
    }
}
