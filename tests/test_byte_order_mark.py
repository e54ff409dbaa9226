"""Files that begin with the mark of the byte order, as some editors and Excel write UTF-8: read as without it."""

import pytest
from text_input_helpers import flat, input_of, line, users, write

from easyrec_mm.formats.rtp import BOM

LINES = [line(["a", "b"]), line(["c"]), line(["d", "e"])]


@pytest.mark.parametrize("training", [False, True])
def test_grouped_text(tmp_path, training):
    plain = write(tmp_path / "plain", LINES)
    marked = tmp_path / "marked"
    marked.write_bytes(BOM + plain.read_bytes())
    inputs = input_of(marked, training=training, shuffle=False, batch_size=2)
    assert users(inputs.batches()) == users(input_of(plain, training=training, shuffle=False, batch_size=2).batches())
    texts = [[group.values["user"] for *_, group in input_of(path).source.texts()] for path in (plain, marked)]
    assert texts[0] == texts[1]
    # One within the data is data: here a label that is not a number.
    middle = write(tmp_path / "middle", [LINES[0], BOM + LINES[1], LINES[2]])
    assert flat(users(input_of(middle).batches())) == ["a", "b", "d", "e"]
