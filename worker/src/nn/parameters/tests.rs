//! Tests of the flat buffer of parameters and gradients.

use std::collections::BTreeMap;

use config::Precision;
use tch::{Kind, Tensor, no_grad};

use super::*;
use crate::testing;

fn model() -> (Tensor, Tensor, Parameters) {
    let mut builder = ParameterBuilder::new(1, testing::device());
    let weight = builder.normal("weight", &[2, 3], 1.0);
    let bias = builder.constant("bias", &[2], 0.5);
    (weight, bias, builder.finish())
}

#[test]
fn products_read_the_loaded_values() {
    let backend = Backend { device: testing::device(), precision: Precision::Bf16 };
    let mut builder = ParameterBuilder::uninitialized(backend);
    let matrix = builder.matrix("weight", &[2, 3], 1.0);
    let parameters = builder.finish();
    assert_eq!(parameters.backend(), backend);
    let values =
        Tensor::from_slice(&[1.0_f32, -2.0, 0.003_141_592_7, 4e9, 0.0, 7.0]).view([2, 3]).to_device(testing::device());
    parameters.load(&BTreeMap::from([("weight".to_owned(), values.shallow_clone())])).unwrap();
    assert_eq!((&matrix.master, &matrix.working), (&values, &values.to_kind(Kind::BFloat16)));
    // `has_current_working_copy`, which other tests rely on, detects an outdated copy.
    assert!(parameters.has_current_working_copy());
    _ = parameters.flat().shallow_clone().fill_(3.0);
    assert!(!parameters.has_current_working_copy());
}

#[test]
fn tensors_of_the_builder_are_views_of_the_buffer() {
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
    assert_eq!(Vec::<f32>::try_from(&gradient.buffer).unwrap(), expected);
    assert_eq!(Vec::<f32>::try_from(&gradient.values).unwrap(), expected[..8]);
    parameters.stop_training();
    assert!(!weight.requires_grad());
    parameters.start_training(|_| true);
    (weight.sum(Kind::Float) * 2.0).backward();
    assert_eq!(parameters.gradient().unwrap().values.sum(Kind::Float).double_value(&[]), 12.0);
}

#[test]
fn reallocated_gradients_do_not_share_memory_with_the_old_ones() {
    let (weight, bias, mut parameters) = model();
    parameters.reallocate_gradient();
    assert!(parameters.gradient().is_none());
    parameters.start_training(|_| true);
    let mut old = parameters.gradient().unwrap().buffer;
    parameters.reallocate_gradient();
    _ = old.fill_(7.0);
    (weight.sum(Kind::Float) * 2.0 + bias.sum(Kind::Float)).backward();
    assert_eq!(parameters.gradient().unwrap().buffer.sum(Kind::Float).double_value(&[]), 14.0);
}

#[test]
fn only_the_selected_range_is_trained() {
    let mut builder = ParameterBuilder::new(1, testing::device());
    let names = ["a", "b", "c", "d"];
    let tensors = names.map(|name| builder.normal(name, &[3, 2], 1.0));
    // With groups, `b` and `d` come first.
    let mut parameters = builder.finish_in_groups(|name| u8::from(!["b", "d"].contains(&name)));
    assert_eq!(parameters.named_parameters().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "d", "a", "c"]);
    assert_eq!(parameters.flat_trained().size(), [0], "nothing is trained yet");
    parameters.start_training(|name| ["a", "d"].contains(&name));
    assert_eq!(tensors.each_ref().map(Tensor::requires_grad), [true, false, false, true]);
    assert_eq!(parameters.named_trained_parameters().map(|(name, _)| name).collect::<Vec<_>>(), ["d", "a"]);
    let gradient = parameters.gradient().unwrap();
    assert_eq!([gradient.buffer.size(), gradient.values.size()], [[14], [12]]);
    (&tensors[0] * 2.0 + &tensors[1] * 3.0 + &tensors[3] * 5.0).sum(Kind::Float).backward();
    let gradient_of =
        |name| parameters.trained_views(&gradient.values).find(|(actual, _)| *actual == name).map(|(_, view)| view);
    let is_filled_with = |name, value: f64| gradient_of(name).unwrap().eq(value).all().int64_value(&[]) == 1;
    assert!(is_filled_with("a", 2.0) && is_filled_with("d", 5.0) && gradient_of("b").is_none());
    assert_eq!(parameters.weight_decay_mask().size(), [12]);
    _ = no_grad(|| parameters.flat_trained().fill_(7.0));
    assert_eq!(tensors.each_ref().map(|tensor| tensor.double_value(&[0, 0]) == 7.0), [true, false, false, true]);
    // Another selection replaces the first one.
    parameters.start_training(|name| name == "b");
    assert_eq!(tensors.each_ref().map(Tensor::requires_grad), [false, true, false, false]);
    assert_eq!(parameters.gradient().unwrap().values.size(), [6]);
}

#[test]
#[should_panic(expected = "not contiguous")]
fn training_parameters_that_are_not_contiguous_panics() {
    let mut builder = ParameterBuilder::new(1, testing::device());
    _ = ["a", "b", "c"].map(|name| builder.normal(name, &[2], 1.0));
    builder.finish().start_training(|name| name != "b");
}

#[test]
fn a_mismatch_lists_all_parameters_that_do_not_fit() {
    let (_, _, parameters) = model();
    let values = [("weight", [3, 2]), ("other", [1, 1])];
    let values = values.map(|(name, shape)| (name.to_owned(), Tensor::zeros(shape, testing::f32_options())));
    let error = parameters.load(&values.into()).unwrap_err().to_string();
    assert_eq!(error, "missing: bias; extra: other; misshapen: weight [3, 2], not [2, 3]");
}
