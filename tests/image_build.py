"""Builds the image of a Dockerfile without Docker, and runs a command in it: image_build.py CONTEXT FOLDER COMMAND ...

Each instruction is taken from the Dockerfile itself. A stage is a folder in which the programs and libraries of this
machine, and its Python, stand for those of the base image, read-only; all else is empty but for a copy of /etc. A cache
is that of this user's pip. COMMAND runs as the last stage says: its user, variables and working folder. What is in
FOLDER/volumes lies in that stage, new folders as those of its user, as volumes of Kubernetes do. Stages are in memory,
4 GB, and vanish at the end.

Runs in a mount namespace of its own, as root: unshare --mount python tests/image_build.py ... What only Docker does,
such as pulling the base image, is not done.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from string import Template

SYSTEM = ("bin", "sbin", "lib", "lib64", "usr")
PATH = f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of the machine, as Docker's own proxies and certificates would be: how pip reaches an index.
OUTER = {name: os.environ[name] for name in os.environ if re.match(r"PIP_|SSL_|.*_proxy$", name)}
CACHE = re.compile(r"--mount=type=cache,target=(\S+) ")


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and what follows each, with continued lines put together."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def ignored(path: str, rules: list[str]) -> bool:
    """Whether .dockerignore leaves out a path of the context: what the last rule that fits it or its folders says."""
    parents = [path, *map(str, Path(path).parents)][:-1]
    result = False
    for rule in rules:
        pattern = rule.lstrip("!")
        patterns = (pattern, pattern.removeprefix("**/"))
        if any(fnmatch(parent, each) for parent in parents for each in patterns):
            result = not rule.startswith("!")
    return result


def context_files(context: Path) -> list[str]:
    """The files that Docker would get of a context."""
    rules = (context / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    found = []
    for folder, folders, names in os.walk(context):
        below = os.path.relpath(folder, context)
        folders[:] = [name for name in folders if name not in (".git", ".venv", ".venv-tfio")]
        found += [path for name in names if not ignored(path := os.path.normpath(os.path.join(below, name)), rules)]
    return found


@dataclass
class Stage:
    """A stage of a build: where its files lie, and how commands run in it."""

    root: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    entrypoint: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        shutil.copytree("/etc", self.root / "etc", symlinks=True, ignore_dangling_symlinks=True)
        for name in ("passwd", "group"):
            lines = Path("/etc", name).read_text().splitlines(keepends=True)
            # A base image has none but those of the system.
            (self.root / "etc" / name).write_text("".join(line for line in lines if int(line.split(":")[2]) < 1000))
        for name in ("tmp", "root", "home", "opt", "proc", "dev"):
            (self.root / name).mkdir()
        (self.root / "tmp").chmod(0o1777)
        for name in SYSTEM:
            if os.path.islink(f"/{name}"):
                (self.root / name).symlink_to(os.readlink(f"/{name}"))
            elif os.path.isdir(f"/{name}"):
                self.mount(f"/{name}", "ro")
        self.mount("/proc", "ro")
        self.mount("/dev", "rw")
        if not sys.base_prefix.startswith("/usr"):
            self.mount(sys.base_prefix, "ro")

    def mount(self, path: str, mode: str, target_path: str = "") -> None:
        target = self.inside(target_path or path)
        target.mkdir(parents=True, exist_ok=True)
        os.makedirs(path, exist_ok=True)
        subprocess.run(["mount", "--rbind", path, target], check=True)
        if mode == "ro":
            subprocess.run(["mount", "--options", "remount,bind,ro", target], check=True)

    def inside(self, path: str) -> Path:
        return self.root / os.path.join(self.folder, path).lstrip("/")

    def expanded(self, text: str) -> str:
        return Template(text).substitute({**self.arguments, **self.variables})

    def run(self, command: list[str]) -> int:
        users = (line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines())
        home = next(words[5] for words in users if words[2] == self.user.split(":")[0])
        variables = {"HOME": home, **OUTER, **self.arguments, **self.variables}
        settings = [f"{name}={value}" for name, value in variables.items()]
        start = ["chroot", f"--userspec={self.user}", self.root, "env", "-i", f"--chdir={self.folder}", *settings]
        return subprocess.run([*start, *command], check=False).returncode


def build(context: Path, folder: Path) -> Stage:
    """Carry out the instructions of a Dockerfile; return its last stage."""
    known, stages, stage = {}, {}, None
    for name, text in instructions((context / "Dockerfile").read_text()):
        if stage is None and name != "FROM":
            assert name == "ARG"
            known.update([text.split("=")])
            continue
        if name == "FROM":
            image, *label = Template(text).substitute(known).split(" AS ")
            assert image.startswith("python:")
            stage = Stage(folder / f"stage-{len(stages)}")
            stages[label[0] if label else "last"] = stage
            continue
        text = text if name == "RUN" else stage.expanded(text)
        match name:
            case "ARG":
                stage.arguments.update([text.split("=")])
            case "ENV":
                stage.variables.update(setting.split("=", 1) for setting in text.split())
            case "WORKDIR":
                stage.folder = text
                stage.inside(text).mkdir(parents=True, exist_ok=True)
            case "USER":
                stage.user = text
            case "ENTRYPOINT":
                stage.entrypoint = tuple(json.loads(text))
            case "COPY":
                copy(stage, text.split(), context, stages)
            case "RUN":
                if cache := CACHE.search(text):
                    command = [sys.executable, "-m", "pip", "cache", "dir"]
                    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
                    stage.mount(found, "rw", cache[1])
                assert stage.run(["sh", "-c", CACHE.sub("", text)]) == 0, text
            case _:
                raise AssertionError(f"unknown instruction {name}")
    return stage


def copy(stage: Stage, words: list[str], context: Path, stages: dict[str, Stage]) -> None:
    """COPY: files into a folder, or what is in a folder. Files of another stage are linked, which costs no space."""
    *sources, target = words
    if sources[0].startswith("--from="):
        origin = stages[sources.pop(0).removeprefix("--from=")]
        shutil.copytree(origin.inside(sources[0]), stage.inside(target), symlinks=True, copy_function=os.link)
        return
    files = context_files(context)
    for source in sources:
        found = [file for file in files if file == source or file.startswith(f"{source}/")]
        assert found, f"COPY {source}: not in the context"
        for file in found:
            place = stage.inside(target) / (os.path.basename(file) if file == source else os.path.relpath(file, source))
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(context / file, place)


def add_volumes(stage: Stage, volumes: Path) -> None:
    new = [stage.root / folder.name for folder in volumes.iterdir() if not (stage.root / folder.name).exists()]
    shutil.copytree(volumes, stage.root, dirs_exist_ok=True)
    subprocess.run(["chown", "--recursive", stage.user, *new], check=True)


if __name__ == "__main__":
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    folder, stages = Path(sys.argv[2]), Path(sys.argv[2], "stages")
    stages.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", stages], check=True)
    last = build(Path(sys.argv[1]), stages)
    if (folder / "volumes").exists():
        add_volumes(last, folder / "volumes")
    command = sys.argv[3:] or [*last.entrypoint, "--version"]
    sys.exit(last.run(command))
