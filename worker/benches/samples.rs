//! Benchmarks of preparing samples: the permutation of an epoch, and tokenization.

use std::hint::black_box;

use dico_worker::data::permutation::Permutation;
use divan::{Bencher, counter::ItemsCount};
use tokenizer::Vocabulary;

const CAPTION: &str = "A man rides a wave on a surfboard while two dogs watch from the sandy beach.";
/// Maximal length of a caption, in tokens.
const MAX_TOKENS: usize = 77;

fn main() {
    divan::main();
}

/// The sample at one index, for the number of captions of Flickr8k and of COCO.
#[divan::bench(args = [40_000, 566_747])]
fn permutation(bencher: Bencher<'_, '_>, length: u64) {
    let permutation = Permutation::new(length, 7);
    let mut index = 0;
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        index = (index + 1) % length;
        permutation.at(black_box(index))
    });
}

#[divan::bench]
fn caption_to_tokens(bencher: Bencher<'_, '_>) {
    let vocabulary = Vocabulary::full();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| vocabulary.encode(black_box(CAPTION), MAX_TOKENS));
}

#[divan::bench]
fn tokens_to_caption(bencher: Bencher<'_, '_>) {
    let vocabulary = Vocabulary::full();
    let tokens = vocabulary.encode(CAPTION, MAX_TOKENS);
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| vocabulary.decode(black_box(&tokens[1..])));
}
