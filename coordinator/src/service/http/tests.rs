//! HTTP answers on the loopback, from journals that the tests write.

mod attacks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::SocketAddr,
    path::Path,
};

use proptest::prelude::*;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    journal::{
        Journal,
        browse::{Distribution, Recorded},
    },
    run::{
        captions::Item,
        plan::Place,
        record::{EventKind, Record, Source},
        statistics::StepStatistics,
        testing,
    },
    service::metrics::Metrics,
};
use curves::{CurveBatch, CurveDelta};
use proto::v1;
use transport::Token;

const ADMIN: &str = "the-token-of-the-administrators";

/// A coordinator without workers, with its HTTP server.
struct Site {
    http: SocketAddr,
    journal: Journal,
    metrics: Metrics,
    closing: watch::Sender<()>,
    _driver: mpsc::Receiver<Input>,
    output: tempfile::TempDir,
}

impl Site {
    async fn new(admin: Option<&str>) -> Self {
        let output = tempfile::tempdir().unwrap();
        let mut file = testing::run_file(vec![testing::stage("a", 2000, 8, None, None)]);
        let images = output.path().join("images");
        std::fs::create_dir_all(&images).unwrap();
        std::fs::write(images.join("1.jpg"), [0xff, 0xd8, 0xff, 0xe0]).unwrap();
        std::fs::write(images.join("page.jpg"), "<script>alert(1)</script>").unwrap();
        std::fs::write(output.path().join("secret.jpg"), [0xff, 0xd8, 0xff, 0xe0]).unwrap();
        file.data.karpathy = Some(config::Karpathy { annotations: output.path().join("dataset.json"), images });
        let listed = ["1.jpg", "page.jpg", "gone.jpg"]
            .map(|name| serde_json::json!({ "filename": name, "split": "val", "sentences": [{ "raw": "a" }] }));
        std::fs::write(output.path().join("dataset.json"), json!({ "images": listed }).to_string()).unwrap();
        let journal = Journal::open(&output.path().join("state"), &file).unwrap();
        let (inputs, driver) = mpsc::channel(8);
        let metrics = Metrics::new(&file);
        let admin = admin.map(|token| Token::parse(token, "a test").unwrap());
        let tokens = Arc::new(Tokens { join: None, admin });
        let desk = Arc::new(AppState::new(file, output.path().join("state"), inputs, tokens, metrics.refusals()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = listener.local_addr().unwrap();
        let (closing, closed) = watch::channel(());
        let ready = || watch::channel(Ok(())).1;
        let routes = routes(Arc::clone(&desk), metrics.handle(), [ready(), ready()], 7070, AllowedHosts::of(http));
        let mut ends = closed.clone();
        tokio::spawn(desk.keep(async move { _ = ends.changed().await }));
        tokio::spawn(serve(listener, routes, metrics.refusals(), closed));
        Self { http, journal, metrics, closing, _driver: driver, output }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
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
        let (code, _, body) = self.ask("GET", path, "", "").await;
        (code, serde_json::from_str(&body).unwrap_or_default())
    }

    /// The folder with the images of its data set.
    fn images(&self) -> std::path::PathBuf {
        self.output.path().join("images")
    }

    fn write_evaluations(&mut self) {
        let place = Place { stage: 0, step: 0 };
        let formed = Record::Formed {
            generation: 1,
            term: 0,
            members: vec![],
            cause: "start".into(),
            start: place,
            source: Source::Seed,
        };
        let item = |image: &str, caption: &str| Item {
            image: image.into(),
            caption: caption.into(),
            references: vec!["</script><script>alert(2)</script>".into()],
            scores: [("pac_s".to_owned(), 0.5)].into(),
            ..Item::default()
        };
        let evaluated = |step, caption: &str| Record::Evaluated {
            place: Place { stage: 0, step },
            generation: 1,
            metrics: [("cider".to_owned(), step as f64)].into(),
            items: ["../secret.jpg", "1.jpg", "gone.jpg", "page.jpg"].map(|image| item(image, caption)).into(),
        };
        let records = [formed, evaluated(0, "a cat"), evaluated(10, "<img src=x onerror=alert(3)>")];
        self.journal.write(&records).unwrap();
    }
}

fn stepped(step: u64, generation: u64, loss: f64) -> Record {
    let report = v1::StepDone {
        loss_sum: loss,
        loss_weight: 1.0,
        samples: 8,
        seconds: 0.5,
        summaries: [("kl".into(), (&statistics::Summary::of([loss / 2.0])).into())].into(),
        ..v1::StepDone::default()
    };
    Record::Step(StepStatistics::read(0, &report, &v1::Position { stage: 0, step, generation }).unwrap())
}

fn formed(generation: u64, step: u64) -> Record {
    let start = Place { stage: 0, step };
    Record::Formed { generation, term: 0, members: vec![], cause: "x".into(), start, source: Source::Seed }
}

fn read_all(curves: &mut Curves, state: &Path) {
    let history = crate::journal::history::History::open(state).unwrap();
    while curves.take(curves.next()(&history).unwrap()) {}
}

fn as_json(piece: &CurveDelta) -> Value {
    serde_json::to_value(piece).unwrap()
}

fn recorded(step: u64, loss: Option<f64>) -> Recorded {
    let mut numbers = [None; 7];
    numbers[0] = loss;
    let reward = Distribution { mean: loss, p50: loss, ..Distribution::default() };
    let summaries = [("reward_chosen".to_owned(), reward)].into();
    Recorded { place: Place { stage: 0, step }, generation: 1, at: step as f64, numbers, summaries }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The buckets are those of a plain computation over all steps, in whatever batches the steps
    /// were read.
    #[test]
    fn buckets_are_those_of_a_plain_computation(
        losses in prop::collection::vec(prop::option::weighted(0.95, -9.0..9.0_f64), 1..3000), at_once in 1..900_usize,
    ) {
        let mut curves = Curves::new(1);
        let all: Vec<Recorded> = (1..).zip(&losses).map(|(step, loss)| recorded(step, *loss)).collect();
        for steps in all.chunks(at_once) {
            curves.take(CurveBatch { steps: steps.to_vec(), ..CurveBatch::default() });
        }
        let piece = as_json(&curves.piece(0, Span::Whole, CurveCursor::default()));
        let width = piece["width"].as_u64().unwrap() as usize;
        prop_assert_eq!(width, losses.len().div_ceil(curves::MAX_BUCKETS).next_power_of_two());
        let expected: Vec<Vec<f64>> = losses.chunks(width).map(|chunk| chunk.iter().copied().flatten().collect()).collect();
        let close = |found: &Value, expected: Option<f64>| match (found.as_f64(), expected) {
            (Some(found), Some(expected)) => (found - expected).abs() < 1e-5,
            (found, expected) => found.is_none() && expected.is_none(),
        };
        let some = losses.iter().any(Option::is_some);
        for (index, chunk) in expected.iter().enumerate().filter(|_| some) {
            let loss = &piece["series"]["loss"];
            let mean = (!chunk.is_empty()).then(|| chunk.iter().sum::<f64>() / chunk.len() as f64);
            prop_assert!(close(&loss["mean"][index], mean));
            if width > 1 {
                prop_assert!(close(&loss["min"][index], chunk.iter().copied().reduce(f64::min)));
                prop_assert!(close(&loss["max"][index], chunk.iter().copied().reduce(f64::max)));
            }
            prop_assert!(close(&piece["series"]["reward_chosen.p50"]["mean"][index], mean));
        }
        let first: Vec<u64> = (0..expected.len()).map(|index| (index * width) as u64 + 1).collect();
        prop_assert_eq!(&piece["first"], &serde_json::json!(first));
        prop_assert_eq!(piece["last"].as_array().unwrap().last().unwrap().as_u64().unwrap(), losses.len() as u64);
    }
}

#[test]
fn whoever_holds_a_piece_is_told_what_came_after() {
    let mut curves = Curves::new(5);
    let steps = |range: std::ops::RangeInclusive<u64>| range.map(|step| recorded(step, Some(1.0))).collect();
    curves.take(CurveBatch { steps: steps(1..=10), ..CurveBatch::default() });
    curves.take(CurveBatch { steps: steps(11..=12), ..CurveBatch::default() });
    let held = CurveCursor { era: 5, width: 1, from: 10 };
    for span in [Span::Whole, Span::Recent] {
        let piece = as_json(&curves.piece(0, span, held));
        assert_eq!((&piece["continues"], &piece["first"]), (&true.into(), &serde_json::json!([10, 11, 12])));
        let all = as_json(&curves.piece(0, span, CurveCursor { era: 4, ..held }));
        assert_eq!((&all["continues"], all["first"].as_array().unwrap().len()), (&false.into(), 12));
    }
    // The buckets have become wider meanwhile.
    curves.take(CurveBatch { steps: steps(13..=600), ..CurveBatch::default() });
    let piece = as_json(&curves.piece(0, Span::Whole, held));
    assert_eq!((&piece["continues"], &piece["width"]), (&false.into(), &2.into()));
    let recent = as_json(&curves.piece(0, Span::Recent, CurveCursor::default()));
    assert_eq!((&recent["first"][0], &recent["width"]), (&89.into(), &1.into()));
    // Step 10 is no longer among the recent steps: the client's data end before the first of them.
    let recent = as_json(&curves.piece(0, Span::Recent, held));
    assert_eq!((&recent["continues"], &recent["first"][0]), (&false.into(), &89.into()));
}

/// A client that asks for deltas, as the page's course.js does. It stores columns by name.
#[derive(Debug, Default)]
struct Client {
    held: CurveCursor,
    columns: BTreeMap<String, Vec<Value>>,
}

impl Client {
    fn ask(&mut self, curves: &Curves, span: Span) {
        let piece = as_json(&curves.piece(0, span, self.held));
        let more = columns(&piece);
        let first = more["first"].first();
        let mut kept = 0;
        if piece["continues"].as_bool().unwrap() {
            let same = |held: &Value| Some(held) == first;
            kept = self.columns["first"].iter().position(same).expect("a delta begins with a bucket that is held");
        } else {
            self.columns.clear();
        }
        let length = more["first"].len();
        for name in more.keys() {
            self.columns.entry(name.clone()).or_insert_with(|| vec![Value::Null; kept]);
        }
        for (name, column) in &mut self.columns {
            column.truncate(kept);
            column.extend(more.get(name).cloned().unwrap_or_else(|| vec![Value::Null; length]));
        }
        let surplus = self.columns["first"].len().saturating_sub(curves::MAX_BUCKETS);
        self.columns.values_mut().for_each(|column| _ = column.drain(..surplus));
        self.held = CurveCursor {
            era: piece["era"].as_u64().unwrap(),
            width: piece["width"].as_u64().unwrap(),
            from: self.columns["first"].last().map_or(0, |first| first.as_u64().unwrap()),
        };
    }
}

/// All columns of a piece by name.
fn columns(piece: &Value) -> BTreeMap<String, Vec<Value>> {
    let list = |value: &Value| value.as_array().unwrap().clone();
    let own = ["first", "last", "at"].map(|name| (name.to_owned(), list(&piece[name])));
    let series = piece["series"].as_object().unwrap().iter().flat_map(|(name, columns)| {
        let column = move |(of, column): (&String, &Value)| (format!("{name}.{of}"), list(column));
        columns.as_object().unwrap().iter().map(column)
    });
    own.into_iter().chain(series).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A client that polls now and then has the same data as one that asks for everything, whatever
    /// happens in between: many steps, or history that is given up.
    #[test]
    fn deltas_add_up_to_the_whole(
        whole in any::<bool>(),
        turns in prop::collection::vec((0..900_u64, prop::option::weighted(0.2, 0.0..1.0_f64), any::<bool>()), 1..20),
    ) {
        let span = if whole { Span::Whole } else { Span::Recent };
        let (mut curves, mut client) = (Curves::new(3), Client::default());
        let (mut step, mut generation, mut cuts) = (0, 1, BTreeSet::new());
        for (more, back, asks) in turns {
            if let Some(share) = back {
                generation += 1;
                step = (step as f64 * share) as u64;
                cuts.insert((generation, Place { stage: 0, step }));
                let kept = curves.take(CurveBatch { cuts: cuts.clone(), ..CurveBatch::default() });
                // The steps before the cut whose bucket was removed are read again.
                if kept {
                    let last = curves.piece(0, Span::Whole, CurveCursor::default());
                    let last = as_json(&last)["last"].as_array().unwrap().last().map_or(0, |last| last.as_u64().unwrap());
                    let steps = (last + 1..=step).map(|step| Recorded { generation: 1, ..recorded(step, Some(0.5)) });
                    curves.take(CurveBatch { cuts: cuts.clone(), steps: steps.collect(), ..CurveBatch::default() });
                }
            }
            let loss = |step: u64| (!step.is_multiple_of(7)).then_some(step as f64);
            let steps = (step + 1..=step + more).map(|step| Recorded { generation, ..recorded(step, loss(step)) });
            curves.take(CurveBatch { cuts: cuts.clone(), steps: steps.collect(), ..CurveBatch::default() });
            step += more;
            if asks {
                client.ask(&curves, span);
                let all = columns(&as_json(&curves.piece(0, span, CurveCursor::default())));
                let null = |column: &Vec<Value>| column.iter().all(Value::is_null);
                let held: BTreeMap<_, _> =
                    client.columns.clone().into_iter().filter(|(_, column)| column.is_empty() || !null(column)).collect();
                prop_assert_eq!(held, all);
            }
        }
    }
}

#[test]
fn what_was_trained_beyond_the_selected_state_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let stages = vec![testing::stage("a", 12, 8, None, None), testing::stage("b", 12, 8, None, None)];
    let mut journal = Journal::open(folder.path(), &testing::run_file(stages)).unwrap();
    let mut curves = Curves::new(1);
    let mut records = vec![formed(1, 0)];
    records.extend((1..=6).map(|step| stepped(step, 1, 1.0)));
    // Steps 5 and 6 are lost, and trained again.
    records.push(formed(2, 4));
    records.extend((5..=12).map(|step| stepped(step, 2, 2.0)));
    journal.write(&records).unwrap();
    read_all(&mut curves, folder.path());
    let detail = json!({ "stage": 0, "step": 8, "generation": 2, "cause": "best_state", "reason": "x" });
    journal.write(&[Record::Event { what: EventKind::StageEnded, detail }, formed(3, 8)]).unwrap();
    read_all(&mut curves, folder.path());
    let mut anew = Curves::new(1);
    read_all(&mut anew, folder.path());
    for curves in [&curves, &anew] {
        let piece = as_json(&curves.piece(0, Span::Whole, CurveCursor::default()));
        assert_eq!(piece["last"], json!((1..=12).collect::<Vec<u64>>()));
        let losses: Vec<f64> = serde_json::from_value(piece["series"]["loss"]["mean"].clone()).unwrap();
        assert_eq!(losses, [[1.0; 4], [2.0; 4], [2.0; 4]].concat());
    }
}

#[test]
fn what_was_given_up_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal =
        Journal::open(folder.path(), &testing::run_file(vec![testing::stage("a", 2000, 8, None, None)])).unwrap();
    let mut curves = Curves::new(1);
    let mut records = vec![formed(1, 0)];
    records.extend((1..=1300).map(|step| stepped(step, 1, 1.0)));
    journal.write(&records).unwrap();
    read_all(&mut curves, folder.path());
    let before = curves.version();
    // Back to step 1001, in the middle of a bucket of four, with other losses from there on.
    journal.write(&[formed(2, 1001), stepped(1002, 2, 5.0), stepped(1003, 2, 5.0)]).unwrap();
    read_all(&mut curves, folder.path());
    assert!(curves.version().era > before.era);
    let expect = |curves: &Curves| {
        let recent = as_json(&curves.piece(0, Span::Recent, CurveCursor::default()));
        let (steps, losses) =
            (recent["last"].as_array().unwrap(), recent["series"]["loss"]["mean"].as_array().unwrap());
        let last =
            steps.iter().zip(losses).rev().take(3).map(|(step, loss)| (step.as_u64().unwrap(), loss.as_f64().unwrap()));
        assert_eq!(last.collect::<Vec<_>>(), [(1003, 5.0), (1002, 5.0), (1001, 1.0)]);
    };
    expect(&curves);
    // A coordinator that starts now computes the same curves.
    let mut anew = Curves::new(1);
    read_all(&mut anew, folder.path());
    expect(&anew);
    // The bucket has only the steps of the old branch before the cut.
    let whole = as_json(&curves.piece(0, Span::Whole, CurveCursor::default()));
    let last = |values: &Value| values.as_array().unwrap().last().unwrap().as_f64().unwrap();
    assert_eq!((last(&whole["first"]), last(&whole["last"])), (1001.0, 1003.0));
    assert!((last(&whole["series"]["loss"]["mean"]) - 11.0 / 3.0).abs() < 1e-6);
}

#[tokio::test]
async fn captions_are_data_and_stay_so() {
    let mut site = Site::new(None).await;
    site.write_evaluations();
    let (code, list) = site.get("/api/evaluations").await;
    let ids: Vec<&str> =
        list["evaluations"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!((code, ids), (200, vec!["0-0-1", "0-10-1"]));
    assert_eq!(list["better"]["cider"], "higher");
    let (code, head, body) = site.ask("GET", "/api/captions?before=0-0-1&after=0-10-1", "", "").await;
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
    let (_, further) = site.get("/api/captions?before=9-9-9&after=0-10-1&from=3").await;
    assert_eq!((&further["items"][0]["index"], &further["items"][0]["before"]), (&3.into(), &Value::Null));
}

#[tokio::test]
async fn of_many_and_long_references_some_are_shown() {
    let mut site = Site::new(None).await;
    site.write_evaluations();
    let item = Item { image: "1.jpg".into(), references: vec!["ü".repeat(30_000); 1_000], ..Item::default() };
    let place = Place { stage: 0, step: 20 };
    let evaluated = Record::Evaluated { place, generation: 1, metrics: [].into(), items: vec![item] };
    site.journal.write(&[evaluated]).unwrap();
    let (code, captions) = site.get("/api/captions?before=0-0-1&after=0-20-1").await;
    let references = captions["items"][0]["references"].as_array().unwrap();
    assert_eq!((code, references.len()), (200, 32));
    assert_eq!(references[31], "ü".repeat(1024));
}

#[tokio::test]
async fn only_images_of_evaluations_are_shown() {
    let mut site = Site::new(None).await;
    site.write_evaluations();
    let (code, head, _) = site.ask("GET", "/api/image?evaluation=0-10-1&index=1", "", "").await;
    assert!(code == 200 && head.contains("content-type: image/jpeg"), "{head}");
    // A name that leads out of the folder, a missing file, a file that is no image, an unknown
    // index.
    for (index, why) in [(0, "not in a folder"), (2, "gone.jpg"), (3, "neither JPEG"), (4, "no such image")] {
        let (code, answer) = site.get(&format!("/api/image?evaluation=0-10-1&index={index}")).await;
        let error = answer["error"].as_str().unwrap();
        assert!(code == 404 && error.contains(why), "{error}");
    }
    for wrong in ["0-10", "0-10-1-1", "../../etc", "-1-1-1", "0-99999999999999999999-1", "4294967296-0-0"] {
        assert_eq!(site.get(&format!("/api/image?evaluation={wrong}&index=0")).await.0, 400, "{wrong}");
    }
    for wrong in ["-1", "99999999999", "x"] {
        assert_eq!(site.get(&format!("/api/image?evaluation=0-10-1&index={wrong}")).await.0, 400, "{wrong}");
    }
}

#[tokio::test]
async fn events_are_told_with_the_newest_first() {
    use crate::run::record::EventKind;
    let mut site = Site::new(None).await;
    site.journal.write(&[formed(1, 0)]).unwrap();
    let lost =
        |rank: u32| Record::Event { what: EventKind::Lost, detail: json!({ "rank": rank, "reason": "<b>x</b>" }) };
    site.journal.write(&(0..150).map(lost).collect::<Vec<_>>()).unwrap();
    let (_, events) = site.get("/api/events").await;
    let events = events.as_array().unwrap();
    assert_eq!((events.len(), &events[0]["detail"]["reason"]), (100, &"<b>x</b>".into()));
    assert!(events.iter().all(|event| event["kind"] == "lost"));
}

#[tokio::test]
async fn commands_need_the_admin_token_everywhere() {
    let none = Site::new(None).await;
    let (code, _, body) = none.ask("POST", "/api/pause", &format!("authorization: Bearer {ADMIN}\r\n"), "").await;
    assert!(code == 403 && body.contains("--admin-token-file"), "{body}");
    let site = Site::new(Some(ADMIN)).await;
    for header in ["", "authorization: Bearer another-token-of-nobody\r\n", "authorization: Basic eA==\r\n"] {
        for command in ["pause", "resume", "checkpoint", "evaluate", "drain"] {
            let (code, _, body) = site.ask("POST", &format!("/api/{command}"), header, "").await;
            assert!(code == 401 && !body.contains(ADMIN), "{command}: {body}");
        }
    }
    let admin = format!("authorization: Bearer {ADMIN}\r\n");
    assert_eq!(site.ask("POST", "/api/stop", &admin, "").await.0, 404, "the page has no such command");
    for body in ["", "{}", "{\"rank\": -1}", "{\"rank\": 1, \"x\": 2}", "[]"] {
        assert_eq!(site.ask("POST", "/api/drain", &admin, body).await.0, 400, "{body}");
    }
    assert_eq!(site.ask("POST", "/api/drain", &admin, &" ".repeat(2000)).await.0, 413);
    assert_eq!(site.ask("GET", "/api/pause", &admin, "").await.0, 405);
    let metrics = site.metrics.handle().render();
    assert!(metrics.contains("dico_refusals_total{reason=\"admin_token\"} 15"), "{metrics}");
    assert!(metrics.contains("dico_refusals_total{reason=\"malformed\"} 5"), "{metrics}");
}

#[tokio::test]
async fn whoever_holds_connections_open_keeps_nobody_out() {
    let site = Site::new(None).await;
    let mut held = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(site.http).await.unwrap();
        stream.write_all(b"GET /api/events HTTP/1.1\r\nhost:").await.unwrap();
        held.push(stream);
    }
    let (code, _, _) = site.ask("GET", "/metrics", "", "").await;
    assert_eq!(code, 200);
    // The oldest connections were closed, and counted.
    assert_eq!(held[0].read(&mut [0; 64]).await.unwrap_or(0), 0);
    assert!(site.metrics.handle().render().contains("dico_refusals_total{reason=\"busy\"} 4"));
}

#[tokio::test]
async fn what_is_too_large_or_nowhere_is_refused() {
    let site = Site::new(None).await;
    let mut stream = TcpStream::connect(site.http).await.unwrap();
    let long = format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\nlong: {}\r\n\r\n", "x".repeat(1 << 20));
    // The connection may be closed before the whole request is sent; then there is no answer.
    _ = stream.write_all(long.as_bytes()).await;
    let mut answer = String::new();
    _ = stream.read_to_string(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let (code, answer) = site.get("/nowhere").await;
    assert!(code == 404 && answer["error"].as_str().unwrap().contains("at /"));
    assert_eq!(site.get("/api/history?stage=x").await.0, 400);
    // An unknown stage has no data.
    let (code, piece) = site.get("/api/history?stage=4000000000").await;
    assert_eq!((code, &piece["first"]), (200, &serde_json::json!([])));
}

#[tokio::test]
async fn streams_are_bounded_and_end_with_the_coordinator() {
    let site = Site::new(None).await;
    let mut streams = Vec::new();
    for _ in 0..65 {
        let mut stream = TcpStream::connect(site.http).await.unwrap();
        stream.write_all(b"GET /api/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        streams.push((String::from_utf8_lossy(&start).into_owned(), stream));
    }
    let answers: Vec<&str> = streams.iter().map(|(start, _)| &start[9..]).collect();
    assert_eq!((answers.iter().filter(|code| **code == "200").count(), answers[64]), (64, "503"));
    drop(site.closing);
    let (_, mut stream) = streams.swap_remove(0);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn every_part_of_the_page_is_there_and_needs_nothing_else() {
    let site = Site::new(None).await;
    let (code, head, html) = site.ask("GET", "/", "", "").await;
    assert!(code == 200 && head.contains("text/html") && head.contains("trusted-types"), "{head}");
    let mut parts = vec!["page/main.js".to_owned(), "page/style.css".into(), "page/icon.svg".into()];
    let mut seen = 0;
    while seen < parts.len() {
        let (code, _, text) = site.ask("GET", &format!("/{}", parts[seen]), "", "").await;
        assert_eq!(code, 200, "{}", parts[seen]);
        for import in text.lines().filter_map(|line| line.split_once("from \"./")?.1.split('"').next()) {
            let part = format!("page/{import}");
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        let mut foreign = String::new();
        for line in text.lines().chain(html.lines()).filter(|line| line.contains("://") && !line.contains("www.w3.org"))
        {
            writeln!(foreign, "{line}").unwrap();
        }
        assert!(foreign.is_empty() && !text.contains("innerHTML"), "{foreign}");
        seen += 1;
    }
    assert_eq!(parts.len(), 17, "{parts:?}");
}
