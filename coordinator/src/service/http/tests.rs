//! Tests of the HTTP server on the loopback, with journals that the tests write.

mod attacks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::SocketAddr,
    path::Path,
};

use dico_engine::{
    WorkerId,
    model_selection::{EndCause, EndDecision},
    plan::Position,
    record::{Record, StateSource},
    statistics::StepStatistics,
};
use journal::{Distribution, EvaluatedCaption, Journal, ReadOnlyJournal, RecordedStep};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::service::{auth::Tokens, driver_input::DriverInput, metrics::Metrics};
use config::testing;
use curves::{CurveUpdate, Curves, CurvesAnswer};
use proto::v1;
use transport::Token;

const ADMIN_TOKEN: &str = "the-token-of-the-administrators";

/// An HTTP server with a journal, without a driver and workers.
struct TestServer {
    http: SocketAddr,
    journal: Journal,
    metrics: Metrics,
    shutdown_sender: watch::Sender<()>,
    /// Keeps the driver's channel open. The tests do not read it.
    _driver_inputs: mpsc::Receiver<DriverInput>,
    output: tempfile::TempDir,
}

impl TestServer {
    async fn new(admin: Option<&str>) -> Self {
        let output = tempfile::tempdir().unwrap();
        let mut file = testing::run_file(vec![testing::stage("a", 2000, 8, None, None)]);
        let images = output.path().join("images");
        std::fs::create_dir_all(&images).unwrap();
        std::fs::write(images.join("1.jpg"), [0xff, 0xd8, 0xff, 0xe0]).unwrap();
        std::fs::write(images.join("page.jpg"), "<script>alert(1)</script>").unwrap();
        std::fs::write(output.path().join("secret.jpg"), [0xff, 0xd8, 0xff, 0xe0]).unwrap();
        file.data.karpathy = Some(config::Karpathy { annotations: output.path().join("dataset.json"), images });
        let entries = ["1.jpg", "page.jpg", "gone.jpg"]
            .map(|name| serde_json::json!({ "filename": name, "split": "val", "sentences": [{ "raw": "a" }] }));
        std::fs::write(output.path().join("dataset.json"), json!({ "images": entries }).to_string()).unwrap();
        let journal = Journal::open(&output.path().join("state"), &file).unwrap();
        let (inputs, driver_inputs) = mpsc::channel(8);
        let metrics = Metrics::new(&file);
        let admin = admin.map(|token| Token::parse(token, "a test").unwrap());
        let tokens = Arc::new(Tokens { join: None, admin });
        let app_state = Arc::new(AppState::new(file, output.path().join("state"), inputs, tokens, metrics.refusals()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = listener.local_addr().unwrap();
        let (shutdown_sender, shutdown) = watch::channel(());
        let always_ready = || watch::channel(Ok(())).1;
        let routes = routes(
            Arc::clone(&app_state),
            metrics.handle(),
            [always_ready(), always_ready()],
            7070,
            AllowedHosts::for_server(http),
        );
        let mut shutdown_of_updates = shutdown.clone();
        tokio::spawn(send_updates(app_state, async move { _ = shutdown_of_updates.changed().await }));
        tokio::spawn(serve(listener, routes, metrics.refusals(), shutdown));
        Self { http, journal, metrics, shutdown_sender, _driver_inputs: driver_inputs, output }
    }

    async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (code, _, body) = self.request("GET", path, "", "").await;
        (code, serde_json::from_str(&body).unwrap_or_default())
    }

    /// The folder with the images of its data set.
    fn images(&self) -> std::path::PathBuf {
        self.output.path().join("images")
    }

    fn write_evaluations(&mut self) {
        let position = Position { stage: 0, step: 0 };
        let formed = Record::Formed {
            generation: 1,
            term: 0,
            members: vec![],
            cause: "start".into(),
            start: position,
            source: StateSource::Seed,
        };
        let captioned = |image: &str, caption: &str| EvaluatedCaption {
            image: image.into(),
            caption: caption.into(),
            references: vec!["</script><script>alert(2)</script>".into()],
            scores: [("pac_s".to_owned(), 0.5)].into(),
        };
        let mut evaluated = |step, caption: &str| {
            let images = ["../secret.jpg", "1.jpg", "gone.jpg", "page.jpg"];
            self.journal.stage_captions(step, images.map(|image| captioned(image, caption)).into());
            let metrics = [("cider".to_owned(), step as f64)].into();
            Record::Evaluated { position: Position { stage: 0, step }, generation: 1, evaluation: step, metrics }
        };
        let records = [formed, evaluated(0, "a cat"), evaluated(10, "<img src=x onerror=alert(3)>")];
        self.journal.write(&records).unwrap();
    }
}

fn step_record(step: u64, generation: u64, loss: f64) -> Record {
    let report = v1::StepDone {
        loss_sum: loss,
        loss_weight: 1.0,
        samples: 8,
        seconds: 0.5,
        summaries: [("kl".into(), (&summary_statistics::Summary::of([loss / 2.0])).into())].into(),
        ..v1::StepDone::default()
    };
    Record::Step(
        StepStatistics::from_report(WorkerId(0), &report, &v1::Position { stage: 0, step, generation }).unwrap(),
    )
}

fn generation_record(generation: u64, step: u64) -> Record {
    let start = Position { stage: 0, step };
    Record::Formed { generation, term: 0, members: vec![], cause: "x".into(), start, source: StateSource::Seed }
}

fn read_journal(curves: &mut Curves, state: &Path) {
    let journal = ReadOnlyJournal::open(state).unwrap();
    while curves.apply(curves.next_query()(&journal).unwrap()) {}
}

fn as_json(answer: &CurvesAnswer) -> Value {
    serde_json::to_value(answer).unwrap()
}

fn recorded_step(step: u64, loss: Option<f64>) -> RecordedStep {
    let reward = Distribution { mean: loss, p50: loss, ..Distribution::default() };
    let summaries = [("reward_chosen".to_owned(), reward)].into();
    let position = Position { stage: 0, step };
    RecordedStep { position, generation: 1, at: step as f64, loss, summaries, ..RecordedStep::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The buckets equal those of a direct computation over all steps, however many steps each
    /// query reads.
    #[test]
    fn buckets_equal_a_direct_computation(
        losses in prop::collection::vec(prop::option::weighted(0.95, -9.0..9.0_f64), 1..3000), steps_per_query in 1..900_usize,
    ) {
        let mut curves = Curves::new(1);
        let all: Vec<RecordedStep> = (1..).zip(&losses).map(|(step, loss)| recorded_step(step, *loss)).collect();
        for steps in all.chunks(steps_per_query) {
            curves.apply(CurveUpdate { steps: steps.to_vec(), ..CurveUpdate::default() });
        }
        let answer = as_json(&curves.answer(0, StepRange::Full, CurveCursor::default()));
        let bucket_size = answer["bucket_size"].as_u64().unwrap() as usize;
        prop_assert_eq!(bucket_size, losses.len().div_ceil(curves::MAX_BUCKETS).next_power_of_two());
        let expected: Vec<Vec<f64>> = losses.chunks(bucket_size).map(|chunk| chunk.iter().copied().flatten().collect()).collect();
        let is_close = |actual: &Value, expected: Option<f64>| match (actual.as_f64(), expected) {
            (Some(actual), Some(expected)) => (actual - expected).abs() < 1e-5,
            (actual, expected) => actual.is_none() && expected.is_none(),
        };
        let has_losses = losses.iter().any(Option::is_some);
        for (index, chunk) in expected.iter().enumerate().filter(|_| has_losses) {
            let loss = &answer["series"]["loss"];
            let mean = (!chunk.is_empty()).then(|| chunk.iter().sum::<f64>() / chunk.len() as f64);
            prop_assert!(is_close(&loss["mean"][index], mean));
            if bucket_size > 1 {
                prop_assert!(is_close(&loss["min"][index], chunk.iter().copied().reduce(f64::min)));
                prop_assert!(is_close(&loss["max"][index], chunk.iter().copied().reduce(f64::max)));
            }
            prop_assert!(is_close(&answer["series"]["reward_chosen.p50"]["mean"][index], mean));
        }
        let first: Vec<u64> = (0..expected.len()).map(|index| (index * bucket_size) as u64 + 1).collect();
        prop_assert_eq!(&answer["first"], &serde_json::json!(first));
        prop_assert_eq!(answer["last"].as_array().unwrap().last().unwrap().as_u64().unwrap(), losses.len() as u64);
    }
}

#[test]
fn a_client_with_data_gets_only_later_data() {
    let mut curves = Curves::new(5);
    let steps = |range: std::ops::RangeInclusive<u64>| range.map(|step| recorded_step(step, Some(1.0))).collect();
    curves.apply(CurveUpdate { steps: steps(1..=10), ..CurveUpdate::default() });
    curves.apply(CurveUpdate { steps: steps(11..=12), ..CurveUpdate::default() });
    let cursor = CurveCursor { version: 5, bucket_size: 1, from_step: 10 };
    for range in [StepRange::Full, StepRange::Recent] {
        let answer = as_json(&curves.answer(0, range, cursor));
        assert_eq!((&answer["is_delta"], &answer["first"]), (&true.into(), &serde_json::json!([10, 11, 12])));
        let all = as_json(&curves.answer(0, range, CurveCursor { version: 4, ..cursor }));
        assert_eq!((&all["is_delta"], all["first"].as_array().unwrap().len()), (&false.into(), 12));
    }
    // The buckets have more steps now.
    curves.apply(CurveUpdate { steps: steps(13..=600), ..CurveUpdate::default() });
    let answer = as_json(&curves.answer(0, StepRange::Full, cursor));
    assert_eq!((&answer["is_delta"], &answer["bucket_size"]), (&false.into(), &2.into()));
    let recent = as_json(&curves.answer(0, StepRange::Recent, CurveCursor::default()));
    assert_eq!((&recent["first"][0], &recent["bucket_size"]), (&89.into(), &1.into()));
    // Step 10 is no longer among the recent steps: the client's data end before the first of them.
    let recent = as_json(&curves.answer(0, StepRange::Recent, cursor));
    assert_eq!((&recent["is_delta"], &recent["first"][0]), (&false.into(), &89.into()));
}

/// A client that requests deltas, as the web page's stage_curves.js does. It stores columns by
/// name.
#[derive(Debug, Default)]
struct Client {
    cursor: CurveCursor,
    columns: BTreeMap<String, Vec<Value>>,
}

impl Client {
    fn request(&mut self, curves: &Curves, range: StepRange) {
        let answer = as_json(&curves.answer(0, range, self.cursor));
        let new = columns(&answer);
        let first = new["first"].first();
        let mut kept = 0;
        if answer["is_delta"].as_bool().unwrap() {
            let is_first = |step: &Value| Some(step) == first;
            kept =
                self.columns["first"].iter().position(is_first).expect("a delta begins with the client's last bucket");
        } else {
            self.columns.clear();
        }
        let length = new["first"].len();
        for name in new.keys() {
            self.columns.entry(name.clone()).or_insert_with(|| vec![Value::Null; kept]);
        }
        for (name, column) in &mut self.columns {
            column.truncate(kept);
            column.extend(new.get(name).cloned().unwrap_or_else(|| vec![Value::Null; length]));
        }
        let surplus = self.columns["first"].len().saturating_sub(curves::MAX_BUCKETS);
        self.columns.values_mut().for_each(|column| _ = column.drain(..surplus));
        self.cursor = CurveCursor {
            version: answer["version"].as_u64().unwrap(),
            bucket_size: answer["bucket_size"].as_u64().unwrap(),
            from_step: self.columns["first"].last().map_or(0, |first| first.as_u64().unwrap()),
        };
    }
}

/// All columns of an answer by name.
fn columns(answer: &Value) -> BTreeMap<String, Vec<Value>> {
    let list = |value: &Value| value.as_array().unwrap().clone();
    let bucket_columns = ["first", "last", "at"].map(|name| (name.to_owned(), list(&answer[name])));
    let series = answer["series"].as_object().unwrap().iter().flat_map(|(name, columns)| {
        let column = move |(statistic, column): (&String, &Value)| (format!("{name}.{statistic}"), list(column));
        columns.as_object().unwrap().iter().map(column)
    });
    bucket_columns.into_iter().chain(series).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A client that requests deltas has the same data as a client that requests everything,
    /// whether steps are added in between or given up.
    #[test]
    fn deltas_add_up_to_the_full_answer(
        is_full in any::<bool>(),
        rounds in prop::collection::vec((0..900_u64, prop::option::weighted(0.2, 0.0..1.0_f64), any::<bool>()), 1..20),
    ) {
        let range = if is_full { StepRange::Full } else { StepRange::Recent };
        let (mut curves, mut client) = (Curves::new(3), Client::default());
        let (mut step, mut generation, mut branch_points) = (0, 1, BTreeSet::new());
        for (new_steps, rollback, requests) in rounds {
            if let Some(share) = rollback {
                generation += 1;
                step = (step as f64 * share) as u64;
                branch_points.insert((generation, Position { stage: 0, step }));
                let has_more = curves.apply(CurveUpdate { branch_points: branch_points.clone(), ..CurveUpdate::default() });
                // Steps before the branch point whose bucket was removed are read again.
                if has_more {
                    let last = curves.answer(0, StepRange::Full, CurveCursor::default());
                    let last = as_json(&last)["last"].as_array().unwrap().last().map_or(0, |last| last.as_u64().unwrap());
                    let steps = (last + 1..=step).map(|step| RecordedStep { generation: 1, ..recorded_step(step, Some(0.5)) });
                    curves.apply(CurveUpdate { branch_points: branch_points.clone(), steps: steps.collect(), ..CurveUpdate::default() });
                }
            }
            let loss = |step: u64| (!step.is_multiple_of(7)).then_some(step as f64);
            let steps = (step + 1..=step + new_steps).map(|step| RecordedStep { generation, ..recorded_step(step, loss(step)) });
            curves.apply(CurveUpdate { branch_points: branch_points.clone(), steps: steps.collect(), ..CurveUpdate::default() });
            step += new_steps;
            if requests {
                client.request(&curves, range);
                let all = columns(&as_json(&curves.answer(0, range, CurveCursor::default())));
                let is_null = |column: &Vec<Value>| column.iter().all(Value::is_null);
                let client_columns: BTreeMap<_, _> =
                    client.columns.clone().into_iter().filter(|(_, column)| column.is_empty() || !is_null(column)).collect();
                prop_assert_eq!(client_columns, all);
            }
        }
    }
}

#[test]
fn steps_after_the_checkpoint_that_a_stage_ended_with_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let stages = vec![testing::stage("a", 12, 8, None, None), testing::stage("b", 12, 8, None, None)];
    let mut journal = Journal::open(folder.path(), &testing::run_file(stages)).unwrap();
    let mut curves = Curves::new(1);
    let mut records = vec![generation_record(1, 0)];
    records.extend((1..=6).map(|step| step_record(step, 1, 1.0)));
    // Steps 5 and 6 are given up, and trained again.
    records.push(generation_record(2, 4));
    records.extend((5..=12).map(|step| step_record(step, 2, 2.0)));
    journal.write(&records).unwrap();
    read_journal(&mut curves, folder.path());
    let position = Position { stage: 0, step: 8 };
    let end = EndDecision { position, cause: EndCause::BestState, reason: "x".into(), later_states: vec![] };
    journal.write(&[Record::StageEnded { generation: 2, end }, generation_record(3, 8)]).unwrap();
    read_journal(&mut curves, folder.path());
    let mut fresh_curves = Curves::new(1);
    read_journal(&mut fresh_curves, folder.path());
    for curves in [&curves, &fresh_curves] {
        let answer = as_json(&curves.answer(0, StepRange::Full, CurveCursor::default()));
        assert_eq!(answer["last"], json!((1..=12).collect::<Vec<u64>>()));
        let losses: Vec<f64> = serde_json::from_value(answer["series"]["loss"]["mean"].clone()).unwrap();
        assert_eq!(losses, [[1.0; 4], [2.0; 4], [2.0; 4]].concat());
    }
}

#[test]
fn steps_that_were_given_up_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal =
        Journal::open(folder.path(), &testing::run_file(vec![testing::stage("a", 2000, 8, None, None)])).unwrap();
    let mut curves = Curves::new(1);
    let mut records = vec![generation_record(1, 0)];
    records.extend((1..=1300).map(|step| step_record(step, 1, 1.0)));
    journal.write(&records).unwrap();
    read_journal(&mut curves, folder.path());
    let before = curves.version();
    // The run rolls back to step 1001, in the middle of a bucket of four. Later losses differ.
    journal.write(&[generation_record(2, 1001), step_record(1002, 2, 5.0), step_record(1003, 2, 5.0)]).unwrap();
    read_journal(&mut curves, folder.path());
    assert!(curves.version().version > before.version);
    let assert_last_steps = |curves: &Curves| {
        let recent = as_json(&curves.answer(0, StepRange::Recent, CurveCursor::default()));
        let (steps, losses) =
            (recent["last"].as_array().unwrap(), recent["series"]["loss"]["mean"].as_array().unwrap());
        let last =
            steps.iter().zip(losses).rev().take(3).map(|(step, loss)| (step.as_u64().unwrap(), loss.as_f64().unwrap()));
        assert_eq!(last.collect::<Vec<_>>(), [(1003, 5.0), (1002, 5.0), (1001, 1.0)]);
    };
    assert_last_steps(&curves);
    // A restarted coordinator computes the same curves.
    let mut fresh_curves = Curves::new(1);
    read_journal(&mut fresh_curves, folder.path());
    assert_last_steps(&fresh_curves);
    // The last bucket has no step of the old branch beyond the branch point.
    let full = as_json(&curves.answer(0, StepRange::Full, CurveCursor::default()));
    let last = |values: &Value| values.as_array().unwrap().last().unwrap().as_f64().unwrap();
    assert_eq!((last(&full["first"]), last(&full["last"])), (1001.0, 1003.0));
    assert!((last(&full["series"]["loss"]["mean"]) - 11.0 / 3.0).abs() < 1e-6);
}

#[tokio::test]
async fn captions_with_markup_are_sent_as_json() {
    let mut server = TestServer::new(None).await;
    server.write_evaluations();
    let (code, list) = server.get("/api/evaluations").await;
    let ids: Vec<&str> =
        list["evaluations"].as_array().unwrap().iter().map(|evaluation| evaluation["id"].as_str().unwrap()).collect();
    assert_eq!((code, ids), (200, vec!["0-0-1", "0-10-1"]));
    assert_eq!(list["better"]["cider"], "higher");
    let (code, head, body) = server.request("GET", "/api/captions?before=0-0-1&after=0-10-1", "", "").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/json") && head.contains("nosniff"), "{head}");
    assert!(head.contains("default-src 'none'") && !head.contains("unsafe"), "{head}");
    let captions: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(captions["images"], 4);
    let item = &captions["items"][1];
    assert_eq!((&item["image"], &item["index"]), (&"1.jpg".into(), &1.into()));
    assert_eq!(
        (&item["before"]["text"], &item["after"]["text"]),
        (&"a cat".into(), &"<img src=x onerror=alert(3)>".into())
    );
    assert_eq!(item["references"][0], "</script><script>alert(2)</script>");
    let (_, last_page) = server.get("/api/captions?before=9-9-9&after=0-10-1&offset=3").await;
    assert_eq!((&last_page["items"][0]["index"], &last_page["items"][0]["before"]), (&3.into(), &Value::Null));
}

#[tokio::test]
async fn the_number_and_size_of_shown_references_is_limited() {
    let mut server = TestServer::new(None).await;
    server.write_evaluations();
    let caption = EvaluatedCaption {
        image: "1.jpg".into(),
        references: vec!["ü".repeat(30_000); 1_000],
        ..EvaluatedCaption::default()
    };
    let position = Position { stage: 0, step: 20 };
    let evaluated = Record::Evaluated { position, generation: 1, evaluation: 20, metrics: [].into() };
    server.journal.stage_captions(20, vec![caption]);
    server.journal.write(&[evaluated]).unwrap();
    let (code, captions) = server.get("/api/captions?before=0-0-1&after=0-20-1").await;
    let references = captions["items"][0]["references"].as_array().unwrap();
    assert_eq!((code, references.len()), (200, 32));
    assert_eq!(references[31], "ü".repeat(1024));
}

#[tokio::test]
async fn only_images_of_evaluations_are_served() {
    let mut server = TestServer::new(None).await;
    server.write_evaluations();
    let (code, head, _) = server.request("GET", "/api/image?evaluation=0-10-1&index=1", "", "").await;
    assert!(code == 200 && head.contains("content-type: image/jpeg"), "{head}");
    // A path outside of the folder, a missing file, a file that is not an image, an unknown index.
    for (index, why) in [(0, "not in a folder"), (2, "gone.jpg"), (3, "neither JPEG"), (4, "no image of this index")] {
        let (code, answer) = server.get(&format!("/api/image?evaluation=0-10-1&index={index}")).await;
        let error = answer["error"].as_str().unwrap();
        assert!(code == 404 && error.contains(why), "{error}");
    }
    for wrong in ["0-10", "0-10-1-1", "../../etc", "-1-1-1", "0-99999999999999999999-1", "4294967296-0-0"] {
        assert_eq!(server.get(&format!("/api/image?evaluation={wrong}&index=0")).await.0, 400, "{wrong}");
    }
    for wrong in ["-1", "99999999999", "x"] {
        assert_eq!(server.get(&format!("/api/image?evaluation=0-10-1&index={wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn events_are_listed_newest_first() {
    use dico_engine::EventKind;
    let mut server = TestServer::new(None).await;
    server.journal.write(&[generation_record(1, 0)]).unwrap();
    let lost =
        |rank: u32| Record::Event { kind: EventKind::Lost, detail: json!({ "rank": rank, "reason": "<b>x</b>" }) };
    server.journal.write(&(0..150).map(lost).collect::<Vec<_>>()).unwrap();
    let (_, events) = server.get("/api/events").await;
    let events = events.as_array().unwrap();
    assert_eq!((events.len(), &events[0]["detail"]["reason"]), (100, &"<b>x</b>".into()));
    assert!(events.iter().all(|event| event["kind"] == "lost"));
}

#[tokio::test]
async fn commands_require_the_admin_token() {
    let server_without_token = TestServer::new(None).await;
    let (code, _, body) = server_without_token
        .request("POST", "/api/pause", &format!("authorization: Bearer {ADMIN_TOKEN}\r\n"), "")
        .await;
    assert!(code == 403 && body.contains("--admin-token-file"), "{body}");
    let server = TestServer::new(Some(ADMIN_TOKEN)).await;
    for header in ["", "authorization: Bearer another-token-of-the-test\r\n", "authorization: Basic eA==\r\n"] {
        for command in ["pause", "resume", "checkpoint", "evaluate", "drain"] {
            let (code, _, body) = server.request("POST", &format!("/api/{command}"), header, "").await;
            assert!(code == 401 && !body.contains(ADMIN_TOKEN), "{command}: {body}");
        }
    }
    let admin = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
    assert_eq!(server.request("POST", "/api/stop", &admin, "").await.0, 404, "the HTTP API does not have this command");
    for body in ["", "{}", "{\"rank\": -1}", "{\"rank\": 1, \"x\": 2}", "[]"] {
        assert_eq!(server.request("POST", "/api/drain", &admin, body).await.0, 400, "{body}");
    }
    assert_eq!(server.request("POST", "/api/drain", &admin, &" ".repeat(2000)).await.0, 413);
    assert_eq!(server.request("GET", "/api/pause", &admin, "").await.0, 405);
    let metrics = server.metrics.handle().render();
    assert!(metrics.contains("dico_refusals_total{reason=\"admin_token\"} 15"), "{metrics}");
    assert!(metrics.contains("dico_refusals_total{reason=\"malformed\"} 5"), "{metrics}");
}

#[tokio::test]
async fn many_open_connections_do_not_lock_out_other_clients() {
    let server = TestServer::new(None).await;
    let mut connections = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        stream.write_all(b"GET /api/events HTTP/1.1\r\nhost:").await.unwrap();
        connections.push(stream);
    }
    let (code, _, _) = server.request("GET", "/metrics", "", "").await;
    assert_eq!(code, 200);
    // With the request, 301 connections exceed the limit of 256 by 45. The oldest were closed, and
    // counted as refusals.
    assert_eq!(connections[0].read(&mut [0; 64]).await.unwrap_or(0), 0);
    assert!(server.metrics.handle().render().contains("dico_refusals_total{reason=\"busy\"} 4"));
}

#[tokio::test]
async fn oversized_requests_and_unknown_paths_are_refused() {
    let server = TestServer::new(None).await;
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    let long = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\nlong: {}\r\n\r\n", "x".repeat(1 << 20));
    // The connection may be closed before the whole request is sent; then there is no answer.
    _ = stream.write_all(long.as_bytes()).await;
    let mut answer = String::new();
    _ = stream.read_to_string(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let (code, answer) = server.get("/nowhere").await;
    assert!(code == 404 && answer["error"].as_str().unwrap().contains("at /"));
    assert_eq!(server.get("/api/history?stage=x").await.0, 400);
    // An unknown stage has no data.
    let (code, answer) = server.get("/api/history?stage=4000000000").await;
    assert_eq!((code, &answer["first"]), (200, &serde_json::json!([])));
}

#[tokio::test]
async fn streams_are_limited_and_end_with_the_coordinator() {
    let server = TestServer::new(None).await;
    let mut streams = Vec::new();
    for _ in 0..65 {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        stream.write_all(b"GET /api/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        streams.push((String::from_utf8_lossy(&start).into_owned(), stream));
    }
    let answers: Vec<&str> = streams.iter().map(|(start, _)| &start[9..]).collect();
    assert_eq!((answers.iter().filter(|code| **code == "200").count(), answers[64]), (64, "503"));
    drop(server.shutdown_sender);
    let (_, mut stream) = streams.swap_remove(0);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn every_file_of_the_web_page_is_served_and_loads_nothing_else() {
    let server = TestServer::new(None).await;
    let (code, head, html) = server.request("GET", "/", "", "").await;
    assert!(code == 200 && head.contains("text/html") && head.contains("trusted-types"), "{head}");
    let mut files = vec!["page/main.js".to_owned(), "page/style.css".into(), "page/icon.svg".into()];
    let mut checked = 0;
    while checked < files.len() {
        let (code, _, text) = server.request("GET", &format!("/{}", files[checked]), "", "").await;
        assert_eq!(code, 200, "{}", files[checked]);
        for import in text.lines().filter_map(|line| line.split_once("from \"./")?.1.split('"').next()) {
            let file = format!("page/{import}");
            if !files.contains(&file) {
                files.push(file);
            }
        }
        let mut other_urls = String::new();
        for line in text.lines().chain(html.lines()).filter(|line| line.contains("://") && !line.contains("www.w3.org"))
        {
            writeln!(other_urls, "{line}").unwrap();
        }
        assert!(other_urls.is_empty() && !text.contains("innerHTML"), "{other_urls}");
        checked += 1;
    }
    assert_eq!(files.len(), 18, "{files:?}");
}
