//! Which settings a run file may change, and the error of a run file that changes others.

use std::fmt;

use config::{Change, Mutability};

/// Which settings a run file may change when a coordinator opens an existing journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptedChanges {
    /// Only settings that do not affect the results ([`Mutability::Free`]).
    Free,
    /// Also settings that may change from the next step on ([`Mutability::NextStep`]), with
    /// `serve --accept-changes`.
    NextStep,
}

/// Why a run file is refused for the journal's run.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingsError {
    /// All settings that differ.
    pub changes: Vec<Change>,
    /// Lines of a run file that starts a new run from the last checkpoint; `None` without a
    /// checkpoint.
    pub continuation: Option<String>,
}

impl SettingsError {
    /// Whether some of the changes require a new run.
    #[must_use]
    pub fn is_other_run(&self) -> bool {
        self.changes.iter().any(|change| change.mutability == Mutability::Fixed)
    }

    /// The differences and what the user can do, in several lines.
    #[must_use]
    pub fn explanation(&self) -> String {
        let mut lines = vec!["The run file differs from the one in the journal:".to_owned()];
        lines.extend(self.changes.iter().map(|change| format!("  {change}")));
        if !self.is_other_run() {
            lines.push(
                "Serve with --accept-changes to continue with the new values, or restore the old ones.".to_owned(),
            );
            return lines.join("\n");
        }
        lines.push("To continue this run, restore the old values of the settings that make another run.".to_owned());
        match &self.continuation {
            Some(continuation) => {
                lines.push(
                    "For a new run that starts from the last checkpoint, put these lines in its run file:".to_owned(),
                );
                lines.extend(continuation.lines().map(|line| format!("  {line}")));
                if continuation.contains("s3://") {
                    lines.push(
                        "Copy the checkpoint from the bucket to a folder first, and name that folder.".to_owned(),
                    );
                }
            }
            None => {
                lines
                    .push("For a new run, choose another output: this one has no checkpoint to start from.".to_owned());
            }
        }
        lines.join("\n")
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (strictest, advice) = match self.is_other_run() {
            true => (Mutability::Fixed, "use another output for a new run"),
            false => (Mutability::NextStep, "serve with --accept-changes to continue it"),
        };
        let refused = self.changes.iter().filter(|change| change.mutability == strictest);
        let keys: Vec<&str> = refused.map(|change| change.key.as_str()).collect();
        write!(f, "the journal belongs to a run with another {}; {advice}", keys.join(", "))
    }
}
