"""Values that are the same for a whole group: groups whose samples disagree are refused."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import group_line, schema
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.formats.rtp_graph import GroupRtpParser

GROUP_VALUES = {"city": "string", "age": "int64", "vip": "bool", "price": "float32", "user": "string"}
PER_GROUP = schema(
    labels={"kind": "int64", "fresh": "bool", "share": "float32", "click": "int64"},
    values=GROUP_VALUES,
    defaults={"city": "x", "age": "7", "vip": "true", "price": "-1.5", "kind": "2", "fresh": "1", "share": "0.5"},
    tasks=[("click", "binary", 1)],
)
PER_GROUP = replace(
    PER_GROUP, group_fields=("city", "age", "vip", "price", "kind", "fresh", "share"), image_labels=(("kind", 5),)
)
# Of each field or label: texts of one value after texts of another.
TEXTS = {
    "city": [["", "x"], ["y"], ["X"], ["x "], ["é"]],
    "age": [["", "7", "+7", " 7", "07"], ["8", "8 "], ["0", "-0"], ["9007199254740993"], ["9007199254740992"]],
    "vip": [["", "1", "true", "TRUE"], ["0", "false", "False"]],
    # Equal as float32: the last pair only there.
    "price": [["", "-1.5", "-15e-1", "-1.50"], ["0", "-0", "0.0", "1e-60"], ["16777216", "16777217"]],
    "kind": [["", "2", "2.0"], ["3"], ["0", "-0"]],
    "fresh": [["", "1", "true"], ["0", "false"]],
    "share": [["", "0.5", "5e-1"], ["0.25"], ["0.1", "0.100000001"]],
    "click": [["0"], ["1"]],
    "user": [["a"], ["b"], [""]],
}
LABELS = PER_GROUP.labels


def parser_of(schema, labels=None, fields=None):
    labels = schema.labels if labels is None else labels
    parser = GroupRtpParser(schema, labels, fields or schema.layout.sample_fields, len(schema.labels) + 3)
    function = tf.function(parser, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def parse(lines):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), function(tf.constant(lines, tf.string)))

    parse.explain = parser.explain
    return parse


PARSE = parser_of(PER_GROUP)


def class_of(name, text):
    return next(number for number, texts in enumerate(TEXTS[name]) if text in texts)


def line_of(group):
    """A line of name -> texts of the samples."""
    samples = [[group[name][i] for name in GROUP_VALUES] for i in range(len(group["click"]))]
    return group_line([group[name] for name in LABELS], samples)


def disagreement(group):
    """(field, sample, its text, the text of sample 0) of the first value that differs; None if all agree."""
    for name in PER_GROUP.group_fields:
        for number, text in enumerate(group[name]):
            if class_of(name, text) != class_of(name, group[name][0]):
                return name, number, text, group[name][0]
    return None


@st.composite
def groups(draw):
    """Mostly of one value each, written in several ways."""
    size = draw(st.integers(1, 4))
    group = {}
    for name, classes in TEXTS.items():
        usual = draw(st.sampled_from(classes))
        group[name] = [draw(st.sampled_from(usual)) for _ in range(size)]
        if not draw(st.integers(0, 11)):
            group[name][draw(st.integers(0, size - 1))] = draw(st.sampled_from(draw(st.sampled_from(classes))))
    return group


@given(st.lists(groups(), max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_group_whose_samples_disagree_is_refused(drawn_groups):
    lines = [line_of(group) for group in drawn_groups]
    expected = [disagreement(group) for group in drawn_groups]
    rows = PARSE(lines)
    assert rows.kept_groups.tolist() == [i for i, problem in enumerate(expected) if problem is None]
    assert sorted(rows.refused) == [i for i, problem in enumerate(expected) if problem is not None]
    for line, problem in zip(lines, expected, strict=True):
        refusal = PARSE.explain(line)
        if problem is None:
            assert refusal is None
            continue
        name, sample, text, first = problem
        assert refusal.where == f"column '{name}'"
        if PER_GROUP.field(name).dtype == "string" and name not in LABELS:
            default = PER_GROUP.field(name).default
            text, first = text or default, first or default
            assert refusal.reason == (
                f"sample {sample}: {text!r}, but sample 0 has {first!r}; the value must be the same in a group"
            )
        else:  # numbers are shown as they were read
            assert refusal.reason.startswith(f"sample {sample}: ")


@pytest.mark.parametrize("name", PER_GROUP.group_fields)
def test_each_pair_of_texts_of_each_field(name):
    def line(*texts):
        return line_of({other: [values[0][0]] * 2 for other, values in TEXTS.items()} | {name: list(texts)})

    texts = [text for texts in TEXTS[name] for text in texts]
    pairs = [(first, second) for first in texts for second in texts]
    agree = [class_of(name, first) == class_of(name, second) for first, second in pairs]
    assert PARSE([line(*pair) for pair in pairs]).kept_groups.tolist() == np.flatnonzero(agree).tolist()
    assert [PARSE.explain(line(*pair)) is None for pair in pairs] == agree


def test_other_fields_may_differ():
    group = {name: [texts[0][0]] * 3 for name, texts in TEXTS.items()}
    group |= {"user": ["a", "b", "c"], "click": ["0", "1", "0"]}
    assert PARSE([line_of(group)]).fields["user"].tolist() == [b"a", b"b", b"c"]


def test_a_disagreement_in_one_group_is_none_in_the_next():
    """The values of a batch stand in one row: samples are compared with the first of their own group."""
    batch_groups = [{name: [texts[i][0]] * (i + 1) for name, texts in TEXTS.items()} for i in (0, 1, 0)]
    assert PARSE([line_of(group) for group in batch_groups]).kept_groups.tolist() == [0, 1, 2]


def test_labels_that_are_not_read_need_not_agree():
    parse = parser_of(PER_GROUP, labels=(), fields=("city",))
    group = {name: [texts[0][0]] * 2 for name, texts in TEXTS.items()} | {"kind": ["0", "1"], "age": ["7", "8"]}
    assert parse([line_of(group)]).kept_groups.tolist() == [0]
    assert parse.explain(line_of(group)) is None


def test_a_value_that_cannot_be_read_is_named_before_a_disagreement():
    group = {name: [texts[0][0]] * 2 for name, texts in TEXTS.items()} | {"age": ["7", "x"]}
    assert PARSE.explain(line_of(group)) == ("column 'age'", "sample 1: 'x' is not a whole number")
    assert PARSE([line_of(group)]).refused.tolist() == [0]
    group |= {"kind": ["1", "5"], "age": ["7", "7"]}
    assert PARSE.explain(line_of(group)) == ("column 'kind'", "sample 1: label 5 is not a class from 0 to 4")
