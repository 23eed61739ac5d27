"""Weights and inputs by formula, so that no file has to store them.

The rule (the Rust tests implement it from this text; all integers are unsigned, 64 bits, and wrap):

1.  NAME is a parameter's name: OpenAI's for CLIP (``visual.conv1.weight``), the published one for
    the captioner (``encoder.encoder.encoder.layer.0...``). If two models of one architecture must
    differ, each case states a prefix (``policy.``) that precedes NAME in the whole rule.
2.  h = FNV-1a of NAME's UTF-8 bytes: h starts at 0xcbf29ce484222325; for each byte
    h = (h XOR byte) * 0x100000001b3.
3.  Element i (counted row-major from 0) has z = splitmix64(h + i), that is
        z = h + i + 0x9e3779b97f4a7c15
        z = (z XOR (z >> 30)) * 0xbf58476d1ce4e5b9
        z = (z XOR (z >> 27)) * 0x94d049bb133111eb
        z = z XOR (z >> 31)
4.  u = (z >> 40) / 2^24 - 0.5, which f32 holds exactly; it lies in [-0.5, 0.5).
5.  value = base + scale * u in f32. scale is a power of two (or 0), so that the product is exact
    and the sum is rounded once.

base and scale follow from NAME and shape; the first line that applies counts:
    NAME ends with ``logit_scale``                  base 2.6592 (as f32), scale 0
    NAME ends with ``running_var``                  base 1, scale 0.5
    fewer than 2 dimensions, ``.weight`` ends NAME  base 1, scale 0.25     (norms)
    fewer than 2 dimensions                         base 0, scale 0.125    (biases, class embedding, running_mean)
    2 or more dimensions                            base 0, scale 2^-m with the smallest integer m >= 0 for which
                                                    24 * 4^m >= fan_in     (about sqrt(12 / fan_in): deviation
                                                                            1 / sqrt(fan_in))
fan_in is the number of elements over shape[0]; for GPT-2's Conv1D weights, stored [in, out] (two
dimensions, NAME contains ``decoder.transformer.h.`` and ends with ``.weight``), it is shape[0].

Gains: a case may state gains, a list of (suffix, power of two): the scale of every NAME that ends
with the suffix is multiplied by that power.

Inputs (pixels, hidden states) follow steps 2 to 5 with NAME ``input.<case>``, base 0 and scale 2.
"""

from collections.abc import Mapping, Sequence

import numpy
import torch

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MASK = 0xFFFFFFFFFFFFFFFF
CHUNK = 1 << 20


def fnv1a(text: str) -> int:
    """Returns the 64-bit FNV-1a hash of the text's UTF-8 bytes."""
    value = FNV_OFFSET
    for byte in text.encode():
        value = ((value ^ byte) * FNV_PRIME) & MASK
    return value


def splitmix64(z: numpy.ndarray) -> numpy.ndarray:
    """Computes a step of splitmix64 for each element; u64 arrays wrap, as the rule requires."""
    z = z + numpy.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return z ^ (z >> numpy.uint64(31))


def units(name: str, count: int) -> numpy.ndarray:
    """Returns ``count`` values u in [-0.5, 0.5), f32. Works in chunks, which saves memory."""
    seed = numpy.uint64(fnv1a(name))
    result = numpy.empty(count, numpy.float32)
    for start in range(0, count, CHUNK):
        end = min(start + CHUNK, count)
        z = splitmix64(seed + numpy.arange(start, end, dtype=numpy.uint64))
        result[start:end] = (z >> numpy.uint64(40)).astype(numpy.float32) / numpy.float32(1 << 24)
    return result - numpy.float32(0.5)


def fan_in(name: str, shape: Sequence[int]) -> int:
    """Returns the number of inputs of one output of a weight with two or more dimensions."""
    if len(shape) == 2 and "decoder.transformer.h." in name and name.endswith(".weight"):
        return shape[0]
    return int(numpy.prod(shape[1:]))


def base_and_scale(name: str, shape: Sequence[int]) -> tuple[float, float]:
    """Returns base and scale: values are in [base - scale / 2, base + scale / 2)."""
    if name.endswith("logit_scale"):
        return 2.6592, 0.0
    if name.endswith("running_var"):
        return 1.0, 0.5
    if len(shape) < 2:
        return (1.0, 0.25) if name.endswith(".weight") else (0.0, 0.125)
    inputs, m = fan_in(name, shape), 0
    while 24 * 4**m < inputs:
        m += 1
    return 0.0, 2.0**-m


def gain(name: str, gains: Mapping[str, float]) -> float:
    """Returns the gain of a parameter, by which its scale is multiplied."""
    return next((value for suffix, value in gains.items() if name.endswith(suffix)), 1.0)


def tensor(name: str, shape: Sequence[int], base: float, scale: float) -> torch.Tensor:
    """Computes a tensor by steps 2 to 5 of the rule."""
    values = units(name, int(numpy.prod(shape)))
    return torch.from_numpy(numpy.float32(base) + numpy.float32(scale) * values).reshape(tuple(shape))


def parameter(name: str, shape: Sequence[int], gains: Mapping[str, float] | None = None) -> torch.Tensor:
    """Returns the parameter ``name``, f32."""
    base, scale = base_and_scale(name, shape)
    return tensor(name, shape, base, scale * gain(name, gains or {}))


def state(
    shapes: Mapping[str, Sequence[int]], prefix: str = "", gains: Mapping[str, float] | None = None
) -> dict[str, torch.Tensor]:
    """Returns all parameters of a model under their names without the prefix."""
    return {name: parameter(prefix + name, shape, gains) for name, shape in shapes.items()}


def inputs(case: str, shape: Sequence[int]) -> torch.Tensor:
    """Returns the input of a case, in [-1, 1)."""
    return tensor(f"input.{case}", shape, 0.0, 2.0)
