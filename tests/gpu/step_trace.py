"""Measures the activity of a GPU in a DiCO step: kernels, launches, and the share of busy time.

Prints one JSON object. `step_s` is the time of steps without tracing, which slows down the CPU.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

# Event categories of PyTorch's profiler: activities of the GPU, and CUDA calls of the CPU.
GPU_ACTIVITIES = ("kernel", "gpu_memcpy", "gpu_memset")
CUDA_CALLS = ("cuda_runtime", "cuda_driver")
# Number of the slowest kernels in the output.
MAX_KERNELS = 15


def union_length(spans: list[tuple[float, float]]) -> float:
    """Returns the length of the union of spans (begin, end)."""
    total, covered_until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, covered_until))
        covered_until = max(covered_until, end)
    return total


def trace_figures(events: list[dict], step_s: float) -> dict:
    """Returns the figures of a trace with times in microseconds.

    `step_s`: seconds of a step without tracing.
    """
    complete_events = [event for event in events if event.get("ph") == "X"]
    gpu_events = [event for event in complete_events if event.get("cat") in GPU_ACTIVITIES]
    calls = [event["name"] for event in complete_events if event.get("cat") in CUDA_CALLS]
    busy_s = union_length([(event["ts"], event["ts"] + event["dur"]) for event in gpu_events]) * 1e-6
    milliseconds: dict[str, float] = {}
    for event in gpu_events:
        milliseconds[event["name"]] = milliseconds.get(event["name"], 0.0) + event["dur"] * 1e-3
    longest = sorted(milliseconds.items(), key=lambda item: -item[1])[:MAX_KERNELS]
    return {
        "step_s": step_s,
        "busy_s": round(busy_s, 6),
        "busy_share": round(busy_s / step_s, 3),
        "kernels": sum(event["cat"] == "kernel" for event in gpu_events),
        "copies": sum(event["cat"] == "gpu_memcpy" for event in gpu_events),
        "launches": sum("LaunchKernel" in name for name in calls),
        "graphs": sum("GraphLaunch" in name for name in calls),
        "waits": sum("Synchronize" in name for name in calls),
        "operations": sum(event.get("cat") == "cpu_op" for event in complete_events),
        "longest_ms": {name[:90]: round(duration, 3) for name, duration in longest},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other options are those of `worker bench step`.")
    parser.add_argument("--worker", required=True, help="the program")
    arguments, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="dico-trace-") as folder:
        path = pathlib.Path(folder, "step.json")
        command = [arguments.worker, "bench", "step", *options, "--trace", str(path), "--json"]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if result.returncode != 0:
            return result.returncode
        step_s = json.loads(result.stdout)["step_s"]
        print(json.dumps(trace_figures(json.loads(path.read_text())["traceEvents"], step_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
