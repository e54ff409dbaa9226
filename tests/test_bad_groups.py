"""Every fault of a group, in every format, through every command that reads groups: the same group is refused.

The commands must agree on file, row, place and words; training is the one they are compared with.
"""

from __future__ import annotations

import json

import pytest
from flow_helpers import demo_flags, make_data, use_small_backbone
from input_helpers import CONFIG, LABELS, OF_SAMPLES, config_of, read_groups, write_grouped, write_tfrecord

from easyrec_mm.cli.main import main


def write_lines(path, groups):
    """As lines of GroupRTPInput, as the demo has them."""

    def text(value):
        return "" if value is None else str(value)

    lines = []
    for group in groups:
        labels = ["\x01".join(map(text, group[name])) for name in LABELS]
        num_samples = max(len(group[name]) for name in OF_SAMPLES)
        samples = ["\x02".join(text(group[name][i]) for name in OF_SAMPLES) for i in range(num_samples)]
        size = group["group_size"]
        lines.append("|".join(["id", "0", *labels, "\x01".join(samples), group["img_path"], text(size)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


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
    "a category of several": (
        {"category": ["bag", "lamp", "bag", "bag"], "click": [0, 0, 0, 7]},
        "column 'click'",
        "sample 3: label 7 is not from 0 to 1",
        (),
    ),
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


def records_of_training(folder):
    lines = (folder / "m/bad_records.jsonl").read_text(encoding="utf-8").splitlines()
    return sorted((one["file"], one["row"], one["where"], one["problem"]) for one in map(json.loads, lines))


@pytest.mark.parametrize("kind", WRITERS)
def test_all_commands_refuse_the_same_groups_with_the_same_words(groups, tmp_path, capsys, kind):
    data, good = groups
    faults = [fault for fault in FAULTS.values() if kind not in fault[3]]
    four = next(group for group in good if group["group_size"] >= 4)
    four = {name: value[:4] if isinstance(value, list) else value for name, value in four.items()}
    bad = [{**four, "group_size": 4, "category": ["bag"] * 4, **changes} for changes, *_ in faults]
    file = tmp_path / "part-0"
    WRITERS[kind](file, [*good, *bad])
    expected = [(str(file), len(good) + 1 + i, where, what) for i, (_, where, what, _) in enumerate(faults)]

    (tmp_path / "x.config").write_text(CONFIG if kind == "GroupRTPInput" else config_of(kind), encoding="utf-8")
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
    assert records_of_training(tmp_path) == expected
    for command in (["eval", "--eval_input_path", file], ["check"]):
        (tmp_path / "m/bad_records.jsonl").unlink(missing_ok=True)
        told = run(*command, *flags)
        if command[0] == "eval":
            assert records_of_training(tmp_path) == expected
        else:
            for path, row, where, what in expected:
                assert f"{path}:{row}: {where}: {what}" in told
    run(
        "convert",
        *flags,
        "--format",
        "parquet",
        "--output",
        tmp_path / "converted",
        "--max_bad_share",
        1,
        "--input",
        file,
    )
    lines = (tmp_path / "converted/bad_rows.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(one["file"], one["row"], one["where"], one["problem"]) for one in map(json.loads, lines)]
    assert found == expected
    run("stats", *flags, "--output", tmp_path / "stats.html", "--json", tmp_path / "stats.json")
    refused = json.loads((tmp_path / "stats.json").read_text(encoding="utf-8"))["refused_first"]
    assert [(one["file"], one["row"], one["where"], one["problem"]) for one in refused] == expected
