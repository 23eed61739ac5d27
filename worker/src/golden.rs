//! What tests compare with: results that `tests/parity` computed with other libraries, and weights by formula.
//!
//! The golden files hold inputs and outputs only; the weights follow from names and shapes by the rule that
//! `tests/parity/formula.py` states. `DICO_PARITY` names another folder, of full-size cases: see `make parity`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};
use weights::Archive;

use crate::nn::Parameters;
use crate::{seeds, tensors};

/// A golden file or folder.
pub fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os("DICO_PARITY").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")).join(name)
}

/// The JSON file called `name`.
pub fn json<T: DeserializeOwned>(name: &str) -> T {
    let path = path(name);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tensors of the safetensors file called `name`.
pub fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    let archive = Archive::open(&path(name)).unwrap();
    tensors::from_weights(archive.tensors())
}

/// Factors of the scales of parameters whose names end so.
pub type Gains = BTreeMap<String, f64>;

/// Gives every parameter the value that follows from its name after `prefix`, its shape and `gains`.
pub fn fill(parameters: &Parameters, prefix: &str, gains: &Gains) {
    let values = parameters.named().map(|(name, tensor)| {
        let (base, scale) = base_and_scale(name, &tensor.size());
        let gain = gains.iter().find_map(|(suffix, gain)| name.ends_with(suffix.as_str()).then_some(*gain));
        let scale = scale * gain.unwrap_or(1.0) as f32;
        (name.to_owned(), values(&format!("{prefix}{name}"), &tensor.size(), base, scale))
    });
    parameters.load(&values.collect()).unwrap();
}

/// The input called `case`, in -1..1.
pub fn input(case: &str, shape: &[i64]) -> Tensor {
    values(&format!("input.{case}"), shape, 0.0, 2.0)
}

fn values(name: &str, shape: &[i64], base: f32, scale: f32) -> Tensor {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let count = shape.iter().product::<i64>() as u64;
    let unit = |i: u64| (seeds::mix(seed.wrapping_add(i)) >> 40) as f32 / (1 << 24) as f32 - 0.5;
    let values: Vec<f32> = (0..count).map(|i| base + scale * unit(i)).collect();
    Tensor::from_slice(&values).view(shape)
}

fn base_and_scale(name: &str, shape: &[i64]) -> (f32, f32) {
    match shape {
        _ if name.ends_with("logit_scale") => (2.6592, 0.0),
        _ if name.ends_with("running_var") => (1.0, 0.5),
        [] | [_] if name.ends_with(".weight") => (1.0, 0.25),
        [] | [_] => (0.0, 0.125),
        [first, rest @ ..] => {
            // GPT-2's linear layers are stored the other way round.
            let transposed = shape.len() == 2 && name.contains("decoder.transformer.h.") && name.ends_with(".weight");
            let inputs = if transposed { *first } else { rest.iter().product() };
            let halvings = (0..).find(|&m| 24 * 4_i64.pow(m) >= inputs).unwrap();
            (0.0, 0.5_f32.powi(halvings as i32))
        }
    }
}

/// Fails unless both are alike to `tolerance` everywhere.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let difference = (found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)).abs().max().double_value(&[]);
    // A NaN is not close to anything.
    assert!(difference <= tolerance, "{what} differs by {difference}");
    println!("{what}: at most {difference:.1e} apart");
}

#[derive(serde::Deserialize)]
struct Rule {
    examples: Vec<Example>,
}

#[derive(serde::Deserialize)]
struct Example {
    name: String,
    shape: Vec<i64>,
    base: f32,
    scale: f32,
    first: Vec<f32>,
    last: f32,
}

#[test]
fn the_rule_gives_what_it_gives_in_python() {
    let rule: Rule = json("formula.json");
    assert!(!rule.examples.is_empty());
    for Example { name, shape, base, scale, first, last } in rule.examples {
        let made = Vec::<f32>::try_from(values(&name, &shape, base, scale).flatten(0, -1)).unwrap();
        assert_eq!((&made[..first.len()], made.last()), (first.as_slice(), Some(&last)), "{name}");
        if !name.starts_with("input.") {
            assert_eq!(base_and_scale(&name, &shape), (base, scale), "{name}");
        }
    }
}
