"""Many tables and towers: what is computed together equals what is computed one by one, in few operations."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from test_optimizers import make, slot_values, variable_of

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.formats.rtp_graph import GroupRtpParser
from easyrec_mm.network.layers.row_lookup import look_up_rows
from easyrec_mm.network.losses import tower_losses
from easyrec_mm.protos.loss_pb2 import LossType
from easyrec_mm.protos.model_pb2 import BayesTaskTower
from easyrec_mm.schema import Task
from easyrec_mm.training.optimizers import OPTIMIZERS
from easyrec_mm.training.row_gradients import sum_duplicate_rows
from easyrec_mm.training.trainer import Trainer

# Rows and width of each table, and the table of each look-up, in their order.
TABLES = [(9, 3), (5, 3), (7, 2), (6, 3), (4, 2)]
OF_LOOKUPS = [0, 2, 1, 0, 3, 4, 0]


def lookups(seed):
    """Ids of each look-up, with duplicates, and the weights of its rows in a loss."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i, table in enumerate(OF_LOOKUPS):
        rows, dim = TABLES[table]
        pairs.append((rng.integers(rows, size=4 * i), rng.normal(size=(4 * i, dim)).astype(np.float32)))
    return pairs


def variables():
    return [variable_of(np.random.default_rng(8).normal(size=shape)) for shape in TABLES]


def gradients(tables, look_up, inputs):
    """Rows of each look-up, and the gradient of each table."""

    def step():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([table.value for table in tables])
            rows = look_up(
                [(tables[t].value, tf.constant(ids)) for t, (ids, _) in zip(OF_LOOKUPS, inputs, strict=True)]
            )
            loss = tf.add_n([tf.reduce_sum(tf.sin(r) * w) for r, (_, w) in zip(rows, inputs, strict=True)])
        return rows, sum_duplicate_rows(tape.gradient(loss, [table.value for table in tables]))

    return tf.function(step, autograph=False)


def one_by_one(pairs):
    return [tf.nn.embedding_lookup(table, ids) for table, ids in pairs]


def test_rows_and_gradients_are_those_of_single_look_ups():
    """To the last bit, though several look-ups share a table."""
    tables, inputs = variables(), lookups(1)
    rows, together = gradients(tables, look_up_rows, inputs)()
    expected_rows, alone = gradients(tables, one_by_one, inputs)()
    for actual, expected in zip(rows, expected_rows, strict=True):
        np.testing.assert_array_equal(actual, expected)
    for actual, expected in zip(together, alone, strict=True):
        assert len(set(actual.indices.numpy().tolist())) == len(actual.indices)
        np.testing.assert_array_equal(tf.convert_to_tensor(actual), tf.convert_to_tensor(expected))


def test_duplicate_rows_of_several_tables_are_summed():
    inputs = lookups(2)[1:]
    slices = [
        tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([9, values.shape[1]]))
        for ids, values in inputs
    ]
    for summed, (ids, values) in zip(sum_duplicate_rows([*slices, None])[:-1], inputs, strict=True):
        assert sorted(summed.indices.numpy()) == np.unique(ids).tolist()
        expected = np.zeros((9, values.shape[1]))
        np.add.at(expected, ids, values)
        np.testing.assert_allclose(tf.convert_to_tensor(summed), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_tables_learn_as_if_each_had_an_optimizer_of_its_own(kind):
    """Also with learning rates of their own."""
    together, alone = variables(), variables()
    factors = [1.0, 0.5, 1.0, 1.0, 2.0]
    optimizer = make(kind, factors={id(t.value): f for t, f in zip(together, factors, strict=True) if f != 1})
    optimizer.build(together)
    single = [make(kind, factors={id(t.value): f}) for t, f in zip(alone, factors, strict=True)]
    for one, table in zip(single, alone, strict=True):
        one.build([table])
    for step in range(3):
        _, of_tables = gradients(together, look_up_rows, lookups(step))()
        optimizer.apply(of_tables, together)
        for one, table, gradient in zip(single, alone, of_tables, strict=True):
            one.apply([gradient], [table])
    # FTRL's power is rounded otherwise at the end of a tensor.
    limit = 1e-5 if kind == "ftrl_optimizer" else 1e-7
    slots = optimizer.named_slots([str(i) for i in range(len(together))])
    for i, (table, expected) in enumerate(zip(together, alone, strict=True)):
        np.testing.assert_allclose(table.numpy(), expected.numpy(), rtol=limit, atol=limit)
        for slot, value in slot_values(single[i], "w").items():
            np.testing.assert_allclose(slots[f"{i}/{slot}"].numpy(), value, rtol=limit, atol=limit)


def test_losses_of_towers_of_a_kind_are_those_of_each_tower():
    texts = ["weight: 2", "", "loss_type: L2_LOSS", "use_sample_weight: false", "weight: 0.5"] * 16
    towers = [text_format.Parse(f'tower_name: "t{i}" {text}', BayesTaskTower()) for i, text in enumerate(texts)]
    tasks = [Task(tower.tower_name, f"y{i}", "binary", 1) for i, tower in enumerate(towers)]
    rng = np.random.default_rng(0)
    logits = {task.name: tf.constant(rng.normal(size=(6, 1)), tf.float32) for task in tasks}
    labels = {task.label: tf.constant(rng.integers(2, size=6), tf.float32) for task in tasks}
    weight = tf.constant([0.0, 1.0, 2.0, 0.5, 0.0, 3.0])
    losses = tower_losses(towers, tasks, logits, labels, weight, Replicas())
    assert list(losses) == [task.name for task in tasks]
    for tower, task in zip(towers, tasks, strict=True):
        (alone,) = tower_losses([tower], [task], logits, labels, weight, Replicas()).values()
        assert float(losses[task.name]) == pytest.approx(float(alone), rel=1e-6)
        x, y = logits[task.name].numpy()[:, 0], labels[task.label].numpy()
        of_samples = (x - y) ** 2 if tower.loss_type == LossType.Value("L2_LOSS") else np.log1p(np.exp(x)) - x * y
        w = tower.weight * (weight.numpy() if tower.use_sample_weight else np.ones(6))
        assert float(alone) == pytest.approx(np.sum(w * of_samples) / np.count_nonzero(w), rel=1e-5)


def write_config(folder, num_features, num_towers):
    """A config of text ids with tables of their own, and its data."""
    folder.mkdir()
    values = "\x02".join(str(i) for i in range(num_features))
    (folder / "data.txt").write_text(f"1\x010|{values}\x01{values}||2\n" * 4)
    names = [f"f{i}" for i in range(num_features)]
    fields = "".join(f'input_fields {{ input_name: "{name}" input_type: STRING }}' for name in names)
    features = "".join(
        f'features {{ input_names: "{name}" feature_type: IdFeature hash_bucket_size: 10 embedding_dim: 2 }}'
        for name in names
    )
    towers = "".join(
        f'task_towers {{ tower_name: "t{i}" label_name: "click" dnn {{ hidden_units: 2 use_bn: false }} }}'
        for i in range(num_towers)
    )
    (folder / "test.config").write_text(rf"""
      train_input_path: "{folder}/data.txt" model_dir: "{folder}/m"
      data_config {{
        input_type: GroupRTPInput batch_size: 2 rtp_separator: "|" separator: "\002" selected_cols: "0,1,2,3"
        label_fields: "click" input_fields {{ input_name: "click" input_type: INT32 }} {fields}
        input_fields {{ input_name: "path" input_type: STRING }} input_fields {{ input_name: "size" input_type: INT32 }}
      }}
      feature_config {{
        {features} features {{ input_names: "path" feature_type: ImgFeature img_shape {{ width: 1 height: 1 }} }}
        features {{ input_names: "size" feature_type: SampleNumFeature }}
      }}
      model_config {{
        model_class: "E2E_MM_DBMTL" feature_groups {{ group_name: "all" feature_names: {names} }}
        e2e_mm_dbmtl {{ {towers} }}
      }}
      train_config {{
        optimizer_config {{ adam_optimizer {{ learning_rate {{ constant_learning_rate {{ learning_rate: 0.1 }} }} }} }}
        precision: FLOAT32 num_steps: 1
      }}
    """)
    return load_pipeline(str(folder / "test.config"))


def num_operations(*graphs):
    """Those of graphs and of the functions that they call."""
    definitions = [graph.as_graph_def() for graph in graphs]
    functions = [function for definition in definitions for function in definition.library.function]
    return sum(len(d.node) for d in definitions) + sum(len(function.node_def) for function in functions)


def test_operations_per_feature_and_tower(tmp_path):
    """A feature costs its look-up, and the rows of its table and slots; a tower its four variables with slots."""
    sizes = {}
    for num_features, num_towers in ((8, 16), (16, 16), (8, 20)):
        pipeline = write_config(tmp_path / f"{num_features}_{num_towers}", num_features, num_towers)
        step = Trainer(pipeline).steps.graphs(0)
        fields = tuple(f"f{i}" for i in range(num_features))
        parser = GroupRtpParser(pipeline.schema, ("click",), fields, 4).compiled.get_concrete_function()
        sizes[num_features, num_towers] = num_operations(*step), num_operations(parser.graph)
    of_feature = (np.array(sizes[16, 16]) - sizes[8, 16]) / 8
    assert of_feature[0] <= 22
    assert of_feature[1] <= 1
    assert (sizes[8, 20][0] - sizes[8, 16][0]) / 4 <= 30
