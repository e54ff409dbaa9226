"""Tables that are divided among workers: the weights, checkpoints and evaluations of one process."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from flat_helpers import make_log
from increment_helpers import SLOWLY_MEANWHILE, values_of
from test_resume_together import flip
from test_workers import CONFIG, Workers, assert_same_weights, size, train, values

from easyrec_mm.runs.best_checkpoint import step_of
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_reader import bases_of
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.training.optimizers import OPTIMIZERS

pytestmark = pytest.mark.slow

# Each optimizer has a table of its own, of one of two widths, of users or of tags.
FEATURE = """  features {{
    feature_name: "{name}" input_names: "{field}" feature_type: {kind} hash_bucket_size: {rows} embedding_dim: {dim}
  }}
"""
OTHERS = """  features { input_names: "price" feature_type: RawFeature embedding_dim: 3 }
  features { feature_name: "few" input_names: "user" feature_type: IdFeature hash_bucket_size: 2 embedding_dim: 4 }
  features { feature_name: "added" input_names: "user" feature_type: IdFeature hash_bucket_size: 60 embedding_dim: 4 }
"""
OPTIMIZER = """  optimizer_config {{
    {kind} {{ learning_rate {{ constant_learning_rate {{ learning_rate: {rate} }} }} }} {variables}
    use_moving_average: true moving_average_decay: 0.9
  }}
"""
EMBEDDING_PARALLEL = ["--set", "train_config.train_distribute=EmbeddingParallelStrategy"]
STEPS = 21


def config():
    """The config of test_workers.py with these features and optimizers."""
    features, optimizers = OTHERS, ""
    for i, kind in enumerate(OPTIMIZERS):
        field, feature_type = (("user", "IdFeature"), ("tags", "TagFeature"))[i % 2]
        features += FEATURE.format(name=kind, field=field, kind=feature_type, rows=37 + 13 * i, dim=2 + 2 * (i % 3 > 0))
        optimizers += OPTIMIZER.format(kind=kind, rate=0.02, variables=f'variables: "embedding/{kind}$"')
    optimizers += OPTIMIZER.format(kind="momentum_optimizer", rate=0.05, variables="")
    names = ", ".join(f'"{name}"' for name in ("price", "few", *OPTIMIZERS))
    before, _, rest = CONFIG.partition("feature_config {")
    _, _, model = rest.partition("model_config {")
    groups = f"""feature_groups {{ group_name: "all" feature_names: [{names}] }}
  feature_groups {{ group_name: "wide" feature_names: "added" wide_deep: WIDE wide_regularization: 1e-3 }}"""
    model = model.replace('feature_groups { group_name: "all" feature_names: ["price", "user", "tags"] }', groups)
    start, end = model.index("  optimizer_config {"), model.index("  num_epochs")
    model = model[:start] + optimizers + model[end:]
    return f"{before}feature_config {{\n{features}}}\nmodel_config {{{model}"


def write_log(folder):
    """Groups whose number is not a multiple of any batch; each user and tag is in few of them."""
    draw = random.Random(1)
    rows = [
        f"{draw.random() < 0.4:d},{draw.random():.3f},u{draw.randrange(90)},"
        + "|".join(f"t{draw.randrange(60)}" for _ in range(draw.randrange(4)))
        for _ in range(1003)
    ]
    for name in ("train.csv", "eval.csv"):
        (folder / name).write_text("\n".join(["click,price,user,tags", *rows]) + "\n", encoding="utf-8")
    (folder / "x.config").write_text(config(), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The log, and the training of one process in `one`."""
    folder = tmp_path_factory.mktemp("divided")
    write_log(folder)
    train(folder, "--model_dir", "one", *size(96))
    return folder


def together(folder, num, model_dir, *arguments, environment=(), constants=()):
    """Train with several workers to the end; return what they print."""
    flags = ["--model_dir", model_dir, *size(96 // num), *arguments]
    statuses, outputs = Workers(folder, num, *flags, environment=environment, constants=constants).end()
    assert set(statuses) == {0}, outputs
    return outputs


def evaluations(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return {
        line["step"]: {name: line[name] for name in ("gauc_click", "log_loss_click")}
        for line in lines
        if line["kind"] == "eval"
    }


def test_every_optimizer_trains_the_weights_of_one_process(folder):
    """Weights, slots and averages, with clipped gradients, all tables divided among 3 workers."""
    together(folder, 3, "of_3", *EMBEDDING_PARALLEL)
    one, other = values(folder / "one", STEPS), values(folder / "of_3", STEPS)
    assert {f"embedding/{kind}/average" for kind in OPTIMIZERS} < set(one)
    assert {key: np.shape(v) for key, v in one.items()} == {key: np.shape(v) for key, v in other.items()}
    assert len(list((folder / "of_3").glob(f"model.ckpt-{STEPS}.data-*"))) == 3  # each has written a part
    assert_same_weights(folder / "one", folder / "of_3", STEPS)
    alone, of_all = evaluations(folder / "one"), evaluations(folder / "of_3")
    assert alone.keys() == of_all.keys() == {7, 14, 21}
    for step, results in alone.items():
        assert results["log_loss_click"] == pytest.approx(of_all[step]["log_loss_click"], abs=1e-6)
        assert results["gauc_click"] == pytest.approx(of_all[step]["gauc_click"], abs=1e-3)
    assert not list((folder / "of_3").glob(".model*"))


FEW = ["--set", "train_config.num_epochs=1", "--set", "train_config.save_checkpoints_steps=2"]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A shorter log, and the training of one process in `one`."""
    folder = tmp_path_factory.mktemp("short")
    make_log(folder, CONFIG.replace("optimizer_config {", "optimizer_config { use_moving_average: true"), num_rows=300)
    train(folder, "--model_dir", "one", *size(96), *FEW)
    return folder


@pytest.mark.parametrize("meanwhile", [False, True])
def test_model_dir_in_a_bucket(short, s3, meanwhile):
    """Workers upload what they hold, and read it back after each evaluation of the average; also of increments."""
    model_dir = f"{s3.new_bucket()}/m"
    of_s3 = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    more, constants = [], {}
    if meanwhile:
        more = [
            "--set",
            "train_config.increments_per_full_checkpoint=3",
            "--set",
            "eval_config.eval_interval_secs=9999",
        ]
        constants = SLOWLY_MEANWHILE
    together(short, 2, model_dir, *FEW, *more, *EMBEDDING_PARALLEL, environment=of_s3, constants=constants)
    shared = ModelDir(model_dir).open()
    newest = shared.checkpoint("")
    assert [step_of(path) for path in bases_of(newest)] == ([2] if meanwhile else [])
    read, expected = values_of(newest), values(short / "one", 4)
    for name in (name for name in expected if not name.startswith("progress/")):
        np.testing.assert_allclose(read[name], expected[name], rtol=0, atol=1e-5, err_msg=name)
    assert len(list(shared.local.glob("model.ckpt-4.data-*"))) >= 2


def test_other_numbers_of_workers_go_on(folder):
    """1 worker, 2 of which one is killed, 3 and 1 train each group as often as one process, with the same weights.

    The 2 divide all tables, the 3 divide large ones. The newest checkpoint of the 2 is damaged in a part that the first
    of the 3 does not read: all take the one before.
    """

    def until(step):
        return ["--set", f"train_config.num_steps={step}"]

    train(folder, "--model_dir", "m", *size(96), *until(5))
    workers = Workers(folder, 2, "--model_dir", "m", *size(48), *EMBEDDING_PARALLEL)
    workers.processes[0].wait_for(folder / "m/model.ckpt-7.index")
    workers.processes[1].kill()
    statuses, outputs = workers.end()
    assert statuses[0] == 75
    assert "error: worker 1" in outputs[0]
    # As a worker leaves behind that is killed while it writes.
    left = folder / "m/.model.ckpt-16.worker-1"
    left.mkdir(exist_ok=True)
    (left / "part-0.index").write_bytes(b"half")
    before, newest = Checkpoints(str(folder / "m")).all()[-2:]
    flip(Path(f"{newest}.data-00001-of-00002"))
    outputs = together(folder, 3, "m", *until(16), "--set", "train_config.shard_tables_from_rows=60")
    for output in outputs:
        assert re.search(rf"warning: worker [12]: m/{Path(newest).name}: \S+ cannot be read: ", output)
        assert f"continuing from m/{Path(before).name} (step " in output
    assert not left.exists()
    train(folder, "--model_dir", "m", *size(96))
    assert_same_weights(folder / "one", folder / "m", STEPS)


def test_what_is_sent_for_divided_tables_follows_the_batch(tmp_path):
    """Not the size of the tables: a table with a hundred times as many rows, of which a step reads as many."""
    make_log(tmp_path, CONFIG, num_rows=300)
    sent = {}
    for rows in (5_000, 500_000):
        few = ["--set", "train_config.num_steps=5", "--set", f"feature_config.features[1].hash_bucket_size={rows}"]
        together(tmp_path, 2, f"of_{rows}", *few, *EMBEDDING_PARALLEL)
        lines = (json.loads(line) for line in (tmp_path / f"of_{rows}/metrics.jsonl").open())
        (sent[rows],) = [line for line in lines if line["kind"] == "train"]
    one, other = sent.values()
    for name in ("sent_bytes_swap", "sent_bytes_sparse"):
        assert one[name] > 0
        # Rows are divided by their numbers, and what is sent to each worker is rounded up.
        assert other[name] == pytest.approx(one[name], rel=0.25)
    assert other["sent_bytes_dense"] == one["sent_bytes_dense"]
