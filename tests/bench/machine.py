"""What it was measured on, and with what."""

import os
import pathlib
import subprocess

from comparisons import Setting
from processes import output, printed_object

# What matters to matrix products, as /proc/cpuinfo calls it.
INSTRUCTIONS = {"avx2": "avx2", "avx512": "avx512f", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}

# Run by the Python of the peers, with the device.
PEER = """
import importlib.metadata, json, platform, sys
versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "transformers", "pillow")}
gpu = None
if sys.argv[1] != "cpu":
    import torch
    gpu = torch.cuda.get_device_name(sys.argv[1])
print(json.dumps({"gpu": gpu, "versions": versions | {"python": platform.python_version()}}))
"""


def processor(cpuinfo: str) -> dict:
    """Model and instructions, from what /proc/cpuinfo says."""
    known = {}
    for entry in cpuinfo.splitlines():
        key, _, value = entry.partition(":")
        known.setdefault(key.strip(), value.strip())
    flags = known.get("flags", "").split()
    instructions = {name: flag in flags for name, flag in INSTRUCTIONS.items()}
    return {"cpu": known.get("model name", "unknown"), "instructions": instructions}


def commit() -> str | None:
    """What was built, if this is a checkout; with a `+` where files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def described(setting: Setting) -> dict:
    """Device and versions; raises Failed where either side cannot be asked."""
    worker = output([setting.worker, "--version"], 1).strip()
    peer = printed_object(output([*setting.python, "-c", PEER, setting.device], 1))
    cpu = processor(pathlib.Path("/proc/cpuinfo").read_text()) | {"cores": len(os.sched_getaffinity(0))}
    gpu = {"gpu": peer["gpu"]} if peer["gpu"] else {}
    return {
        "device": cpu | gpu | {"load_average_before": os.getloadavg()[0]},
        "versions": {"worker": worker, "commit": commit()} | peer["versions"],
    }
