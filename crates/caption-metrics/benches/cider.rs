//! CIDEr-D as a reward in training, and as a score of an evaluation. Captions are generated.

use caption_metrics::cider::{Candidate, CiderReward};
use caption_metrics::{Corpus, Item, cider_d};
use divan::{Bencher, counter::ItemsCount};

const REFERENCES: usize = 5;
const CANDIDATES: usize = 5;

fn main() {
    divan::main();
}

/// The candidates of one image, with document frequencies of `images` images.
#[divan::bench(args = [5_000])]
fn rewards(bencher: Bencher<'_, '_>, images: usize) {
    let mut caption = caption_generator();
    let references: Vec<Vec<String>> = (0..images).map(|_| (0..REFERENCES).map(|_| caption()).collect()).collect();
    let cider = CiderReward::new(&references);
    let candidates: Vec<_> = (0..CANDIDATES).map(|_| Candidate { text: caption(), has_end_token: true }).collect();
    let image = 7;
    bencher.counter(ItemsCount::new(CANDIDATES)).bench_local(|| cider.rewards(image, &candidates));
}

/// The captions of all images of an evaluation.
#[divan::bench(args = [1_000], sample_count = 10)]
fn evaluation(bencher: Bencher<'_, '_>, images: usize) {
    let mut caption = caption_generator();
    let mut item = || Item { candidate: caption(), references: (0..REFERENCES).map(|_| caption()).collect() };
    let corpus = Corpus::new(&(0..images).map(|_| item()).collect::<Vec<_>>());
    bencher.counter(ItemsCount::new(images)).bench_local(|| cider_d(&corpus));
}

/// Generates captions whose word frequencies follow Zipf's law.
fn caption_generator() -> impl FnMut() -> String {
    // Random numbers: the upper bits of a linear congruential generator.
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 32
    };
    move || {
        let words: Vec<String> = (0..6 + next() % 10).map(|_| format!("word{}", 5000 / (1 + next() % 5000))).collect();
        words.join(" ")
    }
}
