"""Runs all checks, each in its own process, and reports the result of each.

A failed check does not stop the others. The exit status is 1 if a check failed, timed out, or did
not start in time. A check that does not apply is skipped with a reason.
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
from checks import Check, Setting, all_checks

# `layout` adds tests/bench to the module path.
import machine
import summary
from comparisons import reason_not_measured
from comparisons import Setting as BenchSetting
from processes import CommandError, kill_session

# Seconds for all checks together: on a GPU, and on a CPU with few cores.
GPU_TIME_LIMIT, CPU_TIME_LIMIT = 470, 3600
# Lines of a failed check's output that the summary repeats.
MAX_LOG_LINES = 30
# Seconds.
PROBE_TIMEOUT = 60
TRANSFORMERS = "4.49.0"
# Script that fails if the peer cannot run. Its folder is tests/parity.
PEER_PROBE = f"""
import torch, transformers
if transformers.__version__ != "{TRANSFORMERS}":
    raise SystemExit(f"transformers {{transformers.__version__}} is installed: the peer needs {TRANSFORMERS}")
import published_captioner
"""


def run_command(command: list[str], environment: dict[str, str], limit: float, folder: str | None = None) -> tuple[str, str, str]:
    """Runs a command. Returns the problem (empty on success), standard output and standard error.

    Kills all processes that the command leaves running.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as stdout, tempfile.TemporaryFile("w+", errors="replace") as stderr:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
        try:
            process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True, **pipes)
        except OSError as error:
            return f"{command[0]}: {error.strerror}", "", ""
        problem = ""
        try:
            if process.wait(limit) != 0:
                problem = f"exited with status {process.returncode}"
        except subprocess.TimeoutExpired:
            problem = f"timeout: did not exit within {limit:.0f} s"
        finally:
            kill_session(process)
        texts = []
        for output in (stdout, stderr):
            output.seek(0)
            texts.append(output.read())
        return problem, *texts


def run_check(check: Check, seconds_left: float, log_path: pathlib.Path) -> dict:
    """Runs a check for at most `seconds_left` seconds, and returns its entry of the summary."""
    if check.reason:
        return {"status": "skipped", "reason": check.reason}
    if seconds_left < 1:
        return {"status": "failed", "reason": "the time limit of all checks is reached"}
    limit, started = min(check.limit, seconds_left), time.monotonic()
    problem, stdout, stderr = run_command(check.command, check.environment, limit)
    result = {"status": "failed" if problem else "passed", "seconds": round(time.monotonic() - started, 1)}
    try:
        result["figures"] = check.read(stdout)
    except CommandError as error:
        # The command's own problem is more specific than the missing figures.
        result |= {"status": "failed", "reason": problem or str(error)}
    if problem:
        result["reason"] = problem
    with log_path.open("a") as log_file:
        log_file.write(f"==== {check.name}: {' '.join(check.command)}\n{stdout}\n{stderr}\n")
    if result["status"] == "failed":
        result["last_lines"] = [*stdout.splitlines()[-MAX_LOG_LINES:], *stderr.splitlines()[-MAX_LOG_LINES:]]
    return result


def describe_machine(device: str, carried: pathlib.Path, folders: layout.Layout) -> dict:
    """Returns the machine's processor, GPU and software versions."""
    package = layout.pytorch()
    cpu = machine.parse_cpuinfo(pathlib.Path("/proc/cpuinfo").read_text()) | {"cores": len(os.sched_getaffinity(0))}
    built = carried / "commit"
    commit = built.read_text().strip() if built.is_file() else None
    description = {"device": device, "machine": cpu, "commit": commit, "libtorch": str(folders.libtorch)}
    description |= {"versions": {"python": platform.python_version(), "torch": layout.pytorch_version(package)}}
    if device != "cpu":
        number = device.partition(":")[2] or "0"
        query = ["nvidia-smi", f"--id={number}", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        problem, stdout, stderr = run_command(query, dict(os.environ), PROBE_TIMEOUT)
        values = [value.strip() for value in stdout.strip().split(",")]
        gpu = dict(zip(("name", "driver", "memory"), values)) if not problem else {"problem": f"{problem}: {stderr.strip()}"}
        description["gpu"] = gpu
    return description


def find_peer_problem(folders: layout.Layout) -> str | None:
    """Returns the reason why the peer cannot run; None if it can."""
    command = [sys.executable, "-W", "ignore", "-c", PEER_PROBE]
    problem, _, stderr = run_command(command, folders.for_peer(1), PROBE_TIMEOUT, folder=str(layout.ROOT / "tests/parity"))
    return f"the peer cannot be started: {(stderr.strip().splitlines() or [problem])[-1]}" if problem else None


def ratios(results: dict[str, dict]) -> dict[str, float]:
    """Returns the ratio of images per second, ours to the peer's, of each step."""
    figures = {name: result.get("figures", {}) for name, result in results.items()}
    speed = {name: values["images_per_s"] for name, values in figures.items() if "images_per_s" in values}
    pairs = ((name, name.removesuffix("_peer")) for name in speed if name.endswith("_peer"))
    return {ours: speed[ours] / speed[peer] for peer, ours in pairs if ours in speed}


def row(name: str, status: str, seconds: str, rest: str) -> str:
    return f"{name:30}{status:9}{seconds:>8}  {rest}".rstrip()


def table_line(name: str, result: dict) -> str:
    """Returns a check's line of the table."""
    figures = result.get("figures", {})
    short = {
        key: f"{value:.4g}" if isinstance(value, float) else str(value)
        for key, value in figures.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    shown_keys = [key for key in ("passed", "images_per_s", "step_s", "bytes_per_s", "largest_difference", "busy_share", "kernels") if key in short]
    details = ", ".join(f"{key} {short[key]}" for key in shown_keys)
    return row(name, result["status"], str(result.get("seconds", "")), result.get("reason", details))


def run_checks(selected: list[Check], deadline: float, out: pathlib.Path, description: dict) -> bool:
    """Runs checks. Writes the summary after each. Returns whether none failed."""
    results: dict[str, dict] = {}
    print(row("", "", "seconds", ""), flush=True)
    for check in selected:
        results[check.name] = run_check(check, deadline - time.monotonic(), out / "log.txt")
        print(table_line(check.name, results[check.name]), flush=True)
        failed = [name for name, result in results.items() if result["status"] == "failed"]
        summary.write(out / "summary.json", description | {"failed": failed, "ratios": ratios(results), "parts": results})
    for name, ratio in ratios(results).items():
        print(f"{name}: {ratio:.2f} times the peer's images per second")
    for name in failed:
        print(f"\n{name} failed: {results[name]['reason']}", *results[name].get("last_lines", []), sep="\n  ")
    print(f"\nall results: {out}/summary.json, {out}/log.txt")
    return not failed


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/gpu/run", description=__doc__)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu for the same checks on this machine's processor (cuda:0)")
    parser.add_argument("--short", action="store_true", help="smallest sizes, which only show that all checks run")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", help="folder for results (the environment variable OUT, or runs/gpu)")
    parser.add_argument("--carried", type=pathlib.Path, metavar="DIR", help="folder that tests/gpu/build wrote (target/gpu)")
    parsed = parser.parse_args()
    parsed.carried = parsed.carried or layout.ROOT / "target/gpu"
    parsed.out = parsed.out or pathlib.Path(os.environ.get("OUT") or "runs/gpu")
    return parsed


def main() -> int:
    options = parse_arguments()
    is_gpu = options.device != "cpu"
    deadline = time.monotonic() + (GPU_TIME_LIMIT if is_gpu else CPU_TIME_LIMIT)
    # A signal that ends this program also ends the processes that it started.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (options.out / "log.txt").unlink()
    with tempfile.TemporaryDirectory(prefix="dico-gpu-") as scratch:
        try:
            programs, peer = layout.unpack(options.carried, pathlib.Path(scratch))
            folder = layout.libtorch(options.device, os.environ, layout.pytorch())
        except CommandError as error:
            sys.exit(f"tests/gpu/run: error: {error}")
        folders = layout.Layout(programs, folder, peer)
        description = describe_machine(options.device, options.carried, folders)
        bf16_missing_reason = reason_not_measured("bf16", BenchSetting("worker", [], options.device), description["machine"]["instructions"])
        setting = Setting(folders, options.device, options.short, find_peer_problem(folders), bf16_missing_reason)
        print(json.dumps(description))
        return 0 if run_checks(all_checks(setting), deadline, options.out, description) else 1


if __name__ == "__main__":
    sys.exit(main())
