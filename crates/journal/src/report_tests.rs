//! Any report of a step is refused, or becomes a row of the journal.

use config::testing;
use dico_engine::{
    WorkerId,
    plan::Position,
    record::Record,
    statistics::{StepMerger, StepStatistics},
};
use proptest::prelude::*;
use proto::v1;
use summary_statistics::Summary;

use super::{Journal, RecordedStep};

/// Any number that a peer can send.
fn number() -> impl Strategy<Value = f64> {
    let special = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e308, -1e308, -1.0, 0.0, f64::MIN_POSITIVE];
    prop_oneof![prop::sample::select(special.to_vec()), 0.0..100.0_f64, any::<f64>()]
}

fn summary() -> impl Strategy<Value = v1::Summary> {
    let consistent = prop::collection::vec(-1e9..1e9_f64, 0..9).prop_map(|values| (&Summary::of(values)).into());
    let count = || prop_oneof![0..9_u64, Just(u64::MAX), Just(1 << 40)];
    let buckets = || prop::collection::hash_map(any::<i32>(), count(), 0..50);
    let any = (count(), [number(), number(), number(), number()], buckets(), buckets(), count()).prop_map(
        |(count, [mean, m2, min, max], positive, negative, zero)| v1::Summary {
            count,
            mean,
            m2,
            min,
            max,
            positive,
            negative,
            zero,
        },
    );
    prop_oneof![consistent, any]
}

fn any_report() -> impl Strategy<Value = v1::StepDone> {
    let numbers = [number(), number(), number(), number(), number(), number()];
    let names = prop::sample::select(vec!["reward_chosen", "kl", "no such name"]);
    let phases = prop::sample::select(vec!["learn", "search", "no such phase"]);
    let summaries = prop::collection::hash_map(names.prop_map(str::to_owned), summary(), 0..3);
    let phase_seconds = prop::collection::hash_map(phases.prop_map(str::to_owned), number(), 0..3);
    (numbers, summaries, phase_seconds, any::<u32>(), any::<u64>()).prop_map(
        |(numbers, summaries, phase_seconds, samples, tokens)| {
            let [loss_sum, loss_weight, learning_rate, gradient_norm, seconds, all_reduce_seconds] = numbers;
            v1::StepDone {
                position: None,
                loss_sum,
                loss_weight,
                samples,
                learning_rate,
                gradient_norm,
                seconds,
                all_reduce_seconds,
                summaries,
                tokens,
                phase_seconds,
                example: None,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_report_is_refused_or_becomes_a_row_of_the_journal(reports in prop::collection::vec(any_report(), 1..4)) {
        let at = v1::Position { stage: 0, step: 1, generation: 1 };
        let read = |(id, report)| StepStatistics::from_report(WorkerId(id), report, &at).ok();
        let accepted: Vec<_> = (0..).zip(&reports).filter_map(read).collect();
        let (mut merger, world_size) = (StepMerger::default(), accepted.len());
        let merged: Vec<_> = accepted.into_iter().filter_map(|report| merger.add(world_size, report)).collect();
        prop_assert_eq!(merged.len(), usize::from(world_size > 0));
        let file = testing::run_file(vec![testing::stage("a", 2, 8, None, None)]);
        let mut journal = Journal::in_memory(&file).unwrap();
        let records: Vec<_> = merged.into_iter().map(Record::Step).collect();
        journal.write(&records).unwrap();
        let recorded = journal.into_read_only().recorded_steps(Position::default(), 9).unwrap();
        prop_assert_eq!(recorded.len(), records.len());
        for step in recorded {
            let RecordedStep { loss, learning_rate, gradient_norm, seconds, all_reduce_seconds, lag_seconds, .. } = step;
            let numbers = [loss, learning_rate, gradient_norm, seconds, all_reduce_seconds, lag_seconds];
            prop_assert!(numbers.into_iter().flatten().all(|number| !number.is_nan()), "{:?}", numbers);
        }
    }
}
