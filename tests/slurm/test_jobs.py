"""The jobs of deploy/slurm, as they are, under a real Slurm, with the programs in DICO_BIN (default: target/debug)."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

from cluster import Cluster, kill, last_lines, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("DICO_BIN", ROOT / "target/debug")).resolve()
TWO_WORKERS = ("--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1")
# So many that there is time to disturb a run.
STEPS = 100
# Longest wait for a run to end on a busy machine; reaching it is a failure.
PATIENCE = 600
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
WORLD = pathlib.Path()


def setUpModule() -> None:
    """Draws a small world for all runs."""
    global WORLD
    folder = tempfile.TemporaryDirectory(prefix="dico-slurm-")
    unittest.addModuleCleanup(folder.cleanup)
    WORLD = pathlib.Path(folder.name)
    subprocess.run([BIN / "worker", "synthesize", "--out", WORLD, "--images", "60", "--seed", "3"], check=True,
                   stdout=subprocess.DEVNULL, timeout=120)


def coordinator(*arguments: str | pathlib.Path) -> str:
    """What the program prints."""
    return subprocess.run([BIN / "coordinator", *arguments], capture_output=True, text=True, timeout=60).stdout


class JobTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="dico-slurm-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.config = self.folder / "run.yaml"
        self.write_run_file()
        self.cluster = Cluster(self.folder)
        self.addCleanup(self.cluster.stop)
        self.cluster.start()
        self.settings = {
            "DICO_CONFIG": str(self.config), "DICO_BIN": str(BIN), "DICO_JOBS": f"{self.folder}/jobs",
            "DICO_DEVICE": "cpu", "DICO_JOIN_TIMEOUT": "10", "OMP_NUM_THREADS": "1",
        }

    def write_run_file(self, steps: int = STEPS, **more) -> None:
        # No checkpoint before the end of a stage, unless somebody asks for one: what is not redone was saved in time.
        stage = {"checkpoint_every": 100_000, "optimizer": {"learning_rate": 1e-3}}
        self.stages = [
            {"name": "xe", "objective": "cross_entropy", "steps": steps, "batch": 12} | stage,
            {"name": "dico", "objective": "dico", "steps": 10, "batch": 6, "dico": {"reward": {"cider": 1}}} | stage,
        ]
        file = {
            "name": "slurm", "output": str(self.folder / "run"), "workers": {"min": 1, "max": 2}, "stages": self.stages,
            "data": {"karpathy": {"annotations": f"{WORLD}/dataset.json", "images": f"{WORLD}/images"},
                     "scenes": f"{WORLD}/scenes.json"},
            "vocabulary": "corpus", "evaluator": {"preset": "tiny"}, "captioner": {"preset": "tiny", "dropout": 0.0},
            "decoding": {"beams": 3, "max_length": 12},
        }
        # JSON is YAML.
        self.config.write_text(json.dumps(file | more))

    def submit(self, script: str, *options: str) -> str:
        """Submits a script from the root of the checkout; the job's number."""
        output = f"--output={self.folder}/job-%j.log"
        environment = {name: value for name, value in self.cluster.environment.items() if not name.startswith("DICO_")}
        return self.cluster.run("sbatch", "--parsable", output, *options, script, cwd=ROOT,
                                env=environment | self.settings).strip()

    def submit_two_workers(self, *options: str) -> str:
        return self.submit("deploy/slurm/dico.sbatch", *TWO_WORKERS, *options)

    def submit_heterogeneous(self) -> str:
        return self.submit("deploy/slurm/dico-het.sbatch", "--cpus-per-task=1", "--mem=0", ":", *TWO_WORKERS)

    def log(self, job: str) -> str:
        return (self.folder / f"job-{job}.log").read_text(errors="replace")

    def explain(self, job: str) -> str:
        names = (f"job-{job}.log", f"jobs/{job}/worker-*.log", "worker-*.log")
        logs = sorted(log for name in names for log in self.folder.glob(name))
        return f"{self.cluster.job(job)}\n" + "".join(f"--- {log.name}\n{last_lines(log)}" for log in logs)

    def wait(self, job: str, *states: str) -> None:
        """Waits until a job is in one of these states."""
        in_state = lambda: self.cluster.job(job).get("JobState") in states
        wait_for(f"job {job} to be {' or '.join(states)}", in_state, PATIENCE, lambda: self.explain(job))

    def wait_for_steps(self, job: str, steps: int) -> None:
        """Waits until so many steps are in the journal."""
        samples = steps * self.stages[0]["batch"]
        applied = lambda: self.audit().get("samples", {}).get("committed", 0) >= samples
        wait_for(f"step {steps}", applied, PATIENCE, lambda: self.explain(job))

    def audit(self) -> dict:
        """What `coordinator audit` says; nothing before there is a journal."""
        return json.loads(coordinator("audit", "--config", self.config, "--json") or "{}")

    def assert_finished(self, job: str, starts: int = 1) -> dict:
        """Waits for the end of a job of so many starts or more: all is finished, every sample was trained on once."""
        self.wait(job, *OVER)
        state = self.cluster.job(job)
        explanation = self.explain(job)
        self.assertEqual(state["JobState"], "COMPLETED", explanation)
        self.assertGreaterEqual(int(state["Restarts"]) + 1, starts, explanation)
        audit = self.audit()
        self.assertTrue(audit["clean"] and audit["finished"], audit)
        samples = sum(stage["steps"] * stage["batch"] for stage in self.stages)
        self.assertEqual(audit["samples"], {"committed": samples, "missing": 0, "repeated": 0})
        return audit

    def assert_nothing_redone(self, audit: dict) -> None:
        given_up = sum(generation["given_up"] for generation in audit["generations"])
        self.assertEqual(given_up, 0, audit["generations"])


class Finished(JobTest):
    def test_a_run_is_one_job(self) -> None:
        job = self.submit_two_workers()
        self.wait_for_steps(job, 20)
        own = self.folder / "jobs" / job
        address = (own / "address").read_text().strip()
        command = ["status", "--json", "--coordinator", address, "--join-token-file", own / "join-token"]
        status = json.loads(coordinator(*command))
        self.assertEqual([member["rank"] for member in status["members"]], [0, 1])
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])
        for token in ("join-token", "admin-token"):
            self.assertEqual((own / token).stat().st_mode & 0o777, 0o600)
        for rank in range(2):
            self.assertIn(f"finished rank={rank}", (own / f"worker-{rank}.log").read_text())

    def test_a_heterogeneous_job(self) -> None:
        job = self.submit_heterogeneous()
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])


class Resumed(JobTest):
    def interrupt(self, job: str, *command: str) -> None:
        """A job that a command interrupts goes back into the queue and on from there, and nothing is done twice."""
        self.wait_for_steps(job, 20)
        self.cluster.run(*(job if word == "JOB" else word for word in command))
        self.assert_nothing_redone(self.assert_finished(job, starts=2))

    def test_preempted_by_a_job_that_goes_first(self) -> None:
        urgent = ("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        self.interrupt(self.submit_two_workers(), *urgent)

    def test_asked_to_save_and_go(self) -> None:
        self.interrupt(self.submit_two_workers(), "scancel", "--batch", "--signal=USR1", "JOB")

    def test_workers_that_are_asked_to_go(self) -> None:
        # A preemption as it comes from a Slurm without preempt_send_user_signal.
        self.interrupt(self.submit_two_workers(), "scancel", "--signal=TERM", "JOB")

    def test_the_time_is_over(self) -> None:
        # Slurm looks twice a minute whose time is nearly over, so each start of the job gets 15 to 45
        # seconds: too little for all of it on any machine.
        self.write_run_file(steps=1000 * STEPS)
        job = self.submit_two_workers("--time=2", "--signal=B:USR1@75")
        again = lambda: int(self.cluster.job(job).get("Restarts", 0)) > 0
        wait_for("another start", again, PATIENCE, lambda: self.explain(job))
        before = self.audit()
        saved = before["samples"]["committed"] // self.stages[0]["batch"]
        self.wait_for_steps(job, saved + 5)
        audit = self.audit()
        self.assertEqual((audit["samples"]["missing"], audit["samples"]["repeated"]), (0, 0), audit)
        self.assert_nothing_redone(audit)

    def test_put_back_without_a_warning(self) -> None:
        self.interrupt(self.submit_two_workers(), "scontrol", "requeue", "JOB")

    def test_a_heterogeneous_job_that_is_asked_to_go(self) -> None:
        self.interrupt(self.submit_heterogeneous(), "scancel", "--batch", "--signal=USR1", "JOB")


class Ranks(JobTest):
    """Workers that are started without `--rank`, in ways that people use."""

    # The variables of the batch script, or of a task, are those of all that it starts.
    LOOP = "for n in 0 1; do \"$DICO_BIN/worker\" join --coordinator \"$url\" 2> \"$logs/worker-$n.log\" & done; wait"
    SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
export logs={folder}
"$DICO_BIN/coordinator" serve --config "$DICO_CONFIG" --listen 127.0.0.1:0 --http 127.0.0.1:0 > "$logs/listening" &
until [[ -s $logs/listening ]]; do sleep 0.1; done
export url=http://$(grep --only-matching --perl-regexp 'grpc=\\K\\S+' "$logs/listening")
{workers}
wait
"""

    def assert_ranks(self, workers: str, source: str) -> None:
        self.write_run_file(workers={"min": 2, "max": 2})
        script = self.folder / "script"
        script.write_text(self.SCRIPT.format(folder=self.folder, workers=workers))
        job = self.submit(str(script), "--ntasks=2", "--nodes=1")
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])
        for log in self.folder.glob("worker-*.log"):
            self.assertIn(f"rank_source=\"{source}\"", log.read_text())

    def test_a_loop_in_the_batch_script(self) -> None:
        self.assert_ranks(self.LOOP, "the coordinator")

    def test_a_loop_in_a_task(self) -> None:
        self.assert_ranks(f"srun --ntasks=1 bash -c '{self.LOOP}'", "the coordinator")

    def test_the_tasks_of_a_step(self) -> None:
        worker = "exec \"$DICO_BIN/worker\" join --coordinator \"$url\" 2> \"$logs/worker-$SLURM_PROCID.log\""
        self.assert_ranks(f"srun --ntasks=2 bash -c '{worker}'", "SLURM_PROCID")


class Failures(JobTest):
    def test_what_crashes_is_started_again(self) -> None:
        job = self.submit_two_workers()
        self.wait_for_steps(job, 20)
        for program, rank in (("worker", {"SLURM_PROCID": "1"}), ("coordinator", {})):
            crashed = self.cluster.processes(program, SLURM_JOB_ID=job, **rank)
            self.assertEqual(len(crashed), 1, self.explain(job))
            kill(crashed)
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])

    def test_the_run_goes_on_without_a_node(self) -> None:
        # Slurm needs ten seconds to see it.
        self.write_run_file(steps=6 * STEPS)
        job = self.submit_two_workers("--nodes=2", "--ntasks-per-node=1")
        self.wait_for_steps(job, 20)
        self.cluster.fail("second")
        seen = lambda: "Node failure on second" in self.log(job)
        wait_for("Slurm to see it", seen, PATIENCE, lambda: self.explain(job))
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0])

    def test_a_job_that_lost_its_first_node_begins_anew(self) -> None:
        # Time for Slurm to see that the node is lost, before the job is put back: it would be held where
        # its launch fails.
        self.settings["DICO_JOIN_TIMEOUT"] = "20"
        # Slurm 22.05 loses the GPUs of a job with its first node.
        job = self.submit_two_workers("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0")
        self.wait_for_steps(job, 20)
        self.cluster.fail("first")
        lost = lambda: self.cluster.node("first").get("State", "").startswith("DOWN")
        wait_for("Slurm to see it", lost, PATIENCE, lambda: self.explain(job))
        self.wait(job, "PENDING")
        self.cluster.begin("first")
        self.assert_finished(job, starts=2)

    def test_a_cancelled_run_goes_on_in_another_job(self) -> None:
        first = self.submit_two_workers()
        self.wait_for_steps(first, 20)
        self.cluster.run("scancel", first)
        self.wait(first, *OVER)
        self.assertEqual(self.cluster.job(first)["JobState"], "CANCELLED")
        self.assert_nothing_redone(self.assert_finished(self.submit_two_workers()))

    def test_a_run_file_with_a_mistake_fails_the_job(self) -> None:
        self.write_run_file(sede=1)
        job = self.submit_two_workers()
        self.wait(job, *OVER)
        self.assertEqual(self.cluster.job(job)["JobState"], "FAILED")
        self.assertIn("unknown key `sede`", self.log(job))

    def test_workers_that_never_work_fail_the_job(self) -> None:
        self.only_say_what_is_asked()
        job = self.submit_two_workers()
        self.wait(job, *OVER)
        self.assertEqual(self.cluster.job(job)["JobState"], "FAILED")
        self.assertIn("no worker is left", self.log(job))
        # Started twice.
        self.assertEqual(len(self.asked(job)[0]), 2)

    def test_each_worker_has_a_gpu_of_its_own(self) -> None:
        self.only_say_what_is_asked(DICO_DEVICE="cuda")
        # Slurm shows each task all GPUs of its node that are the job's, or its own only.
        one_visible = lambda: self.submit_two_workers("--gpus-per-task=1")
        for submit, devices in (
            (self.submit_two_workers, ["cuda:0", "cuda:1"]),
            (one_visible, ["cuda:0", "cuda:0"]),
            (self.submit_heterogeneous, ["cuda:0", "cuda:1"]),
        ):
            job = submit()
            self.wait(job, *OVER)
            for asked, device in zip(self.asked(job), devices, strict=True):
                self.assertIn(f"--device {device} ", asked[0], self.explain(job))

    def only_say_what_is_asked(self, **settings: str) -> None:
        """Jobs have workers that say how they are called, and fail."""
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "coordinator").symlink_to(BIN / "coordinator")
        (programs / "worker").write_text('#!/bin/sh\necho "asked to $@"\nexit 1\n')
        (programs / "worker").chmod(0o755)
        self.settings |= {"DICO_BIN": str(programs), "DICO_RESTARTS": "1"} | settings

    def asked(self, job: str) -> list[list[str]]:
        """How each worker of a job was called, start after start."""
        logs = sorted((self.folder / "jobs" / job).glob("worker-*.log"))
        return [[line for line in log.read_text().splitlines() if line.startswith("asked to ")] for log in logs]


if __name__ == "__main__":
    unittest.main()
