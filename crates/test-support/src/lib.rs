//! Common code of the end-to-end tests: a small synthetic data set, run files, and coordinators and
//! workers as processes on the loopback interface, which are killed when they are dropped.
//! Functions panic if the operating system or a program fails unexpectedly.

pub mod chaos;
pub mod clip;
pub mod network;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use journal::{Caption, Evaluation, Generation, ReadOnlyJournal, RecordedStep};
use tempfile::TempDir;

/// A test fails if a wait takes longer. Even on a busy machine, no wait of these tests takes that
/// long.
const WAIT_TIMEOUT: Duration = Duration::from_secs(180);

/// The path of the program `name` in the build folder of these tests.
///
/// # Panics
/// The program has not been built. Cargo builds the programs when it tests the whole workspace.
#[must_use]
pub fn program_path(name: &str) -> PathBuf {
    local_cluster::program_path(name).unwrap_or_else(|error| panic!("{error}"))
}

/// The environment variables that the programs read. Tests start programs without them.
const PROGRAM_VARIABLES: [&str; 16] = [
    "RANK",
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "JOB_COMPLETION_INDEX",
    "DICO_COORDINATOR",
    "DICO_TLS_CA",
    "DICO_TLS_CERT",
    "DICO_TLS_KEY",
    "DICO_JOIN_TOKEN",
    "DICO_ADMIN_TOKEN",
    "DICO_LOG_FORMAT",
];

/// A command that runs the program `name` with one OpenMP thread, without the environment variables
/// that the programs read. SIGHUP has its default action, even if the tests are run by `nohup`.
#[must_use]
pub fn command(name: &str) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(program_path(name));
    command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
    for variable in PROGRAM_VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Runs the program `name` and waits until it ends.
#[must_use]
pub fn run(name: &str, arguments: &[&str]) -> Output {
    command(name).args(arguments).output().expect("the program starts")
}

/// The message in the last line of a failed program's stderr, without `NAME: error: `.
///
/// # Panics
/// The program succeeded, or the last line is not an error message.
#[must_use]
pub fn error_line(output: &Output) -> String {
    assert!(!output.status.success(), "the program should have failed");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().last().unwrap_or_default();
    line.split_once(": error: ").unwrap_or_else(|| panic!("no error line in {text:?}")).1.to_owned()
}

/// A folder with a small synthetic data set in `world/`, and with run files and their outputs.
pub struct Workspace {
    folder: PathBuf,
    /// Deletes the folder when it is dropped; none if the folder is kept.
    _temporary: Option<TempDir>,
    /// Additional environment variables of coordinators and workers.
    pub environment: Vec<(&'static str, String)>,
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Workspace {
    /// Creates a temporary folder with a data set of 60 images.
    #[must_use]
    pub fn new() -> Self {
        Self::with_images(60)
    }

    /// Creates a temporary folder with a data set of this number of images, a tenth of them for
    /// validation.
    #[must_use]
    pub fn with_images(images: u32) -> Self {
        Self::in_temporary_folder(images, &[])
    }

    /// Creates a temporary folder with a data set of 60 images, and with generated positives for
    /// the training split.
    #[must_use]
    pub fn with_positives() -> Self {
        Self::with_images_and_positives(60)
    }

    /// Creates a temporary folder with a data set of this number of images, and with generated
    /// positives for the training split.
    #[must_use]
    pub fn with_images_and_positives(images: u32) -> Self {
        Self::in_temporary_folder(images, &["--positives"])
    }

    fn in_temporary_folder(images: u32, synthesize_options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be created");
        let workspace = Self::in_folder(folder.path(), images, synthesize_options);
        Self { _temporary: Some(folder), ..workspace }
    }

    /// Creates a data set of this number of images in a folder, which is not deleted.
    /// `synthesize_options` are further options of `worker synthesize`.
    #[must_use]
    pub fn in_folder(folder: &Path, images: u32, synthesize_options: &[&str]) -> Self {
        let folder = std::path::absolute(folder).expect("the current folder has a path");
        let (data_folder, images) = (folder.join("world"), images.to_string());
        let data_folder = data_folder.to_string_lossy();
        let arguments = ["synthesize", "--out", &data_folder, "--images", &images, "--seed", "3"];
        let output = run("worker", &[&arguments[..], synthesize_options].concat());
        assert!(output.status.success(), "{output:?}");
        Self { folder, _temporary: None, environment: Vec::new() }
    }

    /// The path of the file or folder `name` in the workspace.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the run file `NAME.yaml` for exactly `workers` workers, with a few steps each of
    /// `contrastive`, `cross_entropy` and `dico`. The run's output is the folder `NAME`.
    /// `more_yaml` is appended to the file.
    #[must_use]
    pub fn run_file(&self, name: &str, workers: u32, more_yaml: &str) -> PathBuf {
        let folder = self.folder.display();
        let optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
        let text = format!(
            "name: test\nseed: 11\noutput: {folder}/{name}\nworkers: {{ min: {workers}, max: {workers} }}\n\
             data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n  \
             scenes: {folder}/world/scenes.json\nvocabulary: corpus\nevaluator: {{ preset: tiny }}\n\
             captioner: {{ preset: tiny, dropout: 0.0 }}\ndecoding: {{ beams: 3, max_length: 12 }}\nstages:\n  \
             - {{ name: evaluator, objective: contrastive, steps: 4, batch: 12, {optimizer} }}\n  \
             - {{ name: xe, objective: cross_entropy, steps: 6, batch: 12, micro_batch: 4, checkpoint_every: 4, {optimizer} }}\n  \
             - {{ name: dico, objective: dico, steps: 4, batch: 6, evaluate_every: 2, {optimizer} }}\n{more_yaml}"
        );
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).expect("the run file can be written");
        path
    }

    /// Writes the run file `NAME.yaml` for one worker and one stage with frequent checkpoints, all
    /// of which are kept. The run's output is the folder `NAME`.
    #[must_use]
    pub fn run_file_with_checkpoints(&self, name: &str) -> PathBuf {
        let folder = self.folder.display();
        let text = format!(
            "name: test\nseed: 11\noutput: {folder}/{name}\nworkers: {{ min: 1, max: 1 }}\n\
             data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n\
             vocabulary: corpus\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n\
             checkpoints: {{ keep: 100 }}\nstages:\n  \
             - {{ name: xe, objective: cross_entropy, steps: 200, batch: 12, checkpoint_every: 10, optimizer: {{ learning_rate: 1.0e-3 }} }}\n"
        );
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).expect("the run file can be written");
        path
    }

    /// Opens the journal of the run with the output `name` for reading.
    #[must_use]
    pub fn journal(&self, name: &str) -> ReadOnlyJournal {
        self.open_journal(name).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// As [`Self::journal`]; none if the journal does not exist or has no run yet.
    #[must_use]
    pub fn try_journal(&self, name: &str) -> Option<ReadOnlyJournal> {
        self.open_journal(name).ok()
    }

    fn open_journal(&self, name: &str) -> Result<ReadOnlyJournal, journal::Error> {
        ReadOnlyJournal::open(&self.path(name).join("coordinator"))
    }

    /// The details of the events of a kind in the event log of a run, in order.
    #[must_use]
    pub fn events(&self, name: &str, kind: &str) -> Vec<serde_json::Value> {
        let events = self.journal(name).events().expect("events can be read");
        events.into_iter().filter(|event| event.kind == kind).map(|event| event.detail).collect()
    }

    /// The steps of a run that were not given up, in the order of the run.
    #[must_use]
    pub fn steps(&self, name: &str) -> Vec<RecordedStep> {
        let mut steps = Vec::new();
        self.journal(name).for_each_step(Default::default(), |step| steps.push(step)).expect("steps can be read");
        steps
    }

    /// The evaluations of a run that were not given up, each with all captions, in the order of the
    /// run.
    #[must_use]
    pub fn evaluations(&self, name: &str) -> Vec<(Evaluation, Vec<Caption>)> {
        let journal = self.journal(name);
        let evaluations = journal.evaluations(None).expect("evaluations can be read");
        let with_captions = |evaluation: Evaluation| {
            let captions = journal.captions(evaluation.id, u32::MAX).expect("captions can be read");
            (evaluation, captions)
        };
        evaluations.into_iter().map(with_captions).collect()
    }

    /// The parameters in the last checkpoint of a run, by name.
    #[must_use]
    pub fn parameters(&self, name: &str) -> BTreeMap<String, Vec<f32>> {
        read_parameters(&self.last_checkpoint(name))
    }

    /// The folder of a run's last checkpoint: the last name in alphabetical order.
    #[must_use]
    pub fn last_checkpoint(&self, name: &str) -> PathBuf {
        let folder = std::fs::read_dir(self.path(name).join("checkpoints")).expect("the run has checkpoints");
        folder.map(|entry| entry.expect("a folder can be listed").path()).max().expect("there is a checkpoint")
    }
}

/// The last generation that has applied a step, with its last step. None if there is none, or if
/// the journal is locked, which happens while a coordinator starts.
#[must_use]
pub fn last_trained_generation(journal: &ReadOnlyJournal) -> Option<(Generation, u64)> {
    journal.generations().ok()?.into_iter().rev().find_map(|generation| {
        let steps = journal.steps_recorded_after(generation.formed_at).ok()?;
        let last = steps.iter().rfind(|step| step.generation == generation.number)?;
        Some((generation, last.position.step))
    })
}

/// Reads the parameters of all models in a checkpoint's folder, by `MODEL.NAME`.
#[must_use]
pub fn read_parameters(checkpoint: &Path) -> BTreeMap<String, Vec<f32>> {
    let models =
        ["evaluator", "captioner", "reference"].map(|model| (model, checkpoint.join(format!("{model}.safetensors"))));
    let models = models.into_iter().filter(|(_, path)| path.exists());
    let named = |(model, path): (&str, PathBuf)| {
        read_tensors(&path)
            .into_iter()
            .map(move |(name, values)| (format!("{model}.{name}"), values))
            .collect::<Vec<_>>()
    };
    models.flat_map(named).collect()
}

/// Reads the tensors of a safetensors file of 32-bit floats, by name.
#[must_use]
pub fn read_tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).expect("the file can be read");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("the file is a safetensors file");
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

/// Polls until there is a value.
///
/// # Panics
/// There is no value within [`WAIT_TIMEOUT`]. The message has `description`, which says what the
/// test waits for.
pub fn wait_for<T>(description: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let started_at = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(started_at.elapsed() < WAIT_TIMEOUT, "timed out waiting for {description}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child process with a log file. Dropping this kills the process.
pub struct Process(local_cluster::Process);

impl Process {
    /// Starts `command`. Its stderr is written to the file `log`.
    #[must_use]
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self(local_cluster::Process::start(&name, command, log).unwrap_or_else(|error| panic!("{error}")))
    }

    /// Waits for the next line of stdout.
    pub fn read_line(&mut self) -> String {
        self.0.read_line().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The content of the log, which is what the process has written to stderr.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, given by its name without `SIG`. Does nothing if the process has ended.
    pub fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let status = Command::new("kill").arg(format!("-{name}")).arg(id).stderr(Stdio::null()).status();
        status.expect("the program kill exists");
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.exit_status().is_some()
    }

    fn exit_status(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until the process ends. Returns whether its exit status is 0.
    #[must_use]
    pub fn succeeds(self) -> bool {
        self.finish().0
    }

    /// Waits until the process ends. Returns whether its exit status is 0, and the rest of its
    /// stdout.
    #[must_use]
    pub fn finish(self) -> (bool, String) {
        let (code, stdout) = self.wait_for_exit();
        (code == Some(0), stdout)
    }

    /// Waits until the process ends. Returns its exit status (none if a signal ended the process)
    /// and the rest of its stdout.
    #[must_use]
    pub fn wait_for_exit(mut self) -> (Option<i32>, String) {
        let started_at = Instant::now();
        let status = loop {
            match self.exit_status() {
                Some(status) => break status,
                None if started_at.elapsed() > WAIT_TIMEOUT => {
                    panic!("timed out waiting for the process to end: {}", self.log())
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let stdout = self.0.read_to_end().unwrap_or_else(|error| panic!("{error}"));
        if !status.success() {
            eprintln!("{}", self.log());
        }
        (status.code(), stdout)
    }
}

/// A coordinator on the loopback interface, on ports that the system chooses.
pub struct Coordinator {
    /// The process.
    pub process: Process,
    /// Its gRPC URL.
    pub url: String,
    /// Its HTTP address, host:port.
    pub http_address: String,
}

impl Coordinator {
    /// Starts a coordinator with a run file, and waits until it listens.
    #[must_use]
    pub fn start(workspace: &Workspace, run_file: &Path) -> Self {
        Self::start_with(workspace, run_file, "http", &[])
    }

    /// Starts a coordinator with a run file and further options of `serve`, and waits until it
    /// listens. Workers connect to a URL with `scheme`: `http` or `https`.
    #[must_use]
    pub fn start_with(workspace: &Workspace, run_file: &Path, scheme: &str, options: &[&str]) -> Self {
        let mut command = command("coordinator");
        command.envs(workspace.environment.iter().cloned());
        let started = local_cluster::Coordinator::start(command, run_file, options, workspace.path("coordinator.log"));
        let local_cluster::Coordinator { process, grpc_address, http_address } =
            started.unwrap_or_else(|error| panic!("{error}"));
        Self { url: format!("{scheme}://{grpc_address}"), http_address, process: Process(process) }
    }

    /// The status that `coordinator status --json` prints.
    ///
    /// # Panics
    /// The coordinator does not respond.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let status = run("coordinator", &["status", "--coordinator", &self.url, "--json"]);
        serde_json::from_slice(&status.stdout).unwrap_or_else(|_| panic!("no status: {}", self.process.log()))
    }

    /// Starts a worker that joins this coordinator.
    #[must_use]
    pub fn start_worker(&self, workspace: &Workspace, worker_id: u32) -> Process {
        self.start_worker_with(workspace, worker_id, &[])
    }

    /// Starts a worker that joins this coordinator, with further options.
    #[must_use]
    pub fn start_worker_with(&self, workspace: &Workspace, worker_id: u32, options: &[&str]) -> Process {
        let mut command = command("worker");
        command.args(["join", "--coordinator", &self.url, "--rank", &worker_id.to_string(), "--threads", "1"]);
        command.args(options).envs(workspace.environment.iter().cloned());
        Process::start(&mut command, workspace.path(&format!("worker-{worker_id}.log")))
    }
}

/// The SHA-256 of the parameters in the output of a worker; none if the worker left before the end
/// of the run.
#[must_use]
pub fn parameters_sha256(stdout: &str) -> Option<String> {
    local_cluster::parameters_sha256(stdout).map(str::to_owned)
}

/// Trains the run of a run file to its end, with workers 0 to `workers` - 1. Returns the SHA-256 of
/// each worker's parameters.
pub fn run_to_completion(workspace: &Workspace, run_file: &Path, workers: u32) -> Vec<String> {
    let coordinator = Coordinator::start(workspace, run_file);
    let workers: Vec<Process> = (0..workers).map(|worker_id| coordinator.start_worker(workspace, worker_id)).collect();
    let hashes = workers.into_iter().map(|worker| {
        let (succeeded, stdout) = worker.finish();
        assert!(succeeded);
        parameters_sha256(&stdout).expect("a worker that finished the run prints the hash")
    });
    let hashes = hashes.collect();
    assert!(coordinator.process.succeeds());
    hashes
}
