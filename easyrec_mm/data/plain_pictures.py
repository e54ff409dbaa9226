"""Turns pictures that TensorFlow cannot decode, or would decode wrongly, into ones that it can.

Pillow decodes the first frame of GIFs and animated WebPs, BMPs of all kinds but the usual ones, and AVIF.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageOps

from easyrec_mm.schema import Image

# A JPEG with more scans is not a picture but an attempt to keep a decoder busy: each scan goes through all pixels.
MAX_SCANS = 100
# How far into a JPEG the header of a picture without further scans is looked for.
_HEADER_BYTES = 1024
# Number of first bytes that tell the format of a picture.
FIRST_BYTES = 64
_STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP"}

# Pictures are measured against max_image_pixels before they are decoded; Pillow's own limit would be another one.
PIL.Image.MAX_IMAGE_PIXELS = None


def plain_picture(content: bytes, image: Image) -> bytes:
    """Return a picture file that `decode_pictures` takes, with the same pixels; nearly always the content itself.

    Raises:
      ValueError: if it is not a picture, is damaged or too large; the text completes "the picture ...".
    """
    if content.startswith(b"\xff\xd8"):
        require_few_scans(content)
        return content
    kind = format_of(content)
    return _first_frame(content, kind, image) if _is_odd(content, kind) else content


def require_few_scans(content: bytes) -> None:
    """Check that decoding a JPEG takes no more than a moment.

    Raises:
      ValueError: if it would; the text completes "the picture ...".
    """
    if content.find(b"\xff\xc0", 0, _HEADER_BYTES) < 0 and (num_scans := content.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"has {num_scans} scans, more than {MAX_SCANS}")


def on_background(values: Any, background: Any) -> Any:
    """Lay pixels `[..., 4]`, with alpha, over a colour `[3]`, rounded: int32 of NumPy or TensorFlow, `[..., 3]`."""
    colour, alpha = values[..., :3], values[..., 3:]
    return (colour * alpha + background * (255 - alpha) + 127) // 255


def too_many_pixels(image: Image) -> str:
    """Return what is wrong with a picture that has more pixels than allowed."""
    return f"has more than {image.max_pixels} pixels (data_config.max_image_pixels)"


def format_of(content: bytes) -> str:
    """Return the format of a picture by its first bytes, at least FIRST_BYTES of them; "" for other files."""
    for start, name in _STARTS.items():
        if content.startswith(start):
            return name
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    is_avif = content[4:8] == b"ftyp" and (b"avif" in content[8:FIRST_BYTES] or b"avis" in content[8:FIRST_BYTES])
    return "AVIF" if is_avif else ""


def _is_odd(content: bytes, kind: str) -> bool:
    """Return whether only Pillow decodes a picture of this format."""
    if kind == "BMP" and len(content) >= 34:
        (header_size,) = struct.unpack_from("<I", content, 14)
        bits, compression = struct.unpack_from("<HI", content, 28)
        return header_size < 40 or bits not in (8, 24, 32) or compression != 0
    is_animated_webp = kind == "WEBP" and content[12:16] == b"VP8X" and len(content) > 20 and content[20] & 2 != 0
    return kind in ("GIF", "AVIF") or is_animated_webp


def _first_frame(content: bytes, kind: str, image: Image) -> bytes:
    """Return a BMP with the first frame of a picture, upright, its transparent parts on the background."""
    try:
        with PIL.Image.open(io.BytesIO(content), formats=[kind]) as picture:
            if picture.width * picture.height > image.max_pixels:
                raise ValueError(too_many_pixels(image))
            frame = ImageOps.exif_transpose(picture).convert("RGBA")
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        if isinstance(error, ValueError) and str(error) == too_many_pixels(image):
            raise
        reason = "cannot be decoded" if isinstance(error, PIL.UnidentifiedImageError) else error
        raise ValueError(f"is damaged: {reason}") from error
    pixels = on_background(np.asarray(frame, np.int32), np.array(image.background, np.int32))
    bmp = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(bmp, "BMP")
    return bmp.getvalue()
