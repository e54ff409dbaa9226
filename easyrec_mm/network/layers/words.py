"""Texts -> numbers of hashed words and parts of words, with TensorFlow's operations for strings.

Shape legend: T texts, W words of a text, K numbers of a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

# Stands for no number, where a text has fewer words or a word fewer parts.
NOTHING = -1
# Characters of a text that are read at most for each word that is kept: more are no words.
_CHARACTERS_OF_A_WORD = 32
# Parts of a word at most.
_MOST_PARTS = 40
# Letters of scripts that put no spaces between words: each counts as a word.
_WITHOUT_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
# Everything except letters, marks and digits divides words.
_BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}]+"
_BEGINNING, _END, _BETWEEN = "<", ">", " "


@dataclass(frozen=True)
class Words:
    """How texts become numbers.

    num_rows       numbers are 0 to num_rows - 1
    max_words      W: words of a text that are kept, the first ones
    word_ngrams    a word's numbers are those of the sequences of up to so many words that begin with it,
    min_letters    and of its parts of this many letters
    max_letters    to this many; 0 for none
    """

    num_rows: int
    max_words: int
    word_ngrams: int
    min_letters: int
    max_letters: int

    @property
    def num_numbers(self) -> int:
        """Return K."""
        return self.word_ngrams + (_MOST_PARTS if self.min_letters else 0)

    def numbers(self, texts: tf.Tensor) -> tf.Tensor:
        """Return the numbers of texts, string `[T]` of UTF-8: int32 `[T, W, K]`, with NOTHING in unused places."""
        words = self._words(texts)  # [T, (words)]
        padded = words.to_tensor(shape=[None, self.max_words])
        columns = [padded]
        for length in range(2, self.word_ngrams + 1):
            follower = tf.pad(padded[:, length - 1 :], [[0, 0], [0, length - 1]])
            sequence = tf.strings.join([columns[-1], follower], _BETWEEN)
            columns.append(tf.where((columns[-1] == "") | (follower == ""), "", sequence))
        keys = tf.stack(columns, 2)  # [T, W, word_ngrams]
        if self.min_letters:
            keys = tf.concat([keys, self._parts(padded)], 2)
        hashed = tf.cast(tf.strings.to_hash_bucket_fast(keys, self.num_rows), tf.int32)
        return tf.where(keys == "", NOTHING, hashed)

    def _words(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Return the first words of each text in small letters."""
        most = self.max_words * _CHARACTERS_OF_A_WORD
        return split_words(tf.strings.substr(texts, 0, most, unit="UTF8_CHAR"))[:, : self.max_words]

    def _parts(self, words: tf.Tensor) -> tf.Tensor:
        """Return the parts of words `[T, W]`: string `[T, W, parts]`, "" in unused places."""
        flat = tf.reshape(words, [-1])
        marked = tf.where(flat == "", "", tf.strings.join([_BEGINNING, flat, _END]))
        letters = tf.strings.unicode_split(marked, "UTF-8")
        widths = list(range(self.min_letters, max(self.min_letters, self.max_letters) + 1))
        parts = tf.strings.ngrams(letters, widths, separator="").to_tensor(shape=[None, _MOST_PARTS])
        return tf.reshape(parts, [-1, self.max_words, _MOST_PARTS])


def split_words(texts: tf.Tensor) -> tf.RaggedTensor:
    """Return the words of texts, string `[T]` of UTF-8, in small letters: `[T, (words)]`."""
    lower = tf.strings.lower(texts, encoding="utf-8")
    words = tf.strings.regex_replace(lower, _BETWEEN_WORDS, " ")
    words = tf.strings.regex_replace(words, f"({_WITHOUT_SPACES})", r" \1 ")
    # A text of signs alone is not an empty one.
    words = tf.where(tf.strings.strip(words) == "", lower, words)
    return tf.strings.split(words)
