"""What a training would end with is told by `check`, and by `train` before its first step."""

import re

import pytest
import tensorflow as tf
from flat_helpers import CONFIG, make_log
from PIL import Image

from easyrec_mm.cli import check
from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.training import memory
from easyrec_mm.training.memory import machine_bytes


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Make the log, run `check` and `train`, which both fail; return the error, which is the same."""
    monkeypatch.chdir(tmp_path)

    def run(config=CONFIG, change=None):
        flags = make_log(tmp_path, config)
        if change is not None:
            change(tmp_path)
        errors = []
        for command in ("check", "train"):
            assert main([command, *flags]) == 1
            output = capsys.readouterr()
            assert "the config is valid" not in output.out + output.err
            errors.append(output.err.strip().split("\n")[-1])
        assert not (tmp_path / "m" / "metrics.jsonl").exists()
        assert errors[0] == errors[1]
        return errors[0].removeprefix("error: ")

    return run


def test_evaluation_data_that_match_nothing(told):
    error = told(CONFIG.replace("eval.csv", "evall.csv"))
    assert error == "eval_input_path: 'evall.csv' matches no file; check the path"


@pytest.mark.parametrize("name", ["price", "click"])
def test_evaluation_data_that_lack_a_column(told, name):
    def rename(folder):
        text = (folder / "eval.csv").read_text()
        (folder / "eval.csv").write_text(text.replace(name, f"{name}s", 1))

    assert told(change=rename) == f"eval.csv: no column '{name}'; did you mean '{name}s'?"


def test_evaluation_data_that_lack_the_user_of_a_metric(told):
    def rename(folder):
        text = (folder / "eval.csv").read_text()
        (folder / "eval.csv").write_text(text.replace("user", "uid", 1))

    config = CONFIG.replace("auc {}", 'gauc { uid_field: "user" }')
    assert told(config, rename).startswith("eval.csv: no column 'user'; choose one of ")


def test_evaluation_data_of_bad_groups(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = make_log(tmp_path)
    text = (tmp_path / "eval.csv").read_text()
    (tmp_path / "eval.csv").write_text(re.sub(r"^[01],", "yes,", text, flags=re.MULTILINE))
    assert main(["check", *flags]) == 1
    assert "100 of 100 groups are bad" in capsys.readouterr().err
    assert main(["train", *flags]) == 1
    error = "eval_input_path: 100 of the first 100 groups cannot be used. The first: eval.csv:2: column 'click': "
    assert error in capsys.readouterr().err
    assert not (tmp_path / "m" / "metrics.jsonl").exists()


def test_evaluation_data_without_their_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = 'features { input_names: "user" feature_type: ImgFeature img_shape { width: 32 height: 32 } }'
    config = CONFIG.replace('  features { input_names: "price"', f'  {image}\n  features {{ input_names: "price"', 1)
    config = config.replace(
        "  feature_groups", '  feature_groups { group_name: "img" feature_names: "user" } feature_groups', 1
    )
    config = config.replace("bottom_dnn {", 'img_model { model_name: "None" } bottom_dnn {')
    flags = make_log(tmp_path, config)
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(re.sub(",u[0-9],", ",0.png,", text))
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    for command in ("check", "train"):
        assert main([command, *flags]) == 1
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert "9 of the first 9 pictures cannot be read, the first 'u" in error
        assert "eval.csv:2" in error


@pytest.mark.parametrize(
    ("optimizer", "average", "copies"),
    [("adam_optimizer", "", 3), ("sgd_optimizer", "", 1), ("adagrad_optimizer", "use_moving_average: true", 3)],
)
def test_tables_that_do_not_fit_into_memory(told, optimizer, average, copies):
    rows, dim = 2_000_000_000, 4096
    config = CONFIG.replace("hash_bucket_size: 10 embedding_dim: 2", f"hash_bucket_size: {rows} embedding_dim: {dim}")
    config = config.replace("optimizer_config { adam_optimizer", f"optimizer_config {{ {average} {optimizer}")
    error = told(config)
    needed, available = (int(text.replace(",", "")) for text in re.findall(r"([\d,]+) bytes", error))
    assert needed == rows * dim * 4 * copies
    assert available == machine_bytes()
    assert f"the largest is 'tags', {rows:,} rows of {dim}: give it fewer rows" in error


@pytest.mark.parametrize(
    ("settings", "num_workers", "rows_of_tags"),
    [
        ("", 2, 11),
        ("shard_tables_from_rows: 11", 1, 11),
        ("shard_tables_from_rows: 12", 2, 11),
        ("shard_tables_from_rows: 11", 2, 6),
        ("train_distribute: EmbeddingParallelStrategy", 4, 3),
        ("train_distribute: EmbeddingParallelStrategy shard_tables_from_rows: 0", 4, 11),
        ("", None, 11),
        ("shard_tables_from_rows: 11", None, 11),
        ("train_distribute: MultiWorkerMirroredStrategy shard_tables_from_rows: 11", None, 0),
    ],
)
def test_a_worker_needs_memory_for_its_part_of_divided_tables(
    tmp_path, monkeypatch, settings, num_workers, rows_of_tags
):
    config = CONFIG.replace("hash_bucket_size: 10 embedding_dim: 2", "hash_bucket_size: 11 embedding_dim: 2")
    make_log(tmp_path, config.replace("train_config {", f"train_config {{ {settings} "))
    pipeline = load_pipeline(str(tmp_path / "x.config"))
    needed = rows_of_tags * 2 * 4 * 3
    monkeypatch.setattr(memory, "machine_bytes", lambda: needed)
    memory.require_memory(pipeline.config, pipeline.schema, "x.config", num_workers)
    if not needed:
        return
    monkeypatch.setattr(memory, "machine_bytes", lambda: needed - 1)
    with pytest.raises(ConfigError, match=rf"need {needed} bytes .+ train_config.shard_tables_from_rows"):
        memory.require_memory(pipeline.config, pipeline.schema, "x.config", num_workers)


@pytest.mark.parametrize(
    ("setting", "named"),
    [("raw_input_dim", "RawFeature"), ("vector_dim", "VectorFeature")],
)
def test_more_numbers_than_a_text_can_be_checked_for(problem_lines, setting, named):
    feature = f"input_names: 'city' feature_type: {named} separator: ',' {setting}: 4000000000"
    lines = problem_lines(overrides=[f"feature_config.features[2]={feature}"])
    assert any(f"features[2].{setting}: 4e+09 is out of range; give a number from" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("Unable to allocate 9.00 GiB for an array"), "Unable to allocate 9.00 GiB for an array"),
        (MemoryError(), "an array cannot be allocated"),
        (
            tf.errors.ResourceExhaustedError(None, None, "{{node a}} OOM when allocating tensor with shape[3,9] and"),
            "OOM when allocating tensor with shape[3,9]",
        ),
        (
            tf.errors.ResourceExhaustedError(None, None, "Out of memory while trying to allocate 123 bytes. [Op:A]"),
            "Out of memory while trying to allocate 123 bytes",
        ),
    ],
)
def test_memory_that_runs_out_is_an_error_of_one_line(monkeypatch, capsys, error, reason):
    def run(flags):
        raise error

    monkeypatch.setattr(check, "run", run)
    assert main(["check", "--pipeline_config", "x.config"]) == 1
    advice = "make the batch (data_config.batch_size), the layers or the tables smaller"
    assert capsys.readouterr().err == f"error: memory ran out: {reason}; {advice}\n"


def test_other_errors_of_tensorflow_keep_their_trace(monkeypatch):
    def run(flags):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(check, "run", run)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        main(["check", "--pipeline_config", "x.config"])


def test_the_memory_of_a_machine_is_at_most_what_the_kernel_reports():
    with open("/proc/meminfo", encoding="ascii") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < machine_bytes() <= total


@pytest.mark.parametrize(
    ("name", "side", "least"),
    [("MobileNetV3-Small", 16, 31), ("MobileNet", 30, 31), ("ConvNeXt-Tiny", 31, 32)],
)
def test_pictures_that_are_too_small_for_a_backbone(problem_lines, name, side, least):
    image = "feature_config.features[19].img_shape"
    overrides = [f"{image}.width={side}", f"{image}.height=64", "export_config.img_shape="]
    overrides += [f"export_config.img_shape.width={side}", "export_config.img_shape.height=64"]
    (line,) = problem_lines(overrides=[*overrides, f"model_config.e2e_mm_dbmtl.img_model.model_name={name}"])
    assert f"takes pictures of {least} x {least} or more, and img_shape is {side} x 64; enlarge img_shape" in line


# --- Names that an export cannot have


@pytest.mark.parametrize("name", ["user-city", "_city", "city name", "größe", "class", "1st", "img_emb"])
def test_inputs_that_cannot_be_exported_are_noted(load, name):
    fields = ('input_name: "city"', f'input_name: "{name}"'), ('input_names: "city"', f'input_names: "{name}"')
    notes = load(*fields, ('    feature_names: "city"', f'    feature_names: "{name}"')).notes
    assert [note for note in notes if note.startswith(f"export_config: the model cannot be exported: '{name}' ")]
    assert not [note for note in load().notes if note.startswith("export_config")]


# --- check: a report is not an error, and what is bad is one


def bad_log(folder, feature, value):
    config = CONFIG.replace(
        'features { input_names: "tags" feature_type: TagFeature hash_bucket_size: 10 embedding_dim: 2 }', feature
    ).replace('["price", "tags"]', '["price", "f"]')
    flags = make_log(folder, config)
    for name in ("train.csv", "eval.csv"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("a|b", value))
    return flags


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ('input_names: ["user", "tags"] feature_type: LookupFeature kv_separator: ":" hash_bucket_size: 9', "a=1"),
        ('input_names: "tags" feature_type: TagFeature kv_separator: ":" hash_bucket_size: 9', "a=1"),
        ('input_names: "tags" feature_type: TagFeature num_buckets: 9', "a|b"),
        ('input_names: "tags" feature_type: SequenceFeature num_buckets: 9', "a|b"),
        ('input_names: "tags" feature_type: SequenceFeature sub_feature_type: RawFeature boundaries: 1', "a|b"),
        ('input_names: "tags" feature_type: RawFeature raw_input_dim: 2', "1|2|3"),
    ],
)
def test_a_report_of_bad_groups_alone(tmp_path, monkeypatch, capsys, feature, value):
    monkeypatch.chdir(tmp_path)
    flags = bad_log(tmp_path, f'features {{ feature_name: "f" {feature} embedding_dim: 2 }}', value)
    assert main(["check", *flags]) == 1
    output = capsys.readouterr()
    assert output.out.startswith("x.config: the config is valid\n\ndata: 1 file(s), 100 groups read, 0 samples\n")
    assert "click: no value; tower click" in output.out
    assert "train.csv:2: column 'tags': " in output.out
    assert "evaluation data: 1 file(s), 100 groups read, 0 samples" in output.out
    assert output.err.split("\n")[-2] == (
        "error: 100 of 100 groups are bad, more than data_config.max_bad_record_share (0.01): training would stop. "
        "Correct the data or raise the share."
    )


def test_samples_are_counted_whichever_fields_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = CONFIG.replace('["price", "tags"]', '["tags"]')
    assert main(["check", *make_log(tmp_path, config)]) == 0
    assert "data: 1 file(s), 100 groups read, 100 samples" in capsys.readouterr().out


def test_a_truth_value_is_a_bucket(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    feature = 'features { input_names: "tags" feature_type: IdFeature num_buckets: 2 embedding_dim: 2 }'
    config = CONFIG.replace('input_name: "tags" input_type: STRING', 'input_name: "tags" input_type: BOOL')
    config = re.sub(r'features \{ input_names: "tags".*', feature, config)
    flags = make_log(tmp_path, config)
    for name in ("train.csv", "eval.csv"):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace("a|b", "true", 50).replace("a|b", "FALSE"))
    assert main(["check", *flags]) == 0
    assert re.search(r"tags +IdFeature \(identity\) +2 +2 +0.0% +0.0% +true, FALSE", capsys.readouterr().out)


@pytest.mark.parametrize(("settings", "warns"), [("", True), ("boundaries: [1, 5]", False)])
def test_the_limits_of_numbers_and_one_far_beyond_them(tmp_path, monkeypatch, capsys, settings, warns):
    """After one number of 1e15 batch normalisation makes all others the same, which no loss tells."""
    monkeypatch.chdir(tmp_path)
    feature = 'input_names: "price" feature_type: RawFeature'
    flags = make_log(tmp_path, CONFIG.replace(feature, f"{feature} {settings}"))
    lines = (tmp_path / "train.csv").read_text().splitlines()
    place = lines[0].split(",").index("price")
    values = lines[30].split(",")
    values[place] = "-1e15"
    (tmp_path / "train.csv").write_text("\n".join([*lines[:30], ",".join(values), *lines[31:]]) + "\n")
    assert main(["check", *flags]) == 0
    output = capsys.readouterr().out
    assert re.search(r"price +RawFeature .* -1e\+15 to [\d.]+, such as ", output)
    assert ("warning: price: 1e+15 is far beyond the other numbers, 99 % of which are within " in output) == warns
