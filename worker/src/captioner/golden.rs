//! Tests of the captioner against transformers' BertModel, GPT2LMHeadModel and `generate`.

use serde::Deserialize;
use tch::{Kind, Tensor, no_grad};

use super::*;
use crate::prefix_tree::{PrefixTree, PrefixTreeBatch};
use crate::testing;
use crate::testing::golden_files::{self, ParameterGains, assert_close, sixteen_bit_tolerance};

#[derive(Deserialize)]
struct GoldenCaptioner {
    sizes: CaptionerSizes,
    /// The prefix of parameter names in the formula.
    prefix: String,
    gains: ParameterGains,
    /// The final layer norm's bias is the end token's embedding times this number, so that captions
    /// end.
    end_bias: Option<f64>,
    captions: Vec<Vec<i64>>,
    searches: Vec<GoldenSearch>,
}

#[derive(Clone, Copy, Deserialize)]
pub struct CaptionerSizes {
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
struct GoldenSearch {
    beams: usize,
    max_length: usize,
    length_penalty: f64,
    /// [`GenerationConfig::cut_length_includes_bos`].
    cut_counts_begin: bool,
    images: Vec<ExpectedBeams>,
}

/// The beams of `generate` for one image.
#[derive(Deserialize)]
struct ExpectedBeams {
    image: usize,
    tokens: Vec<Vec<i64>>,
    scores: Vec<f64>,
    /// The smallest difference between two scores whose order decides which captions are returned.
    /// Only searches with a larger gap than the rounding error are compared.
    gap: f64,
}

/// A model whose parameters are given by a formula.
pub fn captioner_by_formula(
    sizes: &CaptionerSizes,
    prefix: &str,
    gains: &ParameterGains,
    backend: impl Into<Backend>,
) -> Captioner {
    let config = CaptionerConfig {
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
    let captioner = Captioner::uninitialized(config, backend);
    golden_files::fill_by_formula(captioner.parameters(), prefix, gains);
    captioner
}

/// Hidden states of the vision encoder given by a formula, `[images, tokens, width]`.
pub fn hidden_states(sizes: &CaptionerSizes, names: impl Iterator<Item = String>) -> Tensor {
    let images = names.map(|name| golden_files::input_by_formula(&name, &[sizes.vision_tokens, sizes.vision_width]));
    Tensor::stack(&images.collect::<Vec<_>>(), 0)
}

/// The golden file and its captioner.
fn golden_captioner(backend: Backend) -> (GoldenCaptioner, Captioner) {
    let golden: GoldenCaptioner = golden_files::json("captioner/captioner.json");
    let captioner = captioner_by_formula(&golden.sizes, &golden.prefix, &golden.gains, backend);
    if let Some(factor) = golden.end_bias {
        let named: BTreeMap<_, _> = captioner.parameters().named_parameters().collect();
        let end = named["decoder.transformer.wte.weight"].get(golden.sizes.end) * factor;
        no_grad(|| named["decoder.transformer.ln_f.bias"].shallow_clone().copy_(&end));
        captioner.parameters.refresh_working_copies();
    }
    (golden, captioner)
}

/// A batch with one tree per caption; the indices of the captions' tokens in the batch, and in the
/// expected values `[captions * longest]`.
fn one_tree_per_caption(captions: &[Vec<i64>]) -> (PrefixTreeBatch, Tensor, Tensor) {
    let trees: Vec<PrefixTree> = captions.iter().map(|caption| PrefixTree::build([&caption[..]])).collect();
    let batch = PrefixTreeBatch::new(&trees, testing::device());
    let longest = captions.iter().map(Vec::len).max().unwrap_or(0);
    let tokens = captions.iter().enumerate();
    let tokens = tokens.flat_map(|(tree, caption)| (0..caption.len()).map(move |node| (tree, node)));
    let nodes: Vec<i64> = tokens.clone().map(|(tree, node)| batch.flat_index(tree, node)).collect();
    let expected: Vec<i64> = tokens.map(|(tree, node)| (tree * longest + node) as i64).collect();
    (batch, Tensor::from_slice(&nodes).to_device(testing::device()), Tensor::from_slice(&expected))
}

#[test]
fn logits_and_log_probabilities_agree_with_transformers() {
    testing::each_code_path(|| _ = check_logits(testing::device().into(), |_, _| 1e-4));
}

#[test]
fn sixteen_bit_logits_and_log_probabilities_agree_within_rounding_error() {
    testing::each_code_path(|| _ = check_logits(testing::bf16_backend(), sixteen_bit_tolerance));
}

/// Compares logits and log-probabilities. `tolerance(expected, layers)` is the tolerance for a
/// tensor that a number of layers has computed. Returns the tolerance for the log-probability of a
/// token.
fn check_logits(backend: Backend, tolerance: impl Fn(&Tensor, usize) -> f64) -> f64 {
    let (GoldenCaptioner { sizes, captions, .. }, captioner) = golden_captioner(backend);
    let (encoder_layers, all_layers) = (sizes.encoder_layers, sizes.encoder_layers + sizes.decoder_layers);
    let expected = golden_files::tensors("captioner/captioner.safetensors");
    let hidden = hidden_states(&sizes, (0..captions.len()).map(|number| format!("image{number}")));
    let (inputs, nodes, expected_indices) = one_tree_per_caption(&captions);
    no_grad(|| {
        let memory = captioner.encoder.forward(&hidden, DropoutMode::Evaluate);
        let compared = memory.narrow(1, 0, expected["encoded"].size()[1]);
        assert_close("encoded", &compared, &expected["encoded"], tolerance(&expected["encoded"], encoder_layers));
        let decoded = captioner.decoder.forward(&inputs, &memory, DropoutMode::Evaluate);
        let decoded = decoded.flatten(0, 1).index_select(0, &nodes);
        let stride = (sizes.vocabulary as i64 / 64).max(1);
        let logits = nn::logits(&decoded, captioner.decoder.output_projection()).slice(1, None, None, stride);
        // A log-probability is a logit minus the logsumexp, in which the errors of logits average.
        let per_token = tolerance(&expected["logits"], all_layers);
        let expected_logits = expected["logits"].flatten(0, 1).index_select(0, &expected_indices);
        assert_close("logits", &logits, &expected_logits, per_token);
        let scored = CaptionBatch::new(&captions, 1, testing::device());
        let token_values = captioner.token_log_probabilities(&hidden, &scored, DropoutMode::Evaluate);
        assert_close(
            "log-probabilities",
            &token_values.sums(),
            &expected["log_probabilities"],
            caption_tolerance(per_token, &captions),
        );
        let tokens = &expected["token_log_probabilities"];
        let lengths = Tensor::from_slice(&captions.iter().map(|caption| caption.len() as i64 - 1).collect::<Vec<_>>());
        let predicted = Tensor::arange(tokens.size()[1], (Kind::Int64, tch::Device::Cpu)).unsqueeze(0);
        let predicted = predicted.lt_tensor(&lengths.unsqueeze(1));
        assert_close("of tokens", &token_values.values, &tokens.masked_select(&predicted), per_token);
        per_token
    })
}

/// The tolerance for sums over the tokens of a caption, given the tolerance for each token.
fn caption_tolerance(per_token: f64, captions: &[Vec<i64>]) -> f64 {
    let longest = captions.iter().map(Vec::len).max().unwrap_or(1);
    // The tolerance in 32 bits, 1e-4, also holds for sums.
    if per_token > 1e-4 { per_token * (longest as f64).sqrt() } else { per_token }
}

#[test]
fn beam_search_returns_the_tokens_of_transformers_generate() {
    testing::each_code_path(check_beams);
}

fn check_beams() {
    let (GoldenCaptioner { sizes, searches, .. }, captioner) = golden_captioner(testing::device().into());
    for GoldenSearch { beams, max_length, length_penalty, cut_counts_begin, images } in searches {
        let cut_length_includes_bos = cut_counts_begin;
        let (bos_token_id, eos_token_id) = (sizes.begin, sizes.end);
        let settings =
            GenerationConfig { beams, max_length, length_penalty, cut_length_includes_bos, bos_token_id, eos_token_id };
        // On a GPU the first search computes, the second captures graphs, and the third replays
        // them.
        for round in 0..3 {
            let images: Vec<&ExpectedBeams> = images.iter().cycle().skip(round).take(images.len()).collect();
            // Searches of the same batch may end at different steps.
            let hidden = hidden_states(&sizes, images.iter().map(|expected| format!("image{}", expected.image)));
            let actual = captioner.beam_search(&hidden, &settings, DropoutMode::Evaluate);
            for (expected, actual) in images.iter().zip(actual) {
                let case = format!("{settings:?}, image {}, round {round}", expected.image);
                let tokens: Vec<_> = actual.iter().map(|hypothesis| hypothesis.tokens.clone()).collect();
                assert_eq!(tokens, expected.tokens, "{case}");
                for (hypothesis, score) in actual.iter().zip(&expected.scores) {
                    assert!((hypothesis.score - score).abs() < 1e-4, "{case}: {} is not {score}", hypothesis.score);
                }
            }
        }
        println!("k = {beams}, max_length {max_length}, penalty {length_penalty}: {} images agree", images.len());
    }
}

#[derive(Deserialize)]
struct ProjectionGolden {
    inputs: usize,
    outputs: i64,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

#[test]
fn a_uniform_projection_is_initialized_like_torch_nn_linear() {
    let golden: ProjectionGolden = golden_files::json("captioner/projection.json");
    let new = |projection| {
        let config = preset(Preset::Tiny, golden.inputs, 50, 100);
        assert_eq!(config.width as i64, golden.outputs);
        Captioner::new(config, projection, 7, testing::device())
    };
    let [uniform, normal] = [ProjectionInit::Uniform, ProjectionInit::Normal].map(new);
    let parameters = |captioner: &Captioner| {
        let named = captioner.parameters().named_parameters();
        named.map(|(name, value)| (name.to_owned(), value.shallow_clone())).collect::<BTreeMap<_, _>>()
    };
    let (uniform, normal) = (parameters(&uniform), parameters(&normal));
    // `allowed` is in units of the largest expected value. Quantiles of the same distribution
    // differ by less, those of another distribution by more.
    for (part, expected, allowed) in [("weight", &golden.weight, 0.03), ("bias", &golden.bias, 0.3)] {
        let name = format!("encoder.vis_enc_to_enc_proj.{part}");
        let largest = expected.last().unwrap();
        let largest_difference = |values: &Tensor| {
            let ascending = Vec::<f64>::try_from(values.flatten(0, -1).sort(0, false).0.to_kind(Kind::Double)).unwrap();
            let last = (ascending.len() - 1) as f64;
            let intervals = (expected.len() - 1) as f64;
            let quantile = |i: usize| ascending[(i as f64 * last / intervals).round() as usize];
            let differences = expected.iter().enumerate().map(|(i, expected)| (quantile(i) - expected).abs());
            differences.fold(0.0, f64::max) / largest
        };
        assert!(largest_difference(&uniform[&name]) < allowed, "{name}: {}", largest_difference(&uniform[&name]));
        assert!(largest_difference(&normal[&name]) > allowed, "{name}: {}", largest_difference(&normal[&name]));
        assert!(uniform[&name].abs().max().double_value(&[]) <= 1.001 * largest);
    }
    let differing = uniform.iter().filter(|(name, value)| **value != normal[*name]);
    assert!(
        differing.clone().all(|(name, _)| name.starts_with("encoder.vis_enc_to_enc_proj.")) && differing.count() == 2
    );
}

#[derive(Deserialize)]
struct DropoutGolden {
    sizes: CaptionerSizes,
    prefix: String,
    gains: ParameterGains,
    probability: f64,
    search: DropoutSearch,
    draws: usize,
    images: Vec<BTreeMap<String, Moments>>,
}

#[derive(Deserialize)]
struct DropoutSearch {
    beams: usize,
    max_length: usize,
    length_penalty: f64,
    cut_counts_begin: bool,
}

/// Mean and standard deviation of a statistic over many draws of dropout masks.
#[derive(Deserialize)]
struct Moments {
    mean: f64,
    deviation: f64,
}

#[test]
fn scores_of_beam_search_with_dropout_have_the_distribution_of_transformers_in_training_mode() {
    const TEST: &str =
        "captioner::golden::scores_of_beam_search_with_dropout_have_the_distribution_of_transformers_in_training_mode";
    testing::in_separate_process(TEST, || testing::each_code_path(check_dropout));
}

fn check_dropout() {
    const DRAWS: i64 = 1000;
    let golden: DropoutGolden = golden_files::json("captioner/dropout.json");
    let captioner = captioner_by_formula(&golden.sizes, &golden.prefix, &golden.gains, testing::device());
    let DropoutSearch { beams, max_length, length_penalty, cut_counts_begin } = golden.search;
    let (cut_length_includes_bos, bos_token_id, eos_token_id) =
        (cut_counts_begin, golden.sizes.begin, golden.sizes.end);
    let settings =
        GenerationConfig { beams, max_length, length_penalty, cut_length_includes_bos, bos_token_id, eos_token_id };
    for (image, expected) in golden.images.iter().enumerate() {
        let hidden = hidden_states(&golden.sizes, std::iter::once(format!("image{image}"))).repeat([DRAWS, 1, 1]);
        tch::manual_seed(image as i64);
        let actual = captioner.beam_search(&hidden, &settings, DropoutMode::Train { dropout: golden.probability });
        for (name, Moments { mean, deviation }) in expected {
            let value = |actual: &Vec<Hypothesis>| match name.as_str() {
                "best" => actual[0].score,
                "last" => actual[beams - 1].score,
                "length" => actual[0].tokens.len() as f64,
                _ => panic!("{name} is not a statistic"),
            };
            let values = Tensor::from_slice(&actual.iter().map(value).collect::<Vec<_>>());
            let [found_mean, found_deviation] =
                [values.mean(Kind::Double), values.std(true)].map(|moment| moment.double_value(&[]));
            // Four standard errors of the difference of two means, and almost six of two
            // deviations.
            let error = deviation * (1.0 / DRAWS as f64 + 1.0 / golden.draws as f64).sqrt();
            println!("image {image}, {name}: {:.1} standard errors apart", (found_mean - mean) / error);
            assert!((found_mean - mean).abs() < 4.0 * error, "image {image}, {name}: {found_mean} is not {mean}");
            let difference = (found_deviation - deviation).abs();
            assert!(difference < 4.0 * error, "image {image}, {name}: {found_deviation} is not {deviation}");
        }
    }
}

/// A search for captions of one token is one decoding step. On a CPU this step draws the same
/// dropout masks as a training step, in the same order. On a GPU it does not: there, training pads
/// captions, and also draws masks for the padding.
#[test]
fn a_decoding_step_draws_the_dropout_masks_of_training() {
    const TEST: &str = "captioner::golden::a_decoding_step_draws_the_dropout_masks_of_training";
    if !testing::device().is_cuda() {
        testing::in_separate_process(TEST, check_dropout_of_step);
    }
}

fn check_dropout_of_step() {
    let (GoldenCaptioner { sizes, .. }, captioner) = golden_captioner(testing::device().into());
    let hidden = hidden_states(&sizes, std::iter::once("image0".to_owned()));
    let (decoder, memory) = (&captioner.decoder, no_grad(|| captioner.encoder.forward(&hidden, DropoutMode::Evaluate)));
    let (caption, ..) = one_tree_per_caption(&[vec![sizes.begin]]);
    let in_training = |mode| {
        let hidden = no_grad(|| decoder.forward(&caption, &memory, mode)).flatten(0, 1);
        nn::logits(&hidden, decoder.output_projection())
    };
    let (beams, max_length) = (1, 2);
    let in_search = |mode| {
        no_grad(|| decoder.start_decoding(&memory, beams, max_length, mode).next_token_logits(&[sizes.begin], None))
    };
    let mode = DropoutMode::Train { dropout: 0.5 };
    for seed in 0..4 {
        let [trained, searched] = [&in_training as &dyn Fn(DropoutMode) -> Tensor, &in_search].map(|logits| {
            tch::manual_seed(seed);
            logits(mode)
        });
        assert_close("logits", &searched, &trained, 1e-4);
        assert!(
            (searched - in_search(DropoutMode::Evaluate)).abs().max().double_value(&[]) > 0.1,
            "nothing is dropped"
        );
    }
}

#[test]
fn sixteen_bit_beam_search_agrees_with_generate_unless_scores_are_close() {
    testing::each_code_path(|| {
        let backend = testing::bf16_backend();
        let per_token = check_logits(backend, sixteen_bit_tolerance);
        let (GoldenCaptioner { sizes, searches, .. }, captioner) = golden_captioner(backend);
        let mut compared = 0;
        for GoldenSearch { beams, max_length, length_penalty, cut_counts_begin, images } in searches {
            let (cut_length_includes_bos, bos_token_id, eos_token_id) = (cut_counts_begin, sizes.begin, sizes.end);
            let settings = GenerationConfig {
                beams,
                max_length,
                length_penalty,
                cut_length_includes_bos,
                bos_token_id,
                eos_token_id,
            };
            let hidden = hidden_states(&sizes, images.iter().map(|expected| format!("image{}", expected.image)));
            let actual = captioner.beam_search(&hidden, &settings, DropoutMode::Evaluate);
            // Step-by-step decoding and one forward pass over the whole caption compute the same
            // log-probability.
            let sequence = |tokens: &Vec<i64>| std::iter::once(bos_token_id).chain(tokens.iter().copied()).collect();
            let sequences: Vec<Vec<i64>> = actual.iter().flatten().map(|actual| sequence(&actual.tokens)).collect();
            let captions = CaptionBatch::new(&sequences, beams, testing::device());
            let sums = no_grad(|| captioner.token_log_probabilities(&hidden, &captions, DropoutMode::Evaluate).sums());
            let sums = Vec::<f32>::try_from(sums).unwrap();
            for (hypothesis, sum) in actual.iter().flatten().zip(sums) {
                let is_cut = hypothesis.tokens.last() != Some(&eos_token_id);
                let length = hypothesis.tokens.len() + usize::from(cut_length_includes_bos && is_cut);
                let score = beam::score(sum, length, &settings);
                let allowed = 2.0 * per_token * hypothesis.tokens.len() as f64 / (length as f64).powf(length_penalty);
                let difference = (hypothesis.score - score).abs();
                assert!(difference <= allowed, "{settings:?}: {} is not {score}", hypothesis.score);
            }
            // Each of the two scores that are compared may differ by the tolerance. A single beam
            // depends only on the order of tokens.
            for (expected, actual) in
                images.iter().zip(&actual).filter(|(image, _)| beams == 1 && image.gap > 2.0 * per_token)
            {
                assert_eq!(actual[0].tokens, expected.tokens[0], "image {}", expected.image);
                compared += 1;
            }
        }
        assert!(compared > 0, "the scores of all searches are closer than the tolerance {per_token}");
        println!("{compared} searches were compared and agree");
    });
}

/// The expected results of small folders in the format of the DiCO release.
#[derive(Deserialize)]
struct ReleasedGolden {
    images: i64,
    captions: Vec<Vec<i64>>,
    /// The number of hidden states per image that the golden file contains.
    hidden_tokens: i64,
    /// The golden file contains the logits of every `logits_stride`-th token of the vocabulary.
    logits_stride: i64,
}

#[test]
fn released_folders_compute_the_logits_of_transformers() {
    let golden: ReleasedGolden = golden_files::json("released/released.json");
    let expected = golden_files::tensors("released/released.safetensors");
    for folder in ["pickle", "shards"] {
        let released = weights::UpstreamFolder::open(&golden_files::path(&format!("released/{folder}"))).unwrap();
        let vision = crate::tensor_conversion::from_weights(released.vision_tensors().unwrap());
        let vision_encoder =
            crate::clip::VisionEncoder::new(released.vision().clone(), &vision, testing::device()).unwrap();
        let values = crate::tensor_conversion::from_weights(released.captioner_tensors());
        let captioner = Captioner::from_tensors(released.captioner().clone(), &values, testing::device()).unwrap();
        let side = released.vision().image_size as i64;
        let pixels = (0..golden.images)
            .map(|n| golden_files::input_by_formula(&format!("released.pixels{n}"), &[3, side, side]));
        let (captions, nodes, expected_indices) = one_tree_per_caption(&golden.captions);
        no_grad(|| {
            let hidden = vision_encoder.hidden_states(&Tensor::stack(&pixels.collect::<Vec<_>>(), 0));
            let compared = hidden.narrow(1, 0, golden.hidden_tokens.min(hidden.size()[1]));
            assert_close(&format!("{folder}: hidden"), &compared, &expected["hidden"], 1e-4);
            let caption_images = (0..golden.captions.len() as i64).map(|caption| caption % golden.images);
            let caption_images = Tensor::from_slice(&caption_images.collect::<Vec<_>>()).to_device(testing::device());
            let memory = captioner.encoder.forward(&hidden.index_select(0, &caption_images), DropoutMode::Evaluate);
            let decoded = captioner.decoder.forward(&captions, &memory, DropoutMode::Evaluate);
            let decoded = decoded.flatten(0, 1).index_select(0, &nodes);
            let logits =
                nn::logits(&decoded, captioner.decoder.output_projection()).slice(1, None, None, golden.logits_stride);
            let expected = expected["logits"].flatten(0, 1).index_select(0, &expected_indices);
            assert_close(&format!("{folder}: logits"), &logits, &expected, 1e-4);
        });
    }
}
