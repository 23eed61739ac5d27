//! The objectives: the table of their names and settings, and what the rest of a run asks of them.

mod settings;

use std::fmt;

use schemars::{JsonSchema, Schema};
use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use settings::{
    Baseline, CandidateKind, Contrastive, CrossEntropy, Dico, Preference, RejectedWeights, Scst, Trainable,
};

use super::check::Problem;
use super::{Reward, Rewards};

/// Defines [`Objective`] from a table: name in run files, variant, and type of the settings.
macro_rules! objectives {
    ($($(#[$description:meta])* $name:literal => $variant:ident($settings:ty),)*) => {
        /// Objective of a stage: its name alone, which means the defaults of all settings, or its
        /// name with settings.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[schemars(transform = add_names)]
        pub enum Objective {
            $($(#[$description])* #[serde(rename = $name)] $variant($settings),)*
        }

        impl Objective {
            /// The names of all objectives.
            pub const NAMES: &[&str] = &[$($name),*];

            /// The name used in run files.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }

            /// The settings, to ask them what the rest of a run needs to know.
            pub(crate) fn settings(&self) -> &dyn ObjectiveSettings {
                match self { $(Self::$variant(settings) => settings,)* }
            }
        }
    };
}

objectives! {
    /// Symmetric InfoNCE of images and captions. Trains the evaluator.
    "contrastive" => Contrastive(Contrastive),
    /// Cross-entropy with teacher forcing. Trains the captioner.
    "cross_entropy" => CrossEntropy(CrossEntropy),
    /// Self-critical sequence training. Fine-tunes the captioner.
    "scst" => Scst(Scst),
    /// Direct CLIP-based optimization. Fine-tunes the captioner.
    "dico" => Dico(Dico),
    /// Direct preference optimization, best against worst candidate. Fine-tunes the captioner.
    "dpo" => Dpo(Preference),
}

/// A model that a stage can train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainedModel {
    /// The captioner.
    Captioner,
    /// The primary evaluator.
    Evaluator,
}

/// What a sample of a stage is. An epoch has each sample once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// An image, with one of its captions.
    Image,
    /// A pair of an image and one of its captions.
    Caption,
}

impl SampleKind {
    /// The name of several samples, for messages.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Image => "images",
            Self::Caption => "captions",
        }
    }
}

/// What the settings of an objective say of it. The defaults are those of an objective that trains
/// the captioner on images.
pub(crate) trait ObjectiveSettings {
    /// Checks the values. The key of a problem is relative to the settings.
    fn check(&self, beams: u32) -> Result<(), Problem>;

    /// The model that a stage trains.
    fn trains(&self) -> TrainedModel {
        TrainedModel::Captioner
    }

    /// What a sample is.
    fn samples(&self) -> SampleKind {
        SampleKind::Image
    }

    /// The rewards of candidates of the captioner; none if there are no candidates.
    fn rewards(&self) -> Option<&Rewards> {
        None
    }

    /// The least number of candidates per image.
    fn min_candidates(&self) -> u32 {
        1
    }

    /// Whether training steps report this one of [`metric_catalogue::TRAINING_METRICS`].
    fn reports(&self, _statistic: &str) -> bool {
        false
    }
}

impl Objective {
    /// The model that a stage with this objective trains.
    #[must_use]
    pub fn trains(&self) -> TrainedModel {
        self.settings().trains()
    }

    /// Whether a stage with this objective trains the evaluator. Its evaluations score the
    /// reference captions.
    #[must_use]
    pub fn trains_evaluator(&self) -> bool {
        self.trains() == TrainedModel::Evaluator
    }

    /// Whether a stage with this objective trains the captioner on reference captions, so that the
    /// captioner needs no earlier training.
    #[must_use]
    pub fn trains_captioner_on_references(&self) -> bool {
        self.trains() == TrainedModel::Captioner && !self.is_rewarded()
    }

    /// What a sample of a stage with this objective is.
    #[must_use]
    pub fn samples(&self) -> SampleKind {
        self.settings().samples()
    }

    /// The rewards of candidates of the captioner, with their weights; none if the objective
    /// rewards no candidates.
    #[must_use]
    pub fn rewards(&self) -> Option<&Rewards> {
        self.settings().rewards()
    }

    /// Whether the stage rewards candidates of the captioner and keeps a frozen copy of it as
    /// reference. The other objectives train on reference captions.
    #[must_use]
    pub fn is_rewarded(&self) -> bool {
        self.rewards().is_some()
    }

    /// Whether the reward includes CIDEr-D, which compares candidates with the reference captions.
    #[must_use]
    pub fn has_cider_reward(&self) -> bool {
        self.rewards().is_some_and(|rewards| rewards.contains_key(&Reward::Cider))
    }

    /// Whether the loss of a sample depends on the other samples of the batch, so that the batch
    /// cannot be split.
    #[must_use]
    pub fn needs_whole_batch(&self) -> bool {
        self.contrastive().is_some()
    }

    /// The settings of the contrastive objective, if it is this one.
    #[must_use]
    pub fn contrastive(&self) -> Option<&Contrastive> {
        match self {
            Self::Contrastive(settings) => Some(settings),
            _ => None,
        }
    }
}

/// Reads an objective: a name, or a map from a name to its settings.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Objective, D::Error> {
    deserializer.deserialize_any(ObjectiveVisitor)
}

struct ObjectiveVisitor;

impl<'de> Visitor<'de> for ObjectiveVisitor {
    type Value = Objective;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an objective, or a map from its name to its settings")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Objective, E> {
        let no_settings = MapDeserializer::new(std::iter::empty::<(&str, &str)>());
        let settings = MapAccessDeserializer::new(no_settings);
        let entry = MapDeserializer::new(std::iter::once((name, settings)));
        Objective::deserialize(MapAccessDeserializer::new(entry))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Objective, A::Error> {
        Objective::deserialize(MapAccessDeserializer::new(entries))
    }
}

/// Adds the names alone to the schema.
fn add_names(schema: &mut Schema) {
    if let Some(alternatives) = schema.get_mut("oneOf").and_then(serde_json::Value::as_array_mut) {
        let description = "Without settings: all of them have their defaults.";
        alternatives.push(json!({ "enum": Objective::NAMES, "description": description }));
    }
}
