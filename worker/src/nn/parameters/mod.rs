//! The parameters of a model in one flat buffer, and the builder that creates them.

mod builder;
mod mismatch;

use std::collections::BTreeMap;
use std::ops::Range;

use config::Precision;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

pub use builder::ParameterBuilder;
pub use mismatch::ParameterMismatchError;

use super::lora::LoraWeight;

/// Where and in which precision a model computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backend {
    /// The device of the parameters.
    pub device: Device,
    /// The type in which linear layers and attention compute and return their results. Parameters,
    /// gradients, the residual stream and normalizations are in 32 bits.
    pub precision: Precision,
}

impl From<Device> for Backend {
    /// The backend with 32-bit products.
    fn from(device: Device) -> Self {
        Self { device, precision: Precision::F32 }
    }
}

/// A parameter in the flat buffer.
struct ParameterEntry {
    name: String,
    /// The index of its first value in the buffer.
    offset: i64,
    /// The number of its values.
    length: i64,
    /// The view of its values in the buffer.
    tensor: Tensor,
}

impl ParameterEntry {
    /// The view of this parameter in a buffer whose first value is at offset `begin` of the
    /// parameters' layout.
    fn view_of(&self, buffer: &Tensor, begin: i64) -> Tensor {
        buffer.narrow(0, self.offset - begin, self.length).view(self.tensor.size().as_slice())
    }
}

/// The offset and the number of values of a range of parameters.
fn offset_and_length(entries: &[ParameterEntry]) -> (i64, i64) {
    let begin = entries.first().map_or(0, |first| first.offset);
    (begin, entries.last().map_or(0, |last| last.offset + last.length - begin))
}

/// Copies `values` into `buffer`, which has the layout of `entries`.
///
/// # Errors
/// Lists all entries that are missing, unknown, or of a wrong shape. In this case nothing is
/// copied.
fn copy_values(
    entries: &[ParameterEntry],
    buffer: &Tensor,
    values: &BTreeMap<String, Tensor>,
) -> Result<(), ParameterMismatchError> {
    let mut mismatch = ParameterMismatchError::default();
    for entry in entries {
        match values.get(&entry.name) {
            None => mismatch.missing.push(entry.name.clone()),
            Some(value) if value.size() != entry.tensor.size() => {
                let (found, needed) = (value.size(), entry.tensor.size());
                mismatch.wrong_shape.push(format!("{} {found:?}, not {needed:?}", entry.name));
            }
            Some(_) => {}
        }
    }
    let is_parameter = |name: &str| entries.iter().any(|entry| entry.name == name);
    mismatch.extra.extend(values.keys().filter(|name| !is_parameter(name)).cloned());
    if !mismatch.is_empty() {
        return Err(mismatch);
    }
    let (begin, _) = offset_and_length(entries);
    no_grad(|| entries.iter().for_each(|entry| entry.view_of(buffer, begin).copy_(&values[&entry.name])));
    Ok(())
}

/// The number of extra values that ranks sum together with the gradients: the weight of the loss,
/// and the halt flag.
pub const EXTRA_VALUES: i64 = 2;

/// The gradients of a model, and the values that ranks sum together with them, as views of one
/// buffer.
pub struct GradientBuffer {
    /// The whole buffer, `[trained + EXTRA_VALUES]`: one all-reduce sums all of it.
    pub buffer: Tensor,
    /// The gradients, `[trained]`.
    pub values: Tensor,
    /// The extra values, `[EXTRA_VALUES]`.
    pub extra: Tensor,
}

/// All parameters of a model, as views of one contiguous buffer, in a fixed order.
///
/// All of them, a contiguous range, or none is trained. The gradients of that range are views of a
/// second buffer. So an all-reduce, a norm or an optimizer step takes a few operations, independent
/// of the number of layers, and frozen parameters take no part in them.
pub struct Parameters {
    /// All values, `[total]`.
    flat: Tensor,
    /// The bf16 copies that products read, `[total]`; none in 32-bit precision.
    flat_working: Option<Tensor>,
    /// Weights with LoRA factors; products read the effective weights.
    lora_weights: Vec<LoraWeight>,
    /// All parameters, in the order of the buffer.
    entries: Vec<ParameterEntry>,
    /// None while the model is frozen.
    training: Option<TrainedRange>,
}

/// The contiguous range of parameters that is trained, with its gradients.
struct TrainedRange {
    /// The indices of the trained parameters.
    entries: Range<usize>,
    /// All gradients, then the extra values, `[trained + EXTRA_VALUES]`.
    gradient: Tensor,
}

impl Parameters {
    /// All values, `[total]`. A caller that writes to them has to call
    /// [`Parameters::refresh_working_copies`] afterwards.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Recomputes the copies that products read: the bf16 copy, and the effective weights of
    /// [`LoraWeight`].
    pub fn refresh_working_copies(&self) {
        if let Some(working) = &self.flat_working {
            no_grad(|| working.shallow_clone().copy_(&self.flat));
        }
        self.lora_weights.iter().for_each(LoraWeight::refresh_working_copy);
    }

    /// Whether the bf16 copy equals the parameters; true in 32-bit precision.
    #[cfg(test)]
    #[must_use]
    pub fn has_current_working_copy(&self) -> bool {
        self.flat_working.as_ref().is_none_or(|working| working.equal(&self.flat.to_kind(Kind::BFloat16)))
    }

    /// The device and the precision of the model.
    #[must_use]
    pub fn backend(&self) -> Backend {
        let precision = if self.flat_working.is_some() { Precision::Bf16 } else { Precision::F32 };
        Backend { device: self.flat.device(), precision }
    }

    /// Overwrites the model with `values`; all names and shapes have to fit.
    ///
    /// # Errors
    /// Lists all parameters that are missing, unknown, or of a wrong shape. Then nothing is
    /// overwritten.
    pub fn load(&self, values: &BTreeMap<String, Tensor>) -> Result<(), ParameterMismatchError> {
        copy_values(&self.entries, &self.flat, values)?;
        self.refresh_working_copies();
        Ok(())
    }

    /// The trained values, `[trained]`; empty for a frozen model. A caller that writes to them has
    /// to call [`Parameters::refresh_working_copies`] afterwards.
    pub fn flat_trained(&self) -> Tensor {
        let (offset, length) = offset_and_length(self.trained_entries());
        self.flat.narrow(0, offset, length)
    }

    fn trained_entries(&self) -> &[ParameterEntry] {
        self.training.as_ref().map_or(&[], |training| &self.entries[training.entries.clone()])
    }

    /// The gradients of a model in training, `[trained]`, and [`EXTRA_VALUES`] values after them in
    /// the same memory. None for a frozen model.
    #[must_use]
    pub fn gradient(&self) -> Option<GradientBuffer> {
        let buffer = &self.training.as_ref()?.gradient;
        let (_, trained) = offset_and_length(self.trained_entries());
        let [values, extra] =
            [(0, trained), (trained, EXTRA_VALUES)].map(|(from, length)| buffer.narrow(0, from, length));
        Some(GradientBuffer { buffer: buffer.shallow_clone(), values, extra })
    }

    /// Enables gradients, initially zero, for the parameters whose name `is_trained` selects.
    /// Freezes the others.
    ///
    /// # Panics
    /// If the selected parameters are not contiguous: see [`ParameterBuilder::finish_in_groups`].
    pub fn start_training(&mut self, is_trained: impl Fn(&str) -> bool) {
        let is_selected = |entry: &ParameterEntry| is_trained(&entry.name);
        let first = self.entries.iter().position(is_selected).unwrap_or(0);
        let end = self.entries.iter().rposition(is_selected).map_or(first, |last| last + 1);
        assert!(self.entries[first..end].iter().all(is_selected), "the trained parameters are not contiguous");
        self.train_range(first..end);
    }

    /// Allocates the gradients of the parameters `range`, and enables them.
    fn train_range(&mut self, range: Range<usize>) {
        self.stop_training();
        let entries = &self.entries[range.clone()];
        let (begin, trained) = offset_and_length(entries);
        let gradient = Tensor::zeros([trained + EXTRA_VALUES], (Kind::Float, self.flat.device()));
        for entry in entries {
            let leaf = entry.tensor.set_requires_grad(true);
            // A backward pass defines the leaf's gradient; from then on autograd adds to that
            // tensor in place, so its memory can be replaced by the buffer.
            if !leaf.grad().defined() {
                (&leaf * 0.0).sum(Kind::Float).backward();
            }
            leaf.grad().set_data(&entry.view_of(&gradient, begin));
        }
        self.training = Some(TrainedRange { entries: range, gradient });
    }

    /// Moves the gradients to new memory and sets them to zero: an abandoned all-reduce may still
    /// write to the old memory.
    pub fn reallocate_gradient(&mut self) {
        if let Some(training) = &self.training {
            self.train_range(training.entries.clone());
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

    /// A mask of the trained values, `[trained]`: 1 for matrices, to which weight decay applies,
    /// and 0 for vectors.
    pub fn weight_decay_mask(&self) -> Tensor {
        let mask = self.flat_trained().zeros_like();
        let (begin, _) = offset_and_length(self.trained_entries());
        for entry in self.trained_entries().iter().filter(|entry| entry.tensor.dim() > 1) {
            _ = entry.view_of(&mask, begin).fill_(1.0);
        }
        mask
    }

    /// All parameters by name, in order.
    pub fn named_parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// The trained parameters by name, in order.
    pub fn named_trained_parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.trained_entries().iter().map(|entry| (entry.name.as_str(), &entry.tensor))
    }

    /// Views by name of a buffer `[trained]` with the layout of the trained parameters (a gradient,
    /// or a moment of the optimizer).
    pub fn trained_views<'a>(&'a self, buffer: &'a Tensor) -> impl Iterator<Item = (&'a str, Tensor)> {
        let (begin, _) = offset_and_length(self.trained_entries());
        self.trained_entries().iter().map(move |entry| (entry.name.as_str(), entry.view_of(buffer, begin)))
    }

    /// Copies `values` into `buffer` `[trained]`, which has the layout of the trained parameters;
    /// all names and shapes have to fit.
    ///
    /// # Errors
    /// As for [`Parameters::load`].
    pub fn copy_into_trained_layout(
        &self,
        buffer: &Tensor,
        values: &BTreeMap<String, Tensor>,
    ) -> Result<(), ParameterMismatchError> {
        copy_values(self.trained_entries(), buffer, values)
    }

    /// Updates a hash with the bytes of all values, in order.
    pub fn hash_into(&self, hash: &mut Sha256) {
        let values = self.flat.to_device(Device::Cpu);
        let mut bytes = vec![0_u8; values.numel() * 4];
        values.copy_data_u8(&mut bytes, values.numel());
        hash.update(&bytes);
    }
}

#[cfg(test)]
mod tests;
