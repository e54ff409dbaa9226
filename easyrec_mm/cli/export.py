"""`easyrec-mm export`."""

from __future__ import annotations

import sys

from easyrec_mm.api.exporting import export
from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import load_config
from easyrec_mm.console import tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.files import StorageError, join, read
from easyrec_mm.files.folders import shown

HELP = "split a trained model into image, rec and total model"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command, which include those of EasyRec's tools/export_mm_model.py."""
    add = parser.add_argument
    add("--model_dir", metavar="D", help="folder of the training, in place of the config's model_dir")
    add(
        "--pipeline_config_path",
        "--pipeline_config",
        dest="pipeline_config",
        metavar="C",
        help="pipeline config file; with --model_dir, only if that has no pipeline.config",
    )
    f.add_setting_flags(parser)
    f.add_checkpoint_flag(parser)
    for name, model in (("rec", "rec"), ("total", "total"), ("img", "image")):
        add(f"--{name}_model_export_dir", metavar="F", required=True, help=f"folder of the {model} model")
    add("--asset_files", metavar="A,B", type=f.names, default=(), help="files to add to the models' assets")
    add("--eval_input_path", metavar="P", help="files of samples on which the models are compared")
    add("--parity_groups", metavar="N", type=f.positive, default=100, help="groups to compare (default 100)")
    add(
        "--delta_from",
        metavar="R",
        help="folder of an earlier rec model: also write to --delta_dir what has changed since, for apply-delta",
    )
    add("--delta_dir", metavar="D", help="folder of the delta, with --delta_from")


def run(flags: f.Flags) -> int:
    """Export the models and report how exactly they agree."""
    if not (flags.model_dir or flags.pipeline_config):
        raise UserError("--model_dir: give the folder of the training, or its config with --pipeline_config_path")
    if flags.delta_from or flags.delta_dir:
        _check_delta_flags(flags)
    from easyrec_mm.config.overrides import Override

    overrides = []
    if flags.model_dir:
        overrides = [Override("--model_dir", "model_dir", flags.model_dir)]
        flags.pipeline_config = _config_of(flags.model_dir, flags.pipeline_config)
    pipeline = load_config(flags, overrides)
    places = {name: getattr(flags, f"{name}_model_export_dir") for name in ("img", "rec", "total")}
    exported = export(
        pipeline, flags.checkpoint_path or "", places, flags.eval_input_path or "", flags.asset_files,
        flags.parity_groups,
    )  # fmt: skip
    folders = f"image model in {places['img']}, rec model in {places['rec']}, total model in {places['total']}"
    parity = exported.parity
    lines = [
        f"{shown(exported.checkpoint)}: {folders}",
        f"compared on {parity['num_samples']} samples with {parity['num_pictures']} pictures; largest differences:",
    ]
    for ways, differences in parity["max_abs_difference"].items():
        lines.append(f"  {ways}: " + ", ".join(f"{name} {value:.1e}" for name, value in sorted(differences.items())))
    tell_result("\n".join(lines), checkpoint=shown(exported.checkpoint), models=places, parity=parity)
    if flags.delta_from:
        _write_delta(flags)
    return 0


def _check_delta_flags(flags: f.Flags) -> None:
    """Check the base of a delta before the export, which takes long.

    Raises:
      UserError: if a flag is missing, or the base is not an exported rec model that stays.
    """
    from easyrec_mm.manifest import read_header

    for name, other in (("delta_from", "delta_dir"), ("delta_dir", "delta_from")):
        if not getattr(flags, name):
            raise UserError(f"--{other} {getattr(flags, other)}: is without --{name}; give both")
    if flags.delta_from.rstrip("/") == flags.rec_model_export_dir.rstrip("/"):
        advice = "give the new rec model a folder of its own with --rec_model_export_dir"
        raise UserError(f"--delta_from {flags.delta_from}: is the folder that this export replaces; {advice}")
    read_header(flags.delta_from, "rec")


def _write_delta(flags: f.Flags) -> None:
    """Write the delta, and report its size, and whether vectors of pictures must be computed again."""
    from easyrec_mm.delta.make import make_delta

    report = make_delta(flags.delta_from, flags.rec_model_export_dir, flags.delta_dir)
    share = report.num_bytes / report.num_result_bytes
    size = f"{report.num_bytes:,} bytes, {share:.1%} of the rec model"
    rows = f"{report.num_changed:,} of {report.num_rows:,} rows of tables"
    print(f"delta from {flags.delta_from} in {flags.delta_dir}: {size}, with {rows}")
    if report.has_same_image_tower:
        print("the image model computes the vectors that it computed before: those in stores stay, embed new pictures")
    else:
        print("the image model has changed: embed all pictures with it before the rec model is served")


def _config_of(model_dir: str, path: str | None) -> str:
    """Return the config that the training has written into model_dir, as in EasyRec; `path` if it has none."""
    written = join(model_dir, "pipeline.config")
    if not path:
        return written
    try:
        read(written)
    except (OSError, StorageError):
        return path
    print(f"note: {written} is used, which the training has written, instead of {path}", file=sys.stderr)
    return written
