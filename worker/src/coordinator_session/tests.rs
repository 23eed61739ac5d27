//! Tests with malicious coordinators: the worker ends with an error of one line that names the
//! invalid message.

use std::path::Path;
use std::time::Duration;

use config::RunFile;
use proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use proto::v1::directive::Directive as DirectiveKind;
use proto::{PROTOCOL_VERSION, v1};
use tch::Device;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use transport::Connector;

use super::*;
use crate::errors;

/// How long a worker may take to end; generous for busy machines.
const EXIT_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximal length of a worker's error, in bytes.
const MAX_ERROR_BYTES: usize = 8_000;

/// A coordinator that answers each join with the same response, and sends the same directives in
/// each session.
#[derive(Clone)]
struct MaliciousCoordinator {
    response: v1::JoinResponse,
    directives: Vec<v1::Directive>,
    /// Whether it closes a session after the last directive.
    closes_sessions: bool,
}

#[tonic::async_trait]
impl Coordinator for MaliciousCoordinator {
    type SessionStream = ReceiverStream<Result<v1::Directive, Status>>;

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        Ok(Response::new(self.response.clone()))
    }

    async fn session(
        &self,
        messages: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, stream) = mpsc::channel(1);
        let Self { directives, closes_sessions, .. } = self.clone();
        let mut messages = messages.into_inner();
        tokio::spawn(async move {
            for directive in directives {
                // Fails if the worker has ended.
                _ = sender.send(Ok(directive)).await;
            }
            while !closes_sessions && messages.message().await.is_ok_and(|message| message.is_some()) {}
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A run on a small synthetic data set.
struct TestRun {
    _folder: TempDir,
    /// A valid response to a join.
    response: v1::JoinResponse,
}

impl TestRun {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        synthetic_data::write_dataset(&folder.path().join("world"), 20, 3, |_| {}).unwrap();
        let optimizer = "optimizer: { learning_rate: 1.0e-3 }";
        let text = format!(
            "name: test\noutput: {path}/run\nworkers: {{ min: 1, max: 2 }}\n\
             data: {{ karpathy: {{ annotations: {path}/world/dataset.json, images: {path}/world/images }} }}\n\
             vocabulary: corpus\ncaptioner: {{ preset: tiny }}\nevaluator: {{ preset: tiny }}\nstages:\n  \
             - {{ name: xe, objective: cross_entropy, steps: 9, batch: 4, {optimizer} }}\n  \
             - {{ name: more, objective: cross_entropy, steps: 9, batch: 4, {optimizer} }}\n"
        );
        let run = RunFile::parse(Path::new("run.yaml"), &text).unwrap();
        let response = v1::JoinResponse {
            protocol_version: PROTOCOL_VERSION,
            worker_id: 1,
            session_token: "1.secret".to_owned(),
            run_file: serde_json::to_string(&run).unwrap(),
            heartbeat_interval_ms: 100,
            heartbeat_timeout_ms: 10_000,
            run_id: "3fa2".to_owned(),
        };
        Self { _folder: folder, response }
    }

    /// Runs a worker with this response to its join and these directives.
    async fn run_worker(
        &self,
        response: v1::JoinResponse,
        directives: Vec<v1::Directive>,
        closes_sessions: bool,
    ) -> Result<WorkerExit, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let coordinator = MaliciousCoordinator { response, directives, closes_sessions };
        let server = Server::builder().add_service(CoordinatorServer::new(coordinator));
        let served = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let options = JoinOptions {
            coordinator: Connector::new(url, None, None).unwrap(),
            requested_id: None,
            device: Device::Cpu,
            host: Some([127, 0, 0, 1].into()),
            join_timeout: Duration::from_secs(1),
        };
        let (_sender, shutdown) = watch::channel(false);
        let exit = tokio::time::timeout(EXIT_TIMEOUT, run_until(options, shutdown)).await;
        served.abort();
        exit.unwrap_or_else(|_| Err(anyhow!("the worker does not end"))).map_err(|error| errors::one_line(&error))
    }

    /// The error with which a worker ends after these directives.
    async fn error(&self, directives: Vec<v1::Directive>) -> String {
        self.error_with_response(self.response.clone(), directives).await
    }

    /// The same with another response to the join.
    async fn error_with_response(&self, response: v1::JoinResponse, directives: Vec<v1::Directive>) -> String {
        match self.run_worker(response, directives, false).await {
            Ok(exit) => format!("no error, but {exit:?}"),
            Err(error) if error.len() > MAX_ERROR_BYTES => format!("an error of {} bytes", error.len()),
            Err(error) if error.contains(char::is_control) => format!("control characters in {error:?}"),
            Err(error) => error,
        }
    }
}

fn directive(generation: u64, kind: DirectiveKind) -> v1::Directive {
    v1::Directive { generation, directive: Some(kind) }
}

/// A rendezvous of a generation with one worker.
fn single_worker_rendezvous() -> v1::Rendezvous {
    v1::Rendezvous {
        rank: 0,
        world_size: 1,
        store_address: "127.0.0.1:1".to_owned(),
        position: Some(v1::Position { stage: 0, step: 0, generation: 1 }),
        sequence_start: Some(v1::SequenceStart::default()),
        ..Default::default()
    }
}

fn rendezvous(change: impl FnOnce(&mut v1::Rendezvous)) -> v1::Directive {
    let mut content = single_worker_rendezvous();
    change(&mut content);
    directive(1, DirectiveKind::Rendezvous(content))
}

fn train(change: impl FnOnce(&mut v1::Train)) -> v1::Directive {
    let mut content = v1::Train { stage: 0, first_step: 0, steps: 1, share_begin: 0, share_end: 4 };
    change(&mut content);
    directive(1, DirectiveKind::Train(content))
}

fn evaluate(ranges: &[(u64, u64)]) -> v1::Directive {
    let ranges = ranges.iter().map(|&(begin, end)| v1::ImageRange { begin, end }).collect();
    directive(1, DirectiveKind::Evaluate(v1::Evaluate { evaluation: 1, ranges }))
}

fn checkpoint(number: u64, name: &str) -> v1::Directive {
    directive(1, DirectiveKind::Checkpoint(v1::Checkpoint { checkpoint: number, name: name.to_owned(), journal: None }))
}

fn advance(stage: u32) -> v1::Directive {
    directive(1, DirectiveKind::Advance(v1::Advance { stage }))
}

#[tokio::test]
async fn an_invalid_directive_ends_a_worker_with_an_error_that_names_it() {
    let test_run = TestRun::new();
    let valid_rendezvous = || rendezvous(|_| {});
    let mut failures = Vec::new();
    for (directives, expected) in [
        (vec![valid_rendezvous(), advance(99)], "stage 99"),
        (vec![valid_rendezvous(), train(|content| content.share_end = u32::MAX)], "0..4294967295"),
        (vec![valid_rendezvous(), train(|content| content.share_begin = 5)], "5..4"),
        (vec![valid_rendezvous(), train(|content| content.steps = u32::MAX)], "4294967295"),
        (vec![valid_rendezvous(), train(|content| content.first_step = 7)], "step 7"),
        (vec![valid_rendezvous(), train(|content| content.stage = 99)], "stage 99"),
        (vec![rendezvous(|content| content.world_size = 0)], "0 of 0"),
        (vec![rendezvous(|content| content.world_size = u32::MAX)], "4294967295"),
        (vec![rendezvous(|content| content.rank = 1)], "1 of 1"),
        (vec![rendezvous(|content| content.source_rank = Some(7))], "rank 7"),
        (vec![rendezvous(|content| content.position = None)], "position"),
        (
            vec![rendezvous(|content| {
                content.position = Some(v1::Position { stage: 0, step: u64::MAX, generation: 1 });
            })],
            "18446744073709551615",
        ),
        (
            vec![rendezvous(|content| content.sequence_start = Some(v1::SequenceStart { step: 0, epoch: u64::MAX }))],
            "18446744073709551615",
        ),
        (vec![rendezvous(|content| content.checkpoint = "../../etc".to_owned())], "../../etc"),
        (vec![valid_rendezvous(), evaluate(&[(0, u64::MAX)])], "0..18446744073709551615"),
        (vec![valid_rendezvous(), evaluate(&[(1, 0)])], "1..0"),
        (vec![valid_rendezvous(), checkpoint(1, "../up")], "../up"),
        (vec![valid_rendezvous(), checkpoint(1, "a"), checkpoint(1, "a")], "1"),
        (vec![train(|_| {})], "Train"),
        (vec![evaluate(&[(0, 1)])], "Evaluate"),
        (vec![checkpoint(1, "a")], "Checkpoint"),
        (vec![v1::Directive { generation: 1, directive: None }], "without content"),
        (vec![directive(u64::MAX, DirectiveKind::Advance(v1::Advance { stage: 1 }))], "18446744073709551615"),
    ] {
        let error = test_run.error(directives.clone()).await;
        if !error.contains("the coordinator broke the protocol") || !error.contains(expected) {
            failures.push(format!("{directives:?}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn an_invalid_response_to_a_join_ends_a_worker() {
    let test_run = TestRun::new();
    let mut failures = Vec::new();
    let run_file = |from: &str, to: &str| test_run.response.run_file.replace(from, to);
    let control = |setting: &str| {
        let mut run: serde_json::Value = serde_json::from_str(&test_run.response.run_file).unwrap();
        let (key, value) = setting.split_once(':').unwrap();
        run["control"][key] = serde_json::from_str(value).unwrap();
        run.to_string()
    };
    for (response, expected) in [
        (v1::JoinResponse { run_file: String::new(), ..test_run.response.clone() }, "run file"),
        (v1::JoinResponse { run_file: "\u{1b}[31m".repeat(500_000), ..test_run.response.clone() }, "run file"),
        (v1::JoinResponse { run_file: run_file("\"steps\":9", "\"steps\":0"), ..test_run.response.clone() }, "steps"),
        (v1::JoinResponse { run_file: run_file("\"batch\":4", "\"batch\":0"), ..test_run.response.clone() }, "batch"),
        (
            v1::JoinResponse { run_file: run_file("\"batch\":4", "\"batch\":4294967295"), ..test_run.response.clone() },
            "batch",
        ),
        (
            v1::JoinResponse {
                run_file: run_file("\"steps\":9", &format!("\"steps\":{}", u64::MAX)),
                ..test_run.response.clone()
            },
            "steps",
        ),
        (v1::JoinResponse { run_file: run_file("\"xe\"", "\"../xe\""), ..test_run.response.clone() }, "name"),
        (v1::JoinResponse { run_file: control("window:4294967295"), ..test_run.response.clone() }, "control.window"),
        (v1::JoinResponse { run_file: control("window:0"), ..test_run.response.clone() }, "control.window"),
        (
            v1::JoinResponse { run_file: control("heartbeat_timeout:1e300"), ..test_run.response.clone() },
            "control.heartbeat_timeout",
        ),
        (
            v1::JoinResponse { run_file: control("stall_timeout:-1"), ..test_run.response.clone() },
            "control.stall_timeout",
        ),
        (v1::JoinResponse { heartbeat_interval_ms: 0, ..test_run.response.clone() }, "heartbeat"),
        (v1::JoinResponse { heartbeat_interval_ms: u64::MAX, ..test_run.response.clone() }, "18446744073709551615"),
        (v1::JoinResponse { heartbeat_timeout_ms: 0, ..test_run.response.clone() }, "heartbeat"),
        (v1::JoinResponse { heartbeat_timeout_ms: u64::MAX, ..test_run.response.clone() }, "18446744073709551615"),
        (v1::JoinResponse { session_token: "x".repeat(1 << 20), ..test_run.response.clone() }, "session token"),
        (v1::JoinResponse { worker_id: u32::MAX, ..test_run.response.clone() }, "4294967295"),
        (v1::JoinResponse { protocol_version: 99, ..test_run.response.clone() }, "99"),
        (v1::JoinResponse { run_id: "\u{1b}".repeat(1 << 20), ..test_run.response.clone() }, "run id"),
    ] {
        let error = test_run.error_with_response(response, vec![]).await;
        if !error.contains("the coordinator broke the protocol") || !error.contains(expected) {
            failures.push(format!("{expected}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn the_error_for_a_leave_with_a_reason_of_megabytes_is_one_short_line() {
    let test_run = TestRun::new();
    let reason = "\u{1b}[31mgo\r\n".repeat(1 << 18);
    let leave = directive(0, DirectiveKind::Leave(v1::Leave { reason, orderly: false }));
    let error = test_run.error(vec![leave]).await;
    assert!(error.contains("\\u001b[31mgo"), "{error}");
}

#[tokio::test]
async fn a_worker_gives_up_on_a_coordinator_that_closes_every_session_at_once() {
    let test_run = TestRun::new();
    let error = test_run.run_worker(test_run.response.clone(), vec![], true).await.unwrap_err();
    assert!(error.contains("gave up on http://127.0.0.1:"), "{error}");
}
