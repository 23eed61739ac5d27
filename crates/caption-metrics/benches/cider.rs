//! CIDEr-D, as a reward in training and over an evaluation. Captions are made up.

use caption_metrics::cider::{Candidate, Cider};
use caption_metrics::{Corpus, Item, cider_d};
use divan::{Bencher, counter::ItemsCount};

const REFERENCES: usize = 5;
const CANDIDATES: usize = 5;

fn main() {
    divan::main();
}

/// The candidates of one image, where frequencies come from so many.
#[divan::bench(args = [5_000])]
fn rewards(bencher: Bencher<'_, '_>, images: usize) {
    let mut caption = captions();
    let references: Vec<Vec<String>> = (0..images).map(|_| (0..REFERENCES).map(|_| caption()).collect()).collect();
    let cider = Cider::new(&references);
    let candidates: Vec<_> = (0..CANDIDATES).map(|_| Candidate { text: caption(), ended: true }).collect();
    bencher.counter(ItemsCount::new(CANDIDATES)).bench_local(|| cider.rewards(7, &candidates));
}

/// All images of an evaluation.
#[divan::bench(args = [1_000], sample_count = 10)]
fn evaluation(bencher: Bencher<'_, '_>, images: usize) {
    let mut caption = captions();
    let mut item = || Item { candidate: caption(), references: (0..REFERENCES).map(|_| caption()).collect() };
    let corpus = Corpus::new(&(0..images).map(|_| item()).collect::<Vec<_>>());
    bencher.counter(ItemsCount::new(images)).bench_local(|| cider_d(&corpus));
}

/// Captions of words that are as rare as they are many.
fn captions() -> impl FnMut() -> String {
    // A linear congruential generator's upper bits.
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
