"""The small world of the tests, by a real coordinator and real workers, on a device and on the CPU of the same machine.

Prints one JSON object. The exit status is 1 where runs differ that must not: two runs on one device in any bit, a device and the
CPU, one worker and two, or 16-bit products and 32-bit ones by more than rounding explains.
"""

import argparse
import array
import contextlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

# As of the runs in crates/test-support/src/lib.rs.
RUN_FILE = """\
name: test
seed: 11
output: {folder}/{name}
workers: {{ min: {workers}, max: {workers} }}
data:
  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}
  scenes: {folder}/world/scenes.json
vocabulary: corpus
evaluator: {{ preset: tiny }}
captioner: {{ preset: tiny, dropout: 0.0 }}
decoding: {{ beams: 3, max_length: 12 }}
compute_dtype: {precision}
gradient_dtype: {precision}
stages:
  - {{ name: evaluator, objective: contrastive, steps: 4, batch: 12, {optimizer} }}
  - {{ name: xe, objective: cross_entropy, steps: 6, batch: 12, micro_batch: 4, checkpoint_every: 4, {optimizer} }}
  - {{ name: dico, objective: dico, steps: 4, batch: 6, evaluate_every: 2, {optimizer} }}
"""
OPTIMIZER = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }"
IMAGES = 60
# Another order of summation moves a parameter by no more; as in tests/end_to_end/training.rs.
TOLERANCE = 2e-5
# What 16-bit products may make of a tensor: a hundredth of its length, and as much besides, as of a vector that began at zero all
# that there is may be a few updates.
TOLERANCE_OF_16_BITS = 0.01

Tensors = dict[str, array.array]


class Failed(Exception):
    """A program that did not do what it should."""


def read(path: pathlib.Path) -> Tensors:
    """The tensors of a safetensors file of 32-bit numbers."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    return {name: array.array("f", body[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def parameters(folder: pathlib.Path) -> Tensors:
    """Those of a run's last checkpoint."""
    last = max((folder / "checkpoints").iterdir())
    models = ((model, last / f"{model}.safetensors") for model in ("evaluator", "captioner", "reference"))
    files = ((model, read(path)) for model, path in models if path.exists())
    return {f"{model}.{name}": values for model, tensors in files for name, values in tensors.items()}


def captions(folder: pathlib.Path) -> dict[str, list]:
    """Those of all of a run's evaluations: of each file the pairs of image and caption."""
    files = sorted((folder / "captions").glob("*.json"))
    return {file.name: [(said["image_id"], said["caption"]) for said in json.loads(file.read_text())] for file in files}


def distances(ours: Tensors, others: Tensors) -> Iterator[tuple[float, float, float]]:
    """Of each tensor: the largest difference, the length of the difference, and the length of the tensor."""
    if ours.keys() != others.keys():
        raise Failed(f"checkpoints have different tensors: {sorted(ours.keys() ^ others.keys())}")
    for name, values in ours.items():
        differences = [a - b for a, b in zip(values, others[name], strict=True)]
        largest = max(map(abs, differences), default=0.0)
        # What is no number is far from everything.
        largest = largest if math.isfinite(sum(differences)) else math.inf
        yield largest, math.hypot(*differences), math.hypot(*values)


def largest_difference(ours: Tensors, others: Tensors) -> float:
    return max(largest for largest, _, _ in distances(ours, others))


def is_near_in_16_bits(short: Tensors, exact: Tensors) -> bool:
    bounded = (far <= TOLERANCE_OF_16_BITS * (1 + length) for _, far, length in distances(exact, short))
    return all(bounded)


class World:
    """A folder with a world in it, and runs beside that."""

    def __init__(self, folder: pathlib.Path, programs: pathlib.Path) -> None:
        self.folder, self.programs = folder, programs
        self.output("worker", "synthesize", "--out", f"{folder}/world", "--images", str(IMAGES), "--seed", "3")

    def output(self, program: str, *options: str) -> str:
        done = subprocess.run([self.programs / program, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise Failed(f"{program} {' '.join(options)}: {done.stderr.strip()}")
        return done.stdout

    def complete(self, name: str, device: str, precision: str = "f32", workers: int = 1) -> str:
        """Does a run, and returns the hash that all its workers say their parameters have."""
        values = {"folder": self.folder, "name": name, "workers": workers, "precision": precision, "optimizer": OPTIMIZER}
        config = self.folder / f"{name}.yaml"
        config.write_text(RUN_FILE.format(**values))
        ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with contextlib.ExitStack() as started:
            coordinator = self.start(started, name, "coordinator", {}, "serve", "--config", str(config), *ports)
            address = re.search(r"grpc=(\S+)", coordinator.stdout.readline())
            if address is None:
                raise Failed(f"the coordinator of {name} did not say where it listens: {self.log(name, 'coordinator')}")
            join = ["join", "--coordinator", f"http://{address[1]}", "--threads", "1", "--device", device]
            # Two ranks on one GPU take each other for other machines, which NCCL connects through sockets.
            hosts = ({"NCCL_HOSTID": f"{name}-{rank}"} for rank in range(workers))
            joined = [
                self.start(started, name, f"worker", host, *join, "--rank", str(rank), number=rank)
                for rank, host in enumerate(hosts)
            ]
            printed = [self.finish(name, "worker", process, rank) for rank, process in enumerate(joined)]
            self.finish(name, "coordinator", coordinator)
        hashes = {found[1] for found in (re.search(r"parameters_sha256=(\S+)", text) for text in printed) if found}
        if len(hashes) != 1:
            raise Failed(f"the workers of {name} ended with different parameters: {sorted(hashes)}")
        return hashes.pop()

    def start(
        self, started: contextlib.ExitStack, run: str, program: str, more: dict, *options: str, number: int = 0
    ) -> subprocess.Popen:
        log = started.enter_context(open(self.folder / f"{run}-{program}-{number}.log", "w"))
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen([self.programs / program, *options], env=os.environ | more, text=True, **pipes)
        started.callback(process.wait)
        started.callback(process.kill)
        return process

    def finish(self, run: str, program: str, process: subprocess.Popen, number: int = 0) -> str:
        printed, _ = process.communicate()
        if process.returncode != 0:
            raise Failed(f"{program} {number} of {run} ended with status {process.returncode}: {self.log(run, program, number)}")
        return printed

    def log(self, run: str, program: str, number: int = 0) -> str:
        return "\n".join((self.folder / f"{run}-{program}-{number}.log").read_text().splitlines()[-10:])


def runs(device: str, is_short: bool) -> dict[str, tuple[str, str, int]]:
    """Device, precision and workers of each run, by its name."""
    chosen = {"cpu": ("cpu", "f32", 1), "first": (device, "f32", 1), "again": (device, "f32", 1)}
    sixteen_bits = {"first_16": (device, "bf16", 1), "again_16": (device, "bf16", 1)}
    return chosen | {"two": (device, "f32", 2)} | ({} if is_short else sixteen_bits)


def judged(hashes: dict[str, str], of: dict[str, Tensors], said: dict[str, dict]) -> tuple[dict, list[str]]:
    """Figures of all runs, and what is wrong."""
    figures = {"largest_difference": largest_difference(of["cpu"], of["first"])}
    figures["same_captions"] = said["cpu"] == said["first"]
    figures["captions"] = sum(map(len, said["first"].values()))
    figures["same_bits_again"] = hashes["first"] == hashes["again"]
    figures["largest_difference_of_two_workers"] = largest_difference(of["first"], of["two"])
    checks = {
        "parameters are further from the CPU's than another order of sums explains": figures["largest_difference"] <= TOLERANCE,
        "captions differ from the CPU's": figures["same_captions"] and figures["captions"] > 0,
        "the same run again ends with other bits": figures["same_bits_again"],
        "two workers do not end with what one does": figures["largest_difference_of_two_workers"] <= TOLERANCE,
    }
    if "first_16" in hashes:
        figures["same_bits_again_in_16_bits"] = hashes["first_16"] == hashes["again_16"]
        figures["largest_difference_of_16_bits"] = largest_difference(of["first"], of["first_16"])
        checks["the same run in 16 bits again ends with other bits"] = figures["same_bits_again_in_16_bits"]
        checks["16 bits are further from 32 than rounding explains"] = is_near_in_16_bits(of["first_16"], of["first"])
        checks["16 bits end with the bits of 32"] = hashes["first_16"] != hashes["first"]
    return figures, [problem for problem, is_well in checks.items() if not is_well]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--device", required=True)
    parser.add_argument("--short", action="store_true", help="without 16-bit products")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    with tempfile.TemporaryDirectory(prefix="dico-world-") as name:
        try:
            world, wanted = World(pathlib.Path(name), chosen.programs), runs(chosen.device, chosen.short)
            with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
                done = {run: pool.submit(world.complete, run, *settings) for run, settings in wanted.items()}
                hashes = {run: future.result() for run, future in done.items()}
            folders = {run: world.folder / run for run in wanted}
            of = {run: parameters(folder) for run, folder in folders.items()}
            figures, problems = judged(hashes, of, {run: captions(folder) for run, folder in folders.items()})
        except Failed as failed:
            figures, problems = {}, [str(failed)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(json.dumps(figures | {"problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
