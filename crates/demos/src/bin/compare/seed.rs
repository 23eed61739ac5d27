use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use config::{Evaluator, EvaluatorScore, GuardAction, Karpathy, Positives, RunFile};
use demos::cluster::{self, Cluster};
use demos::progress::Progress;
use journal::{GuardFiring, ReadOnlyJournal};
use serde::{Deserialize, Serialize};

use crate::arms::{ARMS, Arm, RewardEvaluator};

/// The name of the captioner that all arms start from: the result of teacher forcing.
pub const START: &str = "xe";

/// The number of the stage of the base that trains CLIP.
const CLIP_STAGE: u32 = 0;
/// The number of the base's last stage. It trains the captioner, after PAC was trained.
const TEACHER_FORCING_STAGE: u32 = 2;

/// The results of one seed.
pub struct SeedResult {
    /// The seed.
    pub seed: u64,
    /// Results by name of the arm; [`START`] is the captioner that all arms start from.
    pub arms: BTreeMap<String, ArmResult>,
}

/// The results of one arm.
#[derive(Clone, Serialize, Deserialize)]
pub struct ArmResult {
    /// Wall-clock seconds of the training.
    pub seconds: f64,
    /// Scores of validation images over steps.
    pub curve: Vec<ScoredStep>,
    /// Scores of test images at the end, from both evaluators, by name.
    pub test: BTreeMap<String, f64>,
    /// The guard rules that have fired.
    pub guard: Vec<FiredRule>,
}

/// A guard rule that has fired.
#[derive(Clone, Serialize, Deserialize)]
pub struct FiredRule {
    /// The step of the value.
    pub step: u64,
    /// The metric that the rule checks.
    pub metric: String,
    /// The value beyond the bound; none if it is not finite.
    pub value: Option<f64>,
    /// The action of the rule.
    pub action: GuardAction,
}

/// An evaluation.
#[derive(Clone, Serialize, Deserialize)]
pub struct ScoredStep {
    /// The step of the evaluated state.
    pub step: u64,
    /// Scores by name.
    pub metrics: BTreeMap<String, f64>,
}

/// One seed's comparison.
pub struct Seed {
    number: u64,
    /// The folder of this seed's data set and runs.
    folder: PathBuf,
    /// The run file that trains evaluators and captioner.
    base: RunFile,
    /// The run file whose only stage the arms vary.
    tune: RunFile,
}

impl Seed {
    /// The two run files, with seed, output and data of this seed's folder below `out`.
    ///
    /// # Errors
    /// A run file cannot be loaded, or does not have the stages that the comparison needs.
    pub fn new(number: u64, out: &Path, base: &Path, tune: &Path) -> Result<Self> {
        let folder = std::path::absolute(out.join(number.to_string()))?;
        let data_set = folder.join("world");
        let load = |path: &Path| -> Result<RunFile> {
            let mut run = RunFile::load(path)?;
            run.seed = number;
            run.data.karpathy =
                Some(Karpathy { annotations: data_set.join("dataset.json"), images: data_set.join("images") });
            run.data.scenes = Some(data_set.join("scenes.json"));
            Ok(run)
        };
        let mut base = load(base)?;
        base.output = folder.join("base");
        let positives = data_set.join("positives");
        base.data.positives =
            Some(Positives { images: Some(positives.join("images")), captions: Some(positives.join("captions.json")) });
        let tune = load(tune)?;
        ensure!(tune.stages.len() == 1, "the arms' run file needs exactly one stage");
        ensure!(base.stages.len() == 3, "the base's run file needs three stages: CLIP, PAC and teacher forcing");
        Ok(Self { number, folder, base, tune })
    }

    /// Trains and tests the base and all arms, except for those that are finished already. The data
    /// set has `images` images, over all splits.
    ///
    /// # Errors
    /// The data set cannot be synthesized, a process fails, or a file cannot be read or written.
    pub async fn run(self, images: u32) -> Result<SeedResult> {
        println!("seed {}", self.number);
        cluster::synthesize(&self.folder.join("world"), images, self.number, &["--positives"])?;
        let mut arms = BTreeMap::new();
        let base = match finished_result(&self.base)? {
            Some(result) => result,
            None => {
                // All arms start from the base's captioner, so their earlier results are obsolete.
                ARMS.iter().try_for_each(|arm| remove(&self.folder.join(arm.name)))?;
                self.train_and_test(START, &self.base, TEACHER_FORCING_STAGE).await?
            }
        };
        arms.insert(START.to_owned(), base);
        for arm in &ARMS {
            let run = self.arm_run_file(arm);
            let result = match finished_result(&run)? {
                Some(result) => result,
                None => {
                    let only_stage = 0;
                    self.train_and_test(arm.name, &run, only_stage).await?
                }
            };
            arms.insert(arm.name.to_owned(), result);
        }
        Ok(SeedResult { seed: self.number, arms })
    }

    fn arm_run_file(&self, arm: &Arm) -> RunFile {
        let mut run = self.tune.clone();
        run.name = arm.name.to_owned();
        run.output = self.folder.join(arm.name);
        run.stages = vec![arm.stage(&self.tune.stages[0])];
        run.captioner.weights = Some(self.base_checkpoint(TEACHER_FORCING_STAGE));
        self.with_evaluator(run, arm.evaluator)
    }

    /// The run file with another primary evaluator.
    fn with_evaluator(&self, mut run: RunFile, evaluator: RewardEvaluator) -> RunFile {
        let (stage, score) = match evaluator {
            RewardEvaluator::Clip => (CLIP_STAGE, EvaluatorScore::ClipS),
            // Teacher forcing does not change the evaluator, so the last checkpoint has PAC. The
            // captioner uses PAC's vision encoder.
            RewardEvaluator::Pac => (TEACHER_FORCING_STAGE, EvaluatorScore::PacS),
        };
        let weights = Some(self.base_checkpoint(stage));
        let evaluator = run.primary_evaluator_mut();
        *evaluator = Evaluator { preset: None, weights, score: Some(score), ..evaluator.clone() };
        run
    }

    /// The last checkpoint of a stage of the base.
    fn base_checkpoint(&self, stage: u32) -> PathBuf {
        let config::Stage { name, steps, .. } = &self.base.stages[stage as usize];
        self.base.output.join(format!("checkpoints/{stage}-{name}-{steps:08}"))
    }

    /// Trains and tests one run. Its curve is that of the stage with number `stage`.
    async fn train_and_test(&self, name: &str, run: &RunFile, stage: u32) -> Result<ArmResult> {
        let (config, result) = files(run);
        remove(&run.output)?;
        std::fs::create_dir_all(&run.output).with_context(|| format!("cannot make {}", run.output.display()))?;
        std::fs::write(&config, as_yaml(run)?).with_context(|| format!("cannot write {}", config.display()))?;
        println!("{name}");
        let started = Instant::now();
        let cluster = Cluster::start(&config, run)?;
        let hashes = cluster.watch(Progress::new(run)).await?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(
            hashes.values().all(|hash| Some(hash) == hashes.values().next()),
            "{name}: the workers' parameters differ"
        );
        let journal = ReadOnlyJournal::open(&run.journal_folder())?;
        let curve = journal.evaluations(None)?.into_iter().filter(|evaluation| evaluation.id.position.stage == stage);
        let curve =
            curve.map(|evaluation| ScoredStep { step: evaluation.id.position.step, metrics: evaluation.scores });
        let curve = curve.collect();
        let checkpoint = run.output.join("checkpoints").join(result_checkpoint(&journal)?);
        let mut test = BTreeMap::new();
        for evaluator in [RewardEvaluator::Clip, RewardEvaluator::Pac] {
            let config = self.folder.join("evaluator.yaml");
            // A stage that accepts either evaluator.
            let run = RunFile { stages: vec![self.base.stages[TEACHER_FORCING_STAGE as usize].clone()], ..run.clone() };
            std::fs::write(&config, serde_json::to_vec(&self.with_evaluator(run, evaluator))?)?;
            test.extend(evaluate(&config, &checkpoint).await?);
        }
        let guard = journal.guard_firings()?.into_iter().map(FiredRule::from).collect();
        let done = ArmResult { seconds, curve, test, guard };
        // The file has its final name only when it is complete.
        let partial = result.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(&done)?)
            .and_then(|()| std::fs::rename(&partial, &result))
            .with_context(|| format!("cannot write {}", result.display()))?;
        Ok(done)
    }
}

impl From<GuardFiring> for FiredRule {
    fn from(GuardFiring { position, rule, .. }: GuardFiring) -> Self {
        let value = rule.value.is_finite().then_some(rule.value);
        Self { step: position.step, metric: rule.metric, value, action: rule.action }
    }
}

/// The paths of a run's run file and of its result.
fn files(run: &RunFile) -> (PathBuf, PathBuf) {
    (run.output.join("run.yaml"), run.output.join("result.json"))
}

/// The run file as JSON, which is valid YAML.
fn as_yaml(run: &RunFile) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(run)?)
}

/// The result of a finished run with the same run file; none if there is no such run.
fn finished_result(run: &RunFile) -> Result<Option<ArmResult>> {
    let (config, result) = files(run);
    let text = as_yaml(run)?;
    let (Ok(before), Ok(done)) = (std::fs::read(&config), std::fs::read(&result)) else { return Ok(None) };
    if before != text {
        return Ok(None);
    }
    // A result of another version cannot be read: the run is repeated.
    let done = serde_json::from_slice(&done).ok();
    if done.is_some() {
        println!("{}: already finished", run.name);
    }
    Ok(done)
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The name of the checkpoint with the result of a complete run.
fn result_checkpoint(journal: &ReadOnlyJournal) -> Result<String> {
    let result = journal.run_ends()?.into_iter().rev().find_map(|end| end.result);
    result.context("the run is not complete")
}

/// The scores of a checkpoint on the test split, which neither model selection nor a guard uses.
async fn evaluate(config: &Path, checkpoint: &Path) -> Result<BTreeMap<String, f64>> {
    #[derive(Deserialize)]
    struct Report {
        corpus: BTreeMap<String, f64>,
    }
    let mut command = tokio::process::Command::from(local_cluster::command("worker")?);
    command.kill_on_drop(true);
    command.arg("evaluate").arg("--config").arg(config).arg("--checkpoint").arg(checkpoint);
    let output = command
        .args(["--split", "test", "--json", "--threads", "1"])
        .output()
        .await
        .context("cannot run worker evaluate")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "worker evaluate: {}", errors.lines().last().unwrap_or("no message"));
    let report: Report = serde_json::from_slice(&output.stdout).context("worker evaluate --json")?;
    Ok(report.corpus)
}
