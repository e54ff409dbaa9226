"""A config that was changed at random loads, or is refused in plain words; it never ends in another error."""

import json
import re

import pytest
from fuzz_helpers import fuzz
from hypothesis import given
from hypothesis import strategies as st
from reference import reference_config, write_config

from easyrec_mm.config.overrides import parse_edits
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError

LINES = reference_config().split("\n")
# What stands in the place of a value, a name or a line: of another type, out of range, of another language or broken.
PIECES = (
    "0", "-1", "1e999", "nan", "inf", "18446744073709551615", "18446744073709551616", "2000000000", "1.5", "true", '""',
    '"a"', "'\\000'", '"\\xff"', '"☃"', '"\\001"', "{", "}", "<", ">", "[", "]", "[]", "[1, 2]", "{}", ":", ",", "#",
    "ADAM", "IdFeature", "SequenceFeature", "RawFeature", "ImgFeature", "sequence_length", "ev_params { a: 1 }",
    "max_f1 {}", "shared_names", "features", "task_towers", "model_config {", "\x00", "\udcff", "\u202e",
)  # fmt: skip
ROW = st.integers(0, len(LINES) - 1)
MUTATION = st.one_of(
    st.tuples(st.just("delete"), ROW, st.just("")),
    st.tuples(st.just("repeat"), ROW, st.just("")),
    st.tuples(st.just("swap"), ROW, st.just("")),
    st.tuples(st.just("value"), ROW, st.sampled_from(PIECES)),
    st.tuples(st.just("name"), ROW, st.sampled_from(PIECES)),
    st.tuples(st.just("insert"), ROW, st.sampled_from(PIECES) | st.text(max_size=4)),
)


def mutated(mutations):
    lines = list(LINES)
    for kind, row, piece in mutations:
        row %= len(lines)
        if kind == "delete" and len(lines) > 1:
            del lines[row]
        elif kind == "repeat":
            lines.insert(row, lines[row])
        elif kind == "swap":
            lines[row], lines[row - 1] = lines[row - 1], lines[row]
        elif kind == "value":
            lines[row] = re.sub(r":.*", lambda match, piece=piece: f": {piece}", lines[row])
        elif kind == "name":
            lines[row] = re.sub(r"\w+", lambda match, piece=piece: piece, lines[row], count=1)
        else:
            lines[row] += piece
    return "\n".join(lines)


@pytest.mark.fuzz
@fuzz(150)
@given(mutations=st.lists(MUTATION, min_size=1, max_size=4), ignores=st.booleans())
def test_a_mutated_config_loads_or_is_refused_with_the_place(tmp_path, mutations, ignores):
    text = mutated(mutations).encode("utf-8", "surrogatepass")
    path = write_config(tmp_path, "")
    with open(path, "wb") as file:
        file.write(text)
    message = ""
    try:
        load_pipeline(path, ignore_unsupported=ignores)
    except ConfigError as error:
        message = str(error)
    # A place, what is wrong, and nothing of Python's own words for it.
    lines = message.split("\n") if message else []
    assert all(line.startswith(path) or "setting(s) of EasyRec's language" in line for line in lines)
    assert not re.search(r"Traceback|object at 0x|NoneType|has no attribute", message)


PATHS = st.sampled_from(
    [
        "train_config.num_steps", "train_config", "data_config.label_fields", "data_config.label_fields[1]",
        "feature_config.features[:].embedding_dim", "feature_config.features[input_names=city].hash_bucket_size",
        "feature_config.features[embedding_dim>=8].embedding_dim", "train_config.protocol", "data_config.ignore_error",
        "model_config.e2e_mm_dbmtl.task_towers[tower_name=play_time].weight", "", "a", "a[", "a]", "[", "a[b=c", "..",
        "feature_config.features[-1]", "feature_config.features[1:3].separator", "train_config.optimizer_config[0]",
    ]
)  # fmt: skip
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(PIECES)


@pytest.mark.fuzz
@fuzz(100)
@given(edits=st.dictionaries(PATHS | st.text(max_size=6), VALUES | st.lists(VALUES, max_size=3), max_size=3))
def test_edits_change_the_config_or_are_refused_in_plain_words(tmp_path, edits):
    path = write_config(tmp_path, reference_config())
    try:
        load_pipeline(path, parse_edits(json.dumps(edits)))
    except ConfigError as error:
        assert str(error).startswith((path, "--edit_config_json: "))  # noqa: PT017
