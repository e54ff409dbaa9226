"""Finds the items whose pictures are nearest to a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.options import path_text, require_choice
from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.ranges import POSITIVE
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    import pandas as pd

    from easyrec_mm.embedding.image_model import PictureEmbedder
    from easyrec_mm.store import Generation, Store
    from easyrec_mm.store.search import Index, IndexKind, Neighbour, Query
    from easyrec_mm.store.similarity import SimilarityName


@dataclass(frozen=True)
class Sought:
    """The query of a search: a picture with the image model of the store's vectors, or an item of the store.

    fields  what the image model reads besides the picture: field -> its text
    """

    image: str = ""
    key: str = ""
    img_model_dir: str = ""
    fields: Mapping[str, str] | None = None


def search(
    store: str,
    *,
    key: str | int = "",
    image: str | os.PathLike[str] = "",
    img_model_dir: str | os.PathLike[str] = "",
    fields: Mapping[str, str] | None = None,
    top_k: int = 12,
    similarity: SimilarityName = "centred",
    index: IndexKind = "auto",
) -> pd.DataFrame:
    """Return the items nearest to a picture or to an item, nearest first, as `easyrec-mm search` prints them.

    Args:
      store: URI of the store.
      key: key of an item in the store; or
      image: a picture, and
      img_model_dir: folder of the image model that computed the store's vectors.
      fields: what the image model reads besides the picture: field -> its text.
      top_k: how many items to find.
      similarity: "centred": cosine of the vectors less the mean of all; "whitened": also with the same variance in all
        directions; "cosine": as they are stored.
      index: "exact", "hnsw", "ivf", or "auto": exact up to a million items, ivf above.

    Returns:
      Columns key, cosine (by the similarity), distance (of the vectors as they are stored), and duplicate: what the
      item is equal to, or "".

    Raises:
      UserError: if the key, the picture, the model or the store cannot be used.
    """
    import pandas as pd

    from easyrec_mm.store.search import IndexKind, Neighbour
    from easyrec_mm.store.similarity import SimilarityName

    require_choice(similarity, SimilarityName, "search: similarity")
    require_choice(index, IndexKind, "search: index")
    # The key of an item in a store is a text; in a log it may be a number.
    key = str(key)
    if bool(key) == bool(image):
        raise UserError("search: give what to look for: key, or image with img_model_dir")
    if fields is not None and not isinstance(fields, Mapping):
        raise UserError(f"search: fields: is {fields!r}; give a dict of fields and their texts")
    top_k = POSITIVE.checked(top_k, "search: top_k")
    picture, folder = path_text(image, "search: image"), path_text(img_model_dir, "search: img_model_dir")
    sought = Sought(picture, key, folder, fields)
    _, nearest = find(path_text(store, "search: store"), sought, top_k, similarity, index)
    return pd.DataFrame(nearest, columns=list(Neighbour._fields))


def find(
    uri: str, sought: Sought, top_k: int, similarity: SimilarityName = "centred", kind: IndexKind = "auto"
) -> tuple[Index, list[Neighbour]]:
    """Return the index of a store's current vectors, and what is nearest; nothing if nothing is sought.

    Raises:
      UserError: if what is sought does not exist, or the store cannot be used.
    """
    from easyrec_mm.store import open_store
    from easyrec_mm.store.generations import require_generation
    from easyrec_mm.store.search import neighbours, read_index

    with closing(open_store(uri)) as store:
        # The query comes first, so that a wrong key, path or model is reported before a large store is read.
        query = _query_of_picture(sought, store) if sought.image else None
        generation = require_generation(store.meta(), None, store.uri)
        query = _query_of_key(sought.key, store, generation) if sought.key else query
        index = read_index(store, generation, kind, similarity)
        nearest = neighbours(store, generation, index, query, top_k) if query is not None else []
    return index, nearest


def _query_of_key(key: str, store: Store, generation: Generation) -> Query:
    from easyrec_mm.store import State
    from easyrec_mm.store.records import NO_CONTENT
    from easyrec_mm.store.search import Query

    vectors = store.get_many([key], generation)
    if vectors.states[0] != State.PRESENT:
        reason = "is an invalid picture, without a vector" if vectors.states[0] == State.ABSENT else "is not"
        raise UserError(f"--key {key}: {reason} in the store {store.uri}; see easyrec-mm store stat")
    return Query(vectors.vectors[0], store.hashes(generation, [key])[0] or NO_CONTENT, key)


def _query_of_picture(sought: Sought, store: Store) -> Query:
    """Compute the vector of a picture with an image model, which must be that of the store's vectors."""
    if not sought.img_model_dir:
        raise UserError("--image: give the image model with --img_model_dir")
    import_tensorflow()
    from easyrec_mm.data.picture_reader import PictureReader
    from easyrec_mm.embedding.embed import hash_of_item
    from easyrec_mm.embedding.image_model import PictureEmbedder
    from easyrec_mm.store.search import Query

    embedder = PictureEmbedder(sought.img_model_dir)
    generation = store.meta().current_generation
    if generation is not None and generation.fingerprint != embedder.fingerprint:
        raise UserError(
            f"--img_model_dir {sought.img_model_dir}: is image tower {embedder.fingerprint[:12]}, but "
            f"generation {generation.number} of {store.uri} is of {generation.fingerprint[:12]}; give the model that "
            "computed these vectors"
        )
    texts = dict(sought.fields or {})
    values = _field_values(texts, embedder)
    paths = [os.fsencode(path) for path in embedder.paths(sought.image)]
    contents, problems = PictureReader().read(paths, embedder.schema.image.max_pixels)
    read = [content for row, content in enumerate(contents) if row not in problems]
    (vector,) = embedder.embed([read], values)
    if vector is None:
        raise UserError(f"--image {sought.image}: cannot be read as a picture")
    return Query(vector, hash_of_item(read, [texts[name] for name in embedder.fields]))


def _field_values(texts: Mapping[str, str], embedder: PictureEmbedder) -> dict[str, list[Any]]:
    """Return the values of the fields that the image model reads."""
    for name in texts:
        if name not in embedder.fields:
            hint = did_you_mean(name, embedder.fields)
            raise UserError(f"--field {name}: the image model takes no such field; {hint}")
    values: dict[str, list[Any]] = {}
    for name in embedder.fields:
        if name not in texts:
            raise UserError(f"--image: the image model also takes '{name}'; give it with --field {name}=VALUE")
        field = embedder.schema.field(name)
        try:
            values[name] = [field.value(texts[name])]
        except ValueError as error:
            raise UserError(f"--field {name}={texts[name]}: not a value of type {field.dtype}; correct it") from error
    return values
