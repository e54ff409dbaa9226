"""Extraction against the bare forward pass of the same encoder, for pictures of 224 pixels and for titles.

"Extraction" is everything from JPEG files, or a table of texts, to vectors in an LMDB store, once it runs; "bare" is
the network alone, on inputs in memory, in batches of the same size. The two take turns; ratios are of neighbouring
turns. The encoders have random weights: a ResNet-50 as a preset and as an ONNX file of it, and a BERT of six blocks, as
wide as MiniLM, on titles.

    python tools/bench/extract.py [--turns 5] [--num_pictures 512] [--num_texts 4096]
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "samples"))

import numpy as np
import workload

SIZE, WORDS_OF_A_TITLE = 224, 10


def main() -> None:
    """Measure the encoders and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("--turns", type=int, default=5)
    flags.add_argument("--num_pictures", type=int, default=512)
    flags.add_argument("--num_texts", type=int, default=4096)
    options = flags.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures, texts = write_pictures(folder, options.num_pictures), write_texts(folder, options.num_texts)
        preset, onnx = write_image_encoders(folder)
        common = {"input": f"{pictures}/*", "image_root": str(pictures)}
        encoders: dict[str, dict[str, Any]] = {
            "preset": {**common, "preset": str(preset)},
            "onnx": {**common, "onnx": str(onnx)},
            "text": {"input": str(texts), "key_column": "key", "text_column": ("title",), "preset": write_bert(folder)},
        }
        for name, settings in encoders.items():
            figures |= {f"{name}_{key}": value for key, value in measure(folder, settings, options.turns).items()}
    workload.report("extract", figures)


def measure(folder: Path, settings: dict[str, Any], turns: int) -> dict[str, Any]:
    """Items/s of both, and their ratio."""
    from easyrec_mm.extraction.contents import CONTENTS
    from easyrec_mm.extraction.encoders import open_encoder
    from easyrec_mm.extraction.extract import ExtractOptions, extract
    from easyrec_mm.extraction.plan import Extraction
    from easyrec_mm.extraction.preprocessing import Settings

    own = Settings() if "key_column" in settings else Settings(size=(SIZE, SIZE), scale=(1 / 255,))
    extraction = Extraction(**settings, preprocessing=own, store="lmdb://")
    encoder = open_encoder(extraction)
    contents = CONTENTS[encoder.kind]
    items = contents.items(extraction).items
    batches = [items[i : i + encoder.batch_size] for i in range(0, len(items), encoder.batch_size)]
    read = contents.read(extraction)
    inputs = [encoder.prepare(read(batch)[0])[0] for batch in batches]
    options = ExtractOptions(os.devnull)

    def bare_per_s() -> float:
        def run() -> None:
            for prepared in inputs:
                encoder._network.run(prepared.arrays)

        return len(items) / workload.median(workload.seconds(run, 1))

    def extract_per_s(turn: int) -> float:
        own = replace(extraction, store=f"lmdb://{folder}/{encoder.kind}{len(os.listdir(folder))}")
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            (result,) = extract([own], options, lambda line: None)
        return result.result.per_s

    extract_per_s(-1)
    bare, extracted, ratios = [], [], []
    for turn in range(turns):
        before = bare_per_s()
        extracted.append(extract_per_s(turn))
        bare.append((before + bare_per_s()) / 2)
        ratios.append(extracted[-1] / bare[-1])
    return {
        "bare_per_s": workload.median(bare),
        "extract_per_s": workload.median(extracted),
        "ratio": workload.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def write_pictures(folder: Path, number: int) -> Path:
    """Photo-like pictures of the size of the encoders' input."""
    random = np.random.default_rng(1)
    (folder / "pictures").mkdir()
    for i in range(number):
        workload._picture(random, SIZE).save(folder / "pictures" / f"{i}.jpg", quality=90)
    return folder / "pictures"


def vocabulary() -> list[str]:
    """Words of titles, and the special tokens of BERT."""
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(1000))]


def write_texts(folder: Path, number: int) -> Path:
    """Titles of up to twenty words."""
    random = np.random.default_rng(2)
    words = vocabulary()[5:]
    with (folder / "texts.csv").open("w", encoding="utf-8") as file:
        file.write("key,title\n")
        for i in range(number):
            length = random.integers(1, 2 * WORDS_OF_A_TITLE)
            file.write(f"{i},{' '.join(random.choice(words, length))}\n")
    return folder / "texts.csv"


def write_image_encoders(folder: Path) -> tuple[Path, Path]:
    """A ResNet-50 as a preset and as an ONNX file."""
    import keras
    import keras_hub
    import tensorflow as tf
    import tf2onnx

    backbone = keras_hub.models.ResNetBackbone(
        [64], [7], [64, 128, 256, 512], [3, 4, 6, 3], [1, 2, 2, 2], "bottleneck_block", image_shape=(None, None, 3)
    )
    backbone.save_to_preset(str(folder / "resnet"))
    keras_hub.layers.ResNetImageConverter(image_size=(SIZE, SIZE), scale=1 / 255).save_to_preset(str(folder / "resnet"))
    inputs = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(inputs, backbone(inputs))
    function = tf.function(lambda x: model(x), input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32)])
    tf2onnx.convert.from_function(
        function, input_signature=function.input_signature, opset=18, output_path=str(folder / "resnet.onnx")
    )
    return folder / "resnet", folder / "resnet.onnx"


def write_bert(folder: Path) -> str:
    """A BERT as wide as MiniLM, as a preset."""
    import keras_hub

    words = vocabulary()
    path = str(folder / "bert")
    keras_hub.models.BertBackbone(len(words), 6, 12, 384, 1536, max_sequence_length=512).save_to_preset(path)
    keras_hub.tokenizers.BertTokenizer(vocabulary=words, lowercase=True).save_to_preset(path)
    return path


if __name__ == "__main__":
    main()
