"""`easyrec-mm store`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from easyrec_mm.cli import flags as f
from easyrec_mm.errors import UserError

if TYPE_CHECKING:
    from easyrec_mm.store import Store

HELP = "manage a store of vectors"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "action",
        choices=["stat", "load", "prune", "rollback"],
        help="stat: show what it holds; load: write the vectors of a table; prune: remove old generations that nobody "
        "uses; rollback: make the previous generation current again",
    )
    f.add_store_flag(parser)
    add = parser.add_argument
    add("--input", metavar="P", help="load: .parquet or .csv files; globs and lists with commas")
    add(
        "--origin",
        metavar="O",
        help="load: name of what computed the vectors, such as clip-vit-b32; a new name starts a new generation",
    )
    add("--key_column", metavar="C", default="key", help="load: column of the keys (default key)")
    vectors = "load: column of the vectors, lists or text (default vector)"
    add("--vector_column", metavar="C", default="vector", help=vectors)
    add(
        "--separator",
        metavar="S",
        default=",",
        help="load: separator of the numbers in a vector that is text (default ,)",
    )
    add("--dtype", choices=["float32", "float16"], default="float32", help="load: number format of the stored vectors")
    f.add_share_flag(parser)
    add("--keys", metavar="F", help="stat: file with a key per line, to count how many of them the store has")


def run(flags: f.Flags) -> int:
    """Show or change a store."""
    from easyrec_mm.store import open_store

    if flags.action == "load" and not (flags.input and flags.origin):
        raise UserError(
            "store load: give the files with --input, and the name of what computed the vectors with --origin"
        )
    with closing(open_store(flags.store, writable=flags.action != "stat")) as store:
        if flags.action == "load":
            _load(store, flags)
        elif flags.action == "prune":
            pruned = store.prune()
            print(f"removed generations: {', '.join(map(str, pruned.removed)) or 'none'}")
            for number, reason in pruned.kept.items():
                print(f"generation {number} is kept: it {reason}")
        elif flags.action == "rollback":
            print(f"generation {store.rollback().number} is current")
        else:
            from easyrec_mm.store.stat import stat

            print(stat(store, flags.keys))
    return 0


def _load(store: Store, flags: f.Flags) -> None:
    from easyrec_mm.store.load import Columns, load

    columns = Columns(flags.key_column, flags.vector_column, flags.separator)
    loaded = load(store, flags.input, columns, flags.origin, flags.dtype, flags.share)
    generation = f"generation {loaded.generation.number} of {store.uri}"
    print(
        f"{loaded.number} vectors of {loaded.generation.width} numbers written; "
        f"{f.state_of(generation, loaded.waits_for)}"
    )
