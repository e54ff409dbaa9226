"""Checkpoints of changed rows: together the same as full ones, for every reader, and never without what they need."""

import re
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from forked import Process
from increment_helpers import Tables, assert_equal, size_of
from training_helpers import EACH_STEP, Training, evaluated_training, optimizer, use_backbone_of_three_stages

from easyrec_mm.errors import CheckpointError, DamagedCheckpointError
from easyrec_mm.evaluation.evaluator import load_model
from easyrec_mm.runs import checkpoint as checkpoint_module
from easyrec_mm.runs import checkpoint_parts
from easyrec_mm.runs.best_checkpoint import choose_checkpoint
from easyrec_mm.runs.checkpoint import Checkpoints, newest_whole
from easyrec_mm.runs.checkpoint_reader import CheckpointReader, bases_of, chain_of, checkpoint_shapes, restore
from easyrec_mm.runs.warm_start import warm_start
from easyrec_mm.training.signals import Caught
from easyrec_mm.training.watch import Watch


@pytest.mark.parametrize(
    ("slice_bytes", "num_changed"),
    [(16 << 20, [3, 5, 1]), (16 << 20, [60, 2, 60]), (200, [0, 40, 7]), (200, [60, 2, 1]), (40, [3])],
)
def test_increments_are_the_same_as_full_checkpoints(tmp_path, monkeypatch, slice_bytes, num_changed):
    """Whatever slices they are written in; a table most of whose rows have changed is written whole."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", slice_bytes)
    tables, checkpoints, full = Tables(), Checkpoints(str(tmp_path / "m")), Checkpoints(str(tmp_path / "full"))
    saved = {tables.save(checkpoints, 1): tables.values()}
    for step, num in enumerate(num_changed, 2):
        changed = tables.change(num)
        path = tables.save(checkpoints, step, changed)
        saved[path] = tables.values()
        assert bases_of(path) == [str(tmp_path / "m" / f"model.ckpt-{s}") for s in range(step - 1, 0, -1)]
        assert checkpoint_shapes(path) == checkpoint_shapes(full.save(step, tables.variables))
        assert (f"increment/values/0/{tables.tables[0].name}" in dict(tf.train.list_variables(path))) == (num < 50)
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 100)
    for path, values in saved.items():
        assert_equal(tables.restored(path), values)


@pytest.mark.parametrize("slice_bytes", [16 << 20, 100])
def test_rows_of_an_increment(tmp_path, monkeypatch, slice_bytes):
    """As a training that starts from it takes them: some, in any order, also twice."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", slice_bytes)
    tables, checkpoints = Tables(), Checkpoints(str(tmp_path))
    tables.save(checkpoints, 1)
    tables.save(checkpoints, 2, tables.change(9))
    reader = CheckpointReader(tables.save(checkpoints, 3, tables.change(9)))
    rows = np.concatenate([tables.rng.permutation(60)[:45], [-1, 7, 7, -1, 59]])
    for name in tables.tables[0].variables:
        expected = tables.values()[name][rows]
        expected[rows < 0] = 5
        variable = tf.Variable(tf.fill(expected.shape, tf.cast(5, tables.variables[name].dtype)))
        reader.read_into(name, variable, rows)
        np.testing.assert_array_equal(variable, expected, err_msg=name)


def test_an_increment_is_small(tmp_path):
    """Less than a sixth of a full checkpoint, with one row in a hundred changed."""
    tables, checkpoints = Tables(num_rows=5000, dim=16), Checkpoints(str(tmp_path))
    full = tables.save(checkpoints, 1)
    increment = tables.save(checkpoints, 2, tables.change(50))
    assert 6 * size_of(increment) < size_of(full)


def test_a_full_checkpoint_is_read_by_tensorflow(tmp_path):
    tables, checkpoints = Tables(), Checkpoints(str(tmp_path))
    reader = tf.train.load_checkpoint(tables.save(checkpoints, 1))
    assert_equal({name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}, tables.values())


@pytest.mark.parametrize("keep", [1, 2])
def test_what_an_increment_needs_is_kept(tmp_path, keep):
    tables, checkpoints = Tables(), Checkpoints(str(tmp_path), keep)
    saved = {}
    for step in range(1, 8):
        changed = tables.change(2)
        path = tables.save(checkpoints, step, None if step in (1, 4, 7) else changed, kept_step=2)
        saved[step] = tables.values()
        for kept in checkpoints.all():
            assert_equal(tables.restored(kept), saved[int(kept.rpartition("-")[2])])
    # The newest, the best, and what they rest on.
    kept = [1, 2, 7] if keep == 1 else [1, 2, 4, 5, 6, 7]
    assert [int(path.rpartition("-")[2]) for path in checkpoints.all()] == kept
    assert len(list(tmp_path.glob("*.index"))) == len(kept)
    assert checkpoints.latest() == path


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "index", "another"])
@pytest.mark.parametrize("link", [1, 2, 3])
def test_a_damaged_link(tmp_path, damage, link):
    """The newest step that is whole is read, and the message names the checkpoint and what it rests on."""
    tables, checkpoints = Tables(), Checkpoints(str(tmp_path))
    saved = [tables.values()]
    tables.save(checkpoints, 0)
    for step in (1, 2, 3, 4):
        changed = tables.change(5)
        tables.save(checkpoints, step, None if step == 1 else changed)
        saved.append(tables.values())
    (data,) = tmp_path.glob(f"model.ckpt-{link}.data-*")
    if damage == "index":
        (tmp_path / f"model.ckpt-{link}.index").unlink()
    elif damage == "another":
        other = tables.save(Checkpoints(str(tmp_path / "other")), link)
        for file in Path(other).parent.glob("model.ckpt-*"):
            shutil.copy(file, tmp_path / file.name)
    elif damage == "remove":
        data.unlink()
    else:
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content[:-1] if damage == "cut" else content)
    values, path, problems = newest_whole(checkpoints.listed(), tables.restored)
    if damage == "another":
        assert path == str(tmp_path / f"model.ckpt-{link}")  # a whole one of its own
    else:
        assert path == str(tmp_path / f"model.ckpt-{link - 1}")
        assert_equal(values, saved[link - 1])
    assert problems[0].startswith(f"{tmp_path}/model.ckpt-4: rests on {tmp_path}/model.ckpt-{link}")


class KilledError(BaseException):
    """Ends a save where it stands, as a kill does."""


@pytest.mark.parametrize("function", ["SaveV2", "MergeV2Checkpoints", "write_list", "_remove"])
@pytest.mark.parametrize("is_after", [False, True])
def test_a_kill_while_an_increment_is_written(tmp_path, monkeypatch, function, is_after):
    """The checkpoints before stay whole, and the training can be done again from the newest."""
    tables, checkpoints = Tables(), Checkpoints(str(tmp_path), keep=1)
    tables.save(checkpoints, 1)
    first = tables.save(checkpoints, 2, tables.change(4), kept_step=1)
    values = tables.values()
    changed = tables.change(4)
    owner = checkpoint_module if hasattr(checkpoint_module, function) else tf.raw_ops
    original = getattr(owner, function)

    def kill(*args, **kwargs):
        if is_after:
            original(*args, **kwargs)
        raise KilledError

    if function == "_remove":
        tables.save(checkpoints, 3, changed)
        changed = None  # a full one, after which the increments are removed
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, kill)
        with pytest.raises(KilledError):
            tables.save(checkpoints, 4, changed)
    newest = checkpoints.latest()
    is_listed = function == "_remove" or (function == "write_list" and is_after)
    assert (newest == first) == (not is_listed)
    if newest == first:
        assert_equal(tables.restored(newest), values)
    for name, value in tables.restored(newest).items():  # as a training that goes on
        tables.variables[name].assign(value)
    again = tables.save(checkpoints, 5, tables.change(4))
    assert chain_of(again)[1:] == chain_of(newest)
    assert_equal(tables.restored(again), tables.values())


def save_without_end(folder, seed):
    tables, checkpoints = Tables(num_rows=20000, seed=seed), Checkpoints(folder, keep=2)
    for step in range(10**6):
        changed = tables.change(200)
        tables.save(checkpoints, step, changed if step % 3 else None)
        print(step, tables.values()["embedding/user"].sum(), flush=True)


@pytest.mark.slow
def test_kills_at_any_time(tmp_path):
    """What was saved last before SIGKILL can be restored; what was being written is not listed or whole."""
    rng, printed = np.random.default_rng(0), tmp_path / "printed.txt"
    for seed in range(3):
        process = Process(partial(save_without_end, str(tmp_path), seed), tmp_path, printed)
        process.wait_for(printed, f"\n{rng.integers(3, 11)} ")
        time.sleep(rng.uniform(0, 0.1))  # a save takes about as long
        process.kill()
        sums = dict(re.findall(r"^(\d+) (\S+)\n", process.end()[1], re.MULTILINE))
        checkpoints = Checkpoints(str(tmp_path))
        values, path, problems = newest_whole(checkpoints.listed(), Tables(num_rows=20000).restored)
        assert problems == []
        step = path.rpartition("-")[2]
        assert int(step) >= len(sums) - 1
        if step in sums:
            assert str(values["embedding/user"].sum()) == sums[step]
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


# Trainings

NUM_INCREMENTS = 2
SETTINGS = {
    "optimizers": optimizer(more="use_moving_average: true moving_average_decay: 0.9"),
    "changes": {
        'input_names: "user" feature_type: IdFeature hash_bucket_size: 12': (
            'input_names: "user" feature_type: IdFeature hash_bucket_size: 400'
        ),
        'input_names: "item" feature_type: IdFeature hash_bucket_size: 12': (
            'input_names: "item" feature_type: IdFeature hash_bucket_size: 300'
        ),
    },
}


def settings_of(increments, steps=6, keep=20):
    return f"num_steps: {steps} {EACH_STEP} keep_checkpoint_max: {keep} increments_per_full_checkpoint: {increments}"


def all_values(path):
    """Return all numbers of a checkpoint."""
    names = dict(tf.train.list_variables(chain_of(path)[-1]))
    dtypes = tf.train.load_checkpoint(chain_of(path)[-1]).get_variable_to_dtype_map()
    variables = {n: tf.Variable(tf.zeros(names[n], dtypes[n])) for n in names if dtypes[n] != tf.string}
    restore(path, variables)
    return {name: np.array(variable) for name, variable in variables.items()}


@pytest.fixture(scope="module")
def full(data, tmp_path_factory, backbone_of_three_stages):
    return Training(data, tmp_path_factory.mktemp("full"), train=settings_of(0), **SETTINGS).run()


@pytest.fixture(scope="module")
def incremental(data, tmp_path_factory, backbone_of_three_stages):
    folder = tmp_path_factory.mktemp("incremental")
    return Training(data, folder, train=settings_of(NUM_INCREMENTS), **SETTINGS).run()


@pytest.mark.slow
def test_a_training_with_increments(full, incremental):
    """Every checkpoint holds the same as that of a training without; every third is full."""
    for step in range(1, 7):
        path = f"{incremental.model_dir}/model.ckpt-{step}"
        assert len(bases_of(path)) == (step - 1) % (NUM_INCREMENTS + 1)
        assert_equal(all_values(path), all_values(f"{full.model_dir}/model.ckpt-{step}"))


@pytest.mark.slow
@pytest.mark.parametrize("first", [2, 3, 4])
def test_a_training_that_goes_on_from_an_increment(full, incremental, data, tmp_path, capsys, first):
    """Its later checkpoints are those of a training that never stopped; a damaged newer one is passed over."""
    shutil.copytree(incremental.model_dir, tmp_path / "m")
    checkpoints = Checkpoints(str(tmp_path / "m"))
    checkpoints.leave_out([f"{tmp_path}/m/model.ckpt-{step}" for step in range(first + 2, 7)])
    (newest,) = (tmp_path / "m").glob(f"model.ckpt-{first + 1}.data-*")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    Training(data, tmp_path, train=settings_of(NUM_INCREMENTS), **SETTINGS).run()
    said = capsys.readouterr().out
    assert f"warning: {tmp_path}/m/model.ckpt-{first + 1}: " in said
    assert f"continuing from {tmp_path}/m/model.ckpt-{first} (step {first})" in said
    for path in checkpoints.all():
        assert_equal(all_values(path), all_values(f"{full.model_dir}/{Path(path).name}"))
    assert len(bases_of(f"{tmp_path}/m/model.ckpt-{first + 1}")) == first % (NUM_INCREMENTS + 1)


@pytest.mark.slow
def test_readers_of_an_increment(full, incremental):
    """Loading for eval, predict and export, with the moving average; and warm starts from the folder."""
    paths = [f"{training.model_dir}/model.ckpt-6" for training in (full, incremental)]
    assert bases_of(paths[1])
    config, schema = incremental.pipeline.config, incremental.pipeline.schema
    models = [load_model(config, schema, path)[0] for path in paths]
    expected, values = ({n: v.numpy() for n, v in model.named_variables().items()} for model in models)
    assert_equal(values, expected)
    variables = {name: tf.Variable(tf.zeros_like(v)) for name, v in models[0].weights().items()}
    report = warm_start(paths[1], variables, {}).report
    assert report == warm_start(paths[0], variables, {}).report.replace(paths[0], paths[1])
    warm_start(paths[1], variables, {})
    assert_equal({n: v.numpy() for n, v in variables.items()}, {n: full.values()[n] for n in variables})


@pytest.mark.slow
def test_increments_in_a_bucket(s3, data, tmp_path, monkeypatch):
    """Whoever reads one downloads what it rests on; a base is not removed while it is needed."""
    use_backbone_of_three_stages(monkeypatch)
    bucket = s3.new_bucket()

    def train(steps):
        train = settings_of(3, steps, keep=1)
        return evaluated_training(data, tmp_path, 'exporter_type: "best"', train, model_dir=f"{bucket}/m").run()

    def steps():
        return sorted(int(re.sub(r"\D", "", key)) for key in s3.keys(f"{bucket}/m") if key.endswith(".index"))

    train(2)
    assert steps() == [1, 2]
    training = train(3)
    assert steps() == [1, 2, 3]
    chosen = choose_checkpoint(training.pipeline, f"{bucket}/m").path
    model, step = load_model(training.pipeline.config, training.pipeline.schema, chosen)
    assert step == 3
    assert_equal({n: v.numpy() for n, v in model.weights().items()}, {n: training.values()[n] for n in model.weights()})
    said = []
    watch = Watch(
        training.pipeline, training.pipeline.config.eval_input_path, lambda message, **figures: said.append(message)
    )
    assert watch.run(0.0, Caught()) == "the training is over"
    assert [re.search(r"step (\d)", text)[1] for text in said] == ["1", "2", "3"]
    assert not list(watch.local.glob("*.data-*"))


def test_an_increment_whose_base_lacks_a_value(tmp_path):
    tables, checkpoints = Tables(), Checkpoints(str(tmp_path))
    name = tables.tables[0].name
    slot = tables.variables.pop(f"{name}/average")
    average = tables.tables[0].variables.pop(f"{name}/average")
    tables.save(checkpoints, 1)
    tables.tables[0].variables[f"{name}/average"] = average
    tables.variables[f"{name}/average"] = slot
    path = tables.save(checkpoints, 2, tables.change(3))
    with pytest.raises(DamagedCheckpointError, match=f"model.ckpt-2: {name}/average is not in the checkpoints that it"):
        tables.restored(path)
    with pytest.raises(CheckpointError):
        checkpoint_shapes(path)
