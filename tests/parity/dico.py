"""One whole step of DiCO: candidates, rewards, loss, gradients, and parameters after Adam.

In each of three settings: what the release does (configs/release), our default, and the default with cut candidates
rewarded as if they had ended. Writes dico.json and, for each setting and tau, SETTING.tau<TAU>.safetensors with
``gradient.NAME``, for the first of all also ``updated.NAME``.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import VisionEncoderDecoderModel

import beams
import captioner
import cases
import clip
import clip_model
import formula
import published
import tokens


@dataclass(frozen=True)
class Case:
    """Models by formula, images, and the settings of the objective."""

    sizes: published.Sizes
    policy: str
    reference: str
    evaluator: clip_model.Architecture
    evaluator_prefix: str
    images: int
    search: beams.Search
    beta: float


@dataclass(frozen=True)
class Setting:
    """What differs between the steps: ``cut_length_includes_bos``, ``cut_candidates`` and ``tau`` of the run file.

    ``cut_candidates`` says what CLIP reads of a candidate without an end token: ``as_released``, its tokens without an
    end; ``closed``, the same with an end.
    """

    name: str
    cut_counts_begin: bool
    cut_candidates: str
    taus: tuple[float, ...]


NARROW = published.Sizes(48, 2, 2, 48, 16, 32, 4, 2, 64, 2, 77, 67)
# Narrow, because all gradients are kept; the policy's prefix is one under which some candidates end and none contains a
# pad, the evaluator's one under which no text is worth more than the ended candidate of the first image and less than
# those of the second.
GOLDEN = Case(NARROW, "policy1168.", "reference.", clip.SMALL["vit"], "evaluator44.", 3, beams.Search(5, 20, 1.0), 0.2)
# The evaluator's prefix is one under which most cosines are positive, so that rewards are not all 0.
FULL = replace(GOLDEN, evaluator=clip.PUBLISHED["vit_b_32"], evaluator_prefix="evaluator1.")

SETTINGS = (
    Setting("release", True, "as_released", (300.0,)),
    Setting("default", False, "as_released", (300.0, 3.0)),
    Setting("closed", False, "closed", (300.0,)),
)

ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}

# The captioner's tokens: words that are one token each for CLIP, in the order of CLIP's numbers.
WORDS = (
    "a the of on in with two three man woman child dog cat horse zebra giraffe train bus bicycle skateboard surfboard "
    "riding standing sitting holding eating playing next to near under over street beach kitchen table pizza sandwich "
    "umbrella traffic light fire stop sign bench bird elephant bear backpack snowboard tennis red blue green yellow "
    "black white large small old young group people person boat plane sheep cow"
).split()


def vocabulary(size: int) -> list[tuple[int, str]]:
    """CLIP's number and word of each of the captioner's first ``size`` tokens, ascending."""
    fast, _ = tokens.load()
    single = {ids[0]: word for word in WORDS if len(ids := tokens.inner(fast, word)) == 1}
    if len(single) < size:
        raise ValueError(f"{len(single)} words of one token, {size} wanted")
    return sorted(single.items())[:size]


def vision(case: Case) -> Tensor:
    """The captioner's vision hidden states [images, tokens, width]."""
    shape = (case.sizes.vision_tokens, case.sizes.vision_width)
    return torch.stack([formula.inputs(f"dico.image{number}", shape) for number in range(case.images)])


def texts_of(
    case: Case, setting: Setting, candidates: list[list[int]], words: list[tuple[int, str]]
) -> list[list[int]]:
    """CLIP's tokens of each candidate: begin and pad are no words, and nothing follows an end."""
    begin = case.evaluator.vocabulary_size - 2
    known = [[words[token][0] for token in candidate if token < case.sizes.begin] for candidate in candidates]
    closes = [setting.cut_candidates == "closed" or candidate[-1] == case.sizes.end for candidate in candidates]
    return [[begin, *ids, *[begin + 1] * closed] for ids, closed in zip(known, closes)]


def rewards(case: Case, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """PAC-S [images, k], 2 max(cosine, 0), and the cosines.

    open_clip pools a text at its highest token, as OpenAI's model does; transformers at the first end token. Without an
    end token both pool at the first token of all, which is the begin token.
    """
    state = clip_model.openai_state(case.evaluator, case.evaluator_prefix)
    seen = clip.pixels(case.evaluator, "dico", case.images)
    read = clip.padded(texts, case.evaluator.context_length)
    outputs = clip_model.by_transformers(clip_model.with_transformers(case.evaluator, state), seen, read)
    clip.agree(outputs, clip_model.by_open_clip(clip_model.with_open_clip(case.evaluator, state), seen, read))
    cosines = (outputs.images.unsqueeze(1) * outputs.texts.view(case.images, case.search.beams, -1)).sum(-1)
    return 2 * cosines.clamp(min=0), cosines


def log_probabilities(model: VisionEncoderDecoderModel, candidates: list[list[int]], case: Case) -> Tensor:
    """Of each candidate, summed over its tokens, the end included where there is one; [images, k]."""
    hidden = vision(case).repeat_interleave(case.search.beams, 0)
    ids = captioner.padded([[case.sizes.begin, *candidate] for candidate in candidates], case.sizes.pad)
    logits = published.logits(model, hidden, ids)
    each = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    lengths = torch.tensor([len(candidate) for candidate in candidates]).unsqueeze(1)
    real = torch.arange(each.shape[1]) < lengths
    return (each * real).sum(1).view(case.images, case.search.beams)


def gammas(scores: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """The chosen candidate of each image [images], and the weights of the others [images, k] (0 for the chosen)."""
    best, chosen = scores.max(1, keepdim=True)
    others = (tau * (best - scores)).scatter(1, chosen, float("-inf"))
    return chosen.squeeze(1), others.softmax(1)


def loss_of(policy: Tensor, reference: Tensor, chosen: Tensor, gamma: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The mean loss, and the margin of each image (before beta)."""
    difference = policy - reference
    margin = difference.gather(1, chosen.unsqueeze(1)).squeeze(1) - (gamma * difference).sum(1)
    return -functional.logsigmoid(beta * margin).mean(), margin


def trained(model: VisionEncoderDecoderModel) -> dict[str, Tensor]:
    """The parameters that take part: not the vision tower, not what BERT leaves unused; the tied head once."""
    return {
        name: value
        for name, value in model.named_parameters()
        if not name.startswith("encoder.vision_encoder.") and not published.is_unused(name)
    }


def shown(name: str, value: Tensor, case: Case) -> Tensor:
    """Of BERT's positions only those that there are tokens for: the rest has no gradient."""
    return value[: case.sizes.vision_tokens] if name.endswith("embeddings.position_embeddings.weight") else value


def step(
    case: Case, tau: float, candidates: list[list[int]], reference: Tensor, scores: Tensor
) -> tuple[dict, dict[str, Tensor]]:
    """Loss, gradients and one step of Adam from fresh parameters."""
    policy = published.by_formula(case.sizes, case.policy, captioner.GAINS)
    summed = log_probabilities(policy, candidates, case)
    chosen, gamma = gammas(scores, tau)
    loss, margin = loss_of(summed, reference, chosen, gamma, case.beta)
    parameters = trained(policy)
    loss.backward()
    gradients = {f"gradient.{name}": shown(name, value.grad, case).clone() for name, value in parameters.items()}
    torch.optim.Adam(parameters.values(), **ADAM).step()
    updated = {f"updated.{name}": shown(name, value, case) for name, value in parameters.items()}
    described = {
        "tau": tau,
        "chosen": chosen.tolist(),
        "gamma": gamma.tolist(),
        "margin": margin.tolist(),
        "loss": loss.item(),
    }
    return described, gradients | updated


def computed(case: Case, setting: Setting, words: list[tuple[int, str]], out: Path, updates: bool) -> dict:
    """The step in one of the settings, for each tau; the tensors are written, with the updated ones for the first tau."""
    policy = published.by_formula(case.sizes, case.policy, captioner.GAINS)
    search = replace(case.search, cut_counts_begin=setting.cut_counts_begin)
    found = beams.search(policy, vision(case), search)
    candidates = [tokens for image in found for tokens in image.tokens]
    texts = texts_of(case, setting, candidates, words)
    scores, cosines = rewards(case, texts)
    with torch.no_grad():
        model = published.by_formula(case.sizes, case.reference, captioner.GAINS)
        reference = log_probabilities(model, candidates, case)
        summed = log_probabilities(policy, candidates, case)
    steps = []
    for tau in setting.taus:
        described, tensors = step(case, tau, candidates, reference, scores)
        if steps or not updates:
            tensors = {name: value for name, value in tensors.items() if name.startswith("gradient.")}
        described["tensors"] = f"{setting.name}.tau{tau:g}.safetensors"
        cases.write_tensors(out / described["tensors"], tensors)
        steps.append(described)
    ended = [[tokens[-1] == case.sizes.end for tokens in image.tokens] for image in found]
    gap = min(image.gap for image in found)
    print(f"{setting.name}: ended {ended}; rewards {scores.tolist()}; least gap of the searches {gap:.1e}; {steps}")
    return {
        "name": setting.name,
        "cut_candidates": setting.cut_candidates,
        "search": asdict(search),
        "candidates": [image.tokens for image in found],
        "scores": [image.scores for image in found],
        "gaps": [image.gap for image in found],
        "texts": texts,
        "cosines": cosines.tolist(),
        "rewards": scores.tolist(),
        "log_probabilities": {"policy": summed.tolist(), "reference": reference.tolist()},
        "steps": steps,
    }


def main() -> None:
    arguments = cases.arguments(__doc__)
    case = FULL if arguments.size == "full" else GOLDEN
    words = vocabulary(case.sizes.begin)
    settings = [computed(case, setting, words, arguments.out, setting is SETTINGS[0]) for setting in SETTINGS]
    expected = {
        "versions": cases.versions(),
        "sizes": case.sizes.described(),
        "gains": captioner.GAINS,
        "policy": case.policy,
        "reference": case.reference,
        "evaluator": {"prefix": case.evaluator_prefix, "architecture": asdict(case.evaluator)},
        "beta": case.beta,
        "adam": ADAM,
        "words": [{"clip": number, "word": word} for number, word in words],
        "settings": settings,
    }
    cases.write_json(arguments.out / "dico.json", expected)


if __name__ == "__main__":
    main()
