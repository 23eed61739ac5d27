//! The status of the run as JSON, for the web page and for scripts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use config::RunFile;
use journal::{ReadOnlyJournal, RowCounters};
use proto::v1;
use serde::Serialize;
use tokio::{sync::oneshot, time};

use super::{app_state::AppState, curves::CurvesVersion, error::HttpError};
use crate::service::driver_input::DriverInput;

/// Time limit for the driver's answer: the driver may be waiting for its disk.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximal number of members in a snapshot.
const MAX_MEMBERS: usize = 256;

/// A snapshot of the run's status.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// When it was taken, in Unix seconds.
    at: f64,
    /// The coordinator's version.
    version: &'static str,
    /// The name of the run.
    run: String,
    state: &'static str,
    /// Why the run does not train; empty while it trains.
    reason: String,
    generation: u64,
    /// The index of the current stage.
    stage: u32,
    /// The number of committed steps of the stage.
    step: u64,
    /// The number of all steps of the stage.
    steps: u64,
    /// The estimated seconds until the stage ends; `None` if unknown.
    seconds_left: Option<f64>,
    /// The loss of the last step; 0 before the first step of this coordinator process.
    loss: f64,
    /// The mean reward of the chosen candidates in the last step.
    reward: Option<f64>,
    images_per_second: f64,
    tokens_per_second: f64,
    /// The id of the slowest worker in the last step.
    slowest_rank: Option<u32>,
    /// The compute time of the slowest worker in the last step minus the average of the others.
    lag_seconds: f64,
    /// `workers.min` of the run file.
    min_workers: u32,
    /// The number of members.
    workers: usize,
    /// The members with the lowest worker ids, at most `MAX_MEMBERS`.
    members: Vec<Member>,
    stages: Vec<Stage>,
    /// Changes when there are new curves to request.
    curves: CurvesVersion,
    row_counters: RowCounters,
    /// The candidates of one image in the last step, with DiCO's weights.
    example: Option<Example>,
    /// Whether the coordinator has an admin token, without which it refuses commands over HTTP.
    commands: bool,
}

#[derive(Debug, Serialize)]
struct Member {
    /// The worker id.
    rank: u32,
    host: String,
    device: String,
    phase: String,
    /// The stage and step that the member last reported.
    stage: Option<u32>,
    step: Option<u64>,
    images_per_second: f64,
    tokens_per_second: f64,
    compute_seconds: f64,
    seconds_since_heard: f64,
}

#[derive(Debug, Serialize)]
struct Stage {
    name: String,
    objective: &'static str,
    steps: u64,
    /// The metric by which the best checkpoint is selected.
    metric: Option<String>,
}

#[derive(Debug, Serialize)]
struct Example {
    image: String,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    caption: String,
    reward: f64,
    /// The weight of a rejected candidate; 0 for the chosen one.
    gamma: f64,
}

impl From<v1::Example> for Example {
    fn from(example: v1::Example) -> Self {
        let to_candidate =
            |v1::Candidate { caption, reward, gamma }: v1::Candidate| Candidate { caption, reward, gamma };
        Self { image: example.image, candidates: example.candidates.into_iter().map(to_candidate).collect() }
    }
}

impl From<v1::Member> for Member {
    fn from(member: v1::Member) -> Self {
        let phase = member.phase().as_str_name();
        let phase = phase.strip_prefix("PHASE_").unwrap_or(phase).to_lowercase();
        Self {
            rank: member.worker_id,
            host: member.host,
            device: member.device,
            phase,
            stage: member.position.map(|position| position.stage),
            step: member.position.map(|position| position.step),
            images_per_second: member.images_per_second,
            tokens_per_second: member.tokens_per_second,
            compute_seconds: member.compute_seconds,
            seconds_since_heard: member.seconds_since_heard,
        }
    }
}

impl Snapshot {
    fn new(
        status: v1::StatusResponse,
        file: &RunFile,
        curves: CurvesVersion,
        row_counters: RowCounters,
        commands: bool,
    ) -> Self {
        let stages = file.stages.iter().map(|stage| Stage {
            name: stage.name.clone(),
            objective: stage.objective.name(),
            steps: stage.steps,
            metric: stage.metric.clone(),
        });
        Self {
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            version: env!("CARGO_PKG_VERSION"),
            state: status.state().name(),
            run: status.run,
            reason: status.reason,
            generation: status.generation,
            stage: status.stage,
            step: status.step,
            steps: status.steps,
            seconds_left: status.seconds_left,
            loss: status.loss,
            reward: status.reward,
            images_per_second: status.images_per_second,
            tokens_per_second: status.tokens_per_second,
            slowest_rank: status.slowest_worker,
            lag_seconds: status.lag_seconds,
            min_workers: status.min_workers,
            workers: status.members.len(),
            members: status.members.into_iter().take(MAX_MEMBERS).map(Member::from).collect(),
            stages: stages.collect(),
            curves,
            row_counters,
            example: status.example.map(Example::from),
            commands,
        }
    }
}

/// Takes a snapshot.
///
/// # Errors
/// The driver does not answer in time, or the journal cannot be read.
pub async fn snapshot(app_state: &Arc<AppState>) -> Result<Snapshot, HttpError> {
    let no_answer = || HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "the coordinator does not answer: see /readyz");
    let request = async {
        let (reply, answer) = oneshot::channel();
        app_state.driver.send(DriverInput::Status { reply }).await.map_err(|_| no_answer())?;
        answer.await.map_err(|_| no_answer())
    };
    let status = time::timeout(STATUS_TIMEOUT, request).await.map_err(|_| no_answer())??;
    let row_counters = app_state.journal.query(ReadOnlyJournal::row_counters).await?;
    let curves = app_state.curves().version();
    Ok(Snapshot::new(status, &app_state.file, curves, row_counters, app_state.tokens.admin.is_some()))
}

/// `GET /api/status`.
pub async fn status(State(app_state): State<Arc<AppState>>) -> Result<impl IntoResponse, HttpError> {
    snapshot(&app_state).await.map(Json)
}
