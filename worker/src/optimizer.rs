//! Adam and AdamW over the trained range of a model's flat buffer, and the learning rate schedule.

use config::{Schedule, ScheduleShape};
use tch::{Tensor, no_grad};

use crate::nn::{self, AdamUpdate, Parameters};

/// Adam (Kingma and Ba 2015, algorithm 1), with decoupled weight decay (Loshchilov and Hutter 2019,
/// algorithm 2) on matrices.
pub struct Adam {
    config: config::Optimizer,
    /// First moment, `[trained]`.
    pub first_moment: Tensor,
    /// Second moment, `[trained]`.
    pub second_moment: Tensor,
    /// 1 for the values with weight decay and 0 for the others, `[trained]`; none without weight
    /// decay.
    decay_mask: Option<Tensor>,
}

/// The mean gradient of a step.
pub struct AveragedGradient<'a> {
    /// The sum of the gradients of all samples, `[trained]`.
    sum: &'a Tensor,
    /// The divisor of the mean: the number of samples or tokens.
    weight: f64,
    /// The L2 norm of the mean gradient.
    pub norm: f64,
}

impl<'a> AveragedGradient<'a> {
    /// The mean of gradients with the sum `sum`, `[trained]`.
    #[must_use]
    pub fn new(sum: &'a Tensor, weight: f64) -> Self {
        Self { sum, weight, norm: sum.norm().double_value(&[]) / weight }
    }
}

impl Adam {
    /// An optimizer with zero moments for the trained parameters.
    #[must_use]
    pub fn new(parameters: &Parameters, config: &config::Optimizer) -> Self {
        let trained = parameters.flat_trained();
        Self {
            config: config.clone(),
            first_moment: trained.zeros_like(),
            second_moment: trained.zeros_like(),
            decay_mask: (config.weight_decay > 0.0).then(|| parameters.weight_decay_mask()),
        }
    }

    /// Replaces the config; keeps the moments.
    pub fn set_config(&mut self, parameters: &Parameters, config: &config::Optimizer) {
        self.decay_mask = (config.weight_decay > 0.0).then(|| parameters.weight_decay_mask());
        self.config = config.clone();
    }

    /// Applies update number `step` (from 1). Clips the gradient to `clip_norm`, as
    /// `torch.nn.utils.clip_grad_norm_`. Overwrites the memory of the gradient.
    pub fn update(&mut self, parameters: &Parameters, gradient: &AveragedGradient<'_>, step: u64, learning_rate: f64) {
        let config::Optimizer { betas, epsilon, weight_decay, clip_norm, .. } = self.config;
        let mut trained = parameters.flat_trained();
        if let Some(mask) = &self.decay_mask {
            no_grad(|| trained -= (&trained * mask) * (learning_rate * weight_decay));
        }
        let clip_divisor = clip_norm.filter(|&max| gradient.norm > max).map_or(1.0, |max| (gradient.norm + 1e-6) / max);
        let divisor = gradient.weight * clip_divisor;
        let moments = [&self.first_moment, &self.second_moment];
        nn::adam(&trained, gradient.sum, &AdamUpdate { moments, step, learning_rate, betas, epsilon, divisor });
        parameters.refresh_working_copies();
    }
}

/// The learning rate of update number `step` (from 1) of `steps`, as a fraction of the peak: a
/// linear warm-up, then a constant or a cosine.
#[must_use]
pub fn learning_rate_factor(schedule: &Schedule, step: u64, steps: u64) -> f64 {
    let (step, steps) = (step as f64, steps as f64);
    let warmup = schedule.warmup * steps;
    // From zero, in whole steps, as `get_constant_schedule_with_warmup` of transformers.
    let (warmup_step, warmup) = if schedule.warmup_from_zero { (step - 1.0, warmup.ceil()) } else { (step, warmup) };
    if warmup_step < warmup {
        return warmup_step / warmup;
    }
    match schedule.shape {
        ScheduleShape::Constant => 1.0,
        ScheduleShape::Cosine => {
            let progress = (step - warmup) / (steps - warmup + 1.0);
            0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::nn::ParameterBuilder;
    use crate::testing::{self, golden_files};

    #[test]
    fn updates_equal_those_of_a_double_precision_adam() {
        let mut builder = ParameterBuilder::new(3, testing::device());
        _ = builder.normal("matrix", &[2, 2], 1.0);
        _ = builder.normal("vector", &[2], 1.0);
        let mut parameters = builder.finish();
        parameters.start_training(|_| true);
        let settings = config::Optimizer {
            learning_rate: 0.1,
            betas: [0.9, 0.99],
            epsilon: 1e-8,
            weight_decay: 0.5,
            clip_norm: Some(4.0),
        };
        let mut adam = Adam::new(&parameters, &settings);
        let mut x: Vec<f64> = Vec::<f32>::try_from(parameters.flat()).unwrap().into_iter().map(f64::from).collect();
        let (mut m, mut v) = ([0.0; 6], [0.0; 6]);
        for step in 1..=5_u64 {
            // From step 4 on another config, which keeps the moments.
            let (decay, max_norm) = if step < 4 { (0.5, 4.0) } else { (0.25, 2.0) };
            if step == 4 {
                let changed = config::Optimizer { weight_decay: decay, clip_norm: Some(max_norm), ..settings.clone() };
                adam.set_config(&parameters, &changed);
            }
            let gradient: Vec<f64> = (0..6).map(|i| ((i as f64) - 2.5) * step as f64 * 0.25).collect();
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            // A gradient summed over this number of samples.
            let samples = (2 * step + 1) as f64;
            let flat: Vec<f32> = gradient.iter().map(|&g| (samples * g) as f32).collect();
            let flat = Tensor::from_slice(&flat).to_device(testing::device());
            let average = AveragedGradient::new(&flat, samples);
            assert!((average.norm - norm).abs() < 1e-5);
            adam.update(&parameters, &average, step, 0.1);
            for i in 0..6 {
                let g = gradient[i] * (max_norm / norm).min(1.0);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                if i < 4 {
                    x[i] -= 0.1 * decay * x[i];
                }
                let (m_hat, v_hat) =
                    (m[i] / (1.0 - 0.9_f64.powi(step as i32)), v[i] / (1.0 - 0.99_f64.powi(step as i32)));
                x[i] -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        for (tensor, expected) in [(parameters.flat(), &x[..]), (&adam.first_moment, &m), (&adam.second_moment, &v)] {
            for (actual, expected) in Vec::<f32>::try_from(tensor).unwrap().into_iter().zip(expected) {
                assert!((f64::from(actual) - expected).abs() < 1e-4, "{actual} is not {expected}");
            }
        }
    }

    #[derive(Deserialize)]
    struct GoldenSchedules {
        schedules: Vec<StageSchedule>,
        updates: ExpectedUpdates,
    }

    #[derive(Deserialize)]
    struct StageSchedule {
        steps: u64,
        warmup: f64,
        /// Numbers of steps, and the learning rate of each as a fraction of the peak.
        rates: Vec<(u64, f64)>,
    }

    #[derive(Deserialize)]
    struct ExpectedUpdates {
        steps: u64,
        warmup: f64,
        adam: AdamSettings,
        /// The learning rate of each step, as a fraction of the peak.
        rates: Vec<f64>,
        /// The values after each step.
        parameters: Vec<Vec<f32>>,
    }

    #[derive(Deserialize)]
    struct AdamSettings {
        lr: f64,
        betas: [f64; 2],
        eps: f64,
    }

    fn from_zero(warmup: f64) -> Schedule {
        Schedule { warmup, warmup_from_zero: true, ..Schedule::default() }
    }

    #[test]
    fn a_warm_up_from_zero_equals_that_of_transformers() {
        let GoldenSchedules { schedules, .. } = golden_files::json("schedule.json");
        assert!(schedules.iter().any(|stage| stage.rates.contains(&(1, 0.0))));
        for StageSchedule { steps, warmup, rates } in schedules {
            for (step, expected) in rates {
                let actual = learning_rate_factor(&from_zero(warmup), step, steps);
                assert!((actual - expected).abs() < 1e-12, "step {step} of {steps}: {actual} is not {expected}");
            }
        }
    }

    #[test]
    fn updates_with_a_warm_up_from_zero_equal_those_of_pytorch() {
        let GoldenSchedules { updates, .. } = golden_files::json("schedule.json");
        let AdamSettings { lr, betas, eps } = updates.adam;
        let count = updates.parameters[0].len() as i64;
        let mut builder = ParameterBuilder::uninitialized(testing::device());
        _ = builder.normal("parameters", &[count], 1.0);
        let mut parameters = builder.finish();
        parameters.start_training(|_| true);
        let input = |name: &str| golden_files::input_by_formula(&format!("schedule.{name}"), &[count]);
        tch::no_grad(|| parameters.flat().shallow_clone().copy_(&input("parameters")));
        let settings = config::Optimizer { learning_rate: lr, betas, epsilon: eps, weight_decay: 0.0, clip_norm: None };
        let mut adam = Adam::new(&parameters, &settings);
        for (step, (expected_factor, expected)) in (1..).zip(updates.rates.iter().zip(&updates.parameters)) {
            let actual = learning_rate_factor(&from_zero(updates.warmup), step, updates.steps);
            assert!((actual - expected_factor).abs() < 1e-12, "step {step}: {actual} is not {expected_factor}");
            let gradient = input(&format!("gradient{step}"));
            adam.update(&parameters, &AveragedGradient::new(&gradient, 1.0), step, lr * actual);
            golden_files::assert_close("parameters", parameters.flat(), &Tensor::from_slice(expected), 1e-6);
        }
    }

    #[test]
    fn schedules_rise_during_warm_up_and_then_stay_or_fall() {
        let constant = Schedule { warmup: 0.1, ..Schedule::default() };
        assert_eq!([1, 5, 10, 100].map(|step| learning_rate_factor(&constant, step, 100)), [0.1, 0.5, 1.0, 1.0]);
        let cosine = Schedule { shape: ScheduleShape::Cosine, ..Schedule::default() };
        let rates: Vec<f64> = (1..=100).map(|step| learning_rate_factor(&cosine, step, 100)).collect();
        assert!(rates.windows(2).all(|pair| pair[0] > pair[1]) && rates[99] > 0.0 && rates[0] > 0.99);
    }
}
