"""Trainings of several workers, each a process: the same weights as of one, whatever happens to a worker."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from flat_helpers import make_log
from forked import Command
from servers import free_port

from easyrec_mm.exit_status import LOST_WORKER

pytestmark = pytest.mark.slow

CONFIG = """
train_input_path: "train.csv"
eval_input_path: "eval.csv"
model_dir: "m"
data_config {
  input_type: CSVInput with_header: true label_fields: "click" shuffle: true shuffle_buffer_size: 4000
  input_fields { input_name: "click" input_type: INT32 }
  input_fields { input_name: "price" input_type: FLOAT }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "tags" input_type: STRING }
}
feature_config {
  features { input_names: "price" feature_type: RawFeature }
  features { input_names: "user" feature_type: IdFeature hash_bucket_size: 50 embedding_dim: 4 }
  features { input_names: "tags" feature_type: TagFeature hash_bucket_size: 10 embedding_dim: 2 }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "all" feature_names: ["price", "user", "tags"] }
  embedding_regularization: 1e-3
  e2e_mm_dbmtl {
    bottom_dnn { hidden_units: [8, 4] }
    task_towers { tower_name: "click" label_name: "click" }
    l2_regularization: 1e-3
  }
}
eval_config { eval_interval_secs: 0 metrics_set { gauc { uid_field: "user" } } metrics_set { log_loss {} } }
train_config {
  # Not Adam: what batch normalization makes useless, such as a bias before it, has gradients of rounding errors alone,
  # which Adam turns into whole steps.
  optimizer_config { momentum_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.1 } } } }
  num_epochs: 2 log_step_count_steps: 5 gradient_clipping_by_norm: 0.05 precision: FLOAT32 sync_batch_norm: true
  save_checkpoints_steps: 7
}
"""
SENT_BYTES = ("sent_bytes_sum", "sent_bytes_gather", "sent_bytes_dense", "sent_bytes_sparse")
# Of metrics.jsonl: what depends on the time and on the number of workers.
SPEEDS = (
    "samples_per_second", "images_per_second", "encoded_per_second", "input_wait_share", "samples_per_image", "mfu",
    "flops_per_step", *SENT_BYTES,
)  # fmt: skip
TRAIN = ["train", "--pipeline_config", "x.config"]
TOGETHER = ["--set", "train_config.train_distribute=MultiWorkerMirroredStrategy", "--wait_for_workers_s", "60"]


class Workers:
    """Processes that train together in a folder."""

    def __init__(
        self, folder, num, *arguments, of_each=(), environment=(), command="train", constants=(), prepare=None
    ):
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(num)]
        self.processes = []
        for number in range(num):
            task = {"type": "worker", "index": number}
            own = {"TF_CONFIG": json.dumps({"cluster": {"worker": self.addresses}, "task": task}), **dict(environment)}
            flags = [*TRAIN[1:], *TOGETHER, *arguments, *(of_each[number] if of_each else [])]
            output = folder / f"output_{number}.txt"
            self.processes.append(Command(folder, [command, *flags], output, own, dict(constants), prepare))

    def end(self):
        """Exit status and output of each."""
        return tuple(zip(*(process.end() for process in self.processes), strict=True))


def values(folder, step):
    reader = tf.train.load_checkpoint(str(folder / f"model.ckpt-{step}"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "/" in name}


def assert_same_weights(one, other, step):
    one, other = values(one, step), values(other, step)
    weights = [name for name in one if not name.startswith(("progress/", "config/"))]
    assert len(weights) > 20
    for name in weights:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-5, err_msg=name)


def train(folder, *arguments, prepare=None):
    status, output = Command(folder, [*TRAIN, *arguments], folder / "output.txt", prepare=prepare).end()
    assert status == 0, output


@pytest.fixture
def folder(tmp_path):
    make_log(tmp_path, CONFIG, num_rows=1003)
    return tmp_path


def size(number):
    return ["--set", f"data_config.batch_size={number}"]


def test_several_workers_train_the_weights_of_one(folder):
    train(folder, "--model_dir", "one", *size(96))
    for num in (2, 3):
        statuses, outputs = Workers(folder, num, "--model_dir", f"of_{num}", *size(96 // num)).end()
        assert statuses == (0,) * num, outputs
        assert_same_weights(folder / "one", folder / f"of_{num}", 21)
    lines = [[json.loads(line) for line in (folder / name / "metrics.jsonl").open()] for name in ("one", "of_2")]
    assert [line["step"] for line in lines[0] if line["kind"] == "eval"] == [7, 14, 21]
    for alone, together in zip(*lines, strict=True):
        assert alone.keys() == together.keys()
        for key in alone.keys() - {"time", "kind", "reason", *SPEEDS}:
            # Two predictions that are nearly equal may change places.
            assert alone[key] == pytest.approx(together[key], abs=1e-3 if "gauc" in key else 1e-6), key
    for alone, together in zip(*([line for line in part if line["kind"] == "train"] for part in lines), strict=True):
        assert alone["flops_per_step"] == pytest.approx(together["flops_per_step"])
        assert [alone[key] for key in SENT_BYTES] == [0, 0, 0, 0]
        of_tables = together["sent_bytes_sparse"]
        by_operation = together["sent_bytes_sum"] + together["sent_bytes_gather"]
        assert by_operation == pytest.approx(together["sent_bytes_dense"] + of_tables)
        # Each worker has up to 50 + 10 + 1 + 1 rows, with their numbers, and rounds up the number that it sends.
        assert 8 * 10 * 4 < of_tables < 2 * 1.25 * (52 * (8 + 4 * 4) + 12 * (8 + 2 * 4)) + 100


def test_an_evaluation_of_several_workers_is_that_of_one(folder):
    """To the last digit: their batches are those of the one."""
    settings = ["--set", "data_config.eval_batch_size=7", "--set", "train_config.num_steps=3"]
    train(folder, "--model_dir", "one", *size(60), *settings)
    for num, batch_size in ((2, 30), (3, 20)):
        shutil.copytree(folder / "one", folder / f"again_{num}")
        (folder / f"again_{num}/metrics.jsonl").unlink()  # so that the evaluation is made up
        statuses, outputs = Workers(folder, num, "--model_dir", f"again_{num}", *size(batch_size), *settings).end()
        assert statuses == (0,) * num, outputs
        results = [json.loads((folder / name / "eval_result.json").read_text()) for name in ("one", f"again_{num}")]
        assert results[0] == results[1]
        assert results[0]["num_samples"] > 100
    evaluate = [*settings, "--set", "model_dir=one", "--set", "train_config.shard_tables_from_rows=20"]
    evaluate += ["--set", "eval_config.bootstrap.num_replicates=50"]
    status, output = Command(folder, ["eval", *TRAIN[1:], *evaluate], folder / "eval.txt").end()
    assert status == 0, output
    alone = (folder / "one/eval_result.json").read_text()
    statuses, outputs = Workers(folder, 2, *evaluate, command="eval").end()
    assert statuses == (0, 0), outputs
    assert (folder / "one/eval_result.json").read_text() == alone
    assert "gauc_click" in outputs[0]
    assert "gauc_click" not in outputs[1]


def test_a_first_worker_that_is_lost_after_the_last_step_is_missed_by_the_others(folder):
    """Kubernetes starts only those again that have failed, and they need all others."""
    header, *rows = (folder / "eval.csv").read_text().splitlines(keepends=True)
    (folder / "long.csv").write_text(header + "".join(rows) * 500)
    last_only = ["--set", "eval_config.eval_interval_secs=100000"]
    arguments = ["--model_dir", "m", *size(48), *last_only, "--eval_input_path"]
    workers = Workers(folder, 2, *arguments, "long.csv")
    workers.processes[0].wait_for(folder / "m/model.ckpt-21.index")
    time.sleep(1.5)  # the last evaluation has begun
    workers.processes[0].kill()
    statuses, outputs = workers.end()
    assert statuses == (-signal.SIGKILL, LOST_WORKER), outputs
    assert not (folder / "m/eval_result.json").exists()
    statuses, outputs = Workers(folder, 2, *arguments, "eval.csv").end()
    assert statuses == (0, 0), outputs


def test_a_signal_to_one_stops_all_with_a_checkpoint(folder):
    endless = ["--set", "train_config.num_epochs=500", "--set", "data_config.eval_batch_size=500"]
    workers = Workers(folder, 2, "--model_dir", "m", *size(5), *endless)
    workers.processes[0].wait_for(folder / "m/model.ckpt-7.index")
    workers.processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = workers.end()
    assert statuses == (143, 143), outputs
    assert all(
        "stopped; to continue, start all workers again as before, with: easyrec-mm train" in output
        for output in outputs
    )


def test_workers_that_differ_are_refused(folder):
    workers = Workers(folder, 2, *size(8), of_each=[[], ["--set", "data_config.seed=3"]])
    statuses, outputs = workers.end()
    assert statuses == (1, 1)
    for output in outputs:
        assert f"worker 1 ({workers.addresses[1]}) differs from worker 0 in the config" in output
        assert "seed: 3" in output


def test_workers_skip_the_same_steps_as_one_and_their_batches_can_be_run_again(folder):
    text = (folder / "train.csv").read_text().splitlines(keepends=True)
    header = text[0].strip().split(",")
    values_of_row = text[500].rstrip("\n").split(",")
    values_of_row[header.index("price")] = "9e18"
    text[500] = ",".join(values_of_row) + "\n"
    (folder / "train.csv").write_text("".join(text))
    square = 'feature_name: "square" input_names: "price" feature_type: ExprFeature expression: "price * price"'
    config = (folder / "x.config").read_text().replace('input_names: "price" feature_type: RawFeature', square)
    (folder / "x.config").write_text(config.replace('["price", "user"', '["square", "user"'))
    skip = ["--set", "train_config.nan_policy=SKIP"]
    train(folder, "--model_dir", "one", *size(96), *skip)
    divided = ["--set", "train_config.shard_tables_from_rows=20"]  # the users, not the tags
    statuses, outputs = Workers(folder, 2, "--model_dir", "of_2", *size(48), *skip, *divided).end()
    assert statuses == (0, 0), outputs
    assert_same_weights(folder / "one", folder / "of_2", 21)
    replays = [sorted(path.name for path in (folder / name / "replay").iterdir()) for name in ("one", "of_2")]
    assert replays[0] == replays[1]
    assert len(replays[0]) == 2  # of each epoch
    for name in replays[0]:
        one, of_2 = (np.load(folder / model_dir / "replay" / name / "weights.npz") for model_dir in ("one", "of_2"))
        assert set(of_2) == set(one)
        for array in one:
            np.testing.assert_allclose(of_2[array], one[array], rtol=0, atol=1e-5, err_msg=array)
    status, output = Command(folder, ["replay", "--model_dir", "of_2"], folder / "replay.txt").end()
    assert status == 0
    assert "feature 'square': 8.1e+37 in train.csv:501, sample 1 of 1" in output
    statuses, outputs = Workers(folder, 2, "--model_dir", "stopped", *size(48)).end()
    assert statuses == (1, 1), outputs
    assert all("easyrec-mm replay --model_dir stopped" in output for output in outputs)
