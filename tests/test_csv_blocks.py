"""CSV is divided into blocks of whole rows, and a row that cannot be read spoils no other."""

import csv
import io
import os
import signal
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.formats import csv_blocks

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(0, 40), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_blocks_of_csv_hold_what_python_reads(rows, more, line_end, ends_with_line_end):
    """Quoted separators, quotes and line ends, at any place of a block; a row is no longer than a block."""
    lines = []
    for row in rows:
        stream = io.StringIO()
        csv.writer(stream, lineterminator=line_end, quoting=csv.QUOTE_ALL).writerow(row)
        lines.append(stream.getvalue().encode())
    data, size = b"".join(lines), max(map(len, lines)) + more
    data = data if ends_with_line_end else data[: -len(line_end)]
    pairs, numbers, num_rows = [], [], 0
    for block in csv_blocks.blocks(io.BytesIO(data), size=size):
        part = csv_blocks.parse(block, ["a", "b"], ",")
        assert part.malformed == []
        pairs += [(row["a"] or "", row["b"] or "") for row in part.table.to_pylist()]
        numbers += (part.number + num_rows).tolist()
        num_rows += part.num_rows
    assert pairs == rows
    assert numbers == list(range(len(rows)))


@pytest.mark.parametrize(
    ("data", "good", "malformed"),
    [
        (b"1,2\n3\n4,5\n6,7,8\n9,0\n", {0: "1", 2: "4", 4: "9"}, [1, 3]),
        (b'1,2\n3,"x\n4,5\n6,7\n', {0: "1", 2: "4", 3: "6"}, [1]),
        (b'1,2\n"3,x\n4,5\n6,7', {0: "1", 2: "4", 3: "6"}, [1]),
        (b'1,5"\n3,4\n', {0: "1", 1: "3"}, []),
        (b'1,"x\r\n3,4\r\n', {1: "3"}, [0]),
        (b'1,"x\n2,"y\n3,4\n', {0: "1", 1: "3"}, []),
        (b'1,"\n"\n', {0: "1"}, []),
        (b'1,"x\ny",2\n3,4\n', {1: "3"}, [0]),
        (b'1,2\n3,"x\ny",2\n', {0: "1"}, [1]),
        (b"1,\xff\n2,\n", {0: b"1", 1: b"2"}, []),
    ],
)
def test_malformed_rows_are_numbered_and_take_no_other_with_them(data, good, malformed):
    rows = csv_blocks.parse(data, ["a", "b"], ",")
    assert dict(zip(rows.number.tolist(), rows.table["a"].to_pylist(), strict=True)) == good
    assert [row for row, _ in rows.malformed] == malformed


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("broken", "values"),
    [
        ('40,"red,x', None),  # in the middle: the rest of the file is one value too few
        ('40,red,"x', None),  # at the end: the row has its three values
        ('"40,red,x', None),
        ('40,red,"x""', None),
        ('40,5" screen,x', {"b": '5" screen'}),
        ('40,"two{}lines",x', {"b": "two{}lines"}),
    ],
)
@pytest.mark.parametrize("later", ["{},blue,y", '{},"blue",y', '{},"a ""blue"" one","{}, {}"'])
@pytest.mark.parametrize("size", [0, 100])
def test_a_quote_that_is_not_closed_spoils_its_own_row_only(line_end, broken, values, later, size):
    """Wherever it stands, whatever quotes follow, in whatever block."""
    lines = [later.format(i, i, i) for i in range(100)]
    good = [next(csv.reader([line])) for line in lines]
    lines[40] = broken.replace("{}", line_end)
    data = "".join(line + line_end for line in lines).encode()
    rows, malformed, first = {}, [], 0
    for block in csv_blocks.blocks(io.BytesIO(data), size=size):
        part = csv_blocks.parse(block, ["a", "b", "c"], ",")
        rows |= dict(zip((part.number + first).tolist(), part.table.to_pylist(), strict=True))
        malformed += [(row + first, reason) for row, reason in part.malformed]
        first += part.num_rows
    assert first == 100
    assert malformed == ([] if values else [(40, "a quote is not closed")])
    row = rows.pop(40, None)
    assert (row and row["b"]) == (values and values["b"].replace("{}", line_end))
    assert [list(row.values()) for row in rows.values()] == good[:40] + good[41:]


def test_a_signal_that_arrives_while_rows_are_parsed_reaches_its_handler():
    block, caught = b"a,b\n" * 1_000_000, []
    former = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        for _ in range(5):
            timer = threading.Timer(0.03, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            assert csv_blocks.parse(block, ["x", "y"], ",").num_rows == 1_000_000
            timer.join()
        until = time.monotonic() + 10
        while len(caught) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert caught == [signal.SIGTERM] * 5
