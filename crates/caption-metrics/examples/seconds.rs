//! How long scoring takes, in seconds:
//!
//! ```text
//! cargo run --release -p caption-metrics --example seconds -- [REFERENCES CANDIDATES]
//! ```
//!
//! Without files it makes up 5,000 candidates with 5 references each. METEOR takes its tables from `DICO_METEOR_JAR` and
//! `DICO_METEOR_PARAPHRASES`, as far as they are set.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use caption_metrics::cider::{Candidate, Cider};
use caption_metrics::files::Captions;
use caption_metrics::meteor::{Tables, meteor};
use caption_metrics::{Corpus, Item, bleu, cider_d, fluency, retrieval, rouge_l};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let items = match &arguments[..] {
        [references, candidates] => match Captions::read(Path::new(references), Path::new(candidates), None) {
            Ok(captions) => captions.items,
            Err(error) => return eprintln!("seconds: {error}"),
        },
        _ => made_up(5000),
    };
    println!("{} candidates", items.len());
    let start = Instant::now();
    let corpus = time("tokens", || Corpus::new(&items));
    time("bleu", || bleu(&corpus));
    time("rouge_l", || rouge_l(&corpus));
    time("cider", || cider_d(&corpus));
    println!("{:28} {:8.3}", "these together", start.elapsed().as_secs_f64());
    time("fluency", || fluency(&corpus));
    let start = Instant::now();
    let table = |name| std::env::var_os(name).map(PathBuf::from);
    let (jar, paraphrases) = (table("DICO_METEOR_JAR"), table("DICO_METEOR_PARAPHRASES"));
    let tables = match time("meteor: tables", || Tables::open(jar.as_deref(), paraphrases.as_deref())) {
        Ok(tables) => tables,
        Err(error) => return eprintln!("seconds: {error}"),
    };
    time("meteor: captions", || meteor(&items, &tables));
    println!("{:28} {:8.3}", "these two together", start.elapsed().as_secs_f64());

    let references: Vec<_> = items.iter().map(|item| item.references.clone()).collect();
    let cider = time("rewards: document frequency", || Cider::new(&references));
    let step: Vec<_> = items.chunks_exact(5).take(32).enumerate().collect();
    time("rewards: 32 images x 5", || {
        for (image, five) in &step {
            let candidate = |item: &Item| Candidate { text: item.candidate.clone(), ended: true };
            let candidates: Vec<_> = five.iter().map(candidate).collect();
            black_box(cider.rewards(*image, &candidates));
        }
    });

    let mut next = numbers();
    let mut embeddings = || (0..5000 * 512).map(|_| next() as f32 / u32::MAX as f32 - 0.5).collect::<Vec<_>>();
    let (texts, images) = (embeddings(), embeddings());
    time("ranks of 5,000 by 512", || retrieval::ranks(&texts, &images, 512));
}

fn time<T>(name: &str, compute: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = black_box(compute());
    println!("{name:28} {:8.3}", start.elapsed().as_secs_f64());
    result
}

/// A linear congruential generator's upper bits.
fn numbers() -> impl FnMut() -> u32 {
    let mut state = 1_u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    }
}

/// Captions of words that are as rare as they are many.
fn made_up(number: usize) -> Vec<Item> {
    let mut next = numbers();
    let mut caption = || {
        let length = 6 + next() % 10;
        let words = (0..length).map(|_| format!("word{}", 5000 / (1 + next() % 5000)));
        words.collect::<Vec<_>>().join(" ")
    };
    (0..number).map(|_| Item { candidate: caption(), references: (0..5).map(|_| caption()).collect() }).collect()
}
