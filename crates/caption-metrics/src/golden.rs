//! Compares metrics of some captions with the values that pycocoevalcap 1.2 printed for them (its
//! PTB tokenizer, BLEU, ROUGE-L and CIDEr).

use crate::{Corpus, Scores, bleu, cider_d, item, rouge_l};

/// Candidates and references.
const CAPTIONS: &[(&str, &[&str])] = &[
    (
        "A dog runs along the wet sand.",
        &["A brown dog is running along the beach.", "The dog runs on wet sand near the sea.", "A dog chases waves."],
    ),
    (
        "Two men are fixing a bicycle",
        &["Two mechanics repair a bike in their workshop.", "Two men are fixing a bicycle wheel."],
    ),
    ("a cat a cat a cat on a mat", &["The cat's sleeping on a mat.", "A cat can't leave its mat, it seems."]),
    (
        "A red double-decker bus",
        &["A red double-decker bus stops at the kerb.", "A tall red bus on a busy street waits for people."],
    ),
    ("Children sing.", &["Rain falls on an empty station platform."]),
    ("", &["A woman reads a newspaper on a bench."]),
    (
        "The woman's dog isn't on the beach, it's on a bench.",
        &["A woman reads on a bench while her dog sleeps.", "The woman's dog sits by the bench and doesn't bark."],
    ),
];

/// BLEU-1 to BLEU-4 of all items together.
const BLEU: [f64; 4] = [0.4765254526685932, 0.42025594705035874, 0.33991751234913936, 0.2690550750232314];
/// BLEU-1 to BLEU-4 by item.
const BLEU_ITEMS: &[[f64; 4]] = &[
    [0.8668778995025025, 0.7078028410171759, 4.428644740695689e-06, 1.171325551951498e-08],
    [0.8464817246084536, 0.8464817245943457, 0.846481724575535, 0.8464817245484947],
    [0.4444444443456792, 0.4082482903703063, 0.28768479126408814, 4.463236136748592e-05],
    [0.36787944098750286, 0.3678794409721745, 0.3678794409466274, 0.36787944088786895],
    [4.104249927090697e-17, 5.804285908809378e-17, 6.515090651804188e-14, 2.1827615550011675e-12],
    [0.0, 0.0, 0.0, 0.0],
    [0.6428571428112246, 0.49724515806196345, 0.3953912414701941, 0.2737928561695718],
];

/// ROUGE-L of all items together.
const ROUGE: f64 = 0.43512466708688496;
/// ROUGE-L by item.
const ROUGE_ITEMS: &[f64] =
    &[0.5269978401727862, 0.9104477611940297, 0.5115303983228512, 0.6288659793814433, 0.0, 0.0, 0.4680306905370844];

/// CIDEr-D of all items together.
const CIDER: f64 = 1.5984048864765985;
/// CIDEr-D by item.
const CIDER_ITEMS: &[f64] =
    &[1.4241087586603705, 4.62193924979601, 1.1086053077618405, 2.643298355141676, 0.0, 0.0, 1.390882533976292];

fn corpus() -> Corpus {
    let items: Vec<_> = CAPTIONS.iter().map(|(candidate, references)| item(candidate, references)).collect();
    Corpus::new(&items)
}

/// Asserts a small relative difference, so that the tiny values of BLEU without matches are
/// compared too.
fn assert_near(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-12 * expected.abs(), "{got:e} is not {expected:e}");
}

#[test]
fn bleu_equals_pycocoevalcap() {
    for (order, Scores { corpus, items }) in bleu(&corpus()).into_iter().enumerate() {
        assert_near(corpus, BLEU[order]);
        assert_eq!(items.len(), BLEU_ITEMS.len());
        items.iter().zip(BLEU_ITEMS).for_each(|(&got, expected)| assert_near(got, expected[order]));
    }
}

#[test]
fn cider_d_equals_pycocoevalcap() {
    let Scores { corpus, items } = cider_d(&corpus());
    assert_near(corpus, CIDER);
    assert_eq!(items.len(), CIDER_ITEMS.len());
    items.iter().zip(CIDER_ITEMS).for_each(|(&got, &expected)| assert_near(got, expected));
}

#[test]
fn rouge_l_equals_pycocoevalcap() {
    let Scores { corpus, items } = rouge_l(&corpus());
    assert_near(corpus, ROUGE);
    assert_eq!(items.len(), ROUGE_ITEMS.len());
    items.iter().zip(ROUGE_ITEMS).for_each(|(&got, &expected)| assert_near(got, expected));
}
