"""Ranks items for a user by the rec model, with the code that answers requests (serving/service.py)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.errors import UserError, did_you_mean
from easyrec_mm.files import StorageError, read
from easyrec_mm.manifest import VECTOR
from easyrec_mm.retrieval.metadata import Metadata
from easyrec_mm.serving.field_values import RequestError
from easyrec_mm.serving.release import ServiceOptions
from easyrec_mm.serving.request import Columns
from easyrec_mm.serving.service import Service
from easyrec_mm.store import Generation, Store

_PART = re.compile(r"^instance (\d+)")


def read_request(path: str) -> dict[str, Any]:
    """Read the fields of the user from a file with a request, as the server takes it, without instances.

    Raises:
      UserError: if it cannot be read, or is something else.
    """
    advice = 'give {"shared": {"user_id": "u1", ...}}, the fields that all candidates have in common'
    try:
        body = json.loads(read(path))
    except (OSError, StorageError, ValueError, RecursionError) as error:
        raise UserError(f"--request {path}: cannot be read as JSON: {error}; {advice}") from error
    if not isinstance(body, dict) or set(body) != {"shared"} or not isinstance(body["shared"], dict):
        what = f"has the parts {', '.join(map(str, body))}" if isinstance(body, dict) else "is not an object"
        raise UserError(f"--request {path}: {what}; {advice}; the candidates are those that the search finds")
    return body["shared"]


class Ranker:
    """A rec model that scores items of a store.

    Args:
      folder: an exported rec model, or a folder of exports with numbers as names.
      store: the store that is searched.
      generation: the generation that is searched.
      vector_stores: feature -> URI of the store of its vectors, if it differs from that in the config.

    Raises:
      UserError: if the model cannot be used with these vectors.
    """

    def __init__(self, folder: str, store: Store, generation: Generation, vector_stores: Mapping[str, str]) -> None:
        options = ServiceOptions(folder, num_threads=len(os.sched_getaffinity(0)), vector_stores=vector_stores)
        self._service = Service(options, store)
        release = self._service.release
        if release.generation.fingerprint != generation.fingerprint:
            raise UserError(
                f"--rec_model_dir {folder}: belongs to image tower {release.generation.fingerprint[:12]}, but "
                f"generation {generation.number} of {store.uri}, which is searched, is of "
                f"{generation.fingerprint[:12]}; give the rec model of the same export"
            )
        manifest = release.predictor.manifest
        self._schema, self._reader = manifest.schema, release.reader
        outputs = manifest.signatures[VECTOR]["outputs"]
        dtypes = {name: entry["dtype"] for name, entry in outputs.items() if len(entry["shape"]) == 1}
        names = [name for task in self._schema.tasks for name in task.output_names]
        self.outputs = [name for name in names if str(dtypes.get(name, "")).startswith("float")]
        probabilities = [name for name in self.outputs if name.startswith("probs")]
        self.default = next(iter(probabilities or self.outputs), "")

    def require_output(self, name: str) -> str:
        """Return the name of an output by which can be ranked; by default the first probability.

        Raises:
          UserError: if the model has no such output.
        """
        if not name and self.default:
            return self.default
        if name not in self.outputs:
            raise UserError(
                f"--rank_by {name}: is not an output with one number per candidate; {did_you_mean(name, self.outputs)}"
            )
        return name

    def scores(
        self, keys: Sequence[str], metadata: Metadata | None, request: Mapping[str, Any], output: str
    ) -> NDArray[Any]:
        """Return an output of the model for some items `[K]`.

        Args:
          keys: keys of the items in the store.
          metadata: columns of the items, of which those with the name of a field are read; a missing value is the
            default of the field.
          request: the fields that all of them have in common.
          output: its name; see require_output.

        Raises:
          UserError: if a field is missing or not of its type, or an output is not finite.
        """
        key_field = self._reader.key_field
        is_number = "string" not in {field.dtype for field in self._schema.fields if field.name == key_field} and (
            str not in self._reader.key_types
        )
        own: dict[str, Sequence[Any]] = {key_field: [int(key) for key in keys] if is_number else list(keys)}
        fields = {field.name: field for field in self._schema.fields}
        if metadata is not None:
            names = [name for name in metadata.schema.names if name in self._reader.known_names and name != key_field]
            rows = metadata.values(keys, [name for name in names if name not in request])
            for name in rows[0] if rows else ():
                default = fields[name].default_value if name in fields and fields[name].optional else None
                own[name] = [default if row[name] is None else row[name] for row in rows]
        try:
            answer = self._service.answer(Columns(len(keys), own, dict(request)))
        except RequestError as error:
            message = _PART.sub(lambda match: f"item '{keys[int(match[1])]}'", str(error))
            raise UserError(
                f"{message}; fields of the user come from --request ('shared'), those of items from the columns of "
                "--metadata with their names"
            ) from error
        return np.asarray(answer.outputs[output], np.float64)
