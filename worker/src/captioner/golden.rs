//! The captioner against transformers' BertModel, GPT2LMHeadModel and `generate`.

use serde::Deserialize;
use tch::{Device, Kind, Tensor, no_grad};

use super::*;
use crate::forest::{Forest, Tree};
use crate::golden::{self, Gains, assert_close};

#[derive(Deserialize)]
struct Golden {
    sizes: Sizes,
    prefix: String,
    gains: Gains,
    end_bias: Option<f64>,
    captions: Vec<Vec<i64>>,
    searches: Vec<Searched>,
}

#[derive(Deserialize)]
pub struct Sizes {
    pub vision_width: i64,
    pub vision_tokens: i64,
    width: usize,
    heads: usize,
    encoder_layers: usize,
    encoder_inner: usize,
    decoder_layers: usize,
    positions: usize,
    vocabulary: usize,
    pub begin: i64,
    pub end: i64,
}

#[derive(Deserialize)]
struct Searched {
    beams: usize,
    max_length: usize,
    length_penalty: f64,
    cut_counts_begin: bool,
    images: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    image: usize,
    tokens: Vec<Vec<i64>>,
    scores: Vec<f64>,
}

/// A model by formula.
pub fn by_formula(sizes: &Sizes, prefix: &str, gains: &Gains) -> Captioner {
    let architecture = CaptionerArchitecture {
        vision_width: sizes.vision_width as usize,
        width: sizes.width,
        heads: sizes.heads,
        encoder_layers: sizes.encoder_layers,
        encoder_inner: sizes.encoder_inner,
        encoder_positions: 512,
        decoder_layers: sizes.decoder_layers,
        decoder_inner: 4 * sizes.width,
        positions: sizes.positions,
        vocabulary_size: sizes.vocabulary,
    };
    let captioner = Captioner::build(architecture, Builder::blank(Device::Cpu));
    golden::fill(captioner.parameters(), prefix, gains);
    captioner
}

/// Vision hidden states by formula, `[images, tokens, width]`.
pub fn hidden(sizes: &Sizes, names: impl Iterator<Item = String>) -> Tensor {
    let images = names.map(|name| golden::input(&name, &[sizes.vision_tokens, sizes.vision_width]));
    Tensor::stack(&images.collect::<Vec<_>>(), 0)
}

fn case() -> (Golden, Captioner) {
    let golden: Golden = golden::json("captioner/captioner.json");
    let captioner = by_formula(&golden.sizes, &golden.prefix, &golden.gains);
    if let Some(factor) = golden.end_bias {
        let named: BTreeMap<_, _> = captioner.parameters().named().collect();
        let end = named["decoder.transformer.wte.weight"].get(golden.sizes.end) * factor;
        no_grad(|| named["decoder.transformer.ln_f.bias"].shallow_clone().copy_(&end));
    }
    (golden, captioner)
}

/// Captions one by one with all their tokens, and where in `[captions * longest]` those are.
fn whole(captions: &[Vec<i64>]) -> (Forest, Tensor) {
    let trees: Vec<Tree> = captions.iter().map(|caption| Tree::plant([&caption[..]])).collect();
    let forest = Forest::new(&trees, Device::Cpu);
    let places = captions.iter().enumerate();
    let places = places.flat_map(|(tree, caption)| (0..caption.len()).map(move |node| (tree, node)));
    let real: Vec<i64> = places.map(|(tree, node)| forest.place(tree, node)).collect();
    (forest, Tensor::from_slice(&real))
}

#[test]
fn logits_and_log_probabilities_agree_with_transformers() {
    let (Golden { sizes, captions, .. }, captioner) = case();
    let expected = golden::tensors("captioner/captioner.safetensors");
    let hidden = hidden(&sizes, (0..captions.len()).map(|number| format!("image{number}")));
    let (whole, real) = whole(&captions);
    no_grad(|| {
        let memory = captioner.encoder.forward(&hidden, Mode::Evaluate);
        let shown = memory.narrow(1, 0, expected["encoded"].size()[1]);
        assert_close("encoded", &shown, &expected["encoded"], 1e-4);
        let decoded = captioner.decoder.forward(&whole, &memory, Mode::Evaluate).flatten(0, 1).index_select(0, &real);
        let stride = (sizes.vocabulary as i64 / 64).max(1);
        let logits = nn::logits(&decoded, captioner.decoder.output()).slice(1, None, None, stride);
        assert_close("logits", &logits, &expected["logits"].flatten(0, 1).index_select(0, &real), 1e-4);
        let scored = Captions::new(&captions, 1, Device::Cpu);
        let packed = captioner.token_log_probabilities(&hidden, &scored, Mode::Evaluate);
        assert_close("log-probabilities", &packed.sums(), &expected["log_probabilities"], 1e-4);
        let tokens = &expected["token_log_probabilities"];
        let lengths = Tensor::from_slice(&captions.iter().map(|caption| caption.len() as i64 - 1).collect::<Vec<_>>());
        let predicted = Tensor::arange(tokens.size()[1], (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let predicted = predicted.lt_tensor(&lengths.unsqueeze(1));
        assert_close("of tokens", &packed.values, &tokens.masked_select(&predicted), 1e-4);
    });
}

#[test]
fn beams_are_those_of_generate_token_for_token() {
    let (Golden { sizes, searches, .. }, captioner) = case();
    for Searched { beams, max_length, length_penalty, cut_counts_begin, images } in searches {
        let begin_counts_when_cut = cut_counts_begin;
        let (begin, end) = (sizes.begin, sizes.end);
        let settings = Search { beams, max_length, length_penalty, begin_counts_when_cut, begin, end };
        // All at once: images that end early beside others that do not.
        let hidden = hidden(&sizes, images.iter().map(|found| format!("image{}", found.image)));
        let found = captioner.search(&hidden, &settings);
        for (expected, found) in images.iter().zip(found) {
            let place = format!("{settings:?}, image {}", expected.image);
            let tokens: Vec<_> = found.iter().map(|hypothesis| hypothesis.tokens.clone()).collect();
            assert_eq!(tokens, expected.tokens, "{place}");
            for (hypothesis, score) in found.iter().zip(&expected.scores) {
                assert!((hypothesis.score - score).abs() < 1e-4, "{place}: {} is not {score}", hypothesis.score);
            }
        }
        println!("k = {beams}, at most {max_length}, penalty {length_penalty}: {} images alike", images.len());
    }
}

#[derive(Deserialize)]
struct ReleasedGolden {
    images: i64,
    captions: Vec<Vec<i64>>,
    hidden_tokens: i64,
    logits_stride: i64,
}

#[test]
fn released_folders_load_and_compute_what_transformers_does() {
    let golden: ReleasedGolden = golden::json("released/released.json");
    let expected = golden::tensors("released/released.safetensors");
    for folder in ["pickle", "shards"] {
        let released = weights::Released::open(&golden::path(&format!("released/{folder}"))).unwrap();
        let vision = crate::tensors::from_weights(released.vision_tensors().unwrap());
        let eyes = crate::clip::Eyes::new(released.vision().clone(), &vision, Device::Cpu).unwrap();
        let values = crate::tensors::from_weights(released.captioner_tensors());
        let captioner = Captioner::with(released.captioner().clone(), &values, Device::Cpu).unwrap();
        let side = released.vision().image_size as i64;
        let pixels = (0..golden.images).map(|n| golden::input(&format!("released.pixels{n}"), &[3, side, side]));
        let (captions, real) = whole(&golden.captions);
        no_grad(|| {
            let hidden = eyes.hidden(&Tensor::stack(&pixels.collect::<Vec<_>>(), 0));
            let shown = hidden.narrow(1, 0, golden.hidden_tokens.min(hidden.size()[1]));
            assert_close(&format!("{folder}: hidden"), &shown, &expected["hidden"], 1e-4);
            let image_of = (0..golden.captions.len() as i64).map(|caption| caption % golden.images);
            let image_of = Tensor::from_slice(&image_of.collect::<Vec<_>>());
            let memory = captioner.encoder.forward(&hidden.index_select(0, &image_of), Mode::Evaluate);
            let decoded = captioner.decoder.forward(&captions, &memory, Mode::Evaluate);
            let decoded = decoded.flatten(0, 1).index_select(0, &real);
            let logits = nn::logits(&decoded, captioner.decoder.output()).slice(1, None, None, golden.logits_stride);
            let expected = expected["logits"].flatten(0, 1).index_select(0, &real);
            assert_close(&format!("{folder}: logits"), &logits, &expected, 1e-4);
        });
    }
}
