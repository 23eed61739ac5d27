"""Tests the jobs of deploy/slurm under a real Slurm.

Uses the programs in DICO_BIN (default: target/debug).
"""

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
# Enough steps to interrupt a run before its end.
STEPS = 100
# Every wait takes less even on a busy machine.
TIMEOUT_SECONDS = 600
END_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
DATASET = pathlib.Path()


def setUpModule() -> None:
    """Creates a small synthetic data set for all runs."""
    global DATASET
    folder = tempfile.TemporaryDirectory(prefix="dico-slurm-")
    unittest.addModuleCleanup(folder.cleanup)
    DATASET = pathlib.Path(folder.name)
    subprocess.run([BIN / "worker", "synthesize", "--out", DATASET, "--images", "60", "--seed", "3"], check=True,
                   stdout=subprocess.DEVNULL, timeout=120)


def coordinator(*arguments: str | pathlib.Path) -> str:
    """Runs `coordinator`, and returns its standard output."""
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

    def write_run_file(self, steps: int = STEPS, **changes) -> None:
        # Checkpoints are written only at the end of a stage or on request, so a run without redone
        # steps has saved its state on request.
        stage = {"checkpoint_every": 100_000, "optimizer": {"learning_rate": 1e-3}}
        self.stages = [
            {"name": "xe", "objective": "cross_entropy", "steps": steps, "batch": 12} | stage,
            {"name": "dico", "objective": "dico", "steps": 10, "batch": 6, "dico": {"reward": {"cider": 1}}} | stage,
        ]
        file = {
            "name": "slurm", "output": str(self.folder / "run"), "workers": {"min": 1, "max": 2}, "stages": self.stages,
            "data": {"karpathy": {"annotations": f"{DATASET}/dataset.json", "images": f"{DATASET}/images"},
                     "scenes": f"{DATASET}/scenes.json"},
            "vocabulary": "corpus", "evaluator": {"preset": "tiny"}, "captioner": {"preset": "tiny", "dropout": 0.0},
            "decoding": {"beams": 3, "max_length": 12},
        }
        # JSON is YAML.
        self.config.write_text(json.dumps(file | changes))

    def submit(self, script: str, *options: str) -> str:
        """Submits a script from the root of the checkout, and returns the job's id."""
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
        is_in_state = lambda: self.cluster.job(job).get("JobState") in states
        wait_for(f"job {job} to be {' or '.join(states)}", is_in_state, TIMEOUT_SECONDS, lambda: self.explain(job))

    def wait_for_steps(self, job: str, steps: int) -> None:
        """Waits until the journal has this many steps."""
        samples = steps * self.stages[0]["batch"]
        is_reached = lambda: self.audit().get("samples", {}).get("committed", 0) >= samples
        wait_for(f"step {steps}", is_reached, TIMEOUT_SECONDS, lambda: self.explain(job))

    def audit(self) -> dict:
        """Returns the result of `coordinator audit`; empty while there is no journal."""
        return json.loads(coordinator("audit", "--config", self.config, "--json") or "{}")

    def assert_finished(self, job: str, starts: int = 1) -> dict:
        """Waits for the end of a job, and returns the audit.

        Asserts that the run is finished, that each sample was used once, and that the job started
        at least `starts` times.
        """
        self.wait(job, *END_STATES)
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
    def test_a_run_finishes_in_one_job(self) -> None:
        job = self.submit_two_workers()
        self.wait_for_steps(job, 20)
        job_folder = self.folder / "jobs" / job
        address = (job_folder / "address").read_text().strip()
        command = ["status", "--json", "--coordinator", address, "--join-token-file", job_folder / "join-token"]
        status = json.loads(coordinator(*command))
        self.assertEqual([member["rank"] for member in status["members"]], [0, 1])
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])
        for token in ("join-token", "admin-token"):
            self.assertEqual((job_folder / token).stat().st_mode & 0o777, 0o600)
        for worker_id in range(2):
            self.assertIn(f"finished rank={worker_id}", (job_folder / f"worker-{worker_id}.log").read_text())

    def test_a_heterogeneous_job_finishes(self) -> None:
        job = self.submit_heterogeneous()
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])


class Resumed(JobTest):
    def interrupt(self, job: str, *command: str) -> None:
        """Interrupts a job. Asserts that it is requeued and finishes without redone steps."""
        self.wait_for_steps(job, 20)
        self.cluster.run(*(job if word == "JOB" else word for word in command))
        self.assert_nothing_redone(self.assert_finished(job, starts=2))

    def test_a_preempted_job_resumes(self) -> None:
        urgent = ("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        self.interrupt(self.submit_two_workers(), *urgent)

    def test_a_job_resumes_after_sigusr1(self) -> None:
        self.interrupt(self.submit_two_workers(), "scancel", "--batch", "--signal=USR1", "JOB")

    def test_a_job_resumes_after_its_workers_get_sigterm(self) -> None:
        # The preemption of a Slurm without preempt_send_user_signal.
        self.interrupt(self.submit_two_workers(), "scancel", "--signal=TERM", "JOB")

    def test_a_job_resumes_after_its_time_limit(self) -> None:
        # Slurm checks time limits twice a minute, so each start of the job gets 15 to 45 seconds.
        # That is too short for the run on any machine.
        self.write_run_file(steps=1000 * STEPS)
        job = self.submit_two_workers("--time=2", "--signal=B:USR1@75")
        is_restarted = lambda: int(self.cluster.job(job).get("Restarts", 0)) > 0
        wait_for("a restart of the job", is_restarted, TIMEOUT_SECONDS, lambda: self.explain(job))
        before = self.audit()
        saved = before["samples"]["committed"] // self.stages[0]["batch"]
        self.wait_for_steps(job, saved + 5)
        audit = self.audit()
        self.assertEqual((audit["samples"]["missing"], audit["samples"]["repeated"]), (0, 0), audit)
        self.assert_nothing_redone(audit)

    def test_a_job_requeued_without_a_signal_resumes(self) -> None:
        self.interrupt(self.submit_two_workers(), "scontrol", "requeue", "JOB")

    def test_a_heterogeneous_job_resumes_after_sigusr1(self) -> None:
        self.interrupt(self.submit_heterogeneous(), "scancel", "--batch", "--signal=USR1", "JOB")


class WorkerIds(JobTest):
    """Workers without `--rank`, started by common kinds of scripts."""

    # All child processes of a batch script or of a task have the same Slurm variables.
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

    def assert_worker_ids(self, workers: str, source: str) -> None:
        self.write_run_file(workers={"min": 2, "max": 2})
        script = self.folder / "script"
        script.write_text(self.SCRIPT.format(folder=self.folder, workers=workers))
        job = self.submit(str(script), "--ntasks=2", "--nodes=1")
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])
        for log in self.folder.glob("worker-*.log"):
            self.assertIn(f"id_source=\"{source}\"", log.read_text())

    def test_the_coordinator_assigns_ids_to_workers_of_a_batch_script(self) -> None:
        self.assert_worker_ids(self.LOOP, "the coordinator")

    def test_the_coordinator_assigns_ids_to_workers_of_one_task(self) -> None:
        self.assert_worker_ids(f"srun --ntasks=1 bash -c '{self.LOOP}'", "the coordinator")

    def test_tasks_of_a_step_use_their_task_number(self) -> None:
        worker = "exec \"$DICO_BIN/worker\" join --coordinator \"$url\" 2> \"$logs/worker-$SLURM_PROCID.log\""
        self.assert_worker_ids(f"srun --ntasks=2 bash -c '{worker}'", "SLURM_PROCID")


class Failures(JobTest):
    def test_crashed_programs_are_restarted(self) -> None:
        job = self.submit_two_workers()
        self.wait_for_steps(job, 20)
        for program, task in (("worker", {"SLURM_PROCID": "1"}), ("coordinator", {})):
            processes = self.cluster.processes(program, SLURM_JOB_ID=job, **task)
            self.assertEqual(len(processes), 1, self.explain(job))
            kill(processes)
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0, 1])

    def test_the_run_continues_without_a_failed_node(self) -> None:
        # Slurm needs ten seconds to notice the failure.
        self.write_run_file(steps=6 * STEPS)
        job = self.submit_two_workers("--nodes=2", "--ntasks-per-node=1")
        self.wait_for_steps(job, 20)
        self.cluster.crash_node("second")
        is_noticed = lambda: "Node failure on second" in self.log(job)
        wait_for("Slurm to notice the failure", is_noticed, TIMEOUT_SECONDS, lambda: self.explain(job))
        audit = self.assert_finished(job)
        self.assertEqual(audit["generations"][-1]["members"], [0])

    def test_a_job_restarts_after_the_loss_of_its_first_node(self) -> None:
        # Slurm must notice the loss of the node before the job is requeued: a job whose launch
        # fails is held.
        self.settings["DICO_JOIN_TIMEOUT"] = "20"
        # After the loss of the first node Slurm 22.05 has no GPUs for the job.
        job = self.submit_two_workers("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0")
        self.wait_for_steps(job, 20)
        self.cluster.crash_node("first")
        is_down = lambda: self.cluster.node("first").get("State", "").startswith("DOWN")
        wait_for("Slurm to notice the failure", is_down, TIMEOUT_SECONDS, lambda: self.explain(job))
        self.wait(job, "PENDING")
        self.cluster.start_node("first")
        self.assert_finished(job, starts=2)

    def test_a_cancelled_run_resumes_in_another_job(self) -> None:
        first = self.submit_two_workers()
        self.wait_for_steps(first, 20)
        self.cluster.run("scancel", first)
        self.wait(first, *END_STATES)
        self.assertEqual(self.cluster.job(first)["JobState"], "CANCELLED")
        self.assert_nothing_redone(self.assert_finished(self.submit_two_workers()))

    def test_an_invalid_run_file_fails_the_job(self) -> None:
        self.write_run_file(sede=1)
        job = self.submit_two_workers()
        self.wait(job, *END_STATES)
        self.assertEqual(self.cluster.job(job)["JobState"], "FAILED")
        self.assertIn("unknown key `sede`", self.log(job))

    def test_workers_that_always_fail_fail_the_job(self) -> None:
        self.use_failing_workers()
        job = self.submit_two_workers()
        self.wait(job, *END_STATES)
        self.assertEqual(self.cluster.job(job)["JobState"], "FAILED")
        self.assertIn("no worker is left", self.log(job))
        # DICO_RESTARTS is 1, so the worker starts twice.
        self.assertEqual(len(self.recorded_commands(job)[0]), 2)

    def test_each_worker_gets_its_own_gpu(self) -> None:
        self.use_failing_workers(DICO_DEVICE="cuda")
        # A task sees all GPUs of the job on its node, or only its own.
        one_visible = lambda: self.submit_two_workers("--gpus-per-task=1")
        for submit, devices in (
            (self.submit_two_workers, ["cuda:0", "cuda:1"]),
            (one_visible, ["cuda:0", "cuda:0"]),
            (self.submit_heterogeneous, ["cuda:0", "cuda:1"]),
        ):
            job = submit()
            self.wait(job, *END_STATES)
            for commands, device in zip(self.recorded_commands(job), devices, strict=True):
                self.assertIn(f"--device {device} ", commands[0], self.explain(job))

    def use_failing_workers(self, **settings: str) -> None:
        """Replaces `worker` by a script that prints its arguments and fails."""
        programs = self.folder / "bin"
        programs.mkdir()
        (programs / "coordinator").symlink_to(BIN / "coordinator")
        (programs / "worker").write_text('#!/bin/sh\necho "called with $@"\nexit 1\n')
        (programs / "worker").chmod(0o755)
        self.settings |= {"DICO_BIN": str(programs), "DICO_RESTARTS": "1"} | settings

    def recorded_commands(self, job: str) -> list[list[str]]:
        """Returns the printed arguments of each worker of a job, one line per start."""
        logs = sorted((self.folder / "jobs" / job).glob("worker-*.log"))
        return [[line for line in log.read_text().splitlines() if line.startswith("called with ")] for log in logs]


if __name__ == "__main__":
    unittest.main()
