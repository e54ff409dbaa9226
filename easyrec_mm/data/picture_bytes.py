"""Reads the parts of picture files within TensorFlow graphs: segments of JPEG, chunks of PNG and WebP, and EXIF."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# Zero bytes behind the end of a file, so that short fields can be read at any position within it.
_PADDING = 16

# Second bytes of JPEG's markers: APP0 to APP15 and COM; EXIF is in an APP1.
APP0, _APP1, _APP15, _COM = 0xE0, 0xE1, 0xEF, 0xFE
_MARKER = 0xFF  # first byte of a marker, and of any number of fill bytes before it

_ORIENTATION_TAG, _SHORT = 0x0112, 3  # EXIF 2.32, section 4.6.4; TIFF 6.0, section 2
_UPRIGHT = 1


class Exif(NamedTuple):
    """Where the TIFF block of a file's EXIF begins and ends; without EXIF, `start` is 0."""

    start: tf.Tensor
    end: tf.Tensor


def may_precede_exif(marker: tf.Tensor) -> tf.Tensor:
    """Return whether segments of JPEG with these second bytes of markers may precede EXIF, or are EXIF."""
    is_app = (marker >= APP0) & (marker <= _APP15)
    return is_app | tf.equal(marker, _COM) | tf.equal(marker, _MARKER)


class FileBytes:
    """The bytes of a picture file.

    Args:
      data: string scalar.
    """

    def __init__(self, data: tf.Tensor) -> None:
        self.size = tf.strings.length(data)
        self._byte = tf.cast(tf.io.decode_raw(tf.strings.join([data, b"\x00" * _PADDING]), tf.uint8), tf.int32)
        self._last = self.size + _PADDING - 1

    def at(self, position: tf.Tensor) -> tf.Tensor:
        """Return the bytes at these positions, int32; 0 behind the end."""
        return tf.gather(self._byte, tf.clip_by_value(position, 0, self._last))

    def number(self, position: tf.Tensor, num_bytes: int, is_little_endian: tf.Tensor | bool = False) -> tf.Tensor:
        """Return the unsigned numbers at these positions, int32; very large ones as one that is behind the end."""
        of_bytes = self.at(tf.expand_dims(position, -1) + tf.range(num_bytes))  # [..., num_bytes]
        of_bytes = tf.where(is_little_endian, of_bytes, of_bytes[..., ::-1])
        weights = tf.constant([256**i for i in range(num_bytes)], tf.int64)
        value = tf.reduce_sum(tf.cast(of_bytes, tf.int64) * weights, -1)
        return tf.cast(tf.minimum(value, tf.cast(tf.int32.max - self._last, tf.int64)), tf.int32)

    def has(self, position: tf.Tensor, text: bytes) -> tf.Tensor:
        """Return whether these bytes stand at a position."""
        return tf.reduce_all(tf.equal(self.at(position + tf.range(len(text))), list(text)))

    def orientation(self, exif: Exif) -> tf.Tensor:
        """Return EXIF's orientation of the picture itself, int32 from 1 to 8; 1 (upright) where none is valid.

        It is the entry of the first directory (IFD0); the next directory describes a thumbnail.
        """
        start, end = exif
        is_little_endian = self.has(start, b"II*\x00")
        is_tiff = (start > 0) & (is_little_endian | self.has(start, b"MM\x00*"))
        directory = start + self.number(start + 4, 4, is_little_endian)
        num_entries = tf.minimum(self.number(directory, 2, is_little_endian), (end - directory - 2) // 12)
        entry = directory + 2 + 12 * tf.range(tf.where(is_tiff, tf.maximum(num_entries, 0), 0))  # [N]
        is_orientation = (
            tf.equal(self.number(entry, 2, is_little_endian), _ORIENTATION_TAG)
            & tf.equal(self.number(entry + 2, 2, is_little_endian), _SHORT)
            & tf.equal(self.number(entry + 4, 4, is_little_endian), 1)
        )
        values = self.number(tf.boolean_mask(entry, is_orientation) + 8, 2, is_little_endian)
        value = tf.concat([values, [_UPRIGHT]], 0)[0]
        return tf.where((value >= 1) & (value <= 8), value, _UPRIGHT)

    def exif_of_jpeg(self) -> Exif:
        """Find the first EXIF among the segments that precede the picture, whatever else is among them."""

        def is_before_picture(position: tf.Tensor, exif: Exif) -> tf.Tensor:
            is_marker = tf.equal(self.at(position), _MARKER)
            return tf.equal(exif.start, 0) & is_marker & may_precede_exif(self.at(position + 1))

        def next_segment(position: tf.Tensor, exif: Exif) -> tuple[tf.Tensor, Exif]:
            is_fill = tf.equal(self.at(position + 1), _MARKER)
            is_exif = tf.equal(self.at(position + 1), _APP1) & self.has(position + 4, b"Exif\x00\x00")
            end = tf.minimum(position + 2 + tf.maximum(self.number(position + 2, 2), 2), self.size)
            found = Exif(tf.where(is_exif, position + 10, 0), tf.where(is_exif, end, 0))
            return tf.where(is_fill, position + 1, end), found

        nothing = Exif(tf.constant(0), tf.constant(0))
        exif: Exif = tf.while_loop(is_before_picture, next_segment, (tf.constant(2), nothing))[1]
        return exif

    def exif_of_png(self) -> tuple[Exif, tf.Tensor]:
        """Find the eXIf chunk, before or behind the picture; also return whether a chunk makes colours transparent."""

        def next_chunk(position: tf.Tensor, exif: Exif, has_trns: tf.Tensor) -> tuple[tf.Tensor, Exif, tf.Tensor]:
            start = position + 8
            end = tf.minimum(start + self.number(position, 4), self.size)
            is_exif = self.has(position + 4, b"eXIf")
            found = Exif(tf.where(is_exif, start, exif.start), tf.where(is_exif, end, exif.end))
            return end + 4, found, has_trns | self.has(position + 4, b"tRNS")

        nothing = Exif(tf.constant(0), tf.constant(0))
        _, exif, has_trns = tf.while_loop(
            lambda position, *_: position + 12 <= self.size, next_chunk, (tf.constant(8), nothing, tf.constant(False))
        )
        return exif, has_trns

    def exif_of_webp(self) -> Exif:
        """Find the EXIF chunk; its TIFF block may begin with the identifier that JPEG has."""

        def next_chunk(position: tf.Tensor, exif: Exif) -> tuple[tf.Tensor, Exif]:
            start = position + 8
            length = self.number(position + 4, 4, is_little_endian=True)
            end = tf.minimum(start + length, self.size)
            start += tf.where(self.has(start, b"Exif\x00\x00"), 6, 0)
            is_exif = self.has(position, b"EXIF")
            found = Exif(tf.where(is_exif, start, exif.start), tf.where(is_exif, end, exif.end))
            return end + length % 2, found

        nothing = Exif(tf.constant(0), tf.constant(0))
        start = (tf.constant(12), nothing)
        exif: Exif = tf.while_loop(lambda position, _: position + 8 <= self.size, next_chunk, start)[1]
        return exif
