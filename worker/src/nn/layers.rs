use tch::{Device, Kind, Tensor};
use weights::clip::LoraTarget;

use super::Builder;
use super::lora::Weight;
use super::operators::{self, Parameter};
use super::takes_gpu_path;

/// Whether activations are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Nothing is dropped.
    Evaluate,
    /// Each activation is dropped with this probability.
    Train {
        /// In 0..1.
        dropout: f64,
    },
}

impl Mode {
    /// The probability of dropping.
    #[must_use]
    pub fn dropout(self) -> f64 {
        match self {
            Self::Evaluate => 0.0,
            Self::Train { dropout } => dropout,
        }
    }

    /// Drops activations of `x`.
    pub fn drop(self, x: Tensor) -> Tensor {
        if self.dropout() > 0.0 { x.dropout(self.dropout(), true) } else { x }
    }
}

/// y = x W^T + b, with W `[outputs, inputs]`.
pub struct Linear {
    weight: Weight,
    bias: Parameter,
}

impl Linear {
    /// Parameters `{name}.weight` and `{name}.bias`.
    pub fn new(builder: &mut Builder, name: &str, inputs: i64, outputs: i64, deviation: f64) -> Self {
        Self {
            weight: builder.matrix(&format!("{name}.weight"), &[outputs, inputs], deviation).into(),
            bias: builder.bias(&format!("{name}.bias"), outputs, 0.0),
        }
    }

    /// The same, whose weight has LoRA factors if the builder's model has them of `target`.
    pub fn adapted(
        builder: &mut Builder,
        name: &str,
        inputs: i64,
        outputs: i64,
        deviation: f64,
        target: LoraTarget,
    ) -> Self {
        Self {
            weight: builder.adapted_matrix(&format!("{name}.weight"), [outputs, inputs], deviation, target),
            bias: builder.bias(&format!("{name}.bias"), outputs, 0.0),
        }
    }

    /// The same parameters, which start as those of `torch.nn.Linear`: weights and bias uniform
    /// within 1 / sqrt(inputs) of 0.
    pub fn uniform(builder: &mut Builder, name: &str, inputs: i64, outputs: i64) -> Self {
        let bound = (inputs as f64).powf(-0.5);
        Self {
            weight: builder.uniform(&format!("{name}.weight"), &[outputs, inputs], bound).into(),
            bias: builder.uniform(&format!("{name}.bias"), &[outputs], bound),
        }
    }

    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        operators::linear(x, &self.weight.parameter(), &self.bias)
    }
}

/// GPT-2's transposed linear layer: y = x W + b, with W `[inputs, outputs]`.
pub struct Conv1d {
    weight: Parameter,
    bias: Parameter,
}

impl Conv1d {
    /// Parameters `{name}.weight` and `{name}.bias`.
    pub fn new(builder: &mut Builder, name: &str, inputs: i64, outputs: i64, deviation: f64) -> Self {
        Self {
            weight: builder.matrix(&format!("{name}.weight"), &[inputs, outputs], deviation),
            bias: builder.bias(&format!("{name}.bias"), outputs, 0.0),
        }
    }

    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        operators::linear(x, &self.weight.transposed(), &self.bias)
    }
}

/// Layer normalisation over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    /// Parameters `{name}.weight` and `{name}.bias`.
    pub fn new(builder: &mut Builder, name: &str, width: i64, epsilon: f64) -> Self {
        Self {
            weight: builder.constant(&format!("{name}.weight"), &[width], 1.0),
            bias: builder.constant(&format!("{name}.bias"), &[width], 0.0),
            epsilon,
        }
    }

    /// Shape is kept.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, false)
    }
}

/// Batch normalisation of `[batch, channels, ..]` by running statistics, which are not trained here.
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    /// Parameters `{name}.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub fn new(builder: &mut Builder, name: &str, channels: i64) -> Self {
        let mut constant = |part: &str, value| builder.constant(&format!("{name}.{part}"), &[channels], value);
        Self {
            weight: constant("weight", 1.0),
            bias: constant("bias", 0.0),
            running_mean: constant("running_mean", 0.0),
            running_var: constant("running_var", 1.0),
        }
    }

    /// Shape is kept.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let Self { weight, bias, .. } = self;
        let [running_mean, running_var] = [&self.running_mean, &self.running_var].map(Tensor::detach);
        x.batch_norm(Some(weight), Some(bias), Some(&running_mean), Some(&running_var), false, 0.1, 1e-5, true)
    }
}

/// A table of vectors, `[entries, width]`.
pub struct Embedding {
    weight: Parameter,
}

impl Embedding {
    /// Parameter `{name}.weight`.
    pub fn new(builder: &mut Builder, name: &str, entries: i64, width: i64, deviation: f64) -> Self {
        Self { weight: builder.matrix(&format!("{name}.weight"), &[entries, width], deviation) }
    }

    /// Indices `[..]` to vectors `[.., width]`.
    pub fn forward(&self, indices: &Tensor) -> Tensor {
        operators::embedding(&self.weight.master, indices)
    }

    /// The first `count` vectors, `[count, width]`.
    pub fn first(&self, count: i64) -> Tensor {
        self.weight.master.narrow(0, 0, count)
    }

    /// The table itself.
    pub fn table(&self) -> &Parameter {
        &self.weight
    }
}

/// `[batch, length, heads * width]` to `[batch, heads, length, width]`.
pub fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let (batch, length, width) = x.size3().expect("activations are [batch, length, width]");
    x.view([batch, length, heads, width / heads]).transpose(1, 2)
}

/// `[batch, length, parts * heads * width]` to `[parts, batch, heads, length, width]`, in the same memory.
pub fn stack_parts(x: &Tensor, parts: i64, heads: i64) -> Tensor {
    let (batch, length, width) = x.size3().expect("activations are [batch, length, width]");
    x.view([batch, length, parts, heads, width / (parts * heads)]).permute([2, 0, 3, 1, 4])
}

/// `[batch, length, N * heads * width]` to N times `[batch, heads, length, width]`, in the same memory.
pub fn split_parts<const N: usize>(x: &Tensor, heads: i64) -> [Tensor; N] {
    stack_parts(x, N as i64, heads).unbind(0).try_into().expect("as many as were stacked")
}

/// `[batch, heads, length, width]` to `[batch, length, heads * width]`.
pub fn merge_heads(x: &Tensor) -> Tensor {
    let (batch, heads, length, width) = x.size4().expect("attention is [batch, heads, length, width]");
    x.transpose(1, 2).reshape([batch, length, heads * width])
}

/// libtorch's kernels for GPUs need rows of a mask to be a multiple of this; it copies other masks at
/// each call.
const MASK_ALIGNMENT: usize = 8;

/// The smallest number of keys from `length` on whose masks attention on `device` reads without a copy.
pub fn attention_length(length: usize, device: Device) -> usize {
    if takes_gpu_path(device) { length.next_multiple_of(MASK_ALIGNMENT) } else { length }
}

/// Converts `mask` for attention of queries of `kind`, once rather than at each layer.
pub fn attention_mask(mask: &Tensor, kind: Kind) -> Tensor {
    if takes_gpu_path(mask.device()) { mask.to_kind(kind) } else { mask.shallow_clone() }
}

/// Up to so many keys, on a CPU, all scores are written down.
const SHORT: i64 = 160;

/// Scaled dot-product attention over `[batch, heads, length, width]`; `mask`, of any floating type, is added to the scores.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Tensor {
    let kind = query.kind();
    if takes_gpu_path(query.device()) || key.size()[2] > SHORT {
        let mask = mask.map(|mask| mask.to_kind(kind));
        return Tensor::scaled_dot_product_attention(
            query,
            key,
            value,
            mask.as_ref(),
            mode.dropout(),
            false,
            None,
            false,
        );
    }
    // libtorch's kernel for CPUs is made for long sequences: these few products take less.
    let width = *query.size().last().expect("attention has a width");
    let scores = (query * (width as f64).powf(-0.5)).matmul(&key.transpose(-2, -1));
    let scores = match mask {
        Some(mask) => scores + mask,
        None => scores,
    };
    mode.drop(scores.softmax(-1, None)).to_kind(kind).matmul(value)
}
