"""Beam search by transformers' ``generate``, with the smallest gap of its decisions.

A comparison of captions token by token makes sense only if no decision depends on a rounding error.
So subclasses of the scorer of ``generate`` measure the *gap* of each search: the smallest
difference between two numbers whose order decided the result, in units of log-probability.
(Differences of scores are multiplied by the divisor of the newer score, because the rounding errors
were divided by it, too.) Images with a gap below ``MIN_GAP`` are skipped and listed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import VisionEncoderDecoderModel
from transformers.generation import utils as generation
from transformers.generation.beam_search import BeamHypotheses, BeamSearchScorer

MIN_GAP = 1e-4


@dataclass(frozen=True)
class Search:
    """Settings of a search; ``max_length`` counts the begin token.

    With ``cut_counts_begin`` the log-probability of a caption cut at ``max_length`` is divided by
    its length with the begin token, and that of an ended caption by its length without.
    transformers up to 4.35 does this, also version 4.20 of the published code.
    """

    beams: int
    max_length: int
    length_penalty: float
    cut_counts_begin: bool = False


@dataclass(frozen=True)
class SearchResult:
    """An image's captions, best first, and their scores.

    Tokens are without begin and pad. They include the end token unless the caption was cut.
    """

    tokens: list[list[int]]
    scores: list[float]
    gap: float


class MeasuredHypotheses(BeamHypotheses):
    """The finished captions of an image. Measures the gaps of comparisons between scores."""

    gap = float("inf")

    def record_gap(self, difference: float) -> None:
        self.gap = min(self.gap, abs(difference))

    def add(self, hyp, sum_logprobs, beam_indices=None, generated_len=None):
        divisor = generated_len**self.length_penalty
        for other, *_ in self.beams:
            self.record_gap(sum_logprobs - other * divisor)
        super().add(hyp, sum_logprobs, beam_indices, generated_len)

    def is_done(self, best_sum_logprobs, cur_len, decoder_prompt_len=0):
        if len(self) == self.num_beams:
            # If the best candidate has just ended and is the worst finished caption, both sides are
            # the same number, and rounding does not matter.
            divisor = (cur_len - decoder_prompt_len) ** self.length_penalty
            if self.worst_score != best_sum_logprobs / divisor:
                self.record_gap(self.worst_score * divisor - best_sum_logprobs)
        return super().is_done(best_sum_logprobs, cur_len, decoder_prompt_len)


class LegacyHypotheses(MeasuredHypotheses):
    """Scores like transformers 4.20: lengths include the begin token, and exclude the end token."""

    def add(self, hyp, sum_logprobs, beam_indices=None, generated_len=None):
        super().add(hyp, sum_logprobs, beam_indices, hyp.shape[-1])


class MeasuredScorer(BeamSearchScorer):
    """transformers' scorer. Measures the gaps of choices among candidates."""

    hypotheses = MeasuredHypotheses
    latest: BeamSearchScorer

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._beam_hyps = [
            self.hypotheses(self.num_beams, self.length_penalty, self.do_early_stopping) for _ in self._beam_hyps
        ]
        MeasuredScorer.latest = self

    def process(self, input_ids, next_scores, next_tokens, next_indices, eos_token_id=None, **rest):
        for image, hypotheses in enumerate(self._beam_hyps):
            if not self._done[image]:
                ends = torch.isin(next_tokens[image], eos_token_id)
                hypotheses.record_gap(smallest_gap(next_scores[image].tolist(), ends.tolist(), self.num_beams))
        return super().process(input_ids, next_scores, next_tokens, next_indices, eos_token_id=eos_token_id, **rest)


class LegacyScorer(MeasuredScorer):
    """The scorer with ``LegacyHypotheses``; other changes since 4.20 do not matter here."""

    hypotheses = LegacyHypotheses


def smallest_gap(scores: list[float], ends: list[bool], beams: int) -> float:
    """Returns the smallest gap of 2k candidates, best first, to another outcome.

    Outcomes are: stays open, is finished, is dropped.
    """
    gaps = []
    open_scores = [score for score, end in zip(scores, ends) if not end]
    if len(open_scores) > beams:
        gaps.append(open_scores[beams - 1] - open_scores[beams])
    for rank, end in enumerate(ends):
        if end:
            # Only the first k candidates may end.
            gaps.append(scores[rank] - scores[beams] if rank < beams else scores[beams - 1] - scores[rank])
    return min(gaps, default=float("inf"))


def search(model: VisionEncoderDecoderModel, vision_hidden: Tensor, settings: Search) -> list[SearchResult]:
    """Returns the captions of each image from vision hidden states [images, tokens, width]."""
    return greedy_search(model, vision_hidden, settings) if settings.beams == 1 else beam_search(model, vision_hidden, settings)


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


def beam_search(model: VisionEncoderDecoderModel, vision_hidden: Tensor, settings: Search) -> list[SearchResult]:
    original = generation.BeamSearchScorer
    generation.BeamSearchScorer = LegacyScorer if settings.cut_counts_begin else MeasuredScorer
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
    gaps = [hypotheses.gap for hypotheses in MeasuredScorer.latest._beam_hyps]
    return [SearchResult([strip_special_tokens(row, model) for row in rows.tolist()], *rest) for rows, *rest in zip(tokens, scores, gaps)]


def greedy_search(model: VisionEncoderDecoderModel, vision_hidden: Tensor, settings: Search) -> list[SearchResult]:
    """Searches greedily, and scores captions like beam search, because ``generate`` does not."""
    output = generate(model, vision_hidden, settings, output_logits=True)
    logits = torch.stack(output.logits, dim=1)
    log_probabilities = logits.log_softmax(-1)
    margins = logits.topk(2, dim=-1).values.diff(dim=-1).abs().squeeze(-1)
    found = []
    for row, sequence in enumerate(output.sequences.tolist()):
        tokens = strip_special_tokens(sequence, model)
        total = sum(float(log_probabilities[row, step, token]) for step, token in enumerate(tokens))
        gap = float(margins[row, : len(tokens)].min())
        found.append(SearchResult([tokens], [total / len(tokens) ** settings.length_penalty], gap))
    return found


def strip_special_tokens(sequence: list[int], model: VisionEncoderDecoderModel) -> list[int]:
    """Removes the begin token, and pads after the first end token."""
    tokens, end = sequence[1:], model.config.eos_token_id
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def select(
    model: VisionEncoderDecoderModel, image: Callable[[int], Tensor], count: int, settings: Search
) -> tuple[dict[int, SearchResult], dict[int, float]]:
    """Returns the first ``count`` images with sufficient gaps, and the gaps of skipped images."""
    selected: dict[int, SearchResult] = {}
    left_out: dict[int, float] = {}
    first = 0
    while len(selected) < count:
        numbers = range(first, first + count)
        batch = torch.stack([image(number) for number in numbers])
        for number, found in zip(numbers, search(model, batch, settings)):
            if found.gap < MIN_GAP:
                left_out[number] = found.gap
            elif len(selected) < count:
                selected[number] = found
        first += count
    last = max(selected)
    return selected, {number: gap for number, gap in left_out.items() if number < last}
