"""Every code block of README, CONTRIBUTING and docs is what it says it is.

- diff: tests/test_extending.py applies those of docs/extending.md to a copy of the package, and uses what they add.
- config: is put into a config that has the fields and features that it takes for granted, and is loaded and checked.
- json: is parsed.
- yaml: is a space of `tune`, and is checked against the demo's config.
- shell and python: tests/test_docs_commands.py runs them.
- Output and drawings are not code; OTHER lists them with the reason.
"""

from __future__ import annotations

import json

import pytest
from docs_helpers import PAGES, ROOT, Block, blocks_of, whole_config

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.extraction.plan import read_plan
from easyrec_mm.extraction.preprocessing import read_settings
from easyrec_mm.tuning.space import read_space

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# (page, beginning of the block) -> why it is not code.
OTHER = {
    ("README.md", "click AUC on the test data"): "output of scripts/demo",
    ("docs/architecture.md", "flat log -> groups"): "a drawing",
    ("docs/data_format.md", "...|1^A0|12.5^A0"): "a line of data with a drawing below",
    ("docs/grouping.md", "grouped/part-00000.parquet"): "a list of files",
    ("docs/image_tower.md", "pictures -> augmentation"): "a drawing",
    ("docs/metrics.md", "auc_click"): "output of eval",
    ("docs/pretrained.md", "  a picture of banana"): "output of weights fetch",
    ("docs/pretrained.md", "  similarity of"): "output of weights fetch",
    ("docs/pretraining.md", "picture,product,kind"): "lines of a table",
    ("docs/training.md", "training: 484 steps"): "output of train",
    ("docs/training.md", "restored: embedding/city"): "output of train",
    ("docs/training.md", "step 2 computed loss inf"): "output of replay",
    ("docs/training.md", "waiting for a batch"): "output of a command that waits",
    ("docs/troubleshooting.md", "error: x.config"): "a message; test_the_message_that_troubleshooting_explains runs it",
}


def other(block: Block) -> tuple[str, str] | None:
    return next((key for key in OTHER if block.page == key[0] and block.text.startswith(key[1])), None)


def of_kind(kind: str) -> list[object]:
    found = [block for block in BLOCKS if other(block) is None and block.kind == kind]
    return [pytest.param(block, id=f"{block.page}:{block.line}") for block in found]


def test_what_is_not_code_is_still_there_and_every_diff_has_its_test():
    assert {other(block) for block in BLOCKS} - {None} == set(OTHER)
    assert {block.page for block in BLOCKS if block.kind == "diff"} == {"docs/extending.md"}
    assert {block.kind for block in BLOCKS} <= {"diff", "python", "yaml", "shell", "json", "config"}


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


EXTRACT = "docs/extract.md"


@pytest.mark.parametrize("block", [p for p in of_kind("yaml") if p.values[0].page == EXTRACT])
def test_settings_of_an_extraction_can_be_read(block, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(block.text)
    (tmp_path / "resnet50.yaml").write_text("layout: NCHW")
    assert read_plan(str(path)) if "extractions:" in block.text else read_settings(str(path)).to_dict()


@pytest.mark.parametrize("block", [p for p in of_kind("yaml") if p.values[0].page != EXTRACT])
def test_a_space_fits_the_demo(block, tmp_path):
    """With the optimizer that it names."""
    rate = "learning_rate { constant_learning_rate { learning_rate: 0.01 } }"
    optimizer = f"train_config.optimizer_config=[{{ adam_optimizer {{ {rate} }} }}]"
    (tmp_path / "space.yaml").write_text(block.text)
    entries = read_space(str(tmp_path / "space.yaml"), load_pipeline(str(ROOT / "configs/demo.config"), [optimizer]))
    assert len(entries) == block.text.count("{")


def test_all_fragments_of_features_fit_into_one_config_that_can_be_exported(tmp_path):
    features = [b.text for b in BLOCKS if b.page == "docs/features.md" and b.text.startswith("features ")]
    assert len(features) == 6
    path = tmp_path / "x.config"
    path.write_text(whole_config("\n".join(features)), encoding="utf-8")
    assert not [note for note in load_pipeline(str(path)).notes if note.startswith("export_config")]


# --- Messages


def test_the_message_that_troubleshooting_explains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.config").write_text(whole_config(""), encoding="utf-8")
    (block,) = (b for b in BLOCKS if b.page == "docs/troubleshooting.md")
    assert main(["check", "--pipeline_config", "x.config", "--set", "data_config.image_cache_dir=s3://cache"]) == 1
    assert capsys.readouterr().err.strip() == block.text
