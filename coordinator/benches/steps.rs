//! Benchmark of the state machine: the reports of one step by all workers, with the summaries that
//! DiCO reports.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use config::RunFile;
use dico_engine::restored::RestoredRun;
use dico_engine::{Action, Engine, Event, RequestId, SessionId};
use divan::{Bencher, counter::ItemsCount};
use proto::PROTOCOL_VERSION;
use proto::v1::{self, directive::Directive, worker_message::Message};
use summary_statistics::Summary;

fn main() {
    divan::main();
}

#[divan::bench(args = [8, 1_000], sample_count = 200, sample_size = 1)]
fn handle_reports_of_a_step(bencher: Bencher<'_, '_>, workers: u32) {
    let (mut engine, generation) = start_run(workers);
    let summaries: HashMap<String, v1::Summary> = metric_catalogue::TRAINING_METRICS
        .into_iter()
        .map(|name| (name.to_owned(), v1::Summary::from(&Summary::of([0.25, 0.5, 0.75, 0.875, 1.0]))))
        .collect();
    let mut step = 0;
    let next_reports = || {
        step += 1;
        let report = v1::StepDone {
            position: Some(v1::Position { stage: 0, step, generation }),
            loss_sum: 1.0,
            loss_weight: 1.0,
            samples: 1,
            summaries: summaries.clone(),
            ..Default::default()
        };
        vec![report; workers as usize]
    };
    bencher.counter(ItemsCount::new(workers)).with_inputs(next_reports).bench_local_values(|reports| {
        for (session, report) in (0..).map(SessionId).zip(reports) {
            let message = Message::StepDone(report);
            divan::black_box(engine.on_event(Duration::ZERO, Event::Message { session, message }));
        }
    });
    assert_eq!(engine.state().status(Duration::ZERO).step, step, "each step is committed");
}

/// A run with a running generation, and the number of that generation.
fn start_run(workers: u32) -> (Engine, u64) {
    let text = format!(
        "
name: bench
output: /nowhere
workers: {{ min: {workers}, max: {workers} }}
data: {{ karpathy: {{ annotations: annotations.json, images: images }} }}
captioner: {{ weights: none }}
evaluator: {{ weights: none }}
stages: [{{ name: dico, objective: dico, steps: 1000000, batch: {workers}, optimizer: {{ learning_rate: 1.0e-3 }} }}]
"
    );
    let file = RunFile::parse(Path::new("bench.yaml"), &text).expect("the text above is a run file");
    let term = 0;
    let mut engine = Engine::new(file, RestoredRun::default(), term);
    let mut generation = 0;
    for session in 0..u64::from(workers) {
        let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
        let join = Event::Join {
            request: RequestId(session),
            address: [127, 0, 0, 1].into(),
            generated_join_key: session.to_string(),
            join,
        };
        let actions = engine.on_event(Duration::ZERO, join);
        let Some(Action::Admit { response, .. }) = actions.into_iter().next() else { panic!("the worker was refused") };
        let (store_address, data_set) = (format!("host:{session}"), Some(v1::DataSet::default()));
        let attach =
            v1::Attach { session_token: response.session_token, store_address, data_set, ..Default::default() };
        let actions = engine.on_event(Duration::ZERO, Event::Attach { session: SessionId(session), attach });
        for action in actions {
            if let Action::Send { directive, .. } = action
                && matches!(directive.directive, Some(Directive::Rendezvous(_)))
            {
                generation = directive.generation;
            }
        }
    }
    for session in (0..u64::from(workers)).map(SessionId) {
        let message = Message::Ready(v1::Ready { generation, position: Some(v1::Position::default()) });
        engine.on_event(Duration::ZERO, Event::Message { session, message });
    }
    (engine, generation)
}
