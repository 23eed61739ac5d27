//! Evaluators on the command line: `--evaluator NAME=FILE`.

use std::path::PathBuf;
use std::str::FromStr;

use config::{Evaluator, EvaluatorScore, NamedEvaluator, RunFile};
use weights::Conventions;

/// An evaluator as `--evaluator` names it.
#[derive(Clone, Debug)]
pub enum EvaluatorArgument {
    /// The run file's own.
    OfRun,
    /// This one.
    Named(String, Box<Evaluator>),
}

impl FromStr for EvaluatorArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "run" {
            return Ok(Self::OfRun);
        }
        let (name, rest) = text.split_once('=').ok_or("expected NAME=FILE, such as pac_s=clip_ViT-B-32.pth, or run")?;
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        if !is_name(name) {
            return Err(format!("`{name}` is no name: letters, digits, `_`, `-` and `.` make one"));
        }
        let mut parts = rest.split(',');
        let file = PathBuf::from(parts.next().unwrap_or_default());
        if file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            let evaluator = Evaluator::load(&file).map_err(|error| error.to_string())?;
            return Ok(Self::Named(name.to_owned(), Box::new(evaluator)));
        }
        let unclear = || format!("the name `{name}` does not say which score it is: begin it with pac_s or clip_s");
        let score = Some(EvaluatorScore::of_name(name).ok_or_else(unclear)?);
        let said = parts.map(|part| {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not KEY=VALUE"))?;
            Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
        });
        let said = said.collect::<Result<serde_json::Map<String, serde_json::Value>, String>>()?;
        let clip: Conventions = serde_json::from_value(said.into()).map_err(|error| error.to_string())?;
        let evaluator = Evaluator { weights: Some(file), clip, score, ..Evaluator::default() };
        Ok(Self::Named(name.to_owned(), Box::new(evaluator)))
    }
}

/// The evaluators that arguments name, in their order. `run` is the run file of `run`.
///
/// # Errors
/// There is no run file.
pub fn named<'a>(
    arguments: &'a [EvaluatorArgument],
    run: Option<&'a RunFile>,
) -> Result<Vec<NamedEvaluator<'a>>, String> {
    let mut all = Vec::new();
    for argument in arguments {
        match (argument, run) {
            (EvaluatorArgument::Named(name, settings), _) => all.push(NamedEvaluator::named(name, settings)),
            (EvaluatorArgument::OfRun, Some(run)) => all.extend(run.named_evaluators()),
            (EvaluatorArgument::OfRun, None) => return Err("--evaluator run needs --config".to_owned()),
        }
    }
    // One alone needs no name before its retrieval.
    match &mut all[..] {
        [one] => *one = one.alone(),
        several => several.iter_mut().for_each(|one| *one = NamedEvaluator::named(one.name, one.settings)),
    }
    Ok(all)
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
    fn a_file_is_followed_by_what_it_does_not_say() {
        assert!(matches!("run".parse(), Ok(EvaluatorArgument::OfRun)));
        let (name, evaluator) = parsed("pac_s_plus_plus=PAC++_clip_ViT-L-14.pth,family=openai,lora=merged");
        assert_eq!((name.as_str(), evaluator.score), ("pac_s_plus_plus", Some(EvaluatorScore::PacS)));
        assert_eq!(evaluator.weights, Some("PAC++_clip_ViT-L-14.pth".into()));
        let said =
            Conventions { family: Some(Family::Openai), lora: Some(LoraReading::Merged), ..Conventions::default() };
        assert_eq!(evaluator.clip, said);
        let (_, evaluator) = parsed("clip_s=ViT-H-14.bin,activation=gelu,vision_heads=16");
        assert_eq!((evaluator.score, evaluator.clip.vision_heads), (Some(EvaluatorScore::ClipS), Some(16)));
        for (text, expected) in [
            ("x.pt", "expected NAME=FILE"),
            ("mine=x.pt", "begin it with pac_s or clip_s"),
            ("=x.pt", "is no name"),
            ("pac_s=x.pt,openai", "`openai` is not KEY=VALUE"),
            ("pac_s=x.pt,family=laion", "unknown variant `laion`"),
            ("pac_s=x.pt,colour=red", "unknown field `colour`"),
            ("pac_s=/nowhere/judge.yaml", "/nowhere/judge.yaml"),
        ] {
            let problem = text.parse::<EvaluatorArgument>().unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
