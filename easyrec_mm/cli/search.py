"""`easyrec-mm search`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from easyrec_mm.api.searching import Sought, find
from easyrec_mm.cli import flags as f
from easyrec_mm.console import tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.files import join
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.store.search import Index, Neighbour

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
    if not (flags.image or flags.key or flags.eval):
        raise UserError("give what to look for: --image with --img_model_dir, or --key, or --eval with labels")
    fields = dict(text.partition("=")[::2] for text in flags.field)
    sought = Sought(flags.image or "", flags.key or "", flags.img_model_dir or "", fields)
    index, nearest = find(flags.store, sought, flags.top_k, flags.similarity, flags.index)
    if index.kind != "exact":
        recall = index.recall(flags.top_k)
        print(f"{index.kind} index of {len(index.keys)} vectors; recall@{flags.top_k} {recall:.4f}")
    about = _about(index)
    print("\n".join(about))
    if flags.image or flags.key:
        _show(nearest)
        if flags.html:
            _write_page(flags, nearest, about)
    if flags.eval:
        from easyrec_mm.store.search import evaluate

        result = evaluate(index, flags.eval, flags.top_k)
        lines = [f"recall@{k}  {recall:.4f}" for k, recall in result.recall.items()] + [f"mMP@5  {result.mmp:.4f}"]
        lines.append(
            f"{result.num_queries} queries; {result.num_alone} items whose label no other item has, "
            f"{result.num_missing} items of {flags.eval} not in the store"
        )
        tell_result("\n".join(lines), **asdict(result))
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
    lines = [f"{'rank':>4}  {'cosine':>9}  {'distance':>9}  key"]
    for rank, neighbour in enumerate(nearest, 1):
        duplicate = f"  ({neighbour.duplicate})" if neighbour.duplicate else ""
        lines.append(f"{rank:>4}  {neighbour.cosine:>9.6f}  {neighbour.distance:>9.4g}  {neighbour.key}{duplicate}")
    tell_result("\n".join(lines), nearest=[neighbour._asdict() for neighbour in nearest])


def _write_page(flags: f.Flags, nearest: list[Neighbour], about: list[str]) -> None:
    from easyrec_mm.store.search import write_page

    query, query_path = flags.image or flags.key, flags.image or join(flags.image_root, flags.key)
    write_page(flags.html, query, query_path, nearest, flags.image_root, about, _thumbnail)
    print(f"written: {flags.html}")


def _thumbnail(content: bytes) -> bytes | None:
    import_tensorflow()
    from easyrec_mm.data.whole_pictures import decode_whole, thumbnail
    from easyrec_mm.store.search import THUMBNAIL

    try:
        return thumbnail(decode_whole(content), THUMBNAIL)
    except ValueError:
        return None
