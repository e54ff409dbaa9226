"""Pipelines with a small network, and random batches for them without any file."""

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from easyrec_mm.config.pipeline import Pipeline, load_pipeline
from easyrec_mm.data.batch import Batch, one_picture_each
from easyrec_mm.export import parts
from easyrec_mm.export.onnx_models import write_rec_onnx
from easyrec_mm.features.tag_feature import TagFeature
from easyrec_mm.manifest import REC_ONNX
from easyrec_mm.network.layers.backbones import BACKBONES, IMAGENET, Entry
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.network.precision import FLOAT32
from easyrec_mm.schema import Schema

_TEXT = r"""
train_input_path: "train"
model_dir: "model"
data_config {
  input_type: GroupRTPInput
  separator: "\002"
  rtp_separator: "|"
  selected_cols: "0,1,2,3,4,5,6,7"
  label_fields: ["click", "like", "stars", "seconds", "weight"]
  input_fields { input_name: "click" input_type: INT32 }
  input_fields { input_name: "like" input_type: INT32 }
  input_fields { input_name: "stars" input_type: INT32 }
  input_fields { input_name: "seconds" input_type: FLOAT }
  input_fields { input_name: "weight" input_type: FLOAT }
  input_fields { input_name: "user" input_type: STRING }
  input_fields { input_name: "price" input_type: FLOAT }
  input_fields { input_name: "age" input_type: FLOAT }
  input_fields { input_name: "tags" input_type: STRING }
  input_fields { input_name: "path" input_type: STRING }
  input_fields { input_name: "size" input_type: INT32 }
  %(data)s
}
feature_config {
  features { input_names: "user" feature_type: IdFeature hash_bucket_size: 12 embedding_dim: 4 }
  features { input_names: "price" feature_type: RawFeature }
  features { input_names: "age" feature_type: RawFeature boundaries: [18, 40] embedding_dim: 3 }
  features {
    input_names: "tags" feature_type: TagFeature separator: "," kv_separator: ":" hash_bucket_size: 9 embedding_dim: 4
  }
  features {
    feature_name: "user_x_age" input_names: ["user", "age"] precision: 0
    feature_type: ComboFeature hash_bucket_size: 7 embedding_dim: 2
  }
  features { input_names: "path" feature_type: ImgFeature img_shape { width: 32 height: 32 } }
  features { input_names: "size" feature_type: SampleNumFeature }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  %(image)s
  feature_groups { group_name: "all" feature_names: ["user", "price", "age", "tags", "user_x_age"] }
  %(model)s
  e2e_mm_dbmtl { %(network)s }
}
train_config {
  optimizer_config { adam_optimizer { learning_rate { constant_learning_rate { learning_rate: 0.01 } } } }
  num_steps: 1
}
"""

CLICK = 'task_towers { tower_name: "click" label_name: "click" dnn { hidden_units: [6] } }'


def make_pipeline(folder, network: str = CLICK, model: str = "", data: str = "", image: bool = True) -> Pipeline:
    """A pipeline of five features and a picture of 32 x 32.

    Args:
      folder: where its file is written.
      network: text of e2e_mm_dbmtl.
      model: further text of model_config.
      data: further text of data_config.
      image: whether the model sees pictures.
    """
    group = 'feature_groups { group_name: "img" feature_names: "path" }' if image else ""
    path = folder / "test.config"
    path.write_text(_TEXT % {"network": network, "model": model, "data": data, "image": group}, encoding="utf-8")
    return load_pipeline(str(path))


def make_model(pipeline: Pipeline, dtype: str = FLOAT32) -> MultimodalModel:
    return MultimodalModel(pipeline.config, pipeline.schema, dtype)


def use_tiny_backbone(patch: pytest.MonkeyPatch) -> None:
    """In place of ResNet: a convolution of 3 x 3 with stride 2, batch norm and relu."""

    def build(shape: tuple[int, int, int]) -> keras.Model:
        inputs = keras.Input((None, None, shape[2]))
        x = keras.layers.Conv2D(5, 3, strides=2, use_bias=False, name="conv")(inputs)
        x = keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name="bn")(x)
        return keras.Model(inputs, keras.layers.ReLU(name="relu")(x))

    patch.setitem(BACKBONES, "ResNet-18", Entry(build, IMAGENET))


def random_batch(schema: Schema, sample_image=(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3), seed: int = 0) -> Batch:
    """Random values for every feature and label. `sample_image` says how many samples and pictures there are."""
    rng = np.random.default_rng(seed)
    num_samples, num_images = len(sample_image), max(sample_image) + 1
    rows = {table.name: table.rows for table in schema.tables}
    features: dict[str, tf.Tensor | tf.RaggedTensor] = {}
    for feature in schema.features:
        if feature.is_list:
            lengths = rng.integers(0, 4, num_samples)
            lengths[0] = 0
            if feature.num_numbers:
                values = tf.constant(rng.normal(size=(lengths.sum(), feature.num_numbers)), tf.float32)
            else:
                num_ids = rows[feature.table] if feature.table else feature.width
                values = tf.constant(rng.integers(0, num_ids, lengths.sum()), tf.int64)
            features[feature.name] = tf.RaggedTensor.from_row_lengths(values, lengths)
            if isinstance(feature, TagFeature) and (feature.kv_separator or feature.weight_input):
                weights = tf.constant(rng.uniform(0.5, 2, lengths.sum()), tf.float32)
                features[feature.weight_key] = tf.RaggedTensor.from_row_lengths(weights, lengths)
        elif feature.num_numbers:
            features[feature.name] = tf.constant(rng.normal(size=(num_samples, feature.num_numbers)), tf.float32)
        else:
            num_ids = rows[feature.table] if feature.table else feature.width
            features[feature.name] = tf.constant(rng.integers(0, num_ids, num_samples), tf.int64)
    labels = {
        "click": rng.integers(0, 2, num_samples),
        "like": rng.integers(0, 2, num_samples),
        "stars": rng.integers(0, 4, num_samples),
        "seconds": rng.normal(size=num_samples),
        "weight": rng.choice([0.0, 0.5, 2.0], num_samples),
    }
    labels = {name: tf.constant(labels[name], tf.float32) for name in schema.labels}
    image = schema.image
    num_images = num_images if schema.uses_image else 0
    # Pictures of unlike colours: those of noise alone would all have nearly the same vector.
    colours = rng.integers(0, 200, (num_images, 1, 1, image.channels))
    pixels = colours + rng.integers(0, 56, (num_images, image.height, image.width, image.channels))
    return Batch(
        features,
        labels,
        labels[schema.sample_weight] if schema.sample_weight else tf.ones(num_samples),
        tf.constant(pixels, tf.uint8),
        tf.constant(sample_image, tf.int32),
        one_picture_each(num_images)._replace(
            features={f.name: tf.constant(rng.integers(0, f.num_rows, num_images)) for f in schema.image_features},
            labels={name: tf.constant(rng.integers(0, n, num_images), tf.float32) for name, n in schema.image_labels},
        ),
        {},
    )


def onnx_rec_outputs(model, folder, batch, vector):
    """The outputs by name of a rec model that is written to a folder as ONNX, for a batch and its image vectors."""
    write_rec_onnx(model, folder)
    inputs = {parts.IMAGE_VECTOR: vector}
    for name, value in batch.features.items():
        inputs[name] = value.to_tensor().numpy() if isinstance(value, tf.RaggedTensor) else value.numpy()
    session = onnxruntime.InferenceSession(str(folder / REC_ONNX), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
