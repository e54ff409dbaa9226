"""A training that has checkpoints: what can be evaluated, used and exported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from easyrec_mm.api.frames import Data, Paths, as_file, dtypes_of, fields_of, input_settings, is_frame, naming, path_of
from easyrec_mm.api.loading import FLOAT32, Chosen, find_checkpoint, require_path
from easyrec_mm.api.options import names_of, path_text
from easyrec_mm.console import warn
from easyrec_mm.errors import DataError, UserError
from easyrec_mm.files import join
from easyrec_mm.ranges import POSITIVE
from easyrec_mm.tensorflow_import import import_tensorflow

if TYPE_CHECKING:
    import pandas as pd

    from easyrec_mm.api.exporting import Exported
    from easyrec_mm.api.pipeline import Pipeline
    from easyrec_mm.config.pipeline import Pipeline as CheckedPipeline
    from easyrec_mm.evaluation.summary import EvalResults

Training: TypeAlias = "Run | str | os.PathLike[str]"

# The number of a row of a DataFrame, which finds its way back to the index.
ROW = "easyrec_mm_row"
# What messages call the DataFrame of an evaluation or a prediction.
FRAME = "the DataFrame data"


@dataclass(frozen=True)
class Run:
    """A training, as `Pipeline.train` and `Pipeline.trained` return it.

    pipeline         what was trained
    checkpoint_path  the checkpoint that is used, or a folder of checkpoints; "": the newest in model_dir, or the best
                     where the config's exporter_type is best
    """

    pipeline: Pipeline
    checkpoint_path: str = ""

    @property
    def model_dir(self) -> str:
        """The folder of the training."""
        return self.pipeline.model_dir

    @property
    def checkpoint(self) -> str:
        """The path of the checkpoint that is used.

        Raises:
          UserError: if model_dir has no checkpoint.
        """
        return find_checkpoint(self.pipeline.checked, self.checkpoint_path)

    def metrics(self) -> pd.DataFrame:
        """Return what the training has recorded, a row per record of metrics.jsonl; NaN where a record lacks a value.

        Raises:
          DataError: if the training has recorded nothing.
        """
        import_tensorflow()
        import pandas as pd

        from easyrec_mm.runs.evaluations import METRICS, read_lines
        from easyrec_mm.runs.model_dir import ModelDir

        lines = list(read_lines(ModelDir(self.model_dir).open().local / METRICS))
        if not lines:
            raise DataError(f"{self.model_dir}: has no {METRICS}; train first")
        return pd.DataFrame(lines)

    def evaluate(self, data: Data | None = None, *, compare: Training = "", precision: str = FLOAT32) -> EvalResults:
        """Evaluate with intervals, as `easyrec-mm eval` does, and write eval_result into model_dir.

        Args:
          data: files or globs, or a DataFrame; by default the config's eval_input_path.
          compare: another training, or its model_dir or checkpoint; the differences are in `comparison` of the result.
          precision: number format, as train_config.precision.

        Returns:
          name -> value of each metric, and "num_samples"; attributes hold intervals, slices and calibration curves.

        Raises:
          UserError: if the data cannot be read or the model cannot be loaded.
        """
        import_tensorflow()
        from easyrec_mm.api.evaluating import Compared, evaluate

        checked, chosen = self.pipeline.checked, Chosen(self.checkpoint_path, precision)
        other = Compared(compare.checkpoint if isinstance(compare, Run) else path_text(compare, "compare"))
        if is_frame(data):
            table = fields_of(data, "data", dtypes_of(checked.schema))
            with as_file(table, FRAME) as path:
                settings, names = input_settings(checked, table), {path: FRAME}
                evaluation = evaluate(checked, path, "data", chosen, other, None, settings, names)
        elif data is not None:
            evaluation = evaluate(checked, path_of(data, "data"), "data", chosen, other)
        else:
            path = checked.config.eval_input_path
            require_path(path, checked, "eval_input_path", "the evaluation data")
            evaluation = evaluate(checked, path, "eval_input_path", chosen, other)
        if evaluation.bad_records:
            warn(f"warning: {evaluation.bad_records}")
        return evaluation.results

    def predict(
        self, data: Data, *, reserved_columns: str | Sequence[str] = (), precision: str = FLOAT32
    ) -> pd.DataFrame:
        """Return the model's outputs for every sample, in the order of the input, as `easyrec-mm predict` writes them.

        Args:
          data: files or globs, or a DataFrame with one row per sample, or one per group with lists.
          reserved_columns: input fields to copy into the result.
          precision: number format, as train_config.precision.

        Returns:
          A row per sample. For a DataFrame it has the index of its rows, and NaN for a row that cannot be read, which
          predict_bad_records.jsonl in model_dir lists; for groups, the index of its group.

        Raises:
          UserError: if the data cannot be read, or hold too many bad records.
        """
        import_tensorflow()
        from easyrec_mm.api.predicting import require_fields

        checked = self.pipeline.checked
        columns = names_of(reserved_columns, "reserved_columns")
        with naming({"--reserved_columns": "reserved_columns"}):
            require_fields(columns, checked.schema)
        if not is_frame(data):
            with naming({"--predict_input_path": "data"}):
                return self._predict(path_of(data, "data"), columns, precision, checked, {})
        import pandas as pd
        import pyarrow as pa

        table = fields_of(data, "data", dtypes_of(checked.schema))
        settings = input_settings(checked, table)
        table = table.append_column(ROW, pa.array(range(len(data)), pa.int64()))
        # The user has not made the column of the row numbers.
        with as_file(table, FRAME) as path, naming({f"{ROW}, ": "", f", {ROW}": ""}):
            rows = self._predict(path, (*columns, ROW), precision, _with_row_numbers(checked, settings), {path: FRAME})
        numbers = rows.pop(ROW)
        if _is_flat(settings):
            rows = rows.set_index(pd.Index(numbers)).reindex(range(len(data)))
            rows.index = data.index
        else:
            rows.index = data.index[numbers]
        return rows

    def _predict(
        self, path: str, columns: tuple[str, ...], precision: str, data: CheckedPipeline, names: Mapping[str, str]
    ) -> pd.DataFrame:
        import pandas as pd

        from easyrec_mm.api.predicting import Output, predict

        with tempfile.TemporaryDirectory(prefix="easyrec_mm_") as folder:
            output = Output(os.path.join(folder, "predictions.parquet"), reserved_columns=columns)
            chosen = Chosen(self.checkpoint_path, precision)
            prediction = predict(self.pipeline.checked, path, output, chosen, data, names)
            if prediction.bad_records:
                warn(f"warning: {prediction.bad_records}")
            return pd.read_parquet(output.path)

    def report(
        self,
        output: str | os.PathLike[str] = "report.html",
        *,
        compare: Training | Sequence[Training] = (),
        data: Paths | None = None,
        num_pictures: int = 5000,
    ) -> str:
        """Write the page of `easyrec-mm report`; return its path.

        Args:
          output: the page to write.
          compare: other trainings, or their model_dirs, to show side by side.
          data: the evaluation data; by default the config's eval_input_path.
          num_pictures: pictures to open of the training and of the evaluation data each.

        Raises:
          UserError: if a training cannot be opened, or the page cannot be written.
        """
        import_tensorflow()
        from easyrec_mm.report.report import ReportOptions, report

        compared = (compare,) if isinstance(compare, str | os.PathLike | Run) else compare
        if not isinstance(compared, Sequence):
            raise UserError(f"compare: is {compare!r}; give a training or its model_dir, or a list of them")
        others = tuple(other.model_dir if isinstance(other, Run) else path_text(other, "compare") for other in compared)
        path = self.pipeline.checked.config.eval_input_path if data is None else path_of(data, "data")
        page, num = path_text(output, "output"), POSITIVE.checked(num_pictures, "num_pictures")
        report(ReportOptions(self.model_dir, others, page, path, self.checkpoint_path, num))
        return page

    def export(
        self,
        output: str | os.PathLike[str],
        data: Paths | None = None,
        *,
        asset_files: str | Sequence[str] = (),
        parity_groups: int = 100,
    ) -> Exported:
        """Split the network, as `easyrec-mm export` does: into `img`, `rec` and `total` in the folder `output`.

        Args:
          output: the folder; exports that it contains are replaced.
          data: files of samples on which the models are compared; by default the config's eval_input_path,
            or else its train_input_path.
          asset_files: files to add to the models' assets.
          parity_groups: number of groups to compare.

        Raises:
          ExportError: if the models disagree, or a folder contains something else.
        """
        import_tensorflow()
        from easyrec_mm.api.exporting import export

        folder = path_text(output, "output")
        places = {name: join(folder, name) for name in ("img", "rec", "total")}
        path = "" if data is None else path_of(data, "data")
        num, files = POSITIVE.checked(parity_groups, "parity_groups"), names_of(asset_files, "asset_files")
        with naming({"--asset_files": "asset_files"}):
            return export(self.pipeline.checked, self.checkpoint_path, places, path, files, num)


def _is_flat(settings: dict[str, Any]) -> bool:
    return bool(settings["data_config.input_type"] == "ParquetInput")


def _with_row_numbers(pipeline: CheckedPipeline, settings: dict[str, str]) -> CheckedPipeline:
    """Return a pipeline that reads tables as the settings say, with their column ROW."""
    from easyrec_mm.api.loading import reading
    from easyrec_mm.protos.data_pb2 import DatasetConfig

    config = type(pipeline.config)()
    config.CopyFrom(pipeline.config)
    config.data_config.input_fields.add(input_name=ROW, input_type=DatasetConfig.INT64)
    return reading(replace(pipeline, config=config), settings)
