"""Checks `export_config`. Never imports TensorFlow."""

from __future__ import annotations

from easyrec_mm.config.best import check_best
from easyrec_mm.config.evaluation import evaluation_metrics
from easyrec_mm.errors import Problems
from easyrec_mm.manifest import invalid_inputs
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema


def check_export(config: EasyRecConfig, schema: Schema, problems: Problems) -> None:
    """Add every problem of export_config."""
    export, image = config.export_config, schema.image
    if not export.multi_placeholder:
        problems.note("export_config.multi_placeholder", "false has no effect here: there is one input for each field")
    for problem in invalid_inputs(schema) if schema.uses_image else ():
        problems.note("export_config", f"the model cannot be exported: {problem}")
    check_best(config, evaluation_metrics(config, schema), problems)
    if not image.field:
        for name in ("img_input_name", "img_shape"):
            if export.HasField(name):
                problems.add(f"export_config.{name}", "has no effect without an ImgFeature; add one or remove this")
        return
    if export.HasField("img_input_name") and export.img_input_name != image.field:
        problems.unknown("export_config.img_input_name", "image field", export.img_input_name, [image.field])
    if export.HasField("img_shape"):
        shape = export.img_shape
        image_shape = (image.width, image.height, image.channels)
        if (shape.width, shape.height, shape.channel) != image_shape:
            problems.add(
                "export_config.img_shape",
                f"{shape.width} x {shape.height} x {shape.channel}, but the ImgFeature has "
                f"{image_shape[0]} x {image_shape[1]} x {image_shape[2]}; make them equal",
            )
