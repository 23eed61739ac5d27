//! `worker inspect`: shows the images and captions of a data set, and all its faults.

mod problems;
mod source;
mod summary;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use dataset::Split;
use serde::Serialize;
use tokenizer::Vocabulary;

use problems::{Findings, Read, survey};
use source::Source;
use summary::Summary;

/// Show what a data set gives: splits, caption lengths, vocabulary, samples, and all problems.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  worker inspect configs/demo.yaml\n  worker inspect dataset.json --images photos\n  \
                        worker inspect 'tars/train-{000..007}.tar' --json\n\n\
                        With a run file, the captions are also checked against what its stages need. Annotations may be Karpathy's or \
                        COCO's. COCO's, which name no split, and tars are shown as the split `train`. The exit status is 1 if a \
                        run would refuse the data."
)]
pub struct Inspect {
    /// A run file (.yaml), annotations (.json), or tars: a path or an s3:// URL, with brace
    /// patterns.
    #[arg(value_name = "DATA")]
    data: String,
    /// Folder of the images that annotations name [default: `images` beside the annotations, or
    /// else their folder].
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Decode all images, not only 1,000 of each split.
    #[arg(long)]
    decode_all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The output of the command.
#[derive(Serialize)]
struct Inspection {
    splits: BTreeMap<&'static str, Summary>,
    #[serde(flatten)]
    findings: Findings,
}

impl Inspect {
    pub fn run(self) -> Result<(), String> {
        let source = Source::open(&self.data, self.images.as_deref())?;
        let progress = cli_support::spinner("looking at images and captions");
        let (read, mut findings) = survey(&source);
        findings.decode(&source, &read, self.decode_all);
        findings.add_limits(&source, &read);
        let inspection = Inspection { splits: summaries(&read), findings };
        progress.finish_and_clear();
        self.print(&inspection).map_err(|error| error.to_string())?;
        match inspection.findings.problems.len() {
            0 => Ok(()),
            1 => Err(format!("{}: 1 problem", self.data)),
            problems => Err(format!("{}: {problems} problems", self.data)),
        }
    }

    fn print(&self, inspection: &Inspection) -> std::io::Result<()> {
        let mut out = cli_support::out();
        if self.json {
            serde_json::to_writer(&mut out, inspection)?;
            return writeln!(out);
        }
        for split in Split::ALL {
            let summary = inspection.splits.get(split.name());
            summary.map_or(Ok(()), |summary| writeln!(out, "{split}: {summary}"))?;
        }
        let Findings { problems, notes } = &inspection.findings;
        for (what, lines) in [("problems", problems), ("notes", notes)] {
            if !lines.is_empty() {
                writeln!(out, "{what}: {}", lines.len())?;
            }
            lines.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        }
        Ok(())
    }
}

/// Summarises the splits that have images.
fn summaries(read: &Read) -> BTreeMap<&'static str, Summary> {
    let vocabulary = Vocabulary::full();
    let with_images = read.iter().filter(|(split, data)| !data.split(*split).is_empty());
    with_images.map(|(split, data)| (split.name(), Summary::new(data.split(*split), &vocabulary))).collect()
}
