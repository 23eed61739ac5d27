//! Golden files: the expected results of tests, which `tests/parity` computes with other libraries
//! (transformers, open_clip, PyTorch) for weights given by a formula.
//!
//! The golden files contain only inputs and outputs. The weights follow from names and shapes by
//! the rule in `tests/parity/formula.py`. The environment variable `DICO_PARITY` names another
//! folder, with full-size cases: see `make parity`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};
use weights::Archive;

use crate::nn::Parameters;
use crate::{seeds, tensor_conversion, testing};

/// The path of a golden file or folder.
pub fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os("DICO_PARITY").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")).join(name)
}

/// The content of the JSON file called `name`.
pub fn json<T: DeserializeOwned>(name: &str) -> T {
    let path = path(name);
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tensors of the safetensors file called `name`.
pub fn tensors(name: &str) -> BTreeMap<String, Tensor> {
    let archive = Archive::open(&path(name)).unwrap();
    tensor_conversion::from_weights(archive.tensors())
}

/// Factors for the ranges of parameters' values, by the suffix of the parameters' names.
pub type ParameterGains = BTreeMap<String, f64>;

/// Sets each parameter to the value that follows from its name after `prefix`, its shape and
/// `gains`.
pub fn fill_by_formula(parameters: &Parameters, prefix: &str, gains: &ParameterGains) {
    let values = parameters.named_parameters().map(|(name, tensor)| {
        let (base, scale) = base_and_scale(name, &tensor.size());
        let gain = gains.iter().find_map(|(suffix, gain)| name.ends_with(suffix.as_str()).then_some(*gain));
        let scale = scale * gain.unwrap_or(1.0) as f32;
        (name.to_owned(), values_by_formula(&format!("{prefix}{name}"), &tensor.size(), base, scale))
    });
    parameters.load(&values.collect()).unwrap();
}

/// The input `case` of this shape, in -1..1, on the device of tests.
pub fn input_by_formula(case: &str, shape: &[i64]) -> Tensor {
    values_by_formula(&format!("input.{case}"), shape, 0.0, 2.0).to_device(testing::device())
}

/// Pseudo-random values that depend on `name`, in `base` - `scale` / 2..`base` + `scale` / 2.
fn values_by_formula(name: &str, shape: &[i64], base: f32, scale: f32) -> Tensor {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let count = shape.iter().product::<i64>() as u64;
    let unit = |i: u64| (seeds::mix(seed.wrapping_add(i)) >> 40) as f32 / (1 << 24) as f32 - 0.5;
    let values: Vec<f32> = (0..count).map(|i| base + scale * unit(i)).collect();
    Tensor::from_slice(&values).view(shape)
}

/// The mean of a parameter's values, and the width of their range.
fn base_and_scale(name: &str, shape: &[i64]) -> (f32, f32) {
    match shape {
        _ if name.ends_with("logit_scale") => (2.6592, 0.0),
        _ if name.ends_with("running_var") => (1.0, 0.5),
        [] | [_] if name.ends_with(".weight") => (1.0, 0.25),
        [] | [_] => (0.0, 0.125),
        [first, rest @ ..] => {
            // GPT-2's linear layers are stored transposed.
            let transposed = shape.len() == 2 && name.contains("decoder.transformer.h.") && name.ends_with(".weight");
            let inputs = if transposed { *first } else { rest.iter().product() };
            // The largest power of two up to 1 and sqrt(24 / inputs): products with such a matrix
            // keep the magnitude of their inputs, and the values are exact in all libraries.
            let halvings = (0..).find(|&m| 24 * 4_i64.pow(m) >= inputs).unwrap();
            (0.0, 0.5_f32.powi(halvings as i32))
        }
    }
}

/// Panics unless the tensors differ by at most `tolerance` everywhere.
#[track_caller]
pub fn assert_close(name: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.size(), expected.size(), "{name}");
    let [actual, expected] = [actual, expected].map(|tensor| tensor.to_device(Device::Cpu).to_kind(Kind::Double));
    let difference = (actual - expected).abs().max().double_value(&[]);
    // The comparison is false for NaN.
    assert!(difference <= tolerance, "{name} differs by {difference}, more than {tolerance}");
    println!("{name}: at most {difference:.1e} apart, {tolerance:.1e} allowed");
}

/// A bound on the number of roundings to 16 bits in a transformer layer: the four weights of
/// attention and feed-forward part, their inputs and outputs, scores, probabilities, and the
/// activation.
const ROUNDINGS_PER_LAYER: usize = 16;

/// The allowed difference from `expected` after `layers` layers with 16-bit products.
///
/// The relative error of a rounding to bfloat16 is uniformly distributed up to 2^-9: its root mean
/// square is 2^-9 / sqrt(3). The errors of n roundings are independent, so the root mean square of
/// their sum is sqrt(n) times that. The tolerance is 2^-8 sqrt(n) of the largest value: 3.5 times
/// the root mean square if all values were as large.
pub fn sixteen_bit_tolerance(expected: &Tensor, layers: usize) -> f64 {
    let largest = expected.abs().max().to_kind(Kind::Double).double_value(&[]);
    largest * 2.0_f64.powi(-8) * ((layers * ROUNDINGS_PER_LAYER) as f64).sqrt()
}

#[derive(serde::Deserialize)]
struct FormulaExamples {
    examples: Vec<FormulaExample>,
}

#[derive(serde::Deserialize)]
struct FormulaExample {
    name: String,
    shape: Vec<i64>,
    base: f32,
    scale: f32,
    /// The first values.
    first: Vec<f32>,
    /// The last value.
    last: f32,
}

#[test]
fn the_formula_gives_the_same_values_as_in_python() {
    let golden: FormulaExamples = json("formula.json");
    assert!(!golden.examples.is_empty());
    for FormulaExample { name, shape, base, scale, first, last } in golden.examples {
        let actual = Vec::<f32>::try_from(values_by_formula(&name, &shape, base, scale).flatten(0, -1)).unwrap();
        assert_eq!((&actual[..first.len()], actual.last()), (first.as_slice(), Some(&last)), "{name}");
        if !name.starts_with("input.") {
            assert_eq!(base_and_scale(&name, &shape), (base, scale), "{name}");
        }
    }
}
