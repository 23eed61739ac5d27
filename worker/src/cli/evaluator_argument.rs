//! The flag `--evaluator`. Its forms are `NAME=FILE` with CLIP weights, `NAME=FILE,KEY=VALUE,...`
//! with settings of the CLIP that the file does not have, `NAME=FILE.yaml` with the `evaluator`
//! section of a run file, and `run`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};
use config::{Evaluator, EvaluatorScore, NamedEvaluator, RunFile};
use weights::Conventions;

/// A value of `--evaluator`.
#[derive(Clone, Debug)]
pub enum EvaluatorArgument {
    /// `run`: all evaluators of the run file.
    FromRunFile,
    /// `NAME=...`: an evaluator with its name.
    Named(String, Box<Evaluator>),
}

impl FromStr for EvaluatorArgument {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "run" {
            return Ok(Self::FromRunFile);
        }
        let (name, rest) =
            text.split_once('=').context("expected NAME=FILE, such as pac_s=clip_ViT-B-32.pth, or run")?;
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        if !is_name(name) {
            bail!("`{name}` is not a name: use letters, digits, `_`, `-` and `.`");
        }
        let mut fields = rest.split(',');
        let file = PathBuf::from(fields.next().unwrap_or_default());
        if file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            let evaluator = Evaluator::load(&file)?;
            return Ok(Self::Named(name.to_owned(), Box::new(evaluator)));
        }
        let score = EvaluatorScore::of_name(name);
        let score =
            score.with_context(|| format!("the score of `{name}` is unknown: begin the name with pac_s or clip_s"))?;
        let clip_settings = fields.map(|field| {
            let (key, value) = field.split_once('=').with_context(|| format!("`{field}` is not KEY=VALUE"))?;
            Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
        });
        let clip_settings = clip_settings.collect::<Result<serde_json::Map<String, serde_json::Value>>>()?;
        let clip: Conventions = serde_json::from_value(clip_settings.into())?;
        let evaluator = Evaluator { weights: Some(file), clip, score: Some(score), ..Evaluator::default() };
        Ok(Self::Named(name.to_owned(), Box::new(evaluator)))
    }
}

/// The evaluators of the arguments, in order. `run` is the run file, if there is one.
///
/// # Errors
/// An argument needs a run file, but there is none.
pub fn named_evaluators<'a>(
    arguments: &'a [EvaluatorArgument],
    run: Option<&'a RunFile>,
) -> Result<Vec<NamedEvaluator<'a>>> {
    let mut evaluators = Vec::new();
    for argument in arguments {
        match (argument, run) {
            (EvaluatorArgument::Named(name, settings), _) => evaluators.push(NamedEvaluator::named(name, settings)),
            (EvaluatorArgument::FromRunFile, Some(run)) => evaluators.extend(run.named_evaluators()),
            (EvaluatorArgument::FromRunFile, None) => bail!("--evaluator run needs --config"),
        }
    }
    // The retrieval metrics of a single evaluator have no name prefix.
    match &mut evaluators[..] {
        [one] => *one = one.unprefixed(),
        several => several.iter_mut().for_each(|one| *one = NamedEvaluator::named(one.name, one.settings)),
    }
    Ok(evaluators)
}

#[cfg(test)]
mod tests {
    use weights::clip::{Family, LoraReading};

    use super::*;

    fn parsed(text: &str) -> (String, Evaluator) {
        match text.parse() {
            Ok(EvaluatorArgument::Named(name, evaluator)) => (name, *evaluator),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn settings_of_the_clip_come_after_the_file() {
        assert!(matches!("run".parse(), Ok(EvaluatorArgument::FromRunFile)));
        let (name, evaluator) = parsed("pac_s_plus_plus=PAC++_clip_ViT-L-14.pth,family=openai,lora=merged");
        assert_eq!((name.as_str(), evaluator.score), ("pac_s_plus_plus", Some(EvaluatorScore::PacS)));
        assert_eq!(evaluator.weights, Some("PAC++_clip_ViT-L-14.pth".into()));
        let conventions =
            Conventions { family: Some(Family::Openai), lora: Some(LoraReading::Merged), ..Conventions::default() };
        assert_eq!(evaluator.clip, conventions);
        let (_, evaluator) = parsed("clip_s=ViT-H-14.bin,activation=gelu,vision_heads=16");
        assert_eq!((evaluator.score, evaluator.clip.vision_heads), (Some(EvaluatorScore::ClipS), Some(16)));
        for (text, expected) in [
            ("x.pt", "expected NAME=FILE"),
            ("mine=x.pt", "begin the name with pac_s or clip_s"),
            ("=x.pt", "is not a name"),
            ("pac_s=x.pt,openai", "`openai` is not KEY=VALUE"),
            ("pac_s=x.pt,family=laion", "unknown variant `laion`"),
            ("pac_s=x.pt,colour=red", "unknown field `colour`"),
            ("pac_s=/nowhere/judge.yaml", "/nowhere/judge.yaml"),
        ] {
            let problem = text.parse::<EvaluatorArgument>().unwrap_err().to_string();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
