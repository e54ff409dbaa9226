"""Groups in tables of MaxCompute: each row is joined to a line, which is parsed like the lines of GroupRTP files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import tensorflow as tf

from easyrec_mm.formats.checks import Problem
from easyrec_mm.formats.odps_tables import LINE, OdpsTables
from easyrec_mm.formats.rtp_graph import GroupRtpParser, shared_parser
from easyrec_mm.formats.source import GroupRows, Order
from easyrec_mm.formats.table_files import TableSource
from easyrec_mm.formats.typed_groups import TextGroup
from easyrec_mm.schema import Schema


class _Lines:
    """A TableGroups of lines, which are passed on unchanged and parsed in the graph."""

    is_flat = False
    columns = (LINE,)

    def __init__(self, parser: GroupRtpParser) -> None:
        self._parser = parser

    def prepare(self, place: str, table: pa.Table) -> pa.Table:
        return table

    def signature(self) -> tf.TensorSpec:
        return tf.TensorSpec([None], tf.string)

    def arrays(self, table: pa.Table) -> Any:
        return table[LINE].to_numpy()

    def rows(self, arrays: tf.Tensor) -> GroupRows:
        return self._parser.compiled(arrays)

    def texts(self, table: pa.Table) -> Iterable[TextGroup | Problem]:
        return self._parser.texts(table[LINE].to_pylist())


class OdpsGroupRtpSource(TableSource):
    """A Source of the groups in tables of MaxCompute.

    Args:
      tables: the tables, whose rows are read as lines.
      schema, labels, fields: as for GroupRtpParser.
      order: order of the rows in an epoch.

    Raises:
      DataError: if the tables contain no row.
    """

    chunk_size = 256

    def __init__(
        self, tables: OdpsTables, schema: Schema, labels: tuple[str, ...], fields: tuple[str, ...], order: Order
    ) -> None:
        self._parser = shared_parser(schema, labels, fields, len(schema.labels) + 3)
        super().__init__(list(tables.slices), schema, _Lines(self._parser), order, tables)

    def explain(self, evidence: bytes) -> Problem:
        """See Source.explain; the evidence is the line."""
        return self._parser.explain(evidence) or Problem("line", "malformed")
