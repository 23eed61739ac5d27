//! Judges captions against scenes.

use serde::{Deserialize, Serialize};

use crate::grammar::{Claims, Phrase, parse};
use crate::scene::{Object, Scene};

/// What there is to say of a caption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// It is of the caption language.
    pub grammatical: bool,
    /// Everything it says holds of the scene. Never so of an ungrammatical one.
    pub truthful: bool,
    /// How many facts it names, true or not: objects, colours, sizes and relations. None in an ungrammatical one.
    pub details: u32,
}

/// Judges `caption` as a description of `scene`. Takes any text.
///
/// A caption is truthful if its noun phrases can be matched to objects, each to one of its own, so that every named
/// attribute and relation holds: "a star and a red star" needs two stars.
#[must_use]
pub fn judge(caption: &str, scene: &Scene) -> Judgement {
    parse(caption).map_or_else(Judgement::default, |claims| Judgement {
        grammatical: true,
        truthful: holds(&claims, scene),
        details: claims.details(),
    })
}

fn holds(claims: &Claims, scene: &Scene) -> bool {
    // Also bounds the search: a scene has few objects.
    claims.phrases.len() <= scene.objects().len() && matches(claims, scene, &mut Vec::new())
}

/// Whether `chosen`, an object for each of the first phrases, can be extended to all phrases.
fn matches<'a>(claims: &Claims, scene: &'a Scene, chosen: &mut Vec<&'a Object>) -> bool {
    let Some(phrase) = claims.phrases.get(chosen.len()) else {
        return claims.links.iter().all(|link| link.relation.holds(chosen[link.subject], chosen[link.object]));
    };
    scene.objects().iter().any(|object| {
        // Objects of a scene are all different, so equality is identity.
        if !fits(phrase, object) || chosen.contains(&object) {
            return false;
        }
        chosen.push(object);
        let found = matches(claims, scene, chosen);
        chosen.pop();
        found
    })
}

fn fits(phrase: &Phrase, object: &Object) -> bool {
    phrase.shape == object.shape
        && phrase.colour.is_none_or(|colour| colour == object.colour)
        && phrase.size.is_none_or(|size| size == object.size)
}
