"""The image that Dockerfile describes: built from its own instructions, and run as Kubernetes runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import image_build
import pytest
import yaml
from flat_helpers import make_log

from easyrec_mm.cli.main import main

ROOT = Path(__file__).parents[1]


# Prints what the installed wheel holds.
INSTALLED = """
import sys, easyrec_mm
from importlib import metadata, resources
about, files = metadata.metadata('easyrec-mm'), resources.files('easyrec_mm')
print('version', about['Version'] + ', extras', *sorted(about.get_all('Provides-Extra')), end=', ')
print('typed', files.joinpath('py.typed').is_file(), end=', ')
print('template', files.joinpath('pages/templates/report.css').is_file(), end=', ')
easyrec_mm.load
print('TensorFlow', 'tensorflow' in sys.modules)
"""


def pinned(name):
    return set(re.findall(r"^\S+==[^\s;]+", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


def test_packages_for_gpus_are_those_for_processors_and_cuda():
    more = pinned("gpu.txt") - pinned("lock.txt")
    assert len(more) > 5
    assert all(requirement.startswith("nvidia-") for requirement in more)


def test_the_context_has_what_the_package_needs_and_nothing_else():
    context = set(image_build.context_files(ROOT))
    tracked = set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n"))
    needed = {path for path in tracked if path.startswith(("easyrec_mm/", "protos/"))} | {"setup.py", "MANIFEST.in"}
    assert needed <= context
    folders = {path.split("/")[0] for path in context}
    assert folders == {
        "easyrec_mm", "protos", "requirements", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE",
    }  # fmt: skip
    assert not any("__pycache__" in path or path.startswith("easyrec_mm/protos") for path in context)


def test_the_python_of_the_image_is_supported_and_its_user_is_that_of_the_manifests():
    text = (ROOT / "Dockerfile").read_text()
    version = re.search(r"^ARG PYTHON=3\.(\d+)$", text, re.MULTILINE)[1]
    assert 10 <= int(version) <= 13
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE)


def reason_not_to_build(folder):
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        return "building stages needs root and mount namespaces"
    return no_index(folder)


def no_index(folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "six"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no index of packages: {done.stderr}" if done.returncode else ""


@pytest.mark.slow
def test_packages_for_gpus_can_be_installed(tmp_path):
    """As the Dockerfile names them, for its Python: pip resolves them, and downloads only what it needs for that."""
    if reason := no_index(tmp_path):
        pytest.skip(reason)
    text = (ROOT / "Dockerfile").read_text()
    version = re.search(r"^ARG PYTHON=(.*)$", text, re.MULTILINE)[1]
    ((words, requirement),) = re.findall(r"/bin/pip (install .*?--requirement) (requirements/\$\{PACKAGES\}\.in)",
                                         re.sub(r"\\\n\s*", "", text))  # fmt: skip
    command = [sys.executable, "-m", "pip", *words.split(), requirement.replace("${PACKAGES}", "gpu")]
    report = tmp_path / "report.json"
    command += ["--dry-run", "--ignore-installed", "--quiet", "--report", report]
    command += ["--python-version", version, "--target", tmp_path / "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    installed = {
        f"{entry['metadata']['name'].lower().replace('_', '-')}=={entry['metadata']['version']}"
        for entry in json.loads(report.read_text())["install"]
    }
    assert pinned("gpu.txt") - pinned("lock.txt") <= installed


@pytest.mark.slow
def test_the_image_is_built_and_trains_as_the_manifest_says(tmp_path, monkeypatch, capsys):
    """Packages are installed as in the Dockerfile, which takes two minutes."""
    if reason := reason_not_to_build(tmp_path):
        pytest.skip(reason)
    data = tmp_path / "volumes" / "work"
    data.mkdir(parents=True)
    make_log(data)
    monkeypatch.chdir(data)
    assert main(["deploy", "--workers=1", "--image=i", "--pipeline_config=x.config", "--claim=data:/work"]) == 0
    config, _, job = yaml.safe_load_all(capsys.readouterr().out)
    container = job["spec"]["template"]["spec"]["containers"][0]
    mounted = tmp_path / "volumes" / container["volumeMounts"][1]["mountPath"].lstrip("/")
    mounted.mkdir(parents=True)
    (mounted / "pipeline.config").write_text(config["data"]["pipeline.config"])
    look = f'id && easyrec-mm --version && python -c "{INSTALLED}"'
    script = f'{look} && cd "$0" && "$@" && stat --format "owner %u" m/model.ckpt-2.index'
    run = ["env", "JOB_COMPLETION_INDEX=0", *container["command"], *container["args"]]
    build = ["unshare", "--mount", sys.executable, image_build.__file__, ROOT, tmp_path]
    command = [*build, "sh", "-c", script, container["workingDir"], *run]
    # Compiling all modules of all packages takes longer than compiling those that the training imports. For pip, 0
    # means not to.
    monkeypatch.setenv("PIP_NO_COMPILE", "0")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "uid=1000(easyrec) gid=1000(easyrec) groups=1000(easyrec)" in done.stdout
    assert "easyrec-mm 0.1.0" in done.stdout
    assert "version 0.1.0, extras gpu odps spark tune, typed True, template True, TensorFlow False" in done.stdout
    assert "the training ends at step 2: num_epochs 1 are done" in done.stdout
    assert "owner 1000" in done.stdout
    assert not os.path.exists("/opt/easyrec-mm")
