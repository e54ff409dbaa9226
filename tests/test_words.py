"""The numbers of words and parts of words, against a plain reference in Python."""

import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from farmhash import Fingerprint64
from hypothesis import given, settings
from hypothesis import strategies as st

from easyrec_mm.network.layers.words import Words

# Parts of a long word that are taken.
MOST_PARTS = 40
WORDS = Words(num_rows=1000, max_words=4, word_ngrams=2, min_letters=3, max_letters=4)


def is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def words_of(text: str) -> list[str]:
    """Runs of letters, marks and digits; of Chinese each sign."""
    spaced = "".join(c if is_letter(c) else " " for c in text.lower())
    spaced = "".join(f" {c} " if "CJK UNIFIED" in unicodedata.name(c, "") else c for c in spaced)
    return spaced.split()


def parts_of(word: str) -> list[str]:
    marked = f"<{word}>"
    return [marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1)][:MOST_PARTS]


def reference(text: str) -> list[list[int]]:
    """The numbers of each of the first words."""
    words = words_of(text)[: WORDS.max_words]
    keys = [
        [word, *([f"{word} {after}"] if after else []), *parts_of(word)]
        for word, after in zip(words, [*words, ""][1:], strict=True)
    ]
    return [[Fingerprint64(key.encode()) % WORDS.num_rows for key in of_word] for of_word in keys]


def numbers(texts: list[str]) -> list[list[list[int]]]:
    found = WORDS.numbers(tf.constant(texts)).numpy()
    return [[sorted(row[row >= 0].tolist()) for row in text if (row >= 0).any()] for text in found]


@pytest.mark.parametrize(
    "text", ["Red Cotton T-Shirt", "", "   ", "红色棉质 T恤", "ÉCLAIR Straße", "one two three four five six", "x" * 30]
)
def test_numbers(text):
    assert numbers([text]) == [[sorted(word) for word in reference(text)]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="ascii", exclude_characters="\x00"), max_size=40), min_size=1, max_size=4))
def test_numbers_of_any_texts(texts):
    texts = ["", *(text for text in texts if words_of(text) or not text.strip())]
    assert numbers(texts) == [[sorted(word) for word in reference(text)] for text in texts]


def test_a_text_of_signs_is_not_empty():
    assert numbers(["!!!", " \t"])[0]
    assert numbers(["!!!", " \t"])[1] == []


def test_a_huge_text_is_cut():
    huge = "word " * 100_000
    assert numbers([huge]) == numbers([huge[:20]])


def test_without_parts_and_sequences():
    plain = Words(num_rows=1000, max_words=4, word_ngrams=1, min_letters=0, max_letters=0)
    found = plain.numbers(tf.constant(["red mug"])).numpy()
    np.testing.assert_array_equal(found[0, :2, 0], [Fingerprint64(word) % 1000 for word in (b"red", b"mug")])
    assert found.shape == (1, 4, 1)
