"""Tests the benchmark's own code without measurements. `make test` runs it."""

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
from comparisons import IMAGES_PER_SECOND, BYTES_PER_SECOND, Comparison, Setting, comparisons, reason_not_measured
from processes import CommandError, parse_json_object, python_command, run_command

SIDES = {"ours": ["ours"], "peer": ["peer"]}


def runs(field: str, **sides: list) -> dict[str, list[dict]]:
    return {side: [{field: value} for value in values] for side, values in sides.items()}


class Results(unittest.TestCase):
    def test_medians_are_compared(self) -> None:
        result = summary.compare(Comparison(IMAGES_PER_SECOND, 1.6, SIDES), runs("images_per_s", ours=[3, 90, 4], peer=[2, 1, 2.5]))
        self.assertEqual((result["ours"], result["peer"], result["ratio"], result["met"]), (4, 2, 2, True))

    def test_a_ratio_equal_to_the_bound_meets_it(self) -> None:
        comparison = Comparison(IMAGES_PER_SECOND, 2, SIDES)
        self.assertTrue(summary.compare(comparison, runs("images_per_s", ours=[4], peer=[2]))["met"])
        self.assertFalse(summary.compare(comparison, runs("images_per_s", ours=[3.9], peer=[2]))["met"])

    def test_numbers_are_converted_to_the_unit(self) -> None:
        result = summary.compare(Comparison(BYTES_PER_SECOND, 0.95, SIDES), runs("bytes_per_s", ours=[9e8], peer=[1e9]))
        self.assertEqual((result["ours"], result["peer"], result["unit"]), (900, 1000, "MB/s"))
        self.assertEqual((result["ratio"], result["met"]), (0.9, False))

    def test_memory_has_an_upper_bound(self) -> None:
        memory = comparisons(Setting("worker", ["python"]))["memory"]
        result = summary.compare(memory, runs("peak_memory_bytes", ours=[3], peer=[4]))
        self.assertEqual((result["ratio"], result["met"]), (0.75, True))
        self.assertFalse(summary.compare(memory, runs("peak_memory_bytes", ours=[4], peer=[4]))["met"])

    def test_further_sides_do_not_affect_the_bound(self) -> None:
        as_used = comparisons(Setting("worker", ["python"]))["step_as_used"]
        result = summary.compare(as_used, runs("images_per_s", ours=[10], peer=[2], peer_30=[1]))
        self.assertEqual((result["ratio"], result["ratio_peer_30"], result["met"]), (5, 10, False))
        self.assertIn("ratio_peer_30 10", summary.table_line("step_as_used", as_used, result))

    def test_further_bounds_must_be_met(self) -> None:
        bf16 = comparisons(Setting("worker", ["python"]))["bf16"]
        for share, met in ((0.95, True), (0.94, False)):
            ours = [{"images_per_s": 4, "same_ranking": share}]
            result = summary.compare(bf16, {"ours": ours, "base": [{"images_per_s": 2}]})
            self.assertEqual((result["same_ranking"], result["met"]), (share, met))
        with self.assertRaisesRegex(CommandError, "same_ranking"):
            summary.compare(bf16, runs("images_per_s", ours=[4], base=[2]))

    def test_values_that_are_no_positive_number_are_refused(self) -> None:
        for value in (None, "4", True, 0, -1, float("nan"), float("inf")):
            with self.assertRaisesRegex(CommandError, "images_per_s"):
                summary.positive_number({"images_per_s": value}, "images_per_s")

    def test_a_table_line_shows_medians_ratio_and_bound(self) -> None:
        comparison = Comparison(IMAGES_PER_SECOND, 1.6, SIDES)
        result = summary.compare(comparison, runs("images_per_s", ours=[4], peer=[2]))
        line = summary.table_line("step", comparison, result)
        self.assertRegex(line, r"^step +4 +2 +images/s +2\.00 +at least 1\.6: met$")

    def test_the_summary_is_replaced_atomically(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "bench/summary.json"
            summary.write(path, {"bf16": 1})
            summary.write(path, {"bf16": 2})
            self.assertEqual(json.loads(path.read_text()), {"bf16": 2})
            self.assertEqual(os.listdir(path.parent), ["summary.json"])


class Overhead(unittest.TestCase):
    def test_the_overhead_is_the_time_between_steps(self) -> None:
        # Step 2 starts 0.01 s after the end of step 1, step 3 starts 0.03 s after that of step 2.
        self.assertAlmostEqual(overhead.milliseconds_between_steps([(1, 0.7), (1.21, 0.2), (1.34, 0.1)]), 20)

    def test_one_step_is_too_few(self) -> None:
        with self.assertRaises(CommandError):
            overhead.milliseconds_between_steps([(1, 0.5)])


class Commands(unittest.TestCase):
    def test_both_sides_get_the_same_options(self) -> None:
        sides = comparisons(Setting("worker", ["python"], steps=7))["step_identical"].sides
        ours, peer = sides["ours"], sides["peer"]
        self.assertEqual(ours[3:-1], peer[2:])
        self.assertIn("--steps 7", " ".join(peer))

    def test_thread_options_match_the_environment(self) -> None:
        for comparison in comparisons(Setting("worker", ["python"])).values():
            for command in comparison.sides.values():
                if "--threads" in command:
                    self.assertEqual(command[command.index("--threads") + 1], str(comparison.threads))

    def test_a_gpu_measures_steps_only(self) -> None:
        setting = Setting("worker", ["python"], device="cuda:0")
        measured = {name for name in comparisons(setting) if reason_not_measured(name, setting, {}) is None}
        self.assertEqual(measured, {"step_identical", "step_as_used", "bf16"})
        self.assertIsNotNone(reason_not_measured("coordinator_overhead", setting, {}))

    def test_bf16_requires_cpu_instructions(self) -> None:
        setting = Setting("worker", ["python"])
        for instructions in ("avx512_bf16", "amx_bf16"):
            present = {"avx512_bf16": False, "amx_bf16": False} | {instructions: True}
            self.assertIsNone(reason_not_measured("bf16", setting, present))
        with_neither = {"avx512_bf16": False, "amx_bf16": False}
        self.assertIn("neither", reason_not_measured("bf16", setting, with_neither))
        self.assertIsNone(reason_not_measured("step_identical", setting, with_neither))
        on_gpu = dataclasses.replace(setting, device="cuda:0")
        self.assertIsNone(reason_not_measured("bf16", on_gpu, with_neither))


class Processes(unittest.TestCase):
    def test_the_last_line_is_parsed(self) -> None:
        self.assertEqual(parse_json_object('making it\n{"images_per_s": 2}\n\n'), {"images_per_s": 2})
        for text in ("", "\n", "no\n", "[1]\n", '{"a": 1}\nno\n'):
            with self.assertRaises(CommandError):
                parse_json_object(text)

    def test_errors_show_the_end_of_the_commands_output(self) -> None:
        script = "import sys; print('\\n'.join(map(str, range(12))), file=sys.stderr); sys.exit(3)"
        with self.assertRaisesRegex(CommandError, "(?s)status 3: 2\n3\n.*\n11$"):
            run_command([sys.executable, "-c", script], 1)

    def test_a_missing_program_is_an_error(self) -> None:
        with self.assertRaisesRegex(CommandError, "/no/such/program"):
            run_command(["/no/such/program"], 1)

    def test_child_processes_are_killed_with_the_command(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pipe = f"{folder}/pipe"
            os.mkfifo(pipe)
            reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            self.addCleanup(os.close, reading)
            child = f"subprocess.Popen(['sleep', '1000'], stdout=open('{pipe}', 'w'), stderr=subprocess.DEVNULL)"
            run_command([sys.executable, "-c", f"import subprocess; {child}"], 1)
            # The pipe reaches its end when the child is dead.
            self.assertEqual(select.select([reading], [], [], 60)[0], [reading])
            self.assertEqual(os.read(reading, 1), b"")

    def test_the_peers_ld_library_path_omits_libtorch(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ours, drivers = pathlib.Path(folder) / "libtorch", pathlib.Path(folder) / "drivers"
            ours.mkdir()
            drivers.mkdir()
            (ours / "libtorch_cpu.so").touch()
            started = python_command("python3", f"{ours}:{drivers}")
            self.assertEqual(started, ["env", f"LD_LIBRARY_PATH={drivers}", "python3", "-W", "ignore"])
            for without in ("", str(drivers)):
                self.assertEqual(python_command("python3", without), ["python3", "-W", "ignore"])


class Machine(unittest.TestCase):
    def test_cpuinfo_is_parsed(self) -> None:
        cpuinfo = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
        parsed = machine.parse_cpuinfo(cpuinfo)
        self.assertEqual(parsed["cpu"], "Some CPU")
        expected = {"avx2": True, "avx512": True, "avx512_bf16": True, "amx_bf16": False}
        self.assertEqual(parsed["instructions"], expected)
        self.assertEqual(machine.parse_cpuinfo("")["cpu"], "unknown")


if __name__ == "__main__":
    unittest.main()
