//! Run files for tests.

use std::path::Path;

use crate::{RunFile, Stage};

/// A stage that trains with cross-entropy. `checkpoint_every` and `evaluate_every` are intervals in
/// steps. The stage is saved and evaluated at its end even without them.
pub fn stage(name: &str, steps: u64, batch: u32, checkpoint_every: Option<u64>, evaluate_every: Option<u64>) -> Stage {
    let template = template().stages.remove(0);
    Stage { name: name.into(), steps, batch, checkpoint_every, evaluate_every, ..template }
}

/// A run of one to four workers with these stages.
pub fn run_file(stages: Vec<Stage>) -> RunFile {
    RunFile { stages, ..template() }
}

fn template() -> RunFile {
    let text = "
name: test
output: /nowhere
workers: { min: 1, max: 4 }
data: { karpathy: { annotations: annotations.json, images: images } }
captioner: { preset: tiny }
evaluator: { preset: tiny }
stages: [{ name: base, objective: cross_entropy, steps: 1, batch: 4, optimizer: { learning_rate: 1.0e-3 } }]
";
    RunFile::parse(Path::new("test.yaml"), text).expect("the template is a valid run file")
}
