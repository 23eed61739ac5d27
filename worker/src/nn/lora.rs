//! Weight matrices that may have LoRA factors (Hu et al. 2022).

use tch::{Tensor, no_grad};

use super::operators::{MixedPrecisionParameter, is_grad_enabled};

/// A weight matrix or convolution kernel W that may have LoRA factors A and B. The *effective
/// weight* is W without factors, and W + scale B A with them.
///
/// With factors, matrix products read the effective weight from separate memory, which
/// [`super::Parameters::refresh_working_copies`] updates. So while no gradients are recorded, a
/// product takes no longer than without factors. While gradients are recorded, they flow through
/// the addition to W or to the factors, whichever are trained.
pub struct LoraWeight {
    /// W as `master`; the effective weight, which products read, as `working`.
    base: MixedPrecisionParameter,
    /// Boxed, because most weights have none.
    factors: Option<Box<LoraFactors>>,
}

struct LoraFactors {
    /// A: `[rank, inputs]`, or `[rank k, inputs k]` of a convolution with a kernel of side k.
    a: Tensor,
    /// B: `[outputs, rank]`, or `[outputs k, rank k]`.
    b: Tensor,
    /// alpha / rank.
    scale: f64,
}

impl LoraFactors {
    /// `weight` + scale B A (Hu et al. 2022, equation 3), in the shape of `weight`. A convolution's
    /// B A is reshaped as in loralib (`ConvLoRA`).
    fn added_to(&self, weight: &Tensor) -> Tensor {
        weight + (self.b.matmul(&self.a) * self.scale).view(weight.size().as_slice())
    }
}

impl From<MixedPrecisionParameter> for LoraWeight {
    /// A weight without factors.
    fn from(base: MixedPrecisionParameter) -> Self {
        Self { base, factors: None }
    }
}

impl LoraWeight {
    /// A weight with the factors A and B. Nothing else may use the memory of `base.working`.
    pub(super) fn with_factors(base: MixedPrecisionParameter, [a, b]: [Tensor; 2], scale: f64) -> Self {
        Self { base, factors: Some(Box::new(LoraFactors { a, b, scale })) }
    }

    /// The same weight, sharing its memory.
    pub(super) fn shallow_clone(&self) -> Self {
        let factors = self.factors.as_deref().map(|LoraFactors { a, b, scale }| {
            let [a, b] = [a, b].map(Tensor::shallow_clone);
            Box::new(LoraFactors { a, b, scale: *scale })
        });
        Self { base: self.base.shallow_clone(), factors }
    }

    /// The effective weight for a matrix product, `[outputs, inputs]`. The product reads `working`.
    /// While gradients are recorded, they flow to `master`, which then is the effective weight,
    /// too; otherwise `master` is W.
    #[must_use]
    pub fn parameter(&self) -> MixedPrecisionParameter {
        match &self.factors {
            Some(factors) if is_grad_enabled() => {
                let MixedPrecisionParameter { master, working } = &self.base;
                MixedPrecisionParameter { master: factors.added_to(master), working: working.shallow_clone() }
            }
            _ => self.base.shallow_clone(),
        }
    }

    /// The effective weight for a convolution, `[outputs, inputs, side, side]`, in 32 bits; with
    /// gradients while these are recorded.
    pub fn convolution_weight(&self) -> Tensor {
        match &self.factors {
            Some(factors) if is_grad_enabled() => factors.added_to(&self.base.master),
            _ => self.base.working.shallow_clone(),
        }
    }

    /// Writes the effective weight to the tensor that products read.
    pub(super) fn refresh_working_copy(&self) {
        if let Some(factors) = &self.factors {
            no_grad(|| self.base.working.shallow_clone().copy_(&factors.added_to(&self.base.master)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tch::Kind;
    use weights::LoraConfig;
    use weights::clip::{LoraTarget, is_lora_factor};

    use super::*;
    use crate::nn::{Backend, Linear, ParameterBuilder, Parameters};
    use crate::testing;

    const LORA_SEED: u64 = 5;

    fn lora(alpha: f64) -> LoraConfig {
        LoraConfig { rank: 2, alpha, ..LoraConfig::default() }
    }

    /// A linear layer and a convolution with factors, both with random values.
    fn model(backend: impl Into<Backend>, alpha: f64) -> (Linear, LoraWeight, Parameters) {
        let mut builder = ParameterBuilder::new(1, backend).with_lora(Some(&lora(alpha)), LORA_SEED);
        let layer = Linear::with_lora(&mut builder, "mlp.c_fc", 6, 4, 0.5, LoraTarget::Mlp);
        let kernel = builder.lora_convolution("visual.conv1.weight", [4, 3, 2, 2], 0.5, LoraTarget::PatchEmbedding);
        let parameters = builder.finish();
        tch::manual_seed(2);
        no_grad(|| _ = parameters.flat().shallow_clone().normal_(0.0, 0.5));
        parameters.refresh_working_copies();
        (layer, kernel, parameters)
    }

    fn named(parameters: &Parameters) -> BTreeMap<&str, &Tensor> {
        parameters.named_parameters().collect()
    }

    #[test]
    fn factors_start_without_effect_and_have_the_names_and_shapes_of_pac_s_plus_plus() {
        let mut builder = ParameterBuilder::uninitialized(testing::device()).with_lora(Some(&lora(3.0)), LORA_SEED);
        let weight = builder.lora_matrix("attn.in_proj_weight", [12, 4], 0.5, LoraTarget::Attention);
        _ = builder.lora_convolution("visual.conv1.weight", [4, 3, 2, 2], 0.5, LoraTarget::PatchEmbedding);
        let parameters = builder.finish();
        let sizes: Vec<_> = parameters.named_parameters().map(|(name, tensor)| (name, tensor.size())).collect();
        assert_eq!(
            sizes,
            [
                ("attn.in_proj_weight", vec![12, 4]),
                ("attn.in_proj_weight_lora_A", vec![2, 4]),
                ("attn.in_proj_weight_lora_B", vec![12, 2]),
                ("visual.conv1.weight", vec![4, 3, 2, 2]),
                ("visual.conv1.lora_A", vec![4, 6]),
                ("visual.conv1.lora_B", vec![8, 4]),
            ]
        );
        assert_eq!(weight.parameter().working, weight.parameter().master);
        // A is initialized even if the rest of the model will be overwritten.
        let a = named(&parameters)["attn.in_proj_weight_lora_A"];
        assert!(a.abs().min().double_value(&[]) > 0.0 && a.abs().max().double_value(&[]) < 2.0);
        // Weights that are not among the targets have no factors.
        let few = LoraConfig { targets: [LoraTarget::Mlp].into(), ..lora(1.0) };
        let mut builder = ParameterBuilder::uninitialized(testing::device()).with_lora(Some(&few), LORA_SEED);
        _ = builder.lora_matrix("attn.in_proj_weight", [12, 4], 0.5, LoraTarget::Attention);
        assert_eq!(builder.finish().named_parameters().count(), 1);
    }

    #[test]
    fn frozen_products_read_the_effective_weight() {
        let (layer, kernel, parameters) = model(testing::device(), 3.0);
        let tensors = named(&parameters);
        // Alpha is 3, the rank is 2.
        let effective_weight = |weight: &str, a: &str, b: &str| {
            tensors[weight] + (tensors[b].matmul(tensors[a]) * (3.0 / 2.0)).view(tensors[weight].size().as_slice())
        };
        let x = Tensor::randn([5, 6], testing::f32_options());
        let weight = effective_weight("mlp.c_fc.weight", "mlp.c_fc.lora_A", "mlp.c_fc.lora_B");
        let expected = x.matmul(&weight.transpose(0, 1)) + tensors["mlp.c_fc.bias"];
        assert!(no_grad(|| layer.forward(&x)).allclose(&expected, 1e-5, 1e-6, false));
        let expected = effective_weight("visual.conv1.weight", "visual.conv1.lora_A", "visual.conv1.lora_B");
        assert!(no_grad(|| kernel.convolution_weight()).allclose(&expected, 1e-6, 1e-7, false));
        assert!(kernel.convolution_weight().allclose(&expected, 1e-6, 1e-7, false), "while gradients are recorded");
    }

    #[test]
    fn gradients_of_factors_equal_finite_differences() {
        testing::each_code_path(|| {
            check_gradients(is_lora_factor);
            // Other stages of the same run may train the weights themselves.
            check_gradients(|name| !is_lora_factor(name));
        });
    }

    fn check_gradients(is_trained: fn(&str) -> bool) {
        let (layer, kernel, parameters) = model(testing::device(), 3.0);
        let x = Tensor::randn([5, 6], testing::f32_options());
        let image = Tensor::randn([2, 3, 4, 4], testing::f32_options());
        let loss = || {
            let convolved = image.conv2d(&kernel.convolution_weight(), None::<&Tensor>, 2, 0, 1, 1);
            layer.forward(&x).tanh().square().sum(Kind::Float) + convolved.tanh().square().sum(Kind::Float)
        };
        for (name, tensor) in parameters.named_parameters() {
            _ = tensor.shallow_clone().set_requires_grad(is_trained(name));
        }
        loss().backward();
        let step = 1e-2;
        for (name, tensor) in parameters.named_parameters() {
            let gradient = tensor.grad();
            assert_eq!(gradient.defined(), is_trained(name), "{name}");
            if !gradient.defined() {
                continue;
            }
            let values = tensor.detach().view(-1);
            for index in 0..tensor.numel().min(6) as i64 {
                let loss_after = |change: f64| {
                    no_grad(|| _ = values.narrow(0, index, 1).g_add_scalar_(change));
                    parameters.refresh_working_copies();
                    no_grad(loss).double_value(&[])
                };
                let (above, below) = (loss_after(step), loss_after(-2.0 * step));
                _ = loss_after(step);
                let (actual, expected) = (gradient.view(-1).double_value(&[index]), (above - below) / (2.0 * step));
                assert!(
                    (actual - expected).abs() < 2e-2 * expected.abs().max(0.1),
                    "{name}[{index}]: {actual}, {expected}"
                );
            }
        }
    }

    #[test]
    fn sixteen_bit_products_read_the_effective_weight_in_bf16() {
        let [(exact, ..), (rounded, kernel, parameters)] =
            [Backend::from(testing::device()), testing::bf16_backend()].map(|backend| model(backend, 3.0));
        let x = Tensor::randn([5, 6], testing::f32_options());
        let [expected, actual] = [&exact, &rounded].map(|layer| no_grad(|| layer.forward(&x)).to_kind(Kind::Float));
        assert!(actual.allclose(&expected, 5e-2, 5e-2, false), "{actual} is not {expected}");
        // With factors of zero the result differs.
        no_grad(|| _ = named(&parameters)["mlp.c_fc.lora_B"].shallow_clone().zero_());
        parameters.refresh_working_copies();
        let without = no_grad(|| rounded.forward(&x)).to_kind(Kind::Float);
        assert!(!without.allclose(&expected, 5e-2, 5e-2, false));
        assert_eq!(kernel.convolution_weight().kind(), Kind::Float);
    }
}
