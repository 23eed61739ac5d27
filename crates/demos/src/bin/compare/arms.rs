use config::{Contrastive, Dico, EvaluatorScore, GuardAction, Objective, Reward, Rewards, Rule, Scst, Stage, Weights};

/// Below this share of grammatical captions the guarded arm goes back.
pub const GRAMMATICAL: f64 = 0.97;

/// An arm whose captions end correctly has a share of incorrect endings below this.
pub const INCORRECT_ENDINGS: f64 = 0.02;

/// Which of the two evaluators an arm is rewarded by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewardEvaluator {
    /// The one that was trained with positive augmentation.
    Pac,
    /// The plain one.
    Clip,
}

/// One way to fine-tune.
pub struct Arm {
    /// Names its folder and its rows.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// Whose reward it is.
    pub judge: RewardEvaluator,
    /// The score that is maximised.
    pub reward: &'static str,
    objective: fn(&mut Stage),
}

impl Arm {
    /// The stage that all have in common, with this arm's objective.
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

/// All that are compared. Batch, steps, optimizer and search are the same for all, and no setting is any arm's own but what
/// makes it that arm.
pub const ARMS: [Arm; 8] = [
    Arm {
        name: "scst_cider",
        title: "SCST, CIDEr-D",
        judge: RewardEvaluator::Pac,
        reward: "cider",
        objective: |stage| scst(stage, Reward::Cider),
    },
    Arm {
        name: "scst_clip_s",
        title: "SCST, CLIP-S",
        judge: RewardEvaluator::Clip,
        reward: "clip_s",
        objective: |stage| scst(stage, EvaluatorScore::ClipS.into()),
    },
    Arm {
        name: "scst_pac_s",
        title: "SCST, PAC-S",
        judge: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| scst(stage, EvaluatorScore::PacS.into()),
    },
    Arm { name: "dico", title: "DiCO", judge: RewardEvaluator::Pac, reward: "pac_s", objective: |_| {} },
    Arm {
        name: "dico_uniform",
        title: "DiCO, uniform weights",
        judge: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| stage.dico.weights = Weights::Uniform,
    },
    Arm {
        name: "dico_worst",
        title: "DiCO, best against worst",
        judge: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| stage.dico.weights = Weights::Worst,
    },
    Arm {
        name: "dico_no_reference",
        title: "DiCO, no reference",
        judge: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: |stage| stage.dico.reference = false,
    },
    Arm {
        name: "scst_guarded",
        title: "SCST, PAC-S, guarded",
        judge: RewardEvaluator::Pac,
        reward: "pac_s",
        objective: guarded,
    },
];

fn scst(stage: &mut Stage, reward: Reward) {
    stage.objective = Objective::Scst;
    stage.scst.reward = Rewards::from([(reward, 1.0)]);
}

/// Back to the best state that was still fluent.
fn guarded(stage: &mut Stage) {
    scst(stage, EvaluatorScore::PacS.into());
    stage.metric = Some("pac_s".to_owned());
    stage.guard = vec![Rule {
        metric: "grammatical".to_owned(),
        above: None,
        below: Some(GRAMMATICAL),
        for_: 1,
        action: GuardAction::Rollback,
    }];
}
