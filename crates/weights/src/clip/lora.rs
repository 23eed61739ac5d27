//! LoRA factors (Hu et al. 2022), as PAC-S++ writes them: with the `custom_loralib` of its
//! repository pacscore, a fork of the package loralib that also adapts attention.
//!
//! A weight W `[outputs, ..]` with factors A `[rank, inputs]` and B `[outputs, rank]` is replaced
//! by W + alpha/rank B A. The factors of a convolution with a square kernel of side k are `[rank k,
//! inputs k]` and `[outputs k, rank k]`, and B A is reshaped to the weight's shape
//! (`loralib/layers.py`, `Conv2d`). The files of PAC-S++ do not contain alpha; the model uses
//! loralib's default, [`LORALIB_DEFAULT_ALPHA`]. Checkpoints of this project contain alpha as the
//! scalar [`LORA_ALPHA`].

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conventions::LoraReading;
use crate::tensor::{Dtype, Tensor};

/// loralib's default alpha, with which PAC-S++ was trained.
const LORALIB_DEFAULT_ALPHA: f64 = 1.0;
/// The name of the scalar alpha in checkpoints.
pub const LORA_ALPHA: &str = "lora_alpha";

/// LoRA factors beside weights of an evaluator: a weight W becomes W + alpha/rank B A. The defaults
/// are those of PAC-S++.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the factors, 1 to 256.
    pub rank: u32,
    /// Scale of B A, above 0: `alpha` over `rank`.
    pub alpha: f64,
    /// Weights that have factors. At least one.
    pub targets: BTreeSet<LoraTarget>,
}

impl Default for LoraConfig {
    /// The values with which pacscore scores: targets of `models/clip_lora`, rank of its
    /// `compute_correlations_pac++.py`, alpha of `custom_loralib`.
    fn default() -> Self {
        let targets = [LoraTarget::Attention, LoraTarget::Mlp, LoraTarget::PatchEmbedding].into();
        Self { rank: 4, alpha: LORALIB_DEFAULT_ALPHA, targets }
    }
}

/// Weights of a CLIP that can have LoRA factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LoraTarget {
    /// The projections of attention in the transformers of both encoders.
    Attention,
    /// The two layers of the MLPs of the same transformers.
    Mlp,
    /// The patch embedding of a vision transformer. A ResNet has none.
    PatchEmbedding,
}

/// The suffix of a factor's name, and the suffix of its weight's name: for weights of modules, and
/// for other parameters.
const FACTOR_SUFFIXES: [(&str, &str); 4] =
    [(".lora_A", ".weight"), (".lora_B", ".weight"), ("_lora_A", ""), ("_lora_B", "")];

/// The names of the two factors of a weight in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FactorPair {
    a: Option<String>,
    b: Option<String>,
}

/// The factors of a file, by the name of their weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LoraFactors(BTreeMap<String, FactorPair>);

/// The name of the weight that a factor of this name belongs to; none if the name is not that of a
/// factor.
pub(super) fn weight_of(name: &str) -> Option<String> {
    FACTOR_SUFFIXES
        .iter()
        .find_map(|(factor, weight)| name.strip_suffix(factor).map(|module| format!("{module}{weight}")))
}

/// Why LoRA factors cannot be added to a weight.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoraError {
    /// Alpha is not a positive number.
    #[error("is not a number above 0")]
    Alpha,
    /// Only the other factor of a weight exists.
    #[error("has no LoRA factor {0}")]
    MissingFactor(&'static str),
    /// A factor cannot be read from the file.
    #[error("{0} cannot be read")]
    Unreadable(String),
    /// The shapes of the factors do not fit the weight.
    #[error("its LoRA factors {a:?} and {b:?} do not fit {weight:?}")]
    Shape {
        /// The shape of A.
        a: Vec<usize>,
        /// The shape of B.
        b: Vec<usize>,
        /// The shape of the weight.
        weight: Vec<usize>,
    },
    /// A tensor has no floating-point elements.
    #[error("has elements of type {0:?}")]
    Dtype(Dtype),
}

/// The alpha of the factors in a file whose tensors `get` reads.
///
/// # Errors
/// The file has an alpha that is not a positive number.
pub(super) fn read_alpha<'a>(get: impl Fn(&str) -> Option<Tensor<'a>>) -> Result<f64, LoraError> {
    let Some(tensor) = get(LORA_ALPHA) else { return Ok(LORALIB_DEFAULT_ALPHA) };
    match to_floats(&tensor).as_deref() {
        Some(&[alpha]) if alpha > 0.0 && alpha.is_finite() => Ok(f64::from(alpha)),
        _ => Err(LoraError::Alpha),
    }
}

/// Whether a parameter of this name is a LoRA factor.
#[must_use]
pub fn is_lora_factor(name: &str) -> bool {
    weight_of(name).is_some()
}

/// PAC-S++'s names of the factors A and B of a weight.
#[must_use]
pub fn lora_factor_names(weight: &str) -> [String; 2] {
    let stem = match weight.strip_suffix(".weight") {
        Some(module) => format!("{module}."),
        None => format!("{weight}_"),
    };
    ["lora_A", "lora_B"].map(|factor| format!("{stem}{factor}"))
}

impl LoraFactors {
    /// Adds the factor whose name in the file is `factor`.
    pub fn add(&mut self, weight: String, factor: &str) {
        let pair = self.0.entry(weight).or_default();
        let slot = if factor.ends_with('A') { &mut pair.a } else { &mut pair.b };
        *slot = Some(factor.to_owned());
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The weights to which their factors are added according to `reading`, with the names of the
    /// factors.
    pub fn added_factors(&self, reading: LoraReading) -> impl Iterator<Item = (&str, &FactorPair)> {
        // PAC-S++'s own scorer does not add the factors of the MLPs.
        let is_added = move |weight: &str| reading == LoraReading::Merged || !weight.contains(".mlp.");
        self.0.iter().map(|(weight, pair)| (weight.as_str(), pair)).filter(move |(weight, _)| is_added(weight))
    }
}

impl FactorPair {
    /// Both factors, read by `get`.
    pub fn read<'a>(&self, get: impl Fn(&str) -> Option<Tensor<'a>>) -> Result<[Tensor<'a>; 2], LoraError> {
        let factor = |factor: &'static str, name: &Option<String>| {
            let name = name.as_ref().ok_or(LoraError::MissingFactor(factor))?;
            get(name).ok_or_else(|| LoraError::Unreadable(name.clone()))
        };
        Ok([factor("A", &self.a)?, factor("B", &self.b)?])
    }
}

/// The weight W with its LoRA factors A and B added: W + alpha/rank B A.
///
/// # Errors
/// The shapes do not fit, or a type of numbers cannot be read.
pub(super) fn merge(weight: &Tensor<'_>, [a, b]: &[Tensor<'_>; 2], alpha: f64) -> Result<Tensor<'static>, LoraError> {
    let shape_error = || LoraError::Shape { a: a.shape.clone(), b: b.shape.clone(), weight: weight.shape.clone() };
    let (&[rows, columns], &[outputs, inner]) = (a.shape.as_slice(), b.shape.as_slice()) else {
        return Err(shape_error());
    };
    // The side of a convolution's kernel; 1 for a matrix.
    let side = if let [_, _, height, width] = weight.shape[..] { if height == width { height } else { 0 } } else { 1 };
    let elements: usize = weight.shape.iter().product();
    if side == 0
        || rows != inner
        || rows == 0
        || rows % side != 0
        || outputs.checked_mul(columns) != Some(elements)
        || weight.shape.first().and_then(|first| first.checked_mul(side)) != Some(outputs)
    {
        return Err(shape_error());
    }
    // A has rank * side rows.
    let scale = alpha as f32 * side as f32 / rows as f32;
    let elements_of = |tensor: &Tensor<'_>| to_floats(tensor).ok_or(LoraError::Dtype(tensor.dtype));
    let (a, b, mut merged) = (elements_of(a)?, elements_of(b)?, elements_of(weight)?);
    for (out, b) in merged.chunks_exact_mut(columns).zip(b.chunks_exact(rows)) {
        for (a, b) in a.chunks_exact(columns).zip(b) {
            let factor = b * scale;
            out.iter_mut().zip(a).for_each(|(out, a)| *out += factor * a);
        }
    }
    Ok(from_floats(weight.shape.clone(), merged))
}

/// B scaled by alpha, so that a reader that uses [`LORALIB_DEFAULT_ALPHA`] computes the same
/// weights.
///
/// # Errors
/// B has no floating-point numbers.
pub(super) fn scale_by_alpha(b: &Tensor<'_>, alpha: f64) -> Result<Tensor<'static>, LoraError> {
    let numbers = to_floats(b).ok_or(LoraError::Dtype(b.dtype))?;
    let factor = (alpha / LORALIB_DEFAULT_ALPHA) as f32;
    Ok(from_floats(b.shape.clone(), numbers.into_iter().map(|number| number * factor).collect()))
}

fn from_floats(shape: Vec<usize>, numbers: Vec<f32>) -> Tensor<'static> {
    let bytes = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
    Tensor { dtype: Dtype::F32, shape, bytes: Cow::Owned(bytes) }
}

/// The elements of a tensor as `f32`; none if they are not floating-point numbers.
fn to_floats(tensor: &Tensor<'_>) -> Option<Vec<f32>> {
    let bytes = tensor.bytes.as_ref();
    Some(match tensor.dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F64 => bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|bytes| f16_to_f32(u16::from_le_bytes(*bytes))).collect(),
        Dtype::Bf16 => {
            let wide = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            bytes.as_chunks().0.iter().map(wide).collect()
        }
        _ => return None,
    })
}

/// Converts IEEE 754 half precision.
fn f16_to_f32(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (bits >> 15, (bits >> 10) & 31, f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2_f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1.0 + fraction / 1024.0) * 2_f32.powi(i32::from(exponent) - 15),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::values;

    fn tensor(shape: &[usize], numbers: &[f32]) -> Tensor<'static> {
        from_floats(shape.to_vec(), numbers.to_vec())
    }

    #[test]
    fn factors_are_added_with_scale_alpha_over_rank() {
        let weight = tensor(&[2, 3], &[1.0; 6]);
        let a = tensor(&[2, 3], &[1.0, 2.0, 3.0, 0.0, 0.0, 4.0]);
        let b = tensor(&[2, 2], &[2.0, 0.0, 1.0, 1.0]);
        let merged = merge(&weight, &[a.clone(), b.clone()], 1.0).unwrap();
        assert_eq!(values(&merged), [2.0, 3.0, 4.0, 1.5, 2.0, 4.5]);
        let with_alpha = merge(&weight, &[a.clone(), b.clone()], 4.0).unwrap();
        assert_eq!(values(&with_alpha), [5.0, 9.0, 13.0, 3.0, 5.0, 15.0]);
        assert_eq!(merge(&weight, &[a.clone(), scale_by_alpha(&b, 4.0).unwrap()], 1.0).unwrap(), with_alpha);
        for wrong in [tensor(&[3, 2], &[0.0; 6]), tensor(&[2], &[0.0; 2]), tensor(&[0, 3], &[])] {
            assert!(merge(&weight, &[wrong, b.clone()], 1.0).unwrap_err().to_string().contains("do not fit [2, 3]"));
        }
        let integers = Tensor { dtype: Dtype::I64, shape: vec![2, 2], bytes: Cow::Owned(vec![0; 32]) };
        assert!(merge(&weight, &[a, integers], 1.0).unwrap_err().to_string().contains("has elements of type I64"));
    }

    #[test]
    fn factors_of_a_convolution_are_reshaped_to_its_weight() {
        // One output, one input, a kernel of 2 x 2, rank 1: A [2, 2], B [2, 2].
        let weight = tensor(&[1, 1, 2, 2], &[0.0; 4]);
        let (a, b) = (tensor(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), tensor(&[2, 2], &[1.0, 0.0, 0.0, 1.0]));
        assert_eq!(values(&merge(&weight, &[a, b], 1.0).unwrap()), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn half_precision_is_converted_exactly() {
        let widened = [0x0000, 0x8000, 0x3C00, 0xC000, 0x0001, 0x7BFF, 0x7C00, 0x3555].map(f16_to_f32);
        let expected = [0.0, -0.0, 1.0, -2.0, 5.960_464_5e-8, 65_504.0, f32::INFINITY, 0.333_251_95];
        assert_eq!(widened.map(f32::to_bits), expected.map(f32::to_bits));
        assert!(f16_to_f32(0x7E00).is_nan());
    }

    #[test]
    fn the_weight_of_a_factor_follows_from_its_name() {
        let block = "visual.transformer.resblocks.0";
        assert_eq!(weight_of(&format!("{block}.mlp.c_fc.lora_A")), Some(format!("{block}.mlp.c_fc.weight")));
        assert_eq!(
            weight_of(&format!("{block}.attn.in_proj_weight_lora_B")),
            Some(format!("{block}.attn.in_proj_weight"))
        );
        assert_eq!(weight_of("visual.conv1.lora_B"), Some("visual.conv1.weight".to_owned()));
        assert_eq!(weight_of("visual.conv1.weight"), None);
        for weight in ["visual.conv1.weight", "transformer.resblocks.1.attn.in_proj_weight"] {
            let weight = weight.to_owned();
            assert_eq!(
                lora_factor_names(&weight).map(|factor| weight_of(&factor)),
                [Some(weight.clone()), Some(weight)]
            );
        }
    }
}
