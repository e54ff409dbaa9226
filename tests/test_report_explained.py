"""The report's sections that explain the model: their figures, what they say where something is missing, the map."""

from __future__ import annotations

import io
import shutil

import numpy as np
import PIL.Image
import pytest
from flow_helpers import copy_checkpoint, use_small_backbone
from report_helpers import opened as opened_page
from training_helpers import evaluated_training, use_backbone_of_three_stages

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.explain.pictures import TILE
from easyrec_mm.pages.render import render
from easyrec_mm.report.atlas import atlas, by_rate, sheets_of
from easyrec_mm.report.influence import influence
from easyrec_mm.report.page import make_sections, page
from easyrec_mm.report.reasons import reasons
from easyrec_mm.report.report import ReportOptions, opened
from easyrec_mm.report.section import Choice, Markup, Pictures, Plot, Table, Text, Unavailable
from easyrec_mm.report.sections import SECTIONS
from easyrec_mm.report.seen import seen
from easyrec_mm.report.similar import similar
from easyrec_mm.schema import Task

EXPLAINING = [section for section in SECTIONS if section.name in
              ("ablation", "attributions", "saliency", "neighbours", "map")]  # fmt: skip


def flat(parts):
    """All parts, those within others too."""
    for part in parts:
        yield part
        for inner in part.options.values() if isinstance(part, Choice) else [getattr(part, "parts", ())]:
            yield from flat(inner)


def of_kind(parts, kind):
    return [part for part in flat(parts) if isinstance(part, kind)]


def texts(parts):
    return " ".join(part.text for part in of_kind(parts, Text))


@pytest.fixture(scope="module")
def model_dir(exported, tmp_path_factory):
    """A copy of the training whose data lack two pictures."""
    root = tmp_path_factory.mktemp("explained")
    copy_checkpoint(exported.model_dir, 6, root / "m")
    config = (exported.model_dir / "pipeline.config").read_text().replace(str(exported.data), str(root / "data"))
    (root / "m" / "pipeline.config").write_text(config)
    shutil.copytree(exported.data, root / "data")
    for path in sorted((root / "data" / "images" / "test").iterdir())[:2]:
        path.unlink()
    return root / "m"


@pytest.fixture(scope="module")
def context(model_dir):
    """What sections share, of a model of two tasks."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        options = ReportOptions(str(model_dir), eval_input_path=f"{model_dir.parent}/data/test/*")
        with opened(options) as shared:
            yield shared


@pytest.mark.slow
def test_ablation_starts_at_the_metrics_of_the_evaluation(context):
    parts = influence(context)
    metrics = {name: value for name, value in context.evaluated.results.items() if "/" not in name}
    plots = {plot.figure.layout.xaxis.title.text for plot in of_kind(parts, Plot)}
    assert f"change of auc (now {metrics['auc_click']:.4g})" in plots
    tables = of_kind(parts, Table)
    assert len(tables) == 2  # of click and of play_time
    names = {row[0].text for row in tables[0].rows}
    assert {"picture: the mean of all", "picture: that of another item", "user_city", "price"} <= names
    assert len(names) == 2 + 11
    assert f"{len(context.evaluated.rows)} samples, mean of 5 permutations" in texts(parts)


@pytest.mark.slow
def test_attributions_of_the_page_add_up_to_its_logits(context):
    table = of_kind(reasons(context), Table)[0]
    assert table.columns[:3] == ["sample", "baseline", "logit"]
    assert table.columns[-1] == "picture"
    for row in table.rows:
        baseline, logit, *values = [cell.order for cell in row[1:]]
        assert sum(values) == pytest.approx(logit - baseline, abs=max(0.001, 0.01 * abs(logit - baseline)))
    evaluated = context.evaluated
    worst = evaluated.rankings["click"][0].samples[0][1]
    assert table.rows[0][2].order == pytest.approx(np.log(worst.score / (1 - worst.score)), rel=1e-3)


@pytest.mark.slow
def test_vanished_pictures_are_named_and_the_rest_is_shown(context, model_dir):
    left = [path.name for path in sorted((model_dir.parent / "data" / "images" / "test").iterdir())]
    for make in (seen, similar, atlas):
        parts = make(context)
        warning = next(part.text for part in of_kind(parts, Text) if part.kind == "warning")
        assert "2 of 12 pictures cannot be loaded and are left out: images/test/" in warning
        assert not any(name in warning for name in left)
        assert len(of_kind(parts, (Markup, Pictures))) > 0


@pytest.mark.slow
def test_neighbours_before_training_are_those_of_the_first_weights(context, exported):
    parts = similar(context)
    titles = {part.title for part in of_kind(parts, Pictures)}
    assert titles == {"after training", "before training: random weights, by the seed"}
    model, _ = context.explained.untrained
    # Weights that a step of the same training has hardly changed: one of another seed would be far away.
    trained = {name: v.numpy() for name, v in context.run.model.named_variables().items()}
    for name, variable in model.named_variables().items():
        if name.startswith("image/") and name.endswith("kernel"):
            change = np.abs(variable.numpy() - trained[name]).max()
            assert 0 < change < 0.1 * np.abs(trained[name]).max(), name
    sheet = of_kind(parts, Pictures)[0]
    assert sheet.pictures[0].lines[0] == "the item"
    cosines = [float(picture.lines[0]) for picture in sheet.pictures[1:]]
    assert cosines == sorted(cosines, reverse=True)


@pytest.mark.slow
def test_the_map_shows_each_item_with_its_picture_and_rate(context, chromium, tmp_path):
    path = tmp_path / "report.html"
    made = make_sections(context, [section for section in EXPLAINING if section.name == "map"])
    path.write_text(page(context, made))
    by_category, by_rate = of_kind(made[0].parts, Plot)[:2]
    numbers = np.concatenate([trace.customdata for trace in by_category.figure.data])
    assert sorted(numbers) == list(range(10))
    # The mean of all predictions for the samples of a picture.
    evaluated, trace = context.evaluated, by_rate.figure.data[0]
    scores, pictures = evaluated.rows.column("score:click"), evaluated.rows.column("origin:picture")
    for text, rate in zip(trace.text, trace.marker.color, strict=True):
        number = evaluated.pictures.index(text.split(",")[0].encode())
        assert rate == pytest.approx(scores[pictures == number].mean(), rel=1e-3)
    with opened_page(chromium, path) as shown:
        point, tile = shown.page.locator("#panel-map .points path:visible").first, shown.page.locator("#tile")
        point.wait_for()
        # Points are drawn some time before the plot notices the mouse.
        while not tile.is_visible():
            shown.page.mouse.move(0, 0)
            point.hover(force=True)
            shown.page.wait_for_timeout(100)
        assert "sheet-0" in tile.get_attribute("class")
        assert tile.evaluate("e => getComputedStyle(e).backgroundImage").startswith('url("data:image/jpeg')
        assert shown.messages == []


@pytest.mark.slow
def test_a_model_without_pictures_is_explained_by_its_features(data, tmp_path, monkeypatch):
    use_backbone_of_three_stages(monkeypatch)
    training = evaluated_training(data, tmp_path / "run", "", train="num_steps: 1")
    text = (tmp_path / "run" / "test.config").read_text()
    for old in ('feature_groups { group_name: "img" feature_names: "path" }', "img_model { num_classes: 4  }"):
        assert old in text
        text = text.replace(old, "")
    (tmp_path / "run" / "test.config").write_text(text.replace('highway_dnn { input: "img" emb_size: 4 }', ""))
    training.pipeline = load_pipeline(str(tmp_path / "run" / "test.config"))
    training.run()
    with opened(ReportOptions(str(training.model_dir))) as context:
        names = {row[0].text for row in of_kind(influence(context), Table)[0].rows}
        assert names == {"user", "item", "price"}
        assert of_kind(reasons(context), Table)[0].columns[3:] == ["user", "item", "price"]
        for make in (seen, similar, atlas):
            with pytest.raises(Unavailable, match="takes no pictures"):
                make(context)


def test_sheets_hold_the_small_pictures_one_behind_the_other():
    colours = np.random.default_rng(0).integers(0, 256, (1100, 3), np.uint8)
    tiles = np.broadcast_to(colours[:, None, None], (1100, TILE, TILE, 3))
    sheets = [np.asarray(PIL.Image.open(io.BytesIO(sheet))) for sheet in sheets_of(tiles)]
    assert [sheet.shape for sheet in sheets] == [(32 * TILE, 32 * TILE, 3), (3 * TILE, 32 * TILE, 3)]
    for number in (0, 33, 1023, 1024, 1099):
        row, column = divmod(number % 1024, 32)
        middle = sheets[number // 1024][row * TILE + 24, column * TILE + 24].astype(int)
        assert np.abs(middle - colours[number]).max() < 30


def test_a_pair_of_pictures_says_why_it_is_missing():
    pair = {"lines": ("a<b.jpg",), "problem": "is empty (0 bytes)", "picture": b"", "overlay": b""}
    text = render("saliency.html", pairs=[pair], side=320)
    assert "is empty (0 bytes)" in text
    assert "a&lt;b.jpg" in text


def test_an_item_without_a_rate_is_on_the_map_without_a_colour():
    task = Task("click", "click", "binary", 1)
    plot = by_rate(np.zeros((2, 2)), ["a", "b"], np.array([0.25, np.nan], np.float32), task)
    np.testing.assert_array_equal(plot.figure.data[0].marker.color, [0.25, np.nan])
