//! Common code of the end-to-end tests: a small synthetic data set, run files, and real processes
//! on the loopback that end with the test.

pub mod chaos;
pub mod clip;
pub mod network;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

/// Longer than any wait of these tests on a busy machine; a failure if reached.
const PATIENCE: Duration = Duration::from_secs(180);

/// The path of the program called `name`, as built beside these tests.
///
/// # Panics
/// If it was not built: cargo builds the programs when it tests the whole workspace.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    local_cluster::program(name).unwrap_or_else(|error| panic!("{error}"))
}

/// Environment variables that the programs read.
const VARIABLES: [&str; 16] = [
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

/// A command that runs `name` on one thread, without the caller's environment variables. SIGHUP is
/// not ignored, even if the tests are run by `nohup`.
#[must_use]
pub fn command(name: &str) -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(program(name));
    command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
}

/// Runs `name` to its end.
#[must_use]
pub fn run(name: &str, arguments: &[&str]) -> Output {
    command(name).args(arguments).output().expect("the program starts")
}

/// The last line of a program's stderr, after `NAME: error: `.
#[must_use]
pub fn error_line(output: &Output) -> String {
    assert!(!output.status.success(), "it should have failed");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().last().unwrap_or_default();
    line.split_once(": error: ").unwrap_or_else(|| panic!("no error line in {text:?}")).1.to_owned()
}

/// A folder with a small synthetic data set and run files.
pub struct Workspace {
    folder: PathBuf,
    /// Deletes the folder with the test.
    _temporary: Option<TempDir>,
    /// Further environment variables of coordinators and workers.
    pub environment: Vec<(&'static str, String)>,
}

impl Default for Workspace {
    fn default() -> Self {
        Self::new()
    }
}

impl Workspace {
    /// A folder with a data set of 60 images.
    #[must_use]
    pub fn new() -> Self {
        Self::with_images(60)
    }

    /// A folder with a data set of this number of images, a tenth of them for validation.
    #[must_use]
    pub fn with_images(images: u32) -> Self {
        Self::draw(images, &[])
    }

    /// A folder with a data set of 60 images, and generated images and captions for the training
    /// split.
    #[must_use]
    pub fn with_positives() -> Self {
        Self::with_images_and_positives(60)
    }

    /// A folder with a data set of this number of images, and generated images and captions for the
    /// training split.
    #[must_use]
    pub fn with_images_and_positives(images: u32) -> Self {
        Self::draw(images, &["--positives"])
    }

    fn draw(images: u32, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let workspace = Self::kept(folder.path(), images, more);
        Self { _temporary: Some(folder), ..workspace }
    }

    /// A data set in a folder that is not deleted.
    #[must_use]
    pub fn kept(folder: &Path, images: u32, more: &[&str]) -> Self {
        let folder = std::path::absolute(folder).expect("the current folder has a path");
        let (world, images) = (folder.join("world"), images.to_string());
        let world = world.to_string_lossy();
        let arguments = ["synthesize", "--out", &world, "--images", &images, "--seed", "3"];
        let drawn = run("worker", &arguments.into_iter().chain(more.iter().copied()).collect::<Vec<_>>());
        assert!(drawn.status.success(), "{drawn:?}");
        Self { folder, _temporary: None, environment: Vec::new() }
    }

    /// A path inside the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a run file for `workers` workers: a few steps of each stage, then `more` YAML.
    #[must_use]
    pub fn run_file(&self, name: &str, workers: u32, more: &str) -> PathBuf {
        let folder = self.folder.display();
        let optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
        let text = format!(
            "name: test\nseed: 11\noutput: {folder}/{name}\nworkers: {{ min: {workers}, max: {workers} }}\n\
             data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n  \
             scenes: {folder}/world/scenes.json\nvocabulary: corpus\nevaluator: {{ preset: tiny }}\n\
             captioner: {{ preset: tiny, dropout: 0.0 }}\ndecoding: {{ beams: 3, max_length: 12 }}\nstages:\n  \
             - {{ name: evaluator, objective: contrastive, steps: 4, batch: 12, {optimizer} }}\n  \
             - {{ name: xe, objective: cross_entropy, steps: 6, batch: 12, micro_batch: 4, checkpoint_every: 4, {optimizer} }}\n  \
             - {{ name: dico, objective: dico, steps: 4, batch: 6, evaluate_every: 2, {optimizer} }}\n{more}"
        );
        let path = self.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).expect("the run file can be written");
        path
    }

    /// Writes a run file for one worker and one stage with frequent checkpoints, all of which are
    /// kept.
    #[must_use]
    pub fn saving_run_file(&self, name: &str) -> PathBuf {
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

    /// The journal of a run, for reading.
    #[must_use]
    pub fn journal(&self, name: &str) -> Connection {
        self.try_journal(name).expect("the run has a journal")
    }

    /// The journal of a run, for reading; none if it does not exist yet.
    #[must_use]
    pub fn try_journal(&self, name: &str) -> Option<Connection> {
        let path = self.path(name).join("coordinator/journal.sqlite");
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
        let ready = connection.query_row("SELECT count(*) FROM run", [], |row| row.get::<_, i64>(0)).ok()?;
        (ready > 0).then_some(connection)
    }

    /// The details of the events of a kind in the journal of a run, in order.
    #[must_use]
    pub fn events(&self, name: &str, kind: &str) -> Vec<serde_json::Value> {
        let journal = self.journal(name);
        let query = "SELECT detail_json FROM events WHERE kind = ? ORDER BY rowid";
        let mut statement = journal.prepare(query).expect("the journal has events");
        let rows = statement.query_map([kind], |row| row.get::<_, String>(0)).expect("events can be read");
        rows.map(|row| serde_json::from_str(&row.expect("a row")).expect("particulars are JSON")).collect()
    }

    /// The parameters in the last checkpoint of a run, by name.
    #[must_use]
    pub fn parameters(&self, name: &str) -> BTreeMap<String, Vec<f32>> {
        parameters(&self.last_checkpoint(name))
    }

    /// The folder of a run's last checkpoint.
    #[must_use]
    pub fn last_checkpoint(&self, name: &str) -> PathBuf {
        let folder = std::fs::read_dir(self.path(name).join("checkpoints")).expect("the run has checkpoints");
        folder.map(|entry| entry.expect("a folder can be listed").path()).max().expect("there is a checkpoint")
    }
}

/// The parameters of all models in a checkpoint's folder, by `MODEL.NAME`.
#[must_use]
pub fn parameters(checkpoint: &Path) -> BTreeMap<String, Vec<f32>> {
    let models =
        ["evaluator", "captioner", "reference"].map(|model| (model, checkpoint.join(format!("{model}.safetensors"))));
    let models = models.into_iter().filter(|(_, path)| path.exists());
    models.flat_map(|(model, path)| tensors(&path).into_iter().map(move |(n, v)| (format!("{model}.{n}"), v))).collect()
}

/// The tensors of a safetensors file of 32-bit numbers.
#[must_use]
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).expect("the file can be read");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("they are safetensors");
    let values = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

/// Polls until there is a value.
///
/// # Panics
/// If there is none for longer than any wait of these tests.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that is killed when it is dropped. Failures of the operating system panic.
pub struct Process(local_cluster::Process);

impl Process {
    /// Starts `command`; its stderr goes to `log`.
    #[must_use]
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self(local_cluster::Process::start(&name, command, log).unwrap_or_else(|error| panic!("{error}")))
    }

    /// The next line of its stdout.
    pub fn line(&mut self) -> String {
        self.0.line().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Its stderr so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, by its name without `SIG`. The process may have ended already.
    pub fn signal(&self, name: &str) {
        let number = self.0.id().to_string();
        let sent = Command::new("kill").arg(format!("-{name}")).arg(number).stderr(Stdio::null()).status();
        sent.expect("kill is there");
    }

    /// Whether the process has ended.
    pub fn ended(&mut self) -> bool {
        self.status().is_some()
    }

    fn status(&mut self) -> Option<std::process::ExitStatus> {
        self.0.try_wait().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits for its end. Returns whether it succeeded, and the rest of its stdout.
    pub fn finish(self) -> (bool, String) {
        let (code, rest) = self.exit();
        (code == Some(0), rest)
    }

    /// Waits for its end. Returns its exit code, none if a signal ended it, and the rest of its
    /// stdout.
    pub fn exit(mut self) -> (Option<i32>, String) {
        let started = Instant::now();
        let status = loop {
            match self.status() {
                Some(status) => break status,
                None if started.elapsed() > PATIENCE => panic!("it does not end: {}", self.log()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let rest = self.0.rest().unwrap_or_else(|error| panic!("{error}"));
        if !status.success() {
            eprintln!("{}", self.log());
        }
        (status.code(), rest)
    }
}

/// A coordinator on free ports.
pub struct Coordinator {
    /// The process.
    pub process: Process,
    /// Its gRPC URL.
    pub url: String,
    /// Its HTTP address, host:port.
    pub http: String,
}

impl Coordinator {
    /// Starts a coordinator, and waits until it listens.
    #[must_use]
    pub fn start(workspace: &Workspace, run_file: &Path) -> Self {
        Self::start_with(workspace, run_file, "http", &[])
    }

    /// Starts a coordinator with more options and this scheme of its URL, and waits until it
    /// listens.
    #[must_use]
    pub fn start_with(workspace: &Workspace, run_file: &Path, scheme: &str, more: &[&str]) -> Self {
        let mut command = command("coordinator");
        command.envs(workspace.environment.iter().cloned());
        let started = local_cluster::Coordinator::start(command, run_file, more, workspace.path("coordinator.log"));
        let local_cluster::Coordinator { process, grpc, http } = started.unwrap_or_else(|error| panic!("{error}"));
        Self { url: format!("{scheme}://{grpc}"), http, process: Process(process) }
    }

    /// The status, as `coordinator status` prints it.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let status = run("coordinator", &["status", "--coordinator", &self.url, "--json"]);
        serde_json::from_slice(&status.stdout).unwrap_or_else(|_| panic!("no status: {}", self.process.log()))
    }

    /// A worker of this coordinator.
    #[must_use]
    pub fn worker(&self, workspace: &Workspace, rank: u32) -> Process {
        self.worker_with(workspace, rank, &[])
    }

    /// A worker of this coordinator with more options.
    #[must_use]
    pub fn worker_with(&self, workspace: &Workspace, rank: u32, more: &[&str]) -> Process {
        let mut command = command("worker");
        command.args(["join", "--coordinator", &self.url, "--rank", &rank.to_string(), "--threads", "1"]);
        command.args(more).envs(workspace.environment.iter().cloned());
        Process::start(&mut command, workspace.path(&format!("worker-{rank}.log")))
    }
}

/// The hash that a worker prints when it has finished the run.
#[must_use]
pub fn printed_hash(printed: &str) -> Option<String> {
    local_cluster::parameters_sha256(printed).map(str::to_owned)
}

/// Runs a run file to its end. Returns the hash of each worker's parameters.
pub fn complete(workspace: &Workspace, run_file: &Path, workers: u32) -> Vec<String> {
    let coordinator = Coordinator::start(workspace, run_file);
    let workers: Vec<Process> = (0..workers).map(|rank| coordinator.worker(workspace, rank)).collect();
    let hashes = workers.into_iter().map(|worker| {
        let (well, printed) = worker.finish();
        assert!(well);
        printed_hash(&printed).expect("a worker that finished says so")
    });
    let hashes = hashes.collect();
    assert!(coordinator.process.finish().0);
    hashes
}
