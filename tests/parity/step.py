"""Times one DiCO step of PyTorch + transformers: the counterpart of ``worker bench step``, with the same options.

The models are transformers' own at the paper's sizes, with random weights: CLIP's vision tower, the captioner of
``published.py``, a frozen copy of it that sees through the same tower, and a ViT-B/32 CLIP as evaluator. As in the published
code the whole log-softmax is taken, frozen towers are run in every step, and the evaluator reads all 77 positions. Otherwise
it is PyTorch at its best without writing kernels: attention by SDPA, Adam in one fused kernel, no image seen twice, and
all but the loss in inference mode. Captions go to the evaluator as tokens: what it costs to write and read them as text is
not counted here, where it is in ``worker bench step``. With ``--precision bf16`` models compute under autocast.
"""

import argparse
import copy
import functools
import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_outputs import BaseModelOutput

import published

TOWERS = {
    "vit-b-32": replace(published.PAPER, vision_width=768, vision_heads=12, vision_layers=12, patch_size=32),
    "vit-l-14": published.PAPER,
}
CLIP_VOCABULARY = 49408
POSITIONS = 77
BETA, TAU = 0.2, 300.0
WARM_UP = 2


def inferred(compute: Callable) -> Callable:
    """Computes in inference mode. What it returns are copies, as autograd may not keep such tensors."""

    @functools.wraps(compute)
    def computed(*arguments: object) -> Tensor | tuple[Tensor, ...]:
        with torch.inference_mode():
            found = compute(*arguments)
        return tuple(map(torch.clone, found)) if isinstance(found, tuple) else found.clone()

    return computed


class Step:
    """A policy that is trained, what it is trained with, and a batch."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(1)
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.sizes = TOWERS[arguments.vision]
        if arguments.vocabulary != "full":
            self.sizes = replace(self.sizes, vocabulary=int(arguments.vocabulary) + 3)
        # What transformers uses unless told otherwise.
        published.ATTENTION = "sdpa"
        config = published.configuration(self.sizes, bert_vocabulary=1)
        self.policy = published.build(config).to(self.device)
        tower = self.policy.encoder.vision_encoder.requires_grad_(False)
        self.reference = copy.deepcopy(self.policy, {id(tower): tower}).requires_grad_(False)
        self.evaluator = CLIPModel(CLIPConfig()).eval().to(self.device).requires_grad_(False)
        trained = [value for value in self.policy.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-6, fused=True)
        side = self.sizes.image_size
        self.pixels = torch.randint(256, (arguments.batch, side, side, 3), dtype=torch.uint8)
        self.seen = None
        if arguments.cached_features:
            self.seen = self.look()

    def autocast(self) -> torch.autocast:
        """In which models compute: with products of 16-bit numbers, where that is asked for."""
        bf16 = self.arguments.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    @inferred
    def look(self) -> tuple[Tensor, Tensor]:
        """Hidden states of the captioner's tower, and unit embeddings of the evaluator."""
        if self.seen is not None:
            return self.seen
        images = (self.pixels.to(self.device).float() / 255 - 0.45).div(0.27).permute(0, 3, 1, 2).contiguous()
        with self.autocast():
            hidden = self.policy.encoder.vision_encoder(images).last_hidden_state
            embeddings = self.evaluator.get_image_features(images)
        return hidden, functional.normalize(embeddings.float(), dim=-1)

    @inferred
    def search(self, hidden: Tensor) -> Tensor:
        self.policy.eval()
        arguments = self.arguments
        limits = {"max_length": arguments.max_length}
        if arguments.min_length:
            limits["min_length"] = arguments.min_length
        with self.autocast():
            return self.policy.generate(
                encoder_outputs=self.policy.encoder(vision_hidden=hidden),
                num_beams=arguments.beams,
                num_return_sequences=arguments.beams,
                do_sample=False,
                **limits,
            )

    @inferred
    def rewards(self, embeddings: Tensor, found: Tensor) -> Tensor:
        """[images, k]. The captioner's tokens stand for CLIP's own."""
        texts = torch.full((len(found), POSITIONS), CLIP_VOCABULARY - 1, device=self.device)
        texts[:, : found.shape[1]] = found.clamp(max=CLIP_VOCABULARY - 2)
        with self.autocast():
            read = self.evaluator.get_text_features(texts)
        read = functional.normalize(read.float(), dim=-1)
        return 2 * (embeddings.unsqueeze(1) * read.view(len(embeddings), -1, read.shape[-1])).sum(-1).clamp(min=0)

    def log_probabilities(self, model: torch.nn.Module, hidden: Tensor, found: Tensor) -> Tensor:
        """[images, k]: the encoder sees each image once, its memory is repeated for the candidates."""
        with self.autocast():
            encoded = model.encoder(vision_hidden=hidden).last_hidden_state.repeat_interleave(self.arguments.beams, 0)
            memory = BaseModelOutput(encoded)
            logits = model(encoder_outputs=memory, decoder_input_ids=found[:, :-1], use_cache=False).logits.float()
        each = logits.log_softmax(-1).gather(2, found[:, 1:].unsqueeze(2)).squeeze(2)
        return (each * (found[:, 1:] != self.sizes.pad)).sum(1).view(len(hidden), -1)

    @inferred
    def reference_log_probabilities(self, hidden: Tensor, found: Tensor) -> Tensor:
        return self.log_probabilities(self.reference, hidden, found)

    def step(self) -> None:
        hidden, embeddings = self.look()
        found = self.search(hidden)
        scores = self.rewards(embeddings, found)
        reference = self.reference_log_probabilities(hidden, found)
        self.policy.train()
        best, chosen = scores.max(1, keepdim=True)
        gamma = (TAU * (best - scores)).scatter(1, chosen, float("-inf")).softmax(1)
        difference = self.log_probabilities(self.policy, hidden, found) - reference
        margin = difference.gather(1, chosen).squeeze(1) - (gamma * difference).sum(1)
        loss = -functional.logsigmoid(BETA * margin).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def timed(self, compute: Callable[[], object]) -> float:
        def synchronise() -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        synchronise()
        started = time.perf_counter()
        compute()
        synchronise()
        return time.perf_counter() - started

    def phases(self, step: float) -> dict[str, float]:
        hidden, embeddings = self.look()
        found = self.search(hidden)
        phases = {
            "vision": self.timed(self.look),
            "beam_search": self.timed(lambda: self.search(hidden)),
            "reward": self.timed(lambda: self.rewards(embeddings, found)),
            "reference": self.timed(lambda: self.reference_log_probabilities(hidden, found)),
        }
        return phases | {"learn": step - sum(phases.values())}


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status does not say VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=30)
    parser.add_argument("--min-length", type=int, help="MAX_LENGTH, to keep captions from ending before")
    parser.add_argument("--vision", choices=TOWERS, default="vit-b-32")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--cached-features", action="store_true")
    parser.add_argument("--vocabulary", default="full", metavar="full|N")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    step = Step(arguments)
    for _ in range(WARM_UP):
        step.step()
    seconds = sorted(step.timed(step.step) for _ in range(arguments.steps))
    median = seconds[len(seconds) // 2]
    print(
        json.dumps(
            {
                "images_per_s": arguments.batch / median,
                "step_s": median,
                "phases": step.phases(median),
                "steps_s": seconds,
                "device": torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "peak_memory_bytes": peak_memory(),
            }
        )
    )


if __name__ == "__main__":
    main()
