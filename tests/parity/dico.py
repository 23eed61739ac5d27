"""One whole step of DiCO: candidates, rewards, loss, gradients, and parameters after Adam.

Writes dico.json and, for each tau, tau<TAU>.safetensors with ``gradient.NAME``, for the first tau also
``updated.NAME``.
"""

from dataclasses import asdict, dataclass, replace

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
    taus: tuple[float, ...]


NARROW = published.Sizes(48, 2, 2, 48, 16, 32, 4, 2, 64, 2, 77, 67)
TAUS = (300.0, 3.0)
# Narrow, because all gradients are kept; the prefix is one under which some candidates end and none contains a pad.
GOLDEN = Case(
    NARROW, "policy1168.", "reference.", clip.SMALL["vit"], "evaluator.", 3, beams.Search(5, 20, 1.0), 0.2, TAUS
)
# The evaluator's prefix is one under which most cosines are positive, so that rewards are not all 0.
FULL = replace(GOLDEN, evaluator=clip.PUBLISHED["vit_b_32"], evaluator_prefix="evaluator1.")

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


def texts_of(case: Case, candidates: list[list[int]], words: list[tuple[int, str]]) -> list[list[int]]:
    """CLIP's tokens of each candidate: begin and pad are no words, and nothing follows an end."""
    begin = case.evaluator.vocabulary_size - 2
    known = [[words[token][0] for token in candidate if token < case.sizes.begin] for candidate in candidates]
    return [[begin, *ids, begin + 1] for ids in known]


def rewards(case: Case, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """PAC-S [images, k], 2 max(cosine, 0), and the cosines."""
    state = clip_model.openai_state(case.evaluator, case.evaluator_prefix)
    evaluator = clip_model.with_transformers(case.evaluator, state)
    seen = clip.pixels(case.evaluator, "dico", case.images)
    outputs = clip_model.by_transformers(evaluator, seen, clip.padded(texts, case.evaluator.context_length))
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


def main() -> None:
    arguments = cases.arguments(__doc__)
    case = FULL if arguments.size == "full" else GOLDEN
    words = vocabulary(case.sizes.begin)
    policy = published.by_formula(case.sizes, case.policy, captioner.GAINS)
    found = beams.search(policy, vision(case), case.search)
    candidates = [tokens for image in found for tokens in image.tokens]
    texts = texts_of(case, candidates, words)
    scores, cosines = rewards(case, texts)
    with torch.no_grad():
        model = published.by_formula(case.sizes, case.reference, captioner.GAINS)
        reference = log_probabilities(model, candidates, case)
        summed = log_probabilities(policy, candidates, case)
    steps = []
    for tau in case.taus:
        described, tensors = step(case, tau, candidates, reference, scores)
        steps.append(described)
        if steps[1:]:
            tensors = {name: value for name, value in tensors.items() if name.startswith("gradient.")}
        cases.write_tensors(arguments.out / f"tau{tau:g}.safetensors", tensors)
    expected = {
        "versions": cases.versions(),
        "sizes": case.sizes.described(),
        "gains": captioner.GAINS,
        "policy": case.policy,
        "reference": case.reference,
        "evaluator": {"prefix": case.evaluator_prefix, "architecture": asdict(case.evaluator)},
        "search": asdict(case.search),
        "beta": case.beta,
        "adam": ADAM,
        "words": [{"clip": number, "word": word} for number, word in words],
        "candidates": [image.tokens for image in found],
        "scores": [image.scores for image in found],
        "gaps": [image.gap for image in found],
        "texts": texts,
        "cosines": cosines.tolist(),
        "rewards": scores.tolist(),
        "log_probabilities": {"policy": summed.tolist(), "reference": reference.tolist()},
        "steps": steps,
    }
    cases.write_json(arguments.out / "dico.json", expected)
    best = scores.sort(1, descending=True).values
    print(f"rewards {scores.tolist()}; first over second {(best[:, 0] - best[:, 1]).tolist()}")
    print(f"least gap of the searches {min(image.gap for image in found):.1e}; steps {steps}")


if __name__ == "__main__":
    main()
