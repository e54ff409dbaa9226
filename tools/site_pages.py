"""Pages of the documentation site that do not lie in docs/, for mkdocs (hooks in mkdocs.yml).

README, CONTRIBUTING and CHANGELOG become pages, each command gets a page from the help of its flags, and files of the
repository that a page links to are put into the site. Links are written as they work in the repository;
`on_page_markdown` rewrites them for the site.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from easyrec_mm.cli.main import COMMANDS, make_parser  # noqa: E402

# File of the repository -> page of the site.
OUTSIDE_OF_DOCS = {
    "README.md": "index.md",
    "README.zh-CN.md": "readme.zh-CN.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
# Command -> the pages that explain what it does, in docs/.
EXPLAINED_IN = {
    "init": "grouping.md",
    "group": "grouping.md",
    "convert": "grouping.md",
    "check": "troubleshooting.md",
    "stats": "stats.md",
    "pretrain": "pretraining.md",
    "train": "training.md",
    "tune": "tuning.md",
    "replay": "training.md",
    "deploy": "scaling.md",
    "eval": "metrics.md",
    "report": "report.md",
    "predict": "data_format.md",
    "worth": "worth.md",
    "export": "export.md",
    "apply-delta": "export.md",
    "embed": "export.md",
    "extract": "extract.md",
    "store": "export.md",
    "quantize": "semantic_ids.md",
    "search": "search.md",
    "weights": "pretrained.md",
    "serve": "serving.md",
}
# Place in the navigation of mkdocs.yml where the pages of the commands are put.
COMMANDS_PLACE = "commands/"
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
_CODE_WITH_BAR = re.compile(r"`[^`\n]*\\\|[^`\n]*`")


# --- Events of mkdocs


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the commands into the navigation."""
    pages = ["commands/index.md", *(f"commands/{name}.md" for name in COMMANDS)]
    config.nav = _with_commands(config.nav, pages)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the files of the repository that pages link to."""
    for source, page in OUTSIDE_OF_DOCS.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page, text in command_pages().items():
        files.append(File.generated(config, page, content=text))
    for file in list(files.documentation_pages()):
        for path in sorted(linked_files(file)):
            uri = f"source/{path}"
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links into the site, and bars in code of tables, which this Markdown needs no backslash for."""
    text = _LINK.sub(lambda match: site_link(match[1], page.file), markdown)
    lines = (
        _CODE_WITH_BAR.sub(_without_backslash, line) if line.startswith("|") else line for line in text.split("\n")
    )
    return "\n".join(lines)


# --- Links


def linked_files(file: File) -> set[str]:
    """Return the files of the repository outside of docs/ that a page links to and that are no pages themselves."""
    targets = {in_repository(link, file) for link in _LINK.findall(file.content_string)}
    return {
        path
        for path in targets
        if path and not path.startswith("docs/") and path not in OUTSIDE_OF_DOCS and (ROOT / path).is_file()
    }


def site_link(link: str, file: File) -> str:
    """Return a link of a page as it works in the site; one that leads nowhere stays, and mkdocs reports it."""
    path = in_repository(link, file)
    if path is None or not (ROOT / path).is_file():
        return link
    uri = OUTSIDE_OF_DOCS.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}")
    return posixpath.relpath(uri, posixpath.dirname(file.src_uri) or ".")


def in_repository(link: str, file: File) -> str | None:
    """Return the path, from the root of the repository, that a link of a page names; None for a link to elsewhere."""
    if re.match(r"[a-z]+:", link) or link.startswith("/"):
        return None
    sources = {page: source for source, page in OUTSIDE_OF_DOCS.items()}
    source = sources.get(file.src_uri, f"docs/{file.src_uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return None if path.startswith("..") else path


def _without_backslash(match: re.Match[str]) -> str:
    return match[0].replace("\\|", "|")


def _with_commands(item: Any, pages: list[str]) -> Any:
    if isinstance(item, list):
        return [_with_commands(part, pages) for part in item]
    if isinstance(item, dict):
        return {title: _with_commands(part, pages) for title, part in item.items()}
    return pages if item == COMMANDS_PLACE else item


# --- Commands


def command_pages() -> dict[str, str]:
    """Return the pages of the commands, and of their list, from the parser of flags."""
    parser = make_parser()
    commands = _subparsers(parser)
    rows = [f"| [{name}]({name}.md) | {_cell(module.HELP)} |" for name, module in COMMANDS.items()]
    epilog = [line.strip() for line in str(parser.epilog).removeprefix("exit status: ").split("; ")]
    statuses = [f"| {status} | {_cell(meaning)} |" for status, _, meaning in (line.partition(": ") for line in epilog)]
    index = [
        "# Commands",
        "",
        "| command | what it does |",
        "|---|---|",
        *rows,
        "",
        "Exit statuses of all commands, with [what to do](../troubleshooting.md):",
        "",
        "| status | meaning |",
        "|---|---|",
        *statuses,
    ]
    pages = {"commands/index.md": "\n".join(index) + "\n"}
    for name, command in commands.items():
        pages[f"commands/{name}.md"] = "\n".join(_page_of(name, command)) + "\n"
    return pages


def _page_of(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"# easyrec-mm {name}"
    yield from _section(parser)
    if name in EXPLAINED_IN:
        yield from ("", f"More: [{EXPLAINED_IN[name]}](../{EXPLAINED_IN[name]})")
    for action, command in _subparsers(parser).items():
        yield from ("", f"## {action}")
        yield from _section(command)


def _section(parser: argparse.ArgumentParser) -> Iterator[str]:
    if parser.description:
        yield from ("", _text(parser.description))
    yield from ("", "```text", *_usage(parser), "```")
    rows = [row for action in _flags(parser) for row in [_row(action)]]
    if rows:
        yield from ("", "| flag | meaning |", "|---|---|", *rows)


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    """Return how the command is called, with the flags that it needs."""
    required = [action for action in _flags(parser) if action.required or not action.option_strings]
    words = [
        f"{action.option_strings[0]} {_value(action)}" if action.option_strings else _value(action)
        for action in required
    ]
    commands = _subparsers(parser)
    words += [f"{{{','.join(commands)}}}"] if commands else []
    return [" ".join([parser.prog, *words, "[flags]"])]


def _row(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{_value(action)}`"
    takes_value = bool(action.option_strings) and action.nargs != 0
    value = f" `{_value(action)}`" if takes_value else ""
    required = " **required**" if action.required and action.option_strings else ""
    return f"| {names}{value} | {_cell(_help(action))}{required} |".replace("``", "` `")


def _help(action: argparse.Action) -> str:
    """Return the help of a flag with its default, as argparse would print them."""
    formatter = argparse.HelpFormatter("easyrec-mm")
    return formatter._expand_help(action) if action.help else ""


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return "|".join(str(choice) for choice in action.choices)
    return str(action.metavar or action.dest.upper())


def _flags(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    hidden = (argparse._SubParsersAction, argparse._HelpAction)
    return [action for action in parser._actions if not isinstance(action, hidden) and action.help != argparse.SUPPRESS]


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _text(text: str) -> str:
    return re.sub(r"[*_]", r"\\\g<0>", text.replace("<", "&lt;"))  # Markdown has no backslash for <


def _cell(text: str) -> str:
    return _text(" ".join(text.split())).replace("|", "\\|")
