"""The bad records of several workers, counted together: all find the same shares, and stop at the same batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from easyrec_mm.data.bad_records import BadRecord, BadRecords
from easyrec_mm.distribution.replicas import Replicas


class SharedBadRecords(BadRecords):
    """The bad records of all workers; each worker adds those of its share of every batch.

    Args:
      path: as for BadRecords; a worker writes the records of all.
      max_share: as for BadRecords.
      replicas: the workers.
      names: as for BadRecords.
    """

    def __init__(
        self,
        path: str | None,
        max_share: float,
        replicas: Replicas,
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(path, max_share, names)
        self._replicas = replicas

    def add(self, num_groups: int, num_pictures: int, records: list[BadRecord]) -> None:
        """See BadRecords.add."""
        groups, pictures, num_records = self._replicas.agree(num_groups, num_pictures, len(records))
        if num_records:
            texts = self._replicas.texts(json.dumps([asdict(record) for record in records]))
            records = [BadRecord(**values) for text in texts for values in json.loads(text)]
        super().add(int(groups), int(pictures), records)

    def add_keys(self, feature: str, num: int, missing: Sequence[bytes], num_missing: int, max_share: float) -> None:
        """See BadRecords.add_keys."""
        num_all, num_all_missing = map(int, self._replicas.agree(num, num_missing))
        if num_all_missing:
            texts = self._replicas.texts(json.dumps([key.decode("utf-8", "surrogateescape") for key in missing]))
            keys = [key.encode("utf-8", "surrogateescape") for text in texts for key in json.loads(text)]
            missing = list(dict.fromkeys(keys))
        super().add_keys(feature, num_all, missing, num_all_missing, max_share)
