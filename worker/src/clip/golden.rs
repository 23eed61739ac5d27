//! Tests of CLIP's encoders against transformers' `CLIPModel` and open_clip's `ModifiedResNet`.

use serde::Deserialize;
use tch::{Tensor, no_grad};
use weights::clip::LoraReading;
use weights::{Architecture, Conventions, Text as TextSizes, Vision as VisionSizes};

use super::*;
use crate::data::normalise;
use crate::golden::{self, Gains, assert_close, sixteen_bit_tolerance};
use crate::testing;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    files: Vec<Files>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    architecture: Sizes,
    images: i64,
    texts: Vec<Vec<i64>>,
    hidden_shape: Vec<i64>,
    hidden_strides: [i64; 2],
}

#[derive(Deserialize)]
struct Files {
    name: String,
    architecture: Sizes,
    dtype: String,
    files: Vec<String>,
}

#[derive(Deserialize)]
pub struct Sizes {
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

impl Sizes {
    /// Attention heads have width 64, as in all published models.
    pub fn architecture(&self) -> Architecture {
        let vision = match self.blocks.as_slice().try_into() {
            Ok(blocks) => VisionSizes::ResNet { blocks, width: self.width, heads: self.width * 32 / 64 },
            Err(_) => VisionSizes::Transformer {
                patch_size: self.patch_size,
                width: self.width,
                layers: self.layers,
                heads: self.width / 64,
            },
        };
        let text = TextSizes {
            width: self.text_width,
            layers: self.text_layers,
            heads: self.text_width / 64,
            context_length: self.context_length,
            vocabulary_size: self.vocabulary_size,
        };
        Architecture::new(self.image_size, vision, text, self.embedding)
    }
}

/// A model whose parameters are given by a formula.
pub fn by_formula(sizes: &Sizes, prefix: &str, backend: impl Into<Backend>) -> Clip {
    let clip = Clip::build(sizes.architecture(), Builder::blank(backend), &Trainables::default());
    golden::fill(clip.parameters(), prefix, &Gains::new());
    clip
}

/// Pixels given by a formula, `[count, 3, size, size]`.
pub fn pixels(sizes: &Sizes, name: &str, count: i64) -> Tensor {
    let side = sizes.image_size as i64;
    let images = (0..count).map(|number| golden::input(&format!("{name}.pixels{number}"), &[3, side, side]));
    Tensor::stack(&images.collect::<Vec<_>>(), 0)
}

#[test]
fn towers_agree_with_transformers_and_open_clip() {
    testing::each_code_path(|| check(testing::device().into(), |_, _| 1e-4));
}

#[test]
fn sixteen_bit_towers_are_as_near_as_rounding_lets_them_be() {
    testing::each_code_path(|| check(testing::sixteen_bits(), sixteen_bit_tolerance));
}

/// Compares all cases. `tolerance` gives the tolerance for an expected tensor after a number of
/// layers.
fn check(backend: Backend, tolerance: impl Fn(&Tensor, usize) -> f64) {
    let golden: Golden = golden::json("clip/clip.json");
    assert!(golden.cases.len() >= 2);
    for Case { name, architecture, images, texts, hidden_shape, hidden_strides } in golden.cases {
        let expected = golden::tensors(&format!("clip/{name}.safetensors"));
        let clip = by_formula(&architecture, "", backend);
        // In 16-bit precision the stages of a ResNet compute in 32 bits; its pooling and projection
        // in 16.
        let layers = architecture.layers.max(1);
        let pixels = pixels(&architecture, &name, images);
        no_grad(|| {
            let hidden = clip.vision.hidden(&pixels);
            assert_eq!(hidden.size(), hidden_shape, "{name}");
            let [tokens, channels] = hidden_strides;
            let shown = hidden.slice(1, None, None, tokens).slice(2, None, None, channels);
            let images = clip.embed(&hidden);
            let texts = clip.text.embed(&texts, 1);
            for (what, found, name_of, layers) in [
                ("hidden", &shown, "hidden", layers),
                ("images", &images, "image_embeddings", layers + 1),
                ("texts", &texts, "text_embeddings", architecture.text_layers),
            ] {
                let expected = &expected[name_of];
                assert_close(&format!("{name} {what}"), found, expected, tolerance(expected, layers));
            }
        });
    }
}

#[test]
fn weights_come_alike_from_safetensors_pickles_and_torchscript() {
    let golden: Golden = golden::json("clip/clip.json");
    assert!(!golden.files.is_empty());
    for Files { name, architecture, dtype, files } in golden.files {
        let expected = by_formula(&architecture, "", testing::device());
        assert_eq!(files.len(), if architecture.blocks.is_empty() { 3 } else { 2 }, "{name}");
        for file in files {
            let read = weights::Clip::open(&golden::path(&format!("clip/{file}")), &Conventions::openai()).unwrap();
            assert_eq!(*read.architecture(), architecture.architecture(), "{file}");
            let values = crate::tensors::from_weights(read.tensors().unwrap());
            let clip = Clip::with(read.architecture().clone(), &values, testing::device()).unwrap();
            for ((parameter, found), (_, expected)) in clip.parameters().named().zip(expected.parameters().named()) {
                let expected = if dtype == "f16" { expected.to_kind(Kind::Half) } else { expected.shallow_clone() };
                assert_eq!(*found, expected.to_kind(Kind::Float), "{file}: {parameter}");
            }
        }
    }
}

#[derive(Deserialize)]
struct PublishedClips {
    images: i64,
    open_clip: Vec<Published>,
    lora: Published,
}

#[derive(Deserialize)]
struct Published {
    name: String,
    file: String,
    texts: Vec<Vec<i64>>,
}

impl Published {
    fn path(&self) -> std::path::PathBuf {
        golden::path(&format!("published_clips/{}", self.file))
    }

    fn expected(&self) -> BTreeMap<String, Tensor> {
        golden::tensors(&format!("published_clips/{}.safetensors", self.name))
    }

    /// Unit embeddings of images given by a formula, and of the texts.
    fn embed(&self, said: &Conventions, images: i64) -> [Tensor; 2] {
        let read = weights::Clip::open(&self.path(), said).unwrap();
        let values = crate::tensors::from_weights(read.tensors().unwrap());
        let clip = Clip::with(read.architecture().clone(), &values, testing::device()).unwrap();
        let side = read.architecture().image_size as i64;
        let bytes = |number| golden::input(&format!("{}.pixels{number}", self.name), &[3, side, side]);
        let bytes = Tensor::stack(&(0..images).map(bytes).collect::<Vec<_>>(), 0);
        let bytes = ((bytes + 1.0) * 128.0).floor().permute([0, 2, 3, 1]).to_kind(Kind::Uint8);
        let pixels = normalise(&bytes, 0..images as usize, testing::device(), &read.architecture().normalization);
        no_grad(|| [clip.embed(&clip.vision.hidden(&pixels)), clip.text.embed(&self.texts, 1)])
    }
}

#[test]
fn open_clips_folders_and_pac_s_plus_plus_give_the_embeddings_of_their_own_code() {
    let PublishedClips { images, open_clip, lora } = golden::json("published_clips/published_clips.json");
    for case in open_clip {
        let (expected, [seen, read]) = (case.expected(), case.embed(&Conventions::default(), images));
        assert_close(&format!("{} images", case.name), &seen, &expected["images"], 1e-4);
        assert_close(&format!("{} texts", case.name), &read, &expected["texts"], 1e-4);
        // Without its configuration file it is refused.
        let bare = case.path().join("open_clip_pytorch_model.bin");
        let scratch = tempfile::tempdir().unwrap();
        let alone = scratch.path().join("model.bin");
        std::os::unix::fs::symlink(std::path::absolute(bare).unwrap(), &alone).unwrap();
        let refused = weights::Clip::open(&alone, &Conventions::default()).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("open_clip_config.json") && refused.contains("activation"), "{refused}");
    }
    let expected = lora.expected();
    for (reading, name) in [(LoraReading::AsReleased, "as_released"), (LoraReading::Merged, "merged")] {
        let said = Conventions { lora: Some(reading), ..Conventions::openai() };
        let [seen, read] = lora.embed(&said, images);
        assert_close(&format!("{name} images"), &seen, &expected[&format!("{name}.images")], 1e-4);
        assert_close(&format!("{name} texts"), &read, &expected[&format!("{name}.texts")], 1e-4);
    }
}
