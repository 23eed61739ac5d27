//! The whole coordinator on the loopback, with gRPC clients.

mod places;
mod refusals;

use std::{path::Path, time::Duration};

use config::{GuardAction, Rule, RunFile, Stage};
use proto::{
    PROTOCOL_VERSION,
    v1::{
        self, admin_client::AdminClient, coordinator_client::CoordinatorClient, directive::Directive,
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
use crate::{
    journal::Journal,
    run::{Outcome, Run, testing},
};

struct Running {
    client: CoordinatorClient<Channel>,
    admin: AdminClient<Channel>,
    http: std::net::SocketAddr,
    stop: StopHandle,
    served: JoinHandle<anyhow::Result<Outcome>>,
    output: tempfile::TempDir,
}

/// A coordinator without clients.
struct Served {
    grpc: std::net::SocketAddr,
    http: std::net::SocketAddr,
    stop: StopHandle,
    served: JoinHandle<anyhow::Result<Outcome>>,
    output: tempfile::TempDir,
}

async fn start() -> Running {
    start_with(testing::stage("a", 12, 8, Some(4), None)).await
}

async fn start_with(stage: Stage) -> Running {
    let Served { grpc, http, stop, served, output } = serve(stage, Security::default()).await;
    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let (client, admin) = (CoordinatorClient::new(channel.clone()), AdminClient::new(channel));
    Running { client, admin, http, stop, served, output }
}

async fn serve(stage: Stage, security: Security) -> Served {
    serve_and(stage, security, false).await
}

/// Starts a coordinator; with `stay` it serves on after its run.
async fn serve_and(stage: Stage, security: Security, stay: bool) -> Served {
    serve_file(testing::run_file(vec![stage]), security, stay).await
}

/// Serves the run of a file, in a folder of its own.
async fn serve_file(mut file: RunFile, security: Security, stay: bool) -> Served {
    let output = tempfile::tempdir().unwrap();
    file.output = output.path().to_owned();
    file.checkpoints.keep = 1;
    let journal = Journal::open(&output.path().join("state"), &file).unwrap();
    let run = Run::new(file.clone(), journal.restore().unwrap(), 0);
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, http_address) = (grpc.local_addr().unwrap(), http.local_addr().unwrap());
    let scoring = caption_metrics::Metrics::open(&caption_metrics::Files::default()).expect("no files are named");
    let access = object_io::Access::environment();
    let checkpoints = checkpoint_store::Checkpoints::open(&file.checkpoint_place(), &access).unwrap();
    let state = output.path().join("state");
    let service = Service { file, run, journal, state, checkpoints, scoring, grpc, http, security, stay };
    let (stop, served) = service.start();
    Served { grpc: address, http: http_address, stop, served: tokio::spawn(served), output }
}

fn join(rank: Option<u32>) -> v1::JoinRequest {
    v1::JoinRequest { protocol_version: PROTOCOL_VERSION, rank, host: "here".into(), ..Default::default() }
}

fn command(command: v1::Command) -> v1::ControlRequest {
    v1::ControlRequest { command: command.into(), rank: 0 }
}

fn attach(token: String) -> Message {
    let data_set = Some(v1::DataSet { validation_images: 1, ..Default::default() });
    Message::Attach(v1::Attach { session_token: token, store_address: "here:1".into(), data_set, ..Default::default() })
}

/// Opens a session with this first message.
async fn session(
    client: &mut CoordinatorClient<Channel>,
    first: Message,
) -> (mpsc::Sender<v1::WorkerMessage>, Streaming<v1::Directive>) {
    let (say, said) = mpsc::channel(64);
    say.send(v1::WorkerMessage { message: Some(first) }).await.unwrap();
    (say, client.session(ReceiverStream::new(said)).await.unwrap().into_inner())
}

async fn refusal(client: &mut CoordinatorClient<Channel>, first: Message) -> Status {
    let (_say, mut directives) = session(client, first).await;
    directives.message().await.unwrap_err()
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name() {
    let mut running = start().await;
    let status = running.client.join(v1::JoinRequest { protocol_version: 99, ..join(None) }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("99") && status.message().contains(&PROTOCOL_VERSION.to_string()));
}

#[tokio::test]
async fn as_many_may_watch_as_are_allowed() {
    let mut running = start().await;
    let request = v1::WatchRequest { interval_ms: 600_000 };
    let mut watches = Vec::new();
    for _ in 0..grpc::MAX_WATCHES {
        let mut watch = running.admin.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().state, "waiting");
        watches.push(watch);
    }
    let refused = running.admin.watch(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains(&grpc::MAX_WATCHES.to_string()), "{refused}");
    // A single status request needs no stream.
    running.admin.status(v1::StatusRequest {}).await.unwrap();
    watches.pop();
    // The coordinator notices the closed stream after a while.
    let again = async { while running.admin.watch(request).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), again).await.unwrap();
}

#[tokio::test]
async fn a_rank_is_given_once() {
    let mut running = start().await;
    let token = running.client.join(join(Some(2))).await.unwrap().into_inner().session_token;
    let (_say, mut directives) = session(&mut running.client, attach(token)).await;
    // The rendezvous of the first generation shows that the worker is attached.
    directives.message().await.unwrap().unwrap();
    // The worker may have just died; after so long, it is known to be alive.
    for (waited_ms, code) in [(0, Code::Aborted), (60_000, Code::AlreadyExists)] {
        let status = running.client.join(v1::JoinRequest { waited_ms, ..join(Some(2)) }).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains("rank 2 is taken") && status.message().contains("here"), "{status}");
    }
    assert_eq!(running.client.join(join(Some(100_000))).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_session_needs_a_token_of_its_own() {
    let mut running = start().await;
    assert_eq!(refusal(&mut running.client, attach("guessed".into())).await.code(), Code::Unauthenticated);
    let first = Message::Heartbeat(v1::Heartbeat::default());
    assert_eq!(refusal(&mut running.client, first).await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn nonsense_ends_the_session() {
    let mut running = start().await;
    let token = running.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (say, mut directives) = session(&mut running.client, attach(token)).await;
    directives.message().await.unwrap().unwrap();
    let position = Some(v1::Position { stage: 7, step: u64::MAX, generation: 1 });
    let message = Some(Message::StepDone(v1::StepDone { position, ..Default::default() }));
    say.send(v1::WorkerMessage { message }).await.unwrap();
    assert_eq!(directives.message().await.unwrap_err().code(), Code::InvalidArgument);
}

/// A healthy worker's replies to a directive.
fn replies(output: &Path, generation: u64, directive: Directive) -> Vec<Message> {
    match directive {
        Directive::Rendezvous(meet) => vec![Message::Ready(v1::Ready { generation, position: meet.position })],
        Directive::Train(train) => {
            let report = |step| {
                let reward = (&statistics::Summary::of([0.5, 0.7])).into();
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

fn assert_exposes(metrics: &str, lines: &[&str]) {
    for line in lines {
        assert!(metrics.lines().any(|found| found.starts_with(line)), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_worker_is_led_to_the_end() {
    let by_bleu = Stage { metric: Some("bleu_4".into()), ..testing::stage("a", 12, 8, Some(4), None) };
    let Running { mut client, mut admin, http, served, output, .. } = start_with(by_bleu).await;
    assert!(get(http, "/readyz").await.starts_with("HTTP/1.1 503"));
    let joined = client.join(join(None)).await.unwrap().into_inner();
    let file: RunFile = serde_json::from_str(&joined.run_file).unwrap();
    assert_eq!((file.stages[0].steps, joined.heartbeat_interval_ms), (12, 1000));
    let (say, mut directives) = session(&mut client, attach(joined.session_token)).await;
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
            assert_exposes(&get(http, "/metrics").await, &lines);
            assert!(get(http, "/readyz").await.starts_with("HTTP/1.1 200"));
        }
        for message in replies(output.path(), generation, directive) {
            say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    assert_eq!(served.await.unwrap().unwrap(), Outcome::Finished);
    let kept = std::fs::read_dir(output.path().join("checkpoints")).unwrap().count();
    assert!((1..=3).contains(&kept), "the last is kept; the others are deleted in their own time");
    let captions = std::fs::read_to_string(output.path().join("captions/0-a-00000012.json")).unwrap();
    assert_eq!(captions, r#"[{"image_id":42,"caption":"a red ball on the green grass"}]"#);
    let journal = rusqlite::Connection::open(output.path().join("state/journal.sqlite")).unwrap();
    let count = |sql: &str| journal.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM steps WHERE loss = 2.0 AND samples = 8"), 12);
    assert_eq!(count("SELECT count(*) FROM checkpoints WHERE deleted IS NULL"), 1);
    assert_eq!(count("SELECT count(*) FROM evaluation_items WHERE scores_json LIKE '%bleu_4%'"), 1);
}

#[tokio::test]
async fn a_paused_run_goes_on_when_somebody_says_so() {
    let action = GuardAction::Pause;
    let rule = Rule { metric: "reward_chosen".into(), above: Some(0.5), below: None, for_: 2, action };
    let guarded = Stage { guard: vec![rule], ..testing::stage("a", 12, 8, None, None) };
    let Running { mut client, mut admin, http, served, output, .. } = start_with(guarded).await;
    let refused = admin.control(command(v1::Command::Resume)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("not paused"), "{refused}");

    let token = client.join(join(None)).await.unwrap().into_inner().session_token;
    let (say, mut directives) = session(&mut client, attach(token)).await;
    let mut paused = 0;
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        let directive = directive.unwrap();
        // No other member saves a state at that step.
        let pauses = matches!(&directive, Directive::Checkpoint(checkpoint) if checkpoint.name.ends_with("00000008"));
        for message in replies(output.path(), generation, directive) {
            say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
        if !pauses {
            continue;
        }
        paused += 1;
        let status = admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.state, "paused");
        assert!(status.reason.contains("reward_chosen is 0.6000, above 0.5 at stage 0 step 2"), "{}", status.reason);
        // Answered in a later iteration of the event loop than the first: metrics are up to date.
        admin.status(v1::StatusRequest {}).await.unwrap();
        assert!(get(http, "/readyz").await.contains("paused: "));
        let lines = ["dico_paused 1", "dico_guard_events_total{metric=\"reward_chosen\",action=\"pause\"} 1"];
        assert_exposes(&get(http, "/metrics").await, &lines);
        admin.control(command(v1::Command::Resume)).await.unwrap();
    }
    assert_eq!((served.await.unwrap().unwrap(), paused), (Outcome::Finished, 1));
}

/// Trains until the captions of the first evaluation, which cannot be saved, are sent. Returns the
/// status then.
async fn with_unwritable_captions(
    running: &mut Running,
) -> (v1::StatusResponse, mpsc::Sender<v1::WorkerMessage>, Streaming<v1::Directive>) {
    std::fs::write(running.output.path().join("captions"), "in the way").unwrap();
    let token = running.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (say, mut directives) = session(&mut running.client, attach(token)).await;
    loop {
        let v1::Directive { generation, directive } = directives.message().await.unwrap().unwrap();
        let evaluates = matches!(&directive, Some(Directive::Evaluate(_)));
        for message in replies(running.output.path(), generation, directive.unwrap()) {
            say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
        if evaluates {
            break;
        }
    }
    loop {
        let status = running.admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
        if status.state == "paused" {
            return (status, say, directives);
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn captions_that_cannot_be_saved_hold_the_run_until_they_can() {
    let mut running = start_with(testing::stage("a", 8, 8, None, Some(4))).await;
    let (status, say, mut directives) = with_unwritable_captions(&mut running).await;
    assert!(
        status.reason.contains("cannot save captions as ") && status.reason.contains("captions is not a folder"),
        "{}",
        status.reason
    );
    assert_eq!(status.step, 4);
    // Answered in a later iteration of the event loop than the first: readiness is up to date.
    running.admin.status(v1::StatusRequest {}).await.unwrap();
    let ready = get(running.http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("paused: cannot save captions"), "{ready}");
    std::fs::remove_file(running.output.path().join("captions")).unwrap();
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        for message in replies(running.output.path(), generation, directive.unwrap()) {
            say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    assert_eq!(running.served.await.unwrap().unwrap(), Outcome::Finished);
    for file in ["captions/0-a-00000004.json", "captions/0-a-00000008.json"] {
        assert!(running.output.path().join(file).is_file(), "{file}");
    }
    let journal = rusqlite::Connection::open(running.output.path().join("state/journal.sqlite")).unwrap();
    let count = |sql: &str| journal.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM events WHERE kind = 'save_failed' AND detail_json LIKE '%captions%'"), 1);
    assert_eq!(count("SELECT count(*) FROM events WHERE kind = 'saved_again' AND detail_json LIKE '%captions%'"), 1);
    assert_eq!(count("SELECT count(*) FROM evaluations"), 2);
}

#[tokio::test]
async fn a_run_that_waits_for_its_captions_can_be_stopped() {
    let mut running = start_with(testing::stage("a", 8, 8, None, Some(4))).await;
    let (_, say, mut directives) = with_unwritable_captions(&mut running).await;
    running.stop.stop().await;
    while let Some(v1::Directive { generation, directive: Some(directive) }) = directives.message().await.unwrap() {
        if matches!(directive, Directive::Leave(_)) {
            break;
        }
        for message in replies(running.output.path(), generation, directive) {
            say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    drop((say, directives));
    assert_eq!(running.served.await.unwrap().unwrap(), Outcome::Stopped);
}

#[tokio::test]
async fn a_range_of_many_and_long_references_arrives_in_parts() {
    let mut running = start_with(testing::stage("a", 4, 8, None, Some(4))).await;
    let token = running.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (say, mut directives) = session(&mut running.client, attach(token)).await;
    // One word each: the test checks only that they arrive.
    let references = (0..1_000).map(|number| format!("{number:03}{}", "x".repeat(5_000))).collect();
    let item =
        v1::EvaluationItem { image: "1.jpg".into(), caption: "y".repeat(65_536), references, ..Default::default() };
    let parts = proto::parts(vec![item]);
    assert!(parts.len() > 1);
    // Scoring so much text may take longer than the heartbeat timeout.
    let heart = say.clone();
    let beating = tokio::spawn(async move {
        let beat = || v1::WorkerMessage { message: Some(Message::Heartbeat(v1::Heartbeat::default())) };
        while heart.send(beat()).await.is_ok() {
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
            directive => replies(running.output.path(), generation, directive),
        };
        for message in messages {
            say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    beating.abort();
    assert_eq!(running.served.await.unwrap().unwrap(), Outcome::Finished);
    let journal = rusqlite::Connection::open(running.output.path().join("state/journal.sqlite")).unwrap();
    let query = "SELECT json_array_length(references_json), length(references_json) FROM evaluation_items";
    let kept = journal.query_row(query, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).unwrap();
    assert_eq!(kept, (1_000, 1_000 * 5_006 + 1));
}

#[tokio::test]
async fn asked_to_stop_it_sends_everybody_away() {
    let mut running = start().await;
    let token = running.client.join(join(None)).await.unwrap().into_inner().session_token;
    let (say, mut directives) = session(&mut running.client, attach(token)).await;
    directives.message().await.unwrap().unwrap();
    running.stop.stop().await;
    let leave = directives.message().await.unwrap().unwrap().directive.unwrap();
    assert!(matches!(leave, Directive::Leave(_)), "{leave:?}");
    drop(say);
    assert_eq!(running.served.await.unwrap().unwrap(), Outcome::Stopped);
}

#[tokio::test]
async fn one_that_stays_outlives_its_run() {
    let stage = testing::stage("a", 4, 8, None, None);
    let Served { grpc, http, served, output, .. } = serve_and(stage, Security::default(), true).await;
    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let (mut client, mut admin) = (CoordinatorClient::new(channel.clone()), AdminClient::new(channel));
    let token = client.join(join(None)).await.unwrap().into_inner().session_token;
    let (say, mut directives) = session(&mut client, attach(token)).await;
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        for message in replies(output.path(), generation, directive.unwrap()) {
            say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
        }
    }
    assert_eq!(client.join(join(None)).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(admin.status(v1::StatusRequest {}).await.unwrap().into_inner().state, "finished");
    assert_exposes(&get(http, "/metrics").await, &["dico_run_state{state=\"finished\"} 1"]);
    assert!(get(http, "/").await.starts_with("HTTP/1.1 200"));
    assert!(!served.is_finished());
    admin.control(command(v1::Command::Stop)).await.unwrap();
    assert_eq!(served.await.unwrap().unwrap(), Outcome::Finished);
}
