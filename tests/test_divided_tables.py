"""Look-ups in divided tables, the initial values of their parts, and the checkpoints that several workers write."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checkpoint_helpers import assert_same, variables
from thread_replicas import results_of_replicas

from easyrec_mm.distribution.divided_tables import DividedTables
from easyrec_mm.distribution.shards import mark, mark_like, shard_of, shard_of_replica, whole_shape
from easyrec_mm.errors import CheckpointError
from easyrec_mm.features.feature import Table
from easyrec_mm.files.storage import Failure, StorageError
from easyrec_mm.network.layers import embedding
from easyrec_mm.network.layers.embedding import EmbeddingTable
from easyrec_mm.runs import checkpoint_parts
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.runs.checkpoint_parts import pieces_of, write_pieces
from easyrec_mm.runs.checkpoint_reader import restore
from easyrec_mm.runs.model_dir import ModelDir
from easyrec_mm.runs.parts_of_workers import PartsOfWorkers
from easyrec_mm.runs.warm_start import TableMatch, warm_start

# Rows and width of tables: two share an exchange, one has fewer rows than there are replicas.
SHAPES = {"a": (17, 3), "b": (1, 3), "c": (40, 2), "d": (10, 3)}


def whole(name):
    return np.random.default_rng(len(name) + ord(name[0])).normal(size=SHAPES[name]).astype(np.float32)


def part(values, replicas):
    """The part of a table that a replica holds."""
    shard = shard_of_replica(len(values), replicas.number, replicas.num)
    variable = tf.Variable(values[shard.first : shard.stop])
    mark(variable, shard)
    return variable


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 4, 5, 6, 7, 100])
@pytest.mark.parametrize("num", [1, 2, 3, 5])
def test_parts_cover_a_table_once(num_rows, num):
    shards = [shard_of_replica(num_rows, number, num) for number in range(num)]
    assert [row for shard in shards for row in range(shard.first, shard.stop)] == list(range(num_rows))
    assert max(shard.stop - shard.first for shard in shards) == int(np.ceil(num_rows / num))


def requests_of(number):
    """What a replica looks up: a shape of its own, duplicates, and nothing for the last."""
    rng = np.random.default_rng(number)
    size = 0 if number == 3 else 4 + 5 * number
    requests = {name: (name, rng.integers(0, rows, size)) for name, (rows, _) in SHAPES.items()}
    return requests | {"again": ("a", rng.integers(0, 17, (size, 2))), "last": ("d", np.full([size], 9))}


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_look_up_and_gradient(num):
    """Rows are those of the whole tables, and gradients the sums of those of all replicas."""
    weights = {
        key: np.random.default_rng(7).normal(size=[40, SHAPES[name][1]]) for key, (name, _) in requests_of(0).items()
    }

    def look_up(replicas):
        tables = {name: part(whole(name), replicas) for name in SHAPES}
        requests = {key: (name, tf.constant(ids)) for key, (name, ids) in requests_of(replicas.number).items()}
        with tf.GradientTape() as tape:
            rows = DividedTables(tables, replicas).look_up(requests)
            loss = tf.add_n(
                [tf.reduce_sum(r * tf.gather(weights[k].astype("f4"), requests[k][1])) for k, r in rows.items()]
            )
        gradients = tape.gradient(loss, list(tables.values()))
        return {k: r.numpy() for k, r in rows.items()}, {
            name: tf.convert_to_tensor(gradient).numpy() for name, gradient in zip(tables, gradients, strict=True)
        }

    results = results_of_replicas(num, look_up)
    expected = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number, (rows, _) in enumerate(results):
        requests = requests_of(number)
        assert rows.keys() == requests.keys()
        for key, (name, ids) in requests.items():
            np.testing.assert_array_equal(rows[key], whole(name)[ids])
            np.add.at(expected[name], ids, weights[key][ids])
    for name in SHAPES:
        gradient = np.concatenate([gradients[name] for _, gradients in results])
        np.testing.assert_allclose(gradient, expected[name], atol=1e-5)


@pytest.mark.parametrize("kind", [("random_normal", (0.0, 0.1)), ("glorot_normal", ()), ("constant", (0.5, 1.5))])
def test_parts_begin_with_the_values_of_the_whole_table(monkeypatch, kind):
    monkeypatch.setattr(embedding, "ROWS_AT_A_TIME", 8)
    tables = [Table("t", 29, 2, kind), Table("u", 5, 2, ("random_normal", (0.0, 1.0)))]

    def values(number, num):
        keras.utils.set_random_seed(3)
        shards = [shard_of_replica(table.rows, number, num) for table in tables]
        layers = [EmbeddingTable(t, s if num > 1 else None) for t, s in zip(tables, shards, strict=True)]
        return [layer.embeddings.numpy() for layer in layers]

    for num in (2, 3, 7):
        parts = [values(number, num) for number in range(num)]
        for i, expected in enumerate(values(0, 1)):
            np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), expected)


# --- Checkpoints


def parts_of_all(replicas, seed=0):
    """The variables that a replica has: a part of a table and of a vector, and what all have."""
    table = variables(seed)["embedding/user"].numpy()
    own = {"embedding/user": part(table, replicas), "dense": tf.Variable(float(seed))}
    own["embedding/user/last_used"] = tf.Variable(own["embedding/user"][:, 0])
    mark_like(own["embedding/user/last_used"], own["embedding/user"])
    return own


def save(folder, replicas, step, values):
    """As training/saving.py: the error that a worker ends with, or None."""
    shared = ModelDir(str(folder)).open()
    parts = PartsOfWorkers(shared, replicas)
    parts.agree(None, {})
    pieces = pieces_of(values, is_first=replicas.number == 0)
    try:
        parts.snapshot(Checkpoints(str(shared.local), keep=2), step, pieces).write()
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize("slice_bytes", [16 << 20, 40])
@pytest.mark.parametrize("num", [2, 3, 4])
def test_a_checkpoint_of_several_workers_is_that_of_one(tmp_path, monkeypatch, num, slice_bytes):
    """Names, shapes and values; any other number of workers reads it, and TensorFlow itself."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", slice_bytes)
    assert (
        results_of_replicas(num, lambda replicas: save(tmp_path, replicas, 5, parts_of_all(replicas))) == [None] * num
    )
    path = Checkpoints(str(tmp_path)).latest()
    alone = results_of_replicas(1, parts_of_all)[0]
    Checkpoints(str(tmp_path / "alone")).save(5, alone)
    reader, other = (tf.train.load_checkpoint(p) for p in (path, str(tmp_path / "alone/model.ckpt-5")))
    assert reader.get_variable_to_shape_map() == other.get_variable_to_shape_map()
    assert_same({name: reader.get_tensor(name) for name in alone}, alone)

    def restored(replicas):
        own = parts_of_all(replicas, seed=1)
        restore(path, own)
        assert_same(own, parts_of_all(replicas))

    for readers in (1, 2, 5):
        results_of_replicas(readers, restored)
    assert {file.name.split("-")[0] for file in tmp_path.iterdir()} == {"checkpoint", "model.ckpt", "alone"}


def test_workers_start_from_another_models_checkpoint(tmp_path, monkeypatch):
    """Also with other rows for the same values; each takes those of its part."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 100)
    table = variables()["embedding/user"].numpy()
    path = Checkpoints(str(tmp_path)).save(
        1, {"embedding/buyer": tf.Variable(table), "embedding/item": tf.Variable(table)}
    )
    moved = np.random.default_rng(0).permutation(50)[:40]
    moved[::7] = -1

    def started(replicas):
        own = {name: part(np.zeros([50, 4], np.float32), replicas) for name in ("embedding/user", "embedding/shop")}
        own["embedding/item"] = part(np.full([40, 4], 9, np.float32), replicas)
        names, matches = {"embedding/user": "embedding/buyer"}, {"embedding/item": TableMatch(moved)}
        report = warm_start(path, own, names, matches=matches).report
        return report, own["embedding/user"].numpy(), own["embedding/item"].numpy()

    reports, users, items = zip(*results_of_replicas(3, started), strict=True)
    np.testing.assert_array_equal(np.concatenate(users), table)
    np.testing.assert_array_equal(np.concatenate(items), np.where(moved[:, None] < 0, 9, table[moved]))
    for report in reports:
        assert "  restored: embedding/user [50, 4] from embedding/buyer" in report
        assert "  restored: embedding/item [40, 4]: 34 of 40 rows restored, 6 new, 16 of the checkpoint's 50" in report
        assert "  not restored: embedding/shop [50, 4]: not in the checkpoint" in report


def test_what_one_worker_cannot_write_ends_all_and_the_last_good_checkpoint_stays(tmp_path):
    results_of_replicas(2, lambda replicas: save(tmp_path, replicas, 5, parts_of_all(replicas)))

    def broken(replicas):
        values = parts_of_all(replicas)
        if replicas.number == 1:
            values["embedding/user"].scatter_update(tf.IndexedSlices([[np.nan] * 4], [0]))
        return save(tmp_path, replicas, 6, values)

    errors = results_of_replicas(2, broken)
    assert all("worker 1: embedding/user holds nan, with which no model works" in error for error in errors)
    assert f"the last good one is {tmp_path}/model.ckpt-5" in errors[0]
    assert Checkpoints(str(tmp_path)).all() == [f"{tmp_path}/model.ckpt-5"]
    assert not list(tmp_path.glob("model.ckpt-6*"))


def test_workers_with_folders_of_their_own_are_told(tmp_path):
    errors = results_of_replicas(
        2, lambda replicas: save(tmp_path / f"{replicas.number}", replicas, 5, parts_of_all(replicas))
    )
    assert "worker 1 has written its part of the tables to a folder that worker 0 does not see; give all" in errors[0]


def test_a_save_that_ended_midway_leaves_the_last_good_checkpoint(tmp_path):
    """The first worker is killed when all parts are written; the next start removes them."""
    results_of_replicas(2, lambda replicas: save(tmp_path, replicas, 5, parts_of_all(replicas)))

    def killed(replicas):
        parts = PartsOfWorkers(ModelDir(str(tmp_path)), replicas)
        pieces = pieces_of(parts_of_all(replicas, 1), is_first=replicas.number == 0)
        if replicas.number:
            parts.snapshot(Checkpoints(str(tmp_path)), 6, pieces).write()
        else:
            (tmp_path / ".model.ckpt.tmp").mkdir()
            parts.collect(lambda: write_pieces(tmp_path / ".model.ckpt.tmp", pieces))

    results_of_replicas(2, killed)
    assert len(list(tmp_path.glob(".model*"))) == 2
    assert Checkpoints(str(tmp_path)).all() == [f"{tmp_path}/model.ckpt-5"]
    assert results_of_replicas(2, lambda r: save(tmp_path, r, 7, parts_of_all(r, 2))) == [None] * 2
    path = Checkpoints(str(tmp_path)).latest()
    own = results_of_replicas(1, lambda replicas: parts_of_all(replicas, 1))[0]
    restore(path, own)
    assert_same(own, results_of_replicas(1, lambda replicas: parts_of_all(replicas, 2))[0])
    assert not list(tmp_path.glob(".model.ckpt-6*"))


def test_checkpoints_in_a_bucket(s3, monkeypatch):
    """Every worker uploads its values; any number of workers reads them; what is not kept is removed."""
    monkeypatch.setattr(checkpoint_parts, "SLICE_BYTES", 100)
    folder = f"{s3.new_bucket()}/m"
    for step in (5, 6, 7):
        assert results_of_replicas(3, lambda r, step=step: save(folder, r, step, parts_of_all(r, step))) == [None] * 3
    files = {key.rpartition("/")[2] for key in s3.keys(folder)}
    assert {name.partition(".data")[0] for name in files} == {
        "checkpoint", *(f"model.ckpt-{step}{end}" for step in (6, 7) for end in ("", ".index"))
    }  # fmt: skip

    def restored(replicas):
        path = ModelDir(folder).open().checkpoint("")
        own = parts_of_all(replicas, seed=1)
        restore(path, own)
        assert_same(own, parts_of_all(replicas, 7))

    for readers in (1, 2):
        results_of_replicas(readers, restored)


def test_values_that_cannot_be_uploaded_leave_the_last_good_checkpoint(s3, monkeypatch):
    folder = f"{s3.new_bucket()}/m"
    results_of_replicas(2, lambda replicas: save(folder, replicas, 5, parts_of_all(replicas)))
    before = set(s3.keys(folder))

    def fail(shared, names):
        raise StorageError(folder, "access denied", Failure.REFUSED)

    monkeypatch.setattr(ModelDir, "put_values", fail)
    errors = results_of_replicas(2, lambda replicas: save(folder, replicas, 6, parts_of_all(replicas)))
    assert all("worker 1: " in error and "access denied" in error for error in errors)
    assert set(s3.keys(folder)) == before


def test_a_part_knows_its_whole():
    variable = results_of_replicas(3, lambda replicas: part(whole("a"), replicas))[1]
    assert shard_of(variable) == (17, 6, 12)
    assert whole_shape(variable) == [17, 3]
    assert whole_shape(tf.Variable(tf.zeros([2, 3]))) == [2, 3]
