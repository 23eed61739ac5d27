use std::collections::BTreeMap;

use runfile::Precision;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use super::operators::Parameter;

/// Where a model computes, and in how many bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backend {
    /// Where its parameters are.
    pub device: Device,
    /// What matrix products are computed in; all else is in 32 bits.
    pub precision: Precision,
}

impl From<Device> for Backend {
    /// In 32 bits.
    fn from(device: Device) -> Self {
        Self { device, precision: Precision::F32 }
    }
}

/// Makes a model's parameters under their checkpoint names, then lays them out as [`Parameters`].
///
/// Each parameter is drawn from a generator seeded by the model's seed and the parameter's name, so adding a layer does
/// not change how the others start.
pub struct Builder {
    /// None where the values do not matter because others will be copied over them.
    seed: Option<u64>,
    backend: Backend,
    made: Vec<Made>,
}

struct Made {
    name: String,
    tensor: Tensor,
    /// Of a matrix or a bias that products read in another type, the copy that they read.
    working: Option<Tensor>,
}

impl Builder {
    /// A builder for a model of this backend.
    #[must_use]
    pub fn new(seed: u64, backend: impl Into<Backend>) -> Self {
        Self { seed: Some(seed), backend: backend.into(), made: Vec::new() }
    }

    /// A builder for a model whose parameters will be overwritten: drawing hundreds of millions of them takes seconds.
    #[must_use]
    pub fn blank(backend: impl Into<Backend>) -> Self {
        Self { seed: None, backend: backend.into(), made: Vec::new() }
    }

    /// A parameter drawn from a normal distribution around 0.
    pub fn normal(&mut self, name: &str, shape: &[i64], deviation: f64) -> Tensor {
        self.drawn(name, shape, || Tensor::randn(shape, (Kind::Float, Device::Cpu)) * deviation)
    }

    /// A matrix or a bias drawn uniformly from -bound..bound, for products.
    pub fn uniform(&mut self, name: &str, shape: &[i64], bound: f64) -> Parameter {
        let draw = || Tensor::rand(shape, (Kind::Float, Device::Cpu)) * (2.0 * bound) - bound;
        let master = self.drawn(name, shape, draw);
        self.with_working_copy(master)
    }

    fn drawn(&mut self, name: &str, shape: &[i64], draw: impl FnOnce() -> Tensor) -> Tensor {
        let Some(seed) = self.seed else { return self.constant(name, shape, 0.0) };
        tch::manual_seed(crate::seeds::derive(seed, name) as i64);
        self.add(name, draw())
    }

    /// A parameter that starts at `value`.
    pub fn constant(&mut self, name: &str, shape: &[i64], value: f64) -> Tensor {
        self.add(name, Tensor::full(shape, value, (Kind::Float, Device::Cpu)))
    }

    /// A matrix drawn from a normal distribution around 0, for products.
    pub fn matrix(&mut self, name: &str, shape: &[i64], deviation: f64) -> Parameter {
        let master = self.normal(name, shape, deviation);
        self.with_working_copy(master)
    }

    /// A bias that starts at `value`, for products.
    pub fn bias(&mut self, name: &str, size: i64, value: f64) -> Parameter {
        let master = self.constant(name, &[size], value);
        self.with_working_copy(master)
    }

    /// What was made last, with room for the copy that products read.
    fn with_working_copy(&mut self, master: Tensor) -> Parameter {
        let working = match self.backend.precision {
            Precision::F32 => master.shallow_clone(),
            Precision::Bf16 => {
                let working = Tensor::empty([0], (Kind::BFloat16, self.backend.device));
                self.made.last_mut().expect("it was made just now").working = Some(working.shallow_clone());
                working
            }
        };
        Parameter { master, working }
    }

    fn add(&mut self, name: &str, values: Tensor) -> Tensor {
        let tensor = values.to_device(self.backend.device);
        self.made.push(Made { name: name.to_owned(), tensor: tensor.shallow_clone(), working: None });
        tensor
    }

    /// Moves all parameters made so far into one buffer; the tensors handed out become views of it.
    #[must_use]
    pub fn finish(self) -> Parameters {
        let Self { backend: Backend { device, precision }, made, .. } = self;
        let total = made.iter().map(|made| made.tensor.numel() as i64).sum();
        let flat = Tensor::zeros([total], (Kind::Float, device));
        let working = (precision == Precision::Bf16).then(|| Tensor::zeros([total], (Kind::BFloat16, device)));
        let mut offset = 0;
        let mut entries = Vec::with_capacity(made.len());
        for Made { name, mut tensor, working: read } in made {
            let length = tensor.numel() as i64;
            let part = |whole: &Tensor| whole.narrow(0, offset, length).view(tensor.size().as_slice());
            let mut view = part(&flat);
            view.copy_(&tensor);
            if let (Some(whole), Some(mut read)) = (&working, read) {
                read.set_data(&part(whole));
            }
            tensor.set_data(&view);
            entries.push(Entry { name, offset, length, tensor });
            offset += length;
        }
        let parameters = Parameters { flat, working, gradient: None, entries };
        parameters.changed();
        parameters
    }
}

struct Entry {
    name: String,
    offset: i64,
    length: i64,
    tensor: Tensor,
}

/// Values that the ranks sum together with the gradients.
pub const EXTRA: i64 = 2;

/// The gradients of a model, as views of one buffer.
pub struct Gradient {
    /// All of the buffer, `[total + EXTRA]`.
    pub whole: Tensor,
    /// The gradients, `[total]`.
    pub values: Tensor,
    /// What is summed with them, `[EXTRA]`.
    pub extra: Tensor,
}

/// All parameters of a model, as views of one contiguous buffer, in a fixed order.
///
/// While a model is trained its gradients are views of a second such buffer, so an all-reduce, a norm or an optimizer
/// step is a handful of operations whatever the number of layers.
pub struct Parameters {
    flat: Tensor,
    /// What products read, where that is another type, `[total]`.
    working: Option<Tensor>,
    /// Every gradient, then what else the ranks sum, `[total + EXTRA]`.
    gradient: Option<Tensor>,
    entries: Vec<Entry>,
}

impl Parameters {
    /// Every value, `[total]`; writing to it changes the model, which has to be told by [`Parameters::changed`].
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// To be called when values were written: products may read copies of them.
    pub fn changed(&self) {
        if let Some(working) = &self.working {
            no_grad(|| working.shallow_clone().copy_(&self.flat));
        }
    }

    /// Whether what products read is what the values are.
    #[cfg(test)]
    pub fn is_current(&self) -> bool {
        self.working.as_ref().is_none_or(|working| working.equal(&self.flat.to_kind(Kind::BFloat16)))
    }

    /// Where the model computes, and in how many bits.
    #[must_use]
    pub fn backend(&self) -> Backend {
        let precision = if self.working.is_some() { Precision::Bf16 } else { Precision::F32 };
        Backend { device: self.flat.device(), precision }
    }

    /// Overwrites the model with `values`; all names and shapes must fit.
    ///
    /// # Errors
    /// As for [`Parameters::copy_into`].
    pub fn load(&self, values: &BTreeMap<String, Tensor>) -> Result<(), Mismatch> {
        self.copy_into(&self.flat, values)?;
        self.changed();
        Ok(())
    }

    /// While the model is trained: its gradients `[total]`, and behind them, in the same memory, room for [`EXTRA`] further values,
    /// so that one all-reduce sums all of it over the ranks.
    #[must_use]
    pub fn gradient(&self) -> Option<Gradient> {
        let whole = self.gradient.as_ref()?;
        let total = self.flat.size()[0];
        let [values, extra] = [(0, total), (total, EXTRA)].map(|(from, length)| whole.narrow(0, from, length));
        Some(Gradient { whole: whole.shallow_clone(), values, extra })
    }

    /// Lets backward passes add to the gradients, which start at zero.
    pub fn start_training(&mut self) {
        if self.gradient.is_some() {
            return;
        }
        let gradient = Tensor::zeros([self.flat.size()[0] + EXTRA], (Kind::Float, self.flat.device()));
        for entry in &self.entries {
            let leaf = entry.tensor.set_requires_grad(true);
            // A backward pass defines the leaf's gradient; from then on autograd adds to that tensor in place, so it can
            // be given the buffer as its memory.
            if !leaf.grad().defined() {
                (&leaf * 0.0).sum(Kind::Float).backward();
            }
            let view = gradient.narrow(0, entry.offset, entry.length).view(leaf.size().as_slice());
            leaf.grad().set_data(&view);
        }
        self.gradient = Some(gradient);
    }

    /// Takes fresh memory for the gradients: a collective that was given up may write to the present one at any time.
    pub fn renew_gradient(&mut self) {
        if self.gradient.is_some() {
            self.stop_training();
            self.start_training();
        }
    }

    /// Freezes the model and gives the gradients' memory back.
    pub fn stop_training(&mut self) {
        if self.gradient.take().is_none() {
            return;
        }
        for entry in &mut self.entries {
            entry.tensor.grad().set_data(&Tensor::zeros([0], (Kind::Float, self.flat.device())));
            entry.tensor = entry.tensor.set_requires_grad(false);
        }
    }

    /// 1 where a value belongs to a matrix (which weight decay applies to) and 0 where to a vector, `[total]`.
    pub fn matrices(&self) -> Tensor {
        let mask = self.flat.zeros_like();
        for entry in self.entries.iter().filter(|entry| entry.tensor.dim() > 1) {
            _ = mask.narrow(0, entry.offset, entry.length).fill_(1.0);
        }
        mask
    }

    /// Parameters by name, in order.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// Views of a buffer laid out like the parameters (an optimizer moment, say), by name.
    pub fn views<'a>(&'a self, buffer: &'a Tensor) -> impl Iterator<Item = (&'a str, Tensor)> {
        self.entries.iter().map(|entry| {
            let view = buffer.narrow(0, entry.offset, entry.length).view(entry.tensor.size().as_slice());
            (entry.name.as_str(), view)
        })
    }

    /// Copies `values` into `buffer`, which is laid out like the parameters; all names and shapes must fit.
    ///
    /// # Errors
    /// Everything missing, extra or misshapen, at once; then nothing was copied.
    pub fn copy_into(&self, buffer: &Tensor, values: &BTreeMap<String, Tensor>) -> Result<(), Mismatch> {
        let mut mismatch = Mismatch::default();
        for entry in &self.entries {
            match values.get(&entry.name) {
                None => mismatch.missing.push(entry.name.clone()),
                Some(value) if value.size() != entry.tensor.size() => {
                    mismatch.misshapen.push(format!(
                        "{} {:?}, not {:?}",
                        entry.name,
                        value.size(),
                        entry.tensor.size()
                    ));
                }
                Some(_) => {}
            }
        }
        let known = |name: &str| self.entries.iter().any(|entry| entry.name == name);
        mismatch.extra.extend(values.keys().filter(|name| !known(name)).cloned());
        if !mismatch.is_empty() {
            return Err(mismatch);
        }
        no_grad(|| {
            for (name, mut view) in self.views(buffer) {
                view.copy_(&values[name]);
            }
        });
        Ok(())
    }

    /// Feeds every value, in order, to a hash.
    pub fn hash_into(&self, hash: &mut Sha256) {
        let values = self.flat.to_device(Device::Cpu);
        let mut bytes = vec![0_u8; values.numel() * 4];
        values.copy_data_u8(&mut bytes, values.numel());
        hash.update(&bytes);
    }
}

/// How named tensors differ from what a model needs.
#[derive(Debug, Default)]
pub struct Mismatch {
    missing: Vec<String>,
    extra: Vec<String>,
    misshapen: Vec<String>,
}

impl Mismatch {
    fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.extra.is_empty() && self.misshapen.is_empty()
    }
}

impl std::error::Error for Mismatch {}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [("missing", &self.missing), ("extra", &self.extra), ("misshapen", &self.misshapen)];
        let mut separator = "";
        for (what, names) in parts.iter().filter(|(_, names)| !names.is_empty()) {
            write!(f, "{separator}{what}: {}", names.join(", "))?;
            separator = "; ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn model() -> (Tensor, Tensor, Parameters) {
        let mut builder = Builder::new(1, testing::device());
        let weight = builder.normal("weight", &[2, 3], 1.0);
        let bias = builder.constant("bias", &[2], 0.5);
        (weight, bias, builder.finish())
    }

    #[test]
    fn products_read_what_was_loaded() {
        let backend = Backend { device: testing::device(), precision: Precision::Bf16 };
        let mut builder = Builder::blank(backend);
        let matrix = builder.matrix("weight", &[2, 3], 1.0);
        let parameters = builder.finish();
        assert_eq!(parameters.backend(), backend);
        let values = Tensor::from_slice(&[1.0_f32, -2.0, 0.003_141_592_7, 4e9, 0.0, 7.0])
            .view([2, 3])
            .to_device(testing::device());
        parameters.load(&BTreeMap::from([("weight".to_owned(), values.shallow_clone())])).unwrap();
        assert_eq!((&matrix.master, &matrix.working), (&values, &values.to_kind(Kind::BFloat16)));
        // The check that other tests rest on can fail.
        assert!(parameters.is_current());
        _ = parameters.flat().shallow_clone().fill_(3.0);
        assert!(!parameters.is_current());
    }

    #[test]
    fn tensors_handed_out_are_views_of_the_buffer() {
        let (weight, bias, parameters) = model();
        _ = parameters.flat().shallow_clone().fill_(3.0);
        assert_eq!((weight.double_value(&[1, 2]), bias.double_value(&[0])), (3.0, 3.0));
    }

    #[test]
    fn gradients_accumulate_in_the_buffer() {
        let (weight, bias, mut parameters) = model();
        parameters.start_training();
        for _ in 0..2 {
            (weight.sum(Kind::Float) * 2.0 + bias.sum(Kind::Float)).backward();
        }
        let expected = [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 0.0, 0.0_f32];
        let gradient = parameters.gradient().unwrap();
        assert_eq!(Vec::<f32>::try_from(&gradient.whole).unwrap(), expected);
        assert_eq!(Vec::<f32>::try_from(&gradient.values).unwrap(), expected[..8]);
        parameters.stop_training();
        assert!(!weight.requires_grad());
        parameters.start_training();
        (weight.sum(Kind::Float) * 2.0).backward();
        assert_eq!(parameters.gradient().unwrap().values.sum(Kind::Float).double_value(&[]), 12.0);
    }

    #[test]
    fn renewed_gradients_have_nothing_to_do_with_the_old_ones() {
        let (weight, bias, mut parameters) = model();
        parameters.renew_gradient();
        assert!(parameters.gradient().is_none());
        parameters.start_training();
        let mut old = parameters.gradient().unwrap().whole;
        parameters.renew_gradient();
        _ = old.fill_(7.0);
        (weight.sum(Kind::Float) * 2.0 + bias.sum(Kind::Float)).backward();
        assert_eq!(parameters.gradient().unwrap().whole.sum(Kind::Float).double_value(&[]), 14.0);
    }

    #[test]
    fn everything_that_does_not_fit_is_listed_at_once() {
        let (_, _, parameters) = model();
        let values = [("weight", [3, 2]), ("other", [1, 1])];
        let values = values.map(|(name, shape)| (name.to_owned(), Tensor::zeros(shape, testing::floats())));
        let error = parameters.copy_into(parameters.flat(), &values.into()).unwrap_err().to_string();
        assert_eq!(error, "missing: bias; extra: other; misshapen: weight [3, 2], not [2, 3]");
    }
}
