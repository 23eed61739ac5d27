//! The settings of objectives where earlier versions had them: in a stage's keys `contrastive`,
//! `scst` and `dico`, beside `objective`. They are accepted, with a warning, in this version and
//! the next. Then this module goes, with the three fields of [`Stage`].

use serde::{Deserialize, Deserializer};

use super::check::{Problem, need};
use super::{Objective, Stage};

/// The keys of a stage that had the settings of its objective.
pub(crate) const EARLIER_KEYS: [&str; 3] = ["contrastive", "scst", "dico"];

/// Reads stages, and moves settings to where they are now.
pub(super) fn deserialize_stages<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Stage>, D::Error> {
    let mut stages = Vec::<Stage>::deserialize(deserializer)?;
    for Stage { objective, contrastive, scst, dico, .. } in &mut stages {
        adopt(objective, contrastive, Objective::Contrastive);
        adopt(objective, scst, Objective::Scst);
        adopt(objective, dico, Objective::Dico);
    }
    Ok(stages)
}

/// Takes earlier settings of an objective: moves them to `objective` if that is the same one
/// without settings of its own, and drops them if they are the defaults of another objective, which
/// the journals of earlier versions contain.
fn adopt<T: Clone + Default + PartialEq>(
    objective: &mut Objective,
    settings: &mut Option<T>,
    with_settings: fn(T) -> Objective,
) {
    let without_settings = with_settings(T::default());
    if *objective == without_settings {
        *objective = settings.take().map_or(without_settings, with_settings);
    } else if objective.name() != without_settings.name() {
        settings.take_if(|settings| *settings == T::default());
    }
}

impl Stage {
    /// Refuses earlier settings of another objective, and of an objective that has settings.
    pub(crate) fn check_earlier_settings(&self) -> Result<(), Problem> {
        let Self { objective, contrastive, scst, dico, .. } = self;
        for (name, is_absent) in EARLIER_KEYS.into_iter().zip([contrastive.is_none(), scst.is_none(), dico.is_none()]) {
            let problem = match objective.name() == name {
                true => {
                    "has settings of the objective, and `objective` has some, too: move all of them there".to_owned()
                }
                false => format!("is for `objective: {name}` only"),
            };
            need(is_absent, name, &problem)?;
        }
        Ok(())
    }
}

/// The warning for the settings of the objective `name` in a key of the stage.
pub(crate) fn warning(name: &str) -> String {
    format!("the settings of an objective are part of `objective` now: write `objective: {{ {name}: {{ ... }} }}`")
}

#[cfg(test)]
mod tests;
