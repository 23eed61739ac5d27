"""Tests the GPU checks' own code without a GPU and without programs. `make test` runs it."""

import array
import contextlib
import io
import json
import pathlib
import struct
import sys
import tarfile
import tempfile
import time
import unittest
import unittest.mock
import zipfile

import gpu
import layout
import step_trace
import training_runs
from checks import Check, Setting, parse_nccl_figures, all_checks, parse_step_figures, parse_test_results
from layout import Layout
from processes import CommandError

LAYOUT = Layout(pathlib.Path("/programs"), pathlib.Path("/libtorch"), None)
PASSED_OUTPUT = """
running 2 tests
test clip::golden::towers ... vit hidden: at most 1.2e-6 apart, 1.0e-4 allowed
vit images: at most 3.0e-7 apart, 1.0e-4 allowed
ok
test objective::dico::golden::step ... gradient of a: at most 2.0e-7 apart, 1.0e-4 allowed
gradient of b: at most 1.0e-6 apart, 1.0e-4 allowed
ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 150 filtered out; finished in 0.52s
"""
FAILED_OUTPUT = """
failures:

failures:
    clip::golden::towers

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 150 filtered out; finished in 0.52s
"""
NCCL_OUTPUT = """\
rank 0 of 1 met in 0.41 s
rank 1 of 2: an all-reduce of 160 MB takes 0.0912 s, the median of ten
a killed peer: broken after 0.001 s: collective failed
rank 0 met again in 1.02 s
a hanging peer: broken after 0.002 s: the generation was abandoned
"""


def script_check(name: str, text: str, limit: float = 60, **more: object) -> Check:
    return Check(name, [sys.executable, "-c", text], limit, **more)


def run_checks(*selected: Check, seconds_left: float = 600) -> tuple[bool, dict, str]:
    """Runs checks. Returns whether none failed, the summary, and the table."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as table:
        out = pathlib.Path(folder)
        passed = gpu.run_checks(list(selected), time.monotonic() + seconds_left, out, {"device": "cpu"})
        return passed, json.loads((out / "summary.json").read_text()), table.getvalue()


class Driver(unittest.TestCase):
    def test_a_failed_check_does_not_stop_the_others(self) -> None:
        passed, summary, table = run_checks(
            script_check("dies", "import sys; print('half'); sys.exit('no memory')"),
            script_check("hangs", "import time; print('begun', flush=True); time.sleep(1000)", limit=1),
            script_check("is silent", "pass"),
            script_check("prints no object", "print([1])"),
            Check("is missing", ["/no/such/program"], 60),
            script_check("works", "print('{\"images_per_s\": 2}')"),
        )
        self.assertFalse(passed)
        statuses = {name: check["status"] for name, check in summary["parts"].items()}
        self.assertEqual(statuses.pop("works"), "passed")
        self.assertEqual(set(statuses.values()), {"failed"})
        self.assertEqual(summary["failed"], list(statuses))
        reasons = {name: summary["parts"][name]["reason"] for name in statuses}
        self.assertEqual(reasons["dies"], "exited with status 1")
        self.assertEqual(summary["parts"]["dies"]["last_lines"], ["half", "no memory"])
        self.assertEqual(reasons["hangs"], "timeout: did not exit within 1 s")
        self.assertEqual(summary["parts"]["hangs"]["last_lines"], ["begun"])
        self.assertIn("nothing", reasons["is silent"])
        self.assertIn("[1]", reasons["prints no object"])
        self.assertIn("/no/such/program", reasons["is missing"])
        self.assertIn("no memory", table)

    def test_a_skipped_check_is_no_failure(self) -> None:
        passed, summary, table = run_checks(Check("nccl", [], 0, reason="it needs a GPU"), script_check("works", "print('{}')"))
        self.assertTrue(passed)
        self.assertEqual(summary["parts"]["nccl"], {"status": "skipped", "reason": "it needs a GPU"})
        self.assertIn("it needs a GPU", table)

    def test_a_check_that_does_not_start_in_time_fails(self) -> None:
        passed, summary, _ = run_checks(script_check("works", "print('{}')"), seconds_left=0)
        self.assertEqual((passed, summary["parts"]["works"]["status"]), (False, "failed"))

    def test_a_check_is_limited_to_the_remaining_time(self) -> None:
        passed, summary, _ = run_checks(script_check("hangs", "import time; time.sleep(1000)", limit=900), seconds_left=2)
        self.assertFalse(passed)
        self.assertRegex(summary["parts"]["hangs"]["reason"], r"did not exit within [12] s")

    def test_figures_of_failed_checks_are_kept(self) -> None:
        _, summary, _ = run_checks(script_check("differs", "import sys; print('{\"largest_difference\": 1.0}'); sys.exit(1)"))
        check = summary["parts"]["differs"]
        self.assertEqual((check["status"], check["figures"]), ("failed", {"largest_difference": 1.0}))

    def test_steps_are_compared_with_the_peers(self) -> None:
        steps = [script_check(name, f"print('{{\"images_per_s\": {speed}}}')") for name, speed in (("a", 6), ("a_peer", 2), ("b", 1))]
        _, summary, table = run_checks(*steps)
        self.assertEqual(summary["ratios"], {"a": 3.0})
        self.assertIn("a: 3.00 times", table)


class Checks(unittest.TestCase):
    def test_on_a_gpu_no_check_is_skipped(self) -> None:
        selected = all_checks(Setting(LAYOUT, "cuda:0"))
        self.assertEqual([check.name for check in selected if check.reason], [])
        self.assertEqual([check.name for check in selected][:4], ["golden_f32", "golden_bf16", "failed_capture", "nccl"])
        self.assertEqual(len(selected), 5 + 16 + 2)
        for check in selected:
            self.assertTrue("cuda:0" in check.command or check.environment.get("DICO_TEST_DEVICE") == "cuda:0" or check.name == "nccl")

    def test_on_a_cpu_gloo_replaces_nccl(self) -> None:
        selected = {check.name: check for check in all_checks(Setting(LAYOUT, "cpu", peer_missing_reason="no torch"))}
        self.assertIn("GPU", selected["nccl"].reason)
        self.assertIsNone(selected["gloo"].reason)
        self.assertEqual(selected["step_f32_8_identical_peer"].reason, "no torch")
        self.assertIsNone(selected["step_f32_8_identical"].reason)

    def test_16_bit_steps_are_skipped_on_processors_without_16_bit_products(self) -> None:
        selected = {check.name: check for check in all_checks(Setting(LAYOUT, "cpu", bf16_missing_reason="it has no instructions"))}
        self.assertEqual(selected["step_bf16_8_identical"].reason, "it has no instructions")
        self.assertIsNone(selected["step_f32_8_identical"].reason)
        self.assertIsNone(selected["golden_bf16"].reason)

    def test_both_sides_get_the_same_options_for_identical_work(self) -> None:
        selected = {check.name: check.command for check in all_checks(Setting(LAYOUT, "cuda:0"))}
        ours, peer = selected["step_bf16_64_identical"], selected["step_bf16_64_identical_peer"]
        self.assertEqual(ours[3:-1], peer[4:])

    def test_programs_do_not_get_the_variables_of_a_launcher(self) -> None:
        with unittest.mock.patch.dict("os.environ", {"RANK": "3", "LIBTORCH": "/x", "DICO_JOIN_TOKEN": "t", "LD_LIBRARY_PATH": "/y"}):
            environment = LAYOUT.for_programs(2)
        self.assertEqual({"RANK", "LIBTORCH", "DICO_JOIN_TOKEN"} & environment.keys(), set())
        self.assertEqual((environment["LD_LIBRARY_PATH"], environment["OMP_NUM_THREADS"]), ("/libtorch:/y", "2"))


class Outputs(unittest.TestCase):
    def test_differences_of_unit_tests_are_parsed(self) -> None:
        differences = {"vit hidden": 1.2e-6, "vit images": 3.0e-7, "gradient": 1.0e-6}
        self.assertEqual(parse_test_results(PASSED_OUTPUT), {"passed": 2, "largest_differences": differences})

    def test_failed_unit_tests_are_named(self) -> None:
        with self.assertRaisesRegex(CommandError, "clip::golden::towers"):
            parse_test_results(FAILED_OUTPUT)
        for text in ("", PASSED_OUTPUT.replace("2 passed", "0 passed")):
            with self.assertRaisesRegex(CommandError, "no result"):
                parse_test_results(text)

    def test_incomplete_nccl_output_is_an_error(self) -> None:
        figures = parse_nccl_figures(NCCL_OUTPUT)
        self.assertEqual((figures["meet_s"], figures["meet_again_s"]), ([0.41], [1.02]))
        with self.assertRaisesRegex(CommandError, "killed_peer"):
            parse_nccl_figures(NCCL_OUTPUT.replace("killed", "sleeping"))
        # The test binary succeeds on a machine without a GPU.
        with self.assertRaisesRegex(CommandError, "no GPU here"):
            parse_nccl_figures("skipped, there is no GPU here\n")

    def test_speeds_must_be_positive(self) -> None:
        for value in ("0", "null", '"4"', "true"):
            with self.assertRaisesRegex(CommandError, "images_per_s"):
                parse_step_figures(f'{{"images_per_s": {value}}}')


class Traces(unittest.TestCase):
    def test_a_gpu_is_busy_while_at_least_one_kernel_runs(self) -> None:
        self.assertEqual(step_trace.union_length([]), 0)
        self.assertEqual(step_trace.union_length([(5, 6), (0, 2), (1, 3), (1, 1.5)]), 4)

    def test_events_are_counted_by_category(self) -> None:
        def event(cat: str, name: str, ts: float = 0, dur: float = 1) -> dict:
            return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

        figures = step_trace.trace_figures(
            [
                event("kernel", "gemm", 0, 300),
                event("kernel", "gemm", 200, 300),
                event("kernel", "add", 700, 50),
                event("gpu_memcpy", "Memcpy HtoD", 900, 50),
                event("cuda_runtime", "cudaLaunchKernel"),
                event("cuda_driver", "cuLaunchKernelEx"),
                event("cuda_runtime", "cudaGraphLaunch"),
                event("cuda_runtime", "cudaStreamSynchronize"),
                event("cpu_op", "aten::add"),
                {"ph": "M", "name": "process_name"},
            ],
            step_s=0.001,
        )
        self.assertEqual(figures.pop("longest_ms"), {"gemm": 0.6, "add": 0.05, "Memcpy HtoD": 0.05})
        counts = {"kernels": 3, "copies": 1, "launches": 2, "graphs": 1, "waits": 1, "operations": 1}
        self.assertEqual(figures, {"step_s": 0.001, "busy_s": 0.0006, "busy_share": 0.6} | counts)


class Runs(unittest.TestCase):
    def evaluate(self, **changed: object) -> list[str]:
        """Returns the problems of runs that are equal except for `changed`."""
        names = ["cpu", "first", "again", "two", "first_16", "again_16"]
        hashes = dict.fromkeys(names, "a") | {"first_16": "b", "again_16": "b"}
        parameters = {name: {"w": array.array("f", [1.0, 2.0])} for name in names}
        captions = {name: {"evaluation.json": [(1, "a red circle")]} for name in names}
        hashes |= changed.get("hashes", {})
        parameters |= changed.get("parameters", {})
        captions |= changed.get("captions", {})
        return training_runs.evaluate(hashes, parameters, captions)[1]

    def test_similar_runs_have_no_problems(self) -> None:
        self.assertEqual(self.evaluate(), [])
        similar = {"first": {"w": array.array("f", [1.000001, 2.0])}, "first_16": {"w": array.array("f", [1.01, 2.0])}}
        self.assertEqual(self.evaluate(parameters=similar), [])

    def test_every_kind_of_difference_is_reported(self) -> None:
        values = {name: {"w": array.array("f", [1.0, 2.5])} for name in ("cpu", "two", "first_16")}
        for name, problem in (("cpu", "from the CPU's"), ("two", "two workers"), ("first_16", "differ from 32-bit")):
            problems = self.evaluate(parameters={name: values[name]})
            self.assertTrue(len(problems) == 1 and problem in problems[0], problems)
        self.assertIn("a repeated run", self.evaluate(hashes={"again": "c"})[0])
        self.assertIn("repeated 16-bit run", self.evaluate(hashes={"again_16": "c"})[0])
        self.assertIn("the same bits", self.evaluate(hashes={"first_16": "a", "again_16": "a"})[0])
        self.assertIn("captions", self.evaluate(captions={"cpu": {}})[0])
        none = {name: {} for name in ("cpu", "first")}
        self.assertIn("captions", self.evaluate(captions=none)[0])

    def test_nan_values_are_reported(self) -> None:
        broken = {"w": array.array("f", [float("nan"), 2.0])}
        self.assertTrue(self.evaluate(parameters={"cpu": broken}))
        self.assertTrue(self.evaluate(parameters={"first_16": broken}))

    def test_different_tensor_names_are_an_error(self) -> None:
        with self.assertRaisesRegex(training_runs.RunError, "'v'"):
            self.evaluate(parameters={"cpu": {"v": array.array("f", [1.0])}})

    def test_safetensors_files_are_read(self) -> None:
        header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "b"}}
        text = json.dumps(header).encode()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.safetensors")
            path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<ff", 1.5, -2.0))
            self.assertEqual(training_runs.read_safetensors(path), {"w": array.array("f", [1.5, -2.0])})


class Unpacking(unittest.TestCase):
    def test_programs_and_modules_are_unpacked(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            carried, into = pathlib.Path(folder, "gpu"), pathlib.Path(folder, "into")
            (carried / "wheels").mkdir(parents=True)
            (carried / "worker").write_text("#!/bin/sh\n")
            (carried / "worker").chmod(0o755)
            with tarfile.open(carried / "programs.tar.xz", "w:xz") as archive:
                archive.add(carried / "worker", "worker")
            with zipfile.ZipFile(carried / "wheels/peer-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr("peer/__init__.py", "")
            programs, peer = layout.unpack(carried, into)
            self.assertTrue((programs / "worker").stat().st_mode & 0o100)
            self.assertTrue((peer / "peer/__init__.py").is_file())

    def test_missing_files_are_an_error_that_names_the_remedy(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(CommandError, "tests/gpu/build"):
                layout.unpack(pathlib.Path(folder), pathlib.Path(folder, "into"))

    def test_a_gpu_requires_the_cuda_library(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cpu, cuda = pathlib.Path(folder, "cpu"), pathlib.Path(folder, "torch")
            for lib in (cpu / "lib", cuda / "lib"):
                lib.mkdir(parents=True)
                (lib / "libtorch_cpu.so").touch()
            (cuda / "lib/libtorch_cuda.so").touch()
            (cuda / "version.py").write_text("from typing import Optional\n__version__ = '2.11.0+cu126'\n")
            self.assertEqual(layout.libtorch("cpu", {"LIBTORCH": str(cpu)}, cuda), (cpu / "lib").resolve())
            self.assertEqual(layout.libtorch("cuda:0", {"LIBTORCH": str(cpu)}, cuda), (cuda / "lib").resolve())
            self.assertEqual(layout.pytorch_version(cuda), "2.11.0+cu126")
            with self.assertRaisesRegex(CommandError, "libtorch_cuda.so"):
                layout.libtorch("cuda:0", {"LIBTORCH": str(cpu)}, None)
        self.assertIsNone(layout.pytorch_version(None))


if __name__ == "__main__":
    unittest.main()
