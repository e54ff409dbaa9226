"""What is looked for: a picture, a text or both, which an image model embeds, or an item of the store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.store import Generation, State, Store
from easyrec_mm.store.records import NO_CONTENT
from easyrec_mm.store.search import Query
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.schema import Image

_MOST_CHARACTERS = 100_000


@dataclass(frozen=True)
class Sought:
    """The query of a search: an item of the store, or what an image model embeds.

    key      key of an item of the store; "" if something else is sought
    picture  a path, or the content of a picture file; "" for none
    text     the text of the item, which stands in the first field of the model's text; None for none
    fields   further fields that the image model reads: field -> its text
    """

    key: str = ""
    picture: str | bytes = ""
    text: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_embedded(self) -> bool:
        """Return whether an image model has to embed it."""
        return bool(self.picture or self.text is not None or (self.fields and not self.key))


def query_of_key(key: str, store: Store, generation: Generation) -> Query:
    """Return the query for an item of a store.

    Raises:
      UserError: if the store has no vector of it.
    """
    vectors = store.get_many([key], generation)
    if vectors.states[0] != State.PRESENT:
        reason = "is an invalid picture, without a vector" if vectors.states[0] == State.ABSENT else "is not"
        raise UserError(f"--key {key}: {reason} in the store {store.uri}; see easyrec-mm store stat")
    return Query(vectors.vectors[0], store.hashes(generation, [key])[0] or NO_CONTENT, key)


class Encoder:
    """Embeds queries.

    Args:
      folder: an exported image model.
      vector_stores: feature -> URI of the store of its vectors, if it differs from that in the config.

    Raises:
      ExportError: if the folder contains no image model.
      StoreError: if a store of vectors cannot be reached.
    """

    def __init__(self, folder: str, vector_stores: Mapping[str, str]) -> None:
        import_tensorflow()
        from easyrec_mm.data.picture_reader import PictureReader
        from easyrec_mm.embedding.image_model import PictureEmbedder

        self._folder = folder
        self._embedder = PictureEmbedder(folder, vector_stores)
        self._reader = PictureReader()
        schema = self._embedder.schema
        self.takes_pictures = schema.uses_image
        self.takes_texts = schema.text is not None
        self.needs_picture = schema.uses_image and not (schema.contents and schema.has_no_image_vector)

    def require_origin(self, generation: Generation | None, store: str) -> None:
        """Check that the vectors of a generation are of this model.

        Raises:
          UserError: if they are not.
        """
        fingerprint = self._embedder.fingerprint
        if generation is not None and generation.fingerprint != fingerprint:
            raise UserError(
                f"--img_model_dir {self._folder}: is image tower {fingerprint[:12]}, but "
                f"generation {generation.number} of {store} is of {generation.fingerprint[:12]}; give the model that "
                "computed these vectors"
            )

    def query(self, sought: Sought) -> Query:
        """Embed what is sought.

        Raises:
          UserError: if the picture cannot be read, or the model takes something else.
        """
        from easyrec_mm.embedding.embed import hash_of_item

        texts = self._texts(sought)
        values = self._values(texts)
        contents = self._contents(sought.picture) if sought.picture else []
        if contents:
            (vector,) = self._embedder.embed([contents], values)
            if vector is None:
                reason = _problem_of(contents[0], self._embedder.schema.image)
                raise UserError(f"--picture{_named(sought.picture)}: cannot be read as a picture{reason}")
        elif self.needs_picture:
            advice = "give --picture, too"
            if self._embedder.schema.contents:
                advice += "; a model whose img_model has no_image_vector: true would do without"
            raise UserError(f"the image model {self._folder} needs a picture; {advice}")
        elif not self._embedder.is_without_picture([texts[name] for name in self._embedder.fields]):
            what = "--text: is empty; give some words" if self.takes_texts else "the query is empty; give some --field"
            raise UserError(f"{what}, or a picture")
        else:
            vector = self._embedder.embed_without_picture(values)[0]
        has_others = not contents
        return Query(vector, hash_of_item(contents, [texts[name] for name in self._embedder.fields], has_others))

    @property
    def _text_fields(self) -> tuple[str, ...]:
        text = self._embedder.schema.text
        return () if text is None else text.inputs

    def _contents(self, picture: str | bytes) -> list[bytes]:
        """Return the contents of the query's pictures; at least one."""
        if not self.takes_pictures:
            raise UserError(
                f"--picture: the image model {self._folder} takes texts alone; leave the picture out, and give --text"
            )
        if isinstance(picture, bytes):
            return [picture]
        paths = [os.fsencode(path) for path in self._embedder.paths(picture)]
        contents, problems = self._reader.read(paths, self._embedder.schema.image.max_pixels)
        read = [content for row, content in enumerate(contents) if row not in problems]
        if not read:
            reason = f": {next(iter(problems.values()))}" if problems else ""
            raise UserError(f"--picture {picture}: cannot be read as a picture{reason}")
        return read

    def _texts(self, sought: Sought) -> dict[str, str]:
        """Return the texts of all fields that the model reads; those of the item's contents may be missing."""
        names, texts = self._embedder.fields, dict(sought.fields)
        for name in texts:
            if name not in names:
                raise UserError(f"--field {name}: the image model takes no such field; {did_you_mean(name, names)}")
        if sought.text is not None:
            if not self.takes_texts:
                raise UserError(
                    f"--text: the image model {self._folder} takes no text; give a picture, or a model of items with "
                    "a text (TextFeature)"
                )
            if self._text_fields[0] in texts:
                raise UserError(f"--text: is the field '{self._text_fields[0]}', which --field has, too; give it once")
            texts[self._text_fields[0]] = sought.text
        contents = self._embedder.schema.contents.values()
        texts = dict.fromkeys((name for feature in contents for name in feature.inputs), "") | texts
        for name in names:
            if name not in texts:
                raise UserError(f"the image model also takes '{name}'; give it with --field {name}=VALUE")
            if len(texts[name]) > _MOST_CHARACTERS:
                raise UserError(f"'{name}' has more than {_MOST_CHARACTERS} characters; give a shorter text")
        return texts

    def _values(self, texts: Mapping[str, str]) -> dict[str, Sequence[Any]]:
        values: dict[str, Sequence[Any]] = {}
        for name in self._embedder.fields:
            field_of_name = self._embedder.schema.field(name)
            try:
                texts[name].encode()
                values[name] = [field_of_name.value(texts[name])]
            except UnicodeEncodeError as error:
                raise UserError(f"'{name}': the text is not UTF-8; give it in UTF-8") from error
            except ValueError as error:
                raise UserError(
                    f"--field {name}={texts[name]}: not a value of type {field_of_name.dtype}; correct it"
                ) from error
        return values


def _named(picture: str | bytes) -> str:
    return "" if isinstance(picture, bytes) else f" {picture}"


def _problem_of(content: bytes, image: Image) -> str:
    """Return why a picture is not good, to follow "cannot be read as a picture"."""
    from easyrec_mm.data.whole_pictures import decode_whole

    try:
        decode_whole(content, image)
    except ValueError as error:
        return f": it {error}"
    return ""
