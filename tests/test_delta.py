"""Deltas between rec models: the result is the later model byte by byte, and anything else is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from feature_helpers import id_feature, raw_feature
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.cli.main import main
from easyrec_mm.delta.apply import apply_delta
from easyrec_mm.delta.make import make_delta
from easyrec_mm.errors import ExportError
from easyrec_mm.manifest import MANIFEST, Manifest, list_files, read_manifest, write_manifest
from easyrec_mm.schema import NO_IMAGE, RowLayout, Schema

LAYOUT = RowLayout((), -1, -1, -1, (), "", "", "")
VOCABULARY, HASHED, BUCKETS = "embedding/city", "embedding/user", "embedding/price"


def features_of(words, num_buckets):
    return (
        id_feature("city", ("city",), 3, "city", "vocabulary", len(words) + 1, tuple(words)),
        id_feature("user", ("user",), 3, "user", "hash", num_buckets),
        raw_feature("price", ("price",), 2, "price", boundaries=(1.0, 2.0)),
    )


def write_model(folder, tables, words, seed=0, tower="t" * 64):
    """The files of a rec model: rec.tables, a file of all variables between others, a graph, and a manifest."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    graph = onnx.GraphProto(name="g")
    with (folder / "rec.tables").open("wb") as file:
        for name, table in tables.items():
            file.write(b"\0" * (-file.tell() % 64))
            tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=table.shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            values = {"location": "rec.tables", "offset": file.tell(), "length": table.nbytes}
            for key, value in values.items():
                tensor.external_data.add(key=key, value=str(value))
            graph.initializer.append(tensor)
            file.write(table.tobytes())
    graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=7).astype(np.float32), "dense"))
    (folder / "rec.onnx").write_bytes(onnx.ModelProto(graph=graph).SerializeToString())
    dense = [rng.bytes(rng.integers(1, 99)) for _ in range(len(tables) + 1)]
    between = [
        part for table, other in zip(tables.values(), dense[1:], strict=True) for part in (table.tobytes(), other)
    ]
    (folder / "variables").mkdir()
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(dense[0] + b"".join(between))
    (folder / "saved_model.pb").write_bytes(b"graph" + json.dumps(words).encode())
    (folder / "empty").touch()
    (folder / "sample_request.json").write_text(f'{{"seed": {seed}}}')
    schema = Schema((), (), None, features_of(words, len(tables[HASHED])), (), NO_IMAGE, True, "", LAYOUT, ())
    manifest = Manifest(
        "rec", schema, "img", 4, {}, f"model.ckpt-{seed}", seed, tower, {}, {}, list_files(folder), "now"
    )
    write_manifest(folder, manifest)
    return folder


def random_tables(rng, num_words, num_users):
    sizes = {VOCABULARY: (num_words + 1, 3), HASHED: (num_users, 3), BUCKETS: (3, 2)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=2), unique=True, max_size=8),
    st.lists(st.text("abc", min_size=1, max_size=2), unique=True, max_size=8),
    st.sampled_from([(5, 5), (5, 7), (1, 1)]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
def test_the_result_is_the_later_model(before, now, num_users, share, seed):
    """Whatever words came, went or moved, and whichever rows have changed."""
    rng = np.random.default_rng(seed)
    old = random_tables(rng, len(before), num_users[0])
    new = random_tables(rng, len(now), num_users[1])
    for i, word in enumerate(now):
        if word in before and rng.random() >= share:
            new[VOCABULARY][i] = old[VOCABULARY][before.index(word)]
    if num_users[0] == num_users[1]:
        kept = rng.random(num_users[0]) >= share
        new[HASHED][kept] = old[HASHED][kept]
    if share == 0:
        new[BUCKETS][:] = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, result = write_model(folder / "1", old, before, 1), write_model(folder / "2", new, now, 2)
        make_delta(str(base), str(result), str(folder / "delta"))
        apply_delta(str(folder / "delta"), str(base), str(folder / "made"))
        assert contents(folder / "made") == contents(result)
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "delta", "made"]


NUM_WORDS, NUM_USERS = 4_000, 10_000
WORDS = [f"city{i}" for i in range(NUM_WORDS)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models, the later one with 1 % other rows in each table, and the delta between them."""
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    old = random_tables(rng, NUM_WORDS, NUM_USERS)
    new = {name: table.copy() for name, table in old.items()}
    for table in (new[VOCABULARY], new[HASHED]):
        table[rng.choice(len(table), len(table) // 100, replace=False)] += 1.0
    write_model(folder / "1", old, WORDS, 1)
    write_model(folder / "2", new, WORDS, 2)
    report = make_delta(str(folder / "1"), str(folder / "2"), str(folder / "delta"))
    return folder, report


@pytest.fixture
def place(models, tmp_path):
    """Copies that a test may damage."""
    shutil.copytree(models[0], tmp_path / "m")
    return tmp_path / "m"


def test_a_delta_is_as_large_as_what_has_changed(models):
    folder, report = models
    assert report.num_changed == (NUM_WORDS + 1) // 100 + NUM_USERS // 100 + 0
    assert report.num_rows == NUM_WORDS + 1 + NUM_USERS + 3
    assert report.num_result_bytes == sum(map(len, contents(folder / "2").values()))
    assert report.num_bytes == sum(map(len, contents(folder / "delta").values())) < 0.03 * report.num_result_bytes
    assert report.has_same_image_tower
    assert list((folder / "delta").glob(".*")) == []


def test_a_word_that_is_inserted_moves_no_bytes(models, tmp_path):
    """Neither of the rows behind it, nor of the vocabularies in the manifest."""
    rng = np.random.default_rng(0)
    old = random_tables(rng, NUM_WORDS, NUM_USERS)
    table = np.insert(old[VOCABULARY], 7, 5.0, axis=0)
    words = [*WORDS[:7], "new", *WORDS[7:]]
    base = write_model(tmp_path / "1", old, WORDS, 1)
    result = write_model(tmp_path / "2", {**old, VOCABULARY: table}, words, 2, "u" * 64)
    (tmp_path / "delta").mkdir()
    report = make_delta(str(base), str(result), str(tmp_path / "delta"))
    assert report.num_changed == 1
    assert not report.has_same_image_tower
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "delta").iterdir()}
    saved_model = (result / "saved_model.pb").stat().st_size  # not divided, but compressed
    assert sizes["rows.bin"] < 400
    assert sizes["data.gz"] < saved_model
    apply_delta(str(tmp_path / "delta"), str(base), str(tmp_path / "made"))
    assert contents(tmp_path / "made") == contents(result)


def test_the_commands_result_takes_the_place_of_an_earlier_export(place, capsys):
    shutil.copytree(place / "1", place / "served")
    flags = ["--delta", f"{place}/delta", "--base", f"{place}/1", "--output_dir", f"{place}/served"]
    assert main(["apply-delta", *flags]) == 0
    assert contents(place / "served") == contents(place / "2")
    fingerprint = hashlib.sha256((place / "2" / MANIFEST).read_bytes()).hexdigest()[:12]
    assert (
        f"rec model {fingerprint} (model.ckpt-2), made of {place}/1 (model.ckpt-1) and 140 rows"
        in capsys.readouterr().out
    )
    # The place may be that of the base, too.
    assert main(["apply-delta", *flags[:-1], f"{place}/1"]) == 0
    assert read_manifest(f"{place}/1", "rec").step == 2


def flip(path, place=-20):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def described(change):
    """Damages the description."""

    def run(folder):
        values = json.loads((folder / "delta.json").read_bytes())
        change(values)
        (folder / "delta.json").write_text(json.dumps(values))

    return run


WRONG = r"delta: is damaged, it does not make release \w{12} \(model.ckpt-2\); copy the delta again"
DAMAGES = {
    "rows": (lambda d: flip(d / "rows.bin"), r"delta/rows.bin: has \d+ bytes with SHA-256 \w+, delta.json says"),
    "short": (lambda d: (d / "data.gz").write_bytes(b"x"), r"delta/data.gz: has 1 bytes .*; copy the delta again"),
    "missing": (lambda d: (d / "rows.bin").unlink(), "delta/rows.bin: is missing; copy the delta again"),
    "nothing": (lambda d: (d / "delta.json").unlink(), "delta: no delta.json; give a folder that easyrec-mm export"),
    "cut": (lambda d: (d / "delta.json").write_text('{"format"'), "delta.json: is damaged"),
    "format": (described(lambda v: v.update(format=2)), "only format 1 is supported"),
    "outside": (
        described(lambda v: v["files"].update({"../x": []})),
        r"is not a valid delta \(unexpected files \['../x'\]\)",
    ),
    "place of rows": (described(lambda v: v["tables"][0].update(base_offset=4)), WRONG),
    "too many rows": (described(lambda v: v["tables"][2].update(changed=9**9)), WRONG),
    "length": (described(lambda v: v["files"]["rec.onnx"][0].update(length=99999)), WRONG),
    "parts": (described(lambda v: v["files"].update({MANIFEST: []})), WRONG),
    "result": (described(lambda v: v["result"].update(fingerprint="0" * 64)), "not make release 000000000000 "),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_delta_is_refused(place, damage):
    change, says = DAMAGES[damage]
    change(place / "delta")
    with pytest.raises(ExportError, match=says):
        apply_delta(str(place / "delta"), str(place / "1"), str(place / "made"))
    assert sorted(path.name for path in place.iterdir()) == ["1", "2", "delta"]


def test_another_base_is_refused(place):
    release = r"\w{12} \(model.ckpt-%d\)"
    expected = f"--base {place}/2: is release {release % 2}, but {place}/delta was made from {release % 1}; give"
    with pytest.raises(ExportError, match=expected):
        apply_delta(str(place / "delta"), str(place / "2"), str(place / "made"))
    flip(place / "1" / "rec.tables")
    with pytest.raises(ExportError, match=r"1/rec.tables: has .* it is damaged or of another export"):
        apply_delta(str(place / "delta"), str(place / "1"), str(place / "made"))
    with pytest.raises(ExportError, match=r"1/rec.tables: has .* it is damaged or of another export"):
        make_delta(str(place / "1"), str(place / "2"), str(place / "new"))
    assert sorted(path.name for path in place.iterdir()) == ["1", "2", "delta"]


def test_places_that_hold_something_else(place):
    (place / "work").mkdir()
    (place / "work" / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"--output_dir .*work: contains files, but no manifest.json; choose a new"):
        apply_delta(str(place / "delta"), str(place / "1"), str(place / "work"))
    with pytest.raises(
        ExportError, match=r"--delta_dir .*work: contains files, but no delta.json; choose a new folder"
    ):
        make_delta(str(place / "1"), str(place / "2"), str(place / "work"))
    with pytest.raises(ExportError, match=r"--output_dir .*thesis.tex: is a file; choose a new folder"):
        apply_delta(str(place / "delta"), str(place / "1"), str(place / "work" / "thesis.tex"))
    with pytest.raises(ExportError, match=r"no manifest.json; give a folder that easyrec-mm export has written"):
        make_delta(str(place / "work"), str(place / "2"), str(place / "new"))


def test_flags_that_go_together(place, capsys):
    export = [
        "export",
        "--model_dir",
        "m",
        *(f"--{kind}_model_export_dir={place}/{kind}" for kind in ("img", "rec", "total")),
    ]
    for flags, says in [
        (["--delta_from", f"{place}/1"], f"--delta_from {place}/1: is without --delta_dir; give both"),
        (["--delta_dir", "d"], "--delta_dir d: is without --delta_from; give both"),
        (["--delta_from", f"{place}/rec/", "--delta_dir", "d"], "/rec/: is the folder that this export replaces; give"),
        (["--delta_from", f"{place}/9", "--delta_dir", "d"], f"{place}/9: no manifest.json"),
    ]:
        assert main([*export, *flags]) == 1
        assert says in capsys.readouterr().err


def test_buckets_as_places(s3, bucket, place):
    s3_folder = f"{bucket}/deltas"
    for name in ("1", "2"):
        for file, content in contents(place / name).items():
            s3.put(f"{bucket}/{name}/{file}", content)
    make_delta(f"{bucket}/1", f"{bucket}/2", s3_folder)
    apply_delta(s3_folder, f"{bucket}/1", f"{bucket}/made")
    made = contents(place / "2")
    assert set(s3.keys(f"{bucket}/made")) == {f"made/{name}" for name in made}
    assert {name: s3.get(f"{bucket}/made/{name}") for name in made} == made
