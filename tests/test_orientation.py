"""EXIF's orientation in any arrangement of a file's parts, against a plain reader in Python."""

import struct
from functools import lru_cache

import tensorflow as tf
from decode_helpers import png_chunk
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.data.picture_bytes import FileBytes


@lru_cache
def reader(kind):
    def orientation(data):
        file = FileBytes(data)
        exif = {"jpeg": file.exif_of_jpeg, "png": lambda: file.exif_of_png()[0], "webp": file.exif_of_webp}[kind]()
        return file.orientation(exif)

    return tf.function(orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def expected(tiff):
    """The orientation that a TIFF block states in its first directory; 1 without a valid one."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    start = struct.unpack_from(f"{order}I", tiff, 4)[0]
    if start + 2 > len(tiff):
        return 1
    for number in range(struct.unpack_from(f"{order}H", tiff, start)[0]):
        place = start + 2 + 12 * number
        if place + 12 > len(tiff):
            break
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, place)
        if (tag, kind, count) == (0x0112, 3, 1):
            return value if 1 <= value <= 8 else 1
    return 1


@st.composite
def tiffs(draw):
    """TIFF blocks: mostly whole ones, the orientation among other entries, in some form, at some place."""
    order = draw(st.sampled_from("<>"))
    entries = draw(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 12), st.integers(0, 5)), max_size=6))
    kind, count = draw(st.sampled_from([(3, 1)] * 6 + [(4, 1), (3, 2), (1, 1)]))
    entries.insert(draw(st.integers(0, len(entries))), (0x0112, kind, count))
    value = draw(st.sampled_from([*range(10), 300]))
    gap = draw(st.sampled_from([0, 0, 1, 40, 5000]))
    block = {"<": b"II*\x00", ">": b"MM\x00*"}[order] + struct.pack(f"{order}I", 8 + gap) + b"\x12\x01" * (gap // 2)
    block = block.ljust(8 + gap, b"x") + struct.pack(f"{order}H", len(entries))
    for tag, entry_kind, entry_count in entries:
        block += struct.pack(f"{order}HHIHH", tag, entry_kind, entry_count, value, 0)
    # The next directory, of a thumbnail, has another orientation.
    block += struct.pack(f"{order}I", len(block) + 4) + struct.pack(f"{order}HHHIHH", 1, 0x0112, 3, 1, 5, 0)
    return block[: draw(st.integers(0, len(block)))] if draw(st.integers(0, 9)) == 0 else block


def segment(marker, payload):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(payload) + 2) + payload


PAYLOADS = st.binary(max_size=60) | st.just(b"Exif\x00\x00II*\x00")
OTHERS = st.tuples(st.sampled_from([0xE0, 0xE2, 0xED, 0xEE, 0xFE]), PAYLOADS) | st.just((0xE1, b"http://ns.adobe.com"))


@settings(max_examples=150, deadline=None)
@given(tiffs(), st.lists(OTHERS, max_size=4), st.integers(0, 3), st.booleans())
def test_jpeg(tiff, others, num_fills, has_exif):
    data = b"\xff\xd8" + b"".join(segment(*other) for other in others)
    data += b"\xff" * num_fills + segment(0xE1, b"Exif\x00\x00" + tiff) if has_exif else b""
    data += segment(0xDB, bytes(65)) + segment(0xE1, b"Exif\x00\x00MM\x00*")  # behind the first table: too late
    assert reader("jpeg")(data).numpy() == (expected(tiff) if has_exif else 1)


@settings(max_examples=100, deadline=None)
@given(tiffs(), st.lists(st.sampled_from([b"tEXt", b"IDAT", b"tRNS", b"iCCP"]), max_size=5), st.integers(0, 5))
def test_png(tiff, chunks, place):
    parts = [png_chunk(kind, b"eXIf" * 3) for kind in chunks]
    parts.insert(place, png_chunk(b"eXIf", tiff))
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", bytes(13)) + b"".join(parts) + png_chunk(b"IEND", b"")
    assert reader("png")(data).numpy() == expected(tiff)


@settings(max_examples=100, deadline=None)
@given(tiffs(), st.lists(st.binary(max_size=9), max_size=4), st.integers(0, 4), st.booleans())
def test_webp(tiff, chunks, place, has_identifier):
    parts = [b"XMP " + struct.pack("<I", len(chunk)) + chunk + b"\x00" * (len(chunk) % 2) for chunk in chunks]
    content = b"Exif\x00\x00" * has_identifier + tiff
    parts.insert(place, b"EXIF" + struct.pack("<I", len(content)) + content + b"\x00" * (len(content) % 2))
    assert reader("webp")(b"RIFF\x00\x00\x00\x00WEBP" + b"".join(parts)).numpy() == expected(tiff)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["jpeg", "png", "webp"]), st.binary(max_size=200))
def test_any_bytes_have_some_orientation(kind, data):
    starts = {
        "jpeg": b"\xff\xd8\xff\xe1\x00\xf0Exif\x00\x00MM\x00*",
        "png": b"\x89PNG\r\n\x1a\n",
        "webp": b"RIFF1234WEBP",
    }
    assert 1 <= reader(kind)(starts[kind] + data).numpy() <= 8
