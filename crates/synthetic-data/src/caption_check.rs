//! Checks captions against scenes.

use serde::{Deserialize, Serialize};

use crate::grammar::{Claims, NounPhrase, parse_caption};
use crate::scene::{Object, Scene};

/// The result of checking a caption against a scene.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptionCheck {
    /// Whether the caption belongs to the caption language.
    pub grammatical: bool,
    /// Whether all its claims are true of the scene. False for an ungrammatical caption.
    pub truthful: bool,
    /// The number of its claims, true or not: objects, colours, sizes and relations. 0 for an
    /// ungrammatical caption.
    pub details: u32,
}

/// Checks `caption` as a description of `scene`. Accepts any text.
///
/// A caption is truthful if its noun phrases can be matched to different objects such that every
/// stated attribute and relation holds: "a star and a red star" needs two stars.
#[must_use]
pub fn check_caption(caption: &str, scene: &Scene) -> CaptionCheck {
    parse_caption(caption).map_or_else(CaptionCheck::default, |claims| CaptionCheck {
        grammatical: true,
        truthful: is_truthful(&claims, scene),
        details: claims.details(),
    })
}

fn is_truthful(claims: &Claims, scene: &Scene) -> bool {
    // This also bounds the search: a scene has few objects.
    claims.phrases.len() <= scene.objects().len() && can_match_rest(claims, scene, &mut Vec::new())
}

/// Whether `matched`, which has an object for each of the first phrases, can be extended to all
/// phrases such that all claims are true.
fn can_match_rest<'a>(claims: &Claims, scene: &'a Scene, matched: &mut Vec<&'a Object>) -> bool {
    let Some(phrase) = claims.phrases.get(matched.len()) else {
        return claims
            .relations
            .iter()
            .all(|claim| claim.relation.holds(matched[claim.subject], matched[claim.object]));
    };
    scene.objects().iter().any(|object| {
        // The objects of a scene all differ, so equality is identity.
        if !describes(phrase, object) || matched.contains(&object) {
            return false;
        }
        matched.push(object);
        let is_possible = can_match_rest(claims, scene, matched);
        matched.pop();
        is_possible
    })
}

fn describes(phrase: &NounPhrase, object: &Object) -> bool {
    phrase.shape == object.shape
        && phrase.colour.is_none_or(|colour| colour == object.colour)
        && phrase.size.is_none_or(|size| size == object.size)
}
