"""Random damage to files: what reads them gives a result or a plain reason, and never anything else."""

import numpy as np
import pytest
from decode_helpers import WIDE, encode, picture
from flow_helpers import make_data
from fuzz_helpers import fuzz
from hypothesis import given
from hypothesis import strategies as st
from input_helpers import WRITERS, config_of, read_groups

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.data.pictures import PictureLoader
from easyrec_mm.errors import UserError
from easyrec_mm.formats.checks import Problem

pytestmark = pytest.mark.fuzz

PICTURES = {
    "JPEG": encode(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
    "progressive JPEG": encode(picture(), "JPEG", progressive=True),
    "PNG": encode(picture(mode="RGBA"), "PNG"),
    "palette PNG": encode(picture(mode="P"), "PNG", transparency=3),
    "GIF": encode(picture(mode="P"), "GIF"),
    "BMP": encode(picture(), "BMP"),
    "WebP": encode(picture(mode="RGBA"), "WEBP"),
    "AVIF": encode(picture(), "AVIF"),
}


@st.composite
def damaged(draw, content):
    """The content with bytes that are changed, inserted, left out or repeated, mostly near its beginning."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        limit = draw(st.sampled_from([16, 64, 512, len(data)]))
        place = draw(st.integers(0, max(0, min(limit, len(data)) - 1)))
        end = place + draw(st.integers(1, 8))
        change = draw(st.sampled_from(["change", "insert", "leave out", "repeat", "cut"]))
        if change == "change":
            data[place:end] = draw(st.binary(min_size=end - place, max_size=end - place))
        elif change == "insert":
            data[place:place] = draw(st.binary(max_size=8) | st.sampled_from([b"\n", b'"', b"\0", b"\xff\xd8\xff\xe1"]))
        elif change == "leave out":
            del data[place:end]
        elif change == "repeat":
            data[place:place] = data[place:end] * draw(st.integers(1, 50))
        else:
            del data[place:]
    return bytes(data)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name):
    """A picture is decoded the same alone and beside others, or refused with a reason that a user understands."""
    loader = PictureLoader(WIDE)
    good = PICTURES["PNG"]
    expected = loader.decode([good], {}).pixels.numpy()[0]

    @fuzz(100)
    @given(damaged(PICTURES[name]))
    def check(content):
        alone, beside = loader.decode([content], {}), loader.decode([good, content], {})
        assert alone.pixels.shape == (1, WIDE.height, WIDE.width, 3)
        np.testing.assert_array_equal(beside.pixels[0], expected)
        np.testing.assert_array_equal(beside.pixels[1], alone.pixels[0])
        assert {row + 1: reason for row, reason in alone.problems.items()} == beside.problems
        for reason in alone.problems.values():
            assert not any(word in reason for word in ("Error", "node", "Graph", "Traceback", "{{", " at 0x"))

    check()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """input_type -> (config, content of a file of six groups)."""
    folder = tmp_path_factory.mktemp("fuzz")
    data = make_data(folder)
    source = next(iter(sorted((data / "train").iterdir())))
    groups = read_groups(source)[:6]
    made = {}
    for kind, write in WRITERS.items():
        (folder / f"{kind}.config").write_text(config_of(kind))
        write(folder / kind, groups)
        made[kind] = load_pipeline(str(folder / f"{kind}.config")), (folder / kind).read_bytes()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_tables_and_records(files, kind, tmp_path):
    """Every group of a damaged file is read, or left out with a place and a reason, or the file is refused."""
    pipeline, content = files[kind]
    path = tmp_path / "data"

    @fuzz(100)
    @given(damaged(content))
    def check(data):
        path.write_bytes(data)
        try:
            inputs = Input(pipeline.config.data_config, pipeline.schema, str(path), "input", BadRecords(None, 1.0))
            groups = list(inputs.source.texts())
        except UserError:
            return
        for file, row, group in groups:
            assert file == str(path)
            assert row >= 1
            assert isinstance(group, Problem) or all(len(texts) == group.size for texts in group.values.values())

    check()
