"""What can be tested without a GPU and without programs. `make test` runs it."""

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
import world
from parts import Part, Setting, nccl_figures, parts, step_figures, test_results
from layout import Layout
from processes import Failed

LAYOUT = Layout(pathlib.Path("/programs"), pathlib.Path("/libtorch"), None)
WELL = """
running 2 tests
test clip::golden::towers ... vit hidden: at most 1.2e-6 apart, 1.0e-4 allowed
vit images: at most 3.0e-7 apart, 1.0e-4 allowed
ok
test objective::dico::golden::step ... gradient of a: at most 2.0e-7 apart, 1.0e-4 allowed
gradient of b: at most 1.0e-6 apart, 1.0e-4 allowed
ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 150 filtered out; finished in 0.52s
"""
ILL = """
failures:

failures:
    clip::golden::towers

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 150 filtered out; finished in 0.52s
"""
NCCL = """\
rank 0 of 1 met in 0.41 s
rank 1 of 2: an all-reduce of 160 MB takes 0.0912 s, the median of ten
a killed peer: broken after 0.001 s: collective failed
rank 0 met again in 1.02 s
a hanging peer: broken after 0.002 s: the generation was abandoned
"""


def script(name: str, text: str, limit: float = 60, **more: object) -> Part:
    return Part(name, [sys.executable, "-c", text], limit, **more)


def proved(*chosen: Part, left: float = 600) -> tuple[bool, dict, str]:
    """Whether none failed, the summary, and the table."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as table:
        out = pathlib.Path(folder)
        well = gpu.prove(list(chosen), time.monotonic() + left, out, {"device": "cpu"})
        return well, json.loads((out / "summary.json").read_text()), table.getvalue()


class Driver(unittest.TestCase):
    def test_what_fails_does_not_keep_the_rest_from_being_run(self) -> None:
        well, found, table = proved(
            script("dies", "import sys; print('half'); sys.exit('no memory')"),
            script("hangs", "import time; print('begun', flush=True); time.sleep(1000)", limit=1),
            script("is silent", "pass"),
            script("prints no object", "print([1])"),
            Part("is missing", ["/no/such/program"], 60),
            script("works", "print('{\"images_per_s\": 2}')"),
        )
        self.assertFalse(well)
        statuses = {name: part["status"] for name, part in found["parts"].items()}
        self.assertEqual(statuses.pop("works"), "passed")
        self.assertEqual(set(statuses.values()), {"failed"})
        self.assertEqual(found["failed"], list(statuses))
        reasons = {name: found["parts"][name]["reason"] for name in statuses}
        self.assertEqual(reasons["dies"], "ended with status 1")
        self.assertEqual(found["parts"]["dies"]["last_lines"], ["half", "no memory"])
        self.assertEqual(reasons["hangs"], "did not end in 1 s")
        self.assertEqual(found["parts"]["hangs"]["last_lines"], ["begun"])
        self.assertIn("nothing", reasons["is silent"])
        self.assertIn("[1]", reasons["prints no object"])
        self.assertIn("/no/such/program", reasons["is missing"])
        self.assertIn("no memory", table)

    def test_what_applies_nowhere_here_is_no_failure(self) -> None:
        well, found, table = proved(Part("nccl", [], 0, reason="it needs a GPU"), script("works", "print('{}')"))
        self.assertTrue(well)
        self.assertEqual(found["parts"]["nccl"], {"status": "skipped", "reason": "it needs a GPU"})
        self.assertIn("it needs a GPU", table)

    def test_what_is_not_begun_in_time_is_a_failure(self) -> None:
        well, found, _ = proved(script("works", "print('{}')"), left=0)
        self.assertEqual((well, found["parts"]["works"]["status"]), (False, "failed"))

    def test_a_part_has_no_more_time_than_is_left(self) -> None:
        well, found, _ = proved(script("hangs", "import time; time.sleep(1000)", limit=900), left=2)
        self.assertFalse(well)
        self.assertRegex(found["parts"]["hangs"]["reason"], r"did not end in [12] s")

    def test_figures_of_what_failed_are_kept(self) -> None:
        _, found, _ = proved(script("differs", "import sys; print('{\"largest_difference\": 1.0}'); sys.exit(1)"))
        part = found["parts"]["differs"]
        self.assertEqual((part["status"], part["figures"]), ("failed", {"largest_difference": 1.0}))

    def test_steps_are_compared_with_the_peers(self) -> None:
        steps = [script(name, f"print('{{\"images_per_s\": {speed}}}')") for name, speed in (("a", 6), ("a_peer", 2), ("b", 1))]
        _, found, table = proved(*steps)
        self.assertEqual(found["ratios"], {"a": 3.0})
        self.assertIn("a: 3.00 times", table)


class Parts(unittest.TestCase):
    def test_on_a_gpu_no_part_is_skipped(self) -> None:
        chosen = parts(Setting(LAYOUT, "cuda:0"))
        self.assertEqual([part.name for part in chosen if part.reason], [])
        self.assertEqual([part.name for part in chosen][:4], ["golden_f32", "golden_bf16", "failed_capture", "nccl"])
        self.assertEqual(len(chosen), 5 + 16 + 2)
        for part in chosen:
            self.assertTrue("cuda:0" in part.command or part.environment.get("DICO_TEST_DEVICE") == "cuda:0" or part.name == "nccl")

    def test_on_a_cpu_gloo_takes_the_place_of_nccl(self) -> None:
        chosen = {part.name: part for part in parts(Setting(LAYOUT, "cpu", no_peer="no torch"))}
        self.assertIn("GPU", chosen["nccl"].reason)
        self.assertIsNone(chosen["gloo"].reason)
        self.assertEqual(chosen["step_f32_8_identical_peer"].reason, "no torch")
        self.assertIsNone(chosen["step_f32_8_identical"].reason)

    def test_on_a_processor_without_16_bit_products_their_steps_are_not_timed(self) -> None:
        chosen = {part.name: part for part in parts(Setting(LAYOUT, "cpu", no_bf16="it has no instructions"))}
        self.assertEqual(chosen["step_bf16_8_identical"].reason, "it has no instructions")
        self.assertIsNone(chosen["step_f32_8_identical"].reason)
        self.assertIsNone(chosen["golden_bf16"].reason)

    def test_both_sides_of_identical_work_do_the_same(self) -> None:
        chosen = {part.name: part.command for part in parts(Setting(LAYOUT, "cuda:0"))}
        ours, peer = chosen["step_bf16_64_identical"], chosen["step_bf16_64_identical_peer"]
        self.assertEqual(ours[3:-1], peer[4:])

    def test_programs_do_not_listen_to_the_callers_launcher(self) -> None:
        with unittest.mock.patch.dict("os.environ", {"RANK": "3", "LIBTORCH": "/x", "DICO_JOIN_TOKEN": "t", "LD_LIBRARY_PATH": "/y"}):
            found = LAYOUT.for_programs(2)
        self.assertEqual({"RANK", "LIBTORCH", "DICO_JOIN_TOKEN"} & found.keys(), set())
        self.assertEqual((found["LD_LIBRARY_PATH"], found["OMP_NUM_THREADS"]), ("/libtorch:/y", "2"))


class Outputs(unittest.TestCase):
    def test_of_tests_the_differences_are_kept(self) -> None:
        differences = {"vit hidden": 1.2e-6, "vit images": 3.0e-7, "gradient": 1.0e-6}
        self.assertEqual(test_results(WELL), {"passed": 2, "largest_differences": differences})

    def test_tests_that_failed_are_named(self) -> None:
        with self.assertRaisesRegex(Failed, "clip::golden::towers"):
            test_results(ILL)
        for text in ("", WELL.replace("2 passed", "0 passed")):
            with self.assertRaisesRegex(Failed, "none"):
                test_results(text)

    def test_nccl_has_to_have_done_all(self) -> None:
        figures = nccl_figures(NCCL)
        self.assertEqual((figures["meet_s"], figures["meet_again_s"]), ([0.41], [1.02]))
        with self.assertRaisesRegex(Failed, "killed_peer"):
            nccl_figures(NCCL.replace("killed", "sleeping"))
        # It succeeds where there is no GPU.
        with self.assertRaisesRegex(Failed, "no GPU here"):
            nccl_figures("skipped, there is no GPU here\n")

    def test_speeds_are_positive(self) -> None:
        for value in ("0", "null", '"4"', "true"):
            with self.assertRaisesRegex(Failed, "images_per_s"):
                step_figures(f'{{"images_per_s": {value}}}')


class Traces(unittest.TestCase):
    def test_a_gpu_is_busy_while_at_least_one_kernel_runs(self) -> None:
        self.assertEqual(step_trace.covered([]), 0)
        self.assertEqual(step_trace.covered([(5, 6), (0, 2), (1, 3), (1, 1.5)]), 4)

    def test_events_are_counted_by_what_they_are(self) -> None:
        def event(cat: str, name: str, ts: float = 0, dur: float = 1) -> dict:
            return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

        found = step_trace.figures(
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
        self.assertEqual(found.pop("longest_ms"), {"gemm": 0.6, "add": 0.05, "Memcpy HtoD": 0.05})
        counts = {"kernels": 3, "copies": 1, "launches": 2, "graphs": 1, "waits": 1, "operations": 1}
        self.assertEqual(found, {"step_s": 0.001, "busy_s": 0.0006, "busy_share": 0.6} | counts)


class Runs(unittest.TestCase):
    def judged(self, **changed: object) -> list[str]:
        """What is wrong with runs that are alike but for what is changed."""
        names = ["cpu", "first", "again", "two", "first_16", "again_16"]
        hashes = dict.fromkeys(names, "a") | {"first_16": "b", "again_16": "b"}
        of = {name: {"w": array.array("f", [1.0, 2.0])} for name in names}
        said = {name: {"evaluation.json": [(1, "a red circle")]} for name in names}
        hashes |= changed.get("hashes", {})
        of |= changed.get("of", {})
        said |= changed.get("said", {})
        return world.judged(hashes, of, said)[1]

    def test_runs_that_are_alike_are_well(self) -> None:
        self.assertEqual(self.judged(), [])
        near = {"first": {"w": array.array("f", [1.000001, 2.0])}, "first_16": {"w": array.array("f", [1.01, 2.0])}}
        self.assertEqual(self.judged(of=near), [])

    def test_every_difference_is_found(self) -> None:
        values = {name: {"w": array.array("f", [1.0, 2.5])} for name in ("cpu", "two", "first_16")}
        for name, problem in (("cpu", "from the CPU's"), ("two", "two workers"), ("first_16", "further from 32")):
            found = self.judged(of={name: values[name]})
            self.assertTrue(len(found) == 1 and problem in found[0], found)
        self.assertIn("again", self.judged(hashes={"again": "c"})[0])
        self.assertIn("16 bits again", self.judged(hashes={"again_16": "c"})[0])
        self.assertIn("the bits of 32", self.judged(hashes={"first_16": "a", "again_16": "a"})[0])
        self.assertIn("captions", self.judged(said={"cpu": {}})[0])
        none = {name: {} for name in ("cpu", "first")}
        self.assertIn("captions", self.judged(said=none)[0])

    def test_what_is_no_number_is_near_nothing(self) -> None:
        broken = {"w": array.array("f", [float("nan"), 2.0])}
        self.assertTrue(self.judged(of={"cpu": broken}))
        self.assertTrue(self.judged(of={"first_16": broken}))

    def test_other_tensors_are_no_match(self) -> None:
        with self.assertRaisesRegex(world.Failed, "'v'"):
            self.judged(of={"cpu": {"v": array.array("f", [1.0])}})

    def test_safetensors_are_read(self) -> None:
        header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"a": "b"}}
        text = json.dumps(header).encode()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.safetensors")
            path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<ff", 1.5, -2.0))
            self.assertEqual(world.read(path), {"w": array.array("f", [1.5, -2.0])})


class Carried(unittest.TestCase):
    def test_programs_and_modules_are_laid_out(self) -> None:
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

    def test_what_is_missing_is_said(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(Failed, "tests/gpu/build"):
                layout.unpack(pathlib.Path(folder), pathlib.Path(folder, "into"))

    def test_a_gpu_needs_the_cuda_part(self) -> None:
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
            with self.assertRaisesRegex(Failed, "libtorch_cuda.so"):
                layout.libtorch("cuda:0", {"LIBTORCH": str(cpu)}, None)
        self.assertIsNone(layout.pytorch_version(None))


if __name__ == "__main__":
    unittest.main()
