"""Checks deploy/compose.yaml, and runs its services one by one."""

import json
import os
import pathlib
import re
import shutil
import tempfile
import unittest
import urllib.parse

import compose_spec
import yaml

import kubernetes
import pods
from container import Container, get, metric, requires_namespaces, wait_until
from containerfile import ROOT, project_version, stages

TOKENS = {"DICO_JOIN_TOKEN": "join-" * 5, "DICO_ADMIN_TOKEN": "admin-" * 5}


def read_compose_file(path: pathlib.Path, variables: dict[str, str]) -> dict:
    """Reads a Compose file and substitutes its variables. Raises KeyError for a missing one."""

    def substitute(match: re.Match) -> str:
        if match["name"] not in variables:
            raise KeyError(match["remedy"])
        return variables[match["name"]]

    return yaml.safe_load(re.sub(r"\$\{(?P<name>\w+):\?(?P<remedy>[^}]+)\}", substitute, path.read_text()))


class ComposeFile(unittest.TestCase):
    def setUp(self):
        self.compose = read_compose_file(ROOT / "deploy/compose.yaml", TOKENS)
        self.services = self.compose["services"]
        self.containers: list[Container] = []

    def tearDown(self):
        for container in self.containers:
            container.kill()

    def test_the_file_is_valid_by_the_compose_specification(self):
        # The validator gets the document with its YAML anchors resolved.
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(self.compose)).validate()
        self.services["coordinator"]["prots"] = []
        with self.assertRaisesRegex(ValueError, "prots"):
            compose_spec.PyCompose.from_yaml(yaml.safe_dump(self.compose))

    def test_missing_tokens_are_an_error(self):
        with self.assertRaisesRegex(KeyError, "run deploy/make-secrets first"):
            read_compose_file(ROOT / "deploy/compose.yaml", {})
        with tempfile.TemporaryDirectory() as folder:
            generated = (kubernetes.copy_deploy_folder(pathlib.Path(folder)) / ".env").read_text()
        self.assertEqual({line.split("=")[0] for line in generated.splitlines()}, TOKENS.keys())
        for name in ("worker-0", "worker-1", "world"):
            self.assertNotIn("DICO_ADMIN_TOKEN", self.services[name].get("environment", {}))

    def test_images_are_pinned_or_built_here(self):
        for name, service in self.services.items():
            if "build" in service:
                self.assertEqual(service["image"], f"dico-{service['build']['target']}:{project_version()}")
                self.assertIn(service["build"]["target"], stages())
                self.assertTrue(
                    (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).exists()
                )
            else:
                self.assertRegex(service["image"], r":v?\d+\.\d+\.\d+$", name)

    def test_ports_are_published_on_loopback_only(self):
        for service in self.services.values():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_mounted_sources_exist(self):
        for service in self.services.values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                exists = (
                    (ROOT / "deploy" / source).exists()
                    if source.startswith(".")
                    else source in self.compose["volumes"]
                )
                self.assertTrue(exists, volume)

    def test_prometheus_configuration_differs_from_the_deployed_one_in_its_target(self):
        deployed = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
        deployed["scrape_configs"][0]["static_configs"][0]["targets"] = ["coordinator:7071"]
        self.assertEqual(yaml.safe_load(self.compose["configs"]["prometheus"]["content"]), deployed)

    def test_grafana_has_the_variables_of_its_provisioning(self):
        environment = self.services["grafana"]["environment"]
        referenced = set()
        for path in (ROOT / "deploy/grafana/provisioning").rglob("*.yaml"):
            text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
            referenced |= set(re.findall(r"\$\{?(\w+)", text))
        self.assertLessEqual(referenced, environment.keys())
        mount_paths = [volume.split(":")[1] for volume in self.services["grafana"]["volumes"]]
        self.assertIn(environment["DICO_DASHBOARDS"], mount_paths)
        port = self.services["prometheus"]["ports"][0].split(":")[-1]
        self.assertEqual(environment["PROMETHEUS_URL"], f"http://prometheus:{port}")

    @requires_namespaces
    def test_a_run_trains_and_prometheus_scrapes_it(self):
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o755)
        deploy = kubernetes.copy_deploy_folder(folder)
        pods.shorten_demo(deploy / "k8s/overlays/cpu-demo")
        addresses = {name: f"10.0.0.{number}" for number, name in enumerate(self.services, 100)}

        def start(name: str, program: str = "") -> Container:
            service = self.services[name]
            mounts = []
            for volume in service.get("volumes", []):
                source, target, *options = volume.split(":")
                source_path = deploy / source
                if not source.startswith("."):
                    # Docker gives a new volume the owner of the image's folder.
                    source_path = folder / "volumes" / source
                    if not source_path.exists():
                        source_path.mkdir(parents=True)
                        os.chown(source_path, 65532, 65532)
                mounts.append((source_path, target, "ro" not in options))
            for config in service.get("configs", []):
                path = folder / config["source"]
                path.write_text(self.compose["configs"][config["source"]]["content"])
                mounts.append((path, config["target"], False))
            for target in service.get("tmpfs", []):
                source_path = folder / "tmpfs" / name
                source_path.mkdir(parents=True)
                source_path.chmod(0o1777)
                mounts.append((source_path, target, True))
            arguments = [argument.replace("--images=5000", "--images=60") for argument in service["command"]]
            container = Container(
                folder / "containers" / name,
                service["build"]["target"] if "build" in service else None,
                arguments,
                program=program,
                user="" if "build" in service else "65532:65532",
                environment=service.get("environment", {}),
                mounts=mounts,
                hosts=addresses,
                read_only=service.get("read_only", False),
            )
            self.containers.append(container)
            return container

        world = start("world")
        self.assertEqual(world.wait(), 0, world.output())
        coordinator = start("coordinator")
        metrics = f"http://{addresses['coordinator']}:7071/metrics"
        wait_until("the coordinator", lambda: get(metrics)[0] == 200, coordinator)
        prometheus = start("prometheus", shutil.which("prometheus"))
        query = urllib.parse.quote('up{job="dico"} == 1')
        query_url = f"http://{addresses['prometheus']}:9090/api/v1/query?query={query}"
        wait_until("a scrape", lambda: "coordinator:7071" in get(query_url)[1], prometheus, coordinator)
        for rules in json.loads(get(f"http://{addresses['prometheus']}:9090/api/v1/rules")[1])["data"]["groups"]:
            self.assertTrue(rules["rules"])
        workers = [start("worker-0"), start("worker-1")]
        wait_until("a step", lambda: metric(get(metrics)[1], "dico_step") > 0, coordinator, *workers)
        for worker in workers:
            self.assertEqual(worker.wait(), 0, worker.output())
        coordinator.terminate()
        self.assertEqual(coordinator.wait(), 0, coordinator.output())
