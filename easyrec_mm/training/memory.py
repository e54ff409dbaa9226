"""The memory that a training needs for its embedding tables, compared with that of the machine before it begins."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from easyrec_mm.config.item import TEXT
from easyrec_mm.config.training import divided_tables
from easyrec_mm.distribution.shards import rows_of_each
from easyrec_mm.errors import ConfigError
from easyrec_mm.network.item import WORDS_TABLE
from easyrec_mm.protos.optimizer_pb2 import Optimizer
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema
from easyrec_mm.training.optimizers import OPTIMIZERS
from easyrec_mm.training.plan import optimizer_of

_BYTES_OF_A_NUMBER = 4
# Limits of a container: cgroups of version 2 and 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def require_memory(config: EasyRecConfig, schema: Schema, path: str, num_workers: int | None) -> None:
    """Check that the tables, with what their optimizer and moving average keep of each number, fit into memory.

    Of tables that are divided among the workers, a worker's part counts, or nothing if their number is unknown.

    Args:
      config: the config of the training.
      schema: its Schema.
      path: name of the config, for messages.
      num_workers: number of the workers that train together; None if it is unknown.

    Raises:
      ConfigError: if they do not fit; the message says how many bytes they need, and how many there are.
    """
    divided = divided_tables(config.train_config, schema, num_workers)
    rows = {table.name: table.rows for table in schema.tables}
    for name in divided:
        rows[name] = rows_of_each(rows[name], num_workers) if num_workers else 0
    sizes = {
        table.name: rows[table.name] * table.dim * _bytes_per_number(f"embedding/{table.name}", config)
        for table in schema.tables
    }
    of_words = _bytes_of_words(config, schema)
    if of_words > machine_bytes():
        raise ConfigError(
            f"{path}: {TEXT}.hash_bucket_size: the table of words, with what the optimizer keeps of it, needs "
            f"{_size(of_words)}, and this machine has {_size(machine_bytes())}; lower it, or embedding_dim"
        )
    needed, available = sum(sizes.values()), machine_bytes()
    if needed <= available:
        return
    largest = max(schema.tables, key=lambda table: sizes[table.name])
    raise ConfigError(
        f"{path}: feature_config: the embedding tables, with what the optimizer keeps of them, need {_size(needed)}, "
        f"and this machine has {_size(available)}; the largest is '{largest.name}', {largest.rows:,} rows of "
        f"{largest.dim}: give it fewer rows, as with a smaller hash_bucket_size, or divide it among more workers with "
        "train_config.shard_tables_from_rows"
    )


def machine_bytes() -> int:
    """Return the memory of this machine in bytes, or that of the container."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _LIMITS:
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            sizes.append(int(text))
    return min(sizes)


def _bytes_of_words(config: EasyRecConfig, schema: Schema) -> int:
    """Return the bytes of the table of words of the text tower; 0 without one."""
    text = config.model_config.e2e_mm_dbmtl.text_model
    if schema.text is None or text.preset:
        return 0
    return int(text.hash_bucket_size) * text.embedding_dim * _bytes_per_number(WORDS_TABLE, config)


def _bytes_per_number(name: str, config: EasyRecConfig) -> int:
    """Return the bytes of a number of a table, of its slots, and of its moving average."""
    train = config.train_config
    index = optimizer_of(name, True, train)
    num_copies = 1
    is_trained = not any(re.search(pattern, name) for pattern in train.freeze_gradient)
    if index is not None and is_trained:
        num_copies += _num_slots(train.optimizer_config[index].SerializeToString())
    num_copies += bool(train.optimizer_config and train.optimizer_config[0].use_moving_average)
    return num_copies * _BYTES_OF_A_NUMBER


@lru_cache(maxsize=16)
def _num_slots(optimizer: bytes) -> int:
    """Return how many slots a serialized Optimizer has; to make one takes milliseconds, and each table asks."""
    settings = Optimizer.FromString(optimizer)
    kind = settings.WhichOneof("optimizer")
    return len(OPTIMIZERS[kind](getattr(settings, kind), learning_rate=1.0).slots)


def _size(num_bytes: int) -> str:
    return f"{num_bytes:,} bytes ({num_bytes / 2**30:,.1f} GiB)"
