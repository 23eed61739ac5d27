"""What a GPU does in a step of DiCO: kernels, launches, gaps, and for how much of the step it is busy. Prints one JSON object.

The time of a step is that of steps which are not traced: tracing makes the processor slower, not the GPU.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

# Categories of what a GPU does, and of calls that make it do so, in traces of PyTorch's profiler.
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")
# Kernels that take the most time, by name.
MOST = 15


def covered(spans: list[tuple[float, float]]) -> float:
    """How long at least one of the spans (begin, end) lasts."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def figures(events: list[dict], step_s: float) -> dict:
    """Of a trace whose times are in microseconds, and of a step that takes `step_s` seconds when it is not traced."""
    whole = [event for event in events if event.get("ph") == "X"]
    on_gpu = [event for event in whole if event.get("cat") in ON_GPU]
    calls = [event["name"] for event in whole if event.get("cat") in CALLS]
    busy_s = covered([(event["ts"], event["ts"] + event["dur"]) for event in on_gpu]) * 1e-6
    taken: dict[str, float] = {}
    for event in on_gpu:
        taken[event["name"]] = taken.get(event["name"], 0.0) + event["dur"] * 1e-3
    longest = sorted(taken.items(), key=lambda item: -item[1])[:MOST]
    return {
        "step_s": step_s,
        "busy_s": round(busy_s, 6),
        "busy_share": round(busy_s / step_s, 3),
        "kernels": sum(event["cat"] == "kernel" for event in on_gpu),
        "copies": sum(event["cat"] == "gpu_memcpy" for event in on_gpu),
        "launches": sum("LaunchKernel" in name for name in calls),
        "graphs": sum("GraphLaunch" in name for name in calls),
        "waits": sum("Synchronize" in name for name in calls),
        "operations": sum(event.get("cat") == "cpu_op" for event in whole),
        "longest_ms": {name[:90]: round(duration, 3) for name, duration in longest},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other options are those of `worker bench step`.")
    parser.add_argument("--worker", required=True, help="the program")
    chosen, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="dico-trace-") as folder:
        path = pathlib.Path(folder, "step.json")
        command = [chosen.worker, "bench", "step", *options, "--trace", str(path), "--json"]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if printed.returncode != 0:
            return printed.returncode
        step_s = json.loads(printed.stdout)["step_s"]
        print(json.dumps(figures(json.loads(path.read_text())["traceEvents"], step_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
