"""Turns pictures that TensorFlow cannot decode, or would decode wrongly, into ones that it can.

Pillow decodes the first frame of GIFs and animated WebPs, BMPs of all kinds but the usual ones, and AVIF.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image
from PIL import ImageOps

from easyrec_mm.schema import Image

# A JPEG with more scans is not a picture but an attempt to keep a decoder busy: each scan goes through all pixels.
MAX_SCANS = 100
# How far into a JPEG the header of a picture without further scans is looked for.
_HEADER_BYTES = 1024

# Pictures are measured against max_image_pixels before they are decoded; Pillow's own limit would be another one.
PIL.Image.MAX_IMAGE_PIXELS = None


def plain_picture(content: bytes, image: Image) -> bytes:
    """Return a picture file that `decode_pictures` takes, with the same pixels; nearly always the content itself.

    Raises:
      ValueError: if it is not a picture, is damaged or too large; the text completes "the picture ...".
    """
    if content.startswith(b"\xff\xd8"):
        if content.find(b"\xff\xc0", 0, _HEADER_BYTES) < 0 and (num_scans := content.count(b"\xff\xda")) > MAX_SCANS:
            raise ValueError(f"has {num_scans} scans, more than {MAX_SCANS}")
        return content
    kind = _odd_kind(content)
    return _first_frame(content, kind, image) if kind else content


def too_many_pixels(image: Image) -> str:
    """Return what is wrong with a picture that has more pixels than allowed."""
    return f"has more than {image.max_pixels} pixels (data_config.max_image_pixels)"


def _odd_kind(content: bytes) -> str:
    """Return Pillow's name of the format of a picture that only Pillow decodes; "" for one of another kind."""
    if content.startswith(b"GIF8"):
        return "GIF"
    if content.startswith(b"BM") and len(content) >= 34:
        header_size, bits, compression = (
            *struct.unpack_from("<I", content, 14),
            *struct.unpack_from("<HI", content, 28),
        )
        return "" if header_size >= 40 and bits in (8, 24, 32) and compression == 0 else "BMP"
    if content.startswith(b"RIFF") and content[8:16] == b"WEBPVP8X" and content[20:21] and content[20] & 2:
        return "WEBP"
    if content[4:8] == b"ftyp" and (b"avif" in content[8:64] or b"avis" in content[8:64]):
        return "AVIF"
    return ""


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
        raise ValueError(f"is damaged: {error}") from error
    values = np.asarray(frame, np.int32)
    colour, alpha = values[..., :3], values[..., 3:]
    pixels = (colour * alpha + np.int32(image.background) * (255 - alpha) + 127) // 255
    bmp = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(bmp, "BMP")
    return bmp.getvalue()
