"""Chooses the folder of a log's pictures: the given one, or the folder of the log, or a folder above that."""

from __future__ import annotations

from easyrec_mm.errors import DataError
from easyrec_mm.files.first_pictures import NUM_FIRST, are_most, are_relative, find_root, folders_of, missing, shown
from easyrec_mm.formats.columns import ORDER, to_kind
from easyrec_mm.grouping.flat_files import pieces
from easyrec_mm.grouping.log_plan import LogPlan
from easyrec_mm.grouping.options import GroupOptions

# Number of rows in which the first pictures are looked for.
_NUM_ROWS = 1 << 20


def choose_image_root(options: GroupOptions, plan: LogPlan) -> str:
    """Return image_root; if it is not given, and the pictures are not in the current folder, the folder with pictures.

    Raises:
      DataError: if most of the first pictures cannot be read from there, unless options.allow_missing_pictures.
    """
    first = _first_pictures(options, plan)
    problems = missing(options.image_root, first)
    if not are_most(len(problems), len(first), options.max_bad_share):
        return options.image_root
    path, problem = next(iter(problems.items()))
    file, row = plan.layout.place(first[path])
    folders = [folder for folder in ("", *folders_of(file)) if folder != options.image_root]
    found_root = find_root(first, folders) if are_relative(first) else None
    if found_root and not options.image_root:
        return found_root
    if options.allow_missing_pictures:
        return options.image_root
    if found_root is not None:
        todo = f"they are in {shown(found_root)}: " + (
            f"give that with --image_root {found_root}" if found_root else "leave it out"
        )
    elif are_relative(first):
        looked = ", ".join(map(shown, [options.image_root, *folders]))
        todo = f"looked in {looked}; give the folder in which these paths start"
    else:
        todo = f"the paths are absolute: correct the column '{options.image_field}'"
    root = f"'{options.image_root}':" if options.image_root else "is not set, and"
    raise DataError(
        f"--image_root: {root} {len(problems)} of the first {len(first)} pictures cannot be read, the first '{path}' "
        f"({file}:{row}): {problem.removeprefix('cannot be read: ')}; {todo}, or --allow_missing_pictures if they are "
        "on another machine"
    )


def _first_pictures(options: GroupOptions, plan: LogPlan) -> dict[str, int]:
    """Return path -> ORDER of the first row that names it, for the first pictures."""
    orders: dict[str, int] = {}
    num_rows = 0
    for split in plan.splits:
        for piece in pieces(split, [options.image_field], options.separator):
            values = to_kind(piece.table[options.image_field].combine_chunks(), "string").values
            encoded = values.dictionary_encode()
            first_rows = dict(reversed([(code, row) for row, code in enumerate(encoded.indices.to_pylist())]))
            for code, path in enumerate(encoded.dictionary.to_pylist()):
                if path:
                    orders.setdefault(path, piece.table[ORDER][first_rows[code]].as_py())
                if len(orders) == NUM_FIRST:
                    return orders
            num_rows += piece.num_rows
            if num_rows >= _NUM_ROWS:
                return orders
    return orders
