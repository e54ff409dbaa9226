"""Whatever the program writes names the version that wrote it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import shared_folder
from flow_helpers import run
from store_helpers import fill

from easyrec_mm import __version__
from easyrec_mm.grouping.group_stats import write_stats
from easyrec_mm.pages import render
from easyrec_mm.store import open_store
from easyrec_mm.store.generations import meta_to_text, parse_meta


def version_in(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))["easyrec_mm"]


@pytest.mark.slow
def test_a_training_an_export_and_predictions_name_it(exported, samples, tmp_path_factory):
    first_line = (exported.model_dir / "pipeline.config").read_text().splitlines()[0]
    assert first_line == f"# Written by easyrec-mm {__version__}."
    records = [json.loads(line) for line in (exported.model_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["easyrec_mm"] for record in records if record["kind"] == "start"] == [__version__]
    for kind in ("image", "rec", "total"):
        manifest = json.loads((exported.folder / kind / "manifest.json").read_text())
        assert manifest["versions"]["easyrec_mm"] == __version__
    predictions = shared_folder(tmp_path_factory) / "samples" / "p.parquet"
    assert pq.read_schema(predictions).metadata[b"easyrec_mm"] == __version__.encode()


@pytest.mark.slow
def test_statistics_name_it(exported, tmp_path):
    page, figures = tmp_path / "stats.html", tmp_path / "stats.json"
    run("stats", *exported.flags, "--num_pictures=0", "--output", page, "--json", figures)
    assert version_in(figures) == __version__
    assert f'<meta name="generator" content="easyrec-mm {__version__}">' in page.read_text(encoding="utf-8")


def test_statistics_of_groups_name_it(tmp_path):
    write_stats(str(tmp_path), {"rows": 3})
    assert version_in(tmp_path / "stats.json") == __version__


def test_every_template_of_a_page_has_it():
    """Those without a head are parts of pages."""
    templates = list(Path(render.__file__).parent.glob("templates/*.html"))
    heads = {path.name for path in templates if "<head>" in path.read_text()}
    assert heads == {"base.html"}
    for name in heads:
        assert re.search(
            r"easyrec-mm \{\{ version \}\}", (Path(render.__file__).parent / "templates" / name).read_text()
        )


def test_a_generation_keeps_the_version_that_began_it(tmp_path, monkeypatch, capsys):
    uri = f"lmdb://{tmp_path}/store"
    monkeypatch.setattr("easyrec_mm.store.generations.__version__", "0.0.9")
    fill(uri, {"a": 1})[0].close()
    monkeypatch.undo()
    fill(uri, {"b": 1}, fingerprint="other")[0].close()
    store = open_store(uri)
    assert [generation.version for generation in store.meta().generations.values()] == ["0.0.9", __version__]
    store.close()
    run("store", "stat", "--store", uri)
    assert re.findall(r", by easyrec-mm (\S+)", capsys.readouterr().out) == ["0.0.9", __version__]
    run("store", "dump", "--store", uri, "--output", tmp_path / "v.parquet")
    assert pq.read_schema(tmp_path / "v.parquet").metadata[b"easyrec_mm"] == __version__.encode()


def test_generations_without_a_version_can_be_read_and_those_with_one_by_earlier_versions(tmp_path):
    meta = fill(f"lmdb://{tmp_path}/store", {"a": 1})[0].meta()
    values = json.loads(meta_to_text(meta, 0))
    # What an earlier version takes for the properties of a generation, and how it writes the metadata.
    assert [set(g) for g in values["generations"]] == [
        {"number", "fingerprint", "width", "dtype", "begun_s", "completed_s"}
    ]
    del values["versions"]
    earlier = parse_meta(json.dumps(values), "store")
    assert [generation.version for generation in earlier.generations.values()] == [""]
    assert earlier.current_generation.is_same(meta.current_generation)
