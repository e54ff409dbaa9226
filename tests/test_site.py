"""The documentation site: it builds without warnings, holds every page, and loads nothing from elsewhere."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from docs_helpers import ROOT, blocks_of
from PIL import Image

from easyrec_mm.cli.main import COMMANDS, make_parser

CHINESE = ROOT / "README.zh-CN.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    if (ROOT / ".venv").exists():
        done = subprocess.run(
            ["scripts/docs", "--site-dir", folder], cwd=ROOT, capture_output=True, text=True, check=False
        )
    else:  # the packages of the tests are elsewhere
        done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def build(root, folder):
    """What scripts/docs does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def test_every_page_of_docs_stands_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - set(re.findall(r"(\S+\.md)$", navigation, re.MULTILINE)) == set()


@pytest.mark.slow
def test_a_page_without_a_place_and_a_link_to_nowhere_are_errors(tmp_path):
    for name in ("docs", "tools", "configs", "protos"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md", "Dockerfile"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs/lost.md").write_text("# Lost\n")
    wrong = ["[a](nowhere.md)", "[b](../configs/nowhere.config)", "[c](worth.md#nowhere)", "[d](../protos)"]
    with (tmp_path / "docs/stats.md").open("a") as file:
        file.write("\n" + " ".join(wrong) + "\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for place in ("lost.md", "nowhere.md", "nowhere.config", "worth.md#nowhere", "../protos"):
        assert place in done.stderr


@pytest.fixture(scope="module")
def pages(site):
    """Page -> its HTML, without what is around the article."""
    texts = {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    return {name: text for name, text in texts.items() if name != "404.html"}


def article(text):
    (found,) = re.findall(r"<article.*?</article>", text, re.DOTALL)
    return found


@pytest.mark.slow
def test_every_page_of_docs_and_every_command_is_in_the_navigation(pages):
    expected = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    expected |= {f"commands/{name}.html" for name in (*COMMANDS, "index")}
    expected |= {"index.html", "readme.zh-CN.html", "contributing.html", "changes.html"}
    assert set(pages) == expected
    navigation = set(
        re.findall(r'href="([^"#]+\.html)"', re.sub(r"<article.*</article>", "", pages["index.html"], flags=re.DOTALL))
    )
    assert expected - {"index.html"} <= navigation


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(pages, site):
    for name, text in pages.items():
        assert re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text) == [], name
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_links_between_pages_and_to_files_lead_somewhere(pages, site):
    """mkdocs checks them, too; this is what a reader's browser would look for."""
    for name, text in pages.items():
        for target, anchor in re.findall(r'(?:href|src)="([^"#:]*)(?:#([^"]*))?"', article(text)):
            path = ((site / name).parent / target).resolve() if target else site / name
            assert path.is_file(), f"{name}: {target}"
            if anchor and path.suffix == ".html":
                assert f'id="{anchor}"' in path.read_text(encoding="utf-8"), f"{name}: {target}#{anchor}"


@pytest.mark.slow
def test_markdown_is_read_as_it_was_meant(pages):
    """No list, table or code that this reader of Markdown takes for plain text, and no escaped bar in code."""
    for name, text in pages.items():
        shown = re.sub(r"<pre.*?</pre>", "", article(text), flags=re.DOTALL)
        for paragraph in re.findall(r"<p>(.*?)</p>", shown, re.DOTALL):
            assert not re.search(r"^(\||- |#+ |\d+\. |```)", paragraph, re.MULTILINE), f"{name}: {paragraph}"
        assert "`" not in re.sub(r"<code>.*?</code>", "", shown, flags=re.DOTALL), name
        assert not re.search(r"<code>[^<]*\\\|[^<]*</code>", shown), name


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_a_command_has_every_flag_of_its_help(command, pages, capsys, monkeypatch):
    text = pages[f"commands/{command}.html"]
    shown = html.unescape(re.sub("<[^>]*>", "", text))
    monkeypatch.setenv("COLUMNS", "10000")  # a line for each flag
    with pytest.raises(SystemExit):
        make_parser().parse_args([command, "--help"])
    flags = dict(re.findall(r"^  (--[a-z_]+).*?  +(\S.*)", capsys.readouterr().out, re.MULTILINE))
    assert flags
    assert {flag for flag in flags if f"<code>{flag}" not in text} == set()
    assert {flag: meaning for flag, meaning in flags.items() if meaning not in shown} == {}


def test_the_page_of_each_command_leads_to_one_that_explains_it(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from site_pages import EXPLAINED_IN

    assert set(EXPLAINED_IN) == set(COMMANDS) - {"completion"}
    assert {page for page in EXPLAINED_IN.values() if not (ROOT / "docs" / page).is_file()} == set()


# --- The drawings


def test_drawings_are_those_of_their_tools(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import draw_flow
    import draw_groups
    import draw_shop

    for tool in (draw_flow, draw_groups):
        assert tool.OUTPUT.read_text(encoding="utf-8") == tool.draw()
    committed, drawn = (np.asarray(image, np.float32) for image in (Image.open(draw_shop.OUTPUT), draw_shop.draw()))
    assert committed.shape == drawn.shape
    assert np.abs(committed - drawn).mean() < 4  # JPEG changes pixels


# --- README in Chinese


def headings(path):
    """The level of each heading."""
    text = re.sub(r"^ {4}.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]


def links(path):
    """What the links of a page lead to, in their order; that to the page in the other language is left out."""
    found = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    return [link for link in found if not link.startswith("README")]


def test_the_chinese_readme_has_the_headings_the_code_and_the_links_of_the_english_one():
    english, chinese = ROOT / "README.md", CHINESE
    assert headings(chinese) == headings(english)
    codes = [[block.text for block in blocks_of(path)] for path in (english, chinese)]
    assert codes[0] == codes[1]
    assert sorted(links(chinese)) == sorted(links(english))


def test_the_chinese_readme_is_chinese():
    text = re.sub(r"^ {4}.*$|`[^`]*`|\([^)]*\)", "", CHINESE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 1000
