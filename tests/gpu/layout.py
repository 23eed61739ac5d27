"""Where programs, libtorch and the peer are, on a machine that has little else than Python and PyTorch."""

import importlib.util
import os
import pathlib
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The modules that are shared with `make bench`.
sys.path.append(str(ROOT / "tests/bench"))

from processes import Failed  # noqa: E402

CPU_PART = "libtorch_cpu.so"
CUDA_PART = "libtorch_cuda.so"
# What a launcher of a cluster or a user's shell may have set, which programs would listen to.
IGNORED = ("RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX", "LIBTORCH", "LIBTORCH_USE_PYTORCH")


@dataclass(frozen=True)
class Layout:
    """Folders."""

    # Of the programs.
    programs: pathlib.Path
    # Of the libraries that they use.
    libtorch: pathlib.Path
    # Of the modules that the peer needs, where they were carried.
    peer: pathlib.Path | None

    def program(self, name: str) -> str:
        return str(self.programs / name)

    def for_programs(self, threads: int) -> dict[str, str]:
        """The environment of programs that use libtorch."""
        kept = {name: value for name, value in os.environ.items() if name not in IGNORED and not name.startswith("DICO_")}
        libraries = ":".join([str(self.libtorch), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        golden = str(ROOT / "tests/golden")
        return kept | {"LD_LIBRARY_PATH": libraries, "DICO_PARITY": golden, "OMP_NUM_THREADS": str(threads)}

    def for_peer(self, threads: int) -> dict[str, str]:
        """The environment of a Python that uses PyTorch."""
        carried = {} if self.peer is None else {"PYTHONPATH": str(self.peer)}
        return {**os.environ, **carried, "OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}


def pytorch() -> pathlib.Path | None:
    """The folder of this Python's PyTorch, found without importing it."""
    found = importlib.util.find_spec("torch")
    return pathlib.Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def pytorch_version(package: pathlib.Path | None) -> str | None:
    """Of a PyTorch's folder."""
    try:
        lines = (package / "version.py").read_text().splitlines() if package else []
    except OSError:
        lines = []
    return next((line.split("=")[1].strip(" '\"") for line in lines if line.startswith("__version__ =")), None)


def libtorch(device: str, environment: Mapping[str, str], package: pathlib.Path | None) -> pathlib.Path:
    """The folder of libtorch's libraries: for a GPU one that has the CUDA part."""
    folders = [ROOT / ".libtorch/lib"]
    if environment.get("LIBTORCH"):
        folders.insert(0, pathlib.Path(environment["LIBTORCH"]) / "lib")
    if package:
        folders.append(package / "lib")
    needed = [CPU_PART] if device == "cpu" else [CPU_PART, CUDA_PART]
    for folder in folders:
        if all((folder / part).is_file() for part in needed):
            return folder.resolve()
    looked = ", ".join(map(str, folders))
    raise Failed(f"{needed[-1]} of PyTorch 2.11 was looked for in {looked}: install it (pip install torch==2.11.0)")


def unpack(carried: pathlib.Path, into: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Lays out what `tests/gpu/build` packed: the folders of programs and of the peer's modules."""
    archive, wheels = carried / "programs.tar.xz", sorted((carried / "wheels").glob("*.whl"))
    programs, peer = into / "programs", into / "peer"
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(programs)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(peer)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise Failed(f"{error}: run tests/gpu/build where Rust is, and bring target/gpu along") from None
    return programs, peer if wheels else None
