use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::arms::ARMS;
use crate::pictures::PICTURE;
use crate::seed::{FiredRule, START};
use crate::summary::{ArmSummary, Summary};

/// The lines around the section in results.md.
const BEGIN: &str = "<!-- comparison: written by `make compare` -->";
const END: &str = "<!-- end of the comparison -->";

/// The metrics of the table, with their headings.
const COLUMNS: [(&str, &str); 11] = [
    ("pac_s", "PAC-S"),
    ("ref_pac_s", "RefPAC-S"),
    ("clip_s", "CLIP-S"),
    ("cider", "CIDEr-D"),
    ("bleu_4", "BLEU-4"),
    ("retrieval_r1", "R@1"),
    ("grammatical", "grammatical"),
    ("truthful", "truthful"),
    ("details", "details"),
    ("rep_1", "Rep-1"),
    ("incorrect_endings", "incorrect endings"),
];

/// The section on the comparison, as Markdown.
pub fn section(summary: &Summary) -> String {
    let mut text = String::new();
    let seeds: Vec<String> = summary.seeds.iter().map(u64::to_string).collect();
    // Writing to a string does not fail.
    _ = writeln!(text, "Test images, mean and standard deviation over {} seeds ({}):\n", seeds.len(), seeds.join(", "));
    let names: Vec<&str> = COLUMNS.iter().map(|(_, name)| *name).collect();
    _ = writeln!(text, "| | {} | s per seed |", names.join(" | "));
    _ = writeln!(text, "|---|{}", "---:|".repeat(COLUMNS.len() + 1));
    let rows = std::iter::once((START, "start: evaluator, then teacher forcing"))
        .chain(ARMS.iter().map(|arm| (arm.name, arm.title)));
    for (name, title) in rows {
        if let Some(arm) = summary.arms.get(name) {
            _ = writeln!(text, "| {title} | {} |", row(arm));
        }
    }
    _ = writeln!(
        text,
        "\n| claim | holds in seeds | fails in seeds | does not apply in | the two sides, by seed |\n|---|---|---|---|---|"
    );
    for claim in &summary.claims {
        let list = |seeds: &[u64]| seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let values = claim.values.values().map(|[left, right]| format!("{left:.3} / {right:.3}"));
        let values = values.collect::<Vec<_>>().join("; ");
        let [holds, fails, not_applicable] =
            [&claim.holds, &claim.fails, &claim.not_applicable].map(|seeds| list(seeds));
        _ = writeln!(text, "| {} | {holds} | {fails} | {not_applicable} | {values} |", claim.claim);
    }
    _ = writeln!(text, "\nActions of the guard:\n");
    for (seed, arm) in summary.arms.get("scst_guarded").into_iter().flat_map(|arm| &arm.seeds) {
        let actions = arm.guard.iter().map(|FiredRule { step, metric, value, action }| {
            format!("{metric} {:.3} at step {step} ({})", value.unwrap_or(f64::NAN), action.name())
        });
        let actions: Vec<String> = actions.collect();
        let actions = if actions.is_empty() { "none".to_owned() } else { actions.join(", ") };
        _ = writeln!(text, "- seed {seed}: {actions}");
    }
    _ = writeln!(
        text,
        "\n![Validation images: the reward of each arm and the share of grammatical captions, over steps]({PICTURE})"
    );
    text
}

fn row(arm: &ArmSummary) -> String {
    let cell = |&(metric, _): &(&str, &str)| match arm.test.get(metric) {
        Some(spread) => format!("{:.3} ±{:.3}", spread.mean, spread.deviation),
        None => "-".to_owned(),
    };
    let seconds = arm.seeds.values().map(|result| result.seconds).sum::<f64>() / arm.seeds.len() as f64;
    let cells: Vec<String> = COLUMNS.iter().map(cell).chain([format!("{seconds:.0}")]).collect();
    cells.join(" | ")
}

/// Replaces the section on the comparison in the file `path`.
///
/// # Errors
/// The file cannot be read or written, or lacks the lines around the section.
pub fn write(path: &Path, section: &str) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    ensure!(parts.is_some(), "{} has no lines `{BEGIN}` and `{END}` to write between", path.display());
    let (before, after) = parts.unwrap_or_default();
    let text = format!("{before}{BEGIN}\n\n{section}\n{END}{after}");
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let file = std::env::temp_dir().join(format!("compare-report-{}", std::process::id()));
        std::fs::write(&file, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).unwrap();
        write(&file, "new\n").unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        std::fs::write(&file, "nothing").unwrap();
        assert!(write(&file, "new").unwrap_err().to_string().contains("to write between"));
        std::fs::remove_file(&file).unwrap();
    }
}
