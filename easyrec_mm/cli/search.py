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
    from easyrec_mm.embedding.image_model import PictureEmbedder
    from easyrec_mm.store import Generation, Store
    from easyrec_mm.store.search import Index, Neighbour, Query

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
        "--similarity",
        choices=["centred", "whitened", "cosine"],
        default="centred",
        help="how vectors are compared: centred (default): the cosine of the vectors less the mean of all; whitened: "
        "also with the same variance in all directions; cosine: as they are stored",
    )
    add(
        "--index",
        choices=["auto", "exact", "hnsw", "ivf"],
        default="auto",
        help="auto: exact up to a million items; above that IVF, whose recall is measured and printed",
    )


def run(flags: f.Flags) -> int:
    """Search, and measure how well the nearest fit."""
    from easyrec_mm.store import open_store
    from easyrec_mm.store.generations import require_generation
    from easyrec_mm.store.search import evaluate, neighbours, read_index

    if not (flags.image or flags.key or flags.eval):
        raise UserError("give what to look for: --image with --img_model_dir, or --key, or --eval with labels")
    nearest = None
    with closing(open_store(flags.store)) as store:
        # The query comes first, so that a wrong key, path or model is reported before a large store is read.
        query = _query_of_picture(flags, store) if flags.image else None
        generation = require_generation(store.meta(), None, store.uri)
        query = _query_of_key(flags.key, store, generation) if flags.key else query
        index = read_index(store, generation, flags.index, flags.similarity)
        if query is not None:
            nearest = neighbours(store, generation, index, query, flags.top_k)
    if index.kind != "exact":
        recall = index.recall(flags.top_k)
        print(f"{index.kind} index of {len(index.keys)} vectors; recall@{flags.top_k} {recall:.4f}")
    about = _about(index)
    print("\n".join(about))
    if nearest is not None:
        _show(nearest)
        if flags.html:
            _write_page(flags, nearest, about)
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


def _about(index: Index) -> list[str]:
    """Say how vectors are compared, and which figures two items that have nothing in common would have."""
    from easyrec_mm.store.similarity import SIMILARITIES, mean_cosine

    similarity, number = index.similarity, len(index.keys)
    lines = [
        f"similarity {similarity.name}: {SIMILARITIES[similarity.name]}; 1 is the same direction, 0 nothing in common. "
        "distance: of the vectors as they are stored; 0 is the same vector"
    ]
    if number == 1:
        return [*lines, "the store holds one vector alone"]
    plain = "" if similarity.name == "cosine" else f" (as they are stored {similarity.plain_cosine:.4f})"
    cosine = f"mean cosine {mean_cosine(iter([index.vectors])):.4f}{plain}"
    return [*lines, f"all pairs of the {number} vectors: {cosine}, root mean square distance {similarity.distance:.4g}"]


def _show(nearest: list[Neighbour]) -> None:
    print(f"{'rank':>4}  {'cosine':>9}  {'distance':>9}  key")
    for rank, neighbour in enumerate(nearest, 1):
        duplicate = f"  ({neighbour.duplicate})" if neighbour.duplicate else ""
        print(f"{rank:>4}  {neighbour.cosine:>9.6f}  {neighbour.distance:>9.4g}  {neighbour.key}{duplicate}")


def _write_page(flags: f.Flags, nearest: list[Neighbour], about: list[str]) -> None:
    from easyrec_mm.store.search import write_page

    query, query_path = flags.image or flags.key, flags.image or join(flags.image_root, flags.key)
    write_page(flags.html, query, query_path, nearest, flags.image_root, about, _thumbnail)
    print(f"written: {flags.html}")


def _query_of_key(key: str, store: Store, generation: Generation) -> Query:
    from easyrec_mm.store import State
    from easyrec_mm.store.records import NO_CONTENT
    from easyrec_mm.store.search import Query

    vectors = store.get_many([key], generation)
    if vectors.states[0] != State.PRESENT:
        reason = "is an invalid picture, without a vector" if vectors.states[0] == State.ABSENT else "is not"
        raise UserError(f"--key {key}: {reason} in the store {store.uri}; see easyrec-mm store stat")
    return Query(vectors.vectors[0], store.hashes(generation, [key])[0] or NO_CONTENT, key)


def _thumbnail(content: bytes) -> bytes | None:
    import_tensorflow()
    from easyrec_mm.data.whole_pictures import decode_whole, thumbnail
    from easyrec_mm.store.search import THUMBNAIL

    try:
        return thumbnail(decode_whole(content), THUMBNAIL)
    except ValueError:
        return None


def _query_of_picture(flags: f.Flags, store: Store) -> Query:
    """Compute the vector of --image with --img_model_dir, which must be the model of the store's vectors."""
    if not flags.img_model_dir:
        raise UserError("--image: give the image model with --img_model_dir")
    import_tensorflow()
    from easyrec_mm.data.picture_reader import PictureReader
    from easyrec_mm.embedding.embed import hash_of_item
    from easyrec_mm.embedding.image_model import PictureEmbedder
    from easyrec_mm.store.search import Query

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
    (vector,) = embedder.embed([read], fields)
    if vector is None:
        raise UserError(f"--image {flags.image}: cannot be read as a picture")
    texts = dict(text.partition("=")[::2] for text in flags.field)
    return Query(vector, hash_of_item(read, [texts[name] for name in embedder.fields]))


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
