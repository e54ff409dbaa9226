"""Floating point operations of a step, against figures computed by hand, and the facts that are reported."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from model_helpers import CLICK, make_model, make_pipeline, random_batch, use_tiny_backbone

from easyrec_mm.data.vector_bank import NO_BANKS, VectorBank
from easyrec_mm.distribution.replicas import SENT_BYTES, Replicas
from easyrec_mm.runs.progress import Counts
from easyrec_mm.schema import IMAGE
from easyrec_mm.training.facts import RunFacts
from easyrec_mm.training.flops import StepFlops
from easyrec_mm.training.peak import peak_flops

FEATURES, VECTOR = 4 + 1 + 3 + 4 + 2, 16  # widths of the features and of the image vector
IMG_MODEL = "img_model { %s } "
# A convolution of 3 x 3 x 3 -> 5 with stride 2 on 32 x 32, and the projection of its 5 channels.
CONVOLUTION, PROJECTION = 15 * 15 * 5 * 27, 5 * VECTOR


def rec(num_samples, width=FEATURES, of_input=3):
    """Two operations for each multiplication of a layer of 6 units and of the output."""
    return 2 * num_samples * (of_input * width * 6 + 3 * 6 * 1)


def flops_of(model, batch, trained=None, banks=NO_BANKS):
    names = model.trained_variables() if trained is None else trained
    return StepFlops(model, [v.value for v in names.values()], banks, batch)


@pytest.fixture
def tower(tmp_path, monkeypatch):
    """Makes a model with a small tower."""
    use_tiny_backbone(monkeypatch)

    def make(img_model="", trainable="ALL"):
        pipeline = make_pipeline(tmp_path, CLICK + IMG_MODEL % img_model)
        model = make_model(pipeline)
        model.train_part(trainable)
        return model, pipeline.schema

    return make


def test_a_dnn_costs_three_times_its_forward_pass(tmp_path):
    pipeline = make_pipeline(tmp_path, image=False)
    model = make_model(pipeline)
    flops = flops_of(model, random_batch(pipeline.schema))
    for places in ((0, 0, 1), range(50)):
        batch = random_batch(pipeline.schema, tuple(places), seed=1)
        assert flops.of(batch) == rec(len(places))


def test_what_is_not_trained_has_no_gradient(tmp_path):
    pipeline = make_pipeline(tmp_path, image=False)
    model, batch = make_model(pipeline), random_batch(pipeline.schema)
    dense = {name: v for name, v in model.trained_variables().items() if "/tower_click/" in name}
    assert flops_of(model, batch, dense).of(batch) == rec(12, of_input=2)
    assert flops_of(model, batch, {}).of(batch) == rec(12) / 3


@pytest.mark.parametrize("setting", ["", "rematerialize: true", "image_micro_batch: 2"])
def test_a_tower_counts_once_for_each_picture(tower, setting):
    """Pixels need no gradient, and what is computed twice to save memory counts once."""
    model, schema = tower(setting)
    flops = flops_of(model, random_batch(schema))
    for places in ((0, 0, 0, 1), (0, 1, 2, 3, 3)):
        batch = random_batch(schema, places)
        expected = rec(len(places), FEATURES + VECTOR) + 2 * batch.num_images * (2 * CONVOLUTION + 3 * PROJECTION)
        assert flops.of(batch) == expected


def test_a_frozen_tower_counts_its_encoded_pictures_once(tower):
    model, schema = tower(trainable="NONE")
    bank = VectorBank(model.bank_width("NONE"))
    flops = flops_of(model, random_batch(schema), banks={IMAGE: bank})
    batch = random_batch(schema)
    encoded = tf.constant([1, 3])
    fewer = batch._replace(pixels=tf.gather(batch.pixels, encoded), images=batch.images._replace(encoded=encoded))
    for one, num_encoded in ((batch, 4), (fewer, 2)):
        assert flops.of(one) == rec(12, FEATURES + VECTOR) + 2 * num_encoded * (CONVOLUTION + PROJECTION)


def test_the_peak_is_that_of_a_product():
    matrix = tf.ones([512, 512])
    assert peak_flops("float32") > 1e8
    assert peak_flops("float32") == peak_flops("float32")  # measured once
    np.testing.assert_array_equal(tf.matmul(matrix, matrix)[0, 0], 512)


def test_facts_of_all_workers():
    """Two workers of which the other one does half as much, on a device that is as fast."""

    class Two(Replicas):
        def agree(self, *numbers):
            samples, images, encoded, waited_s, flops, peak, *sent = numbers
            return [
                samples * 1.5,
                images * 1.5,
                encoded * 1.5,
                waited_s + 3,
                flops * 1.5,
                peak * 2,
                *np.multiply(sent, 2),
            ]

    class Flops:
        def of(self, batch):
            return 300.0

    facts = RunFacts(Two(0, 2), lambda item: Flops(), peak=1000.0)

    class Item:
        batch = None

    for number in (1.0, 2.0):
        sent = {name: tf.constant(number, tf.float64) for name in SENT_BYTES}
        assert facts.add(Item(), 0, {"loss": tf.constant(1.0), **sent}).keys() == {"loss"}
    report = facts.report(Counts(seconds=10.0, samples=40, images=8, encoded=4, waited_s=1.0))
    assert report == {
        "samples_per_second": 6.0,
        "images_per_second": 1.2,
        "samples_per_image": 5.0,
        "encoded_per_second": 0.6,
        "input_wait_share": 0.2,
        "flops_per_step": 450.0,
        "mfu": pytest.approx(900 / (10 * 2000)),
        **dict.fromkeys(SENT_BYTES, 3.0),
    }
    assert facts.report(Counts(seconds=1.0))["flops_per_step"] == 0
