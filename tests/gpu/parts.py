"""What is proved, in order of worth: a command each, how long it may take, and what its output says."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from layout import ROOT, Layout
from processes import Failed, printed_object

# Threads of programs whose work is on a GPU.
THREADS = 4


@dataclass(frozen=True)
class Part:
    """A command that proves something by ending well, and by what it prints."""

    name: str
    command: list[str]
    # Seconds.
    limit: float
    # Figures, from what it printed; raises Failed where that does not show that all was done.
    read: Callable[[str], dict] = printed_object
    environment: dict[str, str] = field(default_factory=dict)
    # Why it is not run, if it is not.
    reason: str | None = None


@dataclass(frozen=True)
class Setting:
    """Where it is proved, and how thoroughly."""

    layout: Layout
    device: str
    is_short: bool = False
    # Why there is no peer, if there is none.
    no_peer: str | None = None
    # Why whole steps are not timed with 16-bit products, if they are not.
    no_bf16: str | None = None

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def limit(self, seconds: float) -> float:
        """Of a part that takes up to so long on a GPU: a few cores need more."""
        return seconds if self.is_gpu else 10 * seconds


# What is tested on the device, by modules; of the worker's other unit tests none computes.
MODULES = [
    "captioner::", "clip::", "prefix_tree::", "golden::", "nn::", "objective::", "optimizer::", "tensors::", "trainer::state::",
]  # fmt: skip
# In the names of tests of 16-bit products.
SIXTEEN_BITS = "sixteen_bit"


def tests(setting: Setting, name: str, *options: str) -> Part:
    command = [setting.layout.program("unit-tests"), "--test-threads=1", "--nocapture", *options]
    environment = setting.layout.for_programs(THREADS) | {"DICO_TEST_DEVICE": setting.device}
    return Part(name, command, setting.limit(90), test_results, environment)


def test_results(text: str) -> dict:
    """Of Rust's test harness, with the differences that tests print."""
    result = re.search(r"^test result: ok\. (\d+) passed; 0 failed;", text, re.MULTILINE)
    if result is None or result[1] == "0":
        failed = re.findall(r"^    (\S+)$", text, re.MULTILINE)
        raise Failed(f"not all tests passed: {', '.join(sorted(set(failed))) or 'none was run to its end'}")
    differences: dict[str, float] = {}
    for what, value in re.findall(r"^(?:.*\.\.\. )?(.+): at most (\S+) apart, \S+ allowed$", text, re.MULTILINE):
        # Of gradients and updates there is one for each parameter.
        group = re.sub(r"(gradient|updated) of .*", r"\1", what)
        differences[group] = max(differences.get(group, 0.0), float(value))
    return {"passed": int(result[1]), "largest_differences": differences}


def collectives(setting: Setting) -> list[Part]:
    """NCCL between one and two ranks, of which one is killed, hangs, or does not come; on a CPU Gloo."""
    programs = setting.layout.for_programs(THREADS)
    if setting.is_gpu:
        return [Part("nccl", [setting.layout.program("nccl")], setting.limit(90), nccl_figures, programs)]
    reason = "it needs a GPU: gloo takes its place"
    nccl = Part("nccl", [], 0, reason=reason)
    gloo = tests(setting, "gloo", "collective::gloo")
    size = "400000" if setting.is_short else "160000000"
    worker = setting.layout.program("worker")
    command = [worker, "bench", "all-reduce", "--world", "2", "--bytes", size, "--threads", "1", "--json"]
    return [nccl, gloo, Part("gloo_all_reduce", command, setting.limit(20), environment=programs)]


def nccl_figures(text: str) -> dict:
    if skipped := re.search(r"^skipped.*", text, re.MULTILINE):
        raise Failed(skipped[0])
    def seconds(pattern: str) -> list[float]:
        return [float(value) for value in re.findall(pattern, text)]

    figures = {
        "meet_s": seconds(r"met in ([\d.]+) s"),
        "meet_again_s": seconds(r"met again in ([\d.]+) s"),
        "all_reduce_of_160_MB_s": seconds(r"of 2: an all-reduce of 160 MB takes ([\d.]+) s"),
        "killed_peer_noticed_after_s": seconds(r"a killed peer: broken after ([\d.]+) s"),
        "hanging_peer_given_up_after_s": seconds(r"a hanging peer: broken after ([\d.]+) s"),
    }
    if missing := [name for name, values in figures.items() if not values]:
        raise Failed(f"this was not said: {', '.join(missing)}")
    return figures


def small_world(setting: Setting) -> Part:
    script = [sys.executable, "-B", str(ROOT / "tests/gpu/world.py")]
    folder = ["--programs", str(setting.layout.programs), "--device", setting.device]
    short = ["--short"] if setting.is_short else []
    return Part("world", [*script, *folder, *short], setting.limit(120), environment=setting.layout.for_programs(1))


def steps(setting: Setting) -> list[Part]:
    """A step of DiCO at the paper's size, ours and the peer's: identical work, and as each is used."""
    identical = ["--max-length", "30", "--min-length", "30"]
    # Random weights do not end captions: their natural length has to be forced.
    natural = ["--max-length", "12", "--min-length", "12"]
    kinds = {
        "identical": (identical, identical),
        "as_used": ([*natural, "--cached-features", "--vocabulary", "10000"], natural),
    }
    # On a CPU a step of 64 images takes minutes, and shows nothing that one of 8 does not.
    batches = [2] if setting.is_short else [8, 64] if setting.is_gpu else [8]
    chosen = ["identical"] if setting.is_short else list(kinds)
    count = 1 if setting.is_short or not setting.is_gpu else 10
    parts = []
    for batch in batches:
        for kind in chosen:
            for precision in ("f32", "bf16"):
                our_options, peer_options = kinds[kind]
                fixed = ["--batch", str(batch), "--beams", "5", "--vision", "vit-b-32", "--threads", str(THREADS)]
                fixed += ["--device", setting.device, "--steps", str(count), "--precision", precision]
                name, limit = f"step_{precision}_{batch}_{kind}", setting.limit(45)
                worker = [setting.layout.program("worker"), "bench", "step", *fixed, *our_options, "--json"]
                script = [sys.executable, "-W", "ignore", str(ROOT / "tests/parity/step.py"), *fixed, *peer_options]
                reason = setting.no_bf16 if precision == "bf16" else None
                ours, theirs = setting.layout.for_programs(THREADS), setting.layout.for_peer(THREADS)
                parts.append(Part(name, worker, limit, step_figures, ours, reason))
                parts.append(Part(f"{name}_peer", script, limit, step_figures, theirs, reason or setting.no_peer))
    return parts


def step_figures(text: str) -> dict:
    found = printed_object(text)
    speed = found.get("images_per_s")
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not speed > 0:
        raise Failed(f"a positive number was expected as `images_per_s`: {speed}")
    return found


def traces(setting: Setting) -> list[Part]:
    """What a GPU does in a step as used, and for how much of it."""
    chosen = []
    for batch in [2] if setting.is_short or not setting.is_gpu else [8, 64]:
        script = [sys.executable, "-B", str(ROOT / "tests/gpu/step_trace.py"), "--worker", setting.layout.program("worker")]
        options = ["--batch", str(batch), "--max-length", "12", "--min-length", "12", "--cached-features", "--vocabulary", "10000"]
        options += ["--threads", str(THREADS), "--device", setting.device, "--steps", "10" if setting.is_gpu else "1"]
        chosen.append(Part(f"trace_{batch}", [*script, *options], setting.limit(30), environment=setting.layout.for_programs(THREADS)))
    return chosen


def parts(setting: Setting) -> list[Part]:
    """All of them, in order of worth."""
    return [
        tests(setting, "golden_f32", *MODULES, "--skip", SIXTEEN_BITS),
        tests(setting, "golden_bf16", SIXTEEN_BITS),
        tests(setting, "failed_capture", "--ignored", "nn::replay::"),
        *collectives(setting),
        small_world(setting),
        *steps(setting),
        *traces(setting),
    ]
