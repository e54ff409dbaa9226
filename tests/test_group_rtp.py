"""The GroupRTP parser: mistakes that a flat batch would not show, what is said of them, labels, values, separators."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import COLUMNS, SAMPLES, VALUES, group_line, schema
from feature_helpers import raw_feature, tag_feature
from hypothesis import given, settings
from hypothesis import strategies as st
from rtp_helpers import (
    FEATURES_COLUMN,
    LABEL_COLUMNS,
    NUM_COLUMNS,
    PARSE,
    SAMPLE_FIELDS,
    SCHEMA,
    SIZE_COLUMN,
    is_utf8,
    parser_of,
    text_of,
)

from easyrec_mm.formats.rtp_graph import are_ascii, are_utf8

# Mistakes that a flattened batch would not show.

SIMPLE = schema({"click": "int64"}, {"user": "string", "age": "int64"}, tasks=[("click", "binary", 1)])
SIMPLE_PARSE = parser_of(SIMPLE, ("click",), ("user", "age"), 4)


def simple_line(num_labels, num_samples, size, path="picture"):
    samples = [[f"u{i}", str(i)] for i in range(num_samples)]
    return group_line([[str(i % 2) for i in range(num_labels)]], samples, path, size)


def test_15_and_17_samples_are_not_16_and_16():
    lines = [simple_line(15, 15, 16), simple_line(17, 17, 16), simple_line(16, 16, 16)]
    rows = SIMPLE_PARSE(lines)
    assert rows.kept_groups.tolist() == [2]
    assert rows.refused.tolist() == [0, 1]
    assert rows.fields["user"].tolist() == [f"u{i}".encode() for i in range(16)]
    assert SIMPLE_PARSE.explain(lines[0]) == ("column 'click'", "15 entries, group size 16")
    assert SIMPLE_PARSE.explain(lines[1]) == ("column 'click'", "17 entries, group size 16")


def test_labels_that_fit_and_features_that_do_not():
    lines = [simple_line(16, 15, 16), simple_line(16, 17, 16)]
    assert SIMPLE_PARSE(lines).refused.tolist() == [0, 1]
    assert SIMPLE_PARSE.explain(lines[0]) == ("features", "15 entries, group size 16")


def test_features_that_fit_and_labels_that_do_not():
    lines = [simple_line(15, 16, 16), simple_line(17, 16, 16)]
    assert SIMPLE_PARSE(lines).refused.tolist() == [0, 1]


def test_sizes_that_were_swapped_between_groups():
    lines = [simple_line(2, 2, 3, "first"), simple_line(3, 3, 2, "second")]
    assert SIMPLE_PARSE(lines).refused.tolist() == [0, 1]


def test_a_value_that_moved_to_the_next_sample():
    samples = [["u0", "1", "u1"], ["2"], ["u2", "3"]]
    line = group_line([["0", "1", "0"]], samples)
    assert SIMPLE_PARSE([line, simple_line(2, 2, 2)]).refused.tolist() == [0]
    assert SIMPLE_PARSE.explain(line) == ("features", "sample 0: 3 values, not 2")


def test_a_bad_value_refuses_its_group_alone():
    bad = group_line([["0", "1"]], [["a", "1"], ["b", "x"]])
    rows = SIMPLE_PARSE([simple_line(1, 1, 1, "p0"), bad, simple_line(3, 3, 3, "p2")])
    assert rows.kept_groups.tolist() == [0, 2]
    assert rows.image_path.tolist() == [b"p0", b"p2"]
    assert rows.group_size.tolist() == [1, 3]
    assert rows.fields["age"].tolist() == [0, 0, 1, 2]
    assert rows.fields["click"].tolist() == [0, 0, 1, 0]
    assert SIMPLE_PARSE.explain(bad) == ("column 'age'", "sample 1: 'x' is not a whole number")


def test_two_wrong_tags_whose_ends_would_make_a_right_one():
    # Matched together, "a" and "b:1" would read as one pair with the key "a\nb".
    parse = pairs_parser()
    lines = [pairs_line("a"), pairs_line("b:1"), pairs_line("c"), pairs_line("d:2")]
    assert parse(lines).refused.tolist() == [0, 2]
    assert parse.explain(lines[0])[1] == "'a' does not have the form that its feature needs"


def pairs_parser():
    feature = tag_feature("pairs", ("pairs",), 4, "t", "hash", 9, separator="|", kv_separator=":")
    return parser_of(schema({"click": "int64"}, {"pairs": "string"}, [feature]), ("click",), ("pairs",), 4)


def pairs_line(text):
    return group_line([["0"]], [[text]])


# What is said.


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"columns": 3}, ("line", "3 columns, not 4")),
        ({"group_size": "0"}, ("column 'group_size'", "group size 0 is not 1 or more")),
        ({"group_size": "-2"}, ("column 'group_size'", "group size -2 is not 1 or more")),
        ({"group_size": "two"}, ("column 'group_size'", "group size 'two' is not 1 or more")),
        ({"group_size": "2.0"}, ("column 'group_size'", "group size '2.0' is not 1 or more")),
        ({"group_size": ""}, ("column 'group_size'", "group size '' is not 1 or more")),
        ({"labels": ["1", "no"]}, ("column 'click'", "sample 1: 'no' is not a number")),
        ({"labels": ["1", "1e39"]}, ("column 'click'", "sample 1: label 1e+39 is not from 0 to 1")),
        ({"labels": ["2", "1"]}, ("column 'click'", "sample 0: label 2 is not from 0 to 1")),
        ({"labels": ["1"]}, ("column 'click'", "1 entries, group size 2")),
        ({"samples": [["a", "1"]]}, ("features", "1 entries, group size 2")),
        ({"samples": [["a", "1"], ["b"]]}, ("features", "sample 1: 1 values, not 2")),
        ({"samples": [["a", "1"], ["b", "1.5"]]}, ("column 'age'", "sample 1: '1.5' is not a whole number")),
    ],
)
def test_explanations_name_the_place_and_what_is_there(change, expected):
    labels = change.get("labels", ["0", "1"])
    line = group_line([labels], change.get("samples", [["a", "1"], ["b", "2"]]), "p", change.get("group_size", 2))
    line = COLUMNS.encode().join(line.split(COLUMNS.encode())[: change.get("columns", 4)])
    assert SIMPLE_PARSE.explain(line) == expected
    assert SIMPLE_PARSE([line]).refused.tolist() == [0]


def test_explanations_of_numbers_that_are_too_large_weights_and_bytes():
    def explain(**values):
        columns = [""] * NUM_COLUMNS
        for column in LABEL_COLUMNS.values():
            columns[column] = ["1"]
        columns[FEATURES_COLUMN] = [[values.get(name, "") for name in SAMPLE_FIELDS]]
        columns[SIZE_COLUMN] = "1"
        return PARSE.explain(text_of(columns))[1]

    assert explain(price="1e39") == "1e+39 is not a number from -1e19 to 1e19"
    assert explain(price="-1e20") == "-1e+20 is not a number from -1e19 to 1e19"
    reason = "2 values, but liked_weights has 1"
    assert explain(liked="a|b", liked_weights="1") == reason
    assert explain(pairs="\udcff:1") == "'\ufffd:1' is not UTF-8"
    assert explain(place="1|2|3") == "'1|2|3' does not have the form that its feature needs"


# Labels.


def label_parser(activation, num_class):
    return parser_of(
        schema({"y": "float32"}, {"user": "string"}, tasks=[("y", activation, num_class)]), ("y",), ("user",), 4
    )


@pytest.mark.parametrize(
    ("activation", "num_class", "good", "bad"),
    [
        ("binary", 1, ["0", "1", "0.5", "1.0", "1e-3"], ["-0.001", "1.001", "2", "-1"]),
        ("multiclass", 4, ["0", "3", "2.0", "1e0"], ["4", "-1", "1.5", "0.001", "3.1"]),
        ("value", 1, ["-5", "3.25", "9e18"], ["2e19", "-1e30", "1e39", "nan", "x"]),
        ("sigmoid_value", 1, ["0", "0.5", "2"], ["inf"]),
    ],
)
def test_labels_must_be_what_their_task_takes(activation, num_class, good, bad):
    parse = label_parser(activation, num_class)
    texts = [*good, *bad]
    lines = [group_line([[text]], [["u"]]) for text in texts]
    rows = parse(lines)
    assert rows.kept_groups.tolist() == list(range(len(good)))
    np.testing.assert_array_equal(rows.fields["y"], np.float32([float(text) for text in good]))
    assert rows.fields["y"].dtype == np.float32
    assert [parse.explain(line) is None for line in lines] == [True] * len(good) + [False] * len(bad)


def test_a_class_that_does_not_exist_is_explained():
    explain = label_parser("multiclass", 4).explain
    expected = ("column 'y'", "label 1.5 is not a class from 0 to 3")
    assert explain(group_line([["1.5"]], [["u"]])) == expected


def test_a_label_without_a_task_may_be_any_number():
    assert schema({"y": "float32"}, {"x": "string"}).label_range("y") == (-1e19, 1e19, False)


def test_without_labels_their_columns_may_hold_anything():
    parse = parser_of(SIMPLE, (), ("user", "age"), 4)
    lines = [group_line([labels], [["a", "1"], ["b", "2"]]) for labels in (["0", "1"], ["?"], [], ["5"] * 9)]
    rows = parse(lines)
    assert rows.kept_groups.tolist() == [0, 1, 2, 3]
    assert set(rows.fields) == {"user", "age"}
    assert [parse.explain(line) for line in lines] == [None] * 4


def test_labels_stand_where_selected_cols_says():
    order = ("seconds", "click", "stars")
    rows = parser_of(SCHEMA, order, ("user",), NUM_COLUMNS)([text_of(three_labels())])
    assert {name: rows.fields[name].tolist() for name in order} == {
        "click": [1, 0], "stars": [3, 4], "seconds": [2.5, 7]
    }  # fmt: skip


def three_labels():
    columns = ["ignored"] * NUM_COLUMNS
    for name, entries in {"click": ["1", "0"], "stars": ["3", "4"], "seconds": ["2.5", "7"]}.items():
        columns[LABEL_COLUMNS[name]] = entries
    columns[FEATURES_COLUMN] = [[""] * len(SAMPLE_FIELDS)] * 2
    columns[SIZE_COLUMN] = "2"
    return columns


# Values.


def test_empty_values_take_their_default():
    rows = SIMPLE_PARSE([group_line([["0", "1"]], [["", ""], ["b", "2"]])])
    assert rows.fields["click"].tolist() == [0, 1]
    assert rows.fields["user"].tolist() == [b"", b"b"]
    assert rows.fields["age"].tolist() == [0, 2]
    with_defaults = schema(
        {"click": "int64"},
        {"user": "string", "age": "int64", "vip": "bool", "price": "float32"},
        defaults={"click": "1", "user": "é", "age": "-3", "vip": "true", "price": "2.5"},
    )
    rows = parser_of(with_defaults, ("click",), ("user", "age", "vip", "price"), 4)([group_line([[""]], [[""] * 4])])
    values = {name: value.tolist() for name, value in rows.fields.items()}
    assert values == {"click": [1], "user": ["é".encode()], "age": [-3], "vip": [1], "price": [2.5]}


def test_defaults_count_as_tags_and_weights():
    features = [tag_feature("liked", ("liked", "weights"), 4, "t", "hash", 9, separator="|")]
    line_schema = schema({"y": "float32"}, {"liked": "string", "weights": "string"}, features, {"liked": "a|b"})
    parse = parser_of(line_schema, ("y",), ("liked", "weights"), 4)
    lines = [group_line([["0"]], [values]) for values in (["", ""], ["", "1|2"], ["x", "1"], ["x", "1|2"])]
    assert parse(lines).kept_groups.tolist() == [1, 2]
    assert [parse.explain(line) is None for line in lines] == [False, True, True, False]


def test_bool_fields_become_0_and_1():
    line_schema = schema({"y": "float32"}, {"vip": "bool"})
    parse = parser_of(line_schema, ("y",), ("vip",), 4)
    texts = ["true", "false", "True", "FALSE", "tRuE", "1", "0", ""]
    rows = parse([group_line([["0"] * len(texts)], [[text] for text in texts])])
    assert rows.fields["vip"].tolist() == [1, 0, 1, 0, 1, 1, 0, 0]
    assert rows.fields["vip"].dtype == np.int64
    bad = [group_line([["0"]], [[text]]) for text in ("yes", "2", " true", "truefalse", "10")]
    assert parse(bad).refused.tolist() == list(range(5))
    assert all(parse.explain(line) for line in bad)


def test_large_integers_keep_every_digit():
    texts = ["123456789012345678", "-999999999999999999", "9007199254740993"]
    rows = SIMPLE_PARSE([group_line([["0"] * 3], [["u", text] for text in texts])])
    assert rows.fields["age"].tolist() == [int(text) for text in texts]


@given(st.lists(st.binary(max_size=12), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_a_string_field_is_utf_8_as_it_stands_or_refused(values):
    taken = {b"\n", *(separator.encode() for separator in (COLUMNS, SAMPLES, VALUES))}
    values = [b"".join(bytes([byte]) for byte in value if bytes([byte]) not in taken) for value in values]
    line = group_line([["0"] * len(values)], [[v.decode("utf-8", "surrogateescape"), "1"] for v in values])
    rows = SIMPLE_PARSE([line])
    if all(is_utf8(value) for value in values):
        assert rows.fields["user"].tolist() == values
        assert SIMPLE_PARSE.explain(line) is None
    else:
        assert not rows.kept_groups.size
        assert SIMPLE_PARSE.explain(line).reason.endswith(" is not UTF-8")


@pytest.mark.parametrize(
    "text",
    [
        b"\xff", b"\xc3", b"a\xe9b", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe4\xb8\n",
        "\ud7ff\ue000\U0010ffff".encode(), "é日本😀".encode(), b"\x00\x7f", b"",
    ],
)  # fmt: skip
def test_utf_8_is_told_as_python_tells_it(text):
    texts = tf.constant([text, b"a", text + b"x"])
    expected = [is_utf8(text), True, is_utf8(text + b"x")]
    assert are_utf8(texts, are_ascii(texts)).numpy().tolist() == expected


def test_picture_paths_are_utf_8_as_they_stand():
    paths = ["", " a b ", "é/日本.jpg", "\udcff\udcfe", "https://x/y?z=1|2"]
    lines = [group_line([["0"]], [["u", "1"]], path) for path in paths]
    rows = SIMPLE_PARSE(lines)
    assert rows.image_path.tolist() == [path.encode() for path in paths if path != "\udcff\udcfe"]
    assert SIMPLE_PARSE.explain(lines[3]) == ("column 'img_path'", "'\ufffd\ufffd' is not UTF-8")


# Separators.


def test_the_empty_separator_splits_into_single_bytes():
    line_schema = schema({"y": "float32"}, {"a": "string", "b": "int64", "c": "string"}, separators=(";", ",", ""))
    parse = parser_of(line_schema, ("y",), ("a", "b", "c"), 4)
    lines = [b"0,1;x5y,z6w;p;2", b"0;x5;p;1", b"0;x5yz;p;1", b"0;5xy;p;1", "0;5é;p;1".encode(), "0;é5;p;1".encode()]
    rows = parse(lines)
    assert rows.kept_groups.tolist() == [0]
    assert rows.fields["a"].tolist() == [b"x", b"z"]
    assert rows.fields["b"].tolist() == [5, 6]
    assert rows.fields["c"].tolist() == [b"y", b"w"]
    assert [parse.explain(line) is None for line in lines] == [True] + [False] * 5
    # A letter of two bytes is two values, none of which is UTF-8.
    assert parse.explain(b"0;\xc37\xa9;p;1") == ("column 'a'", "'\ufffd' is not UTF-8")


def test_separators_of_several_and_of_special_characters():
    line_schema = schema({"y": "float32"}, {"a": "string", "b": "int64"}, separators=("||", "é", "^]"))
    parse = parser_of(line_schema, ("y",), ("a", "b"), 4)
    line = "0é1||x^]1éy|^]2||p||2".encode()
    rows = parse([line, "0é1||x^]1y|^]2||p||2".encode()])
    assert rows.kept_groups.tolist() == [0]
    assert rows.fields["a"].tolist() == [b"x", b"y|"]
    assert rows.fields["b"].tolist() == [1, 2]
    assert rows.fields["y"].tolist() == [0, 1]
    assert parse.explain(line) is None


@pytest.mark.parametrize("separator", [" ", "-", "+"])
def test_a_separator_that_could_be_part_of_a_number_splits_first(separator):
    feature = raw_feature("place", ("place",), 3, separator=separator, dim=3)
    line_schema = schema({"y": "float32"}, {"place": "string"}, [feature])
    parse = parser_of(line_schema, ("y",), ("place",), 4)
    texts = [separator.join(numbers) for numbers in (["1", "2.5", "3"], ["1", "", "2", "3"], ["1", "2", "3", ""])]
    lines = [group_line([["0"]], [[text]]) for text in texts]
    assert parse(lines).kept_groups.tolist() == [0]
    assert [parse.explain(line) is None for line in lines] == [True, False, False]


def test_explaining_long_lists_of_spaces_takes_no_time():
    feature = tag_feature("groups", ("groups",), 4, "t", "identity", 9, separator=" ")
    line_schema = schema({"y": "float32"}, {"groups": "string"}, [feature])
    line = group_line([["0"]], [["1  " * 200 + "x"]])
    assert "does not have the form" in parser_of(line_schema, ("y",), ("groups",), 4).explain(line)[1]


@pytest.mark.parametrize("raw_dim", [2, 401, 768, 2048])
def test_long_vectors(raw_dim):
    feature = raw_feature("vector", ("vector",), raw_dim, separator="|", dim=raw_dim)
    line_schema = schema({"y": "float32"}, {"vector": "string"}, [feature])
    parse = parser_of(line_schema, ("y",), ("vector",), 4)
    lines = [group_line([["0"]], [["|".join(["-0.125"] * count)]]) for count in (raw_dim, raw_dim - 1, raw_dim + 1)]
    assert parse(lines).kept_groups.tolist() == [0]
    assert [parse.explain(line) is None for line in lines] == [True, False, False]


# Lines as they come from files.


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_lines_that_end_as_on_windows(tmp_path, compression):
    path = tmp_path / "lines"
    lines = [simple_line(2, 2, 2), simple_line(1, 1, 1)]
    content = b"\r\n".join([*lines, b""])
    path.write_bytes(gzip.compress(content) if compression else content)
    read = list(tf.data.TextLineDataset(str(path), compression).as_numpy_iterator())
    assert read == lines
    rows = SIMPLE_PARSE(read)
    assert rows.kept_groups.tolist() == [0, 1]
    assert rows.group_size.tolist() == [2, 1]


def test_a_schema_with_one_column_less_refuses_all():
    parser = parser_of(replace(SIMPLE), ("click",), ("user",), 5)
    rows = parser([simple_line(1, 1, 1)] * 3)
    assert rows.refused.tolist() == [0, 1, 2]
    assert rows.fields["user"].tolist() == []
