"""Every code block of README, CONTRIBUTING and docs is what it says it is.

- diff: tests/test_extending.py applies those of docs/extending.md to a copy of the package, and uses what they add.
- config: is put into a config that has the fields and features that it takes for granted, and is loaded and checked.
- json: is parsed.
- yaml: is a space of `tune`, and is checked against the demo's config.
- shell: a command of easyrec-mm that takes a moment (RUN) runs in a folder with a small log, its pictures, a config and
  a store, and must end well. Those that train, export, serve or fetch, and those that leave something open (`[--flag]`,
  `...`, a single capital for a path) are read by the real parser of flags, because they take minutes or have no input
  here; the tests of each command run them. Scripts and files that are named exist; a body for the server has fields of
  the demo. What `python -c` imports and names must exist; it does not run, because it fetches weights.
- Output and drawings are not code; OTHER lists them with the reason.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs_helpers import PAGES, ROOT, Block, blocks_of, whole_config
from PIL import Image
from tensorboard.program import TensorBoard

from easyrec_mm.cli.main import main, make_parser
from easyrec_mm.config.overrides import parse_edits
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.tuning.space import read_space

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# (page, beginning of the block) -> why it is not code.
OTHER = {
    ("README.md", "click AUC on the test data"): "output of scripts/demo",
    ("docs/architecture.md", "flat log -> groups"): "a drawing",
    ("docs/data_format.md", "...|1^A0|12.5^A0"): "a line of data with a drawing below",
    ("docs/grouping.md", "grouped/part-00000.parquet"): "a list of files",
    ("docs/image_tower.md", "pictures -> augmentation"): "a drawing",
    ("docs/image_tower.md", "  a picture of banana"): "output of weights fetch",
    ("docs/metrics.md", "auc_click"): "output of eval",
    ("docs/training.md", "training: 484 steps"): "output of train",
    ("docs/training.md", "restored: embedding/city"): "output of train",
    ("docs/training.md", "step 2 computed loss inf"): "output of replay",
    ("docs/training.md", "waiting for a batch"): "output of a command that waits",
    ("docs/troubleshooting.md", "error: x.config"): "a message; test_the_message_that_troubleshooting_explains runs it",
}
RUN = ("group", "convert", "stats", "check", "store", "search")
REQUIRED = {
    "group": "--input x --group_by x --image_field x --output x",
    "serve": "--rec_model_dir x --store x",
    "predict": "--pipeline_config x --predict_input_path x --output x",
    "embed": "--img_model_dir x --input x --store x",
}
ITEMS = 40


def other(block: Block) -> tuple[str, str] | None:
    return next((key for key in OTHER if block.page == key[0] and block.text.startswith(key[1])), None)


def of_kind(kind: str) -> list[object]:
    found = [block for block in BLOCKS if other(block) is None and block.kind == kind]
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in found]


def test_what_is_not_code_is_still_there_and_every_diff_has_its_test():
    assert {other(block) for block in BLOCKS} - {None} == set(OTHER)
    assert {block.page for block in BLOCKS if block.kind == "diff"} == {"docs/extending.md"}
    assert {block.kind for block in BLOCKS} == {"diff", "yaml", "shell", "json", "config"}


# --- Configs and JSON


@pytest.mark.parametrize("block", of_kind("config"))
def test_a_fragment_of_a_config_is_valid(block, tmp_path):
    path = tmp_path / "x.config"
    path.write_text(whole_config(block.text), encoding="utf-8")
    try:
        load_pipeline(str(path))
    except ConfigError as error:
        fetched_first = [line for line in str(error).split("\n") if "is not on this machine yet" not in line]
        assert fetched_first == []


@pytest.mark.parametrize("block", of_kind("json"))
def test_json_is_json(block):
    assert json.loads(block.text)


def test_all_fragments_of_features_fit_into_one_config_that_can_be_exported(tmp_path):
    features = [b.text for b in BLOCKS if b.page == "docs/features.md" and b.text.startswith("features ")]
    assert len(features) == 6
    path = tmp_path / "x.config"
    path.write_text(whole_config("\n".join(features)), encoding="utf-8")
    assert not [note for note in load_pipeline(str(path)).notes if note.startswith("export_config")]


# --- Commands


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands of the docs name; each block runs in a copy of it."""
    folder = tmp_path_factory.mktemp("docs")
    for sub in ("logs", "images/test", "pictures", "demo/data"):
        (folder / sub).mkdir(parents=True)
    random = Random(0)
    rows = ["item_id,img_path,user_id,price,click,buy"]
    for i in range(ITEMS):
        Image.new("RGB", (8, 8), (i * 6, 255 - i * 6, 99)).save(folder / f"images/{i}.jpg")
        for _ in range(6):
            click = random.random() < 0.4
            buy = click and random.random() < 0.4
            rows.append(f"i{i},images/{i}.jpg,u{random.randrange(9)},{random.random():.3f},{click:d},{buy:d}")
    (folder / "logs/day.csv").write_text("\n".join(rows) + "\n")
    shutil.copy(folder / "images/1.jpg", folder / "images/test/i010215.jpg")
    for link in ("pictures/images", "demo/data/images"):
        (folder / link).symlink_to(folder / "images")
    keys = [f"images/{i}.jpg" for i in range(ITEMS)] + ["images/test/i010215.jpg"]
    for name in ("vectors", "titles"):
        table = pa.table({"key": keys, "item_id": keys, "vector": [[0.1 * i, 0.5, 1.0] for i in range(len(keys))]})
        pq.write_table(table, folder / f"{name}.parquet")
    (folder / "labels.csv").write_text("key,label\n" + "".join(f"{key},{i % 2}\n" for i, key in enumerate(keys)))
    (folder / "items.txt").write_text("".join(f"{key}\n" for key in keys))
    (folder / "paths.txt").write_text("images/1.jpg\nimages/2.jpg\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        columns = [
            "--group_by",
            "item_id",
            "--image_field",
            "img_path",
            "--user_field",
            "user_id",
            "--label_fields",
            "click,buy",
        ]
        files = ["--input", "logs/", "--output", "g", "--pipeline_config_template", "x.config"]
        assert main(["group", *columns, *files]) == 0
        shutil.copytree("g", "eval", ignore=shutil.ignore_patterns("*.json*", "_*"))
        for name in ("my.config", "your.config"):
            shutil.copy("x.config", name)
        vectors = ["--store", "lmdb://vectors", "--input", "vectors.parquet", "--origin", "docs"]
        assert main(["store", "load", *vectors]) == 0
    return folder


@pytest.mark.parametrize("block", of_kind("shell"))
def test_commands_are_accepted_and_short_ones_run(block, place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    for command in block.commands():
        check_command(command)


@pytest.mark.parametrize("block", of_kind("yaml"))
def test_a_space_fits_the_demo(block, tmp_path):
    """With the optimizer that it names."""
    rate = "learning_rate { constant_learning_rate { learning_rate: 0.01 } }"
    optimizer = f"train_config.optimizer_config=[{{ adam_optimizer {{ {rate} }} }}]"
    (tmp_path / "space.yaml").write_text(block.text)
    entries = read_space(str(tmp_path / "space.yaml"), load_pipeline(str(ROOT / "configs/demo.config"), [optimizer]))
    assert len(entries) == block.text.count("{")


def check_command(command: str) -> None:
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        del words[0]
    if words[0].endswith("easyrec-mm"):
        check_easyrec_mm(words[1:])
    elif words[:2] == ["python", "-c"]:
        check_python(words[2])
    elif words[0] == "curl":
        body = words[words.index("-d") + 1]
        if not body.endswith("sample_request.json"):  # that of an export; the tests of exports send it
            check_request(json.loads((ROOT / body[1:]).read_text() if body.startswith("@") else body))
    elif words[0] == "tensorboard":
        TensorBoard().configure(words)  # ends with an error if a flag is unknown
    elif words[0] == "tar":
        assert subprocess.run(words, check=False).returncode == 0
    else:
        files = [word for word in words if "/" in word and word != ".venv/bin/python"]
        assert files
        assert all((ROOT / file).is_file() for file in files), files


def check_easyrec_mm(arguments: list[str]) -> None:
    is_open = any(re.match(r"\[|\.\.\.|[A-Z]$", word) for word in arguments)
    if is_open:
        arguments = closed(arguments)
    if arguments[0] in RUN and not is_open:
        assert main(arguments) == 0, arguments
    else:
        flags = make_parser().parse_args(arguments)
        assert flags.command == arguments[0]
        if getattr(flags, "edit_config_json", None):
            load_pipeline(flags.pipeline_config, parse_edits(flags.edit_config_json))


def closed(arguments: list[str]) -> list[str]:
    """Flags in brackets are given, of alternatives the first, and "..." stands for the flags that are required."""
    words = [word.strip("[]").split("|")[0] for word in arguments if word != "..."]
    return words + (REQUIRED[words[0]].split() if "..." in arguments else [])


def check_python(code: str) -> None:
    tree = ast.parse(code)
    modules = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"\w+(\.\w+)+", ast.unparse(node)):
            name, *attributes = ast.unparse(node).split(".")
            value = importlib.import_module(name) if name in modules else None
            for attribute in attributes:
                value = getattr(value, attribute)


def check_request(body: dict) -> None:
    demo = load_pipeline(str(ROOT / "configs/demo.config")).schema
    names = {field.name for field in demo.fields}
    for instance in body["instances"]:
        assert {*instance, *body.get("shared", {})} <= names


def test_the_message_that_troubleshooting_explains(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (block,) = (b for b in BLOCKS if b.page == "docs/troubleshooting.md")
    assert main(["check", "--pipeline_config", "x.config", "--set", "data_config.image_cache_dir=s3://cache"]) == 1
    assert capsys.readouterr().err.strip() == block.text
