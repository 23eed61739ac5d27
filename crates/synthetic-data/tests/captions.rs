//! What the writer writes is what the judge accepts.

mod common;

use proptest::prelude::*;
use synthetic_data::{LEVELS, Level, MAX_WORDS, Scene, captions, compose, judge, vocabulary};

fn check(scene: &Scene, seed: u64) -> Result<(), TestCaseError> {
    let vocabulary = vocabulary();
    for (level, caption) in LEVELS.into_iter().zip(captions(scene, seed)) {
        let verdict = judge(&caption, scene);
        prop_assert!(verdict.grammatical, "{caption:?}");
        prop_assert!(verdict.truthful, "{caption:?} of {scene:?}");
        prop_assert!(caption.split(' ').count() <= MAX_WORDS, "{caption:?}");
        prop_assert!(caption.split(' ').all(|word| vocabulary.contains(&word)), "{caption:?}");

        let all = u32::try_from(scene.objects().len()).unwrap();
        let details = match level {
            Level::Terse => 1..=2,
            Level::Tinted => 3..=3,
            Level::Coloured => 2 * all..=2 * all,
            Level::Sized => 3 * all..=3 * all,
            Level::Full => 3 * all..=4 * all - 1,
        };
        prop_assert!(details.contains(&verdict.details), "{level:?}: {caption:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn captions_of_composed_scenes_are_right(scene: u64, seed: u64) {
        check(&compose(scene), seed)?;
    }

    #[test]
    fn captions_of_any_scenes_are_right(scene in common::any_scene(), seed: u64) {
        check(&scene, seed)?;
    }
}

#[test]
fn terse_captions_follow_from_the_scene_alone() {
    for seed in 0..200 {
        let scene = compose(seed);
        let (one, other) = (captions(&scene, 1), captions(&scene, 2));
        for (index, level) in LEVELS.into_iter().enumerate() {
            if matches!(level, Level::Terse | Level::Tinted) {
                assert_eq!(one[index], other[index]);
            }
        }
    }
}

#[test]
fn detailed_captions_vary() {
    let scene = (0..).map(compose).find(|scene| scene.objects().len() == 3).unwrap();
    let last = |seed| captions(&scene, seed)[LEVELS.iter().position(|level| *level == Level::Full).unwrap()].clone();
    let distinct: std::collections::HashSet<_> = (0..100).map(last).collect();
    assert!(distinct.len() > 80, "{}", distinct.len());
}
