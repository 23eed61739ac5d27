"""The checks in order of importance: commands, time limits, and parsers of their output."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from layout import ROOT, Layout
from processes import CommandError, parse_json_object

# Threads of programs that compute on a GPU.
THREADS = 4


@dataclass(frozen=True)
class Check:
    """A command that must succeed, and whose output has figures."""

    name: str
    command: list[str]
    # Seconds.
    limit: float
    # Parses the figures from the output; raises CommandError if the output is incomplete.
    read: Callable[[str], dict] = parse_json_object
    environment: dict[str, str] = field(default_factory=dict)
    # Why the check is skipped; None if it runs.
    reason: str | None = None


@dataclass(frozen=True)
class Setting:
    """Device, programs and size of the checks."""

    layout: Layout
    device: str
    is_short: bool = False
    # Why there is no peer; None if there is one.
    peer_missing_reason: str | None = None
    # Why steps with 16-bit products are not timed; None if they are.
    bf16_missing_reason: str | None = None

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def limit(self, seconds: float) -> float:
        """Returns the time limit of a check that takes up to `seconds` on a GPU."""
        return seconds if self.is_gpu else 10 * seconds


# Modules whose unit tests compute on the device.
MODULES = [
    "captioner::", "clip::", "prefix_tree::", "testing::golden_files::", "nn::", "objective::", "optimizer::",
    "tensor_conversion::", "trainer::step::", "trainer::training_state::",
]  # fmt: skip
# Part of the names of tests of 16-bit products.
SIXTEEN_BITS = "sixteen_bit"


def unit_tests(setting: Setting, name: str, *options: str) -> Check:
    command = [setting.layout.program("unit-tests"), "--test-threads=1", "--nocapture", *options]
    environment = setting.layout.for_programs(THREADS) | {"DICO_TEST_DEVICE": setting.device}
    return Check(name, command, setting.limit(90), parse_test_results, environment)


def parse_test_results(text: str) -> dict:
    """Parses the output of Rust's test harness, with the differences that tests print."""
    result = re.search(r"^test result: ok\. (\d+) passed; 0 failed;", text, re.MULTILINE)
    if result is None or result[1] == "0":
        failed = re.findall(r"^    (\S+)$", text, re.MULTILINE)
        raise CommandError(f"not all tests passed: {', '.join(sorted(set(failed))) or 'no result was printed'}")
    differences: dict[str, float] = {}
    for name, value in re.findall(r"^(?:.*\.\.\. )?(.+): at most (\S+) apart, \S+ allowed$", text, re.MULTILINE):
        # Gradients and updates have a line for each parameter.
        group = re.sub(r"(gradient|updated) of .*", r"\1", name)
        differences[group] = max(differences.get(group, 0.0), float(value))
    return {"passed": int(result[1]), "largest_differences": differences}


def collective_checks(setting: Setting) -> list[Check]:
    """Returns checks of NCCL with one and two ranks, one of which is killed, hangs or is absent.

    On a CPU they test Gloo.
    """
    programs = setting.layout.for_programs(THREADS)
    if setting.is_gpu:
        return [Check("nccl", [setting.layout.program("nccl")], setting.limit(90), parse_nccl_figures, programs)]
    reason = "it needs a GPU: gloo replaces it"
    nccl = Check("nccl", [], 0, reason=reason)
    gloo = unit_tests(setting, "gloo", "collective::gloo")
    size = "400000" if setting.is_short else "160000000"
    worker = setting.layout.program("worker")
    command = [worker, "bench", "all-reduce", "--world", "2", "--bytes", size, "--threads", "1", "--json"]
    return [nccl, gloo, Check("gloo_all_reduce", command, setting.limit(20), environment=programs)]


def parse_nccl_figures(text: str) -> dict:
    if skipped := re.search(r"^skipped.*", text, re.MULTILINE):
        raise CommandError(skipped[0])
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
        raise CommandError(f"the output lacks: {', '.join(missing)}")
    return figures


def training_run_check(setting: Setting) -> Check:
    script = [sys.executable, "-B", str(ROOT / "tests/gpu/training_runs.py")]
    folder = ["--programs", str(setting.layout.programs), "--device", setting.device]
    short = ["--short"] if setting.is_short else []
    return Check("world", [*script, *folder, *short], setting.limit(120), environment=setting.layout.for_programs(1))


def step_checks(setting: Setting) -> list[Check]:
    """Returns timings of DiCO steps at the paper's size, of ours and of the peer.

    Both sides do identical work, or each works as in practice.
    """
    identical = ["--max-length", "30", "--min-length", "30"]
    # Captions of random weights do not end, so the options force a typical length.
    natural = ["--max-length", "12", "--min-length", "12"]
    kinds = {
        "identical": (identical, identical),
        "as_used": ([*natural, "--cached-features", "--vocabulary", "10000"], natural),
    }
    # On a CPU a step of 64 images takes minutes and has the same ratio as one of 8.
    batches = [2] if setting.is_short else [8, 64] if setting.is_gpu else [8]
    selected = ["identical"] if setting.is_short else list(kinds)
    count = 1 if setting.is_short or not setting.is_gpu else 10
    checks = []
    for batch in batches:
        for kind in selected:
            for precision in ("f32", "bf16"):
                our_options, peer_options = kinds[kind]
                fixed = ["--batch", str(batch), "--beams", "5", "--vision", "vit-b-32", "--threads", str(THREADS)]
                fixed += ["--device", setting.device, "--steps", str(count), "--precision", precision]
                name, limit = f"step_{precision}_{batch}_{kind}", setting.limit(45)
                worker = [setting.layout.program("worker"), "bench", "step", *fixed, *our_options, "--json"]
                script = [sys.executable, "-W", "ignore", str(ROOT / "tests/parity/step.py"), *fixed, *peer_options]
                reason = setting.bf16_missing_reason if precision == "bf16" else None
                ours, theirs = setting.layout.for_programs(THREADS), setting.layout.for_peer(THREADS)
                checks.append(Check(name, worker, limit, parse_step_figures, ours, reason))
                checks.append(Check(f"{name}_peer", script, limit, parse_step_figures, theirs, reason or setting.peer_missing_reason))
    return checks


def parse_step_figures(text: str) -> dict:
    figures = parse_json_object(text)
    speed = figures.get("images_per_s")
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not speed > 0:
        raise CommandError(f"expected a positive number as `images_per_s`: {speed}")
    return figures


def trace_checks(setting: Setting) -> list[Check]:
    """Returns traces of a step: the activity of the GPU."""
    selected = []
    for batch in [2] if setting.is_short or not setting.is_gpu else [8, 64]:
        script = [sys.executable, "-B", str(ROOT / "tests/gpu/step_trace.py"), "--worker", setting.layout.program("worker")]
        options = ["--batch", str(batch), "--max-length", "12", "--min-length", "12", "--cached-features", "--vocabulary", "10000"]
        options += ["--threads", str(THREADS), "--device", setting.device, "--steps", "10" if setting.is_gpu else "1"]
        selected.append(Check(f"trace_{batch}", [*script, *options], setting.limit(30), environment=setting.layout.for_programs(THREADS)))
    return selected


def all_checks(setting: Setting) -> list[Check]:
    """Returns all checks in order of importance."""
    return [
        unit_tests(setting, "golden_f32", *MODULES, "--skip", SIXTEEN_BITS),
        unit_tests(setting, "golden_bf16", SIXTEEN_BITS),
        unit_tests(setting, "failed_capture", "--ignored", "nn::cuda_graph::"),
        *collective_checks(setting),
        training_run_check(setting),
        *step_checks(setting),
        *trace_checks(setting),
    ]
