"""Tests of the project's own rules: which module may import which, tables that equal the protos, docs that are current.

A new room needs a row in MAY_IMPORT: say there what it stands on, and nothing above it can creep in.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from easyrec_mm.config import evaluation as config_evaluation
from easyrec_mm.config import image as config_image
from easyrec_mm.config import network as config_network
from easyrec_mm.config.rules import Interval, names_in, rule_of
from easyrec_mm.features.field import KINDS
from easyrec_mm.protos import options_pb2
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.protos.eval_pb2 import EvalMetrics
from easyrec_mm.protos.feature_pb2 import FeatureConfig
from easyrec_mm.protos.loss_pb2 import LossType
from easyrec_mm.protos.optimizer_pb2 import LearningRate, Optimizer
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Activation

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "easyrec_mm"

# Room (a folder, or a module beside them) -> the rooms above it that its modules may import besides their own.
MAY_IMPORT = {
    "exit_status": "",
    "safe_text": "",
    "errors": "exit_status safe_text",
    "ranges": "errors",
    "console": "safe_text",
    "features": "errors safe_text protos",
    "schema": "features",
    "stable_hash": "",
    "tensorflow_import": "",
    "tasks": "",
    "spark": "errors safe_text tensorflow_import",
    "pages": "",
    "files": "errors safe_text tensorflow_import",
    "manifest": "errors schema files",
    "delta": "errors files manifest features",
    "store": "errors safe_text pages files features",
    "codes": "errors stable_hash files store",
    "weights": "errors files",
    "distribution": "console exit_status errors safe_text",
    "config": "errors safe_text schema files manifest features weights protos",
    "formats": "errors schema tasks files features protos",
    "runs": "console errors safe_text files features distribution config protos",
    "data": "errors safe_text schema stable_hash tasks files features store formats distribution runs protos",
    "grouping": "errors ranges safe_text schema stable_hash spark files features config formats protos",
    "network": "errors features schema weights distribution config data protos",
    "pretraining": "errors stable_hash files config formats data protos",
    "embedding": "errors ranges safe_text schema tasks spark files manifest features store formats runs data",
    "extraction": "errors schema tasks spark files features store weights data network embedding protos",
    "evaluation": "errors safe_text schema stable_hash tasks spark files manifest features store distribution config "
    "runs data network embedding protos",
    "training": "console exit_status errors safe_text schema files features store distribution config runs data "
    "network evaluation protos",
    "export": "errors schema files manifest features store config formats data network embedding evaluation protos",
    "worth": "console errors pages files config formats runs data evaluation training protos",
    "tuning": "console errors safe_text pages files config distribution runs training protos",
    "stats": "errors safe_text pages schema stable_hash files features store config formats data grouping network "
    "evaluation training protos",
    "explain": "errors schema stable_hash features store config data network evaluation training protos",
    "report": "errors safe_text pages schema stable_hash files features store config formats runs data network "
    "evaluation explain stats protos",
    "serving": "console errors ranges safe_text schema tensorflow_import files manifest features store embedding",
    "retrieval": "errors pages schema tensorflow_import files manifest store embedding data serving",
    "api": "console exit_status errors ranges tensorflow_import tasks files distribution",
    "cli": "api console exit_status errors ranges safe_text tensorflow_import tasks files worth",
    "__main__": "cli",
}
# Rooms that load in a moment, for neither they nor what they import imports TensorFlow: what a user can get wrong in a
# config fails before that.
WITHOUT_TENSORFLOW = {
    "exit_status",
    "errors",
    "ranges",
    "safe_text",
    "console",
    "schema",
    "tasks",
    "pages",
    "manifest",
    "delta",
    "files",
    "store",
    "codes",
    "weights",
    "config",
}
WITHOUT_TENSORFLOW |= {"grouping", "api", "cli"}
# Print; all others use what `console` offers for the work under way, return what they have to say, or raise it.
MAY_PRINT = ("cli", "console")

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" and "protos" not in path.parts
}


def room(module):
    """The folder of a module, or the module itself where it lies in none."""
    return module.split(".")[0]


@cache
def tree(module):
    """The code of a module."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def statements(module):
    """The nodes of a module's code. Of the API and the commands only what runs when they are imported."""
    return ast.walk(tree(module)) if room(module) not in ("api", "cli") else at_import(tree(module))


def at_import(node):
    """The nodes below a node, without the bodies of functions and what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not isinstance(child, ast.FunctionDef) and not is_for_types:
            yield child
            yield from at_import(child)


@cache
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


def own_imports(module):
    """The modules of the package that a module imports; a generated one is in the room `protos`."""
    own = {name.removeprefix("easyrec_mm.") for name in imports(module) if name.startswith("easyrec_mm.")}
    return {name for name in own if name in MODULES or name.startswith("protos.")}


# --- Modules


def test_every_room_has_its_place_in_the_table():
    assert {room(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    rooms = {room(imported) for imported in own_imports(module)}
    assert rooms - {room(module)} <= set(MAY_IMPORT[room(module)].split())


def test_signals_are_left_to_python():
    """The reader of CSV is imported where its handlers of signals are switched off."""
    assert {module for module in MODULES if "pyarrow.csv" in imports(module)} == {"files.arrow_csv"}


def test_the_table_has_no_circles():
    order = [*MAY_IMPORT]
    for package, allowed in MAY_IMPORT.items():
        above = order[: order.index(package)]
        assert set(allowed.split()) <= {*above, "protos"}, package


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) in WITHOUT_TENSORFLOW])
def test_light_modules_reach_no_tensorflow(module):
    reached, waiting = set(), [module]
    while waiting:
        here = waiting.pop()
        heavy = {name for name in imports(here) if name.split(".")[0] in ("tensorflow", "keras", "keras_hub")}
        assert heavy == set(), f"{module} reaches {here}"
        reached.add(here)
        # tensorflow_import loads it when it is called.
        waiting += own_imports(here) & set(MODULES) - reached - {"tensorflow_import"}


@pytest.mark.parametrize("module", MODULES)
def test_library_code_asserts_nothing_and_prints_nothing(module):
    nodes = list(ast.walk(tree(module)))
    assert [node.lineno for node in nodes if isinstance(node, ast.Assert)] == []
    prints = [node.lineno for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
    assert not prints or module in MAY_PRINT or room(module) in MAY_PRINT


# Lines, comments and docstrings included.
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_CLASS, MOST_LINES_OF_A_FUNCTION = 400, 250, 50


@pytest.mark.parametrize("module", MODULES)
def test_files_classes_and_functions_are_of_a_size_that_can_be_read(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES_OF_A_FILE
    for node in ast.walk(tree(module)):
        most = MOST_LINES_OF_A_CLASS if isinstance(node, ast.ClassDef) else MOST_LINES_OF_A_FUNCTION
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            assert node.end_lineno - node.lineno < most, node.name


def test_tests_samples_and_tools_are_files_of_a_size_that_can_be_read():
    paths = [path for folder in ("tests", "samples", "tools") for path in (ROOT / folder).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in paths}
    assert lines
    assert {path: count for path, count in lines.items() if count > MOST_LINES_OF_A_FILE} == {}


# --- Tables and protos


def members(message, oneof):
    return {field.name for field in message.DESCRIPTOR.oneofs_by_name[oneof].fields}


def test_each_optimizer_of_the_proto_has_its_class():
    from easyrec_mm.training.optimizers import OPTIMIZERS

    assert set(OPTIMIZERS) == members(Optimizer, "optimizer")


def test_each_learning_rate_of_the_proto_has_its_function():
    from easyrec_mm.training.learning_rates import SCHEDULES

    assert set(SCHEDULES) == members(LearningRate, "learning_rate")


def test_each_metric_of_the_proto_has_its_class_and_its_outputs():
    from easyrec_mm.evaluation.calibration import CalibrationCurve
    from easyrec_mm.evaluation.group_metrics import GAUC
    from easyrec_mm.evaluation.metric_table import METRICS

    assert set(METRICS) == members(EvalMetrics, "metric")
    outputs = [names_in(kind.outputs) for kind in config_evaluation.METRIC_KINDS.values()]
    assert all(outputs)
    assert set().union(*outputs) == set(get_args(Activation))
    for metric in ("gauc", "session_auc"):
        reduction = EvalMetrics.DESCRIPTOR.fields_by_name[metric].message_type.fields_by_name["reduction"]
        assert set(names_in(rule_of(reduction).choices)) == set(GAUC.REDUCTIONS)
    strategy = EvalMetrics.DESCRIPTOR.fields_by_name["calibration_curve"].message_type.fields_by_name["strategy"]
    assert names_in(rule_of(strategy).choices) == CalibrationCurve.STRATEGIES


def test_each_loss_of_the_proto_has_its_function_and_its_output():
    from easyrec_mm.network.losses import LOSSES

    assert set(LOSSES) == set(LossType.keys())
    for value in LossType.DESCRIPTOR.values:
        assert value.GetOptions().Extensions[options_pb2.output] in get_args(Activation), value.name


def test_backbones_and_activations_that_the_checks_allow_exist():
    import keras

    from easyrec_mm.network.layers.backbones import BACKBONES

    assert tuple(BACKBONES) == config_image.BACKBONE_NAMES
    for name in config_network.ACTIVATION_NAMES:
        assert callable(keras.activations.get(name)), name


def test_each_resize_method_of_the_proto_is_one_of_tensorflow():
    import tensorflow as tf

    known = {getattr(tf.image.ResizeMethod, name) for name in dir(tf.image.ResizeMethod) if name.isupper()}
    assert {name.lower() for name in FeatureConfig.ResizeMethod.keys()} <= known  # noqa: SIM118


def test_types_of_fields_have_their_dtypes():
    assert set(KINDS) == set(DatasetConfig.FieldType.keys())


def test_rules_name_types_of_features_that_there_are():
    types = set(FeatureConfig.FeatureType.keys())
    for field in FeatureConfig.DESCRIPTOR.fields:
        rule = rule_of(field)
        assert {*names_in(rule.feature_types), *names_in(rule.element_types)} <= types, field.name


def test_every_rule_can_be_read_and_holds_for_its_default():
    for descriptor in reachable(EasyRecConfig.DESCRIPTOR, {}).values():
        for field in getattr(descriptor, "fields", ()):
            rule = rule_of(field)
            if rule.range:
                interval = Interval.of(rule.range)
                has_default = field.has_default_value and not rule.needs
                assert not has_default or interval.holds(float(f"{field.default_value:.7g}")), field.full_name
            if rule.choices:
                assert not field.has_default_value or field.default_value in names_in(rule.choices), field.full_name
            if rule.needs:
                name, _, values = rule.needs.partition(":")
                needed = descriptor.fields_by_name[name]
                assert set(names_in(values)) <= set(needed.enum_type.values_by_name if values else ()), field.full_name


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
    outcome = (1, f"{output} is out of date; run python tools/gen_config_docs.py\n")
    assert run_docs_tool("--check", "--output", output) == outcome
    assert run_docs_tool("--output", output) == (0, "")
    text = output.read_text(encoding="utf-8")
    assert text == (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    output.write_text(text.replace("Older spelling", "Newer spelling"), encoding="utf-8")
    assert run_docs_tool("--check", "--output", output) == outcome


def test_a_field_without_a_comment_is_told(tmp_path):
    for path in (ROOT / "protos").glob("*.proto"):
        text = path.read_text(encoding="utf-8").replace("  // Units of each layer.\n", "")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    error = f"{tmp_path}: no comment above DNN.hidden_units; write one\n"
    assert run_docs_tool("--protos", tmp_path, "--output", tmp_path / "config.md") == (1, error)


def reachable(descriptor, descriptors):
    """Every message and enum that a config can hold, by name."""
    descriptors[descriptor.full_name.removeprefix("easyrec_mm.protos.")] = descriptor
    for field in getattr(descriptor, "fields", ()):
        part = field.message_type or field.enum_type
        if part is not None and part not in descriptors.values():
            reachable(part, descriptors)
    return descriptors


def test_the_reference_lists_every_field_and_value_once_and_its_links_lead_somewhere():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in text.split("\n## ")[1:]}
    index = sections.pop("Index")
    descriptors = reachable(EasyRecConfig.DESCRIPTOR, {})
    assert set(sections) == set(descriptors)
    for name, descriptor in descriptors.items():
        parts = descriptor.fields if hasattr(descriptor, "fields") else descriptor.values
        rows = re.findall(r"^\| `(\w+)` \|.* (\S+) \|$", sections[name], re.MULTILINE)
        assert [row for row, _ in rows] == [part.name for part in parts]
    fields = {field.name for descriptor in descriptors.values() for field in getattr(descriptor, "fields", ())}
    assert sorted(re.findall(r"`(\w+)`", index)) == sorted(fields)
    anchors = {"index"} | {re.sub(r"[^a-z0-9_-]", "", name.lower()) for name in sections}
    assert set(re.findall(r"\(#([^)]*)\)", text)) <= anchors


# Names of other libraries for which they have no public one, and of named tuples.
PRIVATE_OF_OTHERS = {
    "_replace", "_trainable_variables", "_non_trainable_variables", "_flatten_layers", "_keras_history", "_functions",
    "_jsc", "_utils", "_rebuild_tensor_v2", "_create_c_op", "_exit",
}  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_tests_use_public_names(path):
    """What a test has to reach is part of the interface of its file."""
    tree = ast.parse(path.read_text())
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not is_self(node.value)}
    used |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    patched = [call.args for call in calls if call.func.attr == "setattr" and len(call.args) == 3]
    used |= {args[1].value for args in patched if isinstance(args[1], ast.Constant) and isinstance(args[1].value, str)}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    assert private - own - PRIVATE_OF_OTHERS == set()


def is_self(node):
    return isinstance(node, ast.Name) and node.id == "self"


def test_help_does_not_load_tensorflow():
    code = (
        "import sys, easyrec_mm.cli.main as c\n"
        "try: c.main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'tensorflow', 'google.protobuf', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
