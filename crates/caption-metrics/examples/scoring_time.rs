//! Prints the time of scoring, in seconds:
//!
//! ```text
//! cargo run --release -p caption-metrics --example scoring_time -- [REFERENCES CANDIDATES]
//! ```
//!
//! Without files it generates 5,000 candidates with 5 references each. METEOR reads its tables from
//! the files that `DICO_METEOR_JAR` and `DICO_METEOR_PARAPHRASES` name, and omits stages without a
//! table.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use caption_metrics::cider::{Candidate, CiderReward};
use caption_metrics::files::CaptionSet;
use caption_metrics::meteor::{MeteorTables, meteor};
use caption_metrics::{Corpus, Item, bleu, cider_d, fluency, retrieval, rouge_l};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let items = match &arguments[..] {
        [references, candidates] => match CaptionSet::read(Path::new(references), Path::new(candidates), None) {
            Ok(captions) => captions.items,
            Err(error) => return eprintln!("scoring_time: {error}"),
        },
        _ => generate_items(5000),
    };
    println!("{} candidates", items.len());
    let start = Instant::now();
    let corpus = print_time("tokens", || Corpus::new(&items));
    print_time("bleu", || bleu(&corpus));
    print_time("rouge_l", || rouge_l(&corpus));
    print_time("cider", || cider_d(&corpus));
    println!("{:28} {:8.3}", "total of n-gram metrics", start.elapsed().as_secs_f64());
    print_time("fluency", || fluency(&corpus));
    let start = Instant::now();
    let path_in = |name| std::env::var_os(name).map(PathBuf::from);
    let (jar, paraphrases) = (path_in("DICO_METEOR_JAR"), path_in("DICO_METEOR_PARAPHRASES"));
    let tables = match print_time("meteor: tables", || MeteorTables::open(jar.as_deref(), paraphrases.as_deref())) {
        Ok(tables) => tables,
        Err(error) => return eprintln!("scoring_time: {error}"),
    };
    print_time("meteor: captions", || meteor(&items, &tables));
    println!("{:28} {:8.3}", "total of METEOR", start.elapsed().as_secs_f64());

    let references: Vec<_> = items.iter().map(|item| item.references.clone()).collect();
    let cider = print_time("rewards: document frequency", || CiderReward::new(&references));
    // A training step of 32 images. The candidates of five items serve as those of one image.
    let step: Vec<_> = items.chunks_exact(5).take(32).enumerate().collect();
    print_time("rewards: 32 images x 5", || {
        for (image, five_items) in &step {
            let candidate = |item: &Item| Candidate { text: item.candidate.clone(), has_end_token: true };
            let candidates: Vec<_> = five_items.iter().map(candidate).collect();
            black_box(cider.rewards(*image, &candidates));
        }
    });

    let mut next = random_numbers();
    let mut embeddings = || (0..5000 * 512).map(|_| next() as f32 / u32::MAX as f32 - 0.5).collect::<Vec<_>>();
    let (texts, images) = (embeddings(), embeddings());
    print_time("ranks of 5,000 by 512", || retrieval::ranks(&texts, &images, 512));
}

fn print_time<T>(name: &str, compute: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = black_box(compute());
    println!("{name:28} {:8.3}", start.elapsed().as_secs_f64());
    result
}

/// Random numbers: the upper bits of a linear congruential generator.
fn random_numbers() -> impl FnMut() -> u32 {
    let mut state = 1_u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    }
}

/// Generates captions whose word frequencies follow Zipf's law.
fn generate_items(number: usize) -> Vec<Item> {
    let mut next = random_numbers();
    let mut caption = || {
        let length = 6 + next() % 10;
        let words = (0..length).map(|_| format!("word{}", 5000 / (1 + next() % 5000)));
        words.collect::<Vec<_>>().join(" ")
    };
    (0..number).map(|_| Item { candidate: caption(), references: (0..5).map(|_| caption()).collect() }).collect()
}
