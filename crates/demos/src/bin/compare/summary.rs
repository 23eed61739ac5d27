use std::collections::BTreeMap;

use config::GuardAction;
use serde::Serialize;

use crate::arms::{MAX_INCORRECT_ENDINGS, MIN_GRAMMATICAL};
use crate::seed::{ArmResult, START, SeedResult};

/// The results of all seeds: `summary.json`.
#[derive(Serialize)]
pub struct Summary {
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Results by name of the arm.
    pub arms: BTreeMap<String, ArmSummary>,
    /// Claims of the paper and of this project, and whether they hold.
    pub claims: Vec<Claim>,
}

/// The results of one arm.
#[derive(Serialize)]
pub struct ArmSummary {
    /// Scores of test images at the end.
    pub test: BTreeMap<String, Spread>,
    /// Results by seed.
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

/// A claim about the arms.
#[derive(Serialize)]
pub struct Claim {
    /// The claim in words.
    pub claim: String,
    /// Seeds in which it holds.
    pub holds: Vec<u64>,
    /// Seeds in which it does not.
    pub fails: Vec<u64>,
    /// Seeds to which it does not apply: the event that it is about did not occur.
    pub not_applicable: Vec<u64>,
    /// The two compared values, by seed.
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
    /// The summary of these seeds.
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

/// The two compared values of a claim in a seed, and whether the claim holds; none if the event
/// that it is about did not occur.
type ClaimResult = ([f64; 2], Option<bool>);

/// The paper's claims, and this project's about the end token in the reward CIDEr-D and about the
/// guard. Each compares two numbers of one seed. Scores are of the test split.
fn claims(results: &[SeedResult]) -> Vec<Claim> {
    let assess = |claim: String, compare: &dyn Fn(&SeedResult) -> ClaimResult| check(results, claim, compare);
    let loses_grammar = |arm: &'static str, title: &str| {
        assess(format!("{title} ends with a share of grammatical captions below {MIN_GRAMMATICAL}"), &move |result| {
            let sides = [score(result, arm, "grammatical"), MIN_GRAMMATICAL];
            (sides, Some(sides[0] < sides[1]))
        })
    };
    let higher = |claim: &str, metric: &'static str, left: &'static str, right: &'static str| {
        assess(claim.to_owned(), &move |result| {
            let sides = [score(result, left, metric), score(result, right, metric)];
            (sides, Some(sides[0] > sides[1]))
        })
    };
    vec![
        higher("SCST on PAC-S reaches a higher PAC-S than DiCO", "pac_s", "scst_pac_s", "dico"),
        loses_grammar("scst_pac_s", "SCST on PAC-S"),
        loses_grammar("scst_clip_s", "SCST on CLIP-S"),
        higher("DiCO raises PAC-S", "pac_s", "dico", START),
        assess(
            format!("DiCO keeps the share of grammatical captions above {MIN_GRAMMATICAL} all the way"),
            &|result| {
                let curve =
                    result.arms["dico"].curve.iter().filter_map(|point| point.metrics.get("grammatical").copied());
                let sides = [curve.fold(score(result, "dico", "grammatical"), f64::min), MIN_GRAMMATICAL];
                (sides, Some(sides[0] > sides[1]))
            },
        ),
        higher("the weighted loss reaches a higher PAC-S than uniform weights", "pac_s", "dico", "dico_uniform"),
        higher(
            "the weighted loss keeps more captions grammatical than uniform weights",
            "grammatical",
            "dico",
            "dico_uniform",
        ),
        higher("the weighted loss reaches a higher PAC-S than best against worst", "pac_s", "dico", "dico_worst"),
        higher(
            "with the reference more captions are grammatical than without",
            "grammatical",
            "dico",
            "dico_no_reference",
        ),
        assess(
            format!("SCST on CIDEr-D ends with a share of incorrect endings below {MAX_INCORRECT_ENDINGS}"),
            &|result| {
                let sides = [score(result, "scst_cider", "incorrect_endings"), MAX_INCORRECT_ENDINGS];
                (sides, Some(sides[0] < sides[1]))
            },
        ),
        assess(format!("the guard goes back, to a share of grammatical captions above {MIN_GRAMMATICAL}"), &|result| {
            let sides = [score(result, "scst_guarded", "grammatical"), MIN_GRAMMATICAL];
            let acted = result.arms["scst_guarded"].guard.iter().any(|fired| fired.action == GuardAction::Rollback);
            (sides, acted.then_some(sides[0] > sides[1]))
        }),
    ]
}

fn score(result: &SeedResult, arm: &str, metric: &str) -> f64 {
    result.arms[arm].test.get(metric).copied().unwrap_or(f64::NAN)
}

fn check(results: &[SeedResult], claim: String, compare: &dyn Fn(&SeedResult) -> ClaimResult) -> Claim {
    let outcomes: BTreeMap<u64, ClaimResult> = results.iter().map(|result| (result.seed, compare(result))).collect();
    let seeds = |wanted: Option<bool>| {
        outcomes.iter().filter(|(_, (_, holds))| *holds == wanted).map(|(&seed, _)| seed).collect()
    };
    let (holds, fails, not_applicable) = (seeds(Some(true)), seeds(Some(false)), seeds(None));
    let values = outcomes.into_iter().map(|(seed, (sides, _))| (seed, sides)).collect();
    Claim { claim, holds, fails, not_applicable, values }
}
