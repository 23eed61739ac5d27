"""Finds programs, libtorch and the peer on a machine with only Python and PyTorch."""

import importlib.util
import os
import pathlib
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Modules shared with `make bench`.
sys.path.append(str(ROOT / "tests/bench"))

from processes import CommandError  # noqa: E402

CPU_LIBRARY = "libtorch_cpu.so"
CUDA_LIBRARY = "libtorch_cuda.so"
# Variables of a cluster's launcher or a user's shell that programs would read.
REMOVED_VARIABLES = ("RANK", "SLURM_PROCID", "JOB_COMPLETION_INDEX", "LIBTORCH", "LIBTORCH_USE_PYTORCH")


@dataclass(frozen=True)
class Layout:
    """Folders of programs and libraries."""

    programs: pathlib.Path
    libtorch: pathlib.Path
    # Python modules of the peer; None if they were not packed.
    peer: pathlib.Path | None

    def program(self, name: str) -> str:
        return str(self.programs / name)

    def for_programs(self, threads: int) -> dict[str, str]:
        """Returns the environment of programs that use libtorch."""
        environment = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES and not name.startswith("DICO_")}
        libraries = ":".join([str(self.libtorch), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        golden = str(ROOT / "tests/golden")
        return environment | {"LD_LIBRARY_PATH": libraries, "DICO_PARITY": golden, "OMP_NUM_THREADS": str(threads)}

    def for_peer(self, threads: int) -> dict[str, str]:
        """Returns the environment of the peer's Python."""
        module_path = {} if self.peer is None else {"PYTHONPATH": str(self.peer)}
        return {**os.environ, **module_path, "OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}


def pytorch() -> pathlib.Path | None:
    """Returns the folder of this Python's PyTorch without importing it; None if there is none."""
    spec = importlib.util.find_spec("torch")
    return pathlib.Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


def pytorch_version(package: pathlib.Path | None) -> str | None:
    """Returns the version of the PyTorch in a folder."""
    try:
        lines = (package / "version.py").read_text().splitlines() if package else []
    except OSError:
        lines = []
    return next((line.split("=")[1].strip(" '\"") for line in lines if line.startswith("__version__ =")), None)


def libtorch(device: str, environment: Mapping[str, str], package: pathlib.Path | None) -> pathlib.Path:
    """Returns the folder of libtorch's libraries; for a GPU one with the CUDA library.

    Raises CommandError if there is none.
    """
    folders = [ROOT / ".libtorch/lib"]
    if environment.get("LIBTORCH"):
        folders.insert(0, pathlib.Path(environment["LIBTORCH"]) / "lib")
    if package:
        folders.append(package / "lib")
    needed = [CPU_LIBRARY] if device == "cpu" else [CPU_LIBRARY, CUDA_LIBRARY]
    for folder in folders:
        if all((folder / library).is_file() for library in needed):
            return folder.resolve()
    searched = ", ".join(map(str, folders))
    raise CommandError(f"{needed[-1]} of PyTorch 2.11 is not in {searched}: install it (pip install torch==2.11.0)")


def unpack(carried: pathlib.Path, into: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Unpacks the files of `tests/gpu/build`. Returns the folders of programs and peer modules."""
    archive, wheels = carried / "programs.tar.xz", sorted((carried / "wheels").glob("*.whl"))
    programs, peer = into / "programs", into / "peer"
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(programs)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(peer)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise CommandError(f"{error}: run tests/gpu/build on a machine with Rust, and copy target/gpu here") from None
    return programs, peer if wheels else None
