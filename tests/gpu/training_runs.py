"""Trains small runs on a device and on the CPU of the same machine, and compares the results.

Prints one JSON object. The exit status is 1 if two runs on one device differ in any bit, or if
results on a device and on the CPU, of one worker and of two, or of 16-bit and of 32-bit products
differ by variables than rounding.
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

# The same as the runs in crates/test-support/src/lib.rs.
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
# Largest effect of another order of summation on a parameter; as in tests/end_to_end/training.rs.
TOLERANCE = 2e-5
# Tolerance of 16-bit products, times 1 + the tensor's norm. The 1 covers tensors that started at
# zero and have had only a few updates.
TOLERANCE_16_BIT = 0.01

Tensors = dict[str, array.array]


class RunError(Exception):
    """A program failed, or the runs cannot be compared."""


def read_safetensors(path: pathlib.Path) -> Tensors:
    """Reads a safetensors file of 32-bit floats."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    return {name: array.array("f", body[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def parameters(folder: pathlib.Path) -> Tensors:
    """Returns the parameters of a run's last checkpoint."""
    last = max((folder / "checkpoints").iterdir())
    models = ((model, last / f"{model}.safetensors") for model in ("evaluator", "captioner", "reference"))
    files = ((model, read_safetensors(path)) for model, path in models if path.exists())
    return {f"{model}.{name}": values for model, tensors in files for name, values in tensors.items()}


def captions(folder: pathlib.Path) -> dict[str, list]:
    """Returns the (image, caption) pairs of a run's evaluations, by file."""
    files = sorted((folder / "captions").glob("*.json"))
    return {file.name: [(entry["image_id"], entry["caption"]) for entry in json.loads(file.read_text())] for file in files}


def distances(ours: Tensors, others: Tensors) -> Iterator[tuple[float, float, float]]:
    """Yields of each tensor: largest difference, norm of the difference, norm of the tensor."""
    if ours.keys() != others.keys():
        raise RunError(f"checkpoints have different tensors: {sorted(ours.keys() ^ others.keys())}")
    for name, values in ours.items():
        differences = [a - b for a, b in zip(values, others[name], strict=True)]
        largest = max(map(abs, differences), default=0.0)
        # NaN counts as an infinite difference.
        largest = largest if math.isfinite(sum(differences)) else math.inf
        yield largest, math.hypot(*differences), math.hypot(*values)


def largest_difference(ours: Tensors, others: Tensors) -> float:
    return max(largest for largest, _, _ in distances(ours, others))


def is_close_16_bit(short: Tensors, exact: Tensors) -> bool:
    bounded = (distance <= TOLERANCE_16_BIT * (1 + length) for _, distance, length in distances(exact, short))
    return all(bounded)


class TrainingRuns:
    """A folder with a synthetic data set and the runs that train on it."""

    def __init__(self, folder: pathlib.Path, programs: pathlib.Path) -> None:
        self.folder, self.programs = folder, programs
        self.output("worker", "synthesize", "--out", f"{folder}/world", "--images", str(IMAGES), "--seed", "3")

    def output(self, program: str, *options: str) -> str:
        result = subprocess.run([self.programs / program, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if result.returncode != 0:
            raise RunError(f"{program} {' '.join(options)}: {result.stderr.strip()}")
        return result.stdout

    def train(self, name: str, device: str, precision: str = "f32", workers: int = 1) -> str:
        """Trains a run to its end, and returns the hash of the parameters, equal on all workers."""
        values = {"folder": self.folder, "name": name, "workers": workers, "precision": precision, "optimizer": OPTIMIZER}
        config = self.folder / f"{name}.yaml"
        config.write_text(RUN_FILE.format(**values))
        ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with contextlib.ExitStack() as started:
            coordinator = self.start(started, name, "coordinator", {}, "serve", "--config", str(config), *ports)
            address = re.search(r"grpc=(\S+)", coordinator.stdout.readline())
            if address is None:
                raise RunError(f"the coordinator of {name} did not print its addresses: {self.log(name, 'coordinator')}")
            join = ["join", "--coordinator", f"http://{address[1]}", "--threads", "1", "--device", device]
            # With different host ids, NCCL connects two ranks on one GPU through sockets.
            hosts = ({"NCCL_HOSTID": f"{name}-{worker_id}"} for worker_id in range(workers))
            joined = [
                self.start(started, name, "worker", host, *join, "--rank", str(worker_id), number=worker_id)
                for worker_id, host in enumerate(hosts)
            ]
            outputs = [self.finish(name, "worker", process, worker_id) for worker_id, process in enumerate(joined)]
            self.finish(name, "coordinator", coordinator)
        hashes = {match[1] for match in (re.search(r"parameters_sha256=(\S+)", text) for text in outputs) if match}
        if len(hashes) != 1:
            raise RunError(f"the workers of {name} ended with different parameters: {sorted(hashes)}")
        return hashes.pop()

    def start(
        self, started: contextlib.ExitStack, run: str, program: str, variables: dict, *options: str, number: int = 0
    ) -> subprocess.Popen:
        log = started.enter_context(open(self.folder / f"{run}-{program}-{number}.log", "w"))
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen([self.programs / program, *options], env=os.environ | variables, text=True, **pipes)
        started.callback(process.wait)
        started.callback(process.kill)
        return process

    def finish(self, run: str, program: str, process: subprocess.Popen, number: int = 0) -> str:
        output, _ = process.communicate()
        if process.returncode != 0:
            raise RunError(f"{program} {number} of {run} exited with status {process.returncode}: {self.log(run, program, number)}")
        return output

    def log(self, run: str, program: str, number: int = 0) -> str:
        return "\n".join((self.folder / f"{run}-{program}-{number}.log").read_text().splitlines()[-10:])


def runs(device: str, is_short: bool) -> dict[str, tuple[str, str, int]]:
    """Returns (device, precision, number of workers) of each run by name."""
    selected = {"cpu": ("cpu", "f32", 1), "first": (device, "f32", 1), "again": (device, "f32", 1)}
    sixteen_bits = {"first_16": (device, "bf16", 1), "again_16": (device, "bf16", 1)}
    return selected | {"two": (device, "f32", 2)} | ({} if is_short else sixteen_bits)


def evaluate(hashes: dict[str, str], parameters_by_run: dict[str, Tensors], captions_by_run: dict[str, dict]) -> tuple[dict, list[str]]:
    """Compares the runs. Returns figures and problems."""
    figures = {"largest_difference": largest_difference(parameters_by_run["cpu"], parameters_by_run["first"])}
    figures["same_captions"] = captions_by_run["cpu"] == captions_by_run["first"]
    figures["captions"] = sum(map(len, captions_by_run["first"].values()))
    figures["same_bits_again"] = hashes["first"] == hashes["again"]
    figures["largest_difference_of_two_workers"] = largest_difference(parameters_by_run["first"], parameters_by_run["two"])
    checks = {
        "parameters differ from the CPU's by variables than rounding": figures["largest_difference"] <= TOLERANCE,
        "captions differ from the CPU's": figures["same_captions"] and figures["captions"] > 0,
        "a repeated run ends with different bits": figures["same_bits_again"],
        "two workers end with parameters that differ from those of one worker by variables than rounding": figures["largest_difference_of_two_workers"] <= TOLERANCE,
    }
    if "first_16" in hashes:
        figures["same_bits_again_in_16_bits"] = hashes["first_16"] == hashes["again_16"]
        figures["largest_difference_of_16_bits"] = largest_difference(parameters_by_run["first"], parameters_by_run["first_16"])
        checks["a repeated 16-bit run ends with different bits"] = figures["same_bits_again_in_16_bits"]
        checks["16-bit results differ from 32-bit results by variables than rounding"] = is_close_16_bit(parameters_by_run["first_16"], parameters_by_run["first"])
        checks["16-bit and 32-bit runs end with the same bits"] = hashes["first_16"] != hashes["first"]
    return figures, [problem for problem, is_met in checks.items() if not is_met]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--device", required=True)
    parser.add_argument("--short", action="store_true", help="without 16-bit products")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="dico-world-") as name:
        try:
            training, settings_by_run = TrainingRuns(pathlib.Path(name), options.programs), runs(options.device, options.short)
            with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
                futures = {run: pool.submit(training.train, run, *settings) for run, settings in settings_by_run.items()}
                hashes = {run: future.result() for run, future in futures.items()}
            folders = {run: training.folder / run for run in settings_by_run}
            parameters_by_run = {run: parameters(folder) for run, folder in folders.items()}
            figures, problems = evaluate(hashes, parameters_by_run, {run: captions(folder) for run, folder in folders.items()})
        except RunError as error:
            figures, problems = {}, [str(error)]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(json.dumps(figures | {"problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
