use std::path::PathBuf;

use scoring::files::Captions;
use scoring::{Files, Metrics};

use super::report::Print;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  worker score --references captions_val2014.json --candidates results.json\n  \
                        worker score --references refs.json --candidates cands.json --json > scores.json\n  \
                        worker score --references dataset_coco.json --split val --candidates results.json\n  \
                        caption-images | worker score --references refs.json --candidates -\n\n\
                        Both files may be {\"ID\": [\"caption\", ...]}, {\"ID\": \"caption\"}, COCO's annotations or COCO's \
                        results; references may also be Karpathy's JSON. Scored are the images that have a candidate. \
                        Where images have domains, as those of nocaps, each domain has scores, too. References that \
                        VizWiz marks as rejected or precanned are left out.")]
pub struct Score {
    /// The human captions of each image; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    references: PathBuf,
    /// One caption of each image, to be scored; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    candidates: PathBuf,
    /// Which split of references in Karpathy's JSON: train, val or test [default: test].
    #[arg(long, value_name = "SPLIT", value_parser = ["train", "val", "test"])]
    split: Option<String>,
    #[command(flatten)]
    print: Print,
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
        let files = Files::new([&self.meteor_jar, &self.meteor_paraphrases, &self.spice_jar]);
        let captions = Captions::read(&self.references, &self.candidates, self.split.as_deref())
            .map_err(|error| error.to_string())?;
        let metrics = Metrics::open(&files).map_err(|error| error.to_string())?;
        let progress = terminal::spinner(format!("scoring {} captions", captions.ids.len()));
        let report = captions.score(&metrics);
        progress.finish_and_clear();
        self.print.print(&report, &captions.ids)
    }
}
