"""Decodes sounds: WAV, FLAC, OGG and MP3, as libsndfile reads them, to samples of one channel and one rate."""

from __future__ import annotations

import io
import math
import struct

import numpy as np
from numpy.typing import NDArray

# Bytes of a file that are read: the beginning of a longer one, which has a minute of sound in any usual format.
MOST_BYTES = 64 << 20
# Frames beyond the last one that count in resampling.
_MARGIN = 64
# Of files that were written before their length was known.
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)


def decode_sound(content: bytes, sample_rate: int, max_seconds: float) -> NDArray[np.float32]:
    """Return the first samples of a sound, float32 `[N]` in [-1, 1]: the mean of its channels, resampled.

    Args:
      content: the file, or its first MOST_BYTES.
      sample_rate: samples per second.
      max_seconds: what follows is left out.

    Raises:
      ValueError: if it is not a sound, is damaged, or is silent; the text completes "the sound ...".
    """
    import soundfile  # loads libsndfile, which only sounds need
    from scipy.signal import resample_poly

    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate: int = file.samplerate
            wanted = math.ceil(max_seconds * rate) + _MARGIN
            frames = file.read(wanted, dtype="float32", always_2d=True)
            expected = min(wanted, file.frames)
    except (soundfile.SoundFileError, MemoryError) as error:
        if isinstance(error, MemoryError) or not _is_known(content):
            raise ValueError("is not a WAV, FLAC, OGG or MP3 sound") from error
        raise ValueError(f"is damaged: {str(error).rpartition(': ')[2].strip('. ')}") from error
    is_cut = len(content) >= MOST_BYTES
    if not is_cut and (len(frames) < expected or len(content) < _riff_size(content)):
        raise ValueError(f"is damaged: it breaks off after {len(frames) / rate:.3g} s")
    mono = frames.mean(axis=1, dtype=np.float32) if frames.shape[1] > 1 else frames[:, 0]
    if not np.isfinite(mono).all():
        raise ValueError("is damaged: it has samples that are not finite numbers")
    if rate != sample_rate:
        divisor = math.gcd(rate, sample_rate)
        mono = resample_poly(mono, sample_rate // divisor, rate // divisor).astype(np.float32)
    mono = mono[: math.floor(max_seconds * sample_rate)]
    if not mono.any():
        raise ValueError("is silent" if len(mono) else "has no samples")
    return np.ascontiguousarray(mono)


def _is_known(content: bytes) -> bool:
    """Return whether the file begins as one of these formats, or as an MP3."""
    is_mp3 = content[:3] == b"ID3" or (len(content) > 1 and content[0] == 0xFF and content[1] & 0xE0 == 0xE0)
    return content[:4] in (b"RIFF", b"fLaC", b"OggS") or is_mp3


def _riff_size(content: bytes) -> int:
    """Return the size that a WAV file states; 0 for other files and if it does not say."""
    if len(content) < 8 or content[:4] != b"RIFF":
        return 0
    (size,) = struct.unpack("<I", content[4:8])
    return 0 if size in _UNKNOWN_SIZES else size + 8
