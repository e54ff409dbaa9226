"""Every input type through the commands: the same data trains the same model and is predicted the same."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from flow_helpers import demo_flags, make_data, numbers, use_small_backbone
from input_helpers import WRITERS, config_of, read_groups

from easyrec_mm.cli.main import main


@pytest.fixture(scope="module", autouse=True)
def small_backbone():
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_small_backbone(monkeypatch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, data): a model trained on lines of text, `folder/text`, and the same data in every format."""
    folder = tmp_path_factory.mktemp("inputs")
    data = make_data(folder / "data")
    for kind, write in WRITERS.items():
        for split in ("train", "test"):
            (folder / kind / split).mkdir(parents=True)
            groups = [group for path in sorted((data / split).iterdir()) for group in read_groups(path)]
            write(folder / kind / split / "part-0", groups)
    assert main(["train", *demo_flags(data, folder / "text", data_config__shuffle="false")]) == 0
    return folder, data


def flags(trained, kind, model, **settings):
    """Flags of the demo config for data of another format."""
    folder, data = trained
    path = folder / f"{kind}.config"
    path.write_text(config_of(kind), encoding="utf-8")
    given = demo_flags(data, folder / model, data_config__shuffle="false", **settings)
    given[1] = str(path)
    return [*given, f"--set=train_input_path={folder}/{kind}/train/*"]


def predictions(path):
    table = pq.read_table(path).to_pydict()
    return {name: np.array(values) for name, values in table.items()}


def predict(arguments, files, output):
    assert main(["predict", *arguments, "--predict_input_path", files, "--output", str(output)]) == 0
    return predictions(output)


@pytest.fixture(scope="module")
def expected(trained):
    folder, data = trained
    arguments = [*demo_flags(data, folder / "text"), "--reserved_columns", "user_id,img_path"]
    return predict(arguments, f"{data}/test/*", folder / "text.parquet")


@pytest.fixture(scope="module")
def evaluated(trained):
    """The numbers of an evaluation on lines of text."""
    folder, data = trained
    return evaluate(demo_flags(data, folder / "text"), f"{data}/test/*", folder / "text")


def evaluate(arguments, files, model_dir):
    assert main(["eval", *arguments, "--eval_input_path", files]) == 0
    return numbers(json.loads((model_dir / "eval_result.json").read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GroupParquetInput", "GroupTFRecordInput"])
def test_groups_in_another_format_train_the_same_model(trained, expected, kind):
    folder, _ = trained
    assert main(["train", *flags(trained, kind, f"model {kind}")]) == 0
    arguments = [*flags(trained, kind, f"model {kind}"), "--reserved_columns", "user_id,img_path"]
    columns = predict(arguments, f"{folder}/{kind}/test/*", folder / f"{kind}.parquet")
    assert list(columns) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(columns[name], values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ParquetInput", "CSVInput"])
def test_flat_rows_train_and_are_predicted_in_their_order(trained, expected, kind):
    folder, _ = trained
    size = {"data_config__batch_size": 32}
    assert main(["train", *flags(trained, kind, f"model {kind}", **size), "--set=data_config.shuffle=true"]) == 0
    # By the model that was trained on groups: other batches, the same samples.
    arguments = [*flags(trained, kind, "text", **size), "--reserved_columns", "user_id,img_path"]
    columns = predict(arguments, f"{folder}/{kind}/test/*", folder / f"{kind}.parquet")
    for name, values in expected.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(columns[name], values, atol=1e-5)
        else:
            np.testing.assert_array_equal(columns[name], values)


@pytest.mark.parametrize("kind", WRITERS)
def test_evaluation_and_check(trained, evaluated, kind, capsys):
    folder, data = trained
    metrics = evaluate(flags(trained, kind, "text"), f"{folder}/{kind}/test/*", folder / "text")
    assert metrics == pytest.approx(evaluated, abs=1e-5)
    capsys.readouterr()
    assert main(["check", *flags(trained, kind, "text")]) == 0
    report = capsys.readouterr().out
    assert "bad records: none" in report
    num_samples = sum(group["group_size"] for path in (data / "train").iterdir() for group in read_groups(path))
    num_groups = 48 if kind.startswith("Group") else min(num_samples, 1000)
    assert f"{num_groups} groups read" in report


def test_texts_that_a_spreadsheet_would_compute_are_quoted(trained, tmp_path):
    _, data = trained
    groups = read_groups(next((data / "test").iterdir()))
    users = ["=1+1", "+1", "-1", "@x", "\t=1", "u=1", "'=1"]
    count = 0
    for group in groups:
        group["user_id"] = [users[(count + i) % len(users)] for i in range(group["group_size"])]
        count += group["group_size"]
    WRITERS["GroupParquetInput"](tmp_path / "groups", groups)
    arguments = [*flags(trained, "GroupParquetInput", "text"), "--reserved_columns", "user_id"]
    columns = {}
    for name, more in (("plain", []), ("quoted", ["--quote_formulas"])):
        output = tmp_path / f"{name}.csv"
        predict_flags = ["predict", *arguments, "--predict_input_path", str(tmp_path / "groups")]
        assert main([*predict_flags, "--output", str(output), *more]) == 0
        with output.open(newline="") as file:
            columns[name] = {key: list(values) for key, *values in zip(*csv.reader(file), strict=True)}
    expected = [users[i % len(users)] for i in range(count)]
    assert columns["plain"].pop("user_id") == expected
    quoted = [f"'{user}" if user in users[:5] else user for user in expected]
    assert columns["quoted"].pop("user_id") == quoted
    # Negative numbers are numbers.
    assert columns["quoted"] == columns["plain"]
    assert any(value.startswith("-") for value in columns["plain"]["logits_click"])
    assert main([*predict_flags, "--output", f"{tmp_path}/x.parquet", "--quote_formulas"]) == 1
