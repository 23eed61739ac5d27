//! Tests of a complete coordinator on the loopback, with gRPC clients.

mod fairness;
mod refusals;

use std::{path::Path, time::Duration};

use config::{GuardAction, Rule, RunFile, Stage};
use dico_engine::{Engine, Outcome, plan::Position};
use journal::{Journal, ReadOnlyJournal};
use proto::{
    PROTOCOL_VERSION,
    v1::{
        self, RunState, admin_client::AdminClient, coordinator_client::CoordinatorClient, directive::Directive,
        worker_message::Message,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{Security, Service, StopHandle, grpc};
use config::testing;

/// A coordinator with connected clients: one of the workers' service, one of the Admin service.
struct TestCluster {
    client: CoordinatorClient<Channel>,
    admin: AdminClient<Channel>,
    http: std::net::SocketAddr,
    stop: StopHandle,
    service: JoinHandle<anyhow::Result<Outcome>>,
    output: tempfile::TempDir,
}

/// A coordinator without clients.
struct TestCoordinator {
    grpc: std::net::SocketAddr,
    http: std::net::SocketAddr,
    stop: StopHandle,
    service: JoinHandle<anyhow::Result<Outcome>>,
    output: tempfile::TempDir,
}

/// Starts a coordinator, and connects clients. Its run has 12 steps of 8 samples, and a checkpoint
/// every 4 steps.
async fn start() -> TestCluster {
    let (steps, batch, checkpoint_every, evaluate_every) = (12, 8, Some(4), None);
    start_with(testing::stage("a", steps, batch, checkpoint_every, evaluate_every)).await
}

async fn start_with(stage: Stage) -> TestCluster {
    let TestCoordinator { grpc, http, stop, service, output } = serve(stage, Security::default()).await;
    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let (client, admin) = (CoordinatorClient::new(channel.clone()), AdminClient::new(channel));
    TestCluster { client, admin, http, stop, service, output }
}

async fn serve(stage: Stage, security: Security) -> TestCoordinator {
    serve_stage(stage, security, false).await
}

/// Starts a coordinator for a run of one stage. With `stay` it keeps serving when the run is
/// finished.
async fn serve_stage(stage: Stage, security: Security, stay: bool) -> TestCoordinator {
    serve_file(testing::run_file(vec![stage]), security, stay).await
}

/// Starts a coordinator for a run file, with a temporary output folder.
async fn serve_file(mut file: RunFile, security: Security, stay: bool) -> TestCoordinator {
    let output = tempfile::tempdir().unwrap();
    file.output = output.path().to_owned();
    file.checkpoints.keep = 1;
    let journal = Journal::open(&output.path().join("state"), &file).unwrap();
    let engine = Engine::new(file.clone(), journal.restore().unwrap(), 0);
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (grpc_address, http_address) = (grpc.local_addr().unwrap(), http.local_addr().unwrap());
    let scoring = caption_metrics::Metrics::open(&caption_metrics::MetricFiles::default()).expect("no files are named");
    let access = object_storage::Access::from_environment();
    let checkpoints = checkpoint_store::Checkpoints::open(&file.checkpoint_location(), &access).unwrap();
    let journal_folder = output.path().join("state");
    let service = Service { file, engine, journal, journal_folder, checkpoints, scoring, grpc, http, security, stay };
    let (stop, service) = service.start();
    TestCoordinator { grpc: grpc_address, http: http_address, stop, service: tokio::spawn(service), output }
}

/// A request to join, with this worker id or with any.
fn join(worker_id: Option<u32>) -> v1::JoinRequest {
    v1::JoinRequest { protocol_version: PROTOCOL_VERSION, worker_id, host: "here".into(), ..Default::default() }
}

fn control_request(command: v1::Command) -> v1::ControlRequest {
    v1::ControlRequest { command: command.into(), worker_id: 0 }
}

/// The first message of a session, with this session token.
fn attach(token: String) -> Message {
    let data_set = Some(v1::DataSet { validation_images: 1, ..Default::default() });
    Message::Attach(v1::Attach { session_token: token, store_address: "here:1".into(), data_set, ..Default::default() })
}

/// Opens a session with this first message.
async fn open_session(
    client: &mut CoordinatorClient<Channel>,
    first: Message,
) -> (mpsc::Sender<v1::WorkerMessage>, Streaming<v1::Directive>) {
    let (sender, messages) = mpsc::channel(64);
    sender.send(v1::WorkerMessage { message: Some(first) }).await.unwrap();
    (sender, client.session(ReceiverStream::new(messages)).await.unwrap().into_inner())
}

/// The error that ends a session with this first message.
async fn session_error(client: &mut CoordinatorClient<Channel>, first: Message) -> Status {
    let (_sender, mut directives) = open_session(client, first).await;
    directives.message().await.unwrap_err()
}

/// The response to a request over HTTP, with its headers.
async fn http_get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_join_with_another_protocol_version_names_both_versions() {
    let mut cluster = start().await;
    let status = cluster.client.join(v1::JoinRequest { protocol_version: 99, ..join(None) }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("99") && status.message().contains(&PROTOCOL_VERSION.to_string()));
}

#[tokio::test]
async fn watch_streams_are_limited() {
    let mut cluster = start().await;
    let request = v1::WatchRequest { interval_ms: 600_000 };
    let mut watches = Vec::new();
    for _ in 0..grpc::MAX_WATCH_STREAMS {
        let mut watch = cluster.admin.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().state(), RunState::Waiting);
        watches.push(watch);
    }
    let refused = cluster.admin.watch(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains(&grpc::MAX_WATCH_STREAMS.to_string()), "{refused}");
    // A single status request needs no stream.
    cluster.admin.status(v1::StatusRequest {}).await.unwrap();
    watches.pop();
    // The coordinator notices the closed stream with some delay.
    let reopened = async { while cluster.admin.watch(request).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), reopened).await.unwrap();
}

#[tokio::test]
async fn a_worker_id_is_given_once() {
    let mut cluster = start().await;
    let token = cluster.client.join(join(Some(2))).await.unwrap().into_inner().session_token;
    let (_sender, mut directives) = open_session(&mut cluster.client, attach(token)).await;
    // The rendezvous of the first generation shows that the worker is attached.
    directives.message().await.unwrap().unwrap();
    // The first worker may have just died. After a minute the coordinator knows that it is alive.
    for (waited_ms, code) in [(0, Code::Aborted), (60_000, Code::AlreadyExists)] {
        let status = cluster.client.join(v1::JoinRequest { waited_ms, ..join(Some(2)) }).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains("worker id 2 is taken") && status.message().contains("here"), "{status}");
    }
    assert_eq!(cluster.client.join(join(Some(100_000))).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_session_with_a_wrong_token_or_first_message_is_refused() {
    let mut cluster = start().await;
    assert_eq!(session_error(&mut cluster.client, attach("guessed".into())).await.code(), Code::Unauthenticated);
    let first = Message::Heartbeat(v1::Heartbeat::default());
    assert_eq!(session_error(&mut cluster.client, first).await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_invalid_message_ends_the_session() {
    let mut cluster = start().await;
    let token = cluster.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, mut directives) = open_session(&mut cluster.client, attach(token)).await;
    directives.message().await.unwrap().unwrap();
    let position = Some(v1::Position { stage: 7, step: u64::MAX, generation: 1 });
    let message = Some(Message::StepDone(v1::StepDone { position, ..Default::default() }));
    sender.send(v1::WorkerMessage { message }).await.unwrap();
    assert_eq!(directives.message().await.unwrap_err().code(), Code::InvalidArgument);
}

/// The messages with which a healthy worker answers a directive.
fn worker_replies(output: &Path, generation: u64, directive: Directive) -> Vec<Message> {
    match directive {
        Directive::Rendezvous(rendezvous) => {
            vec![Message::Ready(v1::Ready { generation, position: rendezvous.position })]
        }
        Directive::Train(train) => {
            let report = |step| {
                let reward = (&summary_statistics::Summary::of([0.5, 0.7])).into();
                Message::StepDone(v1::StepDone {
                    position: Some(v1::Position { stage: train.stage, step: step + 1, generation }),
                    loss_sum: 8.0,
                    loss_weight: 4.0,
                    samples: 8,
                    seconds: 0.5,
                    summaries: [("reward_chosen".to_owned(), reward)].into(),
                    ..Default::default()
                })
            };
            (train.first_step..train.first_step + u64::from(train.steps)).map(report).collect()
        }
        Directive::Checkpoint(v1::Checkpoint { checkpoint, name, .. }) => {
            std::fs::create_dir_all(output.join("checkpoints").join(name)).unwrap();
            let parameters_sha256 = "00".into();
            vec![Message::CheckpointDone(v1::CheckpointDone { generation, checkpoint, parameters_sha256 })]
        }
        Directive::Evaluate(v1::Evaluate { evaluation, ranges }) => {
            assert_eq!(ranges, [v1::ImageRange { begin: 0, end: 1 }]);
            let item = v1::EvaluationItem {
                image: "1.jpg".into(),
                caption: "a red ball on the green grass".into(),
                references: vec!["a red ball on the green grass".into()],
                scores: [("pac_s".to_owned(), 0.75)].into(),
                image_id: Some(42),
                embeddings: vec![v1::Embeddings { prefix: String::new(), image: vec![1.0], text: vec![1.0] }],
                continued: false,
            };
            let (range, items) = (ranges.first().copied(), vec![item]);
            vec![Message::EvaluationItems(v1::EvaluationItems { generation, evaluation, range, items, more: false })]
        }
        Directive::Finish(_) => vec![Message::Finished(v1::Finished {})],
        other => panic!("{other:?}"),
    }
}

/// Asserts that the exposed metrics have lines with these beginnings.
fn assert_exposes(metrics: &str, lines: &[&str]) {
    for line in lines {
        assert!(metrics.lines().any(|exposed| exposed.starts_with(line)), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_run_with_one_worker_finishes() {
    // 12 steps of 8 samples, and a checkpoint every 4 steps.
    let stage_with_metric = Stage { metric: Some("bleu_4".into()), ..testing::stage("a", 12, 8, Some(4), None) };
    let TestCluster { mut client, mut admin, http, service, output, .. } = start_with(stage_with_metric).await;
    assert!(http_get(http, "/readyz").await.starts_with("HTTP/1.1 503"));
    let joined = client.join(join(None)).await.unwrap().into_inner();
    let file: RunFile = serde_json::from_str(&joined.run_file).unwrap();
    assert_eq!((file.stages[0].steps, joined.heartbeat_interval_ms), (12, 1000));
    let (sender, mut directives) = open_session(&mut client, attach(joined.session_token)).await;
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        let directive = directive.unwrap();
        if let Directive::Finish(_) = &directive {
            let lines = [
                "dico_step 12",
                "dico_loss 2",
                "dico_samples_committed_total 96",
                "dico_evaluation_score{metric=\"bleu_4\"} 0.99999",
                "dico_evaluation_score{metric=\"pac_s\"} 0.75",
                "dico_best_score{metric=\"bleu_4\"} 0.99999",
                "dico_paused 0",
                "dico_step_seconds_count 12",
                "dico_checkpoints_total 3",
            ];
            // The second request is answered in a later iteration of the event loop: metrics are up
            // to date.
            for _ in 0..2 {
                admin.status(v1::StatusRequest {}).await.unwrap();
            }
            assert_exposes(&http_get(http, "/metrics").await, &lines);
            assert!(http_get(http, "/readyz").await.starts_with("HTTP/1.1 200"));
        }
        for message in worker_replies(output.path(), generation, directive) {
            sender.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    assert_eq!(service.await.unwrap().unwrap(), Outcome::Finished);
    let checkpoints = std::fs::read_dir(output.path().join("checkpoints")).unwrap().count();
    assert!((1..=3).contains(&checkpoints), "the last is kept; the others are deleted asynchronously");
    let captions = std::fs::read_to_string(output.path().join("captions/0-a-00000012.json")).unwrap();
    assert_eq!(captions, r#"[{"image_id":42,"caption":"a red ball on the green grass"}]"#);
    let journal = ReadOnlyJournal::open(&output.path().join("state")).unwrap();
    let steps = journal.recorded_steps(Position::default(), 99).unwrap();
    assert_eq!(steps.len(), 12);
    assert!(steps.iter().all(|step| (step.loss, step.samples) == (Some(2.0), 8)), "{steps:?}");
    assert_eq!(journal.kept_checkpoints().unwrap().len(), 1);
    let evaluations = journal.evaluations(None).unwrap();
    let captions: Vec<_> =
        evaluations.iter().flat_map(|evaluation| journal.captions(evaluation.id, u32::MAX).unwrap()).collect();
    assert!(captions.len() == 1 && captions[0].scores.contains_key("bleu_4"), "{captions:?}");
}

#[tokio::test]
async fn a_run_that_its_guard_paused_continues_after_resume() {
    let action = GuardAction::Pause;
    let rule = Rule { metric: "reward_chosen".into(), above: Some(0.5), below: None, for_: 2, action };
    let stage_with_guard = Stage { guard: vec![rule], ..testing::stage("a", 12, 8, None, None) };
    let TestCluster { mut client, mut admin, http, service, output, .. } = start_with(stage_with_guard).await;
    let refused = admin.control(control_request(v1::Command::Resume)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("not paused"), "{refused}");

    let token = client.join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, mut directives) = open_session(&mut client, attach(token)).await;
    let mut pauses = 0;
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        let directive = directive.unwrap();
        // The run pauses at step 8, the end of the granted steps. Only a pause saves a checkpoint
        // there.
        let is_pause_checkpoint =
            matches!(&directive, Directive::Checkpoint(checkpoint) if checkpoint.name.ends_with("00000008"));
        for message in worker_replies(output.path(), generation, directive) {
            sender.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
        if !is_pause_checkpoint {
            continue;
        }
        pauses += 1;
        let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.state(), RunState::Paused);
        assert!(status.reason.contains("reward_chosen is 0.6000, above 0.5 at stage 0 step 2"), "{}", status.reason);
        // This request is answered in a later iteration of the event loop than the last one:
        // metrics are up to date.
        admin.status(v1::StatusRequest {}).await.unwrap();
        assert!(http_get(http, "/readyz").await.contains("paused: "));
        let lines = ["dico_paused 1", "dico_guard_events_total{metric=\"reward_chosen\",action=\"pause\"} 1"];
        assert_exposes(&http_get(http, "/metrics").await, &lines);
        admin.control(control_request(v1::Command::Resume)).await.unwrap();
    }
    assert_eq!((service.await.unwrap().unwrap(), pauses), (Outcome::Finished, 1));
}

/// Trains until the run is paused because the captions of the first evaluation cannot be saved.
/// Returns the status, and the channels of the worker's session.
async fn pause_with_unwritable_captions(
    cluster: &mut TestCluster,
) -> (v1::StatusResponse, mpsc::Sender<v1::WorkerMessage>, Streaming<v1::Directive>) {
    std::fs::write(cluster.output.path().join("captions"), "a file in place of the folder").unwrap();
    let token = cluster.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, mut directives) = open_session(&mut cluster.client, attach(token)).await;
    loop {
        let v1::Directive { generation, directive } = directives.message().await.unwrap().unwrap();
        let is_evaluate = matches!(&directive, Some(Directive::Evaluate(_)));
        for message in worker_replies(cluster.output.path(), generation, directive.unwrap()) {
            sender.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
        if is_evaluate {
            break;
        }
    }
    loop {
        let status = cluster.admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
        if status.state() == RunState::Paused {
            return (status, sender, directives);
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_run_is_paused_while_captions_cannot_be_saved() {
    // 8 steps, and an evaluation every 4 steps.
    let mut cluster = start_with(testing::stage("a", 8, 8, None, Some(4))).await;
    let (status, sender, mut directives) = pause_with_unwritable_captions(&mut cluster).await;
    assert!(
        status.reason.contains("cannot save captions as ") && status.reason.contains("captions is not a folder"),
        "{}",
        status.reason
    );
    assert_eq!(status.step, 4);
    // This request is answered in a later iteration of the event loop than the last one: readiness
    // is up to date.
    cluster.admin.status(v1::StatusRequest {}).await.unwrap();
    let ready = http_get(cluster.http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("paused: cannot save captions"), "{ready}");
    std::fs::remove_file(cluster.output.path().join("captions")).unwrap();
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        for message in worker_replies(cluster.output.path(), generation, directive.unwrap()) {
            sender.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    assert_eq!(cluster.service.await.unwrap().unwrap(), Outcome::Finished);
    for file in ["captions/0-a-00000004.json", "captions/0-a-00000008.json"] {
        assert!(cluster.output.path().join(file).is_file(), "{file}");
    }
    let journal = ReadOnlyJournal::open(&cluster.output.path().join("state")).unwrap();
    let events = journal.events().unwrap();
    for kind in ["save_failed", "saved_again"] {
        let of_kind: Vec<_> = events.iter().filter(|event| event.kind == kind).collect();
        assert!(of_kind.len() == 1 && of_kind[0].detail.to_string().contains("captions"), "{of_kind:?}");
    }
    assert_eq!(journal.evaluations(None).unwrap().len(), 2);
}

#[tokio::test]
async fn a_run_that_waits_for_its_captions_can_be_stopped() {
    let mut cluster = start_with(testing::stage("a", 8, 8, None, Some(4))).await;
    let (_, sender, mut directives) = pause_with_unwritable_captions(&mut cluster).await;
    cluster.stop.stop().await;
    while let Some(v1::Directive { generation, directive: Some(directive) }) = directives.message().await.unwrap() {
        if matches!(directive, Directive::Leave(_)) {
            break;
        }
        for message in worker_replies(cluster.output.path(), generation, directive) {
            sender.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    drop((sender, directives));
    assert_eq!(cluster.service.await.unwrap().unwrap(), Outcome::Stopped);
}

#[tokio::test]
async fn long_evaluation_items_arrive_in_several_messages() {
    let mut cluster = start_with(testing::stage("a", 4, 8, None, Some(4))).await;
    let token = cluster.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, mut directives) = open_session(&mut cluster.client, attach(token)).await;
    // References of one word each, which are scored fast.
    let references: Vec<String> = (0..1_000).map(|number| format!("{number:03}{}", "x".repeat(5_000))).collect();
    let (image, caption) = ("1.jpg".to_owned(), "y".repeat(65_536));
    let item = v1::EvaluationItem { image, caption, references: references.clone(), ..Default::default() };
    let parts = proto::split_items(vec![item]);
    assert!(parts.len() > 1);
    // Scoring so much text may take longer than the heartbeat timeout.
    let heartbeat_sender = sender.clone();
    let heartbeats = tokio::spawn(async move {
        let heartbeat = || v1::WorkerMessage { message: Some(Message::Heartbeat(v1::Heartbeat::default())) };
        while heartbeat_sender.send(heartbeat()).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
    });
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        let messages = match directive.unwrap() {
            Directive::Evaluate(v1::Evaluate { evaluation, ranges }) => {
                let last = parts.len() - 1;
                let message = |(number, items): (usize, &Vec<v1::EvaluationItem>)| {
                    let (range, items, more) = (ranges.first().copied(), items.clone(), number < last);
                    Message::EvaluationItems(v1::EvaluationItems { generation, evaluation, range, items, more })
                };
                parts.iter().enumerate().map(message).collect()
            }
            directive => worker_replies(cluster.output.path(), generation, directive),
        };
        for message in messages {
            sender.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    heartbeats.abort();
    assert_eq!(cluster.service.await.unwrap().unwrap(), Outcome::Finished);
    let journal = ReadOnlyJournal::open(&cluster.output.path().join("state")).unwrap();
    let evaluation = journal.evaluations(None).unwrap().pop().unwrap();
    let captions = journal.captions(evaluation.id, u32::MAX).unwrap();
    assert!(captions.len() == 1 && captions[0].references == references, "{} captions", captions.len());
}

#[tokio::test]
async fn a_stopped_coordinator_releases_its_workers() {
    let mut cluster = start().await;
    let token = cluster.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, mut directives) = open_session(&mut cluster.client, attach(token)).await;
    directives.message().await.unwrap().unwrap();
    cluster.stop.stop().await;
    let leave = directives.message().await.unwrap().unwrap().directive.unwrap();
    assert!(matches!(leave, Directive::Leave(_)), "{leave:?}");
    drop(sender);
    assert_eq!(cluster.service.await.unwrap().unwrap(), Outcome::Stopped);
}

#[tokio::test]
async fn a_coordinator_with_stay_serves_after_its_run() {
    let stage = testing::stage("a", 4, 8, None, None);
    let TestCoordinator { grpc, http, service, output, .. } = serve_stage(stage, Security::default(), true).await;
    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let (mut client, mut admin) = (CoordinatorClient::new(channel.clone()), AdminClient::new(channel));
    let token = client.join(join(None)).await.unwrap().into_inner().session_token;
    let (sender, mut directives) = open_session(&mut client, attach(token)).await;
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        for message in worker_replies(output.path(), generation, directive.unwrap()) {
            sender.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    assert_eq!(client.join(join(None)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(admin.status(v1::StatusRequest {}).await.unwrap().into_inner().state(), RunState::Finished);
    assert_exposes(&http_get(http, "/metrics").await, &["dico_run_state{state=\"finished\"} 1"]);
    assert!(http_get(http, "/").await.starts_with("HTTP/1.1 200"));
    assert!(!service.is_finished());
    admin.control(control_request(v1::Command::Stop)).await.unwrap();
    assert_eq!(service.await.unwrap().unwrap(), Outcome::Finished);
}
