"""The images for CPUs, built by buildah and run.

All of deploy/Containerfile but its builders, in place of whose results stand this machine's programs. As no registry is
asked, the base is a Debian that debootstrap makes, once, in target/deploy/debian.
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

from container import BUILT, PATIENCE
from containerfile import ROOT, stages

DEBIAN = ROOT / "target/deploy/debian"
TARGETS = ["coordinator", "worker-cpu"]
TOOLS = ["buildah", "debootstrap"]


@unittest.skipUnless(os.geteuid() == 0 and all(map(shutil.which, TOOLS)), f"needs root and {' and '.join(TOOLS)}")
class Built(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        (cls.folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        cls.policy = f"--signature-policy={cls.folder}/policy.json"
        cls.base()
        builders = []
        for (builder, out), program in BUILT.items():
            place = cls.folder / builder / out.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if program.is_dir():
                shutil.copytree(program, place)
            else:
                subprocess.run(["install", "--strip", program, place], check=True)
            builders.append(f"--build-context={builder}={cls.folder / builder}")
        for target in TARGETS:
            recipe = ["--file", ROOT / "deploy/Containerfile", "--target", target, "--tag", f"dico-{target}"]
            # Nothing but builders copies anything of the context.
            cls.buildah("bud", cls.policy, "--pull-never", *set(builders), *recipe, ROOT / "tools")

    @classmethod
    def base(cls) -> None:
        if not DEBIAN.exists():
            sources = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
            mirror = subprocess.run(sources, check=True, capture_output=True, text=True).stdout.split()[0]
            making = DEBIAN.with_suffix(".making")
            shutil.rmtree(making, ignore_errors=True)
            made = subprocess.run(
                ["debootstrap", "--variant=minbase", "bookworm", making, mirror], capture_output=True, text=True
            )
            assert made.returncode == 0, made.stdout[-2000:]
            making.rename(DEBIAN)
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
        done = subprocess.run(cls.command(*arguments), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()

    def start(self, target: str, arguments: list[str]) -> subprocess.Popen:
        """Runs an image's entrypoint as the image's user."""
        container = self.buildah("from", self.policy, "--pull-never", f"localhost/dico-{target}")
        command = self.command("run", "--isolation=chroot", f"--volume={self.data}:/data", container, "--", *arguments)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process: subprocess.Popen) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()

    def test_what_the_images_say_of_themselves(self):
        for target in TARGETS:
            inspected = json.loads(self.buildah("inspect", "--type=image", f"localhost/dico-{target}"))["OCIv1"][
                "config"
            ]
            self.assertEqual(inspected["User"], stages()[target].user)
            self.assertEqual(inspected["Entrypoint"], stages()[target].entrypoint)

    def test_a_run_is_trained_in_them(self):
        self.data = self.folder / "data"
        self.data.mkdir()
        self.data.chmod(0o777)
        run = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
        run |= {"output": "/data/run", "stages": [run["stages"][1] | {"steps": 4, "batch": 8, "micro_batch": 4}]}
        run["data"] = {"karpathy": {"annotations": "/data/world/dataset.json", "images": "/data/world/images"}}
        (self.data / "run.yaml").write_text(yaml.safe_dump(run))
        world = self.start("worker-cpu", ["worker", "synthesize", "--out", "/data/world", "--images", "30"])
        self.assertEqual(world.wait(PATIENCE), 0)
        anywhere = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        coordinator = self.start("coordinator", ["coordinator", "serve", "--config", "/data/run.yaml", *anywhere])
        (address,) = re.findall(r"grpc=(\S+)", coordinator.stdout.readline())
        join = ["worker", "join", "--coordinator", f"http://{address}"]
        workers = [self.start("worker-cpu", [*join, "--rank", rank]) for rank in "01"]
        for process in [*workers, coordinator]:
            self.assertEqual(process.wait(PATIENCE), 0)
        self.assertEqual((self.data / "run/checkpoints").stat().st_uid, int(stages()["worker-cpu"].user.split(":")[0]))
