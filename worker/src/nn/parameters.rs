//! The parameters of a model in one flat buffer, and the builder that creates them.

use std::collections::BTreeMap;
use std::ops::Range;

use config::Precision;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};
use weights::Lora;
use weights::clip::{LoraTarget, lora_factor_names};

use super::lora::Weight;
use super::operators::Parameter;

/// The device and the precision of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backend {
    /// The device of the parameters.
    pub device: Device,
    /// The precision of matrix products; everything else is in 32 bits.
    pub precision: Precision,
}

impl From<Device> for Backend {
    /// The backend with 32-bit products.
    fn from(device: Device) -> Self {
        Self { device, precision: Precision::F32 }
    }
}

/// Creates the parameters of a model under their checkpoint names, then lays them out as
/// [`Parameters`].
///
/// Each parameter is drawn from a generator seeded by the model's seed and the parameter's name, so
/// an additional layer does not change the initial values of the others.
pub struct Builder {
    /// None if the values will be overwritten.
    seed: Option<u64>,
    backend: Backend,
    /// The LoRA factors of the model, and the seed of their initial values.
    lora: Option<(Lora, u64)>,
    made: Vec<Made>,
    /// The weights with factors.
    adapted: Vec<Weight>,
}

struct Made {
    name: String,
    tensor: Tensor,
    /// For a matrix or a bias that products read in another type: the copy that they read.
    working: Option<Tensor>,
}

impl Builder {
    /// A builder for a model with initial values from `seed`.
    #[must_use]
    pub fn new(seed: u64, backend: impl Into<Backend>) -> Self {
        Self { seed: Some(seed), ..Self::blank(backend) }
    }

    /// A builder for a model whose parameters will be overwritten: initializing hundreds of
    /// millions of values takes seconds.
    #[must_use]
    pub fn blank(backend: impl Into<Backend>) -> Self {
        Self { seed: None, backend: backend.into(), lora: None, made: Vec::new(), adapted: Vec::new() }
    }

    /// Adds LoRA factors to the weights that `lora` names. Factors are initialized from `seed` even
    /// if everything else will be overwritten.
    #[must_use]
    pub fn with_lora(self, lora: Option<&Lora>, seed: u64) -> Self {
        Self { lora: lora.map(|lora| (lora.clone(), seed)), ..self }
    }

    /// A parameter initialized from a normal distribution with mean 0.
    pub fn normal(&mut self, name: &str, shape: &[i64], deviation: f64) -> Tensor {
        self.drawn(name, shape, || Tensor::randn(shape, (Kind::Float, Device::Cpu)) * deviation)
    }

    /// A matrix or a bias for products, initialized uniformly in -bound..bound.
    pub fn uniform(&mut self, name: &str, shape: &[i64], bound: f64) -> Parameter {
        let values = || Tensor::rand(shape, (Kind::Float, Device::Cpu)) * (2.0 * bound) - bound;
        let master = self.drawn(name, shape, values);
        self.with_working_copy(master)
    }

    /// A parameter with `values` drawn from its own generator; zeros if it will be overwritten.
    fn drawn(&mut self, name: &str, shape: &[i64], values: impl FnOnce() -> Tensor) -> Tensor {
        match self.seed {
            Some(seed) => self.draw(seed, name, values),
            None => self.constant(name, shape, 0.0),
        }
    }

    fn draw(&mut self, seed: u64, name: &str, values: impl FnOnce() -> Tensor) -> Tensor {
        tch::manual_seed(crate::seeds::derive(seed, name) as i64);
        self.add(name, values())
    }

    /// A parameter with the initial value `value`.
    pub fn constant(&mut self, name: &str, shape: &[i64], value: f64) -> Tensor {
        self.add(name, Tensor::full(shape, value, (Kind::Float, Device::Cpu)))
    }

    /// A matrix for products, initialized from a normal distribution with mean 0.
    pub fn matrix(&mut self, name: &str, shape: &[i64], deviation: f64) -> Parameter {
        let master = self.normal(name, shape, deviation);
        self.with_working_copy(master)
    }

    /// A bias for products, with the initial value `value`.
    pub fn bias(&mut self, name: &str, size: i64, value: f64) -> Parameter {
        let master = self.constant(name, &[size], value);
        self.with_working_copy(master)
    }

    /// A matrix as by [`Self::matrix`], with LoRA factors if the model has them for `target`.
    pub fn adapted_matrix(&mut self, name: &str, shape: [i64; 2], deviation: f64, target: LoraTarget) -> Weight {
        let base = self.matrix(name, &shape, deviation);
        self.with_factors(name, base, [shape[0], shape[1], 1], target)
    }

    /// A square convolution kernel `[outputs, inputs, side, side]` in 32 bits, initialized from a
    /// normal distribution with mean 0, with LoRA factors if the model has them for `target`.
    pub fn adapted_convolution(&mut self, name: &str, shape: [i64; 4], deviation: f64, target: LoraTarget) -> Weight {
        let master = self.normal(name, &shape, deviation);
        let base = Parameter { working: master.shallow_clone(), master };
        self.with_factors(name, base, [shape[0], shape[1], shape[2]], target)
    }

    /// Adds LoRA factors to the weight `base`.
    fn with_factors(
        &mut self,
        name: &str,
        base: Parameter,
        [outputs, inputs, side]: [i64; 3],
        target: LoraTarget,
    ) -> Weight {
        let Some((Lora { rank, alpha, targets }, seed)) = &self.lora else { return base.into() };
        if !targets.contains(&target) {
            return base.into();
        }
        let (rows, columns, scale, seed) = (side * i64::from(*rank), side * inputs, alpha / f64::from(*rank), *seed);
        let [a, b] = lora_factor_names(name);
        // loralib initializes A uniformly within 1 / sqrt(columns); this is a normal distribution
        // of the same variance.
        let a = self.draw(seed, &a, || {
            Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)) * (3.0 * columns as f64).powf(-0.5)
        });
        let b = self.constant(&b, &[side * outputs, rows], 0.0);
        let Parameter { master, working } = base;
        let shares_memory = working.kind() == Kind::Float;
        let working = if shares_memory { master.zeros_like() } else { working };
        let weight = Weight::with_factors(Parameter { master, working }, [a, b], scale);
        self.adapted.push(weight.shallow_clone());
        weight
    }

    /// The parameter that was created last, with an empty tensor for the copy that products read.
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

    /// Moves all parameters into one buffer; tensors returned before become views of it.
    #[must_use]
    pub fn finish(self) -> Parameters {
        self.finish_in_groups(|_| 0)
    }

    /// The same, with parameters of a lower `group` before those of a higher one, so that each
    /// group is one contiguous range.
    #[must_use]
    pub fn finish_in_groups(self, group: impl Fn(&str) -> u8) -> Parameters {
        let Self { backend: Backend { device, precision }, mut made, adapted, .. } = self;
        made.sort_by_key(|made| group(&made.name));
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
        let parameters = Parameters { flat, working, adapted, entries, training: None };
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

impl Entry {
    /// The view of this parameter in a buffer that has the parameters' layout from offset `begin`
    /// on.
    fn view_of(&self, buffer: &Tensor, begin: i64) -> Tensor {
        buffer.narrow(0, self.offset - begin, self.length).view(self.tensor.size().as_slice())
    }
}

/// The offset and the number of values of a range of parameters.
fn span(entries: &[Entry]) -> (i64, i64) {
    let begin = entries.first().map_or(0, |first| first.offset);
    (begin, entries.last().map_or(0, |last| last.offset + last.length - begin))
}

/// Copies `values` into `buffer`, which has the layout of `entries`.
fn copy(entries: &[Entry], buffer: &Tensor, values: &BTreeMap<String, Tensor>) -> Result<(), Mismatch> {
    let mut mismatch = Mismatch::default();
    for entry in entries {
        match values.get(&entry.name) {
            None => mismatch.missing.push(entry.name.clone()),
            Some(value) if value.size() != entry.tensor.size() => {
                let (found, needed) = (value.size(), entry.tensor.size());
                mismatch.misshapen.push(format!("{} {found:?}, not {needed:?}", entry.name));
            }
            Some(_) => {}
        }
    }
    let known = |name: &str| entries.iter().any(|entry| entry.name == name);
    mismatch.extra.extend(values.keys().filter(|name| !known(name)).cloned());
    if !mismatch.is_empty() {
        return Err(mismatch);
    }
    let (begin, _) = span(entries);
    no_grad(|| entries.iter().for_each(|entry| entry.view_of(buffer, begin).copy_(&values[&entry.name])));
    Ok(())
}

/// The number of extra values that ranks sum together with the gradients.
pub const EXTRA: i64 = 2;

/// The gradients of a model, as views of one buffer.
pub struct Gradient {
    /// The whole buffer, `[trained + EXTRA]`.
    pub whole: Tensor,
    /// The gradients, `[trained]`.
    pub values: Tensor,
    /// The extra values, `[EXTRA]`.
    pub extra: Tensor,
}

/// All parameters of a model, as views of one contiguous buffer, in a fixed order.
///
/// All of them or a contiguous range is trained. The gradients of that range are views of a second
/// buffer, so an all-reduce, a norm or an optimizer step takes a few operations whatever the number
/// of layers, and frozen parameters take no part in them.
pub struct Parameters {
    flat: Tensor,
    /// The bf16 copy that products read, `[total]`; none in 32-bit precision.
    working: Option<Tensor>,
    /// Weights whose sum with their LoRA factors is stored for products.
    adapted: Vec<Weight>,
    entries: Vec<Entry>,
    /// None while the model is frozen.
    training: Option<Training>,
}

/// The range of parameters that is trained.
struct Training {
    entries: Range<usize>,
    /// All gradients, then the extra values, `[trained + EXTRA]`.
    gradient: Tensor,
}

impl Parameters {
    /// All values, `[total]`. After writing to it, [`Parameters::changed`] has to be called.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Refreshes the bf16 copy and the sums with LoRA factors, after values were written.
    pub fn changed(&self) {
        if let Some(working) = &self.working {
            no_grad(|| working.shallow_clone().copy_(&self.flat));
        }
        self.adapted.iter().for_each(Weight::refresh);
    }

    /// Whether the bf16 copy is up to date.
    #[cfg(test)]
    pub fn is_current(&self) -> bool {
        self.working.as_ref().is_none_or(|working| working.equal(&self.flat.to_kind(Kind::BFloat16)))
    }

    /// The device and the precision of the model.
    #[must_use]
    pub fn backend(&self) -> Backend {
        let precision = if self.working.is_some() { Precision::Bf16 } else { Precision::F32 };
        Backend { device: self.flat.device(), precision }
    }

    /// Overwrites the model with `values`; all names and shapes have to fit.
    ///
    /// # Errors
    /// All parameters that are missing, unknown, or of a wrong shape. Then nothing is overwritten.
    pub fn load(&self, values: &BTreeMap<String, Tensor>) -> Result<(), Mismatch> {
        copy(&self.entries, &self.flat, values)?;
        self.changed();
        Ok(())
    }

    /// The trained values, `[trained]`; empty for a frozen model. After writing to it,
    /// [`Parameters::changed`] has to be called.
    pub fn trained(&self) -> Tensor {
        let (offset, length) = span(self.trained_entries());
        self.flat.narrow(0, offset, length)
    }

    fn trained_entries(&self) -> &[Entry] {
        self.training.as_ref().map_or(&[], |training| &self.entries[training.entries.clone()])
    }

    /// The gradients of a model in training, `[trained]`, and behind them in the same memory
    /// [`EXTRA`] further values, so that one all-reduce sums everything. None for a frozen model.
    #[must_use]
    pub fn gradient(&self) -> Option<Gradient> {
        let whole = &self.training.as_ref()?.gradient;
        let (_, trained) = span(self.trained_entries());
        let [values, extra] = [(0, trained), (trained, EXTRA)].map(|(from, length)| whole.narrow(0, from, length));
        Some(Gradient { whole: whole.shallow_clone(), values, extra })
    }

    /// Enables gradients, initially zero, for the parameters that are `selected` by name. Freezes
    /// the others.
    ///
    /// # Panics
    /// If the selected parameters are not contiguous: see [`Builder::finish_in_groups`].
    pub fn start_training(&mut self, selected: impl Fn(&str) -> bool) {
        let is_selected = |entry: &Entry| selected(&entry.name);
        let first = self.entries.iter().position(is_selected).unwrap_or(0);
        let end = self.entries.iter().rposition(is_selected).map_or(first, |last| last + 1);
        assert!(self.entries[first..end].iter().all(is_selected), "the trained parameters are no range");
        self.train(first..end);
    }

    fn train(&mut self, range: Range<usize>) {
        self.stop_training();
        let entries = &self.entries[range.clone()];
        let (begin, trained) = span(entries);
        let gradient = Tensor::zeros([trained + EXTRA], (Kind::Float, self.flat.device()));
        for entry in entries {
            let leaf = entry.tensor.set_requires_grad(true);
            // A backward pass defines the leaf's gradient; from then on autograd adds to that
            // tensor in place, so its memory can be replaced by the buffer.
            if !leaf.grad().defined() {
                (&leaf * 0.0).sum(Kind::Float).backward();
            }
            leaf.grad().set_data(&entry.view_of(&gradient, begin));
        }
        self.training = Some(Training { entries: range, gradient });
    }

    /// Allocates new memory for the gradients: an abandoned all-reduce may still write to the old
    /// memory.
    pub fn renew_gradient(&mut self) {
        if let Some(training) = &self.training {
            self.train(training.entries.clone());
        }
    }

    /// Freezes the model, and frees the memory of the gradients.
    pub fn stop_training(&mut self) {
        let Some(training) = self.training.take() else { return };
        for entry in &mut self.entries[training.entries] {
            entry.tensor.grad().set_data(&Tensor::zeros([0], (Kind::Float, self.flat.device())));
            entry.tensor = entry.tensor.set_requires_grad(false);
        }
    }

    /// A mask of the trained values, `[trained]`: 1 for matrices (to which weight decay applies), 0
    /// for vectors.
    pub fn matrices(&self) -> Tensor {
        let mask = self.trained().zeros_like();
        let (begin, _) = span(self.trained_entries());
        for entry in self.trained_entries().iter().filter(|entry| entry.tensor.dim() > 1) {
            _ = entry.view_of(&mask, begin).fill_(1.0);
        }
        mask
    }

    /// All parameters by name, in order.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// The trained parameters by name, in order.
    pub fn named_trained(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.trained_entries().iter().map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// Views by name of a buffer with the layout of the trained parameters (a gradient, or a moment
    /// of the optimizer).
    pub fn trained_views<'a>(&'a self, buffer: &'a Tensor) -> impl Iterator<Item = (&'a str, Tensor)> {
        let (begin, _) = span(self.trained_entries());
        self.trained_entries().iter().map(move |entry| (entry.name.as_str(), entry.view_of(buffer, begin)))
    }

    /// Copies `values` into `buffer`, which has the layout of the trained parameters; all names and
    /// shapes have to fit.
    ///
    /// # Errors
    /// As for [`Parameters::load`].
    pub fn copy_trained(&self, buffer: &Tensor, values: &BTreeMap<String, Tensor>) -> Result<(), Mismatch> {
        copy(self.trained_entries(), buffer, values)
    }

    /// Feeds all values, in order, to a hash.
    pub fn hash_into(&self, hash: &mut Sha256) {
        let values = self.flat.to_device(Device::Cpu);
        let mut bytes = vec![0_u8; values.numel() * 4];
        values.copy_data_u8(&mut bytes, values.numel());
        hash.update(&bytes);
    }
}

/// How named tensors differ from a model's parameters.
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
        // Verifies that the check that other tests rely on can fail.
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
        parameters.start_training(|_| true);
        for _ in 0..2 {
            (weight.sum(Kind::Float) * 2.0 + bias.sum(Kind::Float)).backward();
        }
        let expected = [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 0.0, 0.0_f32];
        let gradient = parameters.gradient().unwrap();
        assert_eq!(Vec::<f32>::try_from(&gradient.whole).unwrap(), expected);
        assert_eq!(Vec::<f32>::try_from(&gradient.values).unwrap(), expected[..8]);
        parameters.stop_training();
        assert!(!weight.requires_grad());
        parameters.start_training(|_| true);
        (weight.sum(Kind::Float) * 2.0).backward();
        assert_eq!(parameters.gradient().unwrap().values.sum(Kind::Float).double_value(&[]), 12.0);
    }

    #[test]
    fn renewed_gradients_have_nothing_to_do_with_the_old_ones() {
        let (weight, bias, mut parameters) = model();
        parameters.renew_gradient();
        assert!(parameters.gradient().is_none());
        parameters.start_training(|_| true);
        let mut old = parameters.gradient().unwrap().whole;
        parameters.renew_gradient();
        _ = old.fill_(7.0);
        (weight.sum(Kind::Float) * 2.0 + bias.sum(Kind::Float)).backward();
        assert_eq!(parameters.gradient().unwrap().whole.sum(Kind::Float).double_value(&[]), 14.0);
    }

    #[test]
    fn only_the_selected_range_is_trained() {
        let mut builder = Builder::new(1, testing::device());
        let names = ["a", "b", "c", "d"];
        let tensors = names.map(|name| builder.normal(name, &[3, 2], 1.0));
        // With groups, `b` and `d` come first.
        let mut parameters = builder.finish_in_groups(|name| u8::from(!["b", "d"].contains(&name)));
        assert_eq!(parameters.named().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "d", "a", "c"]);
        assert_eq!(parameters.trained().size(), [0], "nothing is trained yet");
        parameters.start_training(|name| ["a", "d"].contains(&name));
        assert_eq!(tensors.each_ref().map(Tensor::requires_grad), [true, false, false, true]);
        assert_eq!(parameters.named_trained().map(|(name, _)| name).collect::<Vec<_>>(), ["d", "a"]);
        let gradient = parameters.gradient().unwrap();
        assert_eq!([gradient.whole.size(), gradient.values.size()], [[14], [12]]);
        (&tensors[0] * 2.0 + &tensors[1] * 3.0 + &tensors[3] * 5.0).sum(Kind::Float).backward();
        let of =
            |name| parameters.trained_views(&gradient.values).find(|(found, _)| *found == name).map(|(_, view)| view);
        let filled = |name, value: f64| of(name).unwrap().eq(value).all().int64_value(&[]) == 1;
        assert!(filled("a", 2.0) && filled("d", 5.0) && of("b").is_none());
        assert_eq!(parameters.matrices().size(), [12]);
        _ = no_grad(|| parameters.trained().fill_(7.0));
        assert_eq!(tensors.each_ref().map(|tensor| tensor.double_value(&[0, 0]) == 7.0), [true, false, false, true]);
        // Another selection frees all of the first one's memory.
        parameters.start_training(|name| name == "b");
        assert_eq!(tensors.each_ref().map(Tensor::requires_grad), [false, true, false, false]);
        assert_eq!(parameters.gradient().unwrap().values.size(), [6]);
    }

    #[test]
    #[should_panic(expected = "no range")]
    fn parameters_that_are_scattered_cannot_be_trained_alone() {
        let mut builder = Builder::new(1, testing::device());
        _ = ["a", "b", "c"].map(|name| builder.normal(name, &[2], 1.0));
        builder.finish().start_training(|name| name != "b");
    }

    #[test]
    fn everything_that_does_not_fit_is_listed_at_once() {
        let (_, _, parameters) = model();
        let values = [("weight", [3, 2]), ("other", [1, 1])];
        let values = values.map(|(name, shape)| (name.to_owned(), Tensor::zeros(shape, testing::floats())));
        let error = parameters.load(&values.into()).unwrap_err().to_string();
        assert_eq!(error, "missing: bias; extra: other; misshapen: weight [3, 2], not [2, 3]");
    }
}
