"""Expected results of a DiCO step: candidates, rewards, loss, gradients, and parameters after Adam.

Computes three settings: the release (configs/as-released), this project's default, and the default with
closed cut candidates. Writes dico.json and, for each setting and tau, SETTING.tau<TAU>.safetensors
with ``gradient.NAME``, and in the first file ``updated.NAME``.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import VisionEncoderDecoderModel

import beams
import captioner
import common
import clip
import clip_model
import formula
import published_captioner
import tokens


@dataclass(frozen=True)
class Case:
    """Models by formula, images, and the settings of the objective."""

    sizes: published_captioner.Sizes
    policy: str
    reference: str
    evaluator: clip_model.ClipConfig
    evaluator_prefix: str
    images: int
    search: beams.Search
    beta: float


@dataclass(frozen=True)
class Setting:
    """Differences between the steps: ``cut_length_includes_bos``, ``cut_candidates``, ``tau``.

    ``cut_candidates`` selects CLIP's tokens of a candidate without an end token: ``as_released``,
    the tokens without an end token; ``closed``, the tokens with an end token.
    """

    name: str
    cut_counts_begin: bool
    cut_candidates: str
    taus: tuple[float, ...]


NARROW = published_captioner.Sizes(48, 2, 2, 48, 16, 32, 4, 2, 64, 2, 77, 67)
# The model is narrow because the files have all gradients. With the policy's prefix some candidates
# end and none contains a pad. With the evaluator's prefix the ended candidate of the first image
# has the highest reward, and those of the second image have the lowest.
GOLDEN = Case(NARROW, "policy1168.", "reference.", clip.SMALL["vit"], "evaluator44.", 3, beams.Search(5, 20, 1.0), 0.2)
# With this prefix of the evaluator most cosines are positive, so that not all rewards are 0.
FULL = replace(GOLDEN, evaluator=clip.PUBLISHED["vit_b_32"], evaluator_prefix="evaluator1.")

SETTINGS = (
    Setting("release", True, "as_released", (300.0,)),
    Setting("default", False, "as_released", (300.0, 3.0)),
    Setting("closed", False, "closed", (300.0,)),
)

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}

# Words of the captioner's vocabulary. Each is one token for CLIP.
WORDS = (
    "a the of on in with two three man woman child dog cat horse zebra giraffe train bus bicycle skateboard surfboard "
    "riding standing sitting holding eating playing next to near under over street beach kitchen table pizza sandwich "
    "umbrella traffic light fire stop sign bench bird elephant bear backpack snowboard tennis red blue green yellow "
    "black white large small old young group people person boat plane sheep cow"
).split()


def vocabulary(size: int) -> list[tuple[int, str]]:
    """Returns (CLIP's token id, word) of the captioner's first ``size`` tokens, ascending."""
    fast, _ = tokens.load_tokenizers()
    single_tokens = {ids[0]: word for word in WORDS if len(ids := tokens.encode(fast, word)) == 1}
    if len(single_tokens) < size:
        raise ValueError(f"only {len(single_tokens)} words are single tokens, but {size} are required")
    return sorted(single_tokens.items())[:size]


def vision_hidden(case: Case) -> Tensor:
    """Returns the captioner's vision hidden states [images, tokens, width] by formula."""
    shape = (case.sizes.vision_tokens, case.sizes.vision_width)
    return torch.stack([formula.inputs(f"dico.image{number}", shape) for number in range(case.images)])


def clip_texts(
    case: Case, setting: Setting, candidates: list[list[int]], words: list[tuple[int, str]]
) -> list[list[int]]:
    """Returns CLIP's tokens of each candidate, without the captioner's begin and pad tokens."""
    begin = case.evaluator.vocabulary_size - 2
    token_lists = [[words[token][0] for token in candidate if token < case.sizes.begin] for candidate in candidates]
    has_end = [setting.cut_candidates == "closed" or candidate[-1] == case.sizes.end for candidate in candidates]
    return [[begin, *ids, *[begin + 1] * ended] for ids, ended in zip(token_lists, has_end)]


def rewards(case: Case, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Returns PAC-S [images, k], 2 max(cosine, 0), and the cosines.

    open_clip pools a text at its highest token id, like OpenAI's model; transformers pools at the
    first end token. Without an end token both pool at the first token, which is the begin token.
    """
    state = clip_model.openai_state(case.evaluator, case.evaluator_prefix)
    pixels = clip.pixels(case.evaluator, "dico", case.images)
    text_tokens = clip.pad(texts, case.evaluator.context_length)
    outputs = clip_model.transformers_outputs(clip_model.build_transformers(case.evaluator, state), pixels, text_tokens)
    clip.check_agreement(outputs, clip_model.open_clip_outputs(clip_model.build_open_clip(case.evaluator, state), pixels, text_tokens))
    cosines = (outputs.images.unsqueeze(1) * outputs.texts.view(case.images, case.search.beams, -1)).sum(-1)
    return 2 * cosines.clamp(min=0), cosines


def log_probabilities(model: VisionEncoderDecoderModel, candidates: list[list[int]], case: Case) -> Tensor:
    """Returns the log-probability of each candidate, end token included if present; [images, k]."""
    hidden = vision_hidden(case).repeat_interleave(case.search.beams, 0)
    ids = captioner.pad_sequences([[case.sizes.begin, *candidate] for candidate in candidates], case.sizes.pad)
    logits = published_captioner.logits(model, hidden, ids)
    token_log_probabilities = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    lengths = torch.tensor([len(candidate) for candidate in candidates]).unsqueeze(1)
    is_token = torch.arange(token_log_probabilities.shape[1]) < lengths
    return (token_log_probabilities * is_token).sum(1).view(case.images, case.search.beams)


def gammas(scores: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Returns the best candidate of each image, and weights [images, k], which are 0 for it."""
    best, best_index = scores.max(1, keepdim=True)
    others = (tau * (best - scores)).scatter(1, best_index, float("-inf"))
    return best_index.squeeze(1), others.softmax(1)


def loss_of(policy: Tensor, reference: Tensor, best_index: Tensor, gamma: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Returns the mean loss, and the margin of each image (before beta)."""
    difference = policy - reference
    margin = difference.gather(1, best_index.unsqueeze(1)).squeeze(1) - (gamma * difference).sum(1)
    return -functional.logsigmoid(beta * margin).mean(), margin


def trainable_parameters(model: VisionEncoderDecoderModel) -> dict[str, Tensor]:
    """Returns the trained parameters: no vision encoder, no unused ones, the tied head once."""
    return {
        name: value
        for name, value in model.named_parameters()
        if not name.startswith("encoder.vision_encoder.") and not published_captioner.is_unused(name)
    }


def used_rows(name: str, value: Tensor, case: Case) -> Tensor:
    """Omits rows of BERT's position embeddings beyond the vision tokens, which have no gradient."""
    return value[: case.sizes.vision_tokens] if name.endswith("embeddings.position_embeddings.weight") else value


def step(
    case: Case, tau: float, candidates: list[list[int]], reference: Tensor, scores: Tensor
) -> tuple[dict, dict[str, Tensor]]:
    """Computes loss, gradients and the first step of Adam."""
    policy = published_captioner.build_by_formula(case.sizes, case.policy, captioner.GAINS)
    policy_log_probabilities = log_probabilities(policy, candidates, case)
    best_index, gamma = gammas(scores, tau)
    loss, margin = loss_of(policy_log_probabilities, reference, best_index, gamma, case.beta)
    parameters = trainable_parameters(policy)
    loss.backward()
    gradients = {f"gradient.{name}": used_rows(name, value.grad, case).clone() for name, value in parameters.items()}
    torch.optim.Adam(parameters.values(), **ADAM).step()
    updated = {f"updated.{name}": used_rows(name, value, case) for name, value in parameters.items()}
    step_result = {
        "tau": tau,
        "chosen": best_index.tolist(),
        "gamma": gamma.tolist(),
        "margin": margin.tolist(),
        "loss": loss.item(),
    }
    return step_result, gradients | updated


def compute_setting(case: Case, setting: Setting, words: list[tuple[int, str]], out: Path, with_updates: bool) -> dict:
    """Computes a setting's step for each tau, and writes the tensors.

    ``with_updates``: whether the first file has the updated parameters.
    """
    policy = published_captioner.build_by_formula(case.sizes, case.policy, captioner.GAINS)
    search = replace(case.search, cut_counts_begin=setting.cut_counts_begin)
    results = beams.search(policy, vision_hidden(case), search)
    candidates = [tokens for image in results for tokens in image.tokens]
    texts = clip_texts(case, setting, candidates, words)
    scores, cosines = rewards(case, texts)
    with torch.no_grad():
        model = published_captioner.build_by_formula(case.sizes, case.reference, captioner.GAINS)
        reference = log_probabilities(model, candidates, case)
        policy_log_probabilities = log_probabilities(policy, candidates, case)
    steps = []
    for tau in setting.taus:
        step_result, tensors = step(case, tau, candidates, reference, scores)
        if steps or not with_updates:
            tensors = {name: value for name, value in tensors.items() if name.startswith("gradient.")}
        step_result["tensors"] = f"{setting.name}.tau{tau:g}.safetensors"
        common.write_tensors(out / step_result["tensors"], tensors)
        steps.append(step_result)
    ended = [[tokens[-1] == case.sizes.end for tokens in image.tokens] for image in results]
    gap = min(image.gap for image in results)
    print(f"{setting.name}: ended {ended}; rewards {scores.tolist()}; least gap of the searches {gap:.1e}; {steps}")
    return {
        "name": setting.name,
        "cut_candidates": setting.cut_candidates,
        "search": asdict(search),
        "candidates": [image.tokens for image in results],
        "scores": [image.scores for image in results],
        "gaps": [image.gap for image in results],
        "texts": texts,
        "cosines": cosines.tolist(),
        "rewards": scores.tolist(),
        "log_probabilities": {"policy": policy_log_probabilities.tolist(), "reference": reference.tolist()},
        "steps": steps,
    }


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    case = FULL if arguments.size == "full" else GOLDEN
    words = vocabulary(case.sizes.begin)
    settings = [compute_setting(case, setting, words, arguments.out, setting is SETTINGS[0]) for setting in SETTINGS]
    expected = {
        "versions": common.versions(),
        "sizes": case.sizes.as_dict(),
        "gains": captioner.GAINS,
        "policy": case.policy,
        "reference": case.reference,
        "evaluator": {"prefix": case.evaluator_prefix, "architecture": asdict(case.evaluator)},
        "beta": case.beta,
        "adam": ADAM,
        "words": [{"clip": number, "word": word} for number, word in words],
        "settings": settings,
    }
    common.write_json(arguments.out / "dico.json", expected)


if __name__ == "__main__":
    main()
