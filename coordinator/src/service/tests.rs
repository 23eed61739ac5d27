//! The whole coordinator on the loopback, with clients that speak gRPC.

use proto::{
    PROTOCOL_VERSION,
    v1::{self, coordinator_client::CoordinatorClient, directive::Directive, worker_message::Message},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{Service, Stop};
use crate::{
    journal::Journal,
    run::{Outcome, testing},
};

struct Running {
    client: CoordinatorClient<Channel>,
    http: std::net::SocketAddr,
    stop: Stop,
    served: JoinHandle<anyhow::Result<Outcome>>,
    output: tempfile::TempDir,
}

async fn start() -> Running {
    let output = tempfile::tempdir().unwrap();
    let mut file = testing::run_file(vec![testing::stage("a", 12, 8, Some(4), None)]);
    file.output = output.path().to_owned();
    file.control.keep_checkpoints = 1;
    let journal = Journal::open(&output.path().join("state"), &file).unwrap();
    let restored = journal.restore().unwrap();
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, http_address) = (grpc.local_addr().unwrap(), http.local_addr().unwrap());
    let scoring = scoring::Metrics::open(&scoring::Files::default()).expect("no files are named");
    let (stop, served) = Service { file, restored, journal, scoring, grpc, http }.start();
    let served = tokio::spawn(served);
    let client = CoordinatorClient::connect(format!("http://{address}")).await.unwrap();
    Running { client, http: http_address, stop, served, output }
}

fn join(rank: Option<u32>) -> v1::JoinRequest {
    v1::JoinRequest { protocol_version: PROTOCOL_VERSION, rank, host: "here".into(), ..Default::default() }
}

fn attach(token: String) -> Message {
    let data_set = Some(v1::DataSet { validation_images: 1, ..Default::default() });
    Message::Attach(v1::Attach { session_token: token, store_address: "here:1".into(), data_set, holds: None })
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
    let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
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
async fn a_rank_is_given_once() {
    let mut running = start().await;
    let token = running.client.join(join(Some(2))).await.unwrap().into_inner().session_token;
    let (_say, mut directives) = session(&mut running.client, attach(token)).await;
    // The rendezvous of the first generation says that the worker is attached.
    directives.message().await.unwrap().unwrap();
    let status = running.client.join(join(Some(2))).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("rank 2 is taken") && status.message().contains("here"), "{status}");
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

#[tokio::test]
async fn a_worker_is_led_to_the_end() {
    let Running { mut client, http, served, output, .. } = start().await;
    assert!(get(http, "/readyz").await.starts_with("HTTP/1.1 503"));
    let joined = client.join(join(None)).await.unwrap().into_inner();
    let file: runfile::RunFile = serde_json::from_str(&joined.run_file).unwrap();
    assert_eq!((file.stages[0].steps, joined.heartbeat_interval_ms), (12, 1000));
    let (say, mut directives) = session(&mut client, attach(joined.session_token)).await;
    let say = async |message| say.send(v1::WorkerMessage { message: Some(message) }).await.unwrap();
    while let Some(v1::Directive { generation, directive }) = directives.message().await.unwrap() {
        match directive.unwrap() {
            Directive::Rendezvous(meet) => say(Message::Ready(v1::Ready { generation, position: meet.position })).await,
            Directive::Train(train) => {
                for step in train.first_step..train.first_step + u64::from(train.steps) {
                    let position = Some(v1::Position { stage: train.stage, step: step + 1, generation });
                    let reward = (&statistics::Summary::of([0.5, 0.7])).into();
                    let report = v1::StepDone {
                        position,
                        loss_sum: 8.0,
                        loss_weight: 4.0,
                        samples: 8,
                        seconds: 0.5,
                        summaries: [("reward_chosen".to_owned(), reward)].into(),
                        ..Default::default()
                    };
                    say(Message::StepDone(report)).await;
                }
            }
            Directive::Checkpoint(v1::Checkpoint { checkpoint, path }) => {
                std::fs::create_dir_all(&path).unwrap();
                let parameters_sha256 = "00".into();
                say(Message::CheckpointDone(v1::CheckpointDone { generation, checkpoint, parameters_sha256, path }))
                    .await;
            }
            Directive::Evaluate(v1::Evaluate { evaluation, ranges }) => {
                assert_eq!(ranges, [v1::ImageRange { begin: 0, end: 1 }]);
                let item = v1::EvaluationItem {
                    image: "1.jpg".into(),
                    caption: "a red ball on the green grass".into(),
                    references: vec!["a red ball on the green grass".into()],
                    scores: [("pac_s".to_owned(), 0.75)].into(),
                    image_id: Some(42),
                    image_embedding: vec![1.0],
                    text_embedding: vec![1.0],
                };
                let (range, items) = (ranges.first().copied(), vec![item]);
                say(Message::EvaluationItems(v1::EvaluationItems { generation, evaluation, range, items })).await;
            }
            Directive::Finish(_) => {
                let metrics = get(http, "/metrics").await;
                for line in [
                    "dico_step 12",
                    "dico_loss 2",
                    "dico_samples_committed_total 96",
                    "dico_evaluation_score{metric=\"bleu_4\"} 0.99999",
                    "dico_evaluation_score{metric=\"pac_s\"} 0.75",
                    "dico_step_seconds_count 12",
                    "dico_checkpoints_total 3",
                ] {
                    assert!(metrics.lines().any(|found| found.starts_with(line)), "{line} is not in\n{metrics}");
                }
                assert!(get(http, "/readyz").await.starts_with("HTTP/1.1 200"));
                say(Message::Finished(v1::Finished {})).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(served.await.unwrap().unwrap(), Outcome::Finished);
    let kept = std::fs::read_dir(output.path().join("checkpoints")).unwrap().count();
    assert!((1..=3).contains(&kept), "the last is kept; the others are deleted in their own time");
    let journal = rusqlite::Connection::open(output.path().join("state/journal.sqlite")).unwrap();
    let count = |sql: &str| journal.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM steps WHERE loss = 2.0 AND samples = 8"), 12);
    assert_eq!(count("SELECT count(*) FROM checkpoints WHERE deleted IS NULL"), 1);
    assert_eq!(count("SELECT count(*) FROM evaluation_items WHERE scores_json LIKE '%bleu_4%'"), 1);
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
