//! Keys that had other names in earlier versions. The earlier names are accepted, with a warning,
//! in this version and the next.
//!
//! The field of a renamed key has the earlier name as `serde(alias)`; the tests below fail if this
//! table and the aliases differ.

/// The path of each renamed key, with its earlier name, and its present name.
pub const RENAMED: &[(&str, &str)] = &[
    ("precision", "compute_dtype"),
    ("wire", "gradient_dtype"),
    ("captioner.vision", "vision_encoder"),
    ("decoding.begin_counts_when_cut", "cut_length_includes_bos"),
    ("checkpoints.to", "url"),
    ("control.lost_after", "heartbeat_timeout"),
    ("control.stall_after", "stall_timeout"),
];

/// The warning for a key that has its earlier name.
pub fn warning(earlier: &str, name: &str) -> String {
    let earlier = earlier.rsplit('.').next().unwrap_or(earlier);
    format!("the key `{earlier}` was renamed: write `{name}`")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::RunFile;

    const RUN: &str = "name: a\noutput: runs/a\nworkers: { min: 1, max: 1 }\n\
        data: { karpathy: { annotations: a.json, images: images } }\nevaluator: { weights: clip.pt }\n\
        stages: [{ name: xe, objective: cross_entropy, steps: 1, batch: 1, optimizer: { learning_rate: 1.0e-5 } }]\n";

    /// The run file with all keys of the table, by the names that `choose` takes of each pair.
    fn run_file(choose: fn(&'static str, &'static str) -> &'static str) -> String {
        let key = |index: usize| {
            let (earlier, name) = RENAMED[index];
            choose(earlier.rsplit('.').next().unwrap(), name)
        };
        let values = format!(
            "{}: bf16\n{}: bf16\ncaptioner: {{ preset: dico, {}: ViT-L-14.pt }}\ndecoding: {{ {}: true }}\n\
             checkpoints: {{ {}: s3://bucket/a }}\ncontrol: {{ {}: 7, {}: 70 }}\n",
            key(0),
            key(1),
            key(2),
            key(3),
            key(4),
            key(5),
            key(6)
        );
        format!("{RUN}{values}")
    }

    #[test]
    fn earlier_names_give_the_same_run_with_a_warning_for_each() {
        let parse = |text: String| RunFile::parse_with_warnings(Path::new("run.yaml"), &text).unwrap();
        let (earlier, warnings) = parse(run_file(|earlier, _| earlier));
        let (present, others) = parse(run_file(|_, name| name));
        assert_eq!(earlier, present);
        let renamed: Vec<_> = warnings.iter().filter(|warning| !others.contains(warning)).collect();
        let renamed: Vec<_> = renamed.into_iter().filter(|warning| warning.problem.contains("was renamed")).collect();
        assert_eq!(renamed.len(), RENAMED.len(), "{warnings:?}");
        for (warning, (earlier, name)) in renamed.iter().zip(RENAMED) {
            assert!(warning.problem.ends_with(&format!("write `{name}`")), "{warning}");
            assert!(warning.key.ends_with(name) && !warning.key.ends_with(earlier), "{warning}");
        }
    }

    #[test]
    fn a_key_has_one_of_its_names() {
        let text = format!("{RUN}captioner: {{ preset: dico }}\ncontrol: {{ lost_after: 7, heartbeat_timeout: 7 }}\n");
        let error = RunFile::parse(Path::new("run.yaml"), &text).unwrap_err().to_string();
        assert!(error.contains("duplicate field `heartbeat_timeout`"), "{error}");
    }

    #[test]
    fn an_error_in_a_key_with_its_earlier_name_has_its_position() {
        let text = format!("{RUN}captioner: {{ preset: dico }}\ncontrol: {{ lost_after: -1 }}\n");
        let error = RunFile::parse(Path::new("run.yaml"), &text).unwrap_err().to_string();
        assert!(error.starts_with("run.yaml:8:24: control.heartbeat_timeout: "), "{error}");
    }
}
