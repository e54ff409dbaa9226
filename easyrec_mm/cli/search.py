"""`easyrec-mm search`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.searching import metadata_of, ranking_of
from easyrec_mm.cli import flags as f
from easyrec_mm.console import tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.files import join
from easyrec_mm.files.written_file import require_folder
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    from easyrec_mm.retrieval.searcher import Hit, Ranking, Searcher
    from easyrec_mm.store.search import Index

HELP = "find the items that are nearest to a picture, a text or another item"
# Signs of a column that are printed at most.
_MOST_SIGNS = 40
# Types of values that JSON has.
_PLAIN = (bool, int, float, str, type(None))


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_store_flag(parser)
    add = parser.add_argument
    add(
        "--picture",
        "--image",
        dest="picture",
        metavar="F",
        default="",
        help="picture to search for; needs --img_model_dir",
    )
    text = "text to search for, with or without --picture, if the image model takes texts; needs --img_model_dir"
    add("--text", metavar="T", help=text)
    add("--key", metavar="K", default="", help="key of an item in the store to search for")
    add(
        "--eval",
        metavar="F",
        help="CSV with the columns key and label; measures how often the nearest items have the same label",
    )
    add("--img_model_dir", metavar="I", default="", help="folder of the exported image model, for --picture and --text")
    add(
        "--field",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a field that the image model reads in addition, such as the category; may be repeated",
    )
    f.add_vector_store_flag(parser)
    add("--top_k", metavar="N", type=f.positive, default=12, help="items to find (default 12)")
    _add_metadata_flags(parser)
    _add_ranking_flags(parser)
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
    _add_server_flags(parser)


def _add_metadata_flags(parser: f.Parser) -> None:
    add = parser.add_argument
    add("--metadata", metavar="F", default="", help="Parquet or CSV with columns of the items, shown beside results")
    add("--metadata_key", metavar="COLUMN", default="", help="its column with the keys of the store (default key)")
    add(
        "--metadata_picture",
        metavar="COLUMN",
        default="",
        help="its column with the paths of the pictures that pages show (default: the key is the path)",
    )
    add(
        "--filter",
        metavar="CONDITION",
        default="",
        help="search among the items whose columns in --metadata fulfil a condition, such as \"category == 'shoes' and "
        'price < 50"',
    )


def _add_ranking_flags(parser: f.Parser) -> None:
    add = parser.add_argument
    add("--rec_model_dir", metavar="R", default="", help="folder of the exported rec model that ranks for --request")
    request = 'JSON with the fields of the user, {"shared": {...}}, for whom the rec model ranks the nearest items'
    add("--request", metavar="F", default="", help=request)
    add("--candidates", metavar="N", type=f.positive, default=100, help="nearest items that are ranked (default 100)")
    rank_by = "output of the rec model to rank by (default: the first probability)"
    add("--rank_by", metavar="OUTPUT", default="", help=rank_by)


def _add_server_flags(parser: f.Parser) -> None:
    add = parser.add_argument
    add("--serve", action="store_true", help="serve a web page to search on, until Ctrl-C or SIGTERM")
    host = "address of the page (default 127.0.0.1: this machine only); 0.0.0.0 or ::: all addresses"
    add("--host", metavar="A", default="127.0.0.1", help=host)
    add("--port", metavar="P", type=f.not_negative, default=8082, help="port of the page (default 8082); 0: a free one")


def run(flags: f.Flags) -> int:
    """Search, and measure how well the nearest fit; or serve the page."""
    from easyrec_mm.retrieval.query import Sought
    from easyrec_mm.retrieval.searcher import Searcher, SearchOptions

    fields = dict(text.partition("=")[::2] for text in flags.field)
    sought = Sought(flags.key, flags.picture, flags.text, fields)
    is_query = bool(sought.key or sought.is_embedded) and not flags.serve
    _require_together(flags, is_query)
    if flags.html:
        require_folder(flags.html, "--html")
    metadata = metadata_of(flags.metadata, flags.metadata_key) if flags.metadata else None
    if metadata is not None and flags.metadata_picture:
        metadata.require(flags.metadata_picture, "--metadata_picture")
    ranking = _ranking(flags)
    options = SearchOptions(
        flags.store,
        flags.img_model_dir,
        flags.rec_model_dir,
        flags.similarity,
        flags.index,
        metadata,
        f.vector_stores_of(flags),
    )
    searcher = Searcher(options)
    try:
        if flags.serve:
            return _serve(flags, searcher, ranking, fields)
        # The search comes first, so that a mistake in it is reported before anything is measured.
        hits = searcher.search(sought, flags.top_k, flags.filter, ranking) if is_query else []
        _report(flags, searcher, hits if is_query else None)
    finally:
        searcher.close()
    return 0


def _require_together(flags: f.Flags, is_query: bool) -> None:
    """Check that flags have an effect."""
    if flags.serve and (flags.key or flags.picture or flags.text or flags.eval or flags.html or flags.filter):
        raise UserError(
            "--serve: the page takes queries and filters; leave out those of the command, --html and --eval"
        )
    if not (is_query or flags.eval or flags.serve):
        raise UserError(
            "give what to look for: --picture or --text with --img_model_dir, or --key, or --eval with labels, or "
            "--serve for a page"
        )
    if not is_query and (flags.filter or (flags.request and not flags.serve)):
        raise UserError("--filter and --request: have no effect without a query; give --picture, --text or --key")
    if bool(flags.rec_model_dir) != bool(flags.request):
        given, missing = ("--rec_model_dir", "--request") if flags.rec_model_dir else ("--request", "--rec_model_dir")
        raise UserError(f"{given}: has no effect without {missing}; give both, or neither")
    for name in ("metadata_key", "metadata_picture"):
        if getattr(flags, name) and not flags.metadata:
            raise UserError(f"--{name}: has no effect without --metadata; give the table")


def _ranking(flags: f.Flags) -> Ranking | None:
    request: dict[str, Any] | None = None
    if flags.request:
        from easyrec_mm.retrieval.ranking import read_request

        request = read_request(flags.request)
    return ranking_of(request, flags.candidates, flags.rank_by)


def _report(flags: f.Flags, searcher: Searcher, hits: list[Hit] | None) -> None:
    """Print what was found, and measure what is to be measured."""
    index = searcher.index
    if index.kind != "exact":
        recall = index.recall(flags.top_k)
        print(f"{index.kind} index of {len(index.keys)} vectors; recall@{flags.top_k} {recall:.4f}")
    about = [*_about(index), *_about_metadata(searcher)]
    print("\n".join(about))
    if hits is not None:
        _show(hits)
        if flags.html:
            _write_page(flags, searcher, hits, about)
    if flags.eval:
        from easyrec_mm.store.search import evaluate

        result = evaluate(index, flags.eval, flags.top_k)
        lines = [f"recall@{k}  {recall:.4f}" for k, recall in result.recall.items()]
        lines.append(f"mMP@5  {result.mmp:.4f}")
        lines.append(
            f"{result.num_queries} queries; {result.num_alone} items whose label no other item has, "
            f"{result.num_missing} items of {flags.eval} not in the store"
        )
        tell_result("\n".join(lines), **asdict(result))


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


def _about_metadata(searcher: Searcher) -> list[str]:
    metadata, number = searcher.options.metadata, searcher.num_without_metadata
    if metadata is None or not number:
        return []
    return [f"{number} of {len(searcher.index.keys)} items have no row in {metadata.name}; no filter selects them"]


def _show(hits: list[Hit]) -> None:
    """Print a line per item: figures, key, and the columns of the metadata."""
    is_ranked = any(hit.score is not None for hit in hits)
    score = f"{'score':>9}  " if is_ranked else ""
    lines = [f"{'rank':>4}  {score}{'cosine':>9}  {'distance':>9}  key"]
    for rank, hit in enumerate(hits, 1):
        neighbour = hit.neighbour
        score = "" if hit.score is None else f"{hit.score:>9.6f}  "
        columns = "".join(f"  {name}={_printed(value)}" for name, value in hit.values.items() if value is not None)
        duplicate = f"  ({neighbour.duplicate})" if neighbour.duplicate else ""
        figures = f"{score}{neighbour.cosine:>9.6f}  {neighbour.distance:>9.4g}"
        lines.append(f"{rank:>4}  {figures}  {neighbour.key}{duplicate}{columns}")
    if not hits:
        lines.append("no item fulfils the filter")
    tell_result("\n".join(lines), nearest=[_fields(hit) for hit in hits])


def _fields(hit: Hit) -> dict[str, object]:
    """Return what --json_logs has of an item."""
    ranked = {} if hit.score is None else {"score": hit.score}
    columns = {name: value if isinstance(value, _PLAIN) else str(value) for name, value in hit.values.items()}
    return {**hit.neighbour._asdict(), **ranked, **({"columns": columns} if columns else {})}


def _printed(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _MOST_SIGNS else f"{text[: _MOST_SIGNS - 3]}..."


def _write_page(flags: f.Flags, searcher: Searcher, hits: list[Hit], about: list[str]) -> None:
    from easyrec_mm.store.search import write_page

    query = flags.picture or flags.key or flags.text
    metadata, column = searcher.options.metadata, flags.metadata_picture
    keys = [*([flags.key] if flags.key else []), *(hit.neighbour.key for hit in hits)]
    path_of = {key: key for key in keys}
    if metadata is not None and column:
        rows = metadata.values(keys, [column])
        path_of = {key: str(row[column] or "") for key, row in zip(keys, rows, strict=True)}
    query_path = flags.picture or (join(flags.image_root, path_of[flags.key]) if flags.key else "")
    nearest = [hit.neighbour for hit in hits]
    write_page(flags.html, query, query_path, nearest, flags.image_root, about, _thumbnail, path_of)
    print(f"written: {flags.html}")


def _serve(flags: f.Flags, searcher: Searcher, ranking: Ranking | None, fields: dict[str, str]) -> int:
    from easyrec_mm.retrieval.web import PageOptions, serve

    options = PageOptions(
        flags.host, flags.port, flags.image_root, flags.metadata_picture, flags.top_k, ranking, fields
    )
    return serve(searcher, options, lambda url: print(f"search at {url} (Ctrl-C ends it)", flush=True))


def _thumbnail(content: bytes) -> bytes | None:
    import_tensorflow()
    from easyrec_mm.data.whole_pictures import decode_whole, thumbnail
    from easyrec_mm.store.search import THUMBNAIL

    try:
        return thumbnail(decode_whole(content), THUMBNAIL)
    except ValueError:
        return None
