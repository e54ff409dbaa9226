"""Workers that find other data are refused, before they train and in evaluations."""

import threading
from types import SimpleNamespace

import pytest
from flat_helpers import make_log
from thread_replicas import results_of_replicas

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.data.same_data import require_same_data
from easyrec_mm.errors import DataError
from easyrec_mm.evaluation import evaluator as evaluator_module
from easyrec_mm.evaluation.evaluator import Evaluator
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.training.evaluations import TrainingEvaluations


@pytest.fixture
def folder(tmp_path):
    make_log(tmp_path)
    return tmp_path


def pipeline_of(folder, eval_input_path="eval.csv"):
    paths = {name: f"{folder}/{path}" for name, path in (("train", "train.csv"), ("eval", eval_input_path))}
    text = (folder / "x.config").read_text()
    for name, path in paths.items():
        text = text.replace(f'{name}_input_path: "{name}.csv"', f'{name}_input_path: "{path}"')
    (folder / "own.config").write_text(text.replace('model_dir: "m"', f'model_dir: "{folder}/m"'))
    return load_pipeline(str(folder / "own.config"))


def opened(pipeline):
    """The training data, of which the contents have been looked at."""
    config = pipeline.config
    inputs = Input(
        config.data_config, pipeline.schema, config.train_input_path, "train_input_path", BadRecords(None, 1)
    )
    inputs.fingerprint()
    return inputs


def errors_of(num, function):
    """What each of the workers raises; None for nothing."""

    def run(replicas):
        try:
            function(replicas)
        except DataError as error:
            return str(error)
        return None

    return results_of_replicas(num, run)


def test_files_of_equal_names_and_sizes_with_other_contents(folder):
    pipeline, train = pipeline_of(folder), folder / "train.csv"
    first, second = opened(pipeline), opened(pipeline)
    text = train.read_text()
    train.write_text(text[:-2] + ("c" if text[-2] != "c" else "d") + "\n")
    third = opened(pipeline)
    assert errors_of(2, lambda replicas: require_same_data([first, second][replicas.number], replicas)) == [None, None]
    errors = errors_of(3, lambda replicas: require_same_data([first, second, third][replicas.number], replicas))
    assert set(errors) == {errors[0]}
    named = f"{train} of {len(text)} bytes, version "
    begin, of_first, of_third = errors[0].partition(";")[0].split(named)
    assert begin == "train_input_path: the workers have found different files: worker 0 has "
    assert of_third.isdecimal()
    assert of_first.endswith(", worker 2 has ")
    assert of_first != f"{of_third}, worker 2 has "


def test_evaluation_data_are_compared_before_a_training(folder):
    (folder / "more.csv").write_text((folder / "eval.csv").read_text() + "1,0.5,u1,a\n")
    pipelines = [pipeline_of(folder), pipeline_of(folder, "more.csv")]

    def require(replicas):
        place = SimpleNamespace(local=folder)
        TrainingEvaluations(
            pipelines[replicas.number], SimpleNamespace(replicas=replicas), None, {}, None, place, place
        ).require_data()

    errors = errors_of(2, require)
    assert errors[0] == errors[1]
    assert errors[0].startswith(
        f"eval_input_path: the workers have found different files: worker 0 has {folder}/eval.csv of "
    )
    assert f"worker 1 has {folder}/more.csv of " in errors[0]


@pytest.mark.slow
def test_evaluation_data_are_compared_in_each_evaluation_that_opens_them(folder, monkeypatch):
    """As one worker after another sees that they have changed; and in the command `eval`, which evaluates once."""
    (folder / "more.csv").write_text((folder / "eval.csv").read_text() + "1,0.5,u1,a\n")
    pipeline, other = pipeline_of(folder), pipeline_of(folder, "more.csv")
    inputs_of, real = {0: [], 1: []}, evaluator_module.evaluation_input

    def noted(model, *arguments):
        inputs_of[model.replicas.number].append(real(model, *arguments))
        return inputs_of[model.replicas.number][-1]

    monkeypatch.setattr(evaluator_module, "evaluation_input", noted)
    one_at_a_time = threading.Lock()  # Keras draws all initial weights from one seed

    def evaluate(replicas):
        with one_at_a_time:
            model = MultimodalModel(pipeline.config, pipeline.schema, replicas=replicas)
        path = pipeline.config.eval_input_path
        evaluator = Evaluator(model, pipeline.config, path, "eval_input_path", BadRecords(None, 1))
        assert evaluator.run()["num_samples"] == 100
        if replicas.number:
            inputs_of[1][0].is_up_to_date = lambda: False
        evaluator.run()
        paths = path, other.config.eval_input_path
        Evaluator(model, pipeline.config, paths[replicas.number], "--eval_input_path", BadRecords(None, 1)).run()

    errors = errors_of(2, evaluate)
    assert errors[0] == errors[1]
    assert errors[0].startswith("--eval_input_path: the workers have found different files: worker 0 has ")
    assert [len(inputs) for inputs in inputs_of.values()] == [3, 3]
