"""A rec model with its vectors, in this process: the answers of `easyrec-mm serve` without a network."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.frames import dtypes_of, fields_of, is_frame
from easyrec_mm.api.options import options_from, path_text
from easyrec_mm.errors import DataError, UserError, first_line

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Server:
    """Answers requests by an exported rec model and the vectors in a store; a context manager.

    Args:
      rec_model_dir: folder of the exported rec model, or of several exports with numbers as names: the largest is used.
      store: URI of the store of the image vectors.
      img_model_dir: folder of the image model, for missing_vector="compute".
      **options: further flags of the command: missing_vector, key_field, runtime, num_threads, vector_stores (feature
        -> URI), image_root, image_hosts, picture_timeout_s, max_instances, max_list_values.

    Raises:
      UserError: if the model or the store cannot be used, or an option does not exist.
    """

    def __init__(
        self,
        rec_model_dir: str | os.PathLike[str],
        store: str,
        *,
        img_model_dir: str | os.PathLike[str] = "",
        **options: Any,
    ) -> None:
        from easyrec_mm.serving.release import ServiceOptions
        from easyrec_mm.serving.service import make_service

        values = {**options, "rec_model_dir": path_text(rec_model_dir, "Server: rec_model_dir")}
        chosen = options_from(ServiceOptions, {"num_threads": 0, **values}, "Server")
        self._options = replace(chosen, num_threads=chosen.num_threads or len(os.sched_getaffinity(0)))
        uri, image_model = path_text(store, "Server: store"), path_text(img_model_dir, "Server: img_model_dir")
        self._service = make_service(self._options, uri, image_model)

    def predict(
        self, candidates: pd.DataFrame | Sequence[Mapping[str, Any]], shared: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return the outputs for some candidates, a row for each, in their order.

        Args:
          candidates: a DataFrame, whose other columns are left out, or a list of objects: the fields that the model
            reads, with the key of the picture in the image field. A missing value in a DataFrame is what it is in
            training; objects are checked like those of a request.
          shared: fields that all candidates have in common, such as those of the user.

        Raises:
          UserError: if a field is missing or not of its type, or a vector is missing where that is an error.
        """
        import pandas as pd

        if shared is not None and not isinstance(shared, Mapping):
            raise DataError(f"shared: is a {type(shared).__name__}; give a dict of fields and values")
        if not is_frame(candidates):
            if not isinstance(candidates, Sequence) or isinstance(candidates, str):
                kind = type(candidates).__name__
                raise DataError(f"candidates: is a {kind}; give a DataFrame, or a list of objects with fields")
            return pd.DataFrame(self._outputs({"instances": list(candidates), "shared": dict(shared or {})}))
        columns = self._columns(candidates, shared or {})
        parts = []
        for start in range(0, len(candidates), self._options.max_instances):
            end = min(start + self._options.max_instances, len(candidates))
            own = {name: values[start:end] for name, values in columns.items()}
            with _rows_named(start):
                parts.append(self._outputs(_request(end - start, own, shared or {})))
        outputs = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
        outputs.index = candidates.index
        return outputs

    def reload(self) -> bool:
        """Switch to a newer model or newer vectors if there are some; return whether.

        Raises:
          UserError: if the newer ones cannot be served; the old ones stay.
        """
        return self._service.reload() is not None

    def close(self) -> None:
        """Close the store."""
        self._service.release.store.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _outputs(self, body: object) -> dict[str, list[Any]]:
        answer = self._service.answer(body)
        return {name: values.tolist() for name, values in answer.outputs.items()}

    def _columns(self, frame: pd.DataFrame, shared: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the values of the fields that the model knows, in the types of requests.

        A missing value is what it is in training, the default of its field, unless all candidates share another one.
        """
        reader, schema = self._service.release.reader, self._service.release.predictor.manifest.schema
        dtypes = dtypes_of(schema)
        table = fields_of(frame, "candidates", {name: dtypes.get(name, "") for name in sorted(reader.known_names)})
        columns = {name: _values(table[name], dtypes.get(name, ""), name) for name in table.column_names}
        for name in {*schema.request_fields()}.intersection(columns).difference(shared, [reader.key_field]):
            default = schema.field(name).default_value
            columns[name] = [default if value is None else value for value in columns[name]]
        return columns


@contextmanager
def _rows_named(start: int) -> Iterator[None]:
    """Let messages on a part of a DataFrame name its rows, from 1, in place of the instances of the request."""
    try:
        yield
    except UserError as error:
        message, *more = error.args
        message = re.sub(r"^instance (\d+)", lambda match: f"candidates:{start + int(match[1]) + 1}", message)
        error.args = (message, *more)
        raise


def _request(number: int, own: Mapping[str, Sequence[Any]], shared: Mapping[str, Any]) -> object:
    from easyrec_mm.serving.request import Columns

    return Columns(number, own, shared)


def _values(column: pa.ChunkedArray, dtype: str, name: str) -> list[Any]:
    """Return the values of a column; whole numbers that pandas keeps as floating-point ones become whole again."""
    import pyarrow as pa

    if dtype in ("int64", "bool") and pa.types.is_floating(column.type):
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"candidates: column '{name}': {first_line(error)}; the field is a whole number") from error
    values: list[Any] = column.to_pylist()
    return values
