"""Contents of sound files -> the samples or the log-mel spectrogram that a network takes, as its settings declare.

The spectrogram is that of Whisper (Radford et al., ICML 2023), made by the layer of keras-hub.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easyrec_mm.data.sounds import decode_sound
from easyrec_mm.errors import UserError
from easyrec_mm.extraction.networks import Input, Prepared
from easyrec_mm.extraction.preprocessing import Settings

# What Settings leave open: those of Whisper.
_DEFAULTS = Settings(sample_rate=16000, num_mels=80)
_MAX_SECONDS = 30.0
# A window of Whisper's spectrogram, and the time from one window to the next.
_WINDOW_S, _STRIDE_S = 0.025, 0.01
# Places of a mask over the time of a sound; the encoder takes those of the positions of a layer.
_PLACES = 3000


class SoundPreparation:
    """Prepares sounds; see Preparation in encoders.py. Sounds shorter than others of a batch are followed by silence.

    Args:
      inputs: the only input of the network: samples, or log_mel.
      settings: how they are made.
      what: the network, for messages.

    Attributes:
      settings: the settings, complete.

    Raises:
      UserError: if the settings do not make what the network takes.
    """

    source = ""

    def __init__(self, inputs: dict[str, Input], settings: Settings, what: str) -> None:
        ((self._role, self._input),) = inputs.items()
        shape, settings = self._input.shape, settings.over(_DEFAULTS)
        rate = settings.sample_rate or 0
        self._is_mel = self._role == "log_mel"
        if self._input.dtype not in ("float32", "float16", "float64"):
            raise UserError(f"{what}: '{self._input.name}' takes {self._input.dtype}, which sounds are not; say in "
                            "--preprocessing what each input stands for (inputs)")  # fmt: skip
        dims = 2 if self._is_mel else 1
        if shape is not None and len(shape) != dims:
            contents = "a log-mel spectrogram" if self._is_mel else "samples"
            raise UserError(f"{what}: '{self._input.name}' takes {list(shape)}, which is not the shape of {contents}")
        number = settings.num_mels
        self._mels_first = self._is_mel and shape is not None and shape[0] == number and shape[1] != number
        if self._is_mel and shape is not None and shape[0 if self._mels_first else 1] not in (None, number):
            raise UserError(
                f"{what}: '{self._input.name}' takes {list(shape)}, but would get {number} mel bands; "
                "change num_mels in --preprocessing"
            )
        length = None if shape is None else shape[1 if self._mels_first else 0]
        per_second = 1 / _STRIDE_S if self._is_mel else rate
        if settings.max_seconds is None:
            settings = Settings(max_seconds=length / per_second if length else _MAX_SECONDS).over(settings)
        self._seconds = settings.max_seconds or _MAX_SECONDS
        # What the network takes, which may be longer than what counts of a sound.
        self._num_samples = math.floor((length / per_second if length else self._seconds) * rate)
        if length and self._seconds > length / per_second:
            raise UserError(
                f"{what}: '{self._input.name}' takes {length / per_second:g} s, but would get {self._seconds:g} s "
                "(max_seconds); lower it in --preprocessing"
            )
        self.settings = settings
        self._log_mel = _log_mel(settings, self._num_samples) if self._is_mel else None

    def example(self) -> Prepared:
        """See Preparation."""
        return self._batch([np.zeros(self._num_samples, np.float32)])

    def __call__(self, contents: Sequence[bytes]) -> tuple[Prepared, dict[int, str]]:
        """See Preparation."""
        sounds: list[NDArray[Any]] = []
        problems: dict[int, str] = {}
        for row, content in enumerate(contents):
            try:
                sounds.append(decode_sound(content, self.settings.sample_rate or 0, self._seconds))
            except ValueError as error:
                problems[row] = str(error)
        return self._batch(sounds), problems

    def _batch(self, sounds: list[NDArray[Any]]) -> Prepared:
        samples = np.zeros((len(sounds), self._num_samples), np.float32)
        for row, sound in enumerate(sounds):
            samples[row, : len(sound)] = sound
        x = samples
        if self._log_mel is not None:
            x = self._log_mel(samples)
            x = x.transpose(0, 2, 1) if self._mels_first else x
        lengths = np.array([len(sound) for sound in sounds], np.float64) / max(self._num_samples, 1)
        places = np.arange(_PLACES) / _PLACES
        return Prepared({self._role: x.astype(self._input.dtype)}, places < lengths[:, None])


def _log_mel(settings: Settings, num_samples: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return a function from samples `[N, num_samples]` to their spectrogram, float32 `[N, frames, num_mels]`."""
    import keras_hub

    rate = settings.sample_rate or 0
    converter = keras_hub.layers.WhisperAudioConverter(
        num_mels=settings.num_mels,
        num_fft_bins=round(_WINDOW_S * rate),
        stride=round(_STRIDE_S * rate),
        sampling_rate=rate,
        dtype="float32",
    )
    converter.num_samples = num_samples

    def log_mel(samples: NDArray[Any]) -> NDArray[Any]:
        if not len(samples):
            return np.zeros((0, num_samples // converter.stride, converter.num_mels), np.float32)
        return np.asarray(converter(samples))

    return log_mel
