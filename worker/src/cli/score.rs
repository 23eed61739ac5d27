use std::io::{BufWriter, Write};
use std::path::PathBuf;

use scoring::files::Captions;
use scoring::{Files, Form, Metrics};

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  worker score --references captions_val2014.json --candidates results.json\n  \
                        worker score --references refs.json --candidates cands.json --json > scores.json\n\n\
                        Both files may be {\"ID\": [\"caption\", ...]}, {\"ID\": \"caption\"}, COCO's annotations or COCO's \
                        results. Scored are the images that have a candidate.")]
pub struct Score {
    /// The human captions of each image.
    #[arg(long, value_name = "FILE")]
    references: PathBuf,
    /// One caption of each image, to be scored.
    #[arg(long, value_name = "FILE")]
    candidates: PathBuf,
    /// One JSON object, with the values of all together and of each image.
    #[arg(long)]
    json: bool,
    /// One line an image, tab-separated, after a header.
    #[arg(long, conflicts_with = "json")]
    per_item: bool,
    /// meteor-1.5.jar: METEOR's function words and synonyms.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_JAR")]
    meteor_jar: Option<PathBuf>,
    /// METEOR's paraphrase-en.gz.
    #[arg(long, value_name = "FILE", env = "DICO_METEOR_PARAPHRASES")]
    meteor_paraphrases: Option<PathBuf>,
    /// spice-1.0.jar, with the Stanford models in `lib` beside it; needs Java.
    #[arg(long, value_name = "FILE")]
    spice_jar: Option<PathBuf>,
}

impl Score {
    pub fn run(self) -> Result<(), String> {
        let Self { meteor_jar, meteor_paraphrases, spice_jar, .. } = self;
        let files = Files { meteor_jar, meteor_paraphrases, spice_jar, ..Files::default() };
        let captions = Captions::read(&self.references, &self.candidates).map_err(|error| error.to_string())?;
        let metrics = Metrics::open(&files).map_err(|error| error.to_string())?;
        let report = captions.score(&metrics).map_err(|error| error.to_string())?;
        let form = match (self.json, self.per_item) {
            (true, _) => Form::Json,
            (_, true) => Form::PerItem,
            _ => Form::Table,
        };
        if form != Form::Json {
            report.notes.iter().for_each(|note| eprintln!("worker: {note}"));
        }
        let mut out = BufWriter::new(std::io::stdout().lock());
        let printed = report.print(&captions.ids, form, &mut out).and_then(|()| out.flush());
        printed.map_err(|error| format!("standard output: {error}"))
    }
}
