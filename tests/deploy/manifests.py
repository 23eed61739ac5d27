"""Checks the rendered overlays of deploy/k8s: schemas, references, network policies, secrets."""

import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import kubernetes_validate
import yaml

import kubernetes
from container import PROGRAMS
from containerfile import ROOT, project_version, stages
from kubernetes import find, matches

VERSIONS = ["1.36", "1.37"]
# The kinds of the Prometheus operator are not in Kubernetes' schemas. Field -> type, as in the
# operator's API reference; only the fields in use.
POD_MONITOR = {"jobLabel": str, "selector": dict, "podMetricsEndpoints": list}
POD_METRICS_ENDPOINT = {"port": str, "path": str, "interval": str}
WORKER = {"app.kubernetes.io/name": "dico", "app.kubernetes.io/component": "worker"}
COORDINATOR = {"app.kubernetes.io/name": "dico", "app.kubernetes.io/component": "coordinator"}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}


class Overlay:
    """A rendered overlay and its main parts."""

    def __init__(self, deploy: pathlib.Path, name: str):
        self.manifests = kubernetes.render(deploy / "k8s/overlays" / name)
        self.job = find(self.manifests, "Job", "worker")["spec"]
        self.set = find(self.manifests, "StatefulSet", "coordinator")["spec"]
        self.templates = {"coordinator": self.set["template"], "worker": self.job["template"]}
        self.run = yaml.safe_load(find(self.manifests, "ConfigMap", "run")["data"]["run.yaml"])

    def of_kind(self, kind: str) -> list[dict]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def containers(self):
        """Yields (name of the pod, its spec, container)."""
        for name, template in self.templates.items():
            spec = template["spec"]
            for container in spec.get("initContainers", []) + spec["containers"]:
                yield name, spec, container

    def mounts(self, pod: str) -> list[str]:
        (container,) = self.templates[pod]["spec"]["containers"]
        return [mount["mountPath"] for mount in container["volumeMounts"]]


class Manifests:
    """Tests of every overlay."""

    name: str
    # The run file in the repository from which tools/generate-configs writes the overlay's.
    original: str

    @classmethod
    def setUpClass(cls):
        folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, folder)
        cls.deploy = kubernetes.copy_deploy_folder(folder)
        cls.overlay = Overlay(cls.deploy, cls.name)

    def test_every_manifest_is_valid_by_its_schema(self):
        overlay = self.overlay
        for manifest in overlay.manifests:
            if manifest["kind"] == "PodMonitor":
                self.check_field_types(manifest["spec"], POD_MONITOR)
                for endpoint in manifest["spec"]["podMetricsEndpoints"]:
                    self.check_field_types(endpoint, POD_METRICS_ENDPOINT)
                continue
            for version in VERSIONS:
                with self.subTest(version=version, kind=manifest["kind"], name=manifest["metadata"]["name"]):
                    kubernetes_validate.validate(manifest, version, strict=True)

    def test_the_results_pod_mounts_the_coordinators_volume(self):
        pod = yaml.safe_load((self.deploy / "k8s/results.yaml").read_text())
        for version in VERSIONS:
            kubernetes_validate.validate(pod, version, strict=True)
        (volume,) = pod["spec"]["volumes"]
        claims = [claim["metadata"]["name"] for claim in self.overlay.set["volumeClaimTemplates"]]
        self.assertEqual([volume["persistentVolumeClaim"]["claimName"]], [f"{claim}-coordinator-0" for claim in claims])
        self.assertEqual(
            pod["spec"]["securityContext"], self.overlay.templates["coordinator"]["spec"]["securityContext"]
        )

    def check_field_types(self, content: dict, types: dict[str, type]) -> None:
        for name, value in content.items():
            self.assertIsInstance(value, types.get(name, ()), name)

    def test_unknown_fields_fail_the_validation(self):
        for version in VERSIONS:
            worker = json.loads(json.dumps(find(self.overlay.manifests, "Job", "worker")))
            worker["spec"]["paralellism"] = 2
            with self.assertRaises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(worker, version, strict=True)

    def test_everything_is_in_the_namespace(self):
        overlay = self.overlay
        for manifest in overlay.manifests:
            if manifest["kind"] != "Namespace":
                self.assertEqual(manifest["metadata"].get("namespace"), "dico", manifest["metadata"]["name"])

    def test_selectors_match_the_intended_pods(self):
        overlay = self.overlay
        labels = {name: template["metadata"]["labels"] for name, template in overlay.templates.items()}

        def selected(selector: dict) -> set[str]:
            return {name for name in labels if matches(selector, labels[name])}

        self.assertEqual(selected(overlay.set["selector"]), {"coordinator"})
        (service,) = overlay.of_kind("Service")
        self.assertEqual(selected({"matchLabels": service["spec"]["selector"]}), {"coordinator"})
        self.assertEqual(overlay.set["serviceName"], service["metadata"]["name"])
        for budget in overlay.of_kind("PodDisruptionBudget"):
            self.assertEqual(selected(budget["spec"]["selector"]), {budget["metadata"]["name"]})
        for monitor in overlay.of_kind("PodMonitor"):
            self.assertEqual(selected(monitor["spec"]["selector"]), {"coordinator"})
            self.assertEqual(labels["coordinator"][monitor["spec"]["jobLabel"]], "dico", "alerts ask for it")
        for constraint in overlay.job["template"]["spec"]["topologySpreadConstraints"]:
            self.assertEqual(selected(constraint["labelSelector"]), {"worker"})

    def test_workers_reach_a_coordinator_that_is_not_ready(self):
        overlay = self.overlay
        (service,) = overlay.of_kind("Service")
        self.assertTrue(service["spec"]["publishNotReadyAddresses"])
        (container,) = overlay.templates["worker"]["spec"]["containers"]
        address = next(v["value"] for v in container["env"] if v["name"] == "DICO_COORDINATOR")
        ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
        self.assertRegex(address, rf"^https?://{service['metadata']['name']}:{ports['grpc']}$")

    def test_named_ports_exist(self):
        overlay = self.overlay
        (container,) = overlay.templates["coordinator"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        port_names = [port["targetPort"] for port in overlay.of_kind("Service")[0]["spec"]["ports"]]
        port_names += [container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")]
        port_names += [e["port"] for m in overlay.of_kind("PodMonitor") for e in m["spec"]["podMetricsEndpoints"]]
        self.assertLessEqual(set(port_names), ports.keys())
        for name, option in (("grpc", "--listen"), ("http", "--http")):
            self.assertIn(f"{option}=0.0.0.0:{ports[name]}", container["args"])
        self.assertEqual({f"{port}" for port in ports.values()}, set(stages()["coordinator"].ports))

    def test_network_policies_allow_required_connections_only(self):
        pod, elsewhere = ("dico", WORKER), ("default", WORKER)
        coordinator, prometheus = ("dico", COORDINATOR), ("monitoring", PROMETHEUS)
        overlay = self.overlay
        monitored = bool(overlay.of_kind("PodMonitor"))
        bucket = "s3://" in json.dumps(overlay.run)
        for source, target, port, allowed in [
            (pod, pod, 45123, True),
            (pod, coordinator, 7070, True),
            (pod, coordinator, 7071, False),
            (coordinator, pod, 45123, False),
            (elsewhere, coordinator, 7070, False),
            (elsewhere, pod, 45123, False),
            (prometheus, coordinator, 7071, monitored),
            (prometheus, coordinator, 7070, False),
            (("default", PROMETHEUS), coordinator, 7071, False),
            (pod, None, 53, True),
            (coordinator, None, 53, True),
            (pod, None, 443, bucket),
            (coordinator, None, 443, bucket),
            (pod, None, 80, False),
        ]:
            with self.subTest(source=source, target=target, port=port):
                self.assertEqual(self.is_connection_allowed(overlay, source, target, port), allowed)

    def is_connection_allowed(self, overlay: Overlay, source, target, port: int) -> bool:
        """Returns whether the policies allow a TCP connection.

        A pod is (namespace, labels). None stands for an address outside the cluster.
        """
        names = {"grpc": 7070, "http": 7071}

        def direction_allows(direction: str, pod, other) -> bool:
            if pod is None or pod[0] != "dico":
                return True
            policies = [
                policy["spec"]
                for policy in overlay.of_kind("NetworkPolicy")
                if direction in policy["spec"]["policyTypes"] and matches(policy["spec"]["podSelector"], pod[1])
            ]
            rules = [rule for policy in policies for rule in policy.get(direction.lower(), [])]
            self.assertTrue(policies, "a pod that no policy selects accepts all connections")
            return any(
                self.rule_allows(rule, "from" if direction == "Ingress" else "to", other, port, names) for rule in rules
            )

        return direction_allows("Egress", source, target) and direction_allows("Ingress", target, source)

    def rule_allows(self, rule: dict, key: str, other, port: int, names: dict[str, int]) -> bool:
        ports = [names.get(entry["port"], entry["port"]) for entry in rule.get("ports", []) if entry["protocol"] == "TCP"]
        if "ports" in rule and port not in ports:
            return False
        for peer in rule.get(key, [{}]):
            if "ipBlock" in peer:
                allows = other is None
            elif peer:
                namespaces = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": "dico"}})
                allows = (
                    other is not None
                    and matches(namespaces, {"kubernetes.io/metadata.name": other[0]})
                    and matches(peer.get("podSelector", {}), other[1])
                )
            else:
                allows = True
            if allows:
                return True
        return False

    def test_pods_have_restricted_security_contexts(self):
        overlay = self.overlay
        for _, spec, container in overlay.containers():
            container_context, pod_context = container["securityContext"], spec["securityContext"]
            self.assertFalse(spec["automountServiceAccountToken"])
            self.assertTrue(pod_context["runAsNonRoot"])
            self.assertEqual(pod_context["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertEqual(f"{pod_context['runAsUser']}:{pod_context['runAsGroup']}", stages()["coordinator"].user)
            self.assertEqual(
                container_context,
                {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
            )
            self.assertIn("memory", container["resources"]["limits"])

    def test_mounted_volumes_and_their_sources_exist(self):
        overlay = self.overlay
        for pod, spec, container in overlay.containers():
            claim_names = (
                [claim["metadata"]["name"] for claim in overlay.set["volumeClaimTemplates"]]
                if pod == "coordinator"
                else []
            )
            volumes = {volume["name"] for volume in spec["volumes"]} | set(claim_names)
            mounts = container["volumeMounts"]
            self.assertLessEqual({mount["name"] for mount in mounts}, volumes)
            self.assertEqual(len({mount["mountPath"] for mount in mounts}), len(mounts))
            referenced = {("Secret", s["secretRef"]["name"]) for s in container.get("envFrom", [])}
            for volume in spec["volumes"]:
                referenced |= {
                    ("Secret", source["secret"]["name"]) for source in volume.get("projected", {}).get("sources", [])
                }
                for kind, key, field in [
                    ("Secret", "secret", "secretName"),
                    ("ConfigMap", "configMap", "name"),
                    ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                ]:
                    referenced |= {(kind, volume[key][field])} if key in volume else set()
            existing = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in overlay.manifests}
            self.assertLessEqual(referenced, existing)

    def test_workers_mount_only_their_own_secrets(self):
        overlay = self.overlay
        secrets = {
            volume["secret"]["secretName"].rsplit("-", 1)[0]
            for volume in overlay.templates["worker"]["spec"]["volumes"]
            if "secret" in volume
        }
        self.assertLessEqual(secrets, {"join-token", "worker-tls"})

    def test_secrets_are_generated_and_not_committed(self):
        all_files = {path.relative_to(self.deploy) for path in self.deploy.rglob("*") if path.is_file()}
        git_files = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy"],
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=True,
        ).stdout.splitlines()
        generated = {path for path in all_files if f"deploy/{path}" not in git_files}
        self.assertIn(pathlib.Path("secrets/join-token"), generated)
        self.assertIn(pathlib.Path("k8s/components/tls/coordinator-key.pem"), generated)
        for path in generated:
            ignored = subprocess.run(["git", "check-ignore", "--quiet", f"deploy/{path}"], cwd=ROOT)
            self.assertEqual(ignored.returncode, 0, f"deploy/{path} could be committed")
        before = {path: (self.deploy / path).read_bytes() for path in generated}
        without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        subprocess.run([self.deploy / "make-secrets"], check=True, env=without)
        self.assertEqual({path: (self.deploy / path).read_bytes() for path in generated}, before, "existing secrets are kept")
        overlay = self.overlay
        for name in ("join-token", "admin-token"):
            token = base64.b64decode(find(overlay.manifests, "Secret", name)["data"][name])
            self.assertRegex(token.decode(), r"^[0-9a-f]{64}\n$")
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "deploy", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*-token"))
            with self.assertRaisesRegex(RuntimeError, "join-token"):
                kubernetes.render(pathlib.Path(folder) / "k8s/overlays/cpu-demo")

    def test_programs_accept_their_arguments(self):
        overlay = self.overlay
        for _, _, container in overlay.containers():
            program = PROGRAMS / stages()[stage_of(container["image"])].entrypoint[0]
            arguments = [argument.replace("$(POD_IP)", "10.0.0.1") for argument in container["args"]]
            # The data set cannot be written below /dev/null.
            arguments = [argument.replace("--out=/", "--out=/dev/null/") for argument in arguments]
            result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
            # Status 2 is a wrong command line. Status 1 is correct here, because a file is missing.
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertRegex(result.stderr, r"/(etc/dico|dev/null)/")

    def test_images_are_targets_of_the_containerfile_with_this_version(self):
        overlay = self.overlay
        for _, _, container in overlay.containers():
            self.assertIn(stage_of(container["image"]), stages())
            self.assertEqual(container["image"].rsplit(":", 1)[-1], project_version())

    def test_run_files_differ_from_those_in_configs_in_paths_only(self):
        overlay = self.overlay
        original = yaml.safe_load((ROOT / self.original).read_text())
        run = json.loads(json.dumps(overlay.run))
        checkpoints = run.pop("checkpoints")["url"]
        self.assertTrue(any(run["output"].startswith(mount) for mount in overlay.mounts("coordinator")))
        self.assertTrue(
            checkpoints.startswith("s3://")
            or all(any(checkpoints.startswith(f"file://{m}") for m in overlay.mounts(pod)) for pod in overlay.templates)
        )
        for path in re.findall(r'"(/[^"]+)"', json.dumps(run)):
            pod = "coordinator" if path == run["output"] else "worker"
            self.assertTrue(any(path.startswith(mount) for mount in overlay.mounts(pod)), path)
        for content in (run, original):
            content.pop("output")
            content.pop("workers")
        self.assertEqual(without_folders(run), without_folders(original))

    def test_worker_counts_are_consistent(self):
        overlay = self.overlay
        workers = overlay.run["workers"]
        self.assertEqual(overlay.job["completions"], workers["max"])
        self.assertEqual(overlay.job["parallelism"], workers["max"])
        budget = find(overlay.manifests, "PodDisruptionBudget", "worker")["spec"]
        # A Job has no scale, so percentages and maxUnavailable are not possible.
        self.assertNotIn("maxUnavailable", budget)
        self.assertIsInstance(budget["minAvailable"], int)
        self.assertLess(budget["minAvailable"], overlay.job["completions"], "no node could ever be drained")

    def test_workers_that_left_are_restarted(self):
        overlay = self.overlay
        (container,) = overlay.templates["worker"]["spec"]["containers"]
        status = next(a.split("=")[1] for a in container["args"] if a.startswith("--left-status="))
        codes = [
            rule["onExitCodes"]["values"]
            for rule in overlay.job["podFailurePolicy"]["rules"]
            if rule["action"] == "Ignore" and "onExitCodes" in rule
        ]
        self.assertEqual(codes, [[int(status)]])
        self.assertNotEqual(int(status), 0)


class CpuDemo(Manifests, unittest.TestCase):
    name, original = "cpu-demo", "configs/demo.yaml"


class Gpu(Manifests, unittest.TestCase):
    name, original = "gpu", "configs/coco-vit-l14.yaml"

    def test_gpu_workers_request_gpus(self):
        (container,) = self.overlay.templates["worker"]["spec"]["containers"]
        resources = container["resources"]
        self.assertEqual(resources["requests"]["nvidia.com/gpu"], resources["limits"]["nvidia.com/gpu"])
        base = Overlay(self.deploy, "cpu-demo").templates["worker"]["spec"]["containers"][0]["args"]
        self.assertEqual(container["args"], base + ["--device=cuda:0"])

    def test_dashboards_fit_into_a_config_map(self):
        dashboards = find(self.overlay.manifests, "ConfigMap", "grafana-dashboards")
        self.assertEqual(
            set(dashboards["data"]), {path.name for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
        )
        for text in dashboards["data"].values():
            self.assertTrue(json.loads(text)["panels"])
        self.assertLess(sum(map(len, dashboards["data"].values())), 1 << 20)


def without_folders(content: dict) -> dict:
    return json.loads(re.sub(r'"[^" ]*/([^"/]+)"', r'"\1"', json.dumps(content)))


def stage_of(image: str) -> str:
    """Returns the target of deploy/Containerfile from which an image is built."""
    return image.rsplit("/", 1)[-1].split(":")[0].removeprefix("dico-")
