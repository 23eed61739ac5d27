use serde::{Deserialize, Serialize};

use crate::{Checkpoints, Error};

/// The file of a checkpoint that says which state it holds.
pub const STAMP: &str = "state.json";
/// Raised when older programs cannot read newer checkpoints.
pub const STAMP_FORMAT: u64 = 3;

/// Which state of which run a checkpoint holds. Its seal covers it like every file; so of two checkpoints that are exchanged for one
/// another, or of one that is put beside another run's, each is whole, and says that it is not what was looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// [`STAMP_FORMAT`], or that of an older program.
    pub format: u64,
    /// Name of the run.
    pub run: String,
    /// What tells it apart from others of that name; empty in older formats, like all that follows but for the place.
    #[serde(default)]
    pub run_id: String,
    /// What the checkpoint is called.
    #[serde(default)]
    pub checkpoint: String,
    /// Position of the stage in the run file.
    pub stage: u32,
    /// Name of the stage.
    pub stage_name: String,
    /// Steps of the stage that were applied.
    pub step: u64,
    /// Over all parameters of the run's own models.
    pub parameters_sha256: String,
    /// The generation that saved it.
    #[serde(default)]
    pub generation: u64,
    /// Where the journal was when the state was to be saved.
    #[serde(default)]
    pub journal: JournalHead,
    /// Where the stage's present sequence of samples begins.
    #[serde(default)]
    pub sequence: Sequence,
}

/// The last of the journal's chained records: it stands for all before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHead {
    /// Its number, from 1; 0 before the first.
    pub sequence: u64,
    /// Its SHA-256 in hex.
    pub hash: String,
}

impl std::fmt::Display for JournalHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash)
    }
}

/// Where a stage's sequence of samples begins, other than at its first step where training data were exchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// The step whose first sample is the sequence's first.
    pub step: u64,
    /// The number of its first epoch.
    pub epoch: u64,
}

impl Checkpoints {
    /// What the checkpoint `name` says of itself.
    ///
    /// # Errors
    /// It is damaged, of a format that is not read here, or cannot be reached.
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
