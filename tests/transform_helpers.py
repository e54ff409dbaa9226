"""Features in a line each, and what the transform makes of their fields."""

import feature_helpers as make
import tensorflow as tf

from easyrec_mm.features.tensorflow_transform import FeatureTransform


def transform(feature, **fields):
    """What one feature becomes: NumPy arrays, ragged ones as lists; with weights a pair."""
    tensors = {name: as_tensor(values) for name, values in fields.items()}
    features = FeatureTransform([feature])(tensors)
    outputs = [
        value.to_list() if isinstance(value, tf.RaggedTensor) else value.numpy()
        for value in (features.pop(name) for name in (feature.name, feature.weight_key) if name in features)
    ]
    assert not features
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def as_tensor(values):
    if isinstance(values[0], str | bytes):
        return tf.constant(values, tf.string)
    return tf.constant(values, tf.int64 if isinstance(values[0], int) else tf.float32)


def id_feature(encoding="hash", num_ids=1000, **options):
    return make.id_feature("f", ("x",), 4, "t", encoding, num_ids, **options)


def tag_feature(encoding="hash", num_ids=1000, inputs=("x",), **options):
    return make.tag_feature("f", inputs, 4, "t", encoding, num_ids, **{"separator": "|", **options})


def raw_feature(**options):
    return make.raw_feature("f", ("x",), options.pop("width", 1), **options)


def buckets(texts, num_ids=1000):
    """farmhash64 of the texts, modulo the number of rows, by the op whose constants the first test pins."""
    return tf.strings.to_hash_bucket_fast(tf.constant(texts, tf.string), num_ids).numpy().tolist()


def lookup_feature(encoding="hash", num_ids=1000, **options):
    settings = {"separator": "|", "kv_separator": ":", "max_selected": 10, **options}
    return make.lookup_feature("f", ("k", "m"), 4, "t", encoding, num_ids, **settings)


def sequence_feature(elements="id", **options):
    settings = {"separator": "|", **options}
    if elements == "id":
        encoding, num_ids = settings.pop("encoding", "hash"), settings.pop("num_ids", 1000)
        return make.id_sequence("f", ("x",), 4, "t", encoding, num_ids, **settings)
    return make.raw_sequence("f", ("x",), settings.pop("width", 4), **settings)
