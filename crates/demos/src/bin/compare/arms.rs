use config::{Contrastive, Dico, EvaluatorScore, GuardAction, Objective, Reward, Rewards, Rule, Scst, Stage, Weights};

/// The guarded arm rolls back below this share of grammatical captions.
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

/// One way to fine-tune.
pub struct Arm {
    /// The name of its folder and rows.
    pub name: &'static str,
    /// The title in tables and pictures.
    pub title: &'static str,
    /// The evaluator of its reward.
    pub evaluator: RewardEvaluator,
    /// The score that is maximised.
    pub reward: &'static str,
    objective: fn(&mut Stage),
}

impl Arm {
    /// The common stage with this arm's objective.
    pub fn stage(&self, common: &Stage) -> Stage {
        let mut stage = Stage {
            objective: Objective::Dico,
            contrastive: Contrastive::default(),
            dico: Dico::default(),
            scst: Scst::default(),
            guard: Vec::new(),
            ..common.clone()
        };
        (self.objective)(&mut stage);
        stage
    }
}

/// All arms. Batch, steps, optimizer and search are the same for all; each differs by its objective
/// alone.
pub const ARMS: [Arm; 8] = [
    Arm {
        name: "scst_cider",
        title: "SCST, CIDEr-D",
        evaluator: RewardEvaluator::Pac,
        reward: "cider",
        objective: |stage| scst(stage, Reward::Cider),
    },
    Arm {
        name: "scst_clip_s",
        title: "SCST, CLIP-S",
        evaluator: RewardEvaluator::Clip,
        reward: "clip_s",
        objective: |stage| scst(stage, EvaluatorScore::ClipS.into()),
    },
    Arm {
        name: "scst_pac_s",
        title: "SCST, PAC-S",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| scst(stage, EvaluatorScore::PacS.into()),
    },
    Arm { name: "dico", title: "DiCO", evaluator: RewardEvaluator::Pac, reward: "pac_s", objective: |_| {} },
    Arm {
        name: "dico_uniform",
        title: "DiCO, uniform weights",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| stage.dico.weights = Weights::Uniform,
    },
    Arm {
        name: "dico_worst",
        title: "DiCO, best against worst",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| stage.dico.weights = Weights::Worst,
    },
    Arm {
        name: "dico_no_reference",
        title: "DiCO, no reference",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| stage.dico.reference = false,
    },
    Arm {
        name: "scst_guarded",
        title: "SCST, PAC-S, guarded",
        evaluator: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: guarded,
    },
];

fn scst(stage: &mut Stage, reward: Reward) {
    stage.objective = Objective::Scst;
    stage.scst.reward = Rewards::from([(reward, 1.0)]);
}

/// SCST that rolls back to the best state whose captions are still grammatical.
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
