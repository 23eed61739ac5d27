"""Runs the pods of the cpu-demo overlay with their commands, users, mounts, secrets and probes."""

import pathlib
import re
import shutil
import tempfile
import unittest

import yaml

import kubernetes
from container import Container, get, metric, requires_namespaces, wait_until

COORDINATOR = "10.0.0.10"
NAMES = {"coordinator": COORDINATOR, "coordinator.dico.svc": COORDINATOR}


@requires_namespaces
class Pods(unittest.TestCase):
    """Runs whose worker pod and coordinator pod are evicted."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o755)
        self.deploy = kubernetes.copy_deploy_folder(self.folder)
        shorten_demo(self.deploy / "k8s/overlays/cpu-demo")
        self.containers: list[Container] = []

    def tearDown(self):
        for container in self.containers:
            container.kill()

    def render(self, overlay: pathlib.Path) -> None:
        self.manifests = kubernetes.render(overlay)
        self.node = kubernetes.Node(self.folder / "node", self.manifests)
        self.job = kubernetes.find(self.manifests, "Job", "worker")["spec"]
        self.set = kubernetes.find(self.manifests, "StatefulSet", "coordinator")["spec"]

    def coordinator(self, command: list[str] | None = None) -> Container:
        container = self.node.run(
            self.set["template"],
            "coordinator-0",
            COORDINATOR,
            NAMES,
            claims=self.set["volumeClaimTemplates"],
            command=command,
        )
        self.containers.append(container)
        return container

    def worker(self, index: int) -> Container:
        # The Job controller sets this variable for completionMode: Indexed.
        container = self.node.run(
            self.job["template"],
            f"worker-{index}",
            f"10.0.0.{20 + index}",
            NAMES,
            environment={"JOB_COMPLETION_INDEX": str(index)},
        )
        self.containers.append(container)
        return container

    def probe(self, kind: str) -> int:
        (container,) = self.set["template"]["spec"]["containers"]
        probe = container[f"{kind}Probe"]["httpGet"]
        port = next(port["containerPort"] for port in container["ports"] if port["name"] == probe["port"])
        return get(f"http://{COORDINATOR}:{port}{probe['path']}")[0]

    def steps(self) -> float:
        return metric(get(f"http://{COORDINATOR}:7071/metrics")[1], "dico_step")

    def is_in_second_stage(self) -> bool:
        return 'stage="xe"' in get(f"http://{COORDINATOR}:7071/metrics")[1] and self.steps() >= 5

    def failure_action(self, status: int) -> str:
        """Returns the action of the Job controller for a worker's exit status."""
        if status == 0:
            return "success"
        for rule in self.job["podFailurePolicy"]["rules"]:
            if status in rule.get("onExitCodes", {}).get("values", []):
                return rule["action"]
        return "Count"

    def test_a_run_survives_evictions_and_its_end_completes_the_job(self):
        self.render(self.deploy / "k8s/overlays/cpu-demo")
        coordinator = self.coordinator()
        wait_until("the startup probe", lambda: self.probe("startup") == 200, coordinator)
        self.assertEqual(self.probe("liveness"), 200)
        self.assertEqual(self.probe("readiness"), 503, "no worker has joined")
        workers = [self.worker(index) for index in range(self.job["completions"])]
        wait_until("readiness", lambda: self.probe("readiness") == 200, coordinator, *workers)

        wait_until("the second stage", self.is_in_second_stage, coordinator, *workers)
        workers[1].terminate()
        self.assertEqual(self.failure_action(workers[1].wait()), "Ignore", workers[1].output())
        wait_until("no readiness", lambda: self.probe("readiness") == 503, coordinator, workers[0])
        workers[1] = self.worker(1)
        wait_until("readiness", lambda: self.probe("readiness") == 200, coordinator, *workers)
        self.assertIn("joined worker_id=1", strip_colours(workers[1].output()))

        coordinator.terminate()
        self.assertEqual(coordinator.wait(), 0, coordinator.output())
        for worker in workers:
            self.assertEqual(self.failure_action(worker.wait()), "Ignore", worker.output())
        coordinator = self.coordinator()
        workers = [self.worker(index) for index in range(self.job["completions"])]
        for worker in workers:
            self.assertEqual(self.failure_action(worker.wait()), "success", worker.output())
        wait_until("a finished run that is still served", lambda: self.probe("readiness") == 200, coordinator)
        self.assertIn("resuming the run", coordinator.output())
        coordinator.terminate()
        self.assertEqual(coordinator.wait(), 0, coordinator.output())
        audit = self.coordinator(["audit", "--state", "/var/lib/dico/coordinator"])
        self.assertEqual(audit.wait(), 0, audit.output())

    def test_the_run_file_is_valid_in_a_pod(self):
        self.render(self.deploy / "k8s/overlays/cpu-demo")
        run = kubernetes.find(self.manifests, "ConfigMap", "run")["data"]["run.yaml"]
        self.worker(0).kill()
        # The mounts of a worker's pod. The worker's image lacks `coordinator validate`.
        mounts = [
            (self.node.folder / "worker-0.1/volumes/world", "/world", False),
            (self.node.claims["checkpoints"], "/checkpoints", True),
        ]
        (self.folder / "run.yaml").write_text(run)
        check = Container(
            self.folder / "check",
            "coordinator",
            ["validate", "--config", "/run.yaml"],
            mounts=[*mounts, (self.folder / "run.yaml", "/run.yaml", False)],
        )
        self.assertEqual(check.wait(), 0, check.output())

    def test_pods_connect_with_certificates(self):
        overlay = self.deploy / "k8s/overlays/with-tls"
        overlay.mkdir()
        (overlay / "kustomization.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "namespace": "dico",
                    "resources": ["../cpu-demo"],
                    "components": ["../../components/tls"],
                }
            )
        )
        self.render(overlay)
        coordinator = self.coordinator()
        wait_until("the startup probe", lambda: self.probe("startup") == 200, coordinator)
        workers = [self.worker(index) for index in range(self.job["completions"])]
        wait_until("readiness", lambda: self.probe("readiness") == 200, coordinator, *workers)
        # `kubectl exec coordinator-0 -- coordinator status ...`
        status = self.coordinator(["status", "--admin-token-file", "/etc/dico/tokens/admin-token"])
        self.assertEqual(status.wait(), 0, status.output())
        self.assertIn("https://coordinator:7070", workers[0].output())


def shorten_demo(overlay: pathlib.Path) -> None:
    """Shortens the demo: few images and few steps."""
    run = overlay / "run.yaml"
    content = yaml.safe_load(run.read_text())
    for stage, steps in zip(content["stages"], [4, 400, 2], strict=True):
        stage |= (
            {"steps": steps, "batch": 8, "micro_batch": 4}
            if stage["objective"] == "cross_entropy"
            else {"steps": steps, "batch": 8}
        )
    content["decoding"] = {"beams": 3, "max_length": 12}
    run.write_text(yaml.safe_dump(content))
    worker = overlay / "worker.yaml"
    text = worker.read_text()
    assert "--images=5000" in text
    worker.write_text(text.replace("--images=5000", "--images=60"))


def strip_colours(text: str) -> str:
    """Removes colour codes from a log."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
