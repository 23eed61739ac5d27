//! The messages of simulated workers: reports of the same size as real ones.

use std::collections::HashMap;

use metric_catalogue::names;
use proto::{IMAGES_PER_EVALUATION_RANGE, v1};
use summary_statistics::Summary;

/// The number of validation images.
const VALIDATION_IMAGES: u64 = 20 * IMAGES_PER_EVALUATION_RANGE;
/// The number of candidates per image; one of them is the best.
const CANDIDATES: u32 = 5;
/// The number of tokens per candidate.
const TOKENS_PER_CANDIDATE: u64 = 12;
/// The number of different sets of summaries in step reports.
const STEP_REPORTS: u32 = 64;
/// The dimension of an embedding.
const EMBEDDING_SIZE: usize = 64;

/// Creates step reports from summaries that are created in advance, because creating summaries
/// costs more than sending a report.
pub struct StepReports {
    summaries: Vec<HashMap<String, v1::Summary>>,
}

impl StepReports {
    /// Creates the summaries.
    pub fn new() -> Self {
        Self { summaries: (0..STEP_REPORTS).map(summaries).collect() }
    }

    /// A worker's report of step `step`, without the position: one image, with all summaries of
    /// DiCO.
    pub fn step_done(&self, worker_number: u32, step: u64, seconds: f64) -> v1::StepDone {
        let report = (u64::from(worker_number) + step) as usize % self.summaries.len();
        v1::StepDone {
            position: None,
            loss_sum: 1.0,
            loss_weight: 1.0,
            samples: 1,
            learning_rate: 1e-5,
            gradient_norm: 1.0,
            seconds,
            all_reduce_seconds: 0.0,
            summaries: self.summaries[report].clone(),
            tokens: u64::from(CANDIDATES) * TOKENS_PER_CANDIDATE,
            phase_seconds: names::PHASES.map(|phase| (phase.to_owned(), seconds / names::PHASES.len() as f64)).into(),
            example: None,
        }
    }
}

/// The data set that all workers report.
pub fn data_set() -> v1::DataSet {
    v1::DataSet {
        train_images: 100_000,
        train_captions: 500_000,
        skipped_images: 0,
        training_fingerprint: "0".repeat(64),
        models_fingerprint: "0".repeat(64),
        validation_fingerprint: "0".repeat(64),
        validation_images: VALIDATION_IMAGES,
    }
}

/// The evaluation items, that is, captions with scores and embeddings, of a range of the validation
/// split.
pub fn evaluation_items(range: v1::ImageRange) -> Vec<v1::EvaluationItem> {
    let item = |image: u64| v1::EvaluationItem {
        image: format!("{image:06}.jpg"),
        caption: "a red ball on the green grass".to_owned(),
        references: vec!["a red ball lies on the grass".to_owned(); 5],
        scores: [("pac_s".to_owned(), 0.75)].into(),
        image_id: Some(image),
        embeddings: vec![v1::Embeddings { prefix: String::new(), image: unit_vector(image), text: unit_vector(image) }],
        continued: false,
    };
    (range.begin..range.end).map(item).collect()
}

/// A one-hot vector. Images whose numbers are equal modulo [`EMBEDDING_SIZE`] have the same.
fn unit_vector(image: u64) -> Vec<f32> {
    let mut vector = vec![0.0; EMBEDDING_SIZE];
    vector[image as usize % EMBEDDING_SIZE] = 1.0;
    vector
}

/// The summaries of all training metrics for the step report with this number.
fn summaries(report: u32) -> HashMap<String, v1::Summary> {
    // Numbers in 0..1 that differ between reports.
    let value = |index: u32| f64::from((report * 97 + index * 31) % 1000) / 1000.0;
    let value_count = |name| match name {
        names::REWARD_CHOSEN | names::REWARD_MARGIN | names::IMPLICIT_ACCURACY | names::GAMMA_ENTROPY => 1,
        names::REWARD_REJECTED => CANDIDATES - 1,
        _ => CANDIDATES,
    };
    let summary = |name| v1::Summary::from(&Summary::of((0..value_count(name)).map(value)));
    metric_catalogue::TRAINING_METRICS.into_iter().map(|name| (name.to_owned(), summary(name))).collect()
}
