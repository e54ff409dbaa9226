"""Joint attributions: a closed form of a linear model, completeness of a deep one, an integral in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from model_helpers import make_model, make_pipeline, random_batch
from network_reference import Reference, arrays, randomise

from easyrec_mm.data.batch import Batch
from easyrec_mm.explain.attribution import PICTURE, Logit, allowed_error, attribute
from easyrec_mm.explain.path import Baseline, VectorPath, ends_of, logits_at, mean_baseline

LINEAR = 'task_towers { tower_name: "click" label_name: "click" } img_model { num_classes: 6 }'
DEEP = """
img_model { num_classes: 6 }
bottom_dnn { hidden_units: [8, 6] use_bn: false }
task_towers {
  tower_name: "click" label_name: "click" dnn { hidden_units: [6, 5] use_bn: false }
  relation_tower_names: "star" relation_dnn { hidden_units: 4 use_bn: false }
}
task_towers { tower_name: "star" label_name: "stars" num_class: 4 dnn { hidden_units: 5 use_bn: false } }
"""
FEATURES = ("user", "price", "age", "tags", "user_x_age")


class Explained:
    """A model with random weights, a batch, and the vectors and baseline of its samples."""

    def __init__(self, folder, network, image=True) -> None:
        self.pipeline = make_pipeline(folder, network, image=image)
        self.model = randomise(make_model(self.pipeline))
        self.batch: Batch = random_batch(self.pipeline.schema)
        self.features = self.batch.features
        self.number = self.batch.num_samples
        self.baseline = mean_baseline(self.model, self.features, self.number)
        self.vectors = self.image = None
        if image:
            self.vectors = self.model.image_vectors(self.batch).numpy()[self.batch.sample_image.numpy()]
            self.mean = self.vectors.mean(axis=0)
            self.image = VectorPath(self.vectors, self.mean)

    def logits(self, task):
        return self.model.logits(self.batch)[0][task].numpy()

    def attribute(self, task="click", classes=None, **settings):
        classes = [0] * self.number if classes is None else classes
        return attribute(self.model, self.features, self.image, self.baseline, Logit(task, classes), **settings)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        from model_helpers import use_tiny_backbone

        use_tiny_backbone(patch)
        yield Explained(tmp_path_factory.mktemp("deep"), DEEP)


def test_of_a_linear_model_they_are_weights_times_differences(tiny_backbone, tmp_path):
    explained = Explained(tmp_path, LINEAR)
    weights = arrays(explained.model)
    reference = Reference(weights, explained.pipeline)
    kernel = weights["rec/tower_click/output/kernel"][:, 0].astype(np.float64)
    scale = weights["rec/features_bn/gamma"] / np.sqrt(weights["rec/features_bn/moving_variance"] + 1e-3)
    columns = reference.columns(explained.features)
    result = explained.attribute()
    assert result.names == (*FEATURES, PICTURE)
    start = 0
    for part, name in enumerate(FEATURES):
        value = columns[name]
        end = start + value.shape[1]
        mean = explained.baseline.features[name].astype(np.float64)
        lengths = np.diff(explained.features[name].row_splits) if name == "tags" else np.ones(len(value))
        # The mean of elements that are all at the baseline is the baseline; a sample without elements stays at 0.
        move = np.where(lengths[:, None] > 0, value - mean, 0.0)
        expected = (move * scale[start:end]) @ kernel[start:end]
        np.testing.assert_allclose(result.values[:, part], expected, rtol=1e-4, atol=1e-5)
        start = end
    picture = (explained.vectors - explained.mean).astype(np.float64) @ kernel[start:]
    np.testing.assert_allclose(result.values[:, -1], picture, rtol=1e-4, atol=1e-5)
    assert (result.num_steps == 16).all()  # the least, because the integrand is constant


def test_the_baseline_is_the_mean_of_rows_elements_and_numbers(deep):
    weights = arrays(deep.model)
    values = deep.features
    tables = {name: weights[f"embedding/{name}"] for name in ("user", "age", "tags", "user_x_age")}
    for name, table in tables.items():
        ids = values[name].flat_values.numpy() if name == "tags" else values[name].numpy()
        np.testing.assert_allclose(deep.baseline.features[name], table[ids].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(deep.baseline.features["price"], values["price"].numpy().mean(axis=0), rtol=1e-5)


def test_the_end_of_the_path_is_the_model(deep):
    ends = ends_of(deep.model, deep.features)
    logits = logits_at(deep.model, ends, ends.numbers, tf.constant(deep.vectors))
    for task in ("click", "star"):
        np.testing.assert_allclose(logits[task], deep.logits(task), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", ["click", "star"])
def test_they_add_up_to_the_difference_of_the_logits_of_a_deep_model(deep, task):
    classes = np.arange(deep.number) % 4 if task == "star" else np.zeros(deep.number, int)
    result = deep.attribute(task, classes)
    expected = deep.logits(task)[np.arange(deep.number), classes]
    np.testing.assert_allclose(result.logits, expected, rtol=1e-5, atol=1e-6)
    difference = result.logits - result.baselines
    assert np.abs(difference).min() > 0.01
    assert (result.errors <= allowed_error(difference)).all()
    assert result.is_exact.all()
    assert len(set(result.num_steps.tolist())) > 1  # some need more steps than others


def test_too_few_steps_are_told(deep):
    result = deep.attribute(max_steps=16)
    assert not result.is_exact.all()
    assert (result.num_steps == 16).all()
    expected = deep.logits("click")[:, 0] - result.baselines
    np.testing.assert_allclose(result.errors, np.abs(result.values.sum(axis=1) - expected), rtol=0.01, atol=1e-5)


class _NumpyPath:
    """The network in NumPy in float64, at any point of the path of a sample."""

    def __init__(self, explained, sample) -> None:
        self.reference = Reference(arrays(explained.model), explained.pipeline)
        columns = self.reference.columns(explained.features)
        self.ends, self.starts = {}, {}
        for name in FEATURES:
            self.ends[name] = columns[name][sample]
            mean = explained.baseline.features[name].astype(np.float64)
            # Weights of elements add up to 1: their mean moves from the baseline's to that of the sample.
            is_empty = name == "tags" and not len(explained.features[name][sample])
            self.starts[name] = np.zeros_like(mean) if is_empty else mean
        self.ends[PICTURE] = explained.vectors[sample].astype(np.float64)
        self.starts[PICTURE] = explained.mean.astype(np.float64)

    def logits(self, places):
        """At places `[N]` for each part: `[N]`."""
        w, network = self.reference, self.reference.network
        point = {n: self.starts[n] + places[n][:, None] * (self.ends[n] - self.starts[n]) for n in self.ends}
        x = w.batch_norm("rec/features_bn", np.concatenate([point[name] for name in FEATURES], axis=1))
        x = w.dnn(network.bottom_dnn, "rec/bottom_dnn", np.concatenate([x, point[PICTURE]], axis=1))
        click, star = network.task_towers
        star = w.dnn(star.dnn, "rec/tower_star/dnn", x)
        relation = np.concatenate([w.dnn(click.dnn, "rec/tower_click/dnn", x), star], axis=1)
        relation = w.dnn(click.relation_dnn, "rec/tower_click/relation_dnn", relation)
        return w.dense("rec/tower_click/output", relation)[:, 0]

    def logit(self, place):
        return self.logits(dict.fromkeys(self.ends, np.array([place])))[0]

    def attribution(self, part, num_steps=4000, step=1e-6):
        """The integral of the derivative along the path by this part alone, by the midpoint rule."""
        places = dict.fromkeys(self.ends, (np.arange(num_steps) + 0.5) / num_steps)
        ahead, behind = (self.logits({**places, part: places[part] + sign * step}) for sign in (1, -1))
        return np.mean((ahead - behind) / (2 * step))


@pytest.mark.parametrize("sample", [0, 3])
def test_each_is_the_integral_along_the_path(deep, sample):
    result = deep.attribute()
    path = _NumpyPath(deep, sample)
    assert path.logit(1.0) == pytest.approx(result.logits[sample], rel=1e-4)
    scale = np.abs(result.values[sample]).max()
    for part, name in enumerate(result.names):
        assert result.values[sample, part] == pytest.approx(path.attribution(name), abs=0.02 * scale), name


def test_a_model_without_pictures_has_no_part_for_them(tmp_path):
    explained = Explained(tmp_path, 'task_towers { tower_name: "click" label_name: "click" }', image=False)
    result = explained.attribute()
    assert result.names == FEATURES
    np.testing.assert_allclose(
        result.values.sum(axis=1), explained.logits("click")[:, 0] - result.baselines, rtol=1e-3, atol=1e-3
    )


def test_baselines_of_features_can_be_chosen(deep):
    zeros = Baseline({name: np.zeros_like(mean) for name, mean in deep.baseline.features.items()})
    result = attribute(deep.model, deep.features, deep.image, zeros, Logit("click", [0] * deep.number))
    assert result.is_exact.all()
    assert not np.allclose(result.baselines, deep.attribute().baselines)
