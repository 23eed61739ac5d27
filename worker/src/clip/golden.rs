//! Tests of CLIP's encoders against transformers' `CLIPModel` and open_clip's `ModifiedResNet`.

use serde::Deserialize;
use tch::{Tensor, no_grad};
use weights::clip::LoraReading;
use weights::{ClipConfig, Conventions, TextConfig, VisionBackbone};

use super::*;
use crate::data::normalize;
use crate::testing;
use crate::testing::golden_files::{self, ParameterGains, assert_close, sixteen_bit_tolerance};

#[derive(Deserialize)]
struct GoldenClips {
    cases: Vec<EncoderCase>,
    files: Vec<WeightFiles>,
}

#[derive(Deserialize)]
struct EncoderCase {
    name: String,
    architecture: ClipSizes,
    images: i64,
    texts: Vec<Vec<i64>>,
    hidden_shape: Vec<i64>,
    /// `[n, m]`: the golden file has every n-th token and every m-th channel of the hidden states.
    hidden_strides: [i64; 2],
}

#[derive(Deserialize)]
struct WeightFiles {
    name: String,
    architecture: ClipSizes,
    dtype: String,
    files: Vec<String>,
}

#[derive(Deserialize)]
pub struct ClipSizes {
    image_size: usize,
    patch_size: usize,
    width: usize,
    layers: usize,
    blocks: Vec<usize>,
    text_width: usize,
    text_layers: usize,
    context_length: usize,
    vocabulary_size: usize,
    embedding: usize,
}

impl ClipSizes {
    /// Attention heads have width 64, as in all published models. The last feature map of a ResNet
    /// has 32 times its width as channels.
    pub fn config(&self) -> ClipConfig {
        let vision = match self.blocks.as_slice().try_into() {
            Ok(blocks) => VisionBackbone::ResNet { blocks, width: self.width, heads: self.width * 32 / 64 },
            Err(_) => VisionBackbone::Transformer {
                patch_size: self.patch_size,
                width: self.width,
                layers: self.layers,
                heads: self.width / 64,
            },
        };
        let text = TextConfig {
            width: self.text_width,
            layers: self.text_layers,
            heads: self.text_width / 64,
            context_length: self.context_length,
            vocabulary_size: self.vocabulary_size,
        };
        ClipConfig::new(self.image_size, vision, text, self.embedding)
    }
}

/// A model whose parameters are given by a formula.
pub fn clip_by_formula(sizes: &ClipSizes, prefix: &str, backend: impl Into<Backend>) -> Clip {
    let clip = Clip::build(sizes.config(), ParameterBuilder::uninitialized(backend), &TrainableParts::default());
    golden_files::fill_by_formula(clip.parameters(), prefix, &ParameterGains::new());
    clip
}

/// Pixels given by a formula, `[count, 3, size, size]`, in -1..1.
pub fn pixels(sizes: &ClipSizes, name: &str, count: i64) -> Tensor {
    let side = sizes.image_size as i64;
    let images =
        (0..count).map(|number| golden_files::input_by_formula(&format!("{name}.pixels{number}"), &[3, side, side]));
    Tensor::stack(&images.collect::<Vec<_>>(), 0)
}

#[test]
fn encoders_agree_with_transformers_and_open_clip() {
    testing::each_code_path(|| check_encoders(testing::device().into(), |_, _| 1e-4));
}

#[test]
fn sixteen_bit_encoders_agree_within_rounding_error() {
    testing::each_code_path(|| check_encoders(testing::bf16_backend(), sixteen_bit_tolerance));
}

/// Compares all cases. `tolerance(expected, layers)` is the tolerance for a tensor that a number of
/// layers has computed.
fn check_encoders(backend: Backend, tolerance: impl Fn(&Tensor, usize) -> f64) {
    let golden: GoldenClips = golden_files::json("clip/clip.json");
    assert!(golden.cases.len() >= 2);
    for EncoderCase { name, architecture, images, texts, hidden_shape, hidden_strides } in golden.cases {
        let expected = golden_files::tensors(&format!("clip/{name}.safetensors"));
        let clip = clip_by_formula(&architecture, "", backend);
        // In 16-bit precision the convolutions of a ResNet compute in 32 bits; its pooling and
        // projection in 16.
        let layers = architecture.layers.max(1);
        let pixels = pixels(&architecture, &name, images);
        no_grad(|| {
            let hidden = clip.vision.hidden_states(&pixels);
            assert_eq!(hidden.size(), hidden_shape, "{name}");
            let [tokens, channels] = hidden_strides;
            let compared = hidden.slice(1, None, None, tokens).slice(2, None, None, channels);
            let images = clip.image_embeddings(&hidden);
            let texts = clip.text.embed(&texts, 1);
            for (output, actual, key, layers) in [
                ("hidden", &compared, "hidden", layers),
                ("images", &images, "image_embeddings", layers + 1),
                ("texts", &texts, "text_embeddings", architecture.text_layers),
            ] {
                let expected = &expected[key];
                assert_close(&format!("{name} {output}"), actual, expected, tolerance(expected, layers));
            }
        });
    }
}

#[test]
fn safetensors_pickles_and_torchscript_give_the_same_weights() {
    let golden: GoldenClips = golden_files::json("clip/clip.json");
    assert!(!golden.files.is_empty());
    for WeightFiles { name, architecture, dtype, files } in golden.files {
        let expected = clip_by_formula(&architecture, "", testing::device());
        // transformers' safetensors exist only for vision transformers.
        assert_eq!(files.len(), if architecture.blocks.is_empty() { 3 } else { 2 }, "{name}");
        for file in files {
            let read = weights::ClipWeights::open(&golden_files::path(&format!("clip/{file}")), &Conventions::openai())
                .unwrap();
            assert_eq!(*read.config(), architecture.config(), "{file}");
            let values = crate::tensor_conversion::from_weights(read.tensors().unwrap());
            let clip = Clip::from_tensors(read.config().clone(), &values, testing::device()).unwrap();
            for ((parameter, actual), (_, expected)) in
                clip.parameters().named_parameters().zip(expected.parameters().named_parameters())
            {
                let expected = if dtype == "f16" { expected.to_kind(Kind::Half) } else { expected.shallow_clone() };
                assert_eq!(*actual, expected.to_kind(Kind::Float), "{file}: {parameter}");
            }
        }
    }
}

#[derive(Deserialize)]
struct PublishedClips {
    images: i64,
    open_clip: Vec<PublishedClip>,
    lora: PublishedClip,
}

#[derive(Deserialize)]
struct PublishedClip {
    name: String,
    file: String,
    texts: Vec<Vec<i64>>,
}

impl PublishedClip {
    fn path(&self) -> std::path::PathBuf {
        golden_files::path(&format!("published_clips/{}", self.file))
    }

    fn expected(&self) -> BTreeMap<String, Tensor> {
        golden_files::tensors(&format!("published_clips/{}.safetensors", self.name))
    }

    /// Unit embeddings of images given by a formula, and of the texts.
    fn embeddings(&self, conventions: &Conventions, images: i64) -> [Tensor; 2] {
        let read = weights::ClipWeights::open(&self.path(), conventions).unwrap();
        let values = crate::tensor_conversion::from_weights(read.tensors().unwrap());
        let clip = Clip::from_tensors(read.config().clone(), &values, testing::device()).unwrap();
        let side = read.config().image_size as i64;
        let bytes = |number| golden_files::input_by_formula(&format!("{}.pixels{number}", self.name), &[3, side, side]);
        let bytes = Tensor::stack(&(0..images).map(bytes).collect::<Vec<_>>(), 0);
        let bytes = ((bytes + 1.0) * 128.0).floor().permute([0, 2, 3, 1]).to_kind(Kind::Uint8);
        let pixels = normalize(&bytes, 0..images as usize, testing::device(), &read.config().normalization);
        no_grad(|| [clip.image_embeddings(&clip.vision.hidden_states(&pixels)), clip.text.embed(&self.texts, 1)])
    }
}

#[test]
fn open_clip_folders_and_pac_s_plus_plus_give_the_published_embeddings() {
    let PublishedClips { images, open_clip, lora } = golden_files::json("published_clips/published_clips.json");
    for case in open_clip {
        let (expected, [images_found, texts_found]) =
            (case.expected(), case.embeddings(&Conventions::default(), images));
        assert_close(&format!("{} images", case.name), &images_found, &expected["images"], 1e-4);
        assert_close(&format!("{} texts", case.name), &texts_found, &expected["texts"], 1e-4);
        // Without `open_clip_config.json` the weight file cannot be opened.
        let weight_file = case.path().join("open_clip_pytorch_model.bin");
        let scratch = tempfile::tempdir().unwrap();
        let alone = scratch.path().join("model.bin");
        std::os::unix::fs::symlink(std::path::absolute(weight_file).unwrap(), &alone).unwrap();
        let problem = weights::ClipWeights::open(&alone, &Conventions::default()).map(|_| ()).unwrap_err().to_string();
        assert!(problem.contains("open_clip_config.json") && problem.contains("activation"), "{problem}");
    }
    let expected = lora.expected();
    for (reading, name) in [(LoraReading::AsReleased, "as_released"), (LoraReading::Merged, "merged")] {
        let conventions = Conventions { lora: Some(reading), ..Conventions::openai() };
        let [images_found, texts_found] = lora.embeddings(&conventions, images);
        assert_close(&format!("{name} images"), &images_found, &expected[&format!("{name}.images")], 1e-4);
        assert_close(&format!("{name} texts"), &texts_found, &expected[&format!("{name}.texts")], 1e-4);
    }
}
