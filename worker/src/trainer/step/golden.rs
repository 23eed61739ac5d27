//! Tests of the trainer's step against PyTorch, in the settings of
//! [`crate::objective::dico::golden`]: loss, every gradient and every updated parameter.

use std::sync::Arc;

use config::{Dico, Karpathy, Objective};
use dataset::Split;
use image_features::{Dtype, EncoderDescription, Manifest, RowFormat, Store, Writer};
use run_assets::FeatureStores;
use serde_json::json;
use tch::Device;

use super::*;
use crate::collective::SingleRankCollective;
use crate::data::{BatchSource, LOADING_THREADS};
use crate::objective::dico::golden::{self, ExpectedStep, GoldenSetting, GoldenSteps, StepCase};
use crate::run_models::RunModels;
use crate::{tensor_conversion, testing};

/// The run of a golden step on a single rank, at its DiCO stage. Its images are in a feature store.
struct GoldenRun {
    run: RunFile,
    data: Arc<DataSet>,
    loader: DataLoader,
    batches: TrainingBatches,
    state: TrainingState,
    position: v1::Position,
    abandon: StopFlag,
    halt: StopFlag,
    _folder: tempfile::TempDir,
}

impl GoldenRun {
    fn new(golden: &GoldenSteps, case: &StepCase, setting: &GoldenSetting, expected: &ExpectedStep) -> Self {
        let mut run = golden::run(&setting.name);
        // The golden captioner is small: its captions are cut earlier. The masks of dropout differ
        // from PyTorch's.
        run.decoding.max_length = setting.search.max_length as u32;
        run.captioner.dropout = 0.0;
        let (stage_index, settings) = (golden::stage_index(&run), golden::settings(&run).clone());
        let stage = &mut run.stages[stage_index];
        stage.objective = Objective::Dico(Dico { tau: expected.tau, ..settings });
        stage.batch = case.hidden.size()[0] as u32;
        // The release's optimizer, at a rate whose updates are larger than rounding.
        let golden::AdamSettings { lr, betas, eps } = golden.adam;
        stage.optimizer.learning_rate = lr;
        let adam = config::Optimizer { learning_rate: lr, betas, epsilon: eps, ..golden::plain_adam() };
        assert_eq!(stage.optimizer, adam);

        let folder = tempfile::tempdir().unwrap();
        run.data = write_data(folder.path(), stage.batch);
        let data = Arc::new(DataSet::load_split(&run.data, Split::Train).unwrap());
        let models = golden.models(&run, testing::device().into());
        let source = BatchSource {
            data: Arc::clone(&data),
            sizes: models.image_sizes(),
            feature_stores: store_features(folder.path(), case),
            skip_corrupt: false,
        };
        let mut state = initial_state(&run, models, stage_index);
        state.reference = Some(golden.reference(testing::device().into()));
        Self {
            run,
            batches: TrainingBatches::new(Arc::clone(&data)),
            data,
            loader: DataLoader::new(source, LOADING_THREADS),
            state,
            position: v1::Position { stage: stage_index as u32, step: 0, generation: 0 },
            abandon: StopFlag::default(),
            halt: StopFlag::default(),
            _folder: folder,
        }
    }

    fn step<'a>(&'a mut self, timer: &'a PhaseTimer) -> TrainingStep<'a> {
        let generation_config = GenerationConfig::new(&self.run.decoding, &self.state.models.captioner_vocabulary);
        TrainingStep {
            run: &self.run,
            data: &self.data,
            cider: None,
            loader: &self.loader,
            batches: &mut self.batches,
            share: 0..self.run.stages[self.position.stage as usize].batch,
            position: self.position,
            state: &mut self.state,
            generation_config,
            collective: &SingleRankCollective,
            abandon: &self.abandon,
            halt: &self.halt,
            set_phase: &ignore_phase,
            timer,
        }
    }
}

fn ignore_phase(_: v1::Phase) {}

/// The state at the beginning of a stage.
fn initial_state(run: &RunFile, models: RunModels, stage_index: usize) -> TrainingState {
    let mut state = TrainingState::of_models(run, models, false);
    state.enter_stage(run, stage_index);
    state
}

/// Writes the annotations of `images` training images. With a feature store, no image is read.
fn write_data(folder: &std::path::Path, images: u32) -> config::Data {
    let image = |number| json!({ "filename": format!("{number}.jpg"), "split": "train", "sentences": [] });
    let images: Vec<_> = (0..images).map(image).collect();
    let annotations = folder.join("dataset.json");
    std::fs::write(&annotations, json!({ "images": images }).to_string()).unwrap();
    let karpathy = Some(Karpathy { annotations, images: folder.to_owned() });
    config::Data { karpathy, features: Some(folder.to_owned()), ..config::Data::default() }
}

/// Writes a feature store with the hidden states and embeddings of the golden step, and opens it.
fn store_features(
    folder: &std::path::Path,
    StepCase { hidden, embeddings: [embeddings], .. }: &StepCase,
) -> FeatureStores {
    let (images, tokens, width) = hidden.size3().unwrap();
    let encoder = EncoderDescription {
        weights: "formula".into(),
        sha256: String::new(),
        image_size: 1,
        computation: String::new(),
    };
    let shape = [tokens, width, embeddings.size()[1]].map(|size| size as u64);
    let manifest = Manifest::new(
        Split::Train.name().to_owned(),
        (images as u64, String::new()),
        String::new(),
        (encoder.clone(), vec![encoder]),
        RowFormat { shape, dtype: Dtype::F32 },
    );
    let rows = Tensor::cat(&[&hidden.flatten(1, -1), embeddings], 1).to_device(Device::Cpu);
    let folder = folder.join("features");
    Writer::open(&folder, manifest.clone()).unwrap().append(&tensor_conversion::to_bytes(&rows)).unwrap();
    FeatureStores::from_iter([(Split::Train, Store::open(&folder, &manifest).unwrap())])
}

#[test]
fn the_step_agrees_with_pytorch() {
    testing::each_code_path(|| {
        let golden = GoldenSteps::read();
        let case = StepCase::new(&golden, testing::device().into());
        for setting in &golden.settings {
            for expected in &setting.steps {
                let mut run = GoldenRun::new(&golden, &case, setting, expected);
                check_step(&mut run, &golden, expected);
                // One image at a time.
                let mut run = GoldenRun::new(&golden, &case, setting, expected);
                run.run.stages.iter_mut().for_each(|stage| stage.micro_batch = Some(1));
                check_step(&mut run, &golden, expected);
            }
        }
    });
}

fn check_step(run: &mut GoldenRun, golden: &GoldenSteps, expected: &ExpectedStep) {
    let (sizes, tensors) = (&golden.sizes, expected.tensors());
    let timer = PhaseTimer::default();
    let mut step = run.step(&timer);
    let batch = step.load_batch().unwrap();
    let totals = step.forward_backward(&batch).unwrap();
    let loss = totals.loss_sum / totals.weight;
    assert!((loss - expected.loss).abs() < 1e-4, "{loss} is not {}", expected.loss);
    let parameters = step.state.models.captioner.parameters();
    let gradient = parameters.gradient().unwrap().values / totals.weight;
    golden::compare(parameters.trained_views(&gradient), &tensors, "gradient", sizes, |_, difference| difference);
    let squares = tensors.iter().filter(|(name, _)| name.starts_with("gradient."));
    let squares: f64 = squares.map(|(_, gradient)| gradient.square().sum(Kind::Double).double_value(&[])).sum();

    let reduced = step.all_reduce(totals.weight).unwrap();
    assert!(!reduced.is_halt_requested);
    let (rate, norm) = step.optimizer_step(1, &reduced, &totals).unwrap();
    let stage = step.stage();
    assert_eq!(rate, golden.adam.lr * learning_rate_factor(&stage.schedule, 1, stage.steps));
    assert!((norm - squares.sqrt()).abs() < 1e-3 * norm, "{norm} is not {}", squares.sqrt());
    if tensors.keys().any(|name| name.starts_with("updated.")) {
        let parameters = step.state.models.captioner.parameters().named_parameters();
        let updated = parameters.map(|(name, value)| (name, value.shallow_clone()));
        // Adam's first step is nearly the sign of the gradient: where the gradient is only rounding
        // error, as for the keys' biases, so is the step.
        golden::compare(updated, &tensors, "updated", sizes, |name, difference| {
            difference * tensors[&format!("gradient.{name}")].abs().gt(1e-6)
        });
    }
}

#[test]
fn a_halt_and_an_abandoned_generation_reach_the_result_of_the_step() {
    let golden = GoldenSteps::read();
    let case = StepCase::new(&golden, testing::device().into());
    let (setting, expected) = (&golden.settings[0], &golden.settings[0].steps[0]);
    let mut run = GoldenRun::new(&golden, &case, setting, expected);
    run.halt.raise();
    let timer = PhaseTimer::default();
    let step = run.step(&timer).run().unwrap();
    assert!(step.is_halt_requested);
    let report = step.into_report(&run.data, &timer);
    assert_eq!(report.samples, case.hidden.size()[0] as u32);
    assert!((report.loss_sum / report.loss_weight - expected.loss).abs() < 1e-4);
    let image = report.example.unwrap().image;
    assert!(run.data.split(Split::Train).iter().any(|item| item.name == image));
    let timed: f64 = report.phase_seconds.values().sum();
    assert!((timed - report.seconds).abs() < 1e-9, "the phases of {} s take {timed} s", report.seconds);
    assert!(["load", "search", "reward", "reference", "learn"].iter().all(|phase| report.phase_seconds[*phase] > 0.0));

    run.abandon.raise();
    let error = run.step(&PhaseTimer::default()).run().err().unwrap();
    assert!(matches!(error, StepError::Collective(CollectiveError::Abandoned)), "{error}");
}
