"""docs/troubleshooting.md explains messages that easyrec-mm really prints."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from docs_helpers import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
# What varies in a message: names in capitals, numbers, and "...".
PLACEHOLDER = re.compile(r"\.\.\.|'?(?!TF_CONFIG)\b[A-Z][A-Z_]*\b'?|\S*\d\S*")
# Where messages are put together from parts.
JOINTS = re.compile(r"[:;,()]+(?=\s|$)|\s\(")
# So many words in a row have to be in one text of the code, one of which may be a value there.
MOST_WORDS = 3
VALUE = "\0"
# Messages of others, which the page explains all the same.
OF_OTHERS = {
    "Authentication required": "Redis",
    "password authentication failed": "PostgreSQL",
    "FILE: No space left on device": "the system",
    "easyrec-mm: command not found": "the shell",
    "No module named 'easyrec_mm.protos'": "Python",
    "search --similarity cosine": "a command",
    "TF_CONFIG ...": "the beginning of several",
}
# Words that come together only when a message is put together.
PUT_TOGETHER = {
    ("items", "have", "two"), ("is", "nan", "at"), ("are", "NaN", "at"), ("already", "in", "use"),
    ("--workers", "names", "worker"), ("but", "this", "machine"), ("they", "contain", "halves"),
    ("or", "add", "--refit"),
}  # fmt: skip
# What stands before a message.
LEVEL = re.compile(r"^(note|warning|error): ")


def headings():
    return re.findall(r"^### (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def messages():
    """The messages in the headings; a piece of code without a space is a command, a flag or a value."""
    found = [code for heading in headings() for code in re.findall(r"`([^`]+)`", heading)]
    return [code for code in dict.fromkeys(found) if " " in code and code not in OF_OTHERS]


@cache
def phrases_of_the_code():
    """All runs of two and three words in texts of the package; a word with a value in it is VALUE."""
    found = set()
    for path in (ROOT / "easyrec_mm").rglob("*.py"):
        if "protos" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            words = [VALUE if VALUE in word else word for word in words_of(text)]
            found |= {tuple(words[i : i + size]) for size in (2, 3) for i in range(len(words) - size + 1)}
    return found


def words_of(text):
    return [word for word in (word.strip(".,;:()[]'\"") for word in text.split()) if word]


def phrases(message):
    """The runs of words of a message that do not vary; of one that has none, those with a value."""
    return list(_phrases(PLACEHOLDER.split(LEVEL.sub("", message)))) or list(
        _phrases([PLACEHOLDER.sub(VALUE, message)])
    )


def _phrases(parts):
    for part in parts:
        for clause in JOINTS.split(part):
            words = words_of(clause)
            size = min(len(words), MOST_WORDS)
            if size > 1:
                yield from (tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def is_in_the_code(phrase):
    variants = [phrase, *((*phrase[:i], VALUE, *phrase[i + 1 :]) for i in range(len(phrase)))]
    return any(variant in phrases_of_the_code() for variant in variants)


@pytest.mark.parametrize("message", messages())
def test_a_message_that_is_explained_exists(message):
    sought = set(phrases(message)) - PUT_TOGETHER
    assert sought, "has no fixed words by which a reader could search it"
    assert {phrase for phrase in sought if not is_in_the_code(phrase)} == set()


def test_a_message_that_does_not_exist_is_noticed():
    assert not all(map(is_in_the_code, phrases("`SETTING`: is to big by far; lower it")))
    assert PUT_TOGETHER - {phrase for message in messages() for phrase in phrases(message)} == set()


def test_what_is_no_message_of_ours_is_still_on_the_page():
    text = "\n".join(headings())
    assert [message for message in OF_OTHERS if f"`{message}`" not in text] == []
