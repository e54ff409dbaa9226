"""`easyrec-mm eval` from files to files: intervals, slices, and the comparison of two models."""

from __future__ import annotations

import json
import shutil

import pytest
from flow_helpers import copy_checkpoint, demo_flags, make_data, run, use_small_backbone

SLICES = (
    "eval_config.slices=[{field: 'user_gender'}, {field: 'price' num_quantiles: 2}, {item_frequency {}}, "
    "{has_picture {}}, {group_size {}}]"
)
METRICS = (
    "eval_config.metrics_set=[{pr_auc {}}, {session_auc {session_id_field: 'user_id'}}, {xauc {}}, "
    "{ndcg {session_id_field: 'user_id' topk: 5}}, {calibration_curve {num_bins: 4}}, "
    "{recalibrated_normalized_entropy {}}]"
)


class Trained:
    """Demo data, a small training, and a folder of another whose last step is an earlier one."""

    def __init__(self, folder):
        self.data = make_data(folder / "data")
        self.model_dir = folder / "m"
        steps = {"train_config__num_steps": 3, "train_config__save_checkpoints_steps": 1}
        self.flags = [*demo_flags(self.data, self.model_dir, **steps), f"--set={METRICS}"]
        run("train", *self.flags)
        self.other_dir = folder / "other"
        copy_checkpoint(self.model_dir, 1, self.other_dir)
        config = (self.model_dir / "pipeline.config").read_text()
        (self.other_dir / "pipeline.config").write_text(config.replace(f'"{self.model_dir}"', f'"{self.other_dir}"'))

    def result(self):
        return json.loads((self.model_dir / "eval_result.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield Trained(tmp_path_factory.mktemp("eval"))


def test_eval_writes_intervals_slices_and_curves(trained, capsys):
    run("eval", *trained.flags, "--eval_input_path", f"{trained.data}/eval/*", f"--set={SLICES}")
    out = capsys.readouterr().out
    result = trained.result()
    low, high = result["confidence"]["intervals"]["auc_click"]
    assert low < result["auc_click"] < high
    assert f"{result['auc_click']:.6f} [{low:.4f}, {high:.4f}]" in out
    assert result["confidence"] | {"intervals": 0, "without_interval": 0} == {
        "method": "percentiles of the Poisson bootstrap of clusters",
        "clusters": "img_path",
        "num_clusters": 12,
        "num_replicates": 200,
        "level": 0.95,
        "intervals": 0,
        "without_interval": 0,
    }
    assert {"pr_auc_click", "session_auc_click", "xauc_play_time", "ndcg_at_top5_click"} <= set(result)
    assert sum(row["count"] for row in result["calibration_curve_click"]) == result["num_samples"]
    sizes = {name: value for name, value in result.items() if name.startswith("num_samples/")}
    # The items that evaluate are others than those that train.
    num_samples = result["num_samples"]
    assert sizes["num_samples/item_frequency=unseen"] == sizes["num_samples/has_picture=true"] == num_samples
    for name in ("user_gender", "group_size", "price"):
        assert sum(value for key, value in sizes.items() if key.startswith(f"num_samples/{name}=")) == num_samples
    assert result["auc_click/item_frequency=rare"] is None
    assert result["undefined"]["auc_click/item_frequency=rare"] == "there are no samples"
    assert result["auc_click/item_frequency=unseen"] == result["auc_click"]
    assert "item_frequency=rare: 0 samples\n  " in out


def test_items_that_train_are_not_unseen(trained):
    frequency = "eval_config.slices=[{item_frequency {frequent_from: 4}}]"
    flags = [f"--set={frequency}", "--set=eval_config.bootstrap.num_replicates=0"]
    run("eval", *trained.flags, "--eval_input_path", f"{trained.data}/train/*", *flags)
    result = trained.result()
    assert "confidence" not in result
    assert result["num_samples/item_frequency=unseen"] == 0
    # Each item of the training data is one group.
    frequent, rare = (result[f"num_samples/item_frequency={name}"] for name in ("frequent", "rare"))
    assert frequent + rare == result["num_samples"]
    assert frequent > rare > 0


def test_clusters_and_replicates_are_those_of_the_config(trained):
    flags = [*trained.flags, "--eval_input_path", f"{trained.data}/eval/*"]
    bootstrap = "eval_config.bootstrap={cluster_field: 'user_id' num_replicates: 40 level: 0.9}"
    run("eval", *flags, f"--set={bootstrap}")
    confidence = trained.result()["confidence"]
    assert (confidence["clusters"], confidence["num_replicates"], confidence["level"]) == ("user_id", 40, 0.9)


@pytest.mark.slow
def test_two_models_are_compared_on_the_same_rows(trained, capsys):
    flags = [*trained.flags, "--eval_input_path", f"{trained.data}/eval/*"]
    run("eval", *flags, "--compare", trained.other_dir, "--set=data_config.eval_batch_size=5")
    out = capsys.readouterr().out
    comparison = trained.result()["comparison"]
    alone = trained.result()["auc_click"]
    assert comparison["other"].startswith(str(trained.other_dir))
    row = comparison["differences"]["auc_click"]
    assert row["this"] == alone
    assert row["difference"] == pytest.approx(row["this"] - row["other"])
    assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    assert 0 < row["p_value"] <= 1
    assert 0 <= row["delong_p_value"] <= 1
    assert "auc_click" in out.split("this model minus")[1]
    run("eval", "--pipeline_config", trained.other_dir / "pipeline.config", "--eval_input_path",
        f"{trained.data}/eval/*")  # fmt: skip
    result = json.loads((trained.other_dir / "eval_result.json").read_text())
    assert result["auc_click"] == pytest.approx(row["other"], abs=1e-6)


def test_a_model_does_not_differ_from_itself(trained):
    flags = [*trained.flags, "--eval_input_path", f"{trained.data}/eval/*"]
    run("eval", *flags, "--compare", trained.model_dir, f"--set={SLICES}")
    differences = trained.result()["comparison"]["differences"]
    assert {row["difference"] for row in differences.values()} <= {0.0, None}
    assert differences["auc_click"]["p_value"] == differences["auc_click"]["delong_p_value"] == 1
    assert differences["auc_click/item_frequency=rare"]["reason"] == "there are no samples"


@pytest.mark.slow
def test_comparisons_that_mean_nothing_are_refused(trained, tmp_path, capsys):
    flags = [*trained.flags, "--eval_input_path", f"{trained.data}/eval/*"]
    run("eval", *flags, "--compare_config", "x.config", expect=1)
    assert "--compare_config: has no effect without --compare" in capsys.readouterr().err
    alone = tmp_path / "alone"
    shutil.copytree(trained.other_dir, alone)
    (alone / "pipeline.config").unlink()
    run("eval", *flags, "--compare", alone, expect=1)
    assert "has no pipeline.config beside it; give its config with --compare_config" in capsys.readouterr().err
    text = (trained.other_dir / "pipeline.config").read_text()
    swapped = tmp_path / "swapped.config"
    swapped.write_text(text.replace('label_name: "click"', 'label_name: "play_time"', 1))
    of_easyrec = tmp_path / "of_easyrec.config"
    of_easyrec.write_text(swapped.read_text() + "\nfg_json_path: 'fg.json'\n")
    run("eval", *flags, "--compare", alone, "--compare_config", of_easyrec, expect=1)
    assert "fg_json_path: not supported" in capsys.readouterr().err
    run("eval", *flags, "--ignore_unsupported", "--compare", alone, "--compare_config", of_easyrec, expect=1)
    assert "not supported" not in capsys.readouterr().err
    run("eval", *flags, "--compare", alone, "--compare_config", swapped, expect=1)
    assert "task_towers[click].label_name: was click, is play_time" in capsys.readouterr().err
    other_columns = tmp_path / "columns.config"
    names = {"user_city": "user_taste", "user_taste": "user_city"}
    lines = [
        next((line.replace(a, b) for a, b in names.items() if f'input_name: "{a}"' in line), line)
        for line in text.splitlines(keepends=True)
    ]
    other_columns.write_text("".join(lines))
    run("eval", *flags, "--compare", alone, "--compare_config", other_columns, expect=1)
    error = capsys.readouterr().err
    assert ": sample 1: 'user_city' is '" in error
    assert "compare models that read the same rows in the same way" in error


def test_data_without_samples_are_refused(trained, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    run("eval", *trained.flags, "--eval_input_path", empty, expect=1)
    assert f"{empty}: no line of data; give files that hold groups" in capsys.readouterr().err
