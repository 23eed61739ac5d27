"""Times a DiCO step of PyTorch and transformers, with the options of ``worker bench step``.

The models are those of transformers at the paper's sizes, with random weights: CLIP's vision
encoder, the captioner of ``published_captioner.py``, a frozen copy with the same vision encoder,
and a ViT-B/32 CLIP as evaluator. As in the published code, each step computes the full log-softmax
and runs the frozen encoders, and the evaluator reads all 77 positions. Otherwise the code is as
fast as PyTorch allows without custom kernels: attention by SDPA, fused Adam, each image encoded
once, and inference mode except for the loss. The evaluator gets captions as tokens, so this time
excludes the conversion to text and back, which ``worker bench step`` includes. The pixels are in
memory, where ``worker bench step`` decodes images while it computes. With ``--precision bf16``
models compute under autocast.
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

import published_captioner

VISION_ENCODERS = {
    "vit-b-32": replace(published_captioner.PAPER, vision_width=768, vision_heads=12, vision_layers=12, patch_size=32),
    "vit-l-14": published_captioner.PAPER,
}
CLIP_VOCABULARY = 49408
POSITIONS = 77
BETA, TAU = 0.2, 300.0
WARM_UP = 2


def in_inference_mode(compute: Callable) -> Callable:
    """Decorates a function to compute in inference mode.

    The results are copies, because autograd cannot use inference tensors.
    """

    @functools.wraps(compute)
    def wrapper(*arguments: object) -> Tensor | tuple[Tensor, ...]:
        with torch.inference_mode():
            result = compute(*arguments)
        return tuple(map(torch.clone, result)) if isinstance(result, tuple) else result.clone()

    return wrapper


class Step:
    """The policy, reference, evaluator, optimizer and batch of the timed step."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(1)
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.sizes = VISION_ENCODERS[arguments.vision]
        if arguments.vocabulary != "full":
            self.sizes = replace(self.sizes, vocabulary=int(arguments.vocabulary) + 3)
        # transformers' default.
        published_captioner.ATTENTION = "sdpa"
        config = published_captioner.build_config(self.sizes, bert_vocabulary=1)
        self.policy = published_captioner.build(config).to(self.device)
        vision_encoder = self.policy.encoder.vision_encoder.requires_grad_(False)
        self.reference = copy.deepcopy(self.policy, {id(vision_encoder): vision_encoder}).requires_grad_(False)
        self.evaluator = CLIPModel(CLIPConfig()).eval().to(self.device).requires_grad_(False)
        trainable = [value for value in self.policy.parameters() if value.requires_grad]
        self.optimizer = torch.optim.Adam(trainable, lr=1e-6, fused=True)
        side = self.sizes.image_size
        self.pixels = torch.randint(256, (arguments.batch, side, side, 3), dtype=torch.uint8)
        self.cached_features = None
        if arguments.cached_features:
            self.cached_features = self.encode_images()

    def autocast(self) -> torch.autocast:
        """Returns the context for model computations; enables bf16 with ``--precision bf16``."""
        bf16 = self.arguments.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    @in_inference_mode
    def encode_images(self) -> tuple[Tensor, Tensor]:
        """Returns the vision encoder's hidden states, and the evaluator's normalised embeddings."""
        if self.cached_features is not None:
            return self.cached_features
        images = (self.pixels.to(self.device).float() / 255 - 0.45).div(0.27).permute(0, 3, 1, 2).contiguous()
        with self.autocast():
            hidden = self.policy.encoder.vision_encoder(images).last_hidden_state
            embeddings = self.evaluator.get_image_features(images)
        return hidden, functional.normalize(embeddings.float(), dim=-1)

    @in_inference_mode
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

    @in_inference_mode
    def rewards(self, embeddings: Tensor, candidates: Tensor) -> Tensor:
        """Computes rewards [images, k]. The captioner's token ids serve as CLIP's."""
        texts = torch.full((len(candidates), POSITIONS), CLIP_VOCABULARY - 1, device=self.device)
        texts[:, : candidates.shape[1]] = candidates.clamp(max=CLIP_VOCABULARY - 2)
        with self.autocast():
            text_embeddings = self.evaluator.get_text_features(texts)
        text_embeddings = functional.normalize(text_embeddings.float(), dim=-1)
        return 2 * (embeddings.unsqueeze(1) * text_embeddings.view(len(embeddings), -1, text_embeddings.shape[-1])).sum(-1).clamp(min=0)

    def log_probabilities(self, model: torch.nn.Module, hidden: Tensor, candidates: Tensor) -> Tensor:
        """Returns log-probabilities [images, k]. The encoder runs once per image."""
        with self.autocast():
            encoded = model.encoder(vision_hidden=hidden).last_hidden_state.repeat_interleave(self.arguments.beams, 0)
            memory = BaseModelOutput(encoded)
            logits = model(encoder_outputs=memory, decoder_input_ids=candidates[:, :-1], use_cache=False).logits.float()
        token_log_probabilities = logits.log_softmax(-1).gather(2, candidates[:, 1:].unsqueeze(2)).squeeze(2)
        return (token_log_probabilities * (candidates[:, 1:] != self.sizes.pad)).sum(1).view(len(hidden), -1)

    @in_inference_mode
    def reference_log_probabilities(self, hidden: Tensor, candidates: Tensor) -> Tensor:
        return self.log_probabilities(self.reference, hidden, candidates)

    def step(self) -> None:
        hidden, embeddings = self.encode_images()
        candidates = self.search(hidden)
        scores = self.rewards(embeddings, candidates)
        reference = self.reference_log_probabilities(hidden, candidates)
        self.policy.train()
        best, best_index = scores.max(1, keepdim=True)
        gamma = (TAU * (best - scores)).scatter(1, best_index, float("-inf")).softmax(1)
        difference = self.log_probabilities(self.policy, hidden, candidates) - reference
        margin = difference.gather(1, best_index).squeeze(1) - (gamma * difference).sum(1)
        loss = -functional.logsigmoid(BETA * margin).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def timed(self, compute: Callable[[], object]) -> float:
        def synchronize() -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        synchronize()
        started = time.perf_counter()
        compute()
        synchronize()
        return time.perf_counter() - started

    def phases(self, step: float) -> dict[str, float]:
        hidden, embeddings = self.encode_images()
        candidates = self.search(hidden)
        phases = {
            "vision": self.timed(self.encode_images),
            "search": self.timed(lambda: self.search(hidden)),
            "reward": self.timed(lambda: self.rewards(embeddings, candidates)),
            "reference": self.timed(lambda: self.reference_log_probabilities(hidden, candidates)),
        }
        return phases | {"learn": step - sum(phases.values())}


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no line VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=30)
    parser.add_argument("--min-length", type=int, help="minimum length; with MAX_LENGTH no caption ends early")
    parser.add_argument("--vision", choices=VISION_ENCODERS, default="vit-b-32")
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
