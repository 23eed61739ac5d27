use std::collections::BTreeMap;

use serde::Serialize;

use crate::arms::GRAMMATICAL;
use crate::seed::{ArmResult, START, SeedResult};

/// All seeds together: `summary.json`.
#[derive(Serialize)]
pub struct Summary {
    /// The seeds.
    pub seeds: Vec<u64>,
    /// By name of the arm.
    pub arms: BTreeMap<String, ArmSummary>,
    /// What the paper claims, and whether it holds here.
    pub claims: Vec<Claim>,
}

/// What came of one arm.
#[derive(Serialize)]
pub struct ArmSummary {
    /// Scores of test images at the end.
    pub test: BTreeMap<String, Spread>,
    /// By seed.
    pub seeds: BTreeMap<u64, ArmResult>,
}

/// A score over seeds.
#[derive(Clone, Copy, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Standard deviation of the sample; 0 of a single seed.
    pub deviation: f64,
    /// The lowest of all seeds.
    pub min: f64,
    /// The highest of all seeds.
    pub max: f64,
}

/// Something that can hold or not.
#[derive(Serialize)]
pub struct Claim {
    /// What is claimed.
    pub claim: String,
    /// Seeds in which it holds.
    pub holds: Vec<u64>,
    /// Seeds in which it does not.
    pub fails: Vec<u64>,
    /// The two sides' values, by seed.
    pub values: BTreeMap<u64, [f64; 2]>,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        Self {
            mean,
            deviation: (squares / (count - 1.0).max(1.0)).sqrt(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

impl Summary {
    /// Of the seeds that were run.
    pub fn new(results: &[SeedResult]) -> Self {
        let names = results.first().map(|result| result.arms.keys()).into_iter().flatten();
        let arms = names.map(|name| {
            let seeds: BTreeMap<u64, ArmResult> =
                results.iter().map(|result| (result.seed, result.arms[name].clone())).collect();
            let metrics = seeds.values().next().map(|arm| arm.test.keys()).into_iter().flatten();
            let values =
                |metric: &String| seeds.values().filter_map(|arm| arm.test.get(metric).copied()).collect::<Vec<_>>();
            let test = metrics.map(|metric| (metric.clone(), Spread::of(&values(metric)))).collect();
            (name.clone(), ArmSummary { test, seeds })
        });
        Self {
            seeds: results.iter().map(|result| result.seed).collect(),
            arms: arms.collect(),
            claims: claims(results),
        }
    }
}

/// An arm's score of test images.
type Side = (&'static str, &'static str);

/// The paper's claims, in terms of this world. Each compares two numbers of one seed.
fn claims(results: &[SeedResult]) -> Vec<Claim> {
    let at_least = |claim: &str, left: Side, right: Side| {
        judge(results, claim, |result| [score(result, left), score(result, right)], |[left, right]| left >= right)
    };
    let above = |claim: &str, left: Side, right: Side| {
        judge(results, claim, |result| [score(result, left), score(result, right)], |[left, right]| left > right)
    };
    let stays = format!("DiCO keeps the share of grammatical captions above {GRAMMATICAL} all the way");
    let lowest = |result: &SeedResult| {
        let curve = result.arms["dico"].curve.iter().filter_map(|point| point.metrics.get("grammatical").copied());
        [curve.fold(score(result, ("dico", "grammatical")), f64::min), GRAMMATICAL]
    };
    let caught = |result: &SeedResult| [score(result, ("scst_guarded", "grammatical")), GRAMMATICAL];
    vec![
        above("SCST on PAC-S reaches a higher PAC-S than DiCO", ("scst_pac_s", "pac_s"), ("dico", "pac_s")),
        above(
            "SCST on PAC-S makes fewer grammatical captions than teacher forcing",
            (START, "grammatical"),
            ("scst_pac_s", "grammatical"),
        ),
        above(
            "SCST on CLIP-S makes fewer grammatical captions than teacher forcing",
            (START, "grammatical"),
            ("scst_clip_s", "grammatical"),
        ),
        above("DiCO raises PAC-S", ("dico", "pac_s"), (START, "pac_s")),
        judge(results, &stays, lowest, |[left, right]| left > right),
        at_least(
            "the weighted loss reaches at least the PAC-S of uniform weights",
            ("dico", "pac_s"),
            ("dico_uniform", "pac_s"),
        ),
        at_least(
            "the weighted loss reaches at least the PAC-S of best against worst",
            ("dico", "pac_s"),
            ("dico_worst", "pac_s"),
        ),
        at_least(
            "with the reference captions are at least as grammatical as without",
            ("dico", "grammatical"),
            ("dico_no_reference", "grammatical"),
        ),
        judge(
            results,
            &format!("the guard ends SCST on PAC-S with grammatical captions above {GRAMMATICAL}"),
            caught,
            |[left, right]| left > right,
        ),
    ]
}

fn score(result: &SeedResult, (arm, metric): Side) -> f64 {
    result.arms[arm].test.get(metric).copied().unwrap_or(f64::NAN)
}

fn judge(
    results: &[SeedResult],
    claim: &str,
    sides: impl Fn(&SeedResult) -> [f64; 2],
    holds: impl Fn([f64; 2]) -> bool,
) -> Claim {
    let values: BTreeMap<u64, [f64; 2]> = results.iter().map(|result| (result.seed, sides(result))).collect();
    let (yes, no): (Vec<_>, Vec<_>) = values.iter().partition(|(_, sides)| holds(**sides));
    let seeds = |these: Vec<(&u64, &[f64; 2])>| these.into_iter().map(|(&seed, _)| seed).collect();
    Claim { claim: claim.to_owned(), holds: seeds(yes), fails: seeds(no), values }
}
