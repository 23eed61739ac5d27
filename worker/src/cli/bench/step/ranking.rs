//! Compares the rewards of 16-bit products with those of 32-bit products.

use config::{EvaluatorScore, Precision, Rewards};
use tch::{Device, Kind, Tensor, no_grad};
use weights::Normalization;

use super::models;
use crate::captioner::GenerationConfig;
use crate::clip::Clip;
use crate::data::normalize;
use crate::nn::{Backend, DropoutMode};
use crate::objective::candidates::decode_candidates;
use crate::objective::reward::{EncodedImages, EvaluatorReward, RewardModel};
use crate::run_models::{CaptionerVisionEncoder, RunModels};

/// Number of images whose candidates are ranked, in batches of this size.
const BATCHES: usize = 8;
const BATCH_SIZE: usize = 8;

/// The share of random images whose candidates have the same ranking by the evaluator of `models`
/// and by the same evaluator with f32 products.
pub fn same_ranking_share(models: &RunModels, generation_config: &GenerationConfig) -> f64 {
    let f32_evaluator = models::build_evaluator(Backend { device: models.device(), precision: Precision::F32 });
    let same: usize = (0..BATCHES).map(|_| same_rankings(models, &f32_evaluator, generation_config)).sum();
    same as f64 / (BATCHES * BATCH_SIZE) as f64
}

/// The number of images of a random batch with the same ranking by both evaluators.
fn same_rankings(models: &RunModels, f32_evaluator: &Clip, generation_config: &GenerationConfig) -> usize {
    let pixels = random_images(models);
    let CaptionerVisionEncoder::Separate(vision_encoder) = &models.vision else {
        unreachable!("the captioner has a vision encoder of its own")
    };
    let candidates = no_grad(|| {
        let hidden = vision_encoder.hidden_states(&pixels);
        models.captioner.beam_search(&hidden, generation_config, DropoutMode::Evaluate)
    });
    let candidates = decode_candidates(&candidates, &models.captioner_vocabulary);
    let ranking = |clip: &Clip| {
        let embeddings = [no_grad(|| clip.image_embeddings(&clip.vision.hidden_states(&pixels)))];
        let evaluators = [EvaluatorReward { clip, ..EvaluatorReward::new(&models.evaluators[0], models) }];
        let weights = Rewards::from([(EvaluatorScore::PacS.into(), 1.0)]);
        let reward_model = RewardModel { evaluators: &evaluators, cider: None, weights: &weights };
        let indices: Vec<usize> = (0..BATCH_SIZE).collect();
        // Of the hidden states, rewards need only the device.
        let images = EncodedImages { hidden: &embeddings[0], embeddings: &embeddings, indices: &indices };
        no_grad(|| reward_model.rewards(&images, &candidates)).argsort_stable(true, 1, true)
    };
    let differs = ranking(&models.primary_clip).not_equal_tensor(&ranking(f32_evaluator)).any_dim(1, false);
    BATCH_SIZE - differs.sum(Kind::Int64).int64_value(&[]) as usize
}

/// Normalized random images `[BATCH_SIZE, 3, size, size]`; all encoders have this size.
fn random_images(models: &RunModels) -> Tensor {
    let side = models.primary_clip.config().image_size as i64;
    let pixels = Tensor::randint(256, [BATCH_SIZE as i64, side, side, 3], (Kind::Uint8, Device::Cpu));
    normalize(&pixels, 0..BATCH_SIZE, models.device(), &Normalization::default())
}
