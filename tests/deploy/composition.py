"""deploy/compose.yaml: checked, and run service by service."""

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
from container import Container, apart, get, metric, wait_until
from containerfile import ROOT, project_version, stages

TOKENS = {"DICO_JOIN_TOKEN": "join-" * 5, "DICO_ADMIN_TOKEN": "admin-" * 5}


def read(path: pathlib.Path, variables: dict[str, str]) -> dict:
    """A composition with its variables put in."""

    def value(found: re.Match) -> str:
        if found["name"] not in variables:
            raise KeyError(found["remedy"])
        return variables[found["name"]]

    return yaml.safe_load(re.sub(r"\$\{(?P<name>\w+):\?(?P<remedy>[^}]+)\}", value, path.read_text()))


class Composition(unittest.TestCase):
    def setUp(self):
        self.composition = read(ROOT / "deploy/compose.yaml", TOKENS)
        self.services = self.composition["services"]
        self.containers: list[Container] = []

    def tearDown(self):
        for container in self.containers:
            container.end()

    def test_it_is_of_the_specification(self):
        # Anchors are YAML's own affair.
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(self.composition)).validate()
        self.services["coordinator"]["prots"] = []
        with self.assertRaisesRegex(ValueError, "prots"):
            compose_spec.PyCompose.from_yaml(yaml.safe_dump(self.composition))

    def test_tokens_are_asked_for(self):
        with self.assertRaisesRegex(KeyError, "run deploy/make-secrets first"):
            read(ROOT / "deploy/compose.yaml", {})
        with tempfile.TemporaryDirectory() as folder:
            made = (kubernetes.copy(pathlib.Path(folder)) / ".env").read_text()
        self.assertEqual({line.split("=")[0] for line in made.splitlines()}, TOKENS.keys())
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

    def test_nothing_is_published_beyond_this_machine(self):
        for service in self.services.values():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_what_is_mounted_is_there(self):
        for service in self.services.values():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                there = (
                    (ROOT / "deploy" / source).exists()
                    if source.startswith(".")
                    else source in self.composition["volumes"]
                )
                self.assertTrue(there, volume)

    def test_prometheus_is_the_deployed_one_with_another_target(self):
        deployed = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
        deployed["scrape_configs"][0]["static_configs"][0]["targets"] = ["coordinator:7071"]
        self.assertEqual(yaml.safe_load(self.composition["configs"]["prometheus"]["content"]), deployed)

    def test_grafana_is_told_what_its_provisioning_asks_for(self):
        environment = self.services["grafana"]["environment"]
        asked = set()
        for path in (ROOT / "deploy/grafana/provisioning").rglob("*.yaml"):
            text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
            asked |= set(re.findall(r"\$\{?(\w+)", text))
        self.assertLessEqual(asked, environment.keys())
        places = [volume.split(":")[1] for volume in self.services["grafana"]["volumes"]]
        self.assertIn(environment["DICO_DASHBOARDS"], places)
        port = self.services["prometheus"]["ports"][0].split(":")[-1]
        self.assertEqual(environment["PROMETHEUS_URL"], f"http://prometheus:{port}")

    @apart
    def test_a_run_is_trained_and_seen_by_prometheus(self):
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        folder.chmod(0o755)
        deploy = kubernetes.copy(folder)
        pods.shorten(deploy / "k8s/overlays/cpu-demo")
        addresses = {name: f"10.0.0.{number}" for number, name in enumerate(self.services, 100)}

        def start(name: str, program: str = "") -> Container:
            service = self.services[name]
            mounts = []
            for volume in service.get("volumes", []):
                source, target, *options = volume.split(":")
                place = deploy / source
                if not source.startswith("."):
                    # A new volume is as the image's folder is.
                    place = folder / "volumes" / source
                    if not place.exists():
                        place.mkdir(parents=True)
                        os.chown(place, 65532, 65532)
                mounts.append((place, target, "ro" not in options))
            for config in service.get("configs", []):
                path = folder / config["source"]
                path.write_text(self.composition["configs"][config["source"]]["content"])
                mounts.append((path, config["target"], False))
            for target in service.get("tmpfs", []):
                place = folder / "tmpfs" / name
                place.mkdir(parents=True)
                place.chmod(0o1777)
                mounts.append((place, target, True))
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
        self.assertEqual(world.status(), 0, world.output())
        coordinator = start("coordinator")
        metrics = f"http://{addresses['coordinator']}:7071/metrics"
        wait_until("the coordinator", lambda: get(metrics)[0] == 200, coordinator)
        prometheus = start("prometheus", shutil.which("prometheus"))
        query = urllib.parse.quote('up{job="dico"} == 1')
        answer = f"http://{addresses['prometheus']}:9090/api/v1/query?query={query}"
        wait_until("a scrape", lambda: "coordinator:7071" in get(answer)[1], prometheus, coordinator)
        for rules in json.loads(get(f"http://{addresses['prometheus']}:9090/api/v1/rules")[1])["data"]["groups"]:
            self.assertTrue(rules["rules"])
        workers = [start("worker-0"), start("worker-1")]
        wait_until("a step", lambda: metric(get(metrics)[1], "dico_step") > 0, coordinator, *workers)
        for worker in workers:
            self.assertEqual(worker.status(), 0, worker.output())
        coordinator.ask_to_end()
        self.assertEqual(coordinator.status(), 0, coordinator.output())
