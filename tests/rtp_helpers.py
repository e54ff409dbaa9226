"""A schema with a field of every kind, and a parser of its lines of text."""

import tensorflow as tf
from data_helpers import COLUMNS, SAMPLES, VALUES, schema
from feature_helpers import raw_feature, tag_feature

from easyrec_mm.formats.rtp_graph import GroupRtpParser

# Columns: what is not read, and the labels after the features, so that order and gaps matter.
NUM_COLUMNS = 8
LABEL_COLUMNS = {"click": 4, "stars": 3, "seconds": 7}
FEATURES_COLUMN, IMAGE_COLUMN, SIZE_COLUMN = 1, 0, 5
SAMPLE_FIELDS = ("user", "age", "vip", "price", "pairs", "place", "liked", "liked_weights", "groups", "unread")
DEFAULTS = {"user": "nobody", "age": "7", "vip": "true", "price": "-1.5", "click": "1", "stars": "2"}
SCHEMA = schema(
    labels={"click": "int64", "stars": "int64", "seconds": "float32"},
    values={
        "user": "string",
        "age": "int64",
        "vip": "bool",
        "price": "float32",
        "pairs": "string",
        "place": "string",
        "liked": "string",
        "liked_weights": "string",
        "groups": "string",
        "unread": "float32",
    },
    features=[
        tag_feature("pairs", ("pairs",), 4, "t", "hash", 9, separator="|", kv_separator=":"),
        raw_feature("place", ("place",), 2, separator="|", dim=2),
        tag_feature("liked", ("liked", "liked_weights"), 4, "t", "hash", 9, separator="|"),
        tag_feature("groups", ("groups",), 4, "t", "identity", 9, separator=" "),
    ],
    defaults=DEFAULTS,
    tasks=[("click", "binary", 1), ("stars", "multiclass", 5), ("seconds", "value", 1)],
    columns=[*LABEL_COLUMNS.values(), FEATURES_COLUMN, IMAGE_COLUMN, SIZE_COLUMN],
)
READ = tuple(name for name in SAMPLE_FIELDS if name != "unread")


def parser_of(schema, labels, fields, num_columns):
    parser = GroupRtpParser(schema, labels, fields, num_columns)
    function = tf.function(parser, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def parse(lines):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), function(tf.constant(lines, tf.string)))

    parse.explain = parser.explain
    return parse


PARSE = parser_of(SCHEMA, tuple(LABEL_COLUMNS), READ, NUM_COLUMNS)


def text_of(columns):
    def joined(column):
        if isinstance(column, str):
            return column
        return SAMPLES.join(VALUES.join(part) if isinstance(part, list) else part for part in column)

    return COLUMNS.join(joined(column) for column in columns).encode("utf-8", "surrogateescape")


def is_utf8(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
