"""The command `stats`: reads an input once, opens some of its pictures, and reports what it contains."""

from __future__ import annotations

import json
from dataclasses import dataclass

from easyrec_mm import __version__
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.data.bad_records import BadRecord
from easyrec_mm.data.packed_pictures import packed_path
from easyrec_mm.data.picture_reader import PictureReader, picture_reader
from easyrec_mm.data.whole_pictures import ANY_PICTURE
from easyrec_mm.errors import UserError
from easyrec_mm.files import put_text
from easyrec_mm.safe_text import hide_secrets
from easyrec_mm.schema import Image
from easyrec_mm.stats.fields import SampleStats
from easyrec_mm.stats.page import page
from easyrec_mm.stats.pictures import PathStats, PictureStats, open_pictures
from easyrec_mm.stats.report import NUM_BAD_SHOWN, Report, make_report
from easyrec_mm.stats.samples import SampleReader, config_samples, log_samples
from easyrec_mm.stats.text import text


@dataclass(frozen=True)
class StatsOptions:
    """The flags of the command; its file in cli describes them."""

    input: str = ""
    output: str = "stats.html"
    json: str = ""
    num_pictures: int = 2000
    separator: str = ","
    image_field: str = ""
    label_fields: tuple[str, ...] = ()
    image_root: str = ""


@dataclass(frozen=True)
class _Pictures:
    """The reader of pictures, and its settings."""

    reader: PictureReader
    image: Image
    separator: str = ""
    is_packed: bool = False


def stats(pipeline: Pipeline | None, options: StatsOptions) -> str:
    """Run the command, and return the text for the user.

    Args:
      pipeline: a config that describes the input; None for a flat log, whose types are inferred from its values.
      options: the flags.

    Raises:
      UserError: if there is no input, or it cannot be read.
    """
    if pipeline is None:
        name = options.input
        samples = log_samples(options.input, options.separator, options.image_field, options.label_fields)
        pictures = _Pictures(PictureReader(options.image_root), ANY_PICTURE)
    else:
        data = pipeline.config.data_config
        name = options.input or pipeline.config.train_input_path
        if not name:
            raise UserError(f"--input: is missing, and {pipeline.path} has no train_input_path; give the files to read")
        samples = config_samples(pipeline, name, "--input" if options.input else "train_input_path")
        reader = picture_reader(data, options.image_root)
        pictures = _Pictures(reader, pipeline.schema.image, pipeline.schema.image_separator, data.packed_images)
    report = _read(name, samples, pictures, options.num_pictures)
    put_text(options.output, hide_secrets(page(report)))
    if options.json:
        values = {"easyrec_mm": __version__, **report.as_dict()}
        put_text(options.json, hide_secrets(json.dumps(values, indent=1, ensure_ascii=False)))
    return f"{text(report)}\n\npage: {options.output}"


def _read(name: str, samples: SampleReader, pictures: _Pictures, num_pictures: int) -> Report:
    sample_stats = SampleStats(samples.fields)
    paths = PathStats(num_pictures, pictures.separator)
    refused: list[BadRecord] = []
    num_refused = 0
    for file in samples.files:
        for piece in samples.read(file):
            sample_stats.add(piece)
            num_refused += len(piece.refused)
            refused += [BadRecord("group", file, *bad) for bad in piece.refused[: NUM_BAD_SHOWN - len(refused)]]
            if samples.fields.image:
                paths.add(piece.image, file)
    opened: PictureStats | None = None
    if samples.fields.image:
        sample_paths = [path.encode("utf-8", "surrogateescape") for path, _ in paths.sample]
        if pictures.is_packed:
            sample_paths = [packed_path(file, path) for path, (_, file) in zip(sample_paths, paths.sample, strict=True)]
        opened = open_pictures(sample_paths, pictures.reader, pictures.image)
    return make_report(name, len(samples.files), sample_stats, refused, num_refused, paths, opened)
