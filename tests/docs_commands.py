"""Runs the commands of the docs' code blocks, in a folder where the tutorial was carried out on a small log."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from docs_helpers import ROOT, Block
from servers import free_port
from tensorboard.program import TensorBoard

from easyrec_mm.cli.main import main, make_parser
from easyrec_mm.config.overrides import parse_edits
from easyrec_mm.config.pipeline import load_pipeline

TUTORIAL = "docs/tutorial.md"
# Commands that are not run here, by a part of their text -> the reason, and what does run them. Those of easyrec-mm are
# still read by the parser of flags; the files that scripts name must exist.
NOT_RUN = {
    r"^scripts/(demo|test|setup|setup_tfio|gen_proto|docs)\b": "installs, tests or takes minutes; "
    "tests/test_extending.py generates the protos, tests/test_site.py builds the site, and continuous integration "
    "calls the others, but for the demo",
    r"^scripts/local_cluster": "starts a training of several processes; tests/test_local_cluster.py",
    r"^\.venv/bin/python tools/gen_config_docs.py": "writes into the repository; tests/test_rules.py",
    r"^\.venv/bin/python -m pip": "fetches packages; tests/test_image.py resolves them",
    r"^(AWS_REGION=\S+ )?\.venv-tfio/": "needs another environment; tests/test_tfio.py",
    r"^nvidia-smi": "needs a GPU",
    r"^python -c .*keras_hub": "fetches weights",
    r"^easyrec-mm extract": "needs fetched weights or exported encoders; tests/test_extract.py",
    r"^easyrec-mm weights fetch": "fetches weights; tests/test_weights.py",
    r"--preset efficientnet_lite0": "needs fetched weights; tests/test_lite0_flow.py",
    r"--engine spark|redis://": "needs a cluster or a server; tests/test_tasks_spark.py and tests/test_store.py",
    r"--workers host0:2222": "needs several machines; tests/test_cluster.py",
    r"--watch\b": "waits for a training; tests/test_watch.py",
    r"^easyrec-mm pretrain": "needs labelled pictures; tests/test_pretraining.py",
    r"^easyrec-mm tune": "trains several models; tests/test_tune_search.py",
    r"^easyrec-mm report": "takes half a minute; tests/test_report.py opens the page in a browser",
    r"^tensorboard": "is a server that does not end; tests/test_tensorboard.py reads what it would show",
    r"^easyrec-mm search .*--text": "needs a model of items with a text; tests/test_search_texts.py",
    r"^easyrec-mm search .*--request": "needs the fields of a user; tests/test_search_ranked.py",
    r"^easyrec-mm search --serve": "is a server that does not end; tests/test_search_page.py opens its page",
    r"^easyrec-mm worth": "trains three models; tests/test_worth.py",
    r"^easyrec-mm replay": "needs a step that failed; tests/test_replay.py",
    r"^easyrec-mm (export .*--delta_from|apply-delta)": "needs a second training and export; tests/test_delta_flow.py",
    r"--missing_vector compute": "would start a second server; tests/test_serving_pictures.py",
    r"--tls_cert": "would start a second server; tests/test_server_security.py",
    r"^curl .*samples/request.json": "asks the model of scripts/demo; its fields are compared with those of that model",
    r"^TF_FORCE_GPU_ALLOW_GROWTH": "needs a GPU",
}
# Flags that make a command short, by its first words.
SHORTER = {
    "python samples/make_demo_log.py": ["--num_items", "60"],
    "easyrec-mm train": ["--set", "train_config.num_epochs=1"],
}
# Flags with what a command writes: what the tutorial left there is removed before.
WRITES = ("--output", "--output_dir", "--pipeline_config_template")
# The files of one config under the names of several pages.
SAME_CONFIG = r"\b(x|my|your|a)\.config\b"


def reason_not_to_run(command: str) -> str | None:
    """Return the key of NOT_RUN that a command has."""
    return next((key for key in NOT_RUN if re.search(key, command)), None)


def same_for_all_pages(command: str) -> str:
    """Return a command with the config under the name that it has on one of the pages."""
    return re.sub(SAME_CONFIG, "x.config", command)


def check_without_running(command: str) -> None:
    """Check what can be checked of a command that does not run: flags, names of files, fields of a request."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if words[0].endswith("easyrec-mm"):
        flags = make_parser().parse_args(words[1:])
        assert flags.command == words[1]
        if getattr(flags, "edit_config_json", None):
            parse_edits(flags.edit_config_json)
    elif words[:2] == ["python", "-c"]:
        check_names(words[2])
    elif words[0] == "curl":
        check_request(json.loads((ROOT / words[words.index("-d") + 1][1:]).read_text()))
    elif words[0] == "tensorboard":
        TensorBoard().configure(words)  # ends with an error if a flag is unknown
    elif words[0] not in ("nvidia-smi", "docker"):
        files = [word for word in words if "/" in word and not word.startswith((".venv", "requirements/gpu"))]
        assert all((ROOT / file).is_file() for file in files), files


def check_names(code: str) -> None:
    """Check that what a piece of Python imports, and the attributes of modules that it names, exist."""
    tree = ast.parse(code)
    names = {
        alias.asname or alias.name: alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"\w+(\.\w+)+", ast.unparse(node)):
            name, *attributes = ast.unparse(node).split(".")
            value = importlib.import_module(names[name]) if name in names else None
            for attribute in attributes:
                value = getattr(value, attribute)


def check_request(body: dict) -> None:
    """Check that a request has fields of the demo's model."""
    demo = load_pipeline(str(ROOT / "configs/demo.config")).schema
    names = {field.name for field in demo.fields}
    for instance in body["instances"]:
        assert {*instance, *body.get("shared", {})} <= names


@dataclass
class Place:
    """A folder in which the blocks of one page run, in their order.

    folder  the current folder
    before  what was there at the beginning
    done    commands that other pages have run in the same state, which are not run again
    names   what the Python of a page has defined
    """

    folder: Path
    done: set[str]
    before: set[str] = field(default_factory=set)
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    _server: subprocess.Popen | None = None
    _port: int = 0

    def __post_init__(self) -> None:
        self.before = {path.name for path in self.folder.iterdir()}

    def run_block(self, block: Block) -> None:
        """Run the commands of a shell block, or a block of Python."""
        if block.kind == "python":
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), self.names)
            return
        for command in block.commands():
            if reason_not_to_run(command) is None:
                self.run(command)

    def run(self, command: str) -> None:
        """Run a command; it must end well."""
        words = shlex.split(command)
        words += SHORTER.get(" ".join(words[:2]), [])
        if words[:2] == ["easyrec-mm", "serve"]:
            self._serve(words[1:])
        elif words[0] == "easyrec-mm":
            if same_for_all_pages(command) not in self.done:
                self._clear(words)
                assert main(words[1:]) == 0, command
                self.done.add(same_for_all_pages(command))
        elif words[0] == "curl":
            self._ask(words)
        elif words[0] == "python":
            self._run_script(words[1:])
        else:
            assert subprocess.run(words, check=False).returncode == 0, command

    def end(self) -> None:
        """End the server, if the page started one."""
        if self._server is not None:
            self._server.terminate()
            assert self._server.wait(60) == 0

    def _clear(self, words: list[str]) -> None:
        """Remove what a command writes and the tutorial has written before."""
        for flag, value in pairwise(words):
            name = value.strip("/")
            if flag in WRITES and name in self.before:
                self.before.remove(name)
                for path in (self.folder / name, self.folder / f"{name}_model"):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)

    def _run_script(self, words: list[str]) -> None:
        if words[0] == "-c":
            exec(compile(words[1], "-c", "exec"), {"__name__": "__main__"})
            return
        path = ROOT / words[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(path), *words[1:]])
            patch.syspath_prepend(path.parent)
            runpy.run_path(str(path), run_name="__main__")

    def _serve(self, words: list[str]) -> None:
        if self._server is not None:  # it shows further flags
            return
        self._port = free_port()
        command = [sys.executable, "-m", "easyrec_mm", *words, "--http_port", str(self._port), "--grpc_port", "0"]
        self._server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        until = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/v2/models/rec/ready"):
                    return
            except OSError:
                assert self._server.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)

    def _ask(self, words: list[str]) -> None:
        url = re.sub(r"^(http://)?localhost:8080", f"http://127.0.0.1:{self._port}", words[1])
        body = words[words.index("-d") + 1]
        content = Path(body[1:]).read_bytes() if body.startswith("@") else body.encode()
        with urllib.request.urlopen(urllib.request.Request(url, content), timeout=60) as answer:
            assert json.load(answer)["predictions"]


def add_other_files(folder: Path) -> None:
    """Add what pages other than the tutorial name: the config and the pictures under other names, and small tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("x.config", "your.config", "a.config"):
        shutil.copy(folder / "my.config", folder / name)
    os.symlink("shop", folder / "logs")
    os.symlink("shop/images", folder / "images")
    shutil.copytree(folder / "grouped_model", folder / "other_model_dir")
    keys = sorted(f"images/{path.name}" for path in (folder / "shop/images").iterdir())
    shutil.copy(folder / "shop" / keys[0], folder / "new.jpg")
    numbers = range(len(keys))
    columns = {"category": [("shoes", "bags")[i % 2] for i in numbers], "price": [float(i) for i in numbers]}
    pq.write_table(pa.table({"img_path": keys, **columns}), folder / "items.parquet")
    titles = {"key": keys, "item_id": keys, "vector": [[0.1 * i, 0.5, 1.0] for i in range(len(keys))]}
    pq.write_table(pa.table(titles), folder / "titles.parquet")
    (folder / "labels.csv").write_text("key,label\n" + "".join(f"{key},{i % 2}\n" for i, key in enumerate(keys)))
    (folder / "items.txt").write_text("".join(f"{key}\n" for key in keys))
    (folder / "paths.txt").write_text("\n".join(keys[:2]) + "\n")
