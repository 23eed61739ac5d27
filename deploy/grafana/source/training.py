"""What the run learns."""

from board import bands, board, lines, number

QUANTILES = ["0.05", "0.25", "0.5", "0.75", "0.95"]


def quantiles(role):
    return {f"{float(q):.0%}": f'dico_reward{{@, role="{role}", quantile="{q}"}}' for q in QUANTILES}


def scores(title, why, pattern, unit="none"):
    return lines(title, why, unit, {"{{metric}}": f'dico_evaluation_score{{@, metric=~"{pattern}"}}'})


def build():
    return board("training", "Training", "Loss, rewards, drift and evaluations of a run.", {
        "Where the run is": [
            number("Stage", "The present stage.", "none", "{{stage}}", "dico_stage_info{@} == 1", name=True),
            number("Step", "Committed steps of the present stage.", "none", "step", "dico_step{@}", decimals=0),
            number("Stage done", "Committed steps of the present stage, of all that it has.", "percentunit", "done",
                   "dico_step{@} / dico_stage_steps{@}", decimals=1),
            number("Stage ends in", "At the pace of the last 5 minutes, evaluations and recoveries included.", "s", "left",
                   "(dico_stage_steps{@} - dico_step{@}) / (instance:dico_steps:rate5m{@} > 0)", decimals=0),
            number("Images a second", "Of the last step, over all workers.", "none", "images/s",
                   "dico_images_per_second{@}", decimals=1),
            number("Paused", "1 while the run waits for `coordinator resume`, or for room to save its state.", "none",
                   "paused", "dico_paused{@}", limits=[1]),
        ],
        "Optimisation": [
            lines("Loss", "Of the last step, per image or token. Stages have losses of different kinds.", "none",
                  {"loss": "dico_loss{@}"}),
            lines("Learning rate", "Of the last step.", "sci", {"learning rate": "dico_learning_rate{@}"}, low=0),
            lines("Gradient norm", "Before clipping. Peaks that grow are the first sign of a rate that is too high.",
                  "none", {"norm": "dico_gradient_norm{@}"}, low=0),
        ],
        "Rewards": [
            bands("Best candidates", "Quantiles of the reward of each image's best candidate, in the last step.", "none",
                  quantiles("chosen")),
            bands("Other candidates", "Quantiles of the rewards of the rejected candidates, in the last step.", "none",
                  quantiles("rejected")),
            lines("Margin", "Mean reward of the best candidate minus that of the others: what there is to learn from.",
                  "none", {"margin": "dico_reward_margin{@}"}),
            lines("Implicit accuracy",
                  "Share of images whose implicit reward prefers the best candidate: 0.5 is a coin.", "percentunit",
                  {"accuracy": "dico_implicit_accuracy{@}"}, low=0, high=1),
        ],
        "Drift": [
            lines("KL(policy || reference)", "In nats a token. DicoKlOutOfBounds fires at 0.5.", "none",
                  {"KL": "dico_kl{@}"}, limits=[0.3, 0.5]),
            lines("Entropy of gamma", "Of the weights over rejected candidates, in nats: 0 is all weight on one.", "none",
                  {"entropy": "dico_gamma_entropy{@}"}, low=0),
            lines("Caption length", "Mean tokens of a candidate.", "none", {"tokens": "dico_caption_length{@}"}, low=0),
            lines("Repetition", "Share of a candidate's tokens that repeat an earlier one.", "percentunit",
                  {"repeated": "dico_repetition{@}"}, low=0),
        ],
        "Against its own past, as alerts see it": [
            lines("Reward", "Median of the best candidates. DicoRewardCollapse fires below the bound.", "none", {
                "15 minutes": "avg_over_time(stage:dico_reward_chosen:median{@}[15m])",
                "6 hours": "avg_over_time(stage:dico_reward_chosen:median{@}[6h])",
                "bound": "avg_over_time(stage:dico_reward_chosen:median{@}[6h])"
                         " - 0.2 * abs(avg_over_time(stage:dico_reward_chosen:median{@}[6h]))",
            }),
            lines("Margin", "DicoMarginVanished fires at a fifth of 6 hours.", "none", {
                "15 minutes": "avg_over_time(stage:dico_reward_margin{@}[15m])",
                "bound": "0.2 * avg_over_time(stage:dico_reward_margin{@}[6h])",
            }),
            lines("Caption length", "DicoCaptionLengthDrift fires outside of the bounds.", "none", {
                "15 minutes": "avg_over_time(stage:dico_caption_length{@}[15m])",
                "lower bound": "0.5 * avg_over_time(stage:dico_caption_length{@}[6h])",
                "upper bound": "1.5 * avg_over_time(stage:dico_caption_length{@}[6h])",
            }),
            lines("Repetition", "DicoRepetitionDrift fires above the bound.", "percentunit", {
                "15 minutes": "avg_over_time(stage:dico_repetition{@}[15m])",
                "bound": "0.1 + avg_over_time(stage:dico_repetition{@}[6h])",
            }),
        ],
        "Evaluations": [
            lines("Best", "Score of the stage's best state, by the stage's metric.", "none",
                  {"{{metric}}": "dico_best_score{@}"}),
            scores("By the evaluator", "PAC-S or CLIP-S of the captions, without and with references.",
                   "(ref_)?(pac|clip)_s"),
            scores("Against references", "n-gram metrics.", "bleu_.|meteor|rouge_l|cider|spice"),
            scores("Retrieval", "Which image a caption finds among all.", "retrieval_.*", "percentunit"),
        ],
        "Captions of evaluations": [
            scores("Fluency", "Repeated n-grams and endings on words that end no sentence: the lower the better.",
                   "rep_.|incorrect_endings", "percentunit"),
            scores("Variety", "Different n-grams among all.", "distinct_."),
            scores("Length and vocabulary", "Mean words of a caption, and different words in all.",
                   "mean_length|vocabulary_size"),
            scores("Synthetic data set", "Only in the synthetic data set.", "grammatical|truthful|details"),
        ],
    })
