"""`easyrec-mm report`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f
from easyrec_mm.console import say
from easyrec_mm.tensorflow_import import import_tensorflow

HELP = "write a page of what a training has learned: curves, metrics, predictions and pictures"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("--model_dir", metavar="D", required=True, help="folder of the training; its pipeline.config is the config")
    add("--compare", metavar="D", nargs="*", default=[], help="folders of other trainings, to show side by side")
    add("--output", metavar="F", default="report.html", help="the page (default report.html)")
    add("--eval_input_path", metavar="P", default="", help="files in place of the config's eval_input_path")
    f.add_checkpoint_flag(parser)
    f.add_setting_flags(parser)
    pictures = "pictures to open of the training and of the evaluation data each (default 5000)"
    add("--num_pictures", metavar="N", type=f.positive, default=5000, help=pictures)


def run(flags: f.Flags) -> int:
    """Make the page."""
    import_tensorflow()
    from easyrec_mm.report.report import ReportOptions, report

    options = f.options_of(ReportOptions, flags, compare=tuple(flags.compare), set=tuple(flags.set))
    for made in report(options, say):
        if made.problem:
            say(f"{made.section.title}: {made.problem}")
    print(f"page: {flags.output}")
    return 0
