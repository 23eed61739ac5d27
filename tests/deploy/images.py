"""Tests the commands of deploy/Containerfile without building an image."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib
import unittest

from container import BUILDER_OUTPUTS, LIBTORCH, PROGRAMS, Container, requires_namespaces
from containerfile import ROOT, stages

TARGETS = {"coordinator": ["coordinator"], "worker-cpu": ["worker"], "worker-cuda": ["worker"]}
# Packages of debian:12-slim that programs are linked with.
ESSENTIAL = {"libc6", "libgcc-s1"}


def commands(run: str) -> list[str]:
    return [command.strip() for command in run.split("&&")]


class Images(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.stages = stages()

    def context(self) -> pathlib.Path:
        """Creates the build context: the files in git, without those that .dockerignore names."""
        ignored = (ROOT / ".dockerignore").read_text().split()
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=True,
        ).stdout.splitlines()
        context = self.folder / "context"
        for name in listed:
            if name.split("/")[0] not in ignored and (ROOT / name).exists():
                (context / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, context / name)
        return context

    def test_the_linter_reports_no_problems(self):
        lint = subprocess.run(["hadolint", ROOT / "deploy/Containerfile"], capture_output=True, text=True)
        self.assertEqual((lint.returncode, lint.stdout), (0, ""))

    def test_run_commands_are_valid_shell(self):
        for stage in self.stages.values():
            for run in stage.run:
                subprocess.run(["sh", "-n", "-c", run], check=True)

    def test_base_images_are_pinned_and_use_one_debian_version(self):
        codename = {"12": "bookworm"}
        for stage in self.stages.values():
            self.assertRegex(stage.base, r"^docker\.io/library/[a-z]+:\d+\.\d+(\.\d+)?-slim(-[a-z]+)?$")
        debian = re.search(r":(\d+)\.", self.stages["base"].base)[1]
        self.assertTrue(self.stages["coordinator-builder"].base.endswith(codename[debian]))
        rust = re.search(r":(\d+\.\d+)", self.stages["coordinator-builder"].base)[1]
        self.assertEqual(rust, tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["rust-version"])

    def test_cargo_can_build_the_copied_files(self):
        context = self.context()
        for path in context.rglob("*.rs"):
            for included in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', path.read_text()):
                self.assertTrue((path.parent / included).exists(), f"{path}: {included}")
        builds = {
            command
            for stage in self.stages.values()
            for run in stage.run
            for command in commands(run)
            if "cargo build" in command
        }
        self.assertEqual(len(builds), 2)
        for build in builds:
            # Cargo only plans the build: a build would take long.
            environment, arguments = build.split("cargo build")
            plan = subprocess.run(
                f"{environment} RUSTC_BOOTSTRAP=1 cargo build {arguments} --offline -Z unstable-options --unit-graph",
                shell=True,
                cwd=context,
                text=True,
                capture_output=True,
            )
            self.assertEqual(plan.returncode, 0, plan.stderr)
            program = re.search(r"--package dico-(\w+)", build)[1]
            self.assertRegex(plan.stdout, rf'"kind":\["bin"\],"crate_types":\["bin"\],"name":"{program}"')
            self.assertIn("--locked", arguments)

    def test_libtorch_is_fetched_with_the_copied_tools(self):
        shutil.copytree(ROOT / "tools", self.folder / "tools")
        (fetch,) = {
            command
            for run in self.stages["worker-builder"].run
            for command in commands(run)
            if "fetch-libtorch" in command
        }
        program, target = fetch.split()
        # An existing libtorch avoids the download of half a gigabyte.
        (self.folder / "libtorch").mkdir()
        (self.folder / "libtorch/build-version").write_text("2.11.0\n")
        subprocess.run([program, self.folder / "libtorch"], cwd=self.folder, check=True)
        self.assertTrue(any(f"LIBTORCH={target} " in run for run in self.stages["worker-builder"].run))
        (torch,) = set(re.findall(r"torch==\S+", " ".join(self.stages["torch"].run)))
        self.assertIn(torch, (ROOT / "tools/libtorch.requirements").read_text().split())

    @unittest.skipUnless(shutil.which("apt-get"), "needs a Debian")
    def test_packages_exist_in_debian(self):
        for stage in self.stages.values():
            for packages in re.findall(r"apt-get install --yes --no-install-recommends ([^&]+)", " ".join(stage.run)):
                subprocess.run(
                    ["apt-get", "install", "--simulate", "--no-install-recommends", *packages.split()],
                    check=True,
                    capture_output=True,
                )

    @unittest.skipUnless(shutil.which("dpkg-query"), "needs a Debian")
    def test_images_install_the_libraries_of_their_programs(self):
        for target in ("coordinator", "worker-cpu"):
            stage = self.stages[target]
            installed = ESSENTIAL | {
                word
                for run in stage.run
                for command in commands(run)
                if command.startswith("apt-get install")
                for word in command.split()[2:]
            }
            program = PROGRAMS / stage.entrypoint[0]
            linked = subprocess.run(
                ["ldd", program],
                env={"LD_LIBRARY_PATH": str(LIBTORCH / "lib")},
                capture_output=True,
                text=True,
                check=True,
            )
            self.assertNotIn("not found", linked.stdout)
            for library in re.findall(r"(/\S+) \(0x", linked.stdout):
                if pathlib.Path(library).is_relative_to(LIBTORCH / "lib") and target == "worker-cpu":
                    continue
                owner = subprocess.run(
                    ["dpkg-query", "--search", f"*{pathlib.Path(library).name}"],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                self.assertTrue({line.split(":")[0] for line in owner.stdout.splitlines()} & installed, library)

    def test_builders_install_programs_at_the_copied_paths(self):
        for (builder, out), program in BUILDER_OUTPUTS.items():
            if program.is_dir():
                continue
            (install,) = {command for run in self.stages[builder].run for command in commands(run) if command.startswith("install ")}
            words = install.split()
            self.assertEqual(words[-2:], [f"target/release/{program.name}", out])
            subprocess.run([*words[:-2], program, self.folder / program.name], check=True)
            version = subprocess.run(
                [self.folder / program.name, "--version"],
                env={"LD_LIBRARY_PATH": str(LIBTORCH / "lib")},
                capture_output=True,
                text=True,
                check=True,
            )
            self.assertEqual(version.stdout.split()[0], program.name)

    def test_the_cuda_image_differs_from_the_cpu_image_in_libtorch_only(self):
        cpu, cuda = self.stages["worker-cpu"], self.stages["worker-cuda"]
        self.assertEqual((cpu.user, cpu.entrypoint, cpu.base), (cuda.user, cuda.entrypoint, cuda.base))
        self.assertIn(("worker-builder", "/out/worker", "/usr/local/bin/"), set(cpu.copied) & set(cuda.copied))
        # The libraries find each other by relative paths, so the image keeps pip's folders.
        (target,) = re.findall(r"--target (\S+) ", " ".join(self.stages["torch"].run))
        copies = [(source, copy) for origin, source, copy in cuda.copied if origin == "torch"]
        self.assertEqual(copies, [(f"{target}/{name}", f"{target}/{name}") for name in ("nvidia", "torch/lib")])
        self.assertEqual(cuda.environment["LD_LIBRARY_PATH"], f"{target}/torch/lib")

    @unittest.skipUnless(os.geteuid() == 0, "needs root")
    def test_mount_points_belong_to_the_images_user(self):
        (install,) = {command for run in self.stages["base"].run for command in commands(run) if command.startswith("install ")}
        words = [f"{self.folder}{word}" if word.startswith("/") else word for word in install.split()]
        subprocess.run(words, check=True)
        user = int(self.stages["coordinator"].user.split(":")[0])
        for path in ("var/lib/dico", "checkpoints", "world"):
            self.assertEqual((self.folder / path).stat().st_uid, user)

    @requires_namespaces
    def test_entrypoints_run(self):
        for target, entrypoint in TARGETS.items():
            self.assertEqual(self.stages[target].entrypoint, entrypoint)
            if target == "worker-cuda":
                continue
            for option in ("--version", "--help"):
                container = Container(self.folder / f"{target}{option}", target, [option])
                self.assertEqual(container.wait(), 0, container.output())
