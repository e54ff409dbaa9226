"""`easyrec-mm search`."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

from easyrec_mm.cli import flags as f
from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.files import join
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from easyrec_mm.embedding.image_model import PictureEmbedder
    from easyrec_mm.store import Store

HELP = "find the items whose pictures are nearest to a picture"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_store_flag(parser)
    add = parser.add_argument
    query = parser.add_mutually_exclusive_group()
    query.add_argument("--image", metavar="F", help="picture to search for; needs --img_model_dir")
    query.add_argument("--key", metavar="K", help="key of an item in the store to search for")
    add(
        "--eval",
        metavar="F",
        help="CSV with the columns key and label; measures how often the nearest items have the same label",
    )
    add("--img_model_dir", metavar="I", help="folder of the exported image model, for --image")
    add(
        "--field",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a field that the image model reads in addition to --image, such as the category; may be repeated",
    )
    add("--top_k", metavar="N", type=f.positive, default=12, help="items to find (default 12)")
    add("--html", metavar="F", help="also show the pictures found on this HTML page")
    f.add_image_root_flag(parser)
    add(
        "--index",
        choices=["auto", "exact", "hnsw", "ivf"],
        default="auto",
        help="auto: exact up to a million items; above that IVF, whose recall is measured and printed",
    )


def run(flags: f.Flags) -> int:
    """Search, and measure how well the nearest fit."""
    from easyrec_mm.store import State, open_store
    from easyrec_mm.store.generations import require_generation
    from easyrec_mm.store.search import evaluate, read_index, write_page

    query = flags.image or flags.key
    if not (query or flags.eval):
        raise UserError("give what to look for: --image with --img_model_dir, or --key, or --eval with labels")
    with closing(open_store(flags.store)) as store:
        # The picture comes first, so that a wrong path or model is reported before a large store is read.
        vector = _vector_of_picture(flags, store) if flags.image else None
        generation = require_generation(store.meta(), None, store.uri)
        index = read_index(store, generation, flags.index)
        if flags.key:
            vectors = store.get_many([flags.key], generation)
            if vectors.states[0] != State.PRESENT:
                reason = "is an invalid picture, without a vector" if vectors.states[0] == State.ABSENT else "is not"
                raise UserError(f"--key {flags.key}: {reason} in the store {store.uri}; see easyrec-mm store stat")
            vector = vectors.vectors[0]
    if index.kind != "exact":
        recall = index.recall(flags.top_k)
        print(f"{index.kind} index of {len(index.keys)} vectors; recall@{flags.top_k} {recall:.4f}")
    if vector is not None:
        neighbours = index.neighbours(vector, flags.top_k, flags.key)
        for rank, neighbour in enumerate(neighbours, 1):
            print(f"{rank:>4}  {neighbour.cosine:.6f}  {neighbour.key}")
        if flags.html:
            query_path = flags.image or join(flags.image_root, flags.key)
            write_page(flags.html, query, query_path, neighbours, flags.image_root, _thumbnail)
            print(f"written: {flags.html}")
    if flags.eval:
        result = evaluate(index, flags.eval, flags.top_k)
        for k, recall in result.recall.items():
            print(f"recall@{k}  {recall:.4f}")
        print(f"mMP@5  {result.mmp:.4f}")
        print(
            f"{result.num_queries} queries; {result.num_alone} items whose label no other item has, "
            f"{result.num_missing} items of {flags.eval} not in the store"
        )
    return 0


def _thumbnail(content: bytes) -> bytes | None:
    import_tensorflow()
    from easyrec_mm.data.whole_pictures import decode_whole, thumbnail
    from easyrec_mm.store.search import THUMBNAIL

    try:
        return thumbnail(decode_whole(content), THUMBNAIL)
    except ValueError:
        return None


def _vector_of_picture(flags: f.Flags, store: Store) -> NDArray[Any]:
    """Compute the vector of --image with --img_model_dir, which must be the model of the store's vectors."""
    if not flags.img_model_dir:
        raise UserError("--image: give the image model with --img_model_dir")
    import_tensorflow()
    from easyrec_mm.data.picture_reader import PictureReader
    from easyrec_mm.embedding.image_model import PictureEmbedder

    embedder = PictureEmbedder(flags.img_model_dir)
    generation = store.meta().current_generation
    if generation is not None and generation.fingerprint != embedder.fingerprint:
        raise UserError(
            f"--img_model_dir {flags.img_model_dir}: is image tower {embedder.fingerprint[:12]}, but "
            f"generation {generation.number} of {store.uri} is of {generation.fingerprint[:12]}; give the model that "
            "computed these vectors"
        )
    fields = _fields(flags.field, embedder)
    paths = [os.fsencode(path) for path in embedder.paths(flags.image)]
    contents, problems = PictureReader().read(paths, embedder.schema.image.max_pixels)
    read = [content for row, content in enumerate(contents) if row not in problems]
    vector: NDArray[Any] | None
    (vector,) = embedder.embed([read], fields)
    if vector is None:
        raise UserError(f"--image {flags.image}: cannot be read as a picture")
    return vector


def _fields(assignments: list[str], embedder: PictureEmbedder) -> dict[str, list[Any]]:
    """Parse the values of --field for the fields that the image model reads."""
    texts = dict(text.partition("=")[::2] for text in assignments)
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
