"""What is measured beside what: the commands of all sides, and the bounds that were set."""

from dataclasses import dataclass, field

# Of each process that computes, unless several share the cores.
THREADS = 2


@dataclass(frozen=True)
class Measure:
    """A number that the commands print."""

    field: str
    unit: str
    # So many of what is printed are one of the unit.
    scale: float = 1
    # Whether ours is to be less than so many times the other, not at least.
    below: bool = False

    def met(self, ratio: float, bound: float) -> bool:
        return ratio < bound if self.below else ratio >= bound


SPEED = Measure("images_per_s", "images/s")
SPEED_OF_A_CORE = Measure("images_per_core_s", "images/s a core")
TRANSFER = Measure("bytes_per_s", "MB/s", scale=1e6)
MEMORY = Measure("peak_memory_bytes", "MiB", scale=2**20, below=True)


@dataclass(frozen=True)
class Comparison:
    """Commands that are run in turn. `ours` is compared with `peer` or `base`; with what else there is for information."""

    measure: Measure
    bound: float
    sides: dict[str, list[str]]
    threads: int = THREADS
    # Bounds of what else ours prints: at least so much.
    further: dict[str, float] = field(default_factory=dict)
    # What has to be done before.
    preparation: list[str] | None = None

    @property
    def other(self) -> str:
        return "peer" if "peer" in self.sides else "base"


@dataclass(frozen=True)
class Setting:
    """Where and how long it is measured."""

    worker: str
    # How the Python of the peers is started.
    python: list[str]
    device: str = "cpu"
    # Steps that are timed in each process.
    steps: int = 5
    # Where the photographs are put that are read.
    photographs: str = "runs/bench/photographs"

    def ours(self, what: str, *options: str) -> list[str]:
        return [self.worker, "bench", what, *options, "--json"]

    def peer(self, script: str, *options: str) -> list[str]:
        return [*self.python, f"tests/parity/{script}.py", *options]

    def step(self, *options: str, steps: int | None = None, threads: int = THREADS) -> list[str]:
        """Of a step of DiCO with the paper's batch, beams and tower: the same for both sides."""
        fixed = ["--batch", "8", "--beams", "5", "--vision", "vit-b-32", "--threads", str(threads)]
        return [*fixed, "--device", self.device, "--steps", str(steps or self.steps), *options]


def comparisons(setting: Setting) -> dict[str, Comparison]:
    """All of them, by their names in the summary."""
    ours, peer, step = setting.ours, setting.peer, setting.step
    identical = ["--max-length", "30", "--min-length", "30"]
    # Random weights do not end captions: their natural length has to be forced.
    natural = ["--max-length", "12", "--min-length", "12"]
    all_reduce = ["--world", "2", "--bytes", "160000000"]
    return {
        "step_identical": Comparison(
            SPEED, 1.6, {"ours": ours("step", *step(*identical)), "peer": peer("step", *step(*identical))}
        ),
        "step_as_used": Comparison(
            SPEED,
            8,
            {
                "ours": ours("step", *step(*natural, "--cached-features", "--vocabulary", "10000")),
                "peer": peer("step", *step(*natural)),
                "peer_30": peer("step", *step("--max-length", "30")),
            },
        ),
        "bf16": Comparison(
            SPEED,
            1.5,
            {
                "ours": ours("step", *step(*identical, "--precision", "bf16")),
                "base": ours("step", *step(*identical, "--precision", "f32")),
            },
            further={"same_ranking": 0.95},
        ),
        "all_reduce": Comparison(
            TRANSFER,
            0.95,
            {"ours": ours("all-reduce", *all_reduce), "peer": peer("all_reduce", *all_reduce)},
            # Two processes share the cores.
            threads=1,
        ),
        "scaling": Comparison(
            SPEED,
            1.8,
            {
                "ours": ours("step", *step(*identical, "--world", "2", threads=1)),
                "base": ours("step", *step(*identical, "--world", "1", threads=1)),
            },
            threads=1,
        ),
        "input": Comparison(
            SPEED_OF_A_CORE,
            2,
            {
                "ours": ours("input", "--threads", "1", setting.photographs),
                "peer": peer("input", setting.photographs),
            },
            threads=1,
            preparation=[*setting.python, "tests/bench/photographs.py", setting.photographs],
        ),
        "memory": Comparison(
            # Memory is at its peak after the first steps.
            MEMORY,
            1,
            {"ours": ours("step", *step(steps=1)), "peer": peer("step", *step(steps=1))},
        ),
    }


# What a GPU has a part in.
ON_GPUS = {"step_identical", "step_as_used", "bf16"}


def unmeasurable(name: str, setting: Setting, instructions: dict[str, bool]) -> str | None:
    """Why it cannot be measured here, if it cannot."""
    if setting.device != "cpu":
        return None if name in ON_GPUS else "it is measured without --device"
    if name == "bf16" and not (instructions["avx512_bf16"] or instructions["amx_bf16"]):
        return "this processor has neither AMX-BF16 nor AVX512-BF16"
    return None
