//! The parameter groups of an evaluator: which of them a contrastive stage trains, and their memory
//! layout.

use config::{RunFile, Trainable};
use weights::LoraConfig;
use weights::clip::{LORA_ALPHA, is_lora_factor};

/// The parts of the primary evaluator that the stages of a run train separately. The memory layout
/// makes each part one contiguous range.
#[derive(Clone, Debug, Default)]
pub struct TrainableParts {
    /// Whether a stage trains only the last projections.
    pub projections: bool,
    /// The LoRA factors, if a stage trains some. The model has them from the start of the run.
    pub lora: Option<LoraConfig>,
}

impl TrainableParts {
    /// The parts that the stages of a run train. All stages have the same LoRA settings.
    #[must_use]
    pub fn of_run(run: &RunFile) -> Self {
        let contrastive = || run.stages.iter().filter_map(|stage| stage.objective.contrastive());
        let all = || contrastive().map(|settings| &settings.trainable);
        let lora = all().find_map(|trainable| match trainable {
            Trainable::Lora(lora) => Some(lora.clone()),
            _ => None,
        });
        Self { projections: all().any(|trainable| *trainable == Trainable::Projections), lora }
    }

    /// The group of a parameter in the memory layout. If no stage trains only the projections, they
    /// belong to the body.
    pub(super) fn group(&self, name: &str) -> ParameterGroup {
        match ParameterGroup::of(name) {
            ParameterGroup::Projections if !self.projections => ParameterGroup::Body,
            group => group,
        }
    }
}

/// The groups of parameters, in the order of their memory layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ParameterGroup {
    /// All parameters that are in no other group.
    Body,
    /// The last projections of both encoders.
    Projections,
    /// LoRA factors.
    LoraFactors,
    /// The scale of the factors, which is never trained.
    LoraAlpha,
}

impl ParameterGroup {
    /// The group of the parameter `name`. The names are those of OpenAI's CLIP (`clip/model.py`).
    pub fn of(name: &str) -> Self {
        match name {
            LORA_ALPHA => Self::LoraAlpha,
            "visual.proj" | "visual.attnpool.c_proj.weight" | "visual.attnpool.c_proj.bias" | "text_projection" => {
                Self::Projections
            }
            name if is_lora_factor(name) => Self::LoraFactors,
            _ => Self::Body,
        }
    }

    /// Whether a stage with this setting trains the group.
    pub fn is_trained(self, trainable: &Trainable) -> bool {
        match trainable {
            Trainable::All => self <= Self::Projections,
            Trainable::Projections => self == Self::Projections,
            Trainable::Lora(_) => self == Self::LoraFactors,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::Preset;
    use tch::{Kind, Tensor, no_grad};
    use weights::write_safetensors;

    use super::*;
    use crate::clip::{Clip, preset};
    use crate::collective::SingleRankCollective;
    use crate::objective::contrastive::{self, ContrastivePairs};
    use crate::optimizer::{Adam, AveragedGradient};
    use crate::{tensor_conversion, testing};

    fn lora() -> LoraConfig {
        LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() }
    }

    fn trainable_parts() -> TrainableParts {
        TrainableParts { projections: true, lora: Some(lora()) }
    }

    fn evaluator() -> Clip {
        Clip::trainable(preset(Preset::Tiny, 50), 1, testing::device(), &trainable_parts())
    }

    fn pixels() -> Tensor {
        tch::manual_seed(3);
        Tensor::randn([4, 3, 64, 64], testing::f32_options())
    }

    fn texts() -> Vec<Vec<i64>> {
        let (begin, end) = (48, 49);
        (0..4).map(|i| vec![begin, i, i + 1, end]).collect()
    }

    fn embeddings(clip: &Clip) -> [Tensor; 2] {
        [clip.image_embeddings(&clip.vision.hidden_states(&pixels())), clip.text.embed(&texts(), 1)]
    }

    fn values(clip: &Clip) -> BTreeMap<String, Tensor> {
        clip.parameters().named_parameters().map(|(name, tensor)| (name.to_owned(), tensor.detach().copy())).collect()
    }

    /// Trains the part `trainable` for four steps. Returns the loss of each step.
    fn train(clip: &mut Clip, trainable: &Trainable, learning_rate: f64) -> Vec<f64> {
        let settings =
            config::Optimizer { learning_rate, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.1, clip_norm: None };
        clip.start_training(trainable);
        let mut adam = Adam::new(clip.parameters(), &settings);
        let trained: usize = clip.parameters().named_trained_parameters().map(|(_, tensor)| tensor.numel()).sum();
        assert_eq!(
            [adam.first_moment.numel(), adam.second_moment.numel()],
            [trained; 2],
            "only trained parameters have moments"
        );
        assert_eq!(clip.parameters().gradient().unwrap().values.numel(), trained);
        let losses = (1..=4).map(|step| {
            let mut gradient = clip.parameters().gradient().unwrap().values;
            _ = gradient.zero_();
            let [images, texts] = embeddings(clip);
            let pairs = ContrastivePairs { tokens: 0, images, texts, generated_images: None, generated_texts: None };
            let output = contrastive::compute_loss(&pairs, &clip.logit_scale(), &SingleRankCollective).unwrap();
            output.loss.backward();
            adam.update(clip.parameters(), &AveragedGradient::new(&gradient, output.weight), step, learning_rate);
            output.loss_sum
        });
        let losses = losses.collect();
        clip.parameters_mut().stop_training();
        losses
    }

    fn check_training(trainable: &Trainable, is_trained: fn(&str) -> bool) {
        let mut clip = evaluator();
        let before = values(&clip);
        let losses = train(&mut clip, trainable, 1e-3);
        assert!(losses.last() < losses.first(), "{losses:?}");
        let mut changed = 0;
        for (name, value) in values(&clip) {
            let is_same = value.equal(&before[&name]);
            assert!(!is_trained(&name) || !is_same, "{name} has not changed");
            assert!(is_trained(&name) || is_same, "{name} is frozen and has changed");
            changed += usize::from(!is_same);
        }
        assert!(changed > 0);
    }

    #[test]
    fn each_part_can_be_trained_and_frozen_parameters_do_not_change() {
        testing::each_code_path(|| {
            check_training(&Trainable::Projections, |name| ["visual.proj", "text_projection"].contains(&name));
            check_training(&Trainable::Lora(lora()), is_lora_factor);
            check_training(&Trainable::All, |name| !is_lora_factor(name) && name != LORA_ALPHA);
        });
    }

    #[test]
    fn without_separate_parts_parameters_are_in_the_order_of_the_layers() {
        let names = |trainable_parts: &TrainableParts| -> Vec<String> {
            let clip = Clip::trainable(preset(Preset::Tiny, 50), 1, testing::device(), trainable_parts);
            clip.parameters().named_parameters().map(|(name, _)| name.to_owned()).collect()
        };
        let plain = Clip::new(preset(Preset::Tiny, 50), 1, testing::device());
        let layers: Vec<String> = plain.parameters().named_parameters().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(names(&TrainableParts::default()), layers);
        // The values do not depend on the parts that the run trains.
        let all = values(&evaluator());
        assert!(values(&plain).iter().all(|(name, value)| value.equal(&all[name])));
        let with_projections = names(&TrainableParts { projections: true, lora: None });
        assert_eq!(with_projections[layers.len() - 2..], ["visual.proj", "text_projection"]);
        assert_eq!(names(&trainable_parts()).last().unwrap(), LORA_ALPHA);
    }

    #[test]
    fn trained_factors_read_from_a_file_give_the_same_embeddings() {
        for backend in [testing::device().into(), testing::bf16_backend()] {
            let mut clip = Clip::trainable(preset(Preset::Tiny, 50), 1, backend, &trainable_parts());
            train(&mut clip, &Trainable::Lora(lora()), 1e-2);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("evaluator.safetensors");
            let trained: Vec<_> = clip
                .parameters()
                .named_parameters()
                .map(|(name, tensor)| (name.to_owned(), tensor_conversion::to_weights(tensor)))
                .collect();
            write_safetensors(&path, &trained).unwrap();
            let read = weights::ClipWeights::open_with_config(&path, clip.config().clone()).unwrap();
            let merged = tensor_conversion::from_weights(read.tensors().unwrap());
            let plain = Clip::from_tensors(clip.config().clone(), &merged, backend).unwrap();
            let tolerance = if backend == testing::bf16_backend() { 2e-2 } else { 1e-5 };
            for (actual, expected) in no_grad(|| embeddings(&plain)).iter().zip(no_grad(|| embeddings(&clip))) {
                let difference = (actual - &expected).abs().max().to_kind(Kind::Double).double_value(&[]);
                assert!(difference < tolerance, "{difference}");
            }
            // Without the factors the embeddings differ.
            let without: BTreeMap<_, _> = values(&clip)
                .into_iter()
                .filter(|(name, _)| ParameterGroup::of(name) < ParameterGroup::LoraFactors)
                .collect();
            let without = Clip::from_tensors(clip.config().clone(), &without, backend).unwrap();
            let [actual, expected] = [&without, &clip].map(|clip| no_grad(|| embeddings(clip))[0].shallow_clone());
            assert!((actual - expected).abs().max().double_value(&[]) > 5.0 * tolerance);
        }
    }

    #[test]
    fn factors_depend_only_on_the_seed_of_the_model() {
        let plain = values(&Clip::new(preset(Preset::Tiny, 50), 7, testing::device()));
        let start = |seed| {
            Clip::trainable_from_tensors(preset(Preset::Tiny, 50), &plain, seed, testing::device(), &trainable_parts())
                .unwrap()
        };
        let [one, same, other] = [1, 1, 2].map(|seed| values(&start(seed)));
        let a = "visual.transformer.resblocks.0.mlp.c_fc.lora_A";
        assert!(one[a].equal(&same[a]) && !one[a].equal(&other[a]));
        assert!(one[a].equal(&values(&evaluator())[a]));
        let b = &one["visual.transformer.resblocks.0.mlp.c_fc.lora_B"];
        assert!(b.eq(0.0).all().int64_value(&[]) == 1);
    }
}
