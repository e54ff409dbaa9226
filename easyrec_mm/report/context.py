"""What the sections of a report share: the runs, one pass of each model over the evaluation data, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from easyrec_mm.config.pipeline import Pipeline, check_config
from easyrec_mm.data.picture_reader import PictureReader, picture_reader
from easyrec_mm.data.whole_pictures import decode_whole, thumbnail
from easyrec_mm.errors import ConfigError, UserError
from easyrec_mm.files import is_remote
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.report.evaluated import Evaluated, evaluate
from easyrec_mm.report.explained import Explained
from easyrec_mm.report.run import Run
from easyrec_mm.report.section import Picture, Unavailable
from easyrec_mm.schema import Schema
from easyrec_mm.stable_hash import hash_array

# Side of a thumbnail in pixels: twice that on the page, so that it is sharp on screens with fine pixels.
THUMBNAIL = 160
_READ_AT_ONCE = 256
NO_EVAL_DATA = "The config has no eval_input_path; give the files with --eval_input_path."


@dataclass
class Context:
    """What sections share.

    runs          the training that the report is about, then those that it is compared with
    eval_path     files of the evaluation data; "" if none are known
    eval_setting  name of the setting that they are from, for messages
    num_pictures  number of pictures to open of each kind of data
    say           shows a message about the work
    """

    runs: Sequence[Run]
    eval_path: str
    eval_setting: str
    num_pictures: int
    say: Callable[[str], None] = lambda message: None
    _evaluated: dict[str, Evaluated | UserError | Unavailable] = field(default_factory=dict)
    _thumbnails: dict[bytes, Picture] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """Return the training that the report is about."""
        return self.runs[0]

    @property
    def schema(self) -> Schema:
        """Return the meaning of a row of its data."""
        return self.run.pipeline.schema

    @property
    def evaluated(self) -> Evaluated:
        """Return what its model says of the evaluation data; the first call evaluates.

        Raises:
          Unavailable: if there are no evaluation data.
          UserError: if the data cannot be read.
        """
        return self.evaluated_of(self.run)

    def evaluated_of(self, run: Run) -> Evaluated:
        """Return what the model of one of the runs says of the same evaluation data, by the same metrics and slices.

        Raises:
          Unavailable, UserError: as for `evaluated`.
        """
        if run.path not in self._evaluated:
            try:
                self._evaluated[run.path] = self._evaluate(run)
            except (UserError, Unavailable) as error:
                self._evaluated[run.path] = error
        result = self._evaluated[run.path]
        if isinstance(result, Exception):
            raise result
        return result

    def _evaluate(self, run: Run) -> Evaluated:
        if not self.eval_path:
            raise Unavailable(NO_EVAL_DATA)
        self.say(f"evaluating {run.name} on {self.eval_path}")
        return evaluate(run, self._plan_of(run), self.eval_path, self.eval_setting)

    def _plan_of(self, run: Run) -> Pipeline:
        """Return a run's pipeline with the first one's metrics and slices, so that their replicates belong together.

        Raises:
          Unavailable: if its data have not the fields for that.
        """
        if run is self.run:
            return run.pipeline
        config, first = EasyRecConfig(), self.run.pipeline.config
        config.CopyFrom(run.pipeline.config)
        config.eval_config.CopyFrom(first.eval_config)
        config.train_input_path = first.train_input_path  # slices by the frequency of items count them there
        try:
            schema, _ = check_config(config, run.pipeline.path)
        except ConfigError as error:
            raise Unavailable(f"the metrics and slices of {self.run.name} do not fit its config: {error}") from error
        return replace(run.pipeline, config=config, schema=schema)

    @property
    def model_seconds(self) -> float:
        """Return the seconds that models took for their passes over the evaluation data and its pictures."""
        passes = [result.seconds for result in self._evaluated.values() if isinstance(result, Evaluated)]
        return sum(passes) + self.explained.model_seconds

    @cached_property
    def explained(self) -> Explained:
        """What the sections share that explain the model."""
        return Explained(self)

    def close(self) -> None:
        """Drop what was read, and close the stores of vectors."""
        for result in self._evaluated.values():
            if isinstance(result, Evaluated):
                result.rows.close()
        for run in self.runs:
            run.close()

    # --- Pictures

    def require_pictures(self) -> None:
        """Check that the model takes pictures.

        Raises:
          Unavailable: if it does not.
        """
        if not self.schema.uses_image:
            raise Unavailable("The model takes no pictures: its feature groups have no ImgFeature.")

    def require_items(self) -> None:
        """Check that the model takes pictures or texts of items.

        Raises:
          Unavailable: if it does not.
        """
        if not self.schema.has_item_vector:
            raise Unavailable("The model takes no pictures: its feature groups have no ImgFeature.")

    @cached_property
    def reader(self) -> PictureReader:
        """The reader of the pictures of the training's data."""
        return picture_reader(self.run.pipeline.config.data_config)

    def choose_pictures(self, paths: Sequence[bytes], num: int) -> list[bytes]:
        """Return up to `num` of the pictures: a choice that depends on their paths alone."""
        if len(paths) <= num:
            return list(paths)
        hashes = hash_array(np.array(paths, object))
        return [paths[i] for i in np.sort(np.argpartition(hashes, num)[:num])]

    def thumbnails(self, paths: Sequence[bytes]) -> list[Picture]:
        """Return a small picture for each path, without lines; one that cannot be read says why."""
        new = list(dict.fromkeys(path for path in paths if path not in self._thumbnails))
        image = self.schema.image
        for start in range(0, len(new), _READ_AT_ONCE):
            portion = new[start : start + _READ_AT_ONCE]
            self.reader.begin(portion, image.max_pixels)
            contents, problems = self.reader.read(portion, image.max_pixels)
            for row, (path, content) in enumerate(zip(portion, contents, strict=True)):
                self._thumbnails[path] = self._thumbnail(content, problems.get(row, ""))
        return [self._thumbnails[path] for path in paths]

    def _thumbnail(self, content: bytes, problem: str) -> Picture:
        if problem:
            return Picture(None, problem=problem)
        try:
            return Picture(thumbnail(decode_whole(content, self.schema.image), THUMBNAIL))
        except ValueError as error:
            return Picture(None, problem=str(error))


def short_place(file: str, row: int) -> str:
    """Return where a group is, without the folders of its file."""
    name = file if is_remote(file) else file.rpartition("/")[2]
    return f"{name}:{row}"
