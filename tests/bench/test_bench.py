"""What can be tested without measuring. `make test` runs it."""

import dataclasses
import json
import os
import pathlib
import select
import sys
import tempfile
import unittest

import machine
import overhead
import summary
from comparisons import SPEED, TRANSFER, Comparison, Setting, comparisons, unmeasurable
from processes import Failed, output, printed_object, python

SIDES = {"ours": ["ours"], "peer": ["peer"]}


def runs(field: str, **sides: list) -> dict[str, list[dict]]:
    return {side: [{field: value} for value in values] for side, values in sides.items()}


class Results(unittest.TestCase):
    def test_medians_are_compared(self) -> None:
        result = summary.compared(Comparison(SPEED, 1.6, SIDES), runs("images_per_s", ours=[3, 90, 4], peer=[2, 1, 2.5]))
        self.assertEqual((result["ours"], result["peer"], result["ratio"], result["met"]), (4, 2, 2, True))

    def test_bounds_are_met_by_what_equals_them(self) -> None:
        comparison = Comparison(SPEED, 2, SIDES)
        self.assertTrue(summary.compared(comparison, runs("images_per_s", ours=[4], peer=[2]))["met"])
        self.assertFalse(summary.compared(comparison, runs("images_per_s", ours=[3.9], peer=[2]))["met"])

    def test_numbers_are_in_the_unit(self) -> None:
        result = summary.compared(Comparison(TRANSFER, 0.95, SIDES), runs("bytes_per_s", ours=[9e8], peer=[1e9]))
        self.assertEqual((result["ours"], result["peer"], result["unit"]), (900, 1000, "MB/s"))
        self.assertEqual((result["ratio"], result["met"]), (0.9, False))

    def test_of_memory_less_is_better(self) -> None:
        memory = comparisons(Setting("worker", ["python"]))["memory"]
        result = summary.compared(memory, runs("peak_memory_bytes", ours=[3], peer=[4]))
        self.assertEqual((result["ratio"], result["met"]), (0.75, True))
        self.assertFalse(summary.compared(memory, runs("peak_memory_bytes", ours=[4], peer=[4]))["met"])

    def test_further_sides_are_for_information(self) -> None:
        as_used = comparisons(Setting("worker", ["python"]))["step_as_used"]
        result = summary.compared(as_used, runs("images_per_s", ours=[10], peer=[2], peer_30=[1]))
        self.assertEqual((result["ratio"], result["ratio_peer_30"], result["met"]), (5, 10, False))
        self.assertIn("ratio_peer_30 10", summary.line("step_as_used", as_used, result))

    def test_further_bounds_have_to_be_met(self) -> None:
        bf16 = comparisons(Setting("worker", ["python"]))["bf16"]
        for share, met in ((0.95, True), (0.94, False)):
            ours = [{"images_per_s": 4, "same_ranking": share}]
            result = summary.compared(bf16, {"ours": ours, "base": [{"images_per_s": 2}]})
            self.assertEqual((result["same_ranking"], result["met"]), (share, met))
        with self.assertRaisesRegex(Failed, "same_ranking"):
            summary.compared(bf16, runs("images_per_s", ours=[4], base=[2]))

    def test_what_is_no_number_is_refused(self) -> None:
        for value in (None, "4", True, 0, -1, float("nan"), float("inf")):
            with self.assertRaisesRegex(Failed, "images_per_s"):
                summary.number({"images_per_s": value}, "images_per_s")

    def test_lines(self) -> None:
        comparison = Comparison(SPEED, 1.6, SIDES)
        result = summary.compared(comparison, runs("images_per_s", ours=[4], peer=[2]))
        line = summary.line("step", comparison, result)
        self.assertRegex(line, r"^step +4 +2 +images/s +2\.00 +at least 1\.6: met$")

    def test_summaries_are_replaced_whole(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "bench/summary.json"
            summary.write(path, {"bf16": 1})
            summary.write(path, {"bf16": 2})
            self.assertEqual(json.loads(path.read_text()), {"bf16": 2})
            self.assertEqual(os.listdir(path.parent), ["summary.json"])


class Overhead(unittest.TestCase):
    def test_it_is_what_no_step_accounts_for(self) -> None:
        # The second begins 0.01 s after the first, the third 0.03 s after the second.
        self.assertAlmostEqual(overhead.between([(1, 0.7), (1.21, 0.2), (1.34, 0.1)]), 20)

    def test_one_step_is_too_few(self) -> None:
        with self.assertRaises(Failed):
            overhead.between([(1, 0.5)])


class Commands(unittest.TestCase):
    def test_both_sides_do_the_same(self) -> None:
        sides = comparisons(Setting("worker", ["python"], steps=7))["step_identical"].sides
        ours, peer = sides["ours"], sides["peer"]
        self.assertEqual(ours[3:-1], peer[2:])
        self.assertIn("--steps 7", " ".join(peer))

    def test_threads_are_those_of_the_environment(self) -> None:
        for comparison in comparisons(Setting("worker", ["python"])).values():
            for command in comparison.sides.values():
                if "--threads" in command:
                    self.assertEqual(command[command.index("--threads") + 1], str(comparison.threads))

    def test_a_gpu_measures_steps_only(self) -> None:
        setting = Setting("worker", ["python"], device="cuda:0")
        measured = {name for name in comparisons(setting) if unmeasurable(name, setting, {}) is None}
        self.assertEqual(measured, {"step_identical", "step_as_used", "bf16"})
        self.assertIsNotNone(unmeasurable("coordinator_overhead", setting, {}))

    def test_bf16_needs_instructions(self) -> None:
        setting = Setting("worker", ["python"])
        for instructions in ("avx512_bf16", "amx_bf16"):
            present = {"avx512_bf16": False, "amx_bf16": False} | {instructions: True}
            self.assertIsNone(unmeasurable("bf16", setting, present))
        with_neither = {"avx512_bf16": False, "amx_bf16": False}
        self.assertIn("neither", unmeasurable("bf16", setting, with_neither))
        self.assertIsNone(unmeasurable("step_identical", setting, with_neither))
        on_gpu = dataclasses.replace(setting, device="cuda:0")
        self.assertIsNone(unmeasurable("bf16", on_gpu, with_neither))


class Processes(unittest.TestCase):
    def test_the_last_line_is_read(self) -> None:
        self.assertEqual(printed_object('making it\n{"images_per_s": 2}\n\n'), {"images_per_s": 2})
        for text in ("", "\n", "no\n", "[1]\n", '{"a": 1}\nno\n'):
            with self.assertRaises(Failed):
                printed_object(text)

    def test_failures_say_what_the_command_said(self) -> None:
        script = "import sys; print('\\n'.join(map(str, range(12))), file=sys.stderr); sys.exit(3)"
        with self.assertRaisesRegex(Failed, "(?s)status 3: 2\n3\n.*\n11$"):
            output([sys.executable, "-c", script], 1)

    def test_a_missing_program_is_a_failure(self) -> None:
        with self.assertRaisesRegex(Failed, "/no/such/program"):
            output(["/no/such/program"], 1)

    def test_nothing_outlives_a_command(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pipe = f"{folder}/pipe"
            os.mkfifo(pipe)
            reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            self.addCleanup(os.close, reading)
            child = f"subprocess.Popen(['sleep', '1000'], stdout=open('{pipe}', 'w'), stderr=subprocess.DEVNULL)"
            output([sys.executable, "-c", f"import subprocess; {child}"], 1)
            # Its end is the child's.
            self.assertEqual(select.select([reading], [], [], 60)[0], [reading])
            self.assertEqual(os.read(reading, 1), b"")

    def test_peers_do_not_load_our_libtorch(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ours, drivers = pathlib.Path(folder) / "libtorch", pathlib.Path(folder) / "drivers"
            ours.mkdir()
            drivers.mkdir()
            (ours / "libtorch_cpu.so").touch()
            started = python("python3", f"{ours}:{drivers}")
            self.assertEqual(started, ["env", f"LD_LIBRARY_PATH={drivers}", "python3", "-W", "ignore"])
            for without in ("", str(drivers)):
                self.assertEqual(python("python3", without), ["python3", "-W", "ignore"])


class Machine(unittest.TestCase):
    def test_processors(self) -> None:
        cpuinfo = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
        found = machine.processor(cpuinfo)
        self.assertEqual(found["cpu"], "Some CPU")
        expected = {"avx2": True, "avx512": True, "avx512_bf16": True, "amx_bf16": False}
        self.assertEqual(found["instructions"], expected)
        self.assertEqual(machine.processor("")["cpu"], "unknown")


if __name__ == "__main__":
    unittest.main()
