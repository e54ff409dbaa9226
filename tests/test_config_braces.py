"""A brace that is missing or too many is reported where it is, not where its consequences show."""

import re

import pytest
from reference import reference_config

from easyrec_mm.config.text import parse_config
from easyrec_mm.errors import ConfigError

LINES = reference_config().split("\n")
ALONE = [i for i, line in enumerate(LINES) if line.strip() == "}"]


def error_of(lines):
    with pytest.raises(ConfigError) as caught:
        parse_config("\n".join(lines), "x.config")
    (message,) = str(caught.value).split("\n")
    return message


def line_of(message):
    return int(re.match(r"x\.config:(\d+):\d+: ", message)[1])


@pytest.mark.parametrize("index", ALONE)
def test_a_missing_brace(index):
    message = error_of(LINES[:index] + LINES[index + 1 :])
    after = next((i for i in range(index, len(LINES) - 1) if LINES[i + 1].strip()), len(LINES) - 2)
    assert line_of(message) == after + 1
    opener = next(i for i in reversed(range(index)) if LINES[i].index(LINES[i].strip() or "") == LINES[index].index("}")
                  and LINES[i].rstrip().endswith("{"))  # fmt: skip
    name = re.match(r"\s*(\w+)", LINES[opener])[1]
    assert re.search(r"a '}' is missing before this", message)
    assert f"'{name}' of line {opener + 1} is still open" in message


@pytest.mark.parametrize("index", ALONE)
def test_a_brace_too_many(index):
    message = error_of(LINES[: index + 1] + LINES[index:])
    assert line_of(message) in (index + 1, index + 2)
    assert "a '}' too many" in message


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        # All in one line, where no indentation helps.
        (
            'input_name: "comment" input_type: INT32 default_val: "0" }', 'input_name: "comment" input_type: INT32',
            'input_fields { input_name: "share"', "'input_fields' is a setting of DatasetConfig, but 'input_fields' of",
        ),
        ("model_config {", "model_config", "model_class", "a '{' is missing after 'model_config'"),
    ],
)  # fmt: skip
def test_braces_within_a_line(old, new, place, says):
    text = reference_config((old, new))
    message = error_of(text.split("\n"))
    assert line_of(message) in (
        text[: text.index(place)].count("\n") + 1, text[: text.index(new)].count("\n") + 1
    )  # fmt: skip
    assert says in message


def test_a_name_of_another_block_is_only_unknown_where_the_braces_agree():
    text = reference_config(("    bottom_dnn {", "    bottom_dnn {\n      batch_size: 3"))
    assert "DNN has no field 'batch_size'" in error_of(text.split("\n"))
