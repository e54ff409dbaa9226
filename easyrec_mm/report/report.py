"""The command `report`: opens trainings, makes the sections, and writes the page in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from easyrec_mm.files import Failure, StorageError, is_remote, place_of, plain, put_text, written_at
from easyrec_mm.files.written_file import require_folder
from easyrec_mm.report.context import Context
from easyrec_mm.report.page import Made, make_sections, page
from easyrec_mm.report.run import names_of, open_run


@dataclass(frozen=True)
class ReportOptions:
    """The flags of the command; its file in cli describes them."""

    model_dir: str
    compare: tuple[str, ...] = ()
    output: str = "report.html"
    eval_input_path: str = ""
    checkpoint_path: str = ""
    num_pictures: int = 5000
    set: tuple[str, ...] = ()
    ignore_unsupported: bool = False


def report(options: ReportOptions, say: Callable[[str], None] = lambda message: None) -> list[Made]:
    """Make the page and write it; return its sections.

    Raises:
      UserError: if a training cannot be opened, or the page cannot be written.
    """
    _require_writable(options.output)
    with opened(options, say) as context:
        made = make_sections(context)
        put_text(options.output, page(context, made))
    return made


@contextmanager
def opened(options: ReportOptions, say: Callable[[str], None] = lambda message: None) -> Iterator[Context]:
    """Yield what the sections share.

    Raises:
      UserError: if a training cannot be opened.
    """
    paths = [options.model_dir, *options.compare]
    names = names_of(paths)
    runs = [
        open_run(
            options.model_dir, "--model_dir", names[0], options.set, options.ignore_unsupported, options.checkpoint_path
        )
    ]
    runs += [
        open_run(path, "--compare", name, (), options.ignore_unsupported)
        for path, name in zip(options.compare, names[1:], strict=True)
    ]
    path, setting = options.eval_input_path, "--eval_input_path"
    if not path:
        path, setting = runs[0].pipeline.config.eval_input_path, "eval_input_path"
    context = Context(runs, path, setting, options.num_pictures, say)
    try:
        yield context
    finally:
        context.close()


def _require_writable(output: str) -> None:
    """Check that a page can be written, before minutes are spent on it; remove what a killed report has left.

    Raises:
      UserError: if it cannot.
    """
    if is_remote(output):
        _require_place(output)
        return
    require_folder(output, "--output")
    path = Path(plain(output))
    for left in path.parent.glob(f"{escape(written_at(path.name).name.rpartition('-')[0])}-*"):
        _, _, process = left.name.rpartition("-")
        # A report that was killed while it wrote has left a part of its page.
        if process.isdecimal() and not Path(f"/proc/{process}").exists():
            left.unlink(missing_ok=True)


def _require_place(output: str) -> None:
    """Check that the bucket or server of a page can be reached.

    Raises:
      StorageError: if it cannot.
    """
    try:
        place_of(output).stat(output)
    except StorageError as error:
        if error.failure != Failure.MISSING:
            raise
