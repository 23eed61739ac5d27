"""Builds the CPU images with buildah, and runs a training run in them.

The builder stages of deploy/Containerfile do not run: the programs of this machine replace their
results. The base image is a Debian that debootstrap creates once in target/deploy/debian, because
the test uses no registry.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

import yaml

from container import BUILDER_OUTPUTS, TIMEOUT_SECONDS
from containerfile import ROOT, stages

DEBIAN = ROOT / "target/deploy/debian"
TARGETS = ["coordinator", "worker-cpu"]
TOOLS = ["buildah", "debootstrap"]


@unittest.skipUnless(os.geteuid() == 0 and all(map(shutil.which, TOOLS)), f"needs root and {' and '.join(TOOLS)}")
class BuiltImages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        (cls.folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        cls.policy = f"--signature-policy={cls.folder}/policy.json"
        cls.build_base()
        builders = []
        for (builder, out), program in BUILDER_OUTPUTS.items():
            target_path = cls.folder / builder / out.lstrip("/")
            target_path.parent.mkdir(parents=True, exist_ok=True)
            if program.is_dir():
                shutil.copytree(program, target_path)
            else:
                subprocess.run(["install", "--strip", program, target_path], check=True)
            builders.append(f"--build-context={builder}={cls.folder / builder}")
        for target in TARGETS:
            recipe = ["--file", ROOT / "deploy/Containerfile", "--target", target, "--tag", f"dico-{target}"]
            # Only builder stages copy files of the context, so any folder will do.
            cls.buildah("bud", cls.policy, "--pull-never", *set(builders), *recipe, ROOT / "tools")

    @classmethod
    def build_base(cls) -> None:
        if not DEBIAN.exists():
            sources = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
            mirror = subprocess.run(sources, check=True, capture_output=True, text=True).stdout.split()[0]
            unfinished = DEBIAN.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            bootstrapped = subprocess.run(
                ["debootstrap", "--variant=minbase", "bookworm", unfinished, mirror], capture_output=True, text=True
            )
            assert bootstrapped.returncode == 0, bootstrapped.stdout[-2000:]
            unfinished.rename(DEBIAN)
        (cls.folder / "base").write_text("FROM scratch\nADD . /\n")
        names = [f"--tag={stage.base}" for stage in stages().values()]
        cls.buildah("bud", cls.policy, *sorted(set(names)), "--file", cls.folder / "base", DEBIAN)

    @classmethod
    def command(cls, *arguments) -> list[str]:
        store = ["--storage-driver=vfs", f"--root={cls.folder}/images", f"--runroot={cls.folder}/run"]
        return ["buildah", *store, *map(str, arguments)]

    @classmethod
    def buildah(cls, *arguments) -> str:
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        result = subprocess.run(cls.command(*arguments), capture_output=True, text=True, env=environment)
        assert result.returncode == 0, f"buildah {arguments[0]}: {result.stdout[-1000:]}{result.stderr[-2000:]}"
        return result.stdout.strip()

    def start(self, target: str, arguments: list[str]) -> subprocess.Popen:
        """Starts an image's entrypoint as the image's user."""
        container = self.buildah("from", self.policy, "--pull-never", f"localhost/dico-{target}")
        command = self.command("run", "--isolation=chroot", f"--volume={self.data}:/data", container, "--", *arguments)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self.addCleanup(self.kill, process)
        return process

    @staticmethod
    def kill(process: subprocess.Popen) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()

    def test_images_have_the_user_and_entrypoint_of_their_stage(self):
        for target in TARGETS:
            inspected = json.loads(self.buildah("inspect", "--type=image", f"localhost/dico-{target}"))["OCIv1"][
                "config"
            ]
            self.assertEqual(inspected["User"], stages()[target].user)
            self.assertEqual(inspected["Entrypoint"], stages()[target].entrypoint)

    def test_a_run_trains_in_the_images(self):
        self.data = self.folder / "data"
        self.data.mkdir()
        self.data.chmod(0o777)
        run = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
        run |= {"output": "/data/run", "stages": [run["stages"][1] | {"steps": 4, "batch": 8, "micro_batch": 4}]}
        run["data"] = {"karpathy": {"annotations": "/data/world/dataset.json", "images": "/data/world/images"}}
        (self.data / "run.yaml").write_text(yaml.safe_dump(run))
        world = self.start("worker-cpu", ["worker", "synthesize", "--out", "/data/world", "--images", "30"])
        self.assertEqual(world.wait(TIMEOUT_SECONDS), 0)
        free_ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        coordinator = self.start("coordinator", ["coordinator", "serve", "--config", "/data/run.yaml", *free_ports])
        (address,) = re.findall(r"grpc=(\S+)", coordinator.stdout.readline())
        join = ["worker", "join", "--coordinator", f"http://{address}"]
        workers = [self.start("worker-cpu", [*join, "--rank", worker_id]) for worker_id in "01"]
        for process in [*workers, coordinator]:
            self.assertEqual(process.wait(TIMEOUT_SECONDS), 0)
        self.assertEqual((self.data / "run/checkpoints").stat().st_uid, int(stages()["worker-cpu"].user.split(":")[0]))
