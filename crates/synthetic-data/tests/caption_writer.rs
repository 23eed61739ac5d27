//! Captions of the caption writer pass the caption check.

mod common;

use proptest::prelude::*;
use synthetic_data::{
    DETAIL_LEVELS, DetailLevel, MAX_CAPTION_WORDS, Scene, check_caption, generate_scene, vocabulary, write_captions,
};

fn assert_captions_pass(scene: &Scene, seed: u64) -> Result<(), TestCaseError> {
    let vocabulary = vocabulary();
    for (level, caption) in DETAIL_LEVELS.into_iter().zip(write_captions(scene, seed)) {
        let check = check_caption(&caption, scene);
        prop_assert!(check.grammatical, "{caption:?}");
        prop_assert!(check.truthful, "{caption:?} of {scene:?}");
        prop_assert!(caption.split(' ').count() <= MAX_CAPTION_WORDS, "{caption:?}");
        prop_assert!(caption.split(' ').all(|word| vocabulary.contains(&word)), "{caption:?}");

        let objects = u32::try_from(scene.objects().len()).unwrap();
        let details = match level {
            DetailLevel::Shapes => 1..=2,
            DetailLevel::FirstColour => 3..=3,
            DetailLevel::Colours => 2 * objects..=2 * objects,
            DetailLevel::SizesAndColours => 3 * objects..=3 * objects,
            DetailLevel::Relations => 3 * objects..=4 * objects - 1,
        };
        prop_assert!(details.contains(&check.details), "{level:?}: {caption:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn captions_of_generated_scenes_pass_the_check(scene: u64, seed: u64) {
        assert_captions_pass(&generate_scene(scene), seed)?;
    }

    #[test]
    fn captions_of_arbitrary_scenes_pass_the_check(scene in common::arbitrary_scene(), seed: u64) {
        assert_captions_pass(&scene, seed)?;
    }
}

#[test]
fn terse_captions_depend_on_the_scene_only() {
    for seed in 0..200 {
        let scene = generate_scene(seed);
        let (one, other) = (write_captions(&scene, 1), write_captions(&scene, 2));
        for (index, level) in DETAIL_LEVELS.into_iter().enumerate() {
            if matches!(level, DetailLevel::Shapes | DetailLevel::FirstColour) {
                assert_eq!(one[index], other[index]);
            }
        }
    }
}

#[test]
fn detailed_captions_vary() {
    let scene = (0..).map(generate_scene).find(|scene| scene.objects().len() == 3).unwrap();
    let most_detailed = |seed| {
        write_captions(&scene, seed)[DETAIL_LEVELS.iter().position(|level| *level == DetailLevel::Relations).unwrap()]
            .clone()
    };
    let distinct: std::collections::HashSet<_> = (0..100).map(most_detailed).collect();
    assert!(distinct.len() > 80, "{}", distinct.len());
}
