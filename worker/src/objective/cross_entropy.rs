//! Teacher forcing: minus the log-probability of each real token, end included, averaged over tokens.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::Outcome;
use crate::captioner::{Captioner, Captions};
use crate::nn::Mode;

/// The loss of `captions`, one for each image of `vision`.
#[must_use]
pub fn outcome(captioner: &Captioner, vision: &Tensor, captions: &Captions, mode: Mode) -> Outcome {
    let tokens = captioner.token_log_probabilities(vision, captions, mode).values;
    let loss = -tokens.sum(Kind::Float);
    let (loss_sum, weight) = (loss.double_value(&[]), tokens.numel() as f64);
    Outcome { loss, loss_sum, weight, tokens: tokens.numel() as u64, example: None, summaries: BTreeMap::new() }
}
