"""Lines of text are refused where training refuses them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from data_helpers import group_line, schema
from grouped_helpers import FIELDS, typed
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.errors import DataError
from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.grouped_table import GroupFields
from easyrec_mm.formats.rtp import read_rtp
from easyrec_mm.formats.rtp_graph import GroupRtpSource
from easyrec_mm.formats.source import Order
from easyrec_mm.formats.typed_groups import TypedGroups
from easyrec_mm.schema import RowLayout

LABELS = {"click": "int64", "seconds": "float32"}
SAMPLE = {"user": "string", "age": "int64", "vip": "bool", "weight": "float32"}
SCHEMA = schema(LABELS, SAMPLE, separators=("|", "\x01", "\x02"))
RTP_FIELDS = GroupFields(
    {"click": "int64", "seconds": "float32", "user": "string", "age": "int64", "vip": "bool", "weight": "float32",
     "img_path": "string"},
    ("click", "seconds"), "img_path", "group_size", frozenset({"img_path"}), {},
)  # fmt: skip
NUMBER = st.sampled_from(["0", "1", "-3", "+4", " 5", "0.5", "1e3", "x", "", "nan", "1e99", "00", "9" * 18, "9" * 19])
BOOL = st.sampled_from(["0", "1", "true", "FALSE", "", "2", "yes"])


@st.composite
def lines(draw):
    """A line, good or with mistakes of every sort."""
    size = draw(st.integers(1, 3))
    labels = [[draw(st.sampled_from(["0", "1", "1.0", "x", "2", ""])) for _ in range(size)]]
    labels.append([draw(NUMBER) for _ in range(size + draw(st.sampled_from([0, 0, 0, 0, 1])))])
    samples = []
    for _ in range(size + draw(st.sampled_from([0, 0, 0, 0, 1]))):
        sample = [draw(st.sampled_from(["", "u", "ü"])), draw(NUMBER), draw(BOOL), draw(NUMBER)]
        samples.append(sample + ["more"] * draw(st.sampled_from([0] * 8 + [1])))
    stated_size = draw(st.sampled_from([size] * 8 + [size + 1, 0, "x", ""]))
    line = group_line(labels, samples, "p.jpg", stated_size).replace(b";", b"|")
    return line + draw(st.sampled_from([b""] * 8 + [b"|more", b"\r"]))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(lines(), min_size=1, max_size=4))
def test_lines_of_text_are_refused_where_training_refuses_them(drawn_lines):
    good = group_line([["1"], ["0"]], [["u", "1", "1", "1"]], "p.jpg").replace(b";", b"|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.txt")
        path.write_bytes(b"\n".join([good, *drawn_lines, good, good, good, good]) + b"\n")
        source = GroupRtpSource(DataFiles(str(path), "input"), SCHEMA, tuple(LABELS), tuple(SAMPLE), Order(False, 0, 1))
        trained = {row: group for _, row, group in source.texts()}
        refused, accepted = {}, {}
        groups = TypedGroups(SCHEMA, tuple(LABELS), tuple(SAMPLE), is_exact=True)
        for piece in read_rtp(str(path), RTP_FIELDS, groups):
            refused |= {refusal.row: Problem(refusal.where, refusal.problem) for refusal in piece.refused}
            starts = np.cumsum(piece.groups.size) - piece.groups.size
            for row, start, size in zip(piece.rows.tolist(), starts.tolist(), piece.groups.size.tolist(), strict=True):
                accepted[row] = {
                    name: piece.groups.samples(name, RTP_FIELDS).to_pylist()[start : start + size] for name in KEPT
                }
    assert refused.keys() | accepted.keys() == trained.keys()
    for row, group in trained.items():
        if isinstance(group, Problem):
            assert refused[row] == group
        elif row in accepted:
            expected = {name: [value(name, text) for text in group.values[name]] for name in KEPT}
            assert accepted[row] == expected
        else:
            # A label of an INT field that is not whole trains, and no typed column can hold it.
            assert row in refused
            assert any(float(text or 0) % 1 for text in group.values["click"])


KEPT = ("user", "age", "vip", "weight", "click", "seconds")


def value(name, text):
    """What training makes of a text; None of an empty one."""
    if not text:
        return None
    kind = {**LABELS, **SAMPLE}[name]
    if kind == "bool":
        return text.lower() in ("1", "true")
    return {"string": str, "int64": lambda t: int(float(t)) if name == "click" else int(t)}.get(
        kind, lambda t: float(np.float32(t))
    )(text)


def test_values_of_single_bytes(tmp_path):
    """The empty separator splits into bytes, as in EasyRec."""
    fields = GroupFields(
        {"click": "int64", "a": "string", "b": "int64", "img": "string"}, ("click",), "img", "n", frozenset({"img"}), {}
    )
    (tmp_path / "a").write_bytes(b"0;1,0;x1,y2;p;2\n1;1;xyz;p;1\n")
    layout = RowLayout((1,), 2, 3, 4, (), ";", ",", "")
    (piece,) = read_rtp(str(tmp_path / "a"), fields, typed(fields, layout))
    assert piece.groups.columns["a"].to_pylist() == ["x", "y"]
    assert piece.groups.columns["b"].to_pylist() == [1, 2]
    assert [(refusal.row, refusal.problem) for refusal in piece.refused] == [(2, "3 values, not 2")]


def test_lines_with_too_few_columns(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0|1\n")
    with pytest.raises(
        DataError, match=r"a.txt: lines have 2 column\(s\), and data_config.selected_cols reads column 4"
    ):
        list(read_rtp(str(tmp_path / "a.txt"), FIELDS, typed(FIELDS)))
