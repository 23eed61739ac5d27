"""Renders deploy/k8s, and runs pods like a kubelet."""

import base64
import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import yaml

from container import EMPTY, Container
from containerfile import ROOT

# Permissions of a writable volume of a pod with an fsGroup.
FS_GROUP_MODE = 0o770


def copy_deploy_folder(folder: pathlib.Path) -> pathlib.Path:
    """Copies deploy/ into `folder` and creates secrets with deploy/make-secrets."""
    deploy = folder / "deploy"
    ignore = shutil.ignore_patterns("*-token", "*.pem", "bucket.env", ".env")
    shutil.copytree(ROOT / "deploy", deploy, ignore=ignore)
    environment = os.environ | {
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "test-only",
        "AWS_SECRET_ACCESS_KEY": "test-only",
    }
    subprocess.run([deploy / "make-secrets"], check=True, env=environment)
    return deploy


def render(folder: pathlib.Path) -> list[dict]:
    """Renders a kustomization with `kubectl kustomize`."""
    rendered = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    if rendered.returncode != 0:
        raise RuntimeError(rendered.stderr)
    return list(yaml.safe_load_all(rendered.stdout))


def find(manifests: list[dict], kind: str, name: str) -> dict:
    """Returns the manifest of an object. Generated names may end with a hash."""
    name_pattern = re.compile(re.escape(name) + r"(-[a-z0-9]{10})?$")
    return next(m for m in manifests if m["kind"] == kind and name_pattern.match(m["metadata"]["name"]))


def matches(selector: dict, labels: dict) -> bool:
    """Returns whether a label selector matches. Supports matchLabels only."""
    if selector.keys() - {"matchLabels"}:
        raise ValueError(f"unsupported selector {selector}: add it to tests/deploy/kubernetes.py")
    return selector.get("matchLabels", {}).items() <= labels.items()


class Node:
    """A node that runs the pods of a namespace: one container each, addresses in 10.0.0.0/24."""

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
        environment: Mapping[str, str] = EMPTY,
        claims: Sequence[dict] = (),
        command: list[str] | None = None,
    ) -> Container:
        """Runs a pod's init containers, and starts its container.

        `command` replaces the container's arguments; then no init containers run.
        """
        self.pods += 1
        folder = self.folder / f"{name}.{self.pods}"
        spec = template["spec"]
        volumes = {volume["name"]: self.volume(folder, volume, spec) for volume in spec["volumes"]}
        volumes |= {
            claim["metadata"]["name"]: self.claim(f"{claim['metadata']['name']}-{name}", spec) for claim in claims
        }

        def start(container: dict, arguments: list[str]) -> Container:
            security_context = spec["securityContext"]
            variables = dict(environment)
            for variable in container.get("env", []):
                field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
                variables[variable["name"]] = {None: variable.get("value"), "status.podIP": address}[field]
            arguments = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], argument) for argument in arguments]
            stage = {"dico-coordinator": "coordinator", "dico-worker-cpu": "worker-cpu"}[
                container["image"].split(":")[0]
            ]
            mounts = [
                (volumes[mount["name"]], mount["mountPath"], not mount.get("readOnly", False))
                for mount in container["volumeMounts"]
            ]
            return Container(
                folder / container["name"],
                stage,
                arguments,
                user=f"{security_context['runAsUser']}:{security_context['runAsGroup']}",
                groups=str(security_context["fsGroup"]),
                environment=variables,
                mounts=mounts,
                hosts={**hosts, name: address},
                read_only=container["securityContext"]["readOnlyRootFilesystem"],
            )

        if command is None:
            for container in spec.get("initContainers", []):
                init_container = start(container, container["args"])
                if init_container.wait() != 0:
                    raise AssertionError(f"{name}: {container['name']}: {init_container.output()}")
        (container,) = spec["containers"]
        return start(container, command or container["args"])

    def volume(self, folder: pathlib.Path, volume: dict, spec: dict) -> pathlib.Path:
        path = folder / "volumes" / volume["name"]
        match volume:
            case {"persistentVolumeClaim": {"claimName": claim}}:
                find(self.manifests, "PersistentVolumeClaim", claim)
                return self.claim(claim, spec)
            case {"emptyDir": _}:
                return self.create_writable(path, spec)
            case {"configMap": {"name": name}}:
                return self.write_files(path, [find(self.manifests, "ConfigMap", name)], 0o644, spec)
            case {"secret": {"secretName": name, "defaultMode": mode}}:
                return self.write_files(path, [find(self.manifests, "Secret", name)], mode, spec)
            case {"projected": {"sources": sources, "defaultMode": mode}}:
                secrets = [find(self.manifests, "Secret", source["secret"]["name"]) for source in sources]
                return self.write_files(path, secrets, mode, spec)
        raise ValueError(f"unsupported volume {volume}: add it to tests/deploy/kubernetes.py")

    def claim(self, name: str, spec: dict) -> pathlib.Path:
        if name not in self.claims:
            self.claims[name] = self.create_writable(self.folder / "claims" / name, spec)
        return self.claims[name]

    @staticmethod
    def create_writable(path: pathlib.Path, spec: dict) -> pathlib.Path:
        path.mkdir(parents=True)
        os.chown(path, 0, spec["securityContext"]["fsGroup"])
        path.chmod(FS_GROUP_MODE)
        return path

    @staticmethod
    def write_files(path: pathlib.Path, sources: list[dict], mode: int, spec: dict) -> pathlib.Path:
        path.mkdir(parents=True)
        for source in sources:
            contents = {name: text.encode() for name, text in source["data"].items()}
            if source["kind"] == "Secret":
                contents = {name: base64.b64decode(text) for name, text in contents.items()}
            for name, text in contents.items():
                (path / name).write_bytes(text)
                os.chown(path / name, 0, spec["securityContext"]["fsGroup"])
                (path / name).chmod(mode)
        return path
