"""`easyrec-mm store`."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from easyrec_mm.cli import flags as f
from easyrec_mm.errors import UserError
from easyrec_mm.files import plain

if TYPE_CHECKING:
    from easyrec_mm.store import Store

HELP = "manage a store of vectors"
_MOST_KEYS_SHOWN = 5


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    parser.add_argument(
        "action",
        choices=["stat", "get", "dump", "load", "prune", "rollback"],
        help="stat: show what it holds; get: print the vectors of keys as JSON; dump: write all vectors to a table; "
        "load: write the vectors of a table into it; prune: remove old generations that nobody uses; rollback: make "
        "the previous generation current again",
    )
    f.add_store_flag(parser)
    add = parser.add_argument
    add("--key", metavar="K", action="append", default=[], help="get: key of the vector to print; may be repeated")
    add("--output", metavar="F", type=plain, help="dump: file to write, .parquet or .csv")
    number = "get, dump: number of the generation to read (default: the current one)"
    add("--generation", metavar="N", type=f.positive, help=number)
    add("--input", metavar="P", help="load: .parquet or .csv files; globs and lists with commas")
    add(
        "--origin",
        metavar="O",
        help="load: name of what computed the vectors, such as clip-vit-b32; a new name starts a new generation; a "
        "Parquet file of store dump tells it",
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
    dtype = "load: number format of the stored vectors (default float32, or that of a Parquet file of store dump)"
    add("--dtype", choices=["float32", "float16"], help=dtype)
    f.add_share_flag(parser)
    add("--keys", metavar="F", help="stat: file with a key per line, to count how many of them the store has")


def run(flags: f.Flags) -> int:
    """Show, read or change a store."""
    from easyrec_mm.store import open_store

    _require_flags(flags)
    with closing(open_store(flags.store, writable=flags.action in ("load", "prune", "rollback"))) as store:
        if flags.action == "load":
            _load(store, flags)
        elif flags.action == "get":
            _get(store, flags)
        elif flags.action == "dump":
            _dump(store, flags)
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


def _require_flags(flags: f.Flags) -> None:
    if flags.action == "load" and not flags.input:
        raise UserError("store load: give the files with --input")
    if flags.action == "get" and not flags.key:
        raise UserError("store get: give the key of a vector with --key")
    if flags.action == "dump" and not flags.output:
        raise UserError("store dump: give the file to write with --output")


def _get(store: Store, flags: f.Flags) -> None:
    from easyrec_mm.store.dump import chosen_generation, lines

    generation = chosen_generation(store, flags.generation)
    present, missing = lines(store, generation, flags.key)
    for line in present:
        print(line)
    if missing:
        place = f"generation {generation.number} of {store.uri}"
        raise UserError(f"--key {', '.join(missing)}: is not in {place}; see easyrec-mm store stat --keys FILE")


def _dump(store: Store, flags: f.Flags) -> None:
    from easyrec_mm.store.dump import chosen_generation, dump

    generation = chosen_generation(store, flags.generation)
    dumped = dump(store, generation, flags.output)
    print(
        f"{dumped.num_present} vectors of {generation.width} numbers and {dumped.num_absent} absent keys of generation "
        f"{generation.number} in {flags.output}"
    )
    if dumped.left_out:
        keys = ", ".join(map(repr, dumped.left_out[:_MOST_KEYS_SHOWN]))
        reason = "contain halves of surrogate pairs, which no table can hold"
        print(f"{len(dumped.left_out)} keys are left out, because they {reason}: {keys}", file=sys.stderr)


def _load(store: Store, flags: f.Flags) -> None:
    from easyrec_mm.store.load import Columns, load

    columns = Columns(flags.key_column, flags.vector_column, flags.separator)
    loaded = load(store, flags.input, columns, flags.origin, flags.dtype, flags.share)
    generation = f"generation {loaded.generation.number} of {store.uri}"
    absent = f" and {loaded.num_absent} absent keys" if loaded.num_absent else ""
    print(
        f"{loaded.number} vectors of {loaded.generation.width} numbers{absent} written; "
        f"{f.state_of(generation, loaded.waits_for)}"
    )
