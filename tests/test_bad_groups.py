"""Every fault of a group, in every format, through every command that reads groups: the same group is refused.

The commands must agree on file, row, place and words; training is the one they are compared with.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from data_helpers import schema
from feature_helpers import tag_feature
from flow_helpers import demo_flags, make_data, use_small_backbone
from input_helpers import (
    CONFIG,
    LABELS,
    OF_SAMPLES,
    config_of,
    encoded,
    read_groups,
    write_csv,
    write_flat,
    write_grouped,
    write_tfrecord,
)

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.embedding.items import read_items
from easyrec_mm.features.field import AN_ID
from easyrec_mm.formats.checks import GroupProblems, SampleChecks


def write_lines(path, groups):
    """As lines of GroupRTPInput, as the demo has them, and empty lines at the end, which are no groups."""

    def text(value):
        return "" if value is None else str(value)

    lines = []
    for group in groups:
        labels = ["\x01".join(map(text, group[name])) for name in LABELS]
        num_samples = max(len(group[name]) for name in OF_SAMPLES)
        samples = ["\x02".join(text(group[name][i]) for name in OF_SAMPLES) for i in range(num_samples)]
        size = group["group_size"]
        lines.append("|".join(["id", "0", *labels, "\x01".join(samples), group["img_path"], text(size)]))
    path.write_bytes(encoded("\n".join(lines) + "\n\n\r\n"))


FLAT_WRITERS = {"ParquetInput": write_flat, "CSVInput": write_csv}
WRITERS = {"GroupRTPInput": write_lines, "GroupParquetInput": write_grouped, "GroupTFRecordInput": write_tfrecord}
# Field and its changed values; place and words; without the formats that cannot hold such a value.
FAULTS = {
    "a click of 5": ({"click": [5, 0, 1, 0]}, "column 'click'", "sample 0: label 5 is not from 0 to 1", ()),
    "a label too few": ({"click": [0, 0, 1]}, "column 'click'", "3 entries, group size 4", ()),
    "no label": (
        {"click": [1, None, 1, 0]},
        "column 'click'",
        "sample 1: the label is missing, and its field has no default_val",
        ("GroupTFRecordInput",),
    ),
    "no group size": (
        {"group_size": 0},
        "column 'group_size'",
        "group size 0 is not 1 or more",
        (),
    ),
    "categories that disagree": (
        {"category": ["bag", "bag", "lamp", "bag"]},
        "column 'category'",
        "sample 2: 'lamp', but sample 0 has 'bag'; the value must be the same in a group",
        (),
    ),
    "a label before categories that disagree": (
        {"category": ["bag", "lamp", "bag", "bag"], "click": [0, 0, 0, 7]},
        "column 'click'",
        "sample 3: label 7 is not from 0 to 1",
        (),
    ),
    "an id that shares its FLOAT": (
        {"price": [1.0, 2e7, 3.0, 4.0]},
        "column 'price'",
        f"sample 1: 2e+07 is not {AN_ID}",
        (),
    ),
    "a city in Latin-1": (
        {"user_city": ["Lima", "caf\udce9", "Oslo", "Rome"]},
        "column 'user_city'",
        "sample 1: 'caf\ufffd' is not UTF-8",
        (),
    ),
    "a path in Latin-1": ({"img_path": "caf\udce9.png"}, "column 'img_path'", "'caf\ufffd.png' is not UTF-8", ()),
}
# What `predict` says, which reads no labels, of the faults that it sees.
WITHOUT_LABELS = {
    "no group size": FAULTS["no group size"][1:3],
    "categories that disagree": FAULTS["categories that disagree"][1:3],
    "a label before categories that disagree": (
        "column 'category'",
        "sample 1: 'lamp', but sample 0 has 'bag'; the value must be the same in a group",
    ),
    **{name: FAULTS[name][1:3] for name in ("an id that shares its FLOAT", "a city in Latin-1", "a path in Latin-1")},
}


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Folder of the demo's data, and its groups."""
    data = make_data(tmp_path_factory.mktemp("bad_groups"), num_train_groups=24)
    return data, [group for path in sorted((data / "train").iterdir()) for group in read_groups(path)]


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


def with_prices_as_ids(kind):
    """The demo config for data of an input_type, with ids that are FLOAT."""
    config = CONFIG if kind == "GroupRTPInput" else config_of(kind)
    ids = "IdFeature hash_bucket_size: 9 embedding_dim: 8 precision: 2"
    return config.replace("RawFeature min_val: 0 max_val: 500", ids)


def parts(record):
    return record["file"], record["row"], record["where"], record["problem"]


def records(path):
    """What a file of refused groups says, in the order of rows."""
    return sorted(parts(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_all_commands_refuse_the_same_groups_with_the_same_words(groups, tmp_path, capsys, kind):
    data, good = groups
    faults = {name: fault for name, fault in FAULTS.items() if kind not in fault[3]}
    four = next(group for group in good if group["group_size"] >= 4)
    four = {name: value[:4] if isinstance(value, list) else value for name, value in four.items()}
    bad = [{**four, "group_size": 4, "category": ["bag"] * 4, **changes} for changes, *_ in faults.values()]
    file = tmp_path / "part-0"
    WRITERS[kind](file, [*good, *bad])
    rows = {name: len(good) + 1 + i for i, name in enumerate(faults)}
    expected = [(str(file), rows[name], where, problem) for name, (_, where, problem, _) in faults.items()]
    without_labels = [(str(file), rows[name], *problem) for name, problem in WITHOUT_LABELS.items()]

    (tmp_path / "x.config").write_text(with_prices_as_ids(kind), encoding="utf-8")
    flags = demo_flags(data, tmp_path / "m")
    flags[1] = str(tmp_path / "x.config")
    settings = {
        "train_input_path": file,
        "data_config.max_bad_record_share": 1,
        "feature_config.features[5].per_group": "true",
    }
    flags += [f"--set={name}={value}" for name, value in settings.items()]

    def run(*arguments):
        assert main([*map(str, arguments)]) == 0
        return capsys.readouterr().out

    run("train", *flags)
    assert records(tmp_path / "m/bad_records.jsonl") == expected
    run("eval", *flags, "--eval_input_path", file)
    assert records(tmp_path / "m/eval_bad_records.jsonl") == expected
    run("predict", *flags, "--predict_input_path", file, "--output", tmp_path / "p.csv")
    assert records(tmp_path / "m/predict_bad_records.jsonl") == without_labels
    assert records(tmp_path / "m/bad_records.jsonl") == expected  # that of the training is as it was
    output = run("check", *flags)
    assert all(f"{path}:{row}: {where}: {problem}" in output for path, row, where, problem in expected)
    converted = ["--input", file, "--format", "parquet", "--output", tmp_path / "converted", "--max_bad_share", 1]
    run("convert", *flags, *converted)
    assert records(tmp_path / "converted/bad_rows.jsonl") == expected
    run("stats", *flags, "--output", tmp_path / "stats.html", "--json", tmp_path / "stats.json")
    refused = json.loads((tmp_path / "stats.json").read_text(encoding="utf-8"))["refused_first"]
    assert [parts(record) for record in refused] == expected
    # What `embed` reads of groups: their size and picture.
    of_pictures = read_items(str(file), load_pipeline(str(tmp_path / "x.config")).schema).refused
    assert [parts(asdict(record)) for record in of_pictures] == [
        record for record in without_labels if record[2] in ("column 'group_size'", "column 'img_path'")
    ]


@pytest.mark.parametrize(("kind", "first_row"), [("ParquetInput", 1), ("CSVInput", 2)])
def test_check_and_stats_refuse_the_same_rows_of_flat_files(groups, tmp_path, capsys, kind, first_row):
    data, good = groups
    sample = {name: value[:1] if isinstance(value, list) else value for name, value in good[0].items()} | {
        "group_size": 1
    }
    rows = [sample, {**sample, "click": [5]}, {**sample, "click": [None]}, {**sample, "price": [2e7]}, sample]
    rows += [{**sample, "user_city": ["caf\udce9"]}, {**sample, "img_path": "caf\udce9.png"}]
    file = tmp_path / "part-0"
    FLAT_WRITERS[kind](file, rows)
    (tmp_path / "x.config").write_text(with_prices_as_ids(kind), encoding="utf-8")
    flags = demo_flags(data, tmp_path / "m")
    flags[1] = str(tmp_path / "x.config")
    flags += [f"--set=train_input_path={file}", "--set=data_config.max_bad_record_share=1"]
    expected = [
        (str(file), first_row + 1, "column 'click'", "label 5 is not from 0 to 1"),
        (str(file), first_row + 2, "column 'click'", "the label is missing, and its field has no default_val"),
        (str(file), first_row + 3, "column 'price'", f"2e+07 is not {AN_ID}"),
        (str(file), first_row + 5, "column 'user_city'", "'caf\ufffd' is not UTF-8"),
        (str(file), first_row + 6, "column 'img_path'", "'caf\ufffd.png' is not UTF-8"),
    ]
    assert main(["check", *flags]) == 0
    output = capsys.readouterr().out
    assert all(f"{path}:{row}: {where}: {problem}" in output for path, row, where, problem in expected)
    report = ["--output", str(tmp_path / "stats.html"), "--json", str(tmp_path / "stats.json")]
    assert main(["stats", *flags, *report]) == 0
    refused = json.loads((tmp_path / "stats.json").read_text(encoding="utf-8"))["refused_first"]
    assert [parts(record) for record in refused] == expected


def test_words_are_the_same_for_text_of_every_arrow_type():
    pairs = tag_feature("pairs", ("pairs",), 4, "t", "hash", 9, separator="|", kv_separator=":")
    checks = SampleChecks(schema({"y": "float32"}, {"pairs": "string"}, [pairs]), ("y",), ("pairs",))
    for text in (pa.string(), pa.binary(), pa.large_binary()):
        problems = GroupProblems(np.array([1, 2]))
        labels = pa.array(["0", "1", "1"], text)
        checks.check({"y": labels, "pairs": pa.array(["a:1", "b:2", "b"], text)}, problems)
        assert problems.by_group == {
            1: ("column 'pairs'", "sample 1: 'b' does not have the form that its feature needs")
        }
        problems = GroupProblems(np.array([1, 2]))
        checks.check({"y": pa.array(["0", "x", None], text), "pairs": pa.array(["a:1", "", ""], text)}, problems)
        assert problems.by_group == {1: ("column 'y'", "sample 0: 'x' is not a number")}
