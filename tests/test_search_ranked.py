"""Search among items that fulfil a condition, and ranked by the rec model, against NumPy and the server's answers."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from flow_helpers import run

import easyrec_mm as er
from easyrec_mm.cli.main import main
from easyrec_mm.errors import UserError
from easyrec_mm.store.search import Index

ITEM_FIELDS = ("category", "price", "shop_id", "item_tags", "position")


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_the_nearest_of_some_items_are_the_true_ones(kind):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(2000, 8)).astype(np.float32)
    index = Index([str(i) for i in range(2000)], vectors.copy(), kind)
    among = np.sort(random.permutation(2000)[:30])
    query = random.normal(size=8)
    cosines = vectors[among] @ query / np.linalg.norm(vectors[among], axis=1) / np.linalg.norm(query)
    expected = among[np.argsort(-cosines)]
    found = index.nearest(query, 10, among=among)
    assert [key for key, _ in found] == [str(row) for row in expected[:10]]
    np.testing.assert_allclose([cosine for _, cosine in found], np.sort(cosines)[::-1][:10], rtol=1e-5)
    assert [key for key, _ in index.nearest(query, 100, str(expected[0]), among)] == [str(r) for r in expected[1:]]
    assert index.nearest(query, 3, among=among[:0]) == []


@pytest.fixture(scope="module")
def items(exported, samples):
    """A row for each item of the store: fields of one of its samples; the last item has none."""
    rows = {row["img_path"]: row for row in samples[0]}
    return pd.DataFrame([{"key": key, **{n: rows[key][n] for n in ITEM_FIELDS}} for key in exported.keys()[:-1]])


@pytest.fixture(scope="module")
def request_of_user(exported, samples):
    shared = {name: value for name, value in samples[0][0].items() if name not in (*ITEM_FIELDS, "img_path")}
    return {name: value for name, value in shared.items() if value is not None}


@pytest.fixture(scope="module")
def index(exported, serving_place, items):
    models = {"image_model": exported.folder / "image", "rec_model": exported.folder / "rec"}
    with er.Index(f"lmdb://{serving_place}/store", metadata=items, **models) as opened:
        yield opened


def test_a_filter_finds_the_nearest_of_those_that_fulfil_it(index, items, exported):
    key = exported.keys()[0]
    everything = index.search(key=key, k=1000)
    assert len(everything) == len(index) - 1
    price = float(items["price"].median())
    category = items["category"][3]
    condition = f"price <= {price!r} and category == {category!r}"
    chosen = set(items["key"][(items["price"] <= price) & (items["category"] == category)]) - {key}
    found = index.search(key=key, k=2, filter=condition)
    expected = everything[everything["key"].isin(chosen)].head(2).reset_index(drop=True)
    assert len(expected) > 0
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)  # of columns in which a value is missing
    assert set(found["category"]) == {category}
    # The item without a row is found without a filter alone.
    assert exported.keys()[-1] in set(everything["key"])
    assert exported.keys()[-1] not in set(index.search(key=key, k=1000, filter="price is None or price > 0")["key"])
    assert len(index.search(key=key, filter="price < 0")) == 0


def test_ranking_gives_the_scores_of_the_server(index, items, exported, serving_place, request_of_user):
    picture = exported.data / exported.keys()[5]
    complete = "price is not None"
    ranked = index.search(picture=picture, k=4, candidates=6, request=request_of_user, filter=complete)
    nearest = index.search(picture=picture, k=6, filter=complete)
    with er.Server(exported.folder / "rec", f"lmdb://{serving_place}/store") as server:
        instances = [{"img_path": row.pop("key"), **row} for row in
                     items.set_index("key", drop=False).loc[nearest["key"]].to_dict("records")]  # fmt: skip
        outputs = server.predict(instances, request_of_user)
        name = next(name for name in outputs.columns if name.startswith("probs"))
        expected = nearest.assign(score=outputs[name]).sort_values("score", ascending=False, kind="stable").head(4)
        assert list(ranked["key"]) == list(expected["key"])
        np.testing.assert_allclose(ranked["score"], expected["score"], rtol=1e-6)
        np.testing.assert_allclose(ranked["cosine"], expected["cosine"])
        other = [n for n in outputs.columns if n.startswith("logits")][-1]
        by_other = index.search(
            picture=picture, k=6, candidates=6, request=request_of_user, filter=complete, rank_by=other
        )
        np.testing.assert_allclose(by_other["score"], np.sort(outputs[other])[::-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"request": {}}, "is missing; .*; fields of the user come from --request"),
        ({"request": {"no": 1}}, "no field 'no'"),
        ({"request": {}, "rank_by": "probs_clik"}, "--rank_by probs_clik: is not an output .*; did you mean"),
        ({"rank_by": "probs_click"}, "--rank_by: has no effect without --request"),
        ({"request": {}, "candidates": 0}, "search: candidates: is 0; give"),
        ({"text": "shoes", "key": ""}, "takes no text; give a picture, or a model of items with a text"),
        ({"filter": "prize < 3"}, "--filter: the DataFrame metadata has no column 'prize'; did you mean 'price'"),
        ({"k": 0}, "search: k: is 0; give"),
    ],
)
def test_searches_that_are_refused(index, exported, arguments, message):
    with pytest.raises(UserError, match=message):
        index.search(**{"key": exported.keys()[0], **arguments})


def test_the_command_filters_and_ranks(exported, serving_place, items, request_of_user, index, tmp_path, capsys):
    items.to_csv(tmp_path / "items.csv", index=False)
    (tmp_path / "request.json").write_text(json.dumps({"shared": request_of_user}))
    key = exported.keys()[0]
    run("search", "--store", f"lmdb://{serving_place}/store", "--key", key, "--top_k", 3, "--metadata",
        tmp_path / "items.csv", "--filter", "price > 0", "--rec_model_dir", exported.folder / "rec",
        "--request", tmp_path / "request.json")  # fmt: skip
    out = capsys.readouterr().out
    rows = re.findall(r"^ +\d +(-?\d\.\d{6}) +-?\d\.\d{6} +\S+  (\S+)  category=(\S+)", out, re.MULTILINE)
    expected = index.search(key=key, k=3, filter="price > 0", request=request_of_user)
    assert [row[1] for row in rows] == list(expected["key"])
    assert [float(row[0]) for row in rows] == pytest.approx(expected["score"].tolist(), abs=2e-6)
    assert [row[2] for row in rows] == list(expected["category"])
    assert f"1 of {len(index)} items have no row in {tmp_path}/items.csv; no filter selects them" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--request", "R"], "--request: has no effect without --rec_model_dir"),
        (["--metadata_key", "id"], "--metadata_key: has no effect without --metadata"),
        (["--filter", "price < 3"], "--filter: has columns of a table; give the table with --metadata"),
        (["--serve"], "--serve: the page takes queries and filters"),
        (["--rec_model_dir", "REC", "--request", "R"], "has the parts instances; give .*the candidates are those that"),
    ],
)
def test_flags_that_are_refused(exported, serving_place, tmp_path, capsys, flags, message):
    (tmp_path / "request.json").write_text('{"instances": []}')
    names = {"R": str(tmp_path / "request.json"), "REC": str(exported.folder / "rec")}
    flags = [names.get(flag, flag) for flag in flags]
    assert main(["search", "--store", f"lmdb://{serving_place}/store", "--key", exported.keys()[0], *flags]) == 1
    assert re.search(message, capsys.readouterr().err)
