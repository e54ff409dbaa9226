"""The network in bfloat16, and where its training chooses that."""

import numpy as np
import pytest
import tensorflow as tf
from model_helpers import make_model, make_pipeline, random_batch
from network_reference import FULL, MIXED, numpy, randomise

from easyrec_mm.network import precision
from easyrec_mm.network.precision import FLOAT32, MIXED_BFLOAT16
from easyrec_mm.protos.train_pb2 import Precision

pytestmark = pytest.mark.usefixtures("tiny_backbone")


def test_bfloat16_keeps_float32_where_it_counts(tmp_path):
    pipeline = make_pipeline(tmp_path, FULL, model="embedding_regularization: 0.01")
    wide, narrow = make_model(pipeline, FLOAT32), make_model(pipeline, MIXED_BFLOAT16)
    assert {v.dtype for v in narrow.named_variables().values()} == {"float32"}
    randomise(wide)
    randomise(narrow)
    batch = random_batch(pipeline.schema, MIXED)
    outputs = narrow.predict(batch)
    assert {name: value.dtype for name, value in outputs.items()} == {
        name: value.dtype for name, value in wide.predict(batch).items()
    }
    assert {value.dtype for name, value in outputs.items() if name != "y_star"} == {tf.float32}
    expected = numpy(wide.predict(batch))
    for name, value in numpy(outputs).items():
        if name != "y_star":
            np.testing.assert_allclose(value, expected[name], rtol=0.05, atol=0.05, err_msg=name)
    # The layers do compute in bfloat16.
    assert np.abs(outputs["logits_click"] - expected["logits_click"]).max() > 1e-5
    losses, wide_losses = narrow.losses(batch), wide.losses(batch)
    assert {value.dtype for value in losses.values()} == {tf.float32}
    for name in ("embedding_regularization", "l2_regularization"):
        assert float(losses[name]) == pytest.approx(float(wide_losses[name]), rel=1e-6)


def test_bfloat16_does_not_round_numbers_before_they_are_normalised(tmp_path):
    """bfloat16 has steps of 8 at 1500: prices that differ by 1 would all be one."""
    pipeline = make_pipeline(tmp_path, 'task_towers { tower_name: "click" label_name: "click" }')
    batch = random_batch(pipeline.schema, (0,) * 20)
    prices = np.linspace(1490, 1510, 20, dtype=np.float32)[:, None]
    features = {name: tf.gather(value, [0] * 20) for name, value in batch.features.items()}
    batch = batch._replace(features=features | {"price": tf.constant(prices)})
    logits = []
    for dtype in (FLOAT32, MIXED_BFLOAT16):
        model = randomise(make_model(pipeline, dtype))
        for name, value in (("moving_mean", 1500.0), ("moving_variance", 36.0)):
            v = model.named_variables()[f"rec/features_bn/{name}"]
            v.assign(tf.fill(v.shape, value))
        logits.append(model.predict(batch)["logits_click"].numpy())
    assert len(np.unique(np.round(logits[0], 4))) > 10
    np.testing.assert_allclose(logits[1], logits[0], rtol=0.03, atol=0.03 * np.ptp(logits[0]))


@pytest.mark.parametrize(("cpuinfo", "expected"), [
    ("processor : 0\nflags\t\t: fpu sse2 avx512_bf16 avx2\n", MIXED_BFLOAT16),
    ("processor : 0\nflags\t\t: fpu amx_bf16 amx_tile\n", MIXED_BFLOAT16),
    ("processor : 0\nFeatures\t: fp asimd bf16\n", MIXED_BFLOAT16),
    ("processor : 0\nflags\t\t: fpu sse2 avx2 avx512f\n", FLOAT32),
    ("", FLOAT32),
])  # fmt: skip
def test_precision_auto_is_bfloat16_where_the_processor_has_it(monkeypatch, cpuinfo, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(precision.Path, "read_text", lambda path, encoding: cpuinfo)
    assert precision.dtype_policy(Precision.AUTO) == expected
    assert precision.dtype_policy(Precision.FLOAT32) == FLOAT32
    assert precision.dtype_policy(Precision.BFLOAT16) == MIXED_BFLOAT16


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), FLOAT32), ((8, 0), MIXED_BFLOAT16), ((9, 0), MIXED_BFLOAT16)]
)
def test_precision_auto_on_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"])
    details = {"compute_capability": capability}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert precision.dtype_policy(Precision.AUTO) == expected


@pytest.mark.parametrize(
    ("gpus", "details", "name"),
    [([], {}, "the CPU"), (["gpu"], {"device_name": "NVIDIA H200"}, "NVIDIA H200"), (["gpu"], {}, "a GPU")],
)
def test_what_computes_is_named(monkeypatch, gpus, details, name):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert precision.device_name() == name
