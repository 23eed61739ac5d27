//! The builder, which creates a model's parameters and lays them out in one flat buffer.

use config::Precision;
use tch::{Device, Kind, Tensor};
use weights::LoraConfig;
use weights::clip::{LoraTarget, lora_factor_names};

use super::{Backend, ParameterEntry, Parameters};
use crate::nn::lora::LoraWeight;
use crate::nn::operators::MixedPrecisionParameter;

/// Creates the parameters of a model under their names in checkpoints, then lays them out in the
/// flat buffer of [`Parameters`].
///
/// Each parameter is drawn from a generator seeded by the model's seed and the parameter's name, so
/// an additional layer does not change the initial values of the others.
pub struct ParameterBuilder {
    /// The seed of the initial values; none if the caller will overwrite them.
    seed: Option<u64>,
    backend: Backend,
    /// The LoRA factors of the model, and the seed of their initial values.
    lora: Option<(LoraConfig, u64)>,
    parameters: Vec<NewParameter>,
    /// The weights with LoRA factors.
    lora_weights: Vec<LoraWeight>,
}

/// A parameter before it is moved into the flat buffer.
struct NewParameter {
    name: String,
    tensor: Tensor,
    /// The working copy of a matrix or a bias that products read in bf16; else none.
    working: Option<Tensor>,
}

impl ParameterBuilder {
    /// A builder for a model with initial values from `seed`.
    #[must_use]
    pub fn new(seed: u64, backend: impl Into<Backend>) -> Self {
        Self { seed: Some(seed), ..Self::uninitialized(backend) }
    }

    /// A builder for a model whose parameters the caller overwrites. They start as zeros, because
    /// the random initialization of hundreds of millions of values takes seconds.
    #[must_use]
    pub fn uninitialized(backend: impl Into<Backend>) -> Self {
        Self { seed: None, backend: backend.into(), lora: None, parameters: Vec::new(), lora_weights: Vec::new() }
    }

    /// Adds LoRA factors to the weights that `lora` targets. Factors are initialized from `seed`,
    /// also in a builder without a seed.
    #[must_use]
    pub fn with_lora(self, lora: Option<&LoraConfig>, seed: u64) -> Self {
        Self { lora: lora.map(|lora| (lora.clone(), seed)), ..self }
    }

    /// A parameter of this shape, initialized from a normal distribution with mean 0 and this
    /// standard deviation.
    pub fn normal(&mut self, name: &str, shape: &[i64], deviation: f64) -> Tensor {
        self.random_or_zero(name, shape, || Tensor::randn(shape, (Kind::Float, Device::Cpu)) * deviation)
    }

    /// A matrix or a bias for products, of this shape, initialized uniformly in -bound..bound.
    pub fn uniform(&mut self, name: &str, shape: &[i64], bound: f64) -> MixedPrecisionParameter {
        let values = || Tensor::rand(shape, (Kind::Float, Device::Cpu)) * (2.0 * bound) - bound;
        let master = self.random_or_zero(name, shape, values);
        self.with_working_copy(master)
    }

    /// A parameter with random `values`, which depend only on the builder's seed and the name;
    /// zeros if the builder has no seed.
    fn random_or_zero(&mut self, name: &str, shape: &[i64], values: impl FnOnce() -> Tensor) -> Tensor {
        match self.seed {
            Some(seed) => self.random(seed, name, values),
            None => self.constant(name, shape, 0.0),
        }
    }

    /// Seeds libtorch's generator for this parameter, and calls `values`.
    fn random(&mut self, seed: u64, name: &str, values: impl FnOnce() -> Tensor) -> Tensor {
        tch::manual_seed(crate::seeds::derive(seed, name) as i64);
        self.add(name, values())
    }

    /// A parameter of this shape with the initial value `value`.
    pub fn constant(&mut self, name: &str, shape: &[i64], value: f64) -> Tensor {
        self.add(name, Tensor::full(shape, value, (Kind::Float, Device::Cpu)))
    }

    /// A matrix for products, of this shape, initialized from a normal distribution with mean 0 and
    /// this standard deviation.
    pub fn matrix(&mut self, name: &str, shape: &[i64], deviation: f64) -> MixedPrecisionParameter {
        let master = self.normal(name, shape, deviation);
        self.with_working_copy(master)
    }

    /// A bias for products, `[size]`, with the initial value `value`.
    pub fn bias(&mut self, name: &str, size: i64, value: f64) -> MixedPrecisionParameter {
        let master = self.constant(name, &[size], value);
        self.with_working_copy(master)
    }

    /// A matrix `[outputs, inputs]` as by [`Self::matrix`], with LoRA factors if the model has them
    /// for `target`.
    pub fn lora_matrix(&mut self, name: &str, shape: [i64; 2], deviation: f64, target: LoraTarget) -> LoraWeight {
        let base = self.matrix(name, &shape, deviation);
        self.with_lora_factors(name, base, [shape[0], shape[1], 1], target)
    }

    /// A square convolution kernel `[outputs, inputs, side, side]` in 32 bits, initialized from a
    /// normal distribution with mean 0 and this standard deviation, with LoRA factors if the model
    /// has them for `target`.
    pub fn lora_convolution(&mut self, name: &str, shape: [i64; 4], deviation: f64, target: LoraTarget) -> LoraWeight {
        let master = self.normal(name, &shape, deviation);
        let base = MixedPrecisionParameter { working: master.shallow_clone(), master };
        self.with_lora_factors(name, base, [shape[0], shape[1], shape[2]], target)
    }

    /// Adds LoRA factors to the weight `base`: `[outputs, inputs]` (then `side` is 1) or `[outputs,
    /// inputs, side, side]`. The shapes of A and B are those of loralib.
    fn with_lora_factors(
        &mut self,
        name: &str,
        base: MixedPrecisionParameter,
        [outputs, inputs, side]: [i64; 3],
        target: LoraTarget,
    ) -> LoraWeight {
        let Some((LoraConfig { rank, alpha, targets }, seed)) = &self.lora else { return base.into() };
        if !targets.contains(&target) {
            return base.into();
        }
        let (rows, columns, scale, seed) = (side * i64::from(*rank), side * inputs, alpha / f64::from(*rank), *seed);
        let [a, b] = lora_factor_names(name);
        // loralib initializes A uniformly in -1 / sqrt(columns)..1 / sqrt(columns); this normal
        // distribution has the same variance.
        let a = self.random(seed, &a, || {
            Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)) * (3.0 * columns as f64).powf(-0.5)
        });
        let b = self.constant(&b, &[side * outputs, rows], 0.0);
        let MixedPrecisionParameter { master, working } = base;
        let shares_memory = working.kind() == Kind::Float;
        let working = if shares_memory { master.zeros_like() } else { working };
        let weight = LoraWeight::with_factors(MixedPrecisionParameter { master, working }, [a, b], scale);
        self.lora_weights.push(weight.shallow_clone());
        weight
    }

    /// The parameter that was created last, with its working copy: in 32-bit precision the same
    /// tensor, in bf16 a tensor that is empty until [`Self::finish`].
    fn with_working_copy(&mut self, master: Tensor) -> MixedPrecisionParameter {
        let working = match self.backend.precision {
            Precision::F32 => master.shallow_clone(),
            Precision::Bf16 => {
                let working = Tensor::empty([0], (Kind::BFloat16, self.backend.device));
                self.parameters.last_mut().expect("the parameter was just added").working =
                    Some(working.shallow_clone());
                working
            }
        };
        MixedPrecisionParameter { master, working }
    }

    fn add(&mut self, name: &str, values: Tensor) -> Tensor {
        let tensor = values.to_device(self.backend.device);
        self.parameters.push(NewParameter { name: name.to_owned(), tensor: tensor.shallow_clone(), working: None });
        tensor
    }

    /// Moves all parameters into one buffer. The tensors that the builder returned become views of
    /// it.
    #[must_use]
    pub fn finish(self) -> Parameters {
        self.finish_in_groups(|_| 0)
    }

    /// Like [`Self::finish`], with parameters of a lower `group` before those of a higher one, so
    /// that each group is one contiguous range.
    #[must_use]
    pub fn finish_in_groups(self, group: impl Fn(&str) -> u8) -> Parameters {
        let Self { backend: Backend { device, precision }, mut parameters, lora_weights, .. } = self;
        parameters.sort_by_key(|parameter| group(&parameter.name));
        let total = parameters.iter().map(|parameter| parameter.tensor.numel() as i64).sum();
        let flat = Tensor::zeros([total], (Kind::Float, device));
        let flat_working = (precision == Precision::Bf16).then(|| Tensor::zeros([total], (Kind::BFloat16, device)));
        let mut offset = 0;
        let mut entries = Vec::with_capacity(parameters.len());
        for NewParameter { name, mut tensor, working } in parameters {
            let length = tensor.numel() as i64;
            let view_of = |buffer: &Tensor| buffer.narrow(0, offset, length).view(tensor.size().as_slice());
            let mut view = view_of(&flat);
            view.copy_(&tensor);
            if let (Some(flat_working), Some(mut working)) = (&flat_working, working) {
                working.set_data(&view_of(flat_working));
            }
            tensor.set_data(&view);
            entries.push(ParameterEntry { name, offset, length, tensor });
            offset += length;
        }
        let parameters = Parameters { flat, flat_working, lora_weights, entries, training: None };
        parameters.refresh_working_copies();
        parameters
    }
}
