//! `worker inspect`: shows the images, captions and problems of a data set. `data_source`
//! determines the format of the data set, `problems` collects what is wrong with it, and `summary`
//! counts images and captions.

mod data_source;
mod problems;
mod summary;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use dataset::Split;
use serde::Serialize;
use tokenizer::Vocabulary;

use data_source::DataSource;
use problems::{Findings, LoadedSplits, load_splits};
use summary::SplitSummary;

/// Inspect a data set: splits, caption lengths, vocabulary, samples, and all problems.
///
/// Needs a run file, annotations with their images, or tars. Prints a summary of each split, then
/// problems and notes. Fails if there is a problem.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  worker inspect configs/demo.yaml\n  worker inspect dataset.json --images photos\n  \
                        worker inspect 'tars/train-{000..007}.tar' --json\n\n\
                        A run file is also checked for captions that its stages need. Annotations may be Karpathy's or COCO's. \
                        COCO annotations and tars, which have no splits, are shown as the split `train`. The exit status is 1 if \
                        a run would refuse the data."
)]
pub struct Inspect {
    /// Run file (.yaml), annotations (.json), or tars (.tar): a path or an s3:// URL, with brace
    /// patterns.
    #[arg(value_name = "DATA")]
    data: String,
    /// Folder of the images of annotations [default: the folder `images` beside the annotations if
    /// it exists, otherwise the folder of the annotations].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Decode all images, instead of 1,000 per split.
    #[arg(long)]
    decode_all: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The JSON output.
#[derive(Serialize)]
struct Inspection {
    splits: BTreeMap<&'static str, SplitSummary>,
    #[serde(flatten)]
    findings: Findings,
}

impl Inspect {
    /// Runs the command.
    ///
    /// # Errors
    /// The data set cannot be found, or has problems.
    pub fn run(self) -> Result<()> {
        let source = DataSource::open(&self.data, self.images.as_deref())?;
        let progress = cli_support::spinner("checking images and captions");
        let (splits, mut findings) = load_splits(&source);
        findings.add_undecodable_images(&source, &splits, self.decode_all);
        findings.add_truncated_captions(&source, &splits);
        let inspection = Inspection { splits: summaries(&splits), findings };
        progress.finish_and_clear();
        self.print(&inspection)?;
        match inspection.findings.problems.len() {
            0 => Ok(()),
            1 => bail!("{}: 1 problem", self.data),
            problems => bail!("{}: {problems} problems", self.data),
        }
    }

    fn print(&self, inspection: &Inspection) -> std::io::Result<()> {
        let mut out = cli_support::stdout();
        if self.json {
            serde_json::to_writer(&mut out, inspection)?;
            return writeln!(out);
        }
        for split in Split::ALL {
            let summary = inspection.splits.get(split.name());
            summary.map_or(Ok(()), |summary| writeln!(out, "{split}: {summary}"))?;
        }
        let Findings { problems, notes } = &inspection.findings;
        for (title, lines) in [("problems", problems), ("notes", notes)] {
            if !lines.is_empty() {
                writeln!(out, "{title}: {}", lines.len())?;
            }
            lines.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        }
        Ok(())
    }
}

/// Summaries of the splits that have images.
fn summaries(splits: &LoadedSplits) -> BTreeMap<&'static str, SplitSummary> {
    let vocabulary = Vocabulary::full();
    let with_images = splits.iter().filter(|(split, data)| !data.split(*split).is_empty());
    with_images.map(|(split, data)| (split.name(), SplitSummary::new(data.split(*split), &vocabulary))).collect()
}
