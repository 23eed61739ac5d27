//! The readiness of the run and of the journal.

use dico_engine::NotReady;

/// Whether the run, or the journal, is ready. The readiness probe answers with both.
pub type Readiness = Result<(), NotReady>;
