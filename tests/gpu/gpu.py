"""Runs all parts, each in a process of its own, whatever becomes of the others, and says what came of each.

The exit status is 1 where a part failed, took too long, or could not be begun in time. A part that does not apply is left out, with
the reason.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time

import layout
from parts import Part, Setting, parts

# The modules of tests/bench are found once `layout` is imported.
import machine
import summary
from comparisons import unmeasurable
from comparisons import Setting as Bench
from processes import Failed, end

# Seconds that all of it takes at most: on a GPU, and on a few cores.
BUDGET_ON_GPU, BUDGET_ON_CPU = 470, 3600
# Lines of what a part printed that are worth repeating.
LAST_LINES = 30
PROBE_LIMIT = 60
TRANSFORMERS = "4.49.0"
# Run where the peer is, in its environment.
PROBE = f"""
import torch, transformers
if transformers.__version__ != "{TRANSFORMERS}":
    raise SystemExit(f"transformers {{transformers.__version__}} was found: the peer is one of {TRANSFORMERS}")
import published
"""


def run(command: list[str], environment: dict[str, str], limit: float, folder: str | None = None) -> tuple[str, str, str]:
    """How a command ended (empty: well), and what it wrote to its two outputs. Ends whatever it has left running."""
    with tempfile.TemporaryFile("w+", errors="replace") as printed, tempfile.TemporaryFile("w+", errors="replace") as said:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": printed, "stderr": said}
        try:
            process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, **pipes)
        except OSError as error:
            return f"{command[0]}: {error.strerror}", "", ""
        problem = ""
        try:
            if process.wait(limit) != 0:
                problem = f"ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"did not end in {limit:.0f} s"
        finally:
            end(process)
        texts = []
        for output in (printed, said):
            output.seek(0)
            texts.append(output.read())
        return problem, *texts


def outcome(part: Part, left: float, log: pathlib.Path) -> dict:
    """What came of a part that may take `left` seconds at most."""
    if part.reason:
        return {"status": "skipped", "reason": part.reason}
    if left < 1:
        return {"status": "failed", "reason": "no time was left for it"}
    limit, started = min(part.limit, left), time.monotonic()
    problem, printed, said = run(part.command, part.environment, limit)
    result = {"status": "failed" if problem else "passed", "seconds": round(time.monotonic() - started, 1)}
    try:
        result["figures"] = part.read(printed)
    except Failed as failed:
        # What the command says itself of its failure comes first.
        result |= {"status": "failed", "reason": problem or str(failed)}
    if problem:
        result["reason"] = problem
    with log.open("a") as all_of_it:
        all_of_it.write(f"==== {part.name}: {' '.join(part.command)}\n{printed}\n{said}\n")
    if result["status"] == "failed":
        result["last_lines"] = [*printed.splitlines()[-LAST_LINES:], *said.splitlines()[-LAST_LINES:]]
    return result


def described(device: str, carried: pathlib.Path, folders: layout.Layout) -> dict:
    """The machine, and what is on it."""
    package = layout.pytorch()
    cpu = machine.processor(pathlib.Path("/proc/cpuinfo").read_text()) | {"cores": len(os.sched_getaffinity(0))}
    built = carried / "commit"
    commit = built.read_text().strip() if built.is_file() else None
    found = {"device": device, "machine": cpu, "commit": commit, "libtorch": str(folders.libtorch)}
    found |= {"versions": {"python": platform.python_version(), "torch": layout.pytorch_version(package)}}
    if device != "cpu":
        number = device.partition(":")[2] or "0"
        query = ["nvidia-smi", f"--id={number}", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        problem, printed, said = run(query, dict(os.environ), PROBE_LIMIT)
        names = [value.strip() for value in printed.strip().split(",")]
        known = dict(zip(("name", "driver", "memory"), names)) if not problem else {"problem": f"{problem}: {said.strip()}"}
        found["gpu"] = known
    return found


def no_peer(folders: layout.Layout) -> str | None:
    """Why there is no peer to compare with, if there is none."""
    command = [sys.executable, "-W", "ignore", "-c", PROBE]
    problem, _, said = run(command, folders.for_peer(1), PROBE_LIMIT, folder=str(layout.ROOT / "tests/parity"))
    return f"the peer cannot be started: {(said.strip().splitlines() or [problem])[-1]}" if problem else None


def ratios(results: dict[str, dict]) -> dict[str, float]:
    """Of all steps that were timed on both sides: how many times as many images a second ours takes."""
    figures = {name: result.get("figures", {}) for name, result in results.items()}
    speed = {name: found["images_per_s"] for name, found in figures.items() if "images_per_s" in found}
    pairs = ((name, name.removesuffix("_peer")) for name in speed if name.endswith("_peer"))
    return {ours: speed[ours] / speed[peer] for peer, ours in pairs if ours in speed}


def row(name: str, status: str, seconds: str, rest: str) -> str:
    return f"{name:30}{status:9}{seconds:>8}  {rest}".rstrip()


def line(name: str, result: dict) -> str:
    """A line of the table."""
    figures = result.get("figures", {})
    short = {
        key: f"{value:.4g}" if isinstance(value, float) else str(value)
        for key, value in figures.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    known = [key for key in ("passed", "images_per_s", "step_s", "bytes_per_s", "largest_difference", "busy_share", "kernels") if key in short]
    said = ", ".join(f"{key} {short[key]}" for key in known)
    return row(name, result["status"], str(result.get("seconds", "")), result.get("reason", said))


def prove(chosen: list[Part], deadline: float, out: pathlib.Path, about: dict) -> bool:
    """Runs all parts, writes the summary after each, and returns whether none failed."""
    results: dict[str, dict] = {}
    print(row("", "", "seconds", ""), flush=True)
    for part in chosen:
        results[part.name] = outcome(part, deadline - time.monotonic(), out / "log.txt")
        print(line(part.name, results[part.name]), flush=True)
        failed = [name for name, result in results.items() if result["status"] == "failed"]
        summary.write(out / "summary.json", about | {"failed": failed, "ratios": ratios(results), "parts": results})
    for name, ratio in ratios(results).items():
        print(f"{name}: {ratio:.2f} times the peer's images a second")
    for name in failed:
        print(f"\n{name} failed: {results[name]['reason']}", *results[name].get("last_lines", []), sep="\n  ")
    print(f"\nall of it: {out}/summary.json, {out}/log.txt")
    return not failed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/gpu/run", description=__doc__)
    parser.add_argument("--device", default="cuda:0", help="cuda:N (cuda:0), or cpu: the same on this machine's processor")
    parser.add_argument("--short", action="store_true", help="the smallest sizes: enough to see that all of it runs")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="where results go (OUT of the environment, else runs/gpu)")
    parser.add_argument("--carried", type=pathlib.Path, metavar="DIR", help="what tests/gpu/build packed (target/gpu)")
    found = parser.parse_args()
    found.carried = found.carried or layout.ROOT / "target/gpu"
    found.out = found.out or pathlib.Path(os.environ.get("OUT") or "runs/gpu")
    return found


def main() -> int:
    chosen = arguments()
    is_gpu = chosen.device != "cpu"
    deadline = time.monotonic() + (BUDGET_ON_GPU if is_gpu else BUDGET_ON_CPU)
    # What ends this program ends what it started, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    chosen.out.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (chosen.out / "log.txt").unlink()
    with tempfile.TemporaryDirectory(prefix="dico-gpu-") as scratch:
        try:
            programs, peer = layout.unpack(chosen.carried, pathlib.Path(scratch))
            folder = layout.libtorch(chosen.device, os.environ, layout.pytorch())
        except Failed as failed:
            sys.exit(f"tests/gpu/run: error: {failed}")
        found = layout.Layout(programs, folder, peer)
        about = described(chosen.device, chosen.carried, found)
        no_bf16 = unmeasurable("bf16", Bench("worker", [], chosen.device), about["machine"]["instructions"])
        setting = Setting(found, chosen.device, chosen.short, no_peer(found), no_bf16)
        print(json.dumps(about))
        return 0 if prove(parts(setting), deadline, chosen.out, about) else 1


if __name__ == "__main__":
    sys.exit(main())
