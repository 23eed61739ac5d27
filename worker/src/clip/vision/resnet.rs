//! CLIP's modified ResNet (Radford et al. 2021, section 2.4; `ModifiedResNet` in OpenAI's
//! `clip/model.py`): a stem of three convolutions, average pooling instead of strided convolutions,
//! and attention pooling at the end. Batch norms use their running statistics, which no stage
//! trains.

use tch::Tensor;

use crate::nn::{BatchNorm, DropoutMode, Linear, ParameterBuilder, attention, merge_heads, split_heads};

/// The ratio of a bottleneck's output channels to its inner channels.
const EXPANSION: i64 = 4;

/// The encoder up to its last feature map.
pub struct ModifiedResNet {
    stem: [NormalizedConvolution; 3],
    blocks: Vec<Bottleneck>,
}

impl ModifiedResNet {
    pub fn new(builder: &mut ParameterBuilder, blocks: [usize; 4], width: usize) -> Self {
        let width = width as i64;
        let half_width = width / 2;
        let mut stem_convolution = |number: &str, channels, stride| {
            let side = 3;
            NormalizedConvolution::new(builder, "visual", number, channels, side, stride)
        };
        let colors = 3;
        let stem = [
            stem_convolution("1", (colors, half_width), 2),
            stem_convolution("2", (half_width, half_width), 1),
            stem_convolution("3", (half_width, width), 1),
        ];
        let mut inputs = width;
        let mut bottlenecks = Vec::with_capacity(blocks.iter().sum());
        for (stage, count) in blocks.into_iter().enumerate() {
            let inner_channels = width << stage;
            for block in 0..count {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("visual.layer{}.{block}", stage + 1);
                bottlenecks.push(Bottleneck::new(builder, &name, inputs, inner_channels, stride));
                inputs = inner_channels * EXPANSION;
            }
        }
        Self { stem, blocks: bottlenecks }
    }

    /// Maps pixels `[batch, 3, size, size]` to the cells of the last feature map, row by row,
    /// `[batch, tokens, width]`.
    pub fn hidden_states(&self, images: &Tensor) -> Tensor {
        let x = self.stem.iter().fold(images.shallow_clone(), |x, convolution| convolution.forward(&x).relu());
        let x = self.blocks.iter().fold(average_pool(&x, 2), |x, block| block.forward(&x));
        x.flatten(2, -1).transpose(1, 2).contiguous()
    }
}

/// A convolution without bias, followed by a batch norm.
struct NormalizedConvolution {
    weight: Tensor,
    stride: i64,
    norm: BatchNorm,
}

impl NormalizedConvolution {
    /// A convolution with the parameters `{name}.conv{number}.weight` and `{name}.bn{number}.*`.
    /// `channels` are those of input and output, `side` is the side of the kernel.
    fn new(
        builder: &mut ParameterBuilder,
        name: &str,
        number: &str,
        channels: (i64, i64),
        side: i64,
        stride: i64,
    ) -> Self {
        let (convolution, norm) = (format!("{name}.conv{number}"), format!("{name}.bn{number}"));
        Self::with_names(builder, &convolution, &norm, channels, side, stride)
    }

    /// A convolution with these names of its parameters.
    fn with_names(
        builder: &mut ParameterBuilder,
        convolution: &str,
        norm: &str,
        (inputs, outputs): (i64, i64),
        side: i64,
        stride: i64,
    ) -> Self {
        let deviation = (2.0 / (inputs * side * side) as f64).sqrt();
        let shape = [outputs, inputs, side, side];
        let weight = builder.normal(&format!("{convolution}.weight"), &shape, deviation);
        Self { weight, stride, norm: BatchNorm::new(builder, norm, outputs) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let padding = self.weight.size()[2] / 2;
        self.norm.forward(&x.conv2d(&self.weight, None::<&Tensor>, self.stride, padding, 1, 1))
    }
}

/// A residual block (`Bottleneck` in `clip/model.py`).
struct Bottleneck {
    first: NormalizedConvolution,
    second: NormalizedConvolution,
    third: NormalizedConvolution,
    stride: i64,
    downsample: Option<NormalizedConvolution>,
}

impl Bottleneck {
    fn new(builder: &mut ParameterBuilder, name: &str, inputs: i64, inner_channels: i64, stride: i64) -> Self {
        let outputs = inner_channels * EXPANSION;
        let (convolution, norm) = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
        Self {
            first: NormalizedConvolution::new(builder, name, "1", (inputs, inner_channels), 1, 1),
            second: NormalizedConvolution::new(builder, name, "2", (inner_channels, inner_channels), 3, 1),
            third: NormalizedConvolution::new(builder, name, "3", (inner_channels, outputs), 1, 1),
            stride,
            downsample: (stride > 1 || inputs != outputs)
                .then(|| NormalizedConvolution::with_names(builder, &convolution, &norm, (inputs, outputs), 1, 1)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let out = self.second.forward(&self.first.forward(x).relu()).relu();
        let out = self.third.forward(&average_pool(&out, self.stride));
        match &self.downsample {
            Some(downsample) => out + downsample.forward(&average_pool(x, self.stride)),
            None => out + x,
        }
        .relu()
    }
}

/// Average pooling of `[batch, channels, height, width]` over squares of `side` cells per side.
fn average_pool(x: &Tensor, side: i64) -> Tensor {
    if side == 1 { x.shallow_clone() } else { x.avg_pool2d(side, side, 0, false, true, None) }
}

/// Attention pooling (`AttentionPool2d` in `clip/model.py`): the query is the mean of the feature
/// map, the keys are the mean and all cells.
pub struct AttentionPool {
    heads: i64,
    positional_embedding: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl AttentionPool {
    pub fn new(
        builder: &mut ParameterBuilder,
        (width, tokens, heads): (usize, usize, usize),
        embedding: usize,
    ) -> Self {
        let width = width as i64;
        let deviation = (width as f64).powf(-0.5);
        let mut linear = |part: &str, outputs| {
            Linear::new(builder, &format!("visual.attnpool.{part}_proj"), width, outputs, deviation)
        };
        let [query, key, value] = ["q", "k", "v"].map(|part| linear(part, width));
        let out = linear("c", embedding as i64);
        let shape = [tokens as i64 + 1, width];
        let positional_embedding = builder.normal("visual.attnpool.positional_embedding", &shape, deviation);
        Self { heads: heads as i64, positional_embedding, query, key, value, out }
    }

    /// Maps hidden states `[batch, tokens, width]` to embeddings `[batch, embedding]`.
    pub fn embed(&self, hidden: &Tensor) -> Tensor {
        let mean = hidden.mean_dim(1, true, hidden.kind());
        let x = Tensor::cat(&[&mean, hidden], 1) + &self.positional_embedding;
        let query = split_heads(&self.query.forward(&x.narrow(1, 0, 1)), self.heads);
        let [key, value] = [&self.key, &self.value].map(|linear| split_heads(&linear.forward(&x), self.heads));
        let pooled = merge_heads(&attention(&query, &key, &value, None, DropoutMode::Evaluate));
        self.out.forward(&pooled).squeeze_dim(1)
    }
}
