"""Defines the comparisons: the commands of all sides, and the bounds of their ratios."""

from dataclasses import dataclass, field

# Threads of each process, unless several processes share the cores.
THREADS = 2


@dataclass(frozen=True)
class Measure:
    """A number that the commands print as a field of their JSON object."""

    field: str
    unit: str
    # Divisor that converts the printed number to the unit.
    scale: float = 1
    # Whether the bound is an upper bound of the ratio, as for memory.
    is_upper_bound: bool = False

    def is_met(self, ratio: float, bound: float) -> bool:
        return ratio < bound if self.is_upper_bound else ratio >= bound


IMAGES_PER_SECOND = Measure("images_per_s", "images/s")
IMAGES_PER_CORE_SECOND = Measure("images_per_core_s", "images/s per core")
BYTES_PER_SECOND = Measure("bytes_per_s", "MB/s", scale=1e6)
PEAK_MEMORY = Measure("peak_memory_bytes", "MiB", scale=2**20, is_upper_bound=True)


@dataclass(frozen=True)
class Comparison:
    """Commands that run alternately.

    The side `ours` is compared with `peer` or `base`. Ratios to further sides are for information.
    """

    measure: Measure
    bound: float
    sides: dict[str, list[str]]
    threads: int = THREADS
    # Lower bounds of further fields that `ours` prints.
    further: dict[str, float] = field(default_factory=dict)
    # Command that runs once before the comparison.
    preparation: list[str] | None = None

    @property
    def other(self) -> str:
        """The name of the side that `ours` is compared with."""
        return "peer" if "peer" in self.sides else "base"


@dataclass(frozen=True)
class Setting:
    """Programs, device and size of the measurements."""

    worker: str
    # Command that starts the peers' Python.
    python: list[str]
    device: str = "cpu"
    # Steps that each process times.
    steps: int = 5
    # Folder for the photographs that `input` reads.
    photographs: str = "runs/bench/photographs"

    def ours(self, benchmark: str, *options: str) -> list[str]:
        return [self.worker, "bench", benchmark, *options, "--json"]

    def peer(self, script: str, *options: str) -> list[str]:
        return [*self.python, f"tests/parity/{script}.py", *options]

    def step(self, *options: str, steps: int | None = None, threads: int = THREADS) -> list[str]:
        """Returns the options of a DiCO step at the paper's size: the same for both sides."""
        fixed = ["--batch", "8", "--beams", "5", "--vision", "vit-b-32", "--threads", str(threads)]
        return [*fixed, "--device", self.device, "--steps", str(steps or self.steps), *options]


def comparisons(setting: Setting) -> dict[str, Comparison]:
    """Returns all comparisons by their names in the summary."""
    ours, peer, step = setting.ours, setting.peer, setting.step
    identical = ["--max-length", "30", "--min-length", "30"]
    # Captions of random weights do not end, so the options force a typical length.
    natural = ["--max-length", "12", "--min-length", "12"]
    all_reduce = ["--world", "2", "--bytes", "160000000"]
    return {
        "step_identical": Comparison(
            IMAGES_PER_SECOND, 1.6, {"ours": ours("step", *step(*identical)), "peer": peer("step", *step(*identical))}
        ),
        "step_as_used": Comparison(
            IMAGES_PER_SECOND,
            8,
            {
                "ours": ours("step", *step(*natural, "--cached-features", "--vocabulary", "10000")),
                "peer": peer("step", *step(*natural)),
                "peer_30": peer("step", *step("--max-length", "30")),
            },
        ),
        "bf16": Comparison(
            IMAGES_PER_SECOND,
            1.5,
            {
                "ours": ours("step", *step(*identical, "--precision", "bf16")),
                "base": ours("step", *step(*identical, "--precision", "f32")),
            },
            further={"same_ranking": 0.95},
        ),
        "all_reduce": Comparison(
            BYTES_PER_SECOND,
            0.95,
            {"ours": ours("all-reduce", *all_reduce), "peer": peer("all_reduce", *all_reduce)},
            # The two processes share the cores.
            threads=1,
        ),
        "scaling": Comparison(
            IMAGES_PER_SECOND,
            1.8,
            {
                "ours": ours("step", *step(*identical, "--world", "2", threads=1)),
                "base": ours("step", *step(*identical, "--world", "1", threads=1)),
            },
            threads=1,
        ),
        "input": Comparison(
            IMAGES_PER_CORE_SECOND,
            2,
            {
                "ours": ours("input", "--threads", "1", setting.photographs),
                "peer": peer("input", setting.photographs),
            },
            threads=1,
            preparation=[*setting.python, "tests/bench/photographs.py", setting.photographs],
        ),
        "memory": Comparison(
            # Memory reaches its peak in the first steps.
            PEAK_MEMORY,
            1,
            {"ours": ours("step", *step(steps=1)), "peer": peer("step", *step(steps=1))},
        ),
    }


# Comparisons that also run on GPUs.
MEASURED_ON_GPUS = {"step_identical", "step_as_used", "bf16"}


def reason_not_measured(name: str, setting: Setting, instructions: dict[str, bool]) -> str | None:
    """Returns the reason why a comparison cannot run here; None if it can."""
    if setting.device != "cpu":
        return None if name in MEASURED_ON_GPUS else "it runs on CPUs only: omit --device"
    if name == "bf16" and not (instructions["avx512_bf16"] or instructions["amx_bf16"]):
        return "this processor has neither AMX-BF16 nor AVX512-BF16"
    return None
