"""The GroupRTP parser against a reference that is written here in plain Python, one group and one value at a time."""

import re

import numpy as np
import pytest
from data_helpers import COLUMNS, SAMPLES, VALUES
from fuzz_helpers import fuzz
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rtp_helpers import (
    DEFAULTS,
    FEATURES_COLUMN,
    IMAGE_COLUMN,
    LABEL_COLUMNS,
    NUM_COLUMNS,
    PARSE,
    READ,
    SAMPLE_FIELDS,
    SIZE_COLUMN,
    is_utf8,
    text_of,
)

# The reference. Numbers are read by Python's own float and int, after a look at their characters.


def integer(text):
    digits = text.strip(" \t").lstrip("+-")
    if not 1 <= len(digits) <= 18 or set(text) - set("+-0123456789 \t"):
        return None
    try:
        return int(text)
    except ValueError:
        return None


def number(text):
    exponent = re.split("[eE]", text.strip(" \t"))[1:]
    if set(text) - set("+-0123456789.eE \t") or any(len(part.lstrip("+-")) > 2 for part in exponent):
        return None
    try:
        with np.errstate(over="ignore"):
            value = np.float32(float(text))
    except ValueError:
        return None
    return value if abs(value) <= 1e19 else None


def boolean(text):
    return {"true": 1, "1": 1, "false": 0, "0": 0}.get(text.lower())


def parts(text, separator="|"):
    return [part for part in text.split(separator) if part]


def is_pair(text):
    key_and_weight = text.split(":")
    # Infinite weights are not told apart from large ones; none are generated.
    return len(key_and_weight) == 2 and number(key_and_weight[1]) is not None


def is_place(text):
    return len(text.split("|")) == 2 and all(number(part) is not None for part in text.split("|"))


FORMS = {
    "pairs": lambda text: all(is_pair(part) for part in parts(text)),
    "place": is_place,
    "liked_weights": lambda text: all(number(part) is not None for part in parts(text)),
    "groups": lambda text: all(integer(part) is not None for part in parts(text, " ")),
}


def reference_label(name, data):
    value = number(data.decode("utf-8", "replace") or DEFAULTS.get(name, ""))
    if value is None or name == "seconds":
        return value
    is_known = 0 <= value <= 1 if name == "click" else value in (0, 1, 2, 3, 4)
    return value if is_known else None


def reference_value(name, data):
    if name in ("age", "vip", "price"):
        read = {"age": integer, "vip": boolean, "price": number}[name]
        return read(data.decode("utf-8", "replace") or DEFAULTS[name])
    if not is_utf8(data) or (data and name in FORMS and not FORMS[name](data.decode())):
        return None
    return data or DEFAULTS.get(name, "").encode()


def reference_group(line):
    """The group of a line, field -> values; None if anything in it is wrong."""
    columns = line.split(COLUMNS.encode())
    if len(columns) != NUM_COLUMNS:
        return None
    size = integer(columns[SIZE_COLUMN].decode("utf-8", "replace"))
    samples = [sample.split(VALUES.encode()) for sample in columns[FEATURES_COLUMN].split(SAMPLES.encode())]
    if size is None or len(samples) != size or any(len(values) != len(SAMPLE_FIELDS) for values in samples):
        return None
    fields = {name: [reference_value(name, values[SAMPLE_FIELDS.index(name)]) for values in samples] for name in READ}
    for name, column in LABEL_COLUMNS.items():
        entries = columns[column].split(SAMPLES.encode())
        if len(entries) != size:
            return None
        fields[name] = [reference_label(name, entry) for entry in entries]
    if any(value is None for values in fields.values() for value in values):
        return None
    for liked, weights in zip(fields["liked"], fields["liked_weights"], strict=True):
        if len(parts(liked.decode("latin-1"))) != len(parts(weights.decode("latin-1"))):
            return None
    return (fields, columns[IMAGE_COLUMN], size) if is_utf8(columns[IMAGE_COLUMN]) else None


def assert_equals_reference(lines, parse=PARSE, reference=reference_group):
    """The groups that are kept, their values, those refused, and what is said of each line."""
    expected = [reference(line) for line in lines]
    rows = parse(lines)
    good = [i for i, group in enumerate(expected) if group is not None]
    assert rows.kept_groups.tolist() == good
    assert sorted(rows.refused) == [i for i, group in enumerate(expected) if group is None]
    # An empty line is refused, but it is no group of which something could be said.
    are_good = [group is not None or not line for line, group in zip(lines, expected, strict=True)]
    assert [parse.explain(line) is None for line in lines] == are_good
    assert rows.image_path.tolist() == [expected[i][1] for i in good]
    assert rows.group_size.tolist() == [expected[i][2] for i in good]
    for name, values in rows.fields.items():
        np.testing.assert_array_equal(values.tolist(), [v for i in good for v in expected[i][0][name]], err_msg=name)
    return rows


# Groups and what may be wrong with them.

WORDS = [
    *("", " ", "0", "1", "2", "4", "5", "-1", "+1", " 1", "1 ", "\t1", "0.5", "1.", ".5", ".", "1.5", "1e0", "1E-3"),
    *("1e", "e1", "1e+05", "1e100", "1e39", "1e-50", "-0", "007", "--1", "+-1", "+ 1", "1 2", "0x10", "1_0", "1,5"),
    *("nan", "inf", "-inf", "NaN", "abc", "true", "FALSE", "True ", "t", "9" * 18, "9" * 19, "9" * 40, "1.00000001"),
    *("a:1", "a:1|b:2", "a:1||b:2.5|", "a:", ":1", ":", "a", "a:b", "a:1:2", "a:1|b", "a|b:1", "|", "||", "1|2"),
    *("1|2|3", "1|", "|1", "1|x", " 1 |+2", "0.5|1e3", "3 4", "3  4 ", "3,4", "3 x"),
    *("é", "日本", "２", "\udcff", "\udcc3", "a\udcff:1", "\udced\udca0\udc80", "\U0001f600:1", "\x00", "\x1d"),
    *("\r", "'", '"', "\\"),
]  # fmt: skip
words = st.one_of(
    st.sampled_from(WORDS),
    st.text(alphabet="0123456789+-.eE \t", max_size=6),
    st.text(alphabet="ab1:|. ", max_size=8),
    st.text(st.characters(blacklist_characters="\n\x01\x02;", blacklist_categories=["Cs"]), max_size=5),
)
GOOD_TEXTS = words.filter(lambda word: is_utf8(word.encode("utf-8", "surrogateescape")))
GOOD_VALUES = {
    "user": GOOD_TEXTS,
    "age": st.sampled_from(["", "0", "31", " -4 ", "+5"]),
    "vip": st.sampled_from(["", "0", "1", "true", "FALSE"]),
    "price": st.sampled_from(["", "0", "2.5", "-1e-3", "9e18"]),
    "pairs": st.sampled_from(["", "a:1", "a:1|b:-2.5", "||é:.5|"]),
    "place": st.sampled_from(["", "1|2", " 1.5|-2e3"]),
    "liked": st.sampled_from(["x|y", "|é||z|"]),
    "liked_weights": st.sampled_from(["1|2", "0.5||.25|"]),
    "groups": st.sampled_from(["", "1 2 3", " 4  5"]),
    "unread": words,
}
GOOD_LABELS = {
    "click": st.sampled_from(["0", "1", "", "0.25"]),
    "stars": st.sampled_from(["0", "4", "", "3.0"]),
    "seconds": st.sampled_from(["0", "12.5", "-3"]),
}
SIZES = ["0", "-1", "abc", "", "9" * 17, "9" * 30, "2.0", " 2", "+2", "1e0", "nan", "\udcff"]


@st.composite
def groups(draw):
    """A good group, as columns: of labels lists of entries, of features lists of lists of values, else text."""
    size = draw(st.integers(1, 4))
    columns = [draw(GOOD_TEXTS if column == IMAGE_COLUMN else words) for column in range(NUM_COLUMNS)]
    for name, column in LABEL_COLUMNS.items():
        columns[column] = [draw(GOOD_LABELS[name]) for _ in range(size)]
    columns[FEATURES_COLUMN] = [[draw(GOOD_VALUES[name]) for name in SAMPLE_FIELDS] for _ in range(size)]
    columns[SIZE_COLUMN] = str(size)
    return columns


def damage(draw, columns):
    """Change one thing."""
    labels = columns[draw(st.sampled_from(list(LABEL_COLUMNS.values())))]
    samples = columns[FEATURES_COLUMN]
    kind = draw(st.sampled_from(["column", "label entry", "sample", "value", "size", "label", "word", "shift", "move"]))
    drop = draw(st.booleans())

    def drop_or_add(items, item):
        if drop and items:
            del items[draw(st.integers(0, len(items) - 1))]
        else:
            items.insert(draw(st.integers(0, len(items))), item)

    if kind == "column":
        drop_or_add(columns, draw(words))
    elif kind == "label entry":
        drop_or_add(labels, "1")
    elif kind == "sample":
        drop_or_add(samples, list(draw(st.sampled_from(samples))))
    elif kind == "size":
        columns[SIZE_COLUMN] = draw(st.sampled_from([*SIZES, str(len(samples) + 1), str(len(samples) - 1)]))
    elif kind == "label":
        labels[draw(st.integers(0, len(labels) - 1))] = draw(words)
    else:
        row = draw(st.integers(0, len(samples) - 1))
        if kind == "value":
            drop_or_add(samples[row], draw(words))
        elif kind == "word":
            samples[row][draw(st.integers(0, len(samples[row]) - 1))] = draw(words)
        elif kind == "shift":
            samples[row].append(samples[row].pop(0))
        else:
            samples[(row + 1) % len(samples)].insert(0, samples[row].pop())


@st.composite
def lines(draw):
    columns = draw(groups())
    if draw(st.integers(0, 3)):
        damage(draw, columns)
    return text_of(columns)


@given(st.lists(groups(), max_size=5))
@settings(max_examples=60, deadline=None)
def test_good_groups_are_all_kept(good):
    rows = assert_equals_reference([text_of(columns) for columns in good])
    assert rows.kept_groups.tolist() == list(range(len(good)))


@pytest.mark.slow
@given(st.lists(lines(), min_size=1, max_size=6))
@pytest.mark.fuzz
@fuzz(250)
@example([b""])
@example([COLUMNS.encode() * (NUM_COLUMNS - 1)])
def test_kept_groups_and_values_equal_the_reference(some_lines):
    assert_equals_reference(some_lines)


@given(st.lists(st.binary(max_size=40).filter(lambda data: b"\n" not in data), min_size=1, max_size=4))
@pytest.mark.fuzz
@fuzz(60)
def test_arbitrary_bytes_are_refused(some_lines):
    assert_equals_reference(some_lines)


WORD_FIELDS = [name for name in READ if name not in ("liked", "liked_weights")]


@pytest.mark.parametrize("name", [*WORD_FIELDS, *LABEL_COLUMNS])
def test_every_word_in_every_field(name):
    def line(word):
        values = {"liked": "x", "liked_weights": "1"}
        if name in values or name in WORD_FIELDS:
            values[name] = word
        columns = [""] * NUM_COLUMNS
        for label, column in LABEL_COLUMNS.items():
            columns[column] = [word if label == name else "1"]
        columns[FEATURES_COLUMN] = [[values.get(field, "") for field in SAMPLE_FIELDS]]
        columns[SIZE_COLUMN] = "1"
        return text_of(columns)

    # One by one too: together, all values of a field are matched at once.
    assert_equals_reference([line(word) for word in WORDS])
    for word in WORDS:
        assert_equals_reference([line(word), line("")])


def test_no_line():
    rows = PARSE([])
    assert rows.kept_groups.tolist() == []
    assert rows.refused.tolist() == []
    assert {name: len(values) for name, values in rows.fields.items()} == dict.fromkeys([*LABEL_COLUMNS, *READ], 0)
