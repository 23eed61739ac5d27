"""Beam search by transformers' ``generate``, with the narrowest decision of each search.

Expected captions are worth comparing token for token only where no decision hangs on a rounding error. So the scorer
that ``generate`` uses is watched, and each search reports its *gap*: the smallest difference between two numbers whose
order decided what was found, in units of log-probability (differences of scores are multiplied with what the newer one
was divided by, as rounding errors were too). Images with a gap below ``LEAST_GAP`` are skipped and listed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import VisionEncoderDecoderModel
from transformers.generation import utils as generation
from transformers.generation.beam_search import BeamHypotheses, BeamSearchScorer

LEAST_GAP = 1e-4


@dataclass(frozen=True)
class Search:
    """Settings of a search; ``max_length`` counts the begin token.

    transformers up to 4.35, the published code's 4.20 among them, divides the log-probability of a caption that was cut
    at ``max_length`` by the length with the begin token, that of an ended one by the length without: that is what
    ``cut_counts_begin`` asks for.
    """

    beams: int
    max_length: int
    length_penalty: float
    cut_counts_begin: bool = False


@dataclass(frozen=True)
class Found:
    """An image's captions, best first: tokens without begin and pad, with the end unless cut; and their scores."""

    tokens: list[list[int]]
    scores: list[float]
    gap: float


class WatchedHypotheses(BeamHypotheses):
    """Finished captions of an image; notes how near each comparison of scores came to the other outcome."""

    gap = float("inf")

    def note(self, difference: float) -> None:
        self.gap = min(self.gap, abs(difference))

    def add(self, hyp, sum_logprobs, beam_indices=None, generated_len=None):
        divisor = generated_len**self.length_penalty
        for other, *_ in self.beams:
            self.note(sum_logprobs - other * divisor)
        super().add(hyp, sum_logprobs, beam_indices, generated_len)

    def is_done(self, best_sum_logprobs, cur_len, decoder_prompt_len=0):
        if len(self) == self.num_beams:
            # Where the best candidate just ended and is the worst kept, both sides are one number: no rounding decides.
            divisor = (cur_len - decoder_prompt_len) ** self.length_penalty
            if self.worst_score != best_sum_logprobs / divisor:
                self.note(self.worst_score * divisor - best_sum_logprobs)
        return super().is_done(best_sum_logprobs, cur_len, decoder_prompt_len)


class OldHypotheses(WatchedHypotheses):
    """As transformers 4.20 scores: captions come with the begin token, ended ones without the end token."""

    def add(self, hyp, sum_logprobs, beam_indices=None, generated_len=None):
        super().add(hyp, sum_logprobs, beam_indices, hyp.shape[-1])


class WatchedScorer(BeamSearchScorer):
    """transformers' own scorer; notes how near the choices among candidates came to the other outcome."""

    hypotheses = WatchedHypotheses
    latest: BeamSearchScorer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._beam_hyps = [
            self.hypotheses(self.num_beams, self.length_penalty, self.do_early_stopping) for _ in self._beam_hyps
        ]
        WatchedScorer.latest = self

    def process(self, input_ids, next_scores, next_tokens, next_indices, eos_token_id=None, **rest):
        for image, hypotheses in enumerate(self._beam_hyps):
            if not self._done[image]:
                ends = torch.isin(next_tokens[image], eos_token_id)
                hypotheses.note(narrowest_cut(next_scores[image].tolist(), ends.tolist(), self.num_beams))
        return super().process(input_ids, next_scores, next_tokens, next_indices, eos_token_id=eos_token_id, **rest)


class OldScorer(WatchedScorer):
    """See ``OldHypotheses``; nothing else that the searches here depend on has changed since."""

    hypotheses = OldHypotheses


def narrowest_cut(scores: list[float], ends: list[bool], beams: int) -> float:
    """Of 2k candidates, best first: how near any came to another fate (kept open, finished or dropped)."""
    gaps = []
    going_on = [score for score, end in zip(scores, ends) if not end]
    if len(going_on) > beams:
        gaps.append(going_on[beams - 1] - going_on[beams])
    for rank, end in enumerate(ends):
        if end:
            # An end counts among the first k only.
            gaps.append(scores[rank] - scores[beams] if rank < beams else scores[beams - 1] - scores[rank])
    return min(gaps, default=float("inf"))


def search(model: VisionEncoderDecoderModel, vision_hidden: Tensor, settings: Search) -> list[Found]:
    """The captions of each image with vision hidden states [images, tokens, width]."""
    return greedy(model, vision_hidden, settings) if settings.beams == 1 else beam(model, vision_hidden, settings)


def generate(model: VisionEncoderDecoderModel, vision_hidden: Tensor, settings: Search, **rest):
    with torch.no_grad():
        encoded = model.encoder(vision_hidden=vision_hidden)
        return model.generate(
            encoder_outputs=encoded,
            num_beams=settings.beams,
            num_return_sequences=settings.beams,
            max_length=settings.max_length,
            do_sample=False,
            return_dict_in_generate=True,
            **rest,
        )


def beam(model: VisionEncoderDecoderModel, vision_hidden: Tensor, settings: Search) -> list[Found]:
    original = generation.BeamSearchScorer
    generation.BeamSearchScorer = OldScorer if settings.cut_counts_begin else WatchedScorer
    try:
        output = generate(
            model,
            vision_hidden,
            settings,
            early_stopping=False,
            length_penalty=settings.length_penalty,
            output_scores=True,
        )
    finally:
        generation.BeamSearchScorer = original
    scores = output.sequences_scores.view(-1, settings.beams).tolist()
    tokens = output.sequences.view(-1, settings.beams, output.sequences.shape[1])
    gaps = [hypotheses.gap for hypotheses in WatchedScorer.latest._beam_hyps]
    return [Found([strip(row, model) for row in rows.tolist()], *rest) for rows, *rest in zip(tokens, scores, gaps)]


def greedy(model: VisionEncoderDecoderModel, vision_hidden: Tensor, settings: Search) -> list[Found]:
    """``generate`` does not score greedy captions; here they are scored as beams are."""
    output = generate(model, vision_hidden, settings, output_logits=True)
    logits = torch.stack(output.logits, dim=1)
    log_probabilities = logits.log_softmax(-1)
    margins = logits.topk(2, dim=-1).values.diff(dim=-1).abs().squeeze(-1)
    found = []
    for row, sequence in enumerate(output.sequences.tolist()):
        tokens = strip(sequence, model)
        total = sum(float(log_probabilities[row, step, token]) for step, token in enumerate(tokens))
        gap = float(margins[row, : len(tokens)].min())
        found.append(Found([tokens], [total / len(tokens) ** settings.length_penalty], gap))
    return found


def strip(sequence: list[int], model: VisionEncoderDecoderModel) -> list[int]:
    """Without the begin token; up to and with the first end token. Pads follow ends only."""
    tokens, end = sequence[1:], model.config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def select(
    model: VisionEncoderDecoderModel, image: Callable[[int], Tensor], count: int, settings: Search
) -> tuple[dict[int, Found], dict[int, float]]:
    """The first ``count`` images, numbered from 0, whose searches are clear; and the gaps of those left out."""
    kept: dict[int, Found] = {}
    left_out: dict[int, float] = {}
    first = 0
    while len(kept) < count:
        numbers = range(first, first + count)
        batch = torch.stack([image(number) for number in numbers])
        for number, found in zip(numbers, search(model, batch, settings)):
            if found.gap < LEAST_GAP:
                left_out[number] = found.gap
            elif len(kept) < count:
                kept[number] = found
        first += count
    last = max(kept)
    return kept, {number: gap for number, gap in left_out.items() if number < last}
