//! The layers that CLIP and the captioner consist of.

use tch::{Device, Kind, Tensor};
use weights::clip::LoraTarget;

use super::Builder;
use super::lora::Weight;
use super::operators::{self, Parameter};
use super::takes_gpu_path;

/// Whether dropout is applied, and with which probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// No dropout.
    Evaluate,
    /// Dropout with this probability.
    Train {
        /// In 0..1.
        dropout: f64,
    },
}

impl Mode {
    /// The probability of dropout.
    #[must_use]
    pub fn dropout(self) -> f64 {
        match self {
            Self::Evaluate => 0.0,
            Self::Train { dropout } => dropout,
        }
    }

    /// Applies dropout to `x`.
    pub fn drop(self, x: Tensor) -> Tensor {
        if self.dropout() > 0.0 { x.dropout(self.dropout(), true) } else { x }
    }
}

/// A linear layer, y = x W^T + b, with W `[outputs, inputs]`.
pub struct Linear {
    weight: Weight,
    bias: Parameter,
}

impl Linear {
    /// A layer with the parameters `{name}.weight` and `{name}.bias`.
    pub fn new(builder: &mut Builder, name: &str, inputs: i64, outputs: i64, deviation: f64) -> Self {
        Self {
            weight: builder.matrix(&format!("{name}.weight"), &[outputs, inputs], deviation).into(),
            bias: builder.bias(&format!("{name}.bias"), outputs, 0.0),
        }
    }

    /// The same, whose weight has LoRA factors if the builder's model has them for `target`.
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

    /// The same parameters, initialized as by `torch.nn.Linear`: weights and bias uniform within 1
    /// / sqrt(inputs) of 0.
    pub fn uniform(builder: &mut Builder, name: &str, inputs: i64, outputs: i64) -> Self {
        let bound = (inputs as f64).powf(-0.5);
        Self {
            weight: builder.uniform(&format!("{name}.weight"), &[outputs, inputs], bound).into(),
            bias: builder.uniform(&format!("{name}.bias"), &[outputs], bound),
        }
    }

    /// Maps `[.., inputs]` to `[.., outputs]`.
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
    /// A layer with the parameters `{name}.weight` and `{name}.bias`.
    pub fn new(builder: &mut Builder, name: &str, inputs: i64, outputs: i64, deviation: f64) -> Self {
        Self {
            weight: builder.matrix(&format!("{name}.weight"), &[inputs, outputs], deviation),
            bias: builder.bias(&format!("{name}.bias"), outputs, 0.0),
        }
    }

    /// Maps `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        operators::linear(x, &self.weight.transposed(), &self.bias)
    }
}

/// Layer normalization over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    /// A layer with the parameters `{name}.weight` and `{name}.bias`.
    pub fn new(builder: &mut Builder, name: &str, width: i64, epsilon: f64) -> Self {
        Self {
            weight: builder.constant(&format!("{name}.weight"), &[width], 1.0),
            bias: builder.constant(&format!("{name}.bias"), &[width], 0.0),
            epsilon,
        }
    }

    /// Normalizes `x`; the shape stays the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, false)
    }
}

/// Batch normalization of `[batch, channels, ..]` with running statistics, which are not updated
/// here.
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    /// A layer with the parameters `{name}.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub fn new(builder: &mut Builder, name: &str, channels: i64) -> Self {
        let mut constant = |part: &str, value| builder.constant(&format!("{name}.{part}"), &[channels], value);
        Self {
            weight: constant("weight", 1.0),
            bias: constant("bias", 0.0),
            running_mean: constant("running_mean", 0.0),
            running_var: constant("running_var", 1.0),
        }
    }

    /// Normalizes `x`; the shape stays the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let Self { weight, bias, .. } = self;
        let [running_mean, running_var] = [&self.running_mean, &self.running_var].map(Tensor::detach);
        x.batch_norm(Some(weight), Some(bias), Some(&running_mean), Some(&running_var), false, 0.1, 1e-5, true)
    }
}

/// An embedding table, `[entries, width]`.
pub struct Embedding {
    weight: Parameter,
}

impl Embedding {
    /// A table with the parameter `{name}.weight`.
    pub fn new(builder: &mut Builder, name: &str, entries: i64, width: i64, deviation: f64) -> Self {
        Self { weight: builder.matrix(&format!("{name}.weight"), &[entries, width], deviation) }
    }

    /// Maps indices `[..]` to vectors `[.., width]`.
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

/// Reshapes `[batch, length, heads * width]` to `[batch, heads, length, width]`.
pub fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let (batch, length, width) = x.size3().expect("activations are [batch, length, width]");
    x.view([batch, length, heads, width / heads]).transpose(1, 2)
}

/// Reshapes `[batch, length, parts * heads * width]` to `[parts, batch, heads, length, width]`, as
/// a view.
pub fn stack_parts(x: &Tensor, parts: i64, heads: i64) -> Tensor {
    let (batch, length, width) = x.size3().expect("activations are [batch, length, width]");
    x.view([batch, length, parts, heads, width / (parts * heads)]).permute([2, 0, 3, 1, 4])
}

/// Splits `[batch, length, N * heads * width]` into N times `[batch, heads, length, width]`, as
/// views.
pub fn split_parts<const N: usize>(x: &Tensor, heads: i64) -> [Tensor; N] {
    stack_parts(x, N as i64, heads).unbind(0).try_into().expect("as many as were stacked")
}

/// Reshapes `[batch, heads, length, width]` to `[batch, length, heads * width]`.
pub fn merge_heads(x: &Tensor) -> Tensor {
    let (batch, heads, length, width) = x.size4().expect("attention is [batch, heads, length, width]");
    x.transpose(1, 2).reshape([batch, length, heads * width])
}

/// libtorch's attention kernels for GPUs require the rows of a mask to be a multiple of this; other
/// masks are copied at each call.
const MASK_ALIGNMENT: usize = 8;

/// The smallest number of keys, at least `length`, for whose masks attention on `device` needs no
/// copy.
pub fn attention_length(length: usize, device: Device) -> usize {
    if takes_gpu_path(device) { length.next_multiple_of(MASK_ALIGNMENT) } else { length }
}

/// Converts `mask` to the type of attention on queries of `kind`, once instead of in each layer.
pub fn attention_mask(mask: &Tensor, kind: Kind) -> Tensor {
    if takes_gpu_path(mask.device()) { mask.to_kind(kind) } else { mask.shallow_clone() }
}

/// Maximal number of keys for which attention on a CPU materializes all scores.
const SHORT: i64 = 160;

/// Scaled dot-product attention over `[batch, heads, length, width]`. `mask`, of any floating-point
/// type, is added to the scores.
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
    // libtorch's kernel for CPUs is optimized for long sequences: these few products are faster.
    let width = *query.size().last().expect("attention has a width");
    let scores = (query * (width as f64).powf(-0.5)).matmul(&key.transpose(-2, -1));
    let scores = match mask {
        Some(mask) => scores + mask,
        None => scores,
    };
    mode.drop(scores.softmax(-1, None)).to_kind(kind).matmul(value)
}
