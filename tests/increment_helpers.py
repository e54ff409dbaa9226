"""Tables that change, and checkpoints of them that contain only what has changed."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from easyrec_mm.runs.checkpoint_index import read_index
from easyrec_mm.runs.checkpoint_parts import Increment, Table, pieces_of
from easyrec_mm.runs.checkpoint_reader import CheckpointReader, chain_of, restore


class Tables:
    """Two tables with slots and last_used, and variables that are not tables."""

    def __init__(self, num_rows=60, dim=4, seed=0):
        self.rng = np.random.default_rng(seed)
        self.tables = [self._table(name, num_rows, dim) for name in ("user", "item")]
        self.variables = {name: v for table in self.tables for name, v in table.variables.items()}
        self.variables |= {"rec/kernel": tf.Variable(self.rng.normal(size=(5, 3)).astype("f4"))}
        self.variables |= {"progress/step": tf.Variable(0, dtype=tf.int64)}

    def _table(self, name, num_rows, dim):
        def values():
            return tf.Variable(self.rng.normal(size=(num_rows, dim)).astype("f4"))

        slots = {f"optimizer_0/embedding/{name}/{slot}": values() for slot in "mv"}
        last_used = tf.Variable(self.rng.integers(99, size=num_rows), dtype=tf.int32)
        return Table(
            f"embedding/{name}",
            {f"embedding/{name}": values(), **slots, f"embedding/{name}/average": values(),
             f"embedding/{name}/last_used": last_used},
        )  # fmt: skip

    def change(self, num):
        """Change some rows, as a step does; return them with what they were before, by table."""
        changed = {}
        for table in self.tables:
            rows = self.rng.choice(table.num_rows, num, replace=False)
            changed[table.name] = tf.constant(rows), {n: tf.gather(v, rows) for n, v in table.variables.items()}
            for variable in table.variables.values():
                new = self.rng.integers(-999, 999, [num, *variable.shape[1:]])
                variable.scatter_update(tf.IndexedSlices(tf.cast(new, variable.dtype), rows))
        self.variables["rec/kernel"].assign_add(tf.ones([5, 3]))
        self.variables["progress/step"].assign_add(1)
        return changed

    def values(self):
        return {name: np.array(variable) for name, variable in self.variables.items()}

    def restored(self, path):
        """Return the values of a checkpoint."""
        variables = {name: tf.Variable(tf.zeros_like(variable)) for name, variable in self.variables.items()}
        restore(path, variables)
        return {name: np.array(variable) for name, variable in variables.items()}

    def save(self, checkpoints, step, changed=None, kept_step=None):
        """Write a checkpoint; with what has changed since the newest one, if that is given."""
        increment = None
        if changed is not None:
            base = checkpoints.latest()
            rows = {name: np.sort(rows.numpy()) for name, (rows, _) in changed.items()}
            increment = Increment(Path(base).name, read_index(base).digest, rows)
        return checkpoints.snapshot(step, pieces_of(self.variables, self.tables, increment), kept_step).write()


def assert_equal(values, expected):
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(values[name], value, err_msg=name)


def size_of(path):
    """Return the size of a checkpoint's files in bytes."""
    return sum(file.stat().st_size for file in Path(path).parent.glob(f"{Path(path).name}.*"))


def values_of(path):
    """Return all values of a checkpoint but texts, of an increment with what it rests on."""
    reader, variables = CheckpointReader(str(path)), {}
    dtypes = {name: entry.dtype for part in chain_of(str(path)) for name, entry in read_index(part).entries.items()}
    for name, shape in reader.shapes.items():
        if dtypes[name] != tf.string:
            variables[name] = tf.Variable(tf.zeros(shape, dtypes[name]))
            reader.read_into(name, variables[name])
    return {name: variable.numpy() for name, variable in variables.items()}


# For commands (forked.py): all tables are large, and written in many slices: so slowly that one is being written most
# of the time.
SLOWLY_MEANWHILE = {
    "easyrec_mm.training.changed_rows.LARGE_TABLE_BYTES": 0,
    "easyrec_mm.training.changed_rows.LARGE_TABLES_BYTES": 0,
    "easyrec_mm.runs.checkpoint_parts.SLICE_BYTES": 100,
    "easyrec_mm.runs.snapshot.WAITING_BYTES": 400,
    "easyrec_mm.runs.snapshot.KEPT_SHARE": 1e6,
    "easyrec_mm.runs.snapshot.SHARE": 0.1,
}
