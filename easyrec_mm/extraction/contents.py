"""The items of an input, and the contents of their pictures, texts or sounds.

To add a kind of content, add its reader to CONTENTS and its preparation to encoders.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from easyrec_mm.data.packed_pictures import PackedPictures, path_in
from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.sounds import MOST_BYTES
from easyrec_mm.embedding.items import Item, Items, read_items
from easyrec_mm.errors import UserError
from easyrec_mm.extraction.encoders import MAX_PIXELS
from easyrec_mm.extraction.networks import Kind
from easyrec_mm.extraction.plan import Extraction
from easyrec_mm.features.field import Field
from easyrec_mm.features.text_feature import TextFeature
from easyrec_mm.files import join
from easyrec_mm.files.local_copies import local_copies
from easyrec_mm.files.picture_files import read_begin
from easyrec_mm.schema import NO_IMAGE, RowLayout, Schema

# Columns of pictures and texts in lists of lines, which have no columns.
_PATH, _TEXT = "path", "text"
_LINES = ".txt"
# Characters of a text in a list of bad items.
_MOST_SHOWN = 80
# Sounds that are read at a time, most of which wait for a remote place.
_NUM_READS = 16


class Contents(NamedTuple):
    """How items of a kind are read.

    items  an extraction -> its items
    read   items and image_root -> their contents, and row -> why there is none
    """

    items: Callable[[Extraction], Items]
    read: Callable[[Extraction], Callable[[Sequence[Item]], tuple[list[bytes], dict[int, str]]]]


def _files(extraction: Extraction) -> Items:
    key, path = extraction.key_column, extraction.path_column
    schema = _schema(key or path or _PATH, None)
    return read_items(extraction.input, schema, extraction.image_root, key or path or _PATH, path)


def _texts(extraction: Extraction) -> Items:
    columns = extraction.text_column
    if all(part.strip().endswith(_LINES) for part in extraction.input.split(",")):
        # Each line is a text and its own key.
        lines = read_items(extraction.input, _schema(_TEXT, None), "", _TEXT)
        return Items([item._replace(path="", fields=(item.key,)) for item in lines.items], lines.refused)
    for flag, value in (("text_column", columns), ("key_column", extraction.key_column)):
        if not value:
            raise UserError(f"--{flag}: is missing; name a column of {extraction.input}, whose texts are to be encoded")
    text = TextFeature(name=_TEXT, inputs=columns, width=0, is_joined=False)
    items, refused = read_items(extraction.input, _schema("", text), "", extraction.key_column)
    return Items(items, [replace(record, kind="group") for record in refused])


def _schema(image_field: str, text: TextFeature | None) -> Schema:
    """Return the schema of tables of items: every column is a text."""
    fields = tuple(Field(name, "string", "", True) for name in (text.inputs if text else ()))
    return Schema(
        fields=fields,
        labels=(),
        sample_weight=None,
        features=(),
        tables=(),
        image=replace(NO_IMAGE, field=image_field),
        uses_image=bool(image_field),
        group_size_field="",
        layout=RowLayout((), -1, -1, -1, tuple(field.name for field in fields), "\2", "\1", "\1"),
        tasks=(),
        group_fields=tuple(field.name for field in fields),
        text=text,
    )


def _picture_reader(extraction: Extraction) -> Callable[[Sequence[Item]], tuple[list[bytes], dict[int, str]]]:
    reader = PictureReader(extraction.image_root, packed=PackedPictures(local_copies()))

    def read(items: Sequence[Item]) -> tuple[list[bytes], dict[int, str]]:
        paths = [os.fsencode(item.path) for item in items]
        paths = [path_in(item.tar, path) if item.tar else path for item, path in zip(items, paths, strict=True)]
        return reader.read(paths, MAX_PIXELS)

    return read


def _sound_reader(extraction: Extraction) -> Callable[[Sequence[Item]], tuple[list[bytes], dict[int, str]]]:
    pool = ThreadPoolExecutor(_NUM_READS, "sounds")

    def read(items: Sequence[Item]) -> tuple[list[bytes], dict[int, str]]:
        paths = [join(extraction.image_root, item.path) for item in items]
        found = list(pool.map(lambda path: read_begin(path, MOST_BYTES), paths))
        problems = {row: content for row, content in enumerate(found) if isinstance(content, str)}
        return [b"" if isinstance(content, str) else content for content in found], problems

    return read


def _text_reader(extraction: Extraction) -> Callable[[Sequence[Item]], tuple[list[bytes], dict[int, str]]]:
    def read(items: Sequence[Item]) -> tuple[list[bytes], dict[int, str]]:
        return [" ".join(item.fields).encode("utf-8", "surrogateescape") for item in items], {}

    return read


CONTENTS: dict[Kind, Contents] = {
    "image": Contents(_files, _picture_reader),
    "text": Contents(_texts, _text_reader),
    "audio": Contents(_files, _sound_reader),
}


def shown_content(item: Item, kind: Kind) -> str:
    """Return what lists of bad items call the content of an item."""
    if kind != "text":
        return item.path
    text = " ".join(item.fields).strip()
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
