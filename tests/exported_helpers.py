"""What the workers of Spark compute, without Spark."""

from __future__ import annotations

import numpy as np

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.evaluation.exported import ExportedNetwork, read_headers
from easyrec_mm.evaluation.predict import prediction_input


def exported_outputs(config, overrides, path, rec, image) -> dict[str, np.ndarray]:
    """The outputs of exported models for all samples of some files."""
    pipeline = load_pipeline(config, overrides)
    read_headers(str(rec), str(image), pipeline.schema)
    network = ExportedNetwork(str(rec), str(image), 1)
    vectors = network.stored_vectors(pipeline.schema)
    inputs = prediction_input(
        pipeline.config, pipeline.schema, path, network.fields, BadRecords(None, 1.0), vectors
    )  # fmt: skip
    batches = [network(b.batch, b.kept_fields) for b in inputs.batches() if b.batch.num_samples]
    vectors.close()
    assert list(batches[0]) == [name for name, _ in network.columns()]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
