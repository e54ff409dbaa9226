"""easyrec-mm worth: arms are what they are called, results those of plain trainings, and a killed test goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from training_helpers import (
    HIGHWAY,
    NUM_PICTURES,
    evaluated_training,
    spy_on_loading,
)

from easyrec_mm import __version__
from easyrec_mm.cli.main import main
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import UserError
from easyrec_mm.training.trainer import Trainer
from easyrec_mm.worth import worth
from easyrec_mm.worth.arms import arms_of
from easyrec_mm.worth.costs import Cost, Sizes, seconds_of, steps_within
from easyrec_mm.worth.runs import Run, Stopped
from easyrec_mm.worth.worth import Worth, WorthOptions

SHORT = "num_epochs: 2"


pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


def config(data, folder, export="", **settings):
    """A pipeline of 6 steps."""
    run = evaluated_training(data, folder, export, **{"train": SHORT} | settings)
    return run.pipeline


def results(folder):
    return json.loads((folder / "worth.json").read_text())


@pytest.fixture(scope="module")
def tested(data, tmp_path_factory):
    """A whole test of two seeds, its folder, and what was loaded of which run."""
    folder = tmp_path_factory.mktemp("tested")
    pipeline = config(data, folder / "config")
    with pytest.MonkeyPatch.context() as patch:
        loaded = spy_on_loading(patch)
        of_run = {}
        execute = Run.execute

        def spied(self, counts):
            loaded.clear()
            result = execute(self, counts)
            of_run[self.name] = set(loaded)
            return result

        patch.setattr(Run, "execute", spied)
        Worth(pipeline, WorthOptions(str(folder / "worth"), 2), print).run()
    return pipeline, folder / "worth", of_run


def evaluated(pipeline, folder, seed):
    """What a training of a config finds by itself in its last evaluation."""
    config = pipeline.config
    config.model_dir = str(folder)
    config.data_config.seed += seed
    Trainer(pipeline).train()
    return json.loads((folder / "eval_result.json").read_text())


@pytest.mark.slow
def test_the_arms_are_what_their_configs_train(tested, data, tmp_path):
    """The config as it is, and one that somebody wrote who has no pictures."""
    pipeline, folder, _ = tested
    arms = results(folder)["arms"]
    own = evaluated(load_pipeline(pipeline.path), tmp_path / "own", seed=1)
    text = (folder.parent / "config" / "test.config").read_text()
    for gone in (
        'feature_groups { group_name: "img" feature_names: "path" }',
        "img_model { num_classes: 4  }",
        HIGHWAY,
    ):
        assert gone in text
        text = text.replace(gone, "")
    (tmp_path / "none.config").write_text(text)
    none = evaluated(load_pipeline(str(tmp_path / "none.config")), tmp_path / "none", seed=1)
    for name, by_hand in (("own", own), ("none", none)):
        for metric in ("auc_click", "log_loss_click"):
            assert arms[name]["metrics"][metric]["seeds"][1] == pytest.approx(by_hand[metric], abs=1e-6), (
                name,
                metric,
            )


def test_every_item_keeps_the_picture_of_another(tested, data):
    _, folder, of_run = tested
    table = pq.read_table(folder / "shuffled_pictures.parquet")
    instead = dict(zip(table["path"].to_pylist(), table["instead"].to_pylist(), strict=True))
    assert set(instead) == set(instead.values()) == {b"%d.png" % i for i in range(NUM_PICTURES)}
    assert all(path != other for path, other in instead.items())
    assert of_run["none, seed 0"] == set()
    assert of_run["shuffled, seed 0"] == of_run["own, seed 0"] == set(instead)


def test_what_it_writes(tested):
    _, folder, _ = tested
    report = results(folder)
    assert report["easyrec_mm"] == __version__
    assert set(report["arms"]) == {"own", "none", "shuffled"}
    assert "random" in report["left_out"]["frozen"]
    assert "'own'" in report["left_out"]["end_to_end"]
    assert report["num_seeds"] == 2
    assert report["num_steps"] == report["whole_steps"] == 6
    verdict = report["verdict"]
    assert verdict["metric"] == "auc_click"
    means = {arm: report["arms"][arm]["metrics"]["auc_click"] for arm in ("own", "none", "shuffled")}
    for arm in means.values():
        assert arm["mean"] == pytest.approx(np.mean(arm["seeds"]))
    for comparison in report["comparisons"]:
        gain = comparison["gains"]["auc_click"]
        assert gain["gain"] == pytest.approx(means[comparison["first"]]["mean"] - means[comparison["second"]]["mean"])
        losses = comparison["gains"]["log_loss_click"]
        assert losses["gain"] == pytest.approx(losses["second"] - losses["first"])
    assert [(c["first"], c["second"]) for c in report["comparisons"]] == [("own", "none"), ("own", "shuffled")]
    # Every item is seen in training, 2 to 4 times.
    assert report["num_samples"]["item_frequency=rare"] == report["num_samples"][""]
    of_slices = {entry["slice"]: entry for entry in report["verdicts"] if entry["metric"] == "auc_click"}
    assert set(of_slices) == {"", *(f"item_frequency={value}" for value in ("unseen", "rare", "frequent"))}
    assert of_slices["item_frequency=unseen"]["verdict"] is None
    assert of_slices["item_frequency=unseen"]["no_interval"] == "there are no samples"
    text = (folder / "worth.txt").read_text()
    assert report["conclusion"] in text
    assert "nan" not in text
    page = (folder / "worth.html").read_text()
    HTMLParser().feed(page)
    assert page.count("<svg") == page.count("</svg>") > 0
    assert not list(folder.glob("runs/*/*/model/model.ckpt-*"))


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed(tested, tmp_path, monkeypatch):
    """Of a test that was killed in its second run, the first is done, and of the second the training."""
    pipeline, folder, _ = tested
    shutil.copytree(folder, tmp_path / "w", ignore=shutil.ignore_patterns("worth.*", "none", "shuffled", "seed-1"))
    options = WorthOptions(str(tmp_path / "w"), 1, ("none",))
    execute, done = Run.execute, []

    def killed(self, counts):
        done.append(self.name)
        Trainer(self.pipeline).train()
        raise KeyboardInterrupt  # after the training, before its evaluation

    monkeypatch.setattr(Run, "execute", killed)
    monkeypatch.setattr(worth, "try_arms", None)  # is not done again
    with pytest.raises(KeyboardInterrupt):
        Worth(pipeline, options, print).run()
    assert not (tmp_path / "w" / "worth.json").exists()

    def counted(self, counts):
        done.append(self.name)
        return execute(self, counts)

    monkeypatch.setattr(Run, "execute", counted)
    Worth(pipeline, options, print).run()
    assert done == ["none, seed 0"] * 2
    whole, resumed = results(folder)["arms"], results(tmp_path / "w")["arms"]
    for arm in ("own", "none"):
        for metric, values in resumed[arm]["metrics"].items():
            assert values["seeds"] == whole[arm]["metrics"][metric]["seeds"][:1], (arm, metric)
    done.clear()
    Worth(pipeline, options, print).run()
    assert done == []


def test_a_signal_ends_it_and_it_goes_on(tested, tmp_path, monkeypatch, capsys):
    pipeline, _, _ = tested

    def stopped(self, counts):
        raise Stopped(15)

    monkeypatch.setattr(Run, "execute", stopped)
    monkeypatch.setattr(worth, "try_arms", lambda arms, folder, say: {arm.name: Cost(1, 1, 1) for arm in arms})
    assert main(["worth", "--pipeline_config", pipeline.path, "--output", str(tmp_path / "w"), "--seeds", "1"]) == 143
    assert "continue with the same command" in capsys.readouterr().out


def test_another_test_is_not_mixed_in(tested, data, tmp_path):
    pipeline, folder, _ = tested
    other = config(data, tmp_path / "config", train=f"{SHORT} gradient_clipping_by_norm: 1")
    with pytest.raises(UserError, match="contains the test of another config or of other data"):
        Worth(other, WorthOptions(str(folder), 2), print).run()
    with pytest.raises(UserError, match="started with no --budget_minutes"):
        Worth(pipeline, WorthOptions(str(folder), 2, (), 5.0), print).run()
    with pytest.raises(UserError, match="give a folder of this machine"):
        Worth(pipeline, WorthOptions("s3://bucket/w", 2), print)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="contains files that do not belong to a test"):
        Worth(pipeline, WorthOptions(str(tmp_path / "other"), 2), print).run()


def test_within_a_budget_all_arms_train_fewer_steps_alike(tested, tmp_path, monkeypatch, capsys):
    pipeline, folder, _ = tested

    def execute(self, counts):
        """As if it had trained: with what another run has found."""
        of_other = Run(self.arm, self.seed, 0, folder / "runs" / self.arm.name / f"seed-{self.seed}").result()
        return replace(of_other, step=self.pipeline.config.train_config.num_steps)

    monkeypatch.setattr(Run, "execute", execute)
    monkeypatch.setattr(worth, "try_arms", lambda arms, folder, say: {arm.name: Cost(0.1, 10, 10) for arm in arms})
    monkeypatch.setattr("easyrec_mm.worth.costs._LEAST_STEPS", 2)
    Worth(pipeline, WorthOptions(str(tmp_path / "w"), 1, ("none",), 3.0), print).run()
    report = results(tmp_path / "w")
    assert 2 <= report["num_steps"] < report["whole_steps"]
    assert {step for arm in report["arms"].values() for step in arm["steps"]} == {report["num_steps"]}
    assert "steps instead of 6" in capsys.readouterr().out
    assert any("instead of 6" in note for note in report["notes"])
    assert report["left_out"]["shuffled"] == "not in --arms"
    with pytest.raises(UserError, match=r"--budget_minutes: .* raise it, or use fewer --arms or --seeds"):
        Worth(pipeline, WorthOptions(str(tmp_path / "v"), 3, (), 0.5), print).run()


def test_the_most_steps_that_fit_are_taken(data, tmp_path):
    pipeline = config(data, tmp_path / "config", train="num_epochs: 2 save_checkpoints_epochs: 1")
    arms, _ = arms_of(pipeline, (), tmp_path / "s.parquet")
    costs = {"own": Cost(5, 2, 2), "none": Cost(3, 0.1, 0.1), "shuffled": Cost(5, 2, 0.5)}
    sizes = Sizes(1000, 100.0, 7, (0, 0))
    runs = dict.fromkeys(costs, 3)

    def seconds(num_steps):
        return sum(seconds_of(num_steps, runs, costs, sizes, arms).values())

    assert seconds(50) > 3 * 50 * 4.1
    # Of 'shuffled' the first epoch alone is slow.
    assert seconds(500) - seconds(400) == pytest.approx(3 * (100 * 2.6 + 7 * 0.4 * 2.6))
    steps = steps_within(2000, runs, costs, sizes, arms)
    assert seconds(steps) <= 2000 < seconds(steps + 1)
    assert steps_within(1e6, runs, costs, sizes, arms) == 1000


@pytest.mark.parametrize(
    ("img_model", "left_out"),
    [
        ("", {"frozen": "random weights", "end_to_end": "the same as 'own'"}),
        ("trainable: HEAD", {"frozen": "the same as 'own'"}),
        ("trainable: LAST_N_STAGES last_n_stages: 1", {"frozen": "random weights"}),
        ('model_name: "None" descriptors {}', {"frozen": "no backbone", "end_to_end": "no backbone"}),
    ],
)
def test_arms_that_make_no_sense(data, tmp_path, img_model, left_out):
    pipeline = config_with(data, tmp_path, img_model)
    arms, reasons = arms_of(pipeline, (), tmp_path / "s.parquet")
    assert {arm.name for arm in arms} | set(reasons) == {"own", "none", "shuffled", "frozen", "end_to_end"}
    assert set(reasons) == set(left_out)
    for name, reason in left_out.items():
        assert reason in reasons[name]
        with pytest.raises(UserError, match=f"'{name}' does not apply"):
            arms_of(pipeline, (name,), tmp_path / "s.parquet")


def config_with(data, folder, img_model):
    path = Path(config(data, folder).path)
    text = path.read_text().replace("img_model { num_classes: 4  }", f"img_model {{ num_classes: 4 {img_model} }}")
    path.write_text(text)
    return load_pipeline(str(path))
