//! Small CLIP models with random weights, in files of the same layout as OpenAI's.

use std::borrow::Cow;
use std::path::Path;

use weights::{Dtype, Tensor};

const WIDTH: usize = 64;
const EMBEDDING: usize = 32;

/// The constants of the 64-bit linear congruential generator of Knuth's MMIX.
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;

/// Writes random weights under OpenAI's names to a safetensors file. The model has images of 32 x
/// 32 pixels in 4 patches, one layer per encoder, and CLIP's vocabulary.
///
/// # Panics
/// The file cannot be written.
pub fn write_random_weights(path: &Path, seed: u64) {
    let mut shapes = vec![
        ("visual.conv1.weight".to_owned(), vec![WIDTH, 3, 16, 16]),
        ("visual.class_embedding".to_owned(), vec![WIDTH]),
        ("visual.positional_embedding".to_owned(), vec![5, WIDTH]),
        ("visual.proj".to_owned(), vec![WIDTH, EMBEDDING]),
        ("token_embedding.weight".to_owned(), vec![49_408, WIDTH]),
        ("positional_embedding".to_owned(), vec![77, WIDTH]),
        ("text_projection".to_owned(), vec![WIDTH, EMBEDDING]),
        ("logit_scale".to_owned(), vec![]),
    ];
    for norm in ["visual.ln_pre", "visual.ln_post", "ln_final"] {
        shapes.extend(with_bias(norm, vec![WIDTH]));
    }
    for block in ["visual.transformer.resblocks.0", "transformer.resblocks.0"] {
        let in_block = |name: &str| format!("{block}.{name}");
        shapes.extend(with_bias(&in_block("ln_1"), vec![WIDTH]));
        shapes.extend(with_bias(&in_block("ln_2"), vec![WIDTH]));
        shapes.push((in_block("attn.in_proj_weight"), vec![3 * WIDTH, WIDTH]));
        shapes.push((in_block("attn.in_proj_bias"), vec![3 * WIDTH]));
        shapes.extend(with_bias(&in_block("attn.out_proj"), vec![WIDTH, WIDTH]));
        shapes.extend(with_bias(&in_block("mlp.c_fc"), vec![4 * WIDTH, WIDTH]));
        shapes.extend(with_bias(&in_block("mlp.c_proj"), vec![WIDTH, 4 * WIDTH]));
    }
    // Entries that are not parameters, by which OpenAI's own files are recognized.
    shapes.extend(["input_resolution", "context_length", "vocab_size"].map(|name| (name.to_owned(), vec![])));
    let mut generator_state = seed;
    let tensors: Vec<_> =
        shapes.into_iter().map(|(name, shape)| (name, random_tensor(shape, &mut generator_state))).collect();
    weights::write_safetensors(path, &tensors).expect("the weights can be written");
}

/// The shapes of a weight with this shape and of its bias.
fn with_bias(name: &str, shape: Vec<usize>) -> [(String, Vec<usize>); 2] {
    let bias = vec![shape[0]];
    [(format!("{name}.weight"), shape), (format!("{name}.bias"), bias)]
}

/// A tensor of numbers in -0.1..0.1 from a linear congruential generator. Its quality does not
/// matter here.
fn random_tensor(shape: Vec<usize>, state: &mut u64) -> Tensor<'static> {
    let count = shape.iter().product::<usize>();
    let numbers = (0..count).flat_map(|_| {
        *state = state.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
        ((*state >> 40) as f32 / 2_f32.powi(24) * 0.2 - 0.1).to_le_bytes()
    });
    Tensor { dtype: Dtype::F32, bytes: Cow::Owned(numbers.collect()), shape }
}
