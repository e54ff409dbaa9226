"""Every command of README, CONTRIBUTING and docs runs, but for those that NOT_RUN lists with the reason.

The tutorial is carried out first, on a small log. Each other page runs in a copy of what it leaves, its blocks in their
order, so that a page may use what it has made.
"""

from __future__ import annotations

import shutil

import pytest
from conftest import make_once
from docs_commands import (
    NOT_RUN,
    TUTORIAL,
    Place,
    add_other_files,
    check_without_running,
    reason_not_to_run,
    same_for_all_pages,
)
from docs_helpers import PAGES, ROOT, blocks_of

BLOCKS = {str(path.relative_to(ROOT)): [b for b in blocks_of(path) if b.kind in ("shell", "python")] for path in PAGES}
COMMANDS = [command for blocks in BLOCKS.values() for b in blocks if b.kind == "shell" for command in b.commands()]
LEFT_OUT = list(dict.fromkeys(command for command in COMMANDS if reason_not_to_run(command)))


def pages_that_run():
    def runs(block):
        return block.kind == "python" or any(reason_not_to_run(command) is None for command in block.commands())

    return [page for page, blocks in BLOCKS.items() if page != TUTORIAL and any(runs(block) for block in blocks)]


@pytest.fixture(scope="module")
def done():
    """Commands that need not run again where the tutorial has been carried out."""
    return {same_for_all_pages(command) for block in BLOCKS[TUTORIAL] for command in block.commands()}


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the tutorial was carried out, with what other pages name; not to be changed."""

    def carry_out(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            run_page(TUTORIAL, folder, set())
        add_other_files(folder)

    return make_once(tmp_path_factory, "docs_tutorial", carry_out)


def run_page(page, folder, done):
    place = Place(folder, done)
    try:
        for block in BLOCKS[page]:
            place.run_block(block)
    finally:
        place.end()


@pytest.mark.parametrize("command", LEFT_OUT)
def test_a_command_that_does_not_run_is_valid(command):
    check_without_running(command)


def test_every_reason_not_to_run_is_that_of_a_command():
    assert {reason_not_to_run(command) for command in LEFT_OUT} == set(NOT_RUN)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_that_run())
def test_the_commands_of_a_page_run(page, tutorial, done, tmp_path, monkeypatch):
    shutil.copytree(tutorial, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    # What a newcomer does first is run as a whole.
    run_page(page, tmp_path / "here", set() if page == "README.md" else done)
