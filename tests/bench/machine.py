"""Describes the machine of the measurements, and the versions of the software."""

import os
import pathlib
import subprocess

from comparisons import Setting
from processes import parse_json_object, run_command

# Instruction sets for matrix products -> their flags in /proc/cpuinfo.
INSTRUCTIONS = {"avx2": "avx2", "avx512": "avx512f", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}

# Runs in the peers' Python; its argument is the device.
PEER_SCRIPT = """
import importlib.metadata, json, platform, sys
versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "transformers", "pillow")}
gpu = None
if sys.argv[1] != "cpu":
    import torch
    gpu = torch.cuda.get_device_name(sys.argv[1])
print(json.dumps({"gpu": gpu, "versions": versions | {"python": platform.python_version()}}))
"""


def parse_cpuinfo(cpuinfo: str) -> dict:
    """Returns the model and the instruction sets from the text of /proc/cpuinfo."""
    fields = {}
    for entry in cpuinfo.splitlines():
        key, _, value = entry.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", "").split()
    instructions = {name: flag in flags for name, flag in INSTRUCTIONS.items()}
    return {"cpu": fields.get("model name", "unknown"), "instructions": instructions}


def commit() -> str | None:
    """Returns the commit of the checkout, with a `+` if files differ from it; None without git."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def describe(setting: Setting) -> dict:
    """Returns the device and the versions of both sides.

    Raises CommandError if a program of either side fails.
    """
    worker = run_command([setting.worker, "--version"], 1).strip()
    peer = parse_json_object(run_command([*setting.python, "-c", PEER_SCRIPT, setting.device], 1))
    cpu = parse_cpuinfo(pathlib.Path("/proc/cpuinfo").read_text()) | {"cores": len(os.sched_getaffinity(0))}
    gpu = {"gpu": peer["gpu"]} if peer["gpu"] else {}
    return {
        "device": cpu | gpu | {"load_average_before": os.getloadavg()[0]},
        "versions": {"worker": worker, "commit": commit()} | peer["versions"],
    }
