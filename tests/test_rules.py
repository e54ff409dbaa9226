"""Tests of the project's own rules: which module may import which, tables that equal the protos, docs that are current.

A new module needs a row in MAY_IMPORT: say there what it stands on, and nothing above it can creep in.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from easyrec_mm import config_best, config_checks, config_evaluation, config_features, config_image, config_schema
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.eval_pb2 import EvalMetrics
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.loss_pb2 import LossType
from easyrec_mm.protos.optimizer_pb2 import LearningRate, Optimizer
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Activation

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "easyrec_mm"

# Module -> the modules of easyrec_mm that it may import; a folder stands for what is in it.
CONFIG_BASE = ("errors", "schema", "protos")
TRAINING_BASE = (
    *("errors", "schema", "protos", "data", "feature_vectors", "model", "moving_average", "precision", "progress"),
    "checkpoint",
)
MAY_IMPORT = {
    "errors": (),
    "files": ("errors", "files"),
    "tensorflow_import": (),
    "schema": (),
    "text_patterns": ("schema",),
    "expression": ("errors",),
    "quantiles": (),
    "store": ("errors", "store"),
    "config_feature_kinds": (*CONFIG_BASE, "expression"),
    "config_features": (*CONFIG_BASE, "config_feature_kinds"),
    "weights.catalog": ("errors",),
    "config_groups": (*CONFIG_BASE, "config_features"),
    "config_image": (*CONFIG_BASE, "weights.catalog"),
    "config_sequences": (*CONFIG_BASE, "config_groups", "config_image"),
    "config_schema": (
        *CONFIG_BASE,
        *("config_features", "config_groups", "config_image", "config_sequences", "text_patterns"),
    ),
    "config_evaluation": CONFIG_BASE,
    "config_best": CONFIG_BASE,
    "config_learning_rates": CONFIG_BASE,
    "config_checks": (
        *CONFIG_BASE,
        *(
            "config_best",
            "config_evaluation",
            "config_groups",
            "config_image",
            "config_learning_rates",
            "config_schema",
        ),
    ),
    "config": (*CONFIG_BASE, "config_schema", "config_checks", "files"),
    "evaluation": (*CONFIG_BASE, "config_evaluation", "evaluation", "grouping.stable_hash", "quantiles"),
    "losses": (),
    "learning_rates": ("protos",),
    "optimizers": ("learning_rates", "protos"),
    "moving_average": (),
    "loss_scale": (),
    "checkpoint": ("errors",),
    "model_dir": ("errors", "checkpoint", "files"),
    "picture_bank": ("checkpoint",),
    "layers": ("errors", "schema", "layers"),
    "weights": ("errors", "files", "layers", "weights"),
    "feature_vectors": ("errors", "schema", "store"),
    "data": (
        "grouping.stable_hash",
        *("errors", "files", "schema", "text_patterns", "expression", "feature_vectors", "protos", "data"),
        "picture_bank",
    ),
    "precision": ("protos",),
    "rec_network": ("layers", "schema", "config_checks", "config_groups", "precision", "protos"),
    "image_network": (
        *("errors", "layers", "data.batch", "schema", "config_image", "protos", "rec_network", "weights.catalog"),
    ),
    "model": (
        *("layers", "losses", "data.batch", "schema", "config_checks", "picture_bank", "precision", "protos"),
        *("image_network", "rec_network"),
    ),
    "progress": (),
    "evaluator": (*TRAINING_BASE, "evaluation", "files", "model_dir"),
    "runs": ("errors", "config", "config_best", "config_evaluation", "checkpoint", "files", "model_dir", "runs"),
    "training_plan": ("errors", "model", "optimizers", "picture_bank", "protos"),
    "training": (
        *TRAINING_BASE,
        *("config", "config_best", "config_evaluation", "evaluation.report", "evaluator", "files", "model_dir"),
        *("runs", "training"),
    ),
    "trainer": (
        *TRAINING_BASE,
        "config",
        "config_image",
        "evaluation",
        "config_learning_rates",
        "evaluator",
        "files",
        "loss_scale",
        "model_dir",
        "optimizers",
        "picture_bank",
        "runs",
        "training",
        "training_plan",
    ),
    "comparison": (*TRAINING_BASE, "config", "evaluation", "evaluator", "files", "model_dir", "trainer"),
    "watch": (
        *TRAINING_BASE,
        *("config", "evaluation.report", "evaluator", "files", "model_dir", "runs", "training.signals"),
    ),
    # The one that resizes pictures stands on the input's definition of decoding; no other does.
    "grouping": ("errors", "config", "config_groups", "files", "protos", "quantiles", "grouping"),
    "items": ("errors", "files", "grouping", "schema"),
    "manifest": ("errors", "files", "schema"),
    "serving": (
        *("errors", "files", "schema", "text_patterns", "expression", "manifest", "store", "feature_vectors"),
        *("serving", "tensorflow_import"),
    ),
    "parts": ("data.decode", "data.transform", "manifest", "model", "rec_network", "schema"),
    "onnx_models": ("layers.embedding", "manifest", "model", "parts", "rec_network", "schema"),
    "parity": (
        *("errors", "schema", "protos", "data", "feature_vectors", "model", "evaluation", "manifest", "parts"),
        "serving.transform",
    ),
    "export": (
        *TRAINING_BASE,
        *("config", "evaluator", "files", "layers", "manifest", "model_dir", "onnx_models", "parity", "parts", "store"),
    ),
    "worth.names": (),
    "worth": (
        *TRAINING_BASE,
        *("config", "config_best", "config_checks", "config_evaluation", "config_groups", "config_image"),
        *("config_schema", "evaluation", "evaluator", "files", "model_dir", "runs", "trainer", "training", "worth"),
    ),
    "embed": (
        "errors",
        "files",
        "items",
        "manifest",
        "schema",
        "serving.transform",
        "store",
        "data.pictures",
        "progress",
    ),
    "search": ("errors", "files", "store"),
    "stats": ("errors", "config", "data", "files", "grouping", "protos", "quantiles", "stats"),
    "server": ("errors", "files", "serving", "store", "embed", "tensorflow_import"),
    "check": ("errors", "schema", "data", "feature_vectors", "config", "image_network", "precision"),
    "commands": ("errors", "files", "tensorflow_import"),
    "cli": ("commands", "errors", "files", "worth.names"),
    "__main__": ("cli",),
}
# Load in a moment: what a user can get wrong in a config fails before TensorFlow is imported.
WITHOUT_TENSORFLOW = {
    "errors",
    "files.content_cache",
    "files.disk_cache",
    "files.first_pictures",
    "files.folders",
    "files.fsspec_storage",
    "files.local_copies",
    "files.object_storage",
    "files.paths",
    "files.place",
    "files.regular_files",
    "files.storage",
    "files.tensorflow_storage",
    "files.work_folder",
    "schema",
    "text_patterns",
    "expression",
    "config_feature_kinds",
    "config_features",
    "config_groups",
    "config_image",
    "config_sequences",
    "config_schema",
    "config_evaluation",
    "config_best",
    "config_learning_rates",
    "config_checks",
    "config",
    "quantiles",
    "manifest",
    "items",
    "runs.evaluations",
    "serving.transform",
    "store.base",
    "store.lmdb_store",
    "store.postgres_store",
    "store.redis_store",
    "store.stat",
    "store.load",
    "feature_vectors",
    "serving.feature_lookup",
    "weights.catalog",
    "weights.preset_folder",
    "weights.torch_file",
    "weights.wheel",
    "worth.names",
    "worth.arms",
    "worth.verdict",
    "commands",
    "cli",
    *(
        f"{folder}.{path.stem}"
        for folder in ("grouping", "evaluation")
        for path in (PACKAGE / folder).glob("*.py")
        if path.stem != "__init__"
    ),
}
# Talk to the person at the terminal; all others return what they have to say, or raise it.
MAY_PRINT = {"cli", "commands", "trainer", "progress"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" and "protos" not in path.parts
}


def stands_in(module, names):
    """Whether a module is one of the names or lies in a folder that is."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def statements(module):
    """The nodes of a module's code. Of the commands only what runs when they are imported: each loads what it needs."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    if module != "commands":
        return list(ast.walk(tree))
    at_import = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return [inner for node in at_import for inner in ast.walk(node)]


def imports(module):
    """Full names of what a module imports; of `from package import name` both, for the name may be a module."""
    names = []
    for node in statements(module):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, line {node.lineno}"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


# --- Modules


def test_every_module_has_its_place_in_the_table():
    assert [module for module in MODULES if not stands_in(module, MAY_IMPORT)] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    allowed = next(names for owner, names in MAY_IMPORT.items() if stands_in(module, [owner]))
    own = [name.removeprefix("easyrec_mm.") for name in imports(module) if name.startswith("easyrec_mm.")]
    imported = {name for name in own if name in MODULES or name.startswith("protos.")}
    assert {name for name in imported if not stands_in(name, allowed)} == set()


def test_the_table_has_no_circles():
    for module, allowed in MAY_IMPORT.items():
        order = list(MAY_IMPORT)
        above = [name for name in allowed if name in order and order.index(name) > order.index(module)]
        assert above == [], module


@pytest.mark.parametrize("module", sorted(WITHOUT_TENSORFLOW))
def test_light_modules_import_no_tensorflow(module):
    assert {name for name in imports(module) if stands_in(name, ("tensorflow", "keras", "keras_hub"))} == set()
    own = {name.removeprefix("easyrec_mm.") for name in imports(module)} & set(MODULES)
    assert own <= WITHOUT_TENSORFLOW | {"tensorflow_import"}


@pytest.mark.parametrize("module", MODULES)
def test_library_code_asserts_nothing_and_prints_nothing(module):
    nodes = list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))
    assert [node.lineno for node in nodes if isinstance(node, ast.Assert)] == []
    prints = [node.lineno for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
    assert not prints or module in MAY_PRINT


# --- Tables and protos


def members(message, oneof):
    return {field.name for field in message.DESCRIPTOR.oneofs_by_name[oneof].fields}


def test_each_optimizer_of_the_proto_has_its_class():
    from easyrec_mm.optimizers import OPTIMIZERS

    assert set(OPTIMIZERS) == members(Optimizer, "optimizer")


def test_each_learning_rate_of_the_proto_has_its_function():
    from easyrec_mm.learning_rates import SCHEDULES

    assert set(SCHEDULES) == members(LearningRate, "learning_rate")


def test_each_metric_of_the_proto_has_its_class_and_its_outputs():
    from easyrec_mm.evaluation.calibration import CalibrationCurve
    from easyrec_mm.evaluation.group_metrics import GAUC
    from easyrec_mm.evaluation.metric_table import METRICS

    assert set(METRICS) == members(EvalMetrics, "metric")
    assert set().union(*config_evaluation.METRICS_OF_ACTIVATION.values()) == set(METRICS)
    assert set(config_evaluation.METRICS_OF_ACTIVATION) == set(get_args(Activation))
    assert set(config_evaluation.GAUC_REDUCTIONS) == set(GAUC.REDUCTIONS)
    assert config_evaluation.CURVE_STRATEGIES == CalibrationCurve.STRATEGIES


def test_each_metric_of_the_proto_has_a_direction():
    assert set(config_best.BIGGER_IS_BETTER) == members(EvalMetrics, "metric")


def test_each_loss_of_the_proto_has_its_function_and_its_output():
    from easyrec_mm.losses import LOSSES

    assert set(LOSSES) == set(LossType.keys())
    assert set(config_schema.ACTIVATIONS) == set(LossType.values())
    assert set(config_schema.ACTIVATIONS.values()) <= set(get_args(Activation))


def test_backbones_and_activations_that_the_checks_allow_exist():
    import keras

    from easyrec_mm.layers.backbones import BACKBONES

    assert tuple(BACKBONES) == config_image.BACKBONE_NAMES
    for name in config_checks.ACTIVATION_NAMES:
        assert callable(keras.activations.get(name)), name


def test_each_resize_method_of_the_proto_is_one_of_tensorflow():
    import tensorflow as tf

    known = {getattr(tf.image.ResizeMethod, name) for name in dir(tf.image.ResizeMethod) if name.isupper()}
    assert {name.lower() for name in FeatureConfig.ResizeMethod.keys()} <= known  # noqa: SIM118


def test_tables_of_fields_and_features_cover_the_protos():
    assert set(config_schema.DTYPES) == set(DatasetConfig.FieldType.values())
    settings = set(FeatureConfig.DESCRIPTOR.fields_by_name)
    assert set(config_features.SETTINGS_OF_ELEMENTS) <= settings
    for_every_type = {"feature_name", "input_names", "feature_type", "embedding_dim", "separator", "combiner"}
    assert set(config_features.SETTINGS_OF_TYPES) == settings - for_every_type
    types = {kind for kinds in config_features.SETTINGS_OF_TYPES.values() for kind in kinds}
    assert types | {FeatureConfig.SampleNumFeature} == set(FeatureConfig.FeatureType.values())


# --- docs/config.md


def run_docs_tool(*flags):
    """Its exit status and what it says. In a process of its own: protoc as a library does not bear TensorFlow."""
    command = [sys.executable, ROOT / "tools" / "gen_config_docs.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_the_reference_of_the_config_language_is_current():
    assert run_docs_tool("--check") == (0, "")


def test_a_reference_that_is_missing_or_out_of_date_is_told(tmp_path):
    output = tmp_path / "config.md"
    told = (1, f"{output} is out of date; run python tools/gen_config_docs.py\n")
    assert run_docs_tool("--check", "--output", output) == told
    assert run_docs_tool("--output", output) == (0, "")
    text = output.read_text(encoding="utf-8")
    assert text == (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    output.write_text(text.replace("Older spelling", "Newer spelling"), encoding="utf-8")
    assert run_docs_tool("--check", "--output", output) == told


def test_a_field_without_a_comment_is_told(tmp_path):
    for path in (ROOT / "protos").glob("*.proto"):
        text = path.read_text(encoding="utf-8").replace("  // Units of each layer.\n", "")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    told = f"{tmp_path}: no comment above DNN.hidden_units; write one\n"
    assert run_docs_tool("--protos", tmp_path, "--output", tmp_path / "config.md") == (1, told)


def reachable(descriptor, found):
    """Every message and enum that a config can hold, by name."""
    found[descriptor.full_name.removeprefix("easyrec_mm.protos.")] = descriptor
    for field in getattr(descriptor, "fields", ()):
        part = field.message_type or field.enum_type
        if part is not None and part not in found.values():
            reachable(part, found)
    return found


def test_the_reference_lists_every_field_and_value_once_and_its_links_lead_somewhere():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    found = reachable(EasyRecConfig.DESCRIPTOR, {})
    assert set(sections) == set(found)
    for name, descriptor in found.items():
        parts = descriptor.fields if hasattr(descriptor, "fields") else descriptor.values
        rows = re.findall(r"^\| `(\w+)` \|.* (\S+) \|$", sections[name], re.MULTILINE)
        assert [row for row, _ in rows] == [part.name for part in parts]
    anchors = {re.sub(r"[^a-z0-9_-]", "", name.lower()) for name in sections}
    assert set(re.findall(r"\(#([^)]*)\)", text)) <= anchors
