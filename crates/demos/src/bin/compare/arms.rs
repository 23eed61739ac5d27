use config::{
    Dico, EvaluatorScore, GuardAction, Objective, Preference, RejectedWeights, Reward, Rewards, Rule, Scst, Stage,
};

/// The share of grammatical captions that the paper's claims are tested with, and below which the
/// guarded arm rolls back.
pub const MIN_GRAMMATICAL: f64 = 0.97;

/// The share of incorrect endings below which captions end correctly.
pub const MAX_INCORRECT_ENDINGS: f64 = 0.02;

/// The evaluator whose score is an arm's reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewardEvaluator {
    /// The one that was trained with positive augmentation.
    Pac,
    /// The plain one.
    Clip,
}

/// One of the compared ways to fine-tune the same captioner.
pub struct Arm {
    /// The name of its folder and rows.
    pub name: &'static str,
    /// The title in tables and pictures.
    pub title: &'static str,
    /// The evaluator of its reward.
    pub evaluator: RewardEvaluator,
    /// The name of the metric that is its reward.
    pub reward: &'static str,
    /// Changes the common stage to this arm's.
    adapt: fn(&mut Stage),
}

impl Arm {
    /// The stage of this arm: the common one with another objective, reward or guard.
    pub fn stage(&self, common: &Stage) -> Stage {
        let mut stage = common.clone();
        (stage.objective, stage.guard) = (Objective::Dico(Dico::default()), Vec::new());
        (self.adapt)(&mut stage);
        stage
    }
}

/// All arms. Batch, steps, optimizer and beam search are the same for all: they differ in
/// objective, reward and guard.
pub const ARMS: [Arm; 9] = [
    Arm {
        name: "scst_cider",
        title: "SCST, CIDEr-D",
        evaluator: RewardEvaluator::Pac,
        reward: "cider",
        adapt: |stage| scst(stage, Reward::Cider),
    },
    Arm {
        name: "scst_clip_s",
        title: "SCST, CLIP-S",
        evaluator: RewardEvaluator::Clip,
        reward: "clip_s",
        adapt: |stage| scst(stage, EvaluatorScore::ClipS.into()),
    },
    Arm {
        name: "scst_pac_s",
        title: "SCST, PAC-S",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        adapt: |stage| scst(stage, EvaluatorScore::PacS.into()),
    },
    Arm { name: "dico", title: "DiCO", evaluator: RewardEvaluator::Pac, reward: "pac_s", adapt: |_| {} },
    Arm {
        name: "dico_uniform",
        title: "DiCO, uniform weights",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        adapt: |stage| dico(stage, Dico { weights: RejectedWeights::Uniform, ..Dico::default() }),
    },
    Arm {
        name: "dico_worst",
        title: "DiCO, best against worst",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        adapt: |stage| dico(stage, Dico { weights: RejectedWeights::Worst, ..Dico::default() }),
    },
    Arm {
        name: "dico_no_reference",
        title: "DiCO, no reference",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        adapt: |stage| dico(stage, Dico { reference: false, ..Dico::default() }),
    },
    Arm {
        name: "dpo",
        title: "DPO, best against worst",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        adapt: |stage| stage.objective = Objective::Dpo(Preference::default()),
    },
    Arm {
        name: "scst_guarded",
        title: "SCST, PAC-S, guarded",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        adapt: guarded,
    },
];

fn scst(stage: &mut Stage, reward: Reward) {
    stage.objective = Objective::Scst(Scst { reward: Rewards::from([(reward, 1.0)]), ..Scst::default() });
}

fn dico(stage: &mut Stage, settings: Dico) {
    stage.objective = Objective::Dico(settings);
}

/// SCST on PAC-S, with a guard that rolls the stage back to its best state with a share of
/// grammatical captions of at least [`MIN_GRAMMATICAL`].
fn guarded(stage: &mut Stage) {
    scst(stage, EvaluatorScore::PacS.into());
    stage.metric = Some("pac_s".to_owned());
    stage.guard = vec![Rule {
        metric: "grammatical".to_owned(),
        above: None,
        below: Some(MIN_GRAMMATICAL),
        for_: 1,
        action: GuardAction::Rollback,
    }];
}
