use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use weights::clip::LoraReading;
use weights::{Conventions, folder, write_torch};

use crate::models::open_folder;

#[derive(clap::Args)]
#[command(
    after_help = "Example: worker export-evaluator --from runs/coco/checkpoints/0-pac-00020000 --to my-pac.pth\n\n\
                        The file is what torch.save({\"state_dict\": ...}) writes, with OpenAI's names. The last line that is \
                        printed says how it is read here: what to set under evaluator.clip, or after the file in --evaluator."
)]
pub struct ExportEvaluator {
    /// A checkpoint of a run that trained its evaluator.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The file to make.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// What becomes of LoRA factors.
    #[arg(long, value_enum, default_value_t = FactorsLayout::Merged)]
    lora: FactorsLayout,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What becomes of the LoRA factors of an evaluator.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FactorsLayout {
    /// They are added to their weights: a plain CLIP.
    Merged,
    /// They stay beside their weights under PAC-S++'s names, for loralib with alpha 1.
    Apart,
}

impl ExportEvaluator {
    pub fn run(self) -> Result<(), String> {
        let text = |error: weights::Error| error.to_string();
        let Self { from, to, lora, json } = self;
        if to.exists() {
            return Err(format!("{} exists: choose another name or remove it", to.display()));
        }
        let progress = cli_support::spinner("reading and writing the weights");
        open_folder(&from)?;
        let (clip, vocabulary) = folder::open_evaluator(&from, &Conventions::default()).map_err(text)?;
        if vocabulary != folder::Vocabulary::Full {
            return Err(format!(
                "{}: its evaluator knows the tokens of its training captions only, and other programs use all of CLIP's: train it \
                 with `vocabulary: full`",
                from.display()
            ));
        }
        let tensors = match lora {
            FactorsLayout::Merged => clip.tensors(),
            FactorsLayout::Apart if clip.lora().is_some() => clip.tensors_and_factors(),
            FactorsLayout::Apart => return Err(format!("{}: its evaluator has no LoRA factors", from.display())),
        };
        let tensors = tensors.map_err(text)?;
        write_torch(&to, &tensors).map_err(text)?;
        let reading = (lora == FactorsLayout::Apart).then_some(LoraReading::Merged);
        let said = settings(&Conventions { lora: reading, ..clip.architecture().conventions() });
        progress.finish_and_clear();
        print(&to, tensors.len(), said, json)
    }
}

/// The conventions that are set, by the name of their key.
fn settings(conventions: &Conventions) -> Map<String, Value> {
    let keys = serde_json::to_value(conventions).expect("conventions are plain data");
    let keys = keys.as_object().cloned().unwrap_or_default();
    keys.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

fn print(to: &Path, tensors: usize, settings: Map<String, Value>, json: bool) -> Result<(), String> {
    if json {
        return super::print(format_args!("{}", json!({ "file": to, "tensors": tensors, "clip": settings })));
    }
    let written = |(key, value): (&String, &Value)| match value {
        Value::String(word) => format!("{key}: {word}"),
        value => format!("{key}: {value}"),
    };
    let settings: Vec<String> = settings.iter().map(written).collect();
    super::print(format_args!("{}: {tensors} tensors", to.display()))?;
    super::print(format_args!("clip: {{ {} }}", settings.join(", ")))
}

#[cfg(test)]
mod tests {
    use weights::{Activation, Architecture, Normalization, Text, Vision};

    use super::*;

    #[test]
    fn only_what_a_reader_cannot_know_is_said() {
        let text = Text { width: 64, layers: 1, heads: 1, context_length: 77, vocabulary_size: 49_408 };
        let vision = Vision::Transformer { patch_size: 16, width: 96, layers: 1, heads: 4 };
        let openai = Architecture::new(32, vision, text, 32);
        let said = |architecture: &Architecture| Value::from(settings(&architecture.conventions()));
        assert_eq!(said(&openai), json!({ "family": "openai", "vision_heads": 4 }));
        let normalization = Normalization { mean: [0.5; 3], std: [0.25; 3] };
        let other = Architecture { activation: Activation::Gelu, normalization, ..openai };
        let halves = ([0.5; 3], [0.25; 3]);
        assert_eq!(said(&other), json!({ "activation": "gelu", "mean": halves.0, "std": halves.1, "vision_heads": 4 }));
    }
}
