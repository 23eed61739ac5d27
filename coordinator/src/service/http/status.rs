//! The status of the run as JSON, for the page and for scripts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use config::{Objective, RunFile};
use proto::v1;
use serde::Serialize;
use tokio::{sync::oneshot, time};

use super::{AppState, Problem, curves::Version};
use crate::{journal::browse::RowCounters, service::driver::Input};

/// How long to wait for the driver, which may be waiting for its disk.
const WITHIN: Duration = Duration::from_secs(3);
/// Maximal number of members in a snapshot.
const MAX_MEMBERS: usize = 256;

/// A snapshot of the run's status.
#[derive(Debug, Serialize)]
pub struct Snapshot {
    /// When it was taken, in Unix seconds.
    at: f64,
    /// The coordinator's version.
    version: &'static str,
    run: String,
    state: String,
    /// Why the run does not train; empty if it does.
    reason: String,
    generation: u64,
    stage: u32,
    step: u64,
    /// The number of steps of the stage.
    steps: u64,
    /// The estimated seconds until the stage ends; none if unknown.
    seconds_left: Option<f64>,
    loss: f64,
    reward: Option<f64>,
    images_per_second: f64,
    tokens_per_second: f64,
    slowest_rank: Option<u32>,
    lag_seconds: f64,
    min_workers: u32,
    workers: usize,
    /// The first members, by id.
    members: Vec<Member>,
    stages: Vec<Stage>,
    curves: Version,
    marks: RowCounters,
    /// The candidates of one image in the last step, with DiCO's weights.
    example: Option<Example>,
    /// Whether the coordinator has an admin token, without which it refuses commands over HTTP.
    commands: bool,
}

#[derive(Debug, Serialize)]
struct Member {
    rank: u32,
    host: String,
    device: String,
    phase: String,
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
    objective: Objective,
    steps: u64,
    /// The metric by which the best state is selected.
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
        let candidate = |v1::Candidate { caption, reward, gamma }: v1::Candidate| Candidate { caption, reward, gamma };
        Self { image: example.image, candidates: example.candidates.into_iter().map(candidate).collect() }
    }
}

impl From<v1::Member> for Member {
    fn from(member: v1::Member) -> Self {
        let phase = member.phase().as_str_name();
        let phase = phase.strip_prefix("PHASE_").unwrap_or(phase).to_lowercase();
        Self {
            rank: member.rank,
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
    fn new(status: v1::StatusResponse, file: &RunFile, curves: Version, marks: RowCounters, commands: bool) -> Self {
        let stages = file.stages.iter().map(|stage| Stage {
            name: stage.name.clone(),
            objective: stage.objective,
            steps: stage.steps,
            metric: stage.metric.clone(),
        });
        Self {
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            version: env!("CARGO_PKG_VERSION"),
            run: status.run,
            state: status.state,
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
            slowest_rank: status.slowest_rank,
            lag_seconds: status.lag_seconds,
            min_workers: status.min_workers,
            workers: status.members.len(),
            members: status.members.into_iter().take(MAX_MEMBERS).map(Member::from).collect(),
            stages: stages.collect(),
            curves,
            marks,
            example: status.example.map(Example::from),
            commands,
        }
    }
}

/// Takes a snapshot. Fails if the driver does not answer in time, or if the journal cannot be read.
pub async fn look(desk: &Arc<AppState>) -> Result<Snapshot, Problem> {
    let silent = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the coordinator does not answer: see /readyz");
    let ask = async {
        let (reply, answer) = oneshot::channel();
        desk.driver.send(Input::Status { reply }).await.map_err(|_| silent())?;
        answer.await.map_err(|_| silent())
    };
    let status = time::timeout(WITHIN, ask).await.map_err(|_| silent())??;
    let marks = desk.journal.ask(|history| history.marks()).await?;
    let curves = desk.curves().version();
    Ok(Snapshot::new(status, &desk.file, curves, marks, desk.tokens.admin.is_some()))
}

/// `GET /api/status`.
pub async fn answer(State(desk): State<Arc<AppState>>) -> Result<impl IntoResponse, Problem> {
    look(&desk).await.map(Json)
}
