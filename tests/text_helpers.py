"""Trainings of items with a picture and a title, and a small text preset."""

from __future__ import annotations

from pathlib import Path

import keras_hub
import numpy as np
from training_helpers import NUM_GROUPS, Training

# Of each group: three titles for twelve groups, and one group without.
TITLES = ("red cotton shirt", "blue mug", "红色 T恤, new!")
_FIELDS = 'input_fields { input_name: "price" input_type: FLOAT }'
_FEATURES = 'features { input_names: "size" feature_type: SampleNumFeature }'
_GROUPS = 'feature_groups { group_name: "all"'
_IMAGE_GROUP = 'feature_groups { group_name: "img" feature_names: "path" }'


def title_of(group: int) -> str:
    """The title of the item of a group."""
    return "" if group == NUM_GROUPS - 1 else TITLES[group % len(TITLES)]


def write_titles(folder: Path, file: str = "one.txt", clicks_follow_titles: bool = False) -> str:
    """Add titles to the samples of a file of make_training_data, as another file; its name."""
    lines = []
    for group, line in enumerate((folder / file).read_text().splitlines()):
        clicks, kinds, samples, path, size = line.split("|")
        with_title = [f"{sample}\x02{title_of(group)}" for sample in samples.split("\x01")]
        if clicks_follow_titles:
            clicks = "\x01".join([str(int("shirt" in title_of(group)))] * int(size))
        lines.append("|".join([clicks, kinds, "\x01".join(with_title), path, size]))
    (folder / f"titles_{file}").write_text("\n".join(lines) + "\n")
    return f"titles_{file}"


def text_training(data: Path, folder: Path, text_model: str = "", fusion: str = "", image: bool = True, **settings):
    """A training whose items have a title, too; `text_model` and `fusion` are texts of these sections."""
    text_group = 'feature_groups { group_name: "text" feature_names: "title" }'
    sections = (f"text_model {{ {text_model} }}" if text_model else "") + fusion
    changes = {
        _FIELDS: f'{_FIELDS} input_fields {{ input_name: "title" input_type: STRING }}',
        _FEATURES: f'features {{ input_names: "title" feature_type: TextFeature }} {_FEATURES}',
        _GROUPS: f"{text_group} {_GROUPS}",
        "l2_regularization: 0": f"l2_regularization: 0 {sections}",
        **settings.pop("changes", {}),
    }
    if not image:
        # The picture stays in the data, as a field that nothing reads.
        changes |= {_IMAGE_GROUP: "", "img_model { num_classes: 4  }": ""}
        settings.setdefault("head", "")
    settings.setdefault("file", "titles_one.txt")
    return Training(data, folder, changes=changes, **settings)


def write_text_preset(folder: Path, max_tokens: int = 16) -> str:
    """A BERT of two blocks with random weights, and its tokenizer of letters and some words; the folder."""
    letters = [chr(97 + i) for i in range(26)]
    words = ["red", "cotton", "shirt", "blue", "mug", "new"]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{letter}" for letter in letters),
        *words,
    ]
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary), num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16,
        max_sequence_length=max_tokens,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    backbone.set_weights([rng.normal(0, 0.3, w.shape).astype(np.float32) for w in backbone.get_weights()])
    folder.mkdir(exist_ok=True)
    backbone.save_to_preset(str(folder))
    keras_hub.models.BertTokenizer(vocabulary=vocabulary, lowercase=True).save_to_preset(str(folder))
    return str(folder)
