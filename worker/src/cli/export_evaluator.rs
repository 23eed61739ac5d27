//! `worker export-evaluator`: writes a trained evaluator as a PyTorch file.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use run_assets::open_folder;
use serde_json::{Map, Value, json};
use weights::clip::LoraReading;
use weights::{Conventions, model_folder, write_torch};

/// Export the evaluator of a checkpoint as a PyTorch file, as PAC-S is published.
///
/// Needs a checkpoint of a run that trained its evaluator. Prints the number of tensors, and the
/// settings with which to read the file.
#[derive(clap::Args)]
#[command(
    after_help = "Example: worker export-evaluator --from runs/coco/checkpoints/0-pac-00020000 --to my-pac.pth\n\n\
                        The file is what torch.save({\"state_dict\": ...}) writes, with OpenAI's names. The last line \
                        of the output has the settings with which to read it: set them under evaluator.clip of a run file, or \
                        append them to the file in --evaluator."
)]
pub struct ExportEvaluator {
    /// Checkpoint of a run that trained its evaluator.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// File to write; must not exist.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// How to write LoRA factors.
    #[arg(long, value_enum, default_value_t = LoraFactorsLayout::Merged)]
    lora: LoraFactorsLayout,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// How the LoRA factors of an evaluator are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LoraFactorsLayout {
    /// Add the factors to their weights: the file is a plain CLIP.
    Merged,
    /// Keep the factors as separate tensors with PAC-S++'s names, for loralib with alpha 1.
    Apart,
}

impl ExportEvaluator {
    /// Runs the command.
    ///
    /// # Errors
    /// The checkpoint cannot be exported, or the file exists or cannot be written.
    pub fn run(self) -> Result<()> {
        let Self { from, to, lora, json } = self;
        if to.exists() {
            bail!("{} exists: choose another name or remove it", to.display());
        }
        let progress = cli_support::spinner("reading and writing the weights");
        open_folder(&from)?;
        let (clip, vocabulary) = model_folder::open_evaluator(&from, &Conventions::default())?;
        if vocabulary != model_folder::Vocabulary::Full {
            bail!(
                "{}: the evaluator has only the tokens of its training captions, but other programs use all tokens of CLIP: \
                 train it with `vocabulary: full`",
                from.display()
            );
        }
        let tensors = match lora {
            LoraFactorsLayout::Merged => clip.tensors(),
            LoraFactorsLayout::Apart if clip.lora().is_some() => clip.tensors_and_factors(),
            LoraFactorsLayout::Apart => bail!("{}: the evaluator has no LoRA factors", from.display()),
        };
        let tensors = tensors?;
        write_torch(&to, &tensors)?;
        let lora_reading = (lora == LoraFactorsLayout::Apart).then_some(LoraReading::Merged);
        let settings = present_settings(&Conventions { lora: lora_reading, ..clip.config().conventions() });
        progress.finish_and_clear();
        print(&to, tensors.len(), &settings, json)
    }
}

/// The settings that are present in `conventions`, by key.
fn present_settings(conventions: &Conventions) -> Map<String, Value> {
    let keys = serde_json::to_value(conventions).expect("conventions are plain data");
    let keys = keys.as_object().cloned().unwrap_or_default();
    keys.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn print(to: &Path, tensors: usize, settings: &Map<String, Value>, json: bool) -> Result<()> {
    if json {
        return super::print(format_args!("{}", json!({ "file": to, "tensors": tensors, "clip": settings })));
    }
    let setting = |(key, value): (&String, &Value)| match value {
        Value::String(text) => format!("{key}: {text}"),
        value => format!("{key}: {value}"),
    };
    let settings: Vec<String> = settings.iter().map(setting).collect();
    super::print(format_args!("{}: {tensors} tensors", to.display()))?;
    super::print(format_args!("clip: {{ {} }}", settings.join(", ")))
}

#[cfg(test)]
mod tests {
    use weights::{Activation, ClipConfig, Normalization, TextConfig, VisionBackbone};

    use super::*;

    #[test]
    fn settings_have_only_the_conventions_that_a_reader_cannot_detect() {
        let text = TextConfig { width: 64, layers: 1, heads: 1, context_length: 77, vocabulary_size: 49_408 };
        let vision = VisionBackbone::Transformer { patch_size: 16, width: 96, layers: 1, heads: 4 };
        let openai = ClipConfig::new(32, vision, text, 32);
        let settings = |config: &ClipConfig| Value::from(present_settings(&config.conventions()));
        assert_eq!(settings(&openai), json!({ "family": "openai", "vision_heads": 4 }));
        let normalization = Normalization { mean: [0.5; 3], std: [0.25; 3] };
        let other = ClipConfig { activation: Activation::Gelu, normalization, ..openai };
        let halves = ([0.5; 3], [0.25; 3]);
        assert_eq!(
            settings(&other),
            json!({ "activation": "gelu", "mean": halves.0, "std": halves.1, "vision_heads": 4 })
        );
    }
}
