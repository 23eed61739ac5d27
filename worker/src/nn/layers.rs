//! The layers that CLIP and the captioner consist of.

use tch::{Device, Kind, Tensor};
use weights::clip::LoraTarget;

use super::ParameterBuilder;
use super::lora::LoraWeight;
use super::operators::{self, MixedPrecisionParameter};
use super::uses_gpu_path;

/// Whether dropout is applied, as PyTorch's `train()` and `eval()` set it, and with which
/// probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DropoutMode {
    /// No dropout.
    Evaluate,
    /// Dropout with this probability.
    Train {
        /// In 0..1.
        dropout: f64,
    },
}

impl DropoutMode {
    /// The probability of dropout, 0 without it.
    #[must_use]
    pub fn probability(self) -> f64 {
        match self {
            Self::Evaluate => 0.0,
            Self::Train { dropout } => dropout,
        }
    }

    /// Applies dropout to `x`; the shape stays the same.
    pub fn dropout(self, x: Tensor) -> Tensor {
        if self.probability() > 0.0 { x.dropout(self.probability(), true) } else { x }
    }
}

/// A linear layer, y = x W^T + b, with W `[outputs, inputs]`.
pub struct Linear {
    weight: LoraWeight,
    bias: MixedPrecisionParameter,
}

impl Linear {
    /// A layer with the parameters `{name}.weight`, of this standard deviation, and `{name}.bias`,
    /// which starts as 0.
    pub fn new(builder: &mut ParameterBuilder, name: &str, inputs: i64, outputs: i64, deviation: f64) -> Self {
        Self {
            weight: builder.matrix(&format!("{name}.weight"), &[outputs, inputs], deviation).into(),
            bias: builder.bias(&format!("{name}.bias"), outputs, 0.0),
        }
    }

    /// Like [`Self::new`], with LoRA factors of the weight if the builder's model has them for
    /// `target`.
    pub fn with_lora(
        builder: &mut ParameterBuilder,
        name: &str,
        inputs: i64,
        outputs: i64,
        deviation: f64,
        target: LoraTarget,
    ) -> Self {
        Self {
            weight: builder.lora_matrix(&format!("{name}.weight"), [outputs, inputs], deviation, target),
            bias: builder.bias(&format!("{name}.bias"), outputs, 0.0),
        }
    }

    /// Like [`Self::new`], but initialized as `torch.nn.Linear`: weight and bias uniform in
    /// -1 / sqrt(inputs)..1 / sqrt(inputs).
    pub fn with_uniform_init(builder: &mut ParameterBuilder, name: &str, inputs: i64, outputs: i64) -> Self {
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

/// GPT-2's linear layer, with the transposed weight (`Conv1D` in transformers): y = x W + b, with W
/// `[inputs, outputs]`.
pub struct TransposedLinear {
    weight: MixedPrecisionParameter,
    bias: MixedPrecisionParameter,
}

impl TransposedLinear {
    /// A layer with the parameters `{name}.weight`, of this standard deviation, and `{name}.bias`,
    /// which starts as 0.
    pub fn new(builder: &mut ParameterBuilder, name: &str, inputs: i64, outputs: i64, deviation: f64) -> Self {
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
    pub fn new(builder: &mut ParameterBuilder, name: &str, width: i64, epsilon: f64) -> Self {
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

/// Batch normalization of `[batch, channels, ..]` with running statistics, as in evaluation mode:
/// they are never updated.
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    /// A layer with the parameters `{name}.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub fn new(builder: &mut ParameterBuilder, name: &str, channels: i64) -> Self {
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
        let (training, momentum, epsilon, cudnn) = (false, 0.1, 1e-5, true);
        let (mean, variance) = (Some(&running_mean), Some(&running_var));
        x.batch_norm(Some(weight), Some(bias), mean, variance, training, momentum, epsilon, cudnn)
    }
}

/// An embedding table, `[entries, width]`.
pub struct Embedding {
    weight: MixedPrecisionParameter,
}

impl Embedding {
    /// A table with the parameter `{name}.weight`, of this standard deviation.
    pub fn new(builder: &mut ParameterBuilder, name: &str, entries: i64, width: i64, deviation: f64) -> Self {
        Self { weight: builder.matrix(&format!("{name}.weight"), &[entries, width], deviation) }
    }

    /// Maps indices `[..]` to vectors `[.., width]`.
    pub fn forward(&self, indices: &Tensor) -> Tensor {
        operators::embedding(&self.weight.master, indices)
    }

    /// The first `count` vectors, `[count, width]`.
    pub fn first_rows(&self, count: i64) -> Tensor {
        self.weight.master.narrow(0, 0, count)
    }

    /// The table, `[entries, width]`.
    #[must_use]
    pub fn table(&self) -> &MixedPrecisionParameter {
        &self.weight
    }
}

/// Reshapes `[batch, length, heads * width]` to `[batch, heads, length, width]`, as a view.
pub fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let (batch, length, width) = x.size3().expect("activations are [batch, length, width]");
    x.view([batch, length, heads, width / heads]).transpose(1, 2)
}

/// Reshapes `count` fused projections (of queries, keys and values), which are
/// `[batch, length, count * heads * width]`, to `[count, batch, heads, length, width]`, as a view.
pub fn view_fused_projections(x: &Tensor, count: i64, heads: i64) -> Tensor {
    let (batch, length, width) = x.size3().expect("activations are [batch, length, width]");
    x.view([batch, length, count, heads, width / (count * heads)]).permute([2, 0, 3, 1, 4])
}

/// Splits fused projections `[batch, length, N * heads * width]` into N tensors `[batch, heads,
/// length, width]`, as views.
pub fn split_fused_projections<const N: usize>(x: &Tensor, heads: i64) -> [Tensor; N] {
    view_fused_projections(x, N as i64, heads).unbind(0).try_into().expect("the first dimension has the size N")
}

/// Reshapes `[batch, heads, length, width]` to `[batch, length, heads * width]`.
pub fn merge_heads(x: &Tensor) -> Tensor {
    let (batch, heads, length, width) = x.size4().expect("attention is [batch, heads, length, width]");
    x.transpose(1, 2).reshape([batch, length, heads * width])
}

/// libtorch's attention kernels for GPUs require the row length of a mask to be a multiple of this.
/// They copy other masks at each call.
const MASK_ALIGNMENT: usize = 8;

/// Rounds `length`, a number of keys, up to one at which attention on `device` does not copy its
/// mask: to a multiple of 8 on the GPU path, and not at all on the CPU path.
#[must_use]
pub fn pad_to_mask_alignment(length: usize, device: Device) -> usize {
    if uses_gpu_path(device) { length.next_multiple_of(MASK_ALIGNMENT) } else { length }
}

/// Converts `mask` to the type of the queries, `kind`, so that attention on the GPU path need not
/// convert it in each layer. Returns it unchanged on the CPU path. The shape stays the same.
pub fn cast_attention_mask(mask: &Tensor, kind: Kind) -> Tensor {
    if uses_gpu_path(mask.device()) { mask.to_kind(kind) } else { mask.shallow_clone() }
}

/// Maximal number of keys for which attention on a CPU materializes all scores.
const MAX_KEYS_WITH_MATERIALIZED_SCORES: i64 = 160;

/// Scaled dot-product attention (Vaswani et al. 2017, equation 1). `query` is `[batch, heads,
/// queries, width]`, `key` and `value` are `[batch, heads, keys, width]`, the result is `[batch,
/// heads, queries, width]`. `mask`, of any floating-point type, broadcasts to `[batch, heads,
/// queries, keys]` and is added to the scores.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>, mode: DropoutMode) -> Tensor {
    let kind = query.kind();
    if uses_gpu_path(query.device()) || key.size()[2] > MAX_KEYS_WITH_MATERIALIZED_SCORES {
        let mask = mask.map(|mask| mask.to_kind(kind));
        let (dropout, is_causal, scale, enable_gqa) = (mode.probability(), false, None::<f64>, false);
        return Tensor::scaled_dot_product_attention(
            query,
            key,
            value,
            mask.as_ref(),
            dropout,
            is_causal,
            scale,
            enable_gqa,
        );
    }
    // libtorch's kernel for CPUs is optimized for long sequences: for short ones these few products
    // are faster.
    let width = *query.size().last().expect("attention has a width");
    let scores = (query * (width as f64).powf(-0.5)).matmul(&key.transpose(-2, -1));
    let scores = match mask {
        Some(mask) => scores + mask,
        None => scores,
    };
    mode.dropout(scores.softmax(-1, None)).to_kind(kind).matmul(value)
}
