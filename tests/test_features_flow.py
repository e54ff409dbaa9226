"""Every kind of feature through whole commands: trained, checked, predicted, exported, and served by both runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from training_helpers import optimizer, use_backbone_of_three_stages

from easyrec_mm.cli import main
from easyrec_mm.manifest import read_manifest
from easyrec_mm.serving.request import RequestError
from easyrec_mm.serving.service import Service, ServiceOptions
from easyrec_mm.store import open_store

NUM_GROUPS, GROUP_SIZE = 24, 3

CONFIG = r"""
train_input_path: "%(folder)s/data.txt"
model_dir: "%(folder)s/m"
data_config {
  input_type: GroupRTPInput
  batch_size: 8
  image_root: "%(folder)s"
  num_parallel_calls: 1
  separator: "\002"
  rtp_separator: ";"
  selected_cols: "0,1,2,3"
  label_fields: "click"
  input_fields { input_name: "click" input_type: INT32 }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "category" input_type: STRING }
  input_fields { input_name: "price" input_type: FLOAT }
  input_fields { input_name: "budget" input_type: INT64 default_val: "5" }
  input_fields { input_name: "is_new" input_type: BOOL }
  input_fields { input_name: "clicks_of" input_type: STRING }
  input_fields { input_name: "seen" input_type: STRING }
  input_fields { input_name: "seen_prices" input_type: STRING }
  input_fields { input_name: "seen_looks" input_type: STRING }
  input_fields { input_name: "seen_categories" input_type: STRING }
  input_fields { input_name: "look" input_type: STRING default_val: "1,0,0,0" }
  input_fields { input_name: "path" input_type: STRING }
  input_fields { input_name: "size" input_type: INT32 }
}
feature_config {
  features { input_names: "user" feature_type: IdFeature hash_bucket_size: 50 embedding_dim: 3 }
  features {
    input_names: "price" feature_type: RawFeature numeric_transform: LOG1P boundaries: [0.5, 1, 2] embedding_dim: 2
  }
  features {
    feature_name: "wanted" input_names: ["price", "budget", "is_new"] feature_type: ExprFeature
    expression: "((price <= budget) & is_new) * log1p(price) / budget"
  }
  features {
    feature_name: "clicks_of_category" input_names: ["category", "clicks_of"] feature_type: LookupFeature
    separator: "|" kv_separator: ":" num_buckets: 10 embedding_dim: 3
  }
  features {
    input_names: "seen" feature_type: SequenceFeature separator: "|" max_seq_len: 3 kept_end: LAST combiner: "max"
    hash_bucket_size: 50 embedding_dim: 3 embedding_name: "user"
  }
  features {
    input_names: "seen_prices" feature_type: SequenceFeature sub_feature_type: RawFeature numeric_transform: LOG1P
    boundaries: [0.5, 1, 2] combiner: "sum" separator: "|"
  }
  features {
    input_names: "seen_looks" feature_type: SequenceFeature sub_feature_type: RawFeature raw_input_dim: 4
    seq_multi_sep: "x" embedding_dim: 2 separator: "|"
  }
  features {
    feature_name: "looks" input_names: "seen_looks" feature_type: SequenceFeature sub_feature_type: RawFeature
    raw_input_dim: 4 seq_multi_sep: "x" separator: "|" max_seq_len: 4
  }
  features { input_names: "category" feature_type: IdFeature vocab_list: ["c0", "c1"] embedding_dim: 2 }
  features {
    input_names: "seen_categories" feature_type: SequenceFeature separator: "," max_seq_len: 3 kept_end: LAST
    vocab_list: ["c0", "c1"] embedding_dim: 2 embedding_name: "category"
  }
  features { input_names: "look" feature_type: VectorFeature vector_dim: 4 separator: "," }
  features { input_names: "path" feature_type: ImgFeature img_shape { width: 12 height: 12 } }
  features { input_names: "size" feature_type: SampleNumFeature }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "img" feature_names: "path" }
  feature_groups {
    group_name: "all"
    feature_names: ["user", "price", "wanted", "clicks_of_category", "seen", "seen_prices", "seen_looks"]
    sequence_features {
      group_name: "din"
      allow_key_search: true
      seq_att_map { key: ["user", "category"] hist_seq: ["seen", "seen_categories"] }
      seq_dnn { hidden_units: [8, 1] }
    }
    sequence_features {
      group_name: "look_alike" allow_key_search: true seq_att_map { key: "look" hist_seq: "looks" }
      seq_dnn { hidden_units: [4, 1] use_bn: false }
    }
    sequence_features {
      group_name: "look" need_key_feature: false seq_att_map { key: "path" hist_seq: "looks" }
    }
  }
  embedding_regularization: 1e-4
  e2e_mm_dbmtl {
    img_model { num_classes: 4 }
    task_towers { tower_name: "click" label_name: "click" dnn { hidden_units: [8] } }
  }
}
train_config { %(optimizer)s precision: FLOAT32 num_epochs: 4 log_step_count_steps: 1 }
"""


def sample(rng: np.random.Generator) -> dict[str, str]:
    """Texts of a sample's values in the order of the row; some are empty."""
    clicks = "|".join(f"c{i}:{rng.integers(12)}" for i in rng.integers(0, 3, rng.integers(0, 4)))
    num_seen = rng.integers(0, 6)
    return {
        "user": f"u{rng.integers(20)}",
        "category": f"c{rng.integers(3)}",
        "price": f"{rng.lognormal(1, 1):.2f}",
        "budget": str(rng.integers(-1, 9)) if rng.random() < 0.8 else "",
        "is_new": str(rng.random() < 0.5),
        "clicks_of": clicks,
        "seen": "|".join(f"u{rng.integers(20)}" for _ in range(num_seen)),
        "seen_prices": "|".join(f"{rng.lognormal(1, 1):.2f}" for _ in range(num_seen)),
        "seen_looks": "|".join("x".join(f"{x:.2f}" for x in rng.normal(size=4)) for _ in range(num_seen)),
        "seen_categories": ",".join(f"c{rng.integers(3)}" for _ in range(num_seen)),
        "look": ",".join(f"{x:.2f}" for x in rng.normal(size=4)) if rng.random() < 0.8 else "",
    }


def write_data(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(NUM_GROUPS):
        Pillow.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
        clicks = "\x01".join(str(rng.integers(2)) for _ in range(GROUP_SIZE))
        samples = "\x01".join("\x02".join(sample(rng).values()) for _ in range(GROUP_SIZE))
        lines.append(f"{clicks};{samples};{i}.png;{GROUP_SIZE}")
    (folder / "data.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "x.config").write_text(CONFIG % {"folder": folder, "optimizer": optimizer()}, encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data, a training of it, its export and the vectors of its pictures."""
    folder = tmp_path_factory.mktemp("features")
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        write_data(folder)
        config = ["--pipeline_config", f"{folder}/x.config"]
        assert main(["train", *config]) == 0
        kinds = ("rec", "total", "img")
        exports = [flag for kind in kinds for flag in (f"--{kind}_model_export_dir", f"{folder}/{kind}")]
        assert main(["export", *config, *exports]) == 0
        embed = ["embed", "--img_model_dir", f"{folder}/img", "--input", f"{folder}/*.png", "--image_root", f"{folder}"]
        assert main([*embed, "--store", f"lmdb://{folder}/store", "--bad_pictures", f"{folder}/bad"]) == 0
    return folder


def test_check_shows_every_feature(trained, capsys, monkeypatch):
    use_backbone_of_three_stages(monkeypatch)
    assert main(["check", "--pipeline_config", f"{trained}/x.config"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.split("\nfeatures\n")[1].splitlines() if line}
    assert "raw (expression)" in lines["wanted"]
    found = lines["clicks_of_category"].split()
    assert found[1:5] == ["tag", "(identity)", "3", "10"]
    assert 0 < float(found[5].rstrip("%")) < 100  # samples whose map lacks the category
    assert 0 < float(found[6].rstrip("%")) < 50  # numbers above 9
    assert lines["seen"].split()[1:3] == ["sequence", "(hash)"]
    assert lines["seen_looks"].split()[1:5] == ["sequence", "(numbers)", "2", "4"]
    assert 0 < float(lines["seen"].split()[5].rstrip("%")) < 50  # without any


@pytest.fixture(scope="module")
def rows(trained):
    """What `predict` writes, beside the fields."""
    manifest = read_manifest(f"{trained}/rec", "rec")
    names = [*manifest.schema.feature_fields(), "path"]
    arguments = ["--predict_input_path", f"{trained}/data.txt", "--output", f"{trained}/p.parquet"]
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        columns = ["--reserved_columns", ",".join(names)]
        assert main(["predict", "--pipeline_config", f"{trained}/x.config", *arguments, *columns]) == 0
    return pq.read_table(f"{trained}/p.parquet").to_pylist(), names


def test_lists_that_do_not_fit_each_other_are_refused(trained, rows):
    rows, names = rows
    service = Service(ServiceOptions(f"{trained}/rec"), open_store(f"lmdb://{trained}/store"))
    instances = [{name: row[name] for name in names} for row in rows[:3]]
    instances[2] |= {"seen": "u1|u2", "seen_categories": "c1"}
    with pytest.raises(RequestError) as caught:
        service.answer({"instances": instances})
    assert str(caught.value) == "instance 2: 'seen' has 2 values and 'seen_categories' 1; they belong together"
    for instance in instances:
        instance["seen"] = "u1|u2"
        del instance["seen_categories"]
    with pytest.raises(RequestError, match="instance 0: 'seen' has 2 values and 'seen_categories' 3; they belong"):
        service.answer({"instances": instances, "shared": {"seen_categories": "c0,c1,c2"}})
    answer = service.answer({"instances": instances, "shared": {"seen_categories": "c0,c1"}})
    assert len(answer.outputs["probs_click"]) == 3


@pytest.mark.parametrize("runtime", ["onnx", "tensorflow"])
def test_served_answers_are_the_predictions(trained, rows, runtime):
    rows, names = rows
    service = Service(ServiceOptions(f"{trained}/rec", runtime=runtime), open_store(f"lmdb://{trained}/store"))
    instances = [{name: row[name] for name in names} for row in rows]
    answer = service.answer({"instances": instances})
    for name in ("logits_click", "probs_click"):
        np.testing.assert_allclose(answer.outputs[name], [row[name] for row in rows], rtol=1e-4, atol=1e-5)
    assert np.std(answer.outputs["logits_click"]) > 1e-3
