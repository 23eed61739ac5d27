//! The caption check detects false and ungrammatical captions.

mod common;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use synthetic_data::{
    CaptionCheck, Claims, Colour, DETAIL_LEVELS, DetailLevel, NounPhrase, Object, Relation, RelationClaim, Scene,
    Shape, Size, check_caption, generate_scene, parse_caption, write_captions,
};

/// A large red circle left of and above a small blue square; a small red star below both.
fn scene() -> Scene {
    let object = |shape, colour, size, x, y| Object { shape, colour, size, x, y };
    Scene::new(vec![
        object(Shape::Circle, Colour::Red, Size::Large, 11, 11),
        object(Shape::Square, Colour::Blue, Size::Small, 53, 20),
        object(Shape::Star, Colour::Red, Size::Small, 32, 53),
    ])
    .unwrap()
}

#[test]
fn truthful_captions_are_accepted() {
    for (caption, details) in [
        ("a star", 1),
        ("a red star", 2),
        ("a star and a circle", 2),
        ("there is a big red circle", 3),
        ("a circle above a star", 3),
        ("a circle higher than a square", 3),
        ("a circle to the left of a star to the left of a square", 5),
        ("a drawing of a large red circle on the left of a little blue square and a small red star", 10),
    ] {
        assert_eq!(
            check_caption(caption, &scene()),
            CaptionCheck { grammatical: true, truthful: true, details },
            "{caption}"
        );
    }
}

#[test]
fn false_captions_are_refused() {
    for (caption, details) in [
        ("a triangle", 1),
        ("a blue star", 2),
        ("a large star", 2),
        ("a circle below a star", 3),
        ("a star left of a circle", 3),
        ("a red circle and a red circle", 4),
        ("a circle above a circle", 3),
        ("a star and a red star", 3),
        ("a circle and a square and a star and a star", 4),
        ("a picture of a circle and a square and a star and a triangle and a cross", 5),
    ] {
        assert_eq!(
            check_caption(caption, &scene()),
            CaptionCheck { grammatical: true, truthful: false, details },
            "{caption}"
        );
    }
}

#[test]
fn ungrammatical_captions_have_no_details() {
    for caption in ["", "red", "a", "star a", "a star a star", "a star above", "red a star", "a star and and a circle"]
    {
        assert_eq!(check_caption(caption, &scene()), CaptionCheck::default(), "{caption}");
    }
}

#[test]
fn noun_phrases_are_matched_by_search_not_greedily() {
    let star = |colour, x| Object { shape: Shape::Star, colour, size: Size::Small, x, y: 30 };
    let scene = Scene::new(vec![star(Colour::Red, 10), star(Colour::Blue, 50)]).unwrap();
    assert!(check_caption("a star and a red star", &scene).truthful, "the first is the blue one");
    assert!(check_caption("a star right of a star", &scene).truthful);
    assert!(!check_caption("a star right of a star left of a star", &scene).truthful, "there are only two");
    assert!(!check_caption("a star left of a red star", &scene).truthful);
    assert!(!check_caption("a star above a star", &scene).truthful);
}

/// The most detailed caption of a scene, which describes all objects.
fn most_detailed_caption(scene: &Scene, seed: u64) -> String {
    let captions = write_captions(scene, seed);
    captions[DETAIL_LEVELS.iter().position(|level| *level == DetailLevel::Relations).unwrap()].clone()
}

/// The text of some claims, written independently of the library's writer.
fn caption_of(claims: &Claims) -> String {
    let mut text = String::new();
    for (index, phrase) in claims.phrases.iter().enumerate() {
        if index > 0 {
            let claim = claims.relations.iter().find(|claim| claim.object == index);
            text += claim.map_or(" and ", |claim| match claim.relation {
                Relation::LeftOf => " left of ",
                Relation::RightOf => " to the right of ",
                Relation::Above => " over ",
                Relation::Below => " lower than ",
            });
        }
        let named =
            [phrase.size.map(|size| size.words()[1]), phrase.colour.map(Colour::word), Some(phrase.shape.word())];
        let named = named.into_iter().flatten().collect::<Vec<_>>().join(" ");
        text += if named.starts_with('o') { "an " } else { "a " };
        text += &named;
    }
    text
}

/// Whether claims hold, by trying all assignments of objects to noun phrases.
fn is_truthful(claims: &Claims, scene: &Scene) -> bool {
    let objects = scene.objects();
    let (phrase_count, count) = (u32::try_from(claims.phrases.len()).unwrap(), objects.len());
    (0..count.pow(phrase_count)).any(|choice| {
        let chosen: Vec<_> = (0..phrase_count).map(|phrase| choice / count.pow(phrase) % count).collect();
        let are_distinct = chosen.iter().enumerate().all(|(at, one)| !chosen[..at].contains(one));
        let are_described = claims.phrases.iter().zip(&chosen).all(|(phrase, index)| {
            let object = &objects[*index];
            phrase.shape == object.shape
                && (phrase.colour.is_none() || phrase.colour == Some(object.colour))
                && (phrase.size.is_none() || phrase.size == Some(object.size))
        });
        let is_true = |claim: &RelationClaim| {
            let (a, b) = (&objects[chosen[claim.subject]], &objects[chosen[claim.object]]);
            let (dx, dy) = (i32::from(a.x) - i32::from(b.x), i32::from(a.y) - i32::from(b.y));
            match claim.relation {
                Relation::LeftOf => dx <= -6,
                Relation::RightOf => dx >= 6,
                Relation::Above => dy <= -6,
                Relation::Below => dy >= 6,
            }
        };
        are_distinct && are_described && claims.relations.iter().all(is_true)
    })
}

/// Claims about objects of `scene`, so that true claims are not too rare.
fn claims_about(scene: Scene) -> impl Strategy<Value = (Scene, Claims)> {
    let description = (select(scene.objects().to_vec()), any::<bool>(), any::<bool>(), proptest::option::of(0usize..4));
    proptest::collection::vec(description, 1..=5).prop_map(move |chosen| {
        let mut claims = Claims { phrases: Vec::new(), relations: Vec::new() };
        for (index, (object, size, colour, relation)) in chosen.into_iter().enumerate() {
            let shape = object.shape;
            claims.phrases.push(NounPhrase {
                size: size.then_some(object.size),
                colour: colour.then_some(object.colour),
                shape,
            });
            if let (Some(relation), Some(subject)) = (relation, index.checked_sub(1)) {
                claims.relations.push(RelationClaim { subject, relation: Relation::ALL[relation], object: index });
            }
        }
        (scene.clone(), claims)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn claims_are_parsed_and_checked_as_by_brute_force(
        (scene, claims) in common::arbitrary_scene().prop_flat_map(claims_about)
    ) {
        let caption = caption_of(&claims);
        prop_assert_eq!(parse_caption(&caption), Some(claims.clone()), "{}", caption);
        let check = check_caption(&caption, &scene);
        prop_assert_eq!(check.truthful, is_truthful(&claims, &scene), "{} of {:?}", caption, scene);
        prop_assert_eq!(check.details, claims.details());
    }

    /// The most detailed caption states all attributes of every object. With one attribute
    /// exchanged it describes an object that does not exist, or one object twice.
    #[test]
    fn a_wrong_attribute_is_not_truthful(seed: u64, phrase: Index, attribute in 0..3, replacement: Index) {
        let scene = generate_scene(seed);
        let mut claims = parse_caption(&most_detailed_caption(&scene, seed)).unwrap();
        let phrase = phrase.index(claims.phrases.len());
        let phrase = &mut claims.phrases[phrase];
        match attribute {
            0 => phrase.shape = *replacement.get(&Shape::ALL),
            1 => phrase.colour = Some(*replacement.get(&Colour::ALL)),
            _ => phrase.size = Some(*replacement.get(&Size::ALL)),
        }
        let unchanged = parse_caption(&most_detailed_caption(&scene, seed)).unwrap() == claims;
        prop_assert_eq!(check_caption(&caption_of(&claims), &scene).truthful, unchanged);
    }

    #[test]
    fn an_opposite_relation_is_not_truthful(seed: u64, claim: Index) {
        let scene = generate_scene(seed);
        let mut claims = parse_caption(&most_detailed_caption(&scene, seed)).unwrap();
        if claims.relations.is_empty() {
            return Ok(());
        }
        let claim = claim.index(claims.relations.len());
        let relation = &mut claims.relations[claim].relation;
        *relation = match relation {
            Relation::LeftOf => Relation::RightOf,
            Relation::RightOf => Relation::LeftOf,
            Relation::Above => Relation::Below,
            Relation::Below => Relation::Above,
        };
        prop_assert!(!check_caption(&caption_of(&claims), &scene).truthful);
    }

    #[test]
    fn any_text_can_be_checked(caption: String, seed: u64) {
        let check = check_caption(&caption, &generate_scene(seed));
        prop_assert!(check.grammatical || check == CaptionCheck::default());
    }

    /// The claims of an accepted caption account for all its nouns, colours, relations and "and"s.
    #[test]
    fn accepted_captions_are_unambiguous(words in proptest::collection::vec(select(synthetic_data::vocabulary()), 1..9)) {
        if let Some(claims) = parse_caption(&words.join(" ")) {
            let nouns = words.iter().filter(|word| Shape::ALL.iter().any(|shape| shape.word() == **word)).count();
            let colours = words.iter().filter(|word| Colour::ALL.iter().any(|colour| colour.word() == **word)).count();
            let ands = words.iter().filter(|word| **word == "and").count();
            prop_assert_eq!(claims.phrases.len(), nouns);
            prop_assert_eq!(claims.phrases.iter().filter(|phrase| phrase.colour.is_some()).count(), colours);
            prop_assert_eq!(claims.relations.len() + ands + 1, nouns);
        }
    }
}

#[test]
fn shuffled_captions_are_hardly_ever_grammatical() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut grammatical = 0;
    for seed in 0..2_000 {
        let caption = most_detailed_caption(&generate_scene(seed), seed);
        let words: Vec<_> = caption.split(' ').map(str::to_owned).collect();
        let shuffled = Just(words).prop_shuffle().new_tree(&mut runner).unwrap().current().join(" ");
        grammatical += usize::from(parse_caption(&shuffled).is_some());
    }
    assert!(grammatical < 10, "{grammatical} of 2000");
}
