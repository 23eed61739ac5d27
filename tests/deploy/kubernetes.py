"""Renders deploy/k8s, and runs pods as a kubelet would."""

import base64
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import yaml

from container import NOTHING, Container
from containerfile import ROOT

# Where a Kubernetes machine puts what pods mount, and who may write there.
FS_GROUP = 0o770


def copy(folder: pathlib.Path) -> pathlib.Path:
    """A copy of deploy/ with secrets as deploy/make-secrets makes them."""
    deploy = folder / "deploy"
    ignore = shutil.ignore_patterns("*-token", "*.pem", "bucket.env", ".env")
    shutil.copytree(ROOT / "deploy", deploy, ignore=ignore)
    environment = os.environ | {
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
    }
    subprocess.run([deploy / "make-secrets"], check=True, env=environment)
    return deploy


def render(folder: pathlib.Path) -> list[dict]:
    """The manifests of a kustomization, by the real kustomize: that of kubectl."""
    rendered = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    if rendered.returncode != 0:
        raise RuntimeError(rendered.stderr)
    return list(yaml.safe_load_all(rendered.stdout))


def find(manifests: list[dict], kind: str, name: str) -> dict:
    """The manifest of an object; generated names may carry a hash."""
    named = re.compile(re.escape(name) + r"(-[a-z0-9]{10})?$")
    return next(m for m in manifests if m["kind"] == kind and named.match(m["metadata"]["name"]))


def matches(selector: dict, labels: dict) -> bool:
    """Whether a label selector, of matchLabels only, selects."""
    if selector.keys() - {"matchLabels"}:
        raise ValueError(f"say in tests/deploy/kubernetes.py what {selector} selects")
    return selector.get("matchLabels", {}).items() <= labels.items()


class Node:
    """A node that runs pods of a namespace, one container each, on addresses of 10.0.0.0/24."""

    def __init__(self, folder: pathlib.Path, manifests: list[dict]):
        self.folder, self.manifests = folder, manifests
        self.claims: dict[str, pathlib.Path] = {}
        self.pods = 0

    def run(
        self,
        template: dict,
        name: str,
        address: str,
        hosts: dict[str, str],
        *,
        environment: Mapping[str, str] = NOTHING,
        claims: Sequence[dict] = (),
        command: list[str] | None = None,
    ) -> Container:
        """Runs a pod's init containers and starts its container; `command` in place of its own arguments."""
        self.pods += 1
        folder = self.folder / f"{name}.{self.pods}"
        spec = template["spec"]
        volumes = {volume["name"]: self.volume(folder, volume, spec) for volume in spec["volumes"]}
        volumes |= {
            claim["metadata"]["name"]: self.claim(f"{claim['metadata']['name']}-{name}", spec) for claim in claims
        }

        def start(container: dict, arguments: list[str]) -> Container:
            own = spec["securityContext"]
            variables = dict(environment)
            for variable in container.get("env", []):
                field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
                variables[variable["name"]] = {None: variable.get("value"), "status.podIP": address}[field]
            arguments = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], argument) for argument in arguments]
            stage = {"dico-coordinator": "coordinator", "dico-worker-cpu": "worker-cpu"}[
                container["image"].split(":")[0]
            ]
            mounts = [
                (volumes[m["name"]], m["mountPath"], not m.get("readOnly", False)) for m in container["volumeMounts"]
            ]
            return Container(
                folder / container["name"],
                stage,
                arguments,
                user=f"{own['runAsUser']}:{own['runAsGroup']}",
                groups=str(own["fsGroup"]),
                environment=variables,
                mounts=mounts,
                hosts={**hosts, name: address},
                read_only=container["securityContext"]["readOnlyRootFilesystem"],
            )

        if command is None:
            for container in spec.get("initContainers", []):
                first = start(container, container["args"])
                if first.status() != 0:
                    raise AssertionError(f"{name}: {container['name']}: {first.output()}")
        (container,) = spec["containers"]
        return start(container, command or container["args"])

    def volume(self, folder: pathlib.Path, volume: dict, spec: dict) -> pathlib.Path:
        place = folder / "volumes" / volume["name"]
        match volume:
            case {"persistentVolumeClaim": {"claimName": claim}}:
                find(self.manifests, "PersistentVolumeClaim", claim)
                return self.claim(claim, spec)
            case {"emptyDir": _}:
                return self.writable(place, spec)
            case {"configMap": {"name": name}}:
                return self.files(place, [find(self.manifests, "ConfigMap", name)], 0o644, spec)
            case {"secret": {"secretName": name, "defaultMode": mode}}:
                return self.files(place, [find(self.manifests, "Secret", name)], mode, spec)
            case {"projected": {"sources": sources, "defaultMode": mode}}:
                secrets = [find(self.manifests, "Secret", source["secret"]["name"]) for source in sources]
                return self.files(place, secrets, mode, spec)
        raise ValueError(f"say in tests/deploy/kubernetes.py what the volume {volume} is")

    def claim(self, name: str, spec: dict) -> pathlib.Path:
        if name not in self.claims:
            self.claims[name] = self.writable(self.folder / "claims" / name, spec)
        return self.claims[name]

    @staticmethod
    def writable(place: pathlib.Path, spec: dict) -> pathlib.Path:
        place.mkdir(parents=True)
        os.chown(place, 0, spec["securityContext"]["fsGroup"])
        place.chmod(FS_GROUP)
        return place

    @staticmethod
    def files(place: pathlib.Path, sources: list[dict], mode: int, spec: dict) -> pathlib.Path:
        place.mkdir(parents=True)
        for source in sources:
            texts = {name: text.encode() for name, text in source["data"].items()}
            if source["kind"] == "Secret":
                texts = {name: base64.b64decode(text) for name, text in texts.items()}
            for name, text in texts.items():
                (place / name).write_bytes(text)
                os.chown(place / name, 0, spec["securityContext"]["fsGroup"])
                (place / name).chmod(mode)
        return place
