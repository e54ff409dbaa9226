"""The code blocks of README and docs, what each of them is, and configs around fragments of configs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

COMMANDS = (
    "easyrec-mm", "scripts/", "python", ".venv/bin/", ".venv-tfio/", "curl", "tar", "tensorboard", "docker",
    "nvidia-smi", "AWS_REGION=", "TF_",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A code block: its page, its first line there (from 1), its language if it states one, and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def kind(self) -> str:
        """Return "diff", "python", "yaml", "shell", "json" or "config"."""
        first = self.text.lstrip()
        if self.language in ("diff", "python", "yaml"):
            return self.language
        if first.startswith(("$ ", *COMMANDS)):
            return "shell"
        return "json" if first.startswith('{"') else "config"

    def commands(self) -> list[str]:
        """Return the commands of a shell block: comments are left out, and continued lines are put together."""
        text = re.sub(r"\s+#( .*)?$", "", self.text, flags=re.MULTILINE)
        text = re.sub(r"\\\n\s*", "", text)
        prompted = [line.removeprefix("$ ") for line in text.split("\n") if line.startswith("$ ")]
        if prompted:  # what follows a command is its output
            return prompted
        commands, quoted = [], ""
        for line in text.split("\n"):
            quoted += line
            if quoted.count("'") % 2 == 0:
                commands.append(quoted)
                quoted = ""
        return [command for command in commands if command.strip()]


def blocks_of(path: Path) -> list[Block]:
    """Return the code blocks of a page: fenced ones, and those that are indented by four spaces after an empty line."""
    page, lines = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8").split("\n")
    blocks, i = [], 0
    while i < len(lines):
        fence = re.match(r"```(\w*)", lines[i])
        end = i + 1
        if fence:
            while not lines[end].startswith("```"):
                end += 1
            blocks.append(Block(page, i + 1, fence[1], "\n".join(lines[i + 1 : end])))
            end += 1
        elif lines[i].startswith("    ") and not lines[i - 1].strip():
            while lines[end].startswith("    ") or not lines[end].strip():
                end += 1
            blocks.append(Block(page, i + 1, "", "\n".join(line[4:] for line in lines[i:end]).rstrip()))
        i = end
    return blocks


# What a fragment stands in, by its first setting.
_PLACES = {
    "features": ("feature_config {", "}"),
    "feature_groups": ("model_config {", "}"),
    "e2e_mm_dbmtl": ("model_config {", "}"),
    "img_model": ("model_config { e2e_mm_dbmtl {", "} }"),
    "optimizer_config": ("train_config {", "}"),
}
_NUMBERS = ("price", "budget", "is_new", "clicks", "shows")
_WHOLE_NUMBERS = ("position", "shown_at")
_TEXTS = (
    "category", "clicks_by_category", "item", "item_id", "user_id", "device", "clicked_items", "clicked_categories",
    "clicked_prices", "clicked_paths", "title_embedding", "listed_at",
)  # fmt: skip
_BASE = """
train_input_path: "x" model_dir: "m"
data_config {{
  input_type: GroupParquetInput {labels}
  {fields}
  input_fields {{ input_name: "img_path" }}
  input_fields {{ input_name: "sample_num" input_type: INT32 }}
}}
feature_config {{
  features {{ input_names: "img_path" feature_type: ImgFeature img_shape {{ width: 64 height: 64 }} }}
  features {{ input_names: "sample_num" feature_type: SampleNumFeature }}
  {features}
}}
model_config {{
  model_class: "E2E_MM_DBMTL"
  feature_groups {{ group_name: "img" feature_names: "img_path" }}
  feature_groups {{ group_name: "size" feature_names: "sample_num" }}
  feature_groups {{ group_name: "base" feature_names: "base" }}
  e2e_mm_dbmtl {{
    bottom_dnn {{ hidden_units: 8 }}
    task_towers {{ tower_name: "click" label_name: "is_click" metrics_set {{ auc {{}} }} }}
  }}
}}
eval_input_path: "y"
"""
_OPTIMIZER = "adam_optimizer { learning_rate { constant_learning_rate {} } }"


# A config around a fragment of pretrain_config.
_PRETRAINING = """
model_dir: "m"
data_config { input_type: ParquetInput }
feature_config {
  features { input_names: "picture" feature_type: ImgFeature img_shape { width: 64 height: 64 } }
  features { input_names: "title" feature_type: TextFeature }
}
model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups { group_name: "img" feature_names: "picture" }
  feature_groups { group_name: "text" feature_names: "title" }
  e2e_mm_dbmtl {}
}
pretrain_config { data_sets { name: "all" input_path: "all.csv" label: "kind" } ... }
train_config {
  optimizer_config { adam_optimizer { learning_rate { constant_learning_rate {} } } }
  num_steps: 1
}
"""


def whole_config(fragment: str) -> str:
    """Return a config with a fragment in it, and what the fragment takes for granted: fields, features, an optimizer.

    An omission, "...", of an optimizer stands for its learning rate, any other for nothing.
    """
    fragment = re.sub(r"(\w+_optimizer) \{ \.\.\. \}", r"\1 { learning_rate { constant_learning_rate {} } }", fragment)
    fragment = fragment.replace("...", "")
    names = re.findall(r"^\s*(\w+)", fragment, re.MULTILINE)
    if "pretrain_config" in fragment:
        return fragment
    if names and names[0] in ("data_sets", "contrastive"):
        return _PRETRAINING.replace("...", fragment)
    before, after = _PLACES.get(names[0] if names else "", ("", ""))
    part = text_format.Parse(f"{before}\n{fragment}\n{after}", EasyRecConfig())
    own = {feature.feature_name or feature.input_names[0] for feature in part.feature_config.features}
    features = [_id("base", "user_id")]
    wanted = [name for group in part.model_config.feature_groups for name in group.feature_names]
    wanted += [model.feature_name for model in part.model_config.e2e_mm_dbmtl.vector_model]
    constants = [constant.input_name for constant in part.export_config.serve_constants]
    for group in part.model_config.feature_groups:
        for attention in group.sequence_features:
            wanted += [name for pairs in attention.seq_att_map for name in (*pairs.key, *pairs.hist_seq)]
    losses = part.model_config.e2e_mm_dbmtl.img_model.image_losses
    items = [loss.contrastive.item_feature for loss in losses if loss.WhichOneof("loss") == "contrastive"]
    items += [name for name in [part.model_config.e2e_mm_dbmtl.img_model.category_feature] if name]
    for name in dict.fromkeys([*wanted, *items, *constants]):
        if name not in own:
            kind = "SequenceFeature" if name.startswith("clicked") else "IdFeature"
            features.append(_id(name, name, kind, per_group=name in items))
    labels = ["is_click", "is_buy", *(["cate_label"] if "cate_label" in fragment else [])]
    whole = dict.fromkeys(_WHOLE_NUMBERS, "INT64")
    kinds = {
        **dict.fromkeys(labels, "INT32"),
        **whole,
        **dict.fromkeys(_NUMBERS, "FLOAT"),
        **dict.fromkeys(_TEXTS, "STRING"),
    }
    fields = " ".join(f'input_fields {{ input_name: "{name}" input_type: {kind} }}' for name, kind in kinds.items())
    base = text_format.Parse(
        _BASE.format(
            labels=" ".join(f'label_fields: "{label}"' for label in labels), fields=fields, features="\n".join(features)
        ),
        EasyRecConfig(),
    )
    named = [*own, *items, *constants]
    if named:
        base.model_config.feature_groups.add(group_name="named", feature_names=[n for n in named if n not in wanted])
    if not base.model_config.feature_groups[-1].feature_names:
        del base.model_config.feature_groups[-1]
    base.MergeFrom(part)
    if not base.train_config.optimizer_config:
        text_format.Parse(_OPTIMIZER, base.train_config.optimizer_config.add())
    return text_format.MessageToString(base)


def _id(name: str, field: str, kind: str = "IdFeature", per_group: bool = False) -> str:
    table = 'hash_bucket_size: 1000000 embedding_dim: 16 embedding_name: "item"'
    if "item" not in name:
        table = (
            "hash_bucket_size: 10 embedding_dim: 4 precision: 2"
            if field in _NUMBERS
            else ("hash_bucket_size: 10 embedding_dim: 4")
        )
    of_group = "per_group: true" if per_group else ""
    return f'features {{ feature_name: "{name}" input_names: "{field}" feature_type: {kind} {table} {of_group} }}'
