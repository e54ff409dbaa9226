"""What each part of the config that `group` infers is worth on cold items: one more a row, beside models of features.

A log is a folder with clicks.parquet (impression_id, item_id, img_path, labels and features) and truth.parquet
(impression_id, p_true, p_without_pictures). `group --split_by item` sets items apart; then the first row trains a plain
network, each further row adds one part, and the last is the inferred config as it is. The way is from the best AUC
that is possible without pictures (0) to that of the truth (1). Without a signal in the pictures the two are one, and
the way is not told.

    python tools/bench/ladder.py shop-0 shop-1 [--preset weights/efficientnet_lite0] [--only_last]
"""

from __future__ import annotations

import glob
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
import workload
from pandas.api.types import is_numeric_dtype
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from easyrec_mm.config.pipeline import load_pipeline, write_config
from easyrec_mm.worth.arms import arms_of

CLI = (sys.executable, "-m", "easyrec_mm")
WIDE = "_wide"
# Most values of an id for trees, and bins of numbers for logistic regression.
_MOST_CATEGORIES, _BINS = 255, 16


@dataclass(frozen=True)
class Part:
    """A part of the inferred config: what a row of the table calls it, and how a config loses it."""

    name: str
    remove: Callable[[Any], None]


def use_batch_norm(config: Any) -> None:
    """Batch normalisation of features and of every DNN."""
    model = config.model_config.e2e_mm_dbmtl
    model.use_feature_bn = True
    for dnn in [model.bottom_dnn, *(dnn for tower in model.task_towers for dnn in (tower.dnn, tower.relation_dnn))]:
        dnn.use_bn = True


def train_briefly(config: Any) -> None:
    """Three epochs."""
    config.train_config.num_epochs = 3


def start_large(config: Any) -> None:
    """Embeddings that start as those of EasyRec, hardly regularised."""
    config.feature_config.ClearField("initializer")
    config.model_config.embedding_regularization = 1e-6


def embed_users(config: Any) -> None:
    """Ids that add to the logits become embeddings among the other features."""
    groups = config.model_config.feature_groups
    (features,) = [group for group in groups if group.group_name == "all"]
    for group in [group for group in groups if group.group_name.endswith(WIDE)]:
        features.feature_names.extend(group.feature_names)
        groups.remove(group)
    optimizers = config.train_config.optimizer_config
    for optimizer in [optimizer for optimizer in optimizers if any(WIDE in pattern for pattern in optimizer.variables)]:
        optimizers.remove(optimizer)


def do_not_multiply(config: Any) -> None:
    """No products of features."""
    config.model_config.e2e_mm_dbmtl.ClearField("dot_interaction")


def train_a_resnet(config: Any) -> None:
    """A network for pictures that starts at random and is trained whole."""
    model = config.model_config.e2e_mm_dbmtl
    model.ClearField("img_model")
    model.img_model.model_name = "ResNet"
    model.img_model.num_classes = 16
    model.ClearField("img_dnn")
    model.highway_dnn.input = "img"
    model.highway_dnn.emb_size = 16
    config.train_config.optimizer_config.remove(head_optimizer(config))


def do_not_decay(config: Any) -> None:
    """The head's weights are held as small as all others."""
    head_optimizer(config).adamw_optimizer.weight_decay = 0.1


def start_at_once(config: Any) -> None:
    """The head learns from the first step on as all others do."""
    first = config.train_config.optimizer_config[0].adamw_optimizer.learning_rate
    head_optimizer(config).adamw_optimizer.learning_rate.CopyFrom(first)


def head_optimizer(config: Any) -> Any:
    """The optimizer of what reads pictures."""
    (optimizer,) = [
        candidate
        for candidate in config.train_config.optimizer_config
        if any("img_dnn" in v for v in candidate.variables)
    ]
    return optimizer


PARTS = (
    Part("no batch normalisation", use_batch_norm),
    Part("8 epochs in place of 3", train_briefly),
    Part("embeddings that start small and are regularised", start_large),
    Part("users that add to the logits in place of embeddings", embed_users),
    Part("products of features (`dot_interaction`)", do_not_multiply),
    Part("colours, edges and a head in place of a ResNet from random weights", train_a_resnet),
    Part("strong weight decay of the head", do_not_decay),
    Part("the head starts slowly: the inferred config", start_at_once),
)


def main() -> None:
    """Run and report."""
    flags = workload.parser(__doc__)
    flags.add_argument("logs", type=Path, nargs="+")
    flags.add_argument("--preset", help="folder of a preset: one row more")
    flags.add_argument("--only_last", action="store_true", help="the inferred config, but not the way to it")
    flags.add_argument("--label_fields", default="click,basket", help="the first is measured")
    options = flags.parse_args()
    for log in options.logs:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(log, Path(folder), options)
        workload.report(f"ladder {log.name}", figures)


def measure(log: Path, folder: Path, options: Any) -> dict[str, object]:
    """Name of a row -> AUC, way and seconds of its training."""
    config_file = group(log, folder / "own", options.label_fields)
    train, test = rows(log, config_file)
    label = options.label_fields.split(",")[0]
    bounds = [roc_auc_score(test[label], test[name]) for name in ("p_without_pictures", "p_true")]
    figures: dict[str, object] = {}

    def add(name: str, auc: float, seconds: float) -> None:
        way = (auc - bounds[0]) / (bounds[1] - bounds[0]) if bounds[1] > bounds[0] else float("nan")
        figures[name] = {"auc": round(auc, 4), "way": round(way, 3), "seconds": round(seconds)}
        print(f"| {name} | {auc:.4f} | {way:.3f} | {seconds:.0f} |", flush=True)

    add("best possible without pictures", bounds[0], 0)
    add("truth", bounds[1], 0)
    for name, (auc, seconds) in baseline_aucs(config_file, train, test, label).items():
        add(name, auc, seconds)
    pipeline = load_pipeline(str(config_file))
    arms, _ = arms_of(pipeline, ("none",), folder)
    add("inferred config without the picture", *train_config(arms[1].pipeline.config, folder / "none", label))
    for number in range(len(PARTS) if options.only_last else 0, len(PARTS) + 1):
        config = load_pipeline(str(config_file)).config
        for part in reversed(PARTS[number:]):
            part.remove(config)
        name = PARTS[number - 1].name if number else "plain network"
        add(name, *train_config(config, folder / f"row-{number}", label))
    if options.preset:
        config_file = group(log, folder / "preset", options.label_fields, "--preset", options.preset)
        config = load_pipeline(str(config_file)).config
        add("pretrained weights (`--preset`)", *train_config(config, folder / "preset-row", label))
    return figures


def group(log: Path, output: Path, label_fields: str, *flags: str) -> Path:
    """Group the log by its items; the inferred config."""
    config = output.with_suffix(".config")
    columns = ["--group_by", "item_id", "--image_field", "img_path", "--user_field", "user_id"]
    files = ["--input", log.absolute() / "clicks.parquet", "--output", output, "--pipeline_config_template", config]
    workload.run(*CLI, "group", *files, *columns, "--label_fields", label_fields, "--split_by", "item", *flags)
    return config


def train_config(config: Any, model_dir: Path, label: str) -> tuple[float, float]:
    """AUC of the last evaluation, and seconds that the training took with its evaluations."""
    config.model_dir = str(model_dir)
    file = str(model_dir) + ".config"
    write_config(config, file)
    start = time.perf_counter()
    workload.run(*CLI, "train", "--pipeline_config", file)
    seconds = time.perf_counter() - start
    return float(json.loads((model_dir / "eval_result.json").read_text(encoding="utf-8"))[f"auc_{label}"]), seconds


def rows(log: Path, config_file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The log's rows with the truth: of the items that train, and of the others."""
    data = pd.read_parquet(log / "clicks.parquet").merge(pd.read_parquet(log / "truth.parquet"), on="impression_id")
    shards = glob.glob(load_pipeline(str(config_file)).config.eval_input_path)
    cold = set(pads.dataset(shards).to_table(columns=["item_id"])["item_id"].to_pylist())
    is_cold = data.item_id.isin(cold)
    return data[~is_cold].reset_index(drop=True), data[is_cold].reset_index(drop=True)


def columns(config_file: Path, data: pd.DataFrame) -> pd.DataFrame:
    """The features of the config: numbers, texts of ids, and a column of 0 and 1 for each value of tags."""
    series: dict[str, pd.Series] = {}
    for feature in load_pipeline(str(config_file)).config.feature_config.features:
        name, kind = feature.input_names[0], feature.FeatureType.Name(feature.feature_type)
        if kind == "TagFeature":
            tags = data[name].str.get_dummies(feature.separator)
            series |= {f"{name} {tag}": tags[tag] for tag in tags}
        elif kind == "RawFeature":
            series[name] = data[name].astype(float)
        elif kind == "IdFeature":
            series[name] = data[name].astype(str)
    return pd.DataFrame(series)


def baseline_aucs(
    config_file: Path, train: pd.DataFrame, test: pd.DataFrame, label: str
) -> dict[str, tuple[float, float]]:
    """AUC and seconds of boosted trees (of LightGBM's kind) and of logistic regression on the config's features.

    Their settings are chosen by a tenth of the training items; then the models are fitted to all of them.
    """
    table = columns(config_file, pd.concat([train, test], ignore_index=True))
    texts = [name for name in table if not is_numeric_dtype(table[name])]
    chosen = next(GroupShuffleSplit(1, test_size=0.1, random_state=0).split(train, groups=train.item_id))
    results = {}
    for name, candidates in (("boosted trees", trees), ("logistic regression", logistic_regressions)):
        start = time.perf_counter()
        x, models = candidates(table, texts)
        fitted, held_out = (x.iloc[rows] for rows in chosen)
        y, y_held_out = (train[label].iloc[rows] for rows in chosen)
        best = max(
            (fit(model, fitted, y, held_out, y_held_out) for model in models),
            key=lambda model: roc_auc_score(y_held_out, scores(model, held_out)),
        )
        best = as_chosen(best).fit(x[: len(train)], train[label])
        results[name] = roc_auc_score(test[label], scores(best, x[len(train) :])), time.perf_counter() - start
    return results


def trees(table: pd.DataFrame, texts: list[str]) -> tuple[pd.DataFrame, list[Any]]:
    """Features as trees take them, which is without ids of many values, and trees of several sizes."""
    few = [name for name in texts if table[name].nunique() <= _MOST_CATEGORIES]
    codes = table.drop(columns=[name for name in texts if name not in few])
    codes[few] = OrdinalEncoder().fit_transform(codes[few])
    settings: dict[str, Any] = {"max_iter": 1000, "learning_rate": 0.1, "early_stopping": True, "n_iter_no_change": 25}
    settings |= {"categorical_features": [name in few for name in codes], "random_state": 0}
    return codes, [HistGradientBoostingClassifier(max_leaf_nodes=leaves, **settings) for leaves in (7, 15, 31)]


def logistic_regressions(table: pd.DataFrame, texts: list[str]) -> tuple[pd.DataFrame, list[Any]]:
    """Features as texts, numbers of many values by quantiles, and regressions on each value with several penalties."""
    values = table.copy()
    for name in table:
        if name not in texts and table[name].nunique() > _BINS:
            values[name] = pd.qcut(table[name], _BINS, labels=False, duplicates="drop")
    values = values.astype(str)
    inverse_penalties = (0.01, 0.03, 0.1, 0.3)
    one_hot = OneHotEncoder(handle_unknown="ignore")
    return values, [
        make_pipeline(one_hot, LogisticRegression(C=inverse_penalty, max_iter=300))
        for inverse_penalty in inverse_penalties
    ]


def fit(model: Any, x: pd.DataFrame, y: pd.Series, held_out: pd.DataFrame, y_held_out: pd.Series) -> Any:
    """Trees stop by what is held out."""
    if isinstance(model, HistGradientBoostingClassifier):
        return model.fit(x, y, X_val=held_out, y_val=y_held_out)
    return clone(model).fit(x, y)


def as_chosen(model: Any) -> Any:
    """An unfitted copy; for trees, with the number of trees at which the fit stopped early."""
    if isinstance(model, HistGradientBoostingClassifier):
        return clone(model).set_params(max_iter=model.n_iter_, early_stopping=False)
    return clone(model)


def scores(model: Any, x: pd.DataFrame) -> np.ndarray:
    """Probability of 1."""
    probabilities: np.ndarray = model.predict_proba(x)
    return probabilities[:, 1]


if __name__ == "__main__":
    main()
