"""The dashboard of loss, rewards, drift and evaluations."""

from board import bands, board, lines, number

QUANTILES = ["0.05", "0.25", "0.5", "0.75", "0.95"]


def quantiles(role):
    return {f"{float(q):.0%}": f'dico_reward{{@, role="{role}", quantile="{q}"}}' for q in QUANTILES}


def scores(title, why, pattern, unit="none"):
    return lines(title, why, unit, {"{{metric}}": f'dico_evaluation_score{{@, metric=~"{pattern}"}}'})


def build():
    return board("training", "Training", "Loss, rewards, drift and evaluations of a run.", {
        "Position": [
            number("Stage", "The present stage.", "none", "{{stage}}", "dico_stage_info{@} == 1", name=True),
            number("Step", "Committed steps of the present stage.", "none", "step", "dico_step{@}", decimals=0),
            number("Stage done", "Share of the present stage's steps that are committed.", "percentunit", "done",
                   "dico_step{@} / dico_stage_steps{@}", decimals=1),
            number("Stage ends in", "At the rate of the last 5 minutes, with evaluations and recoveries.", "s", "left",
                   "(dico_stage_steps{@} - dico_step{@}) / (instance:dico_steps:rate5m{@} > 0)", decimals=0),
            number("Images per second", "In the last step, over all workers.", "none", "images/s",
                   "dico_images_per_second{@}", decimals=1),
            number("Paused", "1 while the run waits for `coordinator resume`, or for disk space to save its state.", "none",
                   "paused", "dico_paused{@}", limits=[1]),
        ],
        "Optimisation": [
            lines("Loss", "Loss of the last step, per image or token. Losses of different objectives are not comparable.", "none",
                  {"loss": "dico_loss{@}"}),
            lines("Learning rate", "Learning rate of the last step.", "sci", {"learning rate": "dico_learning_rate{@}"}, low=0),
            lines("Gradient norm", "Before clipping. Growing peaks are the first sign of a learning rate that is too high.",
                  "none", {"norm": "dico_gradient_norm{@}"}, low=0),
        ],
        "Rewards": [
            bands("Best candidates", "Quantiles of the reward of each image's best candidate, in the last step.", "none",
                  quantiles("chosen")),
            bands("Other candidates", "Quantiles of the rewards of the rejected candidates, in the last step.", "none",
                  quantiles("rejected")),
            lines("Margin", "Mean reward of the best candidate minus that of the others: the training signal.",
                  "none", {"margin": "dico_reward_margin{@}"}),
            lines("Implicit accuracy",
                  "Share of images whose implicit reward prefers the best candidate: 0.5 is chance.", "percentunit",
                  {"accuracy": "dico_implicit_accuracy{@}"}, low=0, high=1),
        ],
        "Drift": [
            lines("KL(policy || reference)", "In nats per token. DicoKlOutOfBounds fires at 0.5.", "none",
                  {"KL": "dico_kl{@}"}, limits=[0.3, 0.5]),
            lines("Entropy of gamma", "Entropy of the weights of rejected candidates, in nats: 0 is all weight on one.", "none",
                  {"entropy": "dico_gamma_entropy{@}"}, low=0),
            lines("Caption length", "Mean tokens of a candidate.", "none", {"tokens": "dico_caption_length{@}"}, low=0),
            lines("Repetition", "Share of a candidate's tokens that repeat an earlier one.", "percentunit",
                  {"repeated": "dico_repetition{@}"}, low=0),
        ],
        "Against the last 6 hours, as in the alerts": [
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
            scores("Retrieval", "Share of captions whose own image is among the k nearest.", "retrieval_.*", "percentunit"),
        ],
        "Captions of evaluations": [
            scores("Fluency", "Repeated n-grams and incomplete endings: lower is better.",
                   "rep_.|incorrect_endings", "percentunit"),
            scores("Diversity", "Share of distinct n-grams.", "distinct_."),
            scores("Length and vocabulary", "Mean words of a caption, and distinct words of all captions.",
                   "mean_length|vocabulary_size"),
            scores("Synthetic data set", "Only in the synthetic data set.", "grammatical|truthful|details"),
        ],
    })
