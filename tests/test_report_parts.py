"""What the sections of the report compute, against scikit-learn, SciPy and plain NumPy; and the page's own rules."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
from flat_helpers import make_log
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import auc, average_precision_score, log_loss, precision_recall_curve, roc_auc_score, roc_curve

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.errors import DataError
from easyrec_mm.evaluation.metrics import LogLoss
from easyrec_mm.evaluation.rows import Rows
from easyrec_mm.evaluation.summary import CLUSTER
from easyrec_mm.evaluation.views import View
from easyrec_mm.evaluation.weights import ClusterWeights
from easyrec_mm.pages.render import render
from easyrec_mm.report import calibration
from easyrec_mm.report.compared import why_not_paired
from easyrec_mm.report.evaluated import Evaluated
from easyrec_mm.report.extremes import rankings_of
from easyrec_mm.report.figures import add_line, means_of_bins, new_figure, thinned
from easyrec_mm.report.leakage import pairings
from easyrec_mm.report.page import make_sections
from easyrec_mm.report.ranking import rank_curve
from easyrec_mm.report.run import names_of
from easyrec_mm.report.section import Cell, Choice, Plot, Section, Table, Text, Unavailable
from easyrec_mm.schema import Task
from easyrec_mm.stable_hash import mix
from easyrec_mm.stats.pictures import Picture

CLICK = Task("click", "click", "binary", 1)


def clicks(num, seed=0, decimals=3):
    """Labels and scores with ties, and clusters of about four samples."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.5, 1.2, num)
    label = rng.random(num) < 1 / (1 + np.exp(-1.6 * logits - 0.4))
    score = np.round(1 / (1 + np.exp(-logits)), decimals)
    return label.astype(np.float32), score.astype(np.float32), mix(rng.integers(0, num // 4, num).astype(np.uint64))


def view_of(label, score, cluster):
    rows = Rows()
    rows.append({"label": label, "score": score, CLUSTER: cluster})
    return View(rows, "label", "score", CLUSTER)


# --- Curves


def test_the_curves_are_those_of_scikit_learn():
    label, score, cluster = clicks(3000)
    curve = rank_curve(view_of(label, score, cluster), max_points=10**9)
    expected = roc_curve(label, score, drop_intermediate=False)
    np.testing.assert_allclose(curve.roc[0], expected[0])
    np.testing.assert_allclose(curve.roc[1], expected[1])
    precision, recall, _ = precision_recall_curve(label, score)
    np.testing.assert_allclose(curve.precision_recall[1], precision[:-1][::-1])
    np.testing.assert_allclose(curve.precision_recall[0], recall[:-1][::-1])


def test_points_of_a_thinned_curve_are_points_of_the_curve_and_its_area_is_near():
    label, score, cluster = clicks(20_000, decimals=6)
    curve = rank_curve(view_of(label, score, cluster), max_points=400)
    whole = rank_curve(view_of(label, score, cluster), max_points=10**9)
    assert 100 < len(curve.positives) <= 402
    points = set(zip(whole.positives.tolist(), whole.negatives.tolist(), strict=True))
    assert set(zip(curve.positives.tolist(), curve.negatives.tolist(), strict=True)) <= points
    assert auc(*curve.roc) == pytest.approx(roc_auc_score(label, score), abs=1e-4)
    recall, precision = curve.precision_recall
    area = np.sum(np.diff(recall, prepend=0) * precision)
    assert area == pytest.approx(average_precision_score(label, score), abs=0.01)


def test_one_class_has_no_curve():
    _, score, cluster = clicks(10)
    with pytest.raises(Unavailable, match="one class"):
        rank_curve(view_of(np.zeros(10, np.float32), score, cluster))


def test_a_thinned_line_keeps_its_ends_and_its_peaks():
    x = np.arange(50_000.0)
    y = np.sin(x / 3000)
    y[[12_345, 40_001]] = 9, -9
    thin_x, thin_y = thinned(x, y, 500)
    assert len(thin_x) <= 500
    assert (thin_x[0], thin_x[-1]) == (0, 49_999)
    assert {12_345, 40_001} <= set(thin_x.tolist())
    np.testing.assert_array_equal(thin_y, y[thin_x.astype(int)])
    assert thinned(x[:500], y[:500], 500)[0] is not None
    np.testing.assert_array_equal(thinned(x[:500], y[:500], 500)[1], y[:500])


def test_means_of_bins_are_those_of_the_parts():
    x, y = np.arange(1003.0), np.random.default_rng(0).normal(size=1003)
    thin_x, thin_y = means_of_bins(x, y, 10)
    limits = np.linspace(0, 1003, 11).astype(int)
    parts = [slice(start, end) for start, end in pairwise(limits)]
    np.testing.assert_allclose(thin_y, [y[part].mean() for part in parts])
    np.testing.assert_allclose(thin_x, [x[part].mean() for part in parts])


# --- Comparisons


def rows_of(**columns):
    rows = Rows()
    rows.append({name.replace("_", ":"): np.array(values) for name, values in columns.items()})
    return SimpleNamespace(rows=rows)


def test_models_are_paired_where_labels_clusters_groups_and_slices_are_the_same():
    first = rows_of(label_y=[0.0, 1.0], cluster=[3, 4], slice_a=[0, 0], score_y=[0.1, 0.2], origin_row=[1, 2])
    assert (
        why_not_paired(first, rows_of(label_y=[0.0, 1.0], cluster=[3, 4], score_y=[0.9, 0.8], origin_row=[5, 6])) == ""
    )
    assert why_not_paired(first, rows_of(label_y=[0.0], cluster=[3])) == "it reads 1 samples, and the first model 2"
    for other in ({"label_y": [1.0, 1.0]}, {"cluster": [3, 5]}, {"slice_a": [0, 1]}):
        (name,) = other
        reason = f"its samples have other values of '{name.rpartition('_')[2]}' than those of the first model"
        assert why_not_paired(first, rows_of(**other)) == reason


# --- Calibration


@pytest.mark.parametrize(("successes", "count"), [(0, 7), (3, 20), (500, 1000), (9, 9)])
def test_intervals_of_bins_are_wilsons(successes, count):
    low, high = calibration.wilson_interval(np.array([successes / count]), np.array([float(count)]))
    expected = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-6)


def evaluated_of(label, score, cluster):
    """As `recalibrated` takes it."""
    rows = Rows()
    rows.append({"label:click": label, "score:click": score, CLUSTER: cluster})
    evaluated = object.__new__(Evaluated)
    evaluated.rows = rows
    return evaluated


def test_each_sample_is_recalibrated_by_the_others():
    label, score, cluster = clicks(4000)
    result = calibration.recalibrated(evaluated_of(label, score, cluster), CLICK).rows.column("recalibrated")
    fold = calibration.folds_of(cluster)
    assert len(np.unique(fold)) == calibration.NUM_FOLDS
    expected = np.zeros(len(label))
    for number in range(calibration.NUM_FOLDS):
        fit = IsotonicRegression(out_of_bounds="clip").fit(score[fold != number], label[fold != number])
        expected[fold == number] = fit.predict(score[fold == number])
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert log_loss(label, np.clip(result, 1e-7, 1 - 1e-7)) < log_loss(label, score) - 0.003


def test_estimates_before_and_after_are_those_of_the_metrics():
    label, score, cluster = clicks(3000)
    rows = calibration.recalibrated(evaluated_of(label, score, cluster), CLICK).rows
    estimates = calibration.estimates_of(rows, ClusterWeights(20, 3))
    for score_name, of_score in estimates.items():
        for name, metric in calibration.METRICS.items():
            expected = metric.estimate(View(rows, "label", score_name, CLUSTER, ClusterWeights(20, 3)))
            assert of_score[name].value == pytest.approx(expected.value, rel=1e-12)
            np.testing.assert_allclose(of_score[name].replicates, expected.replicates, rtol=1e-9)
            assert of_score[name].num_clusters == len(np.unique(cluster))


def test_samples_of_a_cluster_are_in_one_fold():
    cluster = mix(np.repeat(np.arange(100, dtype=np.uint64), 7))
    fold = calibration.folds_of(cluster).reshape(100, 7)
    assert (fold == fold[:, :1]).all()
    assert len(np.unique(calibration.folds_of(np.zeros(100, np.uint64)))) == calibration.NUM_FOLDS


def test_recalibration_gains_nothing_where_scores_say_nothing():
    """Fitted to the same samples, isotonic regression would seem to gain."""
    rng = np.random.default_rng(1)
    label = (rng.random(2000) < 0.3).astype(np.float32)
    score = rng.uniform(0.29, 0.31, 2000).astype(np.float32)
    cluster = mix(np.arange(2000, dtype=np.uint64))
    result = calibration.recalibrated(evaluated_of(label, score, cluster), CLICK)
    before, after = (LogLoss().estimate(result.view(name)).value for name in ("score", "recalibrated"))
    assert after > before
    own = IsotonicRegression(out_of_bounds="clip").fit(score, label).predict(score)
    assert log_loss(label, np.clip(own, 1e-7, 1 - 1e-7)) < before


# --- Samples and pictures


def test_the_extremes_of_batches_are_those_of_all_samples():
    label, score, _ = clicks(900, decimals=6)
    rankings = rankings_of(CLICK)
    for start in range(0, 900, 70):
        batch = slice(start, start + 70)
        for ranking in rankings:
            ranking.add(label[batch], score[batch], lambda places, start=start: (places + start).tolist(), 12)
    numbers = np.arange(900)
    orders = [(label <= 0.5, -score), (label > 0.5, score), (label > 0.5, -score), (label <= 0.5, score)]
    for ranking, (is_meant, key) in zip(rankings, orders, strict=True):
        expected = numbers[is_meant][np.argsort(key[is_meant], kind="stable")][:12]
        assert [number for _, number in ranking.samples] == expected.tolist()


def test_extremes_leave_out_scores_that_are_not_numbers():
    for ranking in rankings_of(CLICK):
        ranking.add(np.array([0.0, 1.0]), np.array([np.nan, np.nan]), lambda places: places.tolist(), 3)
        assert ranking.samples == []


def picture(path, content, alike=0, colour=0):
    return Picture(path, 1, "JPEG", "RGB", 8, 8, alike, np.full(48, colour, np.uint8), b"", content)


def test_pairings_are_copies_under_other_paths_and_then_what_looks_alike():
    evaluation = [
        picture("same.jpg", b"1", 0x0),
        picture("new_name.jpg", b"2", 0xFFFF),
        picture("resaved.jpg", b"3", 0xF0F0F0F0F0F0),
        picture("alone.jpg", b"4", 0xABCDEF0123456789),
        picture("other_colour.jpg", b"5", 0xFF00FF00FF00FF00, 200),
    ]
    training = [
        picture("same.jpg", b"1", 0x0),
        picture("old_name.jpg", b"2", 0xFFFF),
        picture("first.jpg", b"6", 0xF0F0F0F0F0F1),
        picture("third.jpg", b"7", 0xFF00FF00FF00FF00, 10),
    ]
    copies, similar = pairings(evaluation, training)

    def names(pairs):
        return [[[p.path for p in side] for side in (pair.evaluation, pair.training)] for pair in pairs]

    assert names(copies) == [[["new_name.jpg"], ["old_name.jpg"]]]
    assert names(similar) == [[["resaved.jpg"], ["first.jpg"]]]
    assert pairings([], []) == ([], [])


def test_names_of_runs_are_short_and_different():
    assert names_of(["/a/m1", "/a/m2"]) == ["m1", "m2"]
    assert names_of(["/a/x/m", "/a/y/m/"]) == ["x/m", "y/m"]
    assert len(set(names_of(["/a/m", "/a/m"]))) == 2


# --- The page


def test_expected_reasons_stand_in_the_place_of_a_section_and_mistakes_of_code_are_not_hidden():
    def unavailable(context):
        raise Unavailable("There is nothing.")

    def damaged(context):
        raise DataError("x.parquet: is damaged")

    context = SimpleNamespace(model_seconds=0.0)
    sections = [Section("a", "A", unavailable), Section("b", "B", damaged), Section("c", "C", lambda c: [Text("good")])]
    made = make_sections(context, sections)
    assert [one.problem for one in made] == ["There is nothing.", "x.parquet: is damaged", ""]
    assert [[(part.text, part.kind) for part in one.parts] for one in made] == [
        [("There is nothing.", "note")], [("x.parquet: is damaged", "warning")], [("good", "")],
    ]  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        make_sections(context, [Section("d", "D", lambda c: 1 / 0)])


def test_no_name_of_a_user_is_read_as_html():
    evil = "</script><script>alert(1)</script>"
    figure = new_figure("x", "y")
    add_line(figure, [0, 1], [0, 1], evil)
    parts = [Text(evil), Table([evil], [[Cell(evil, evil)]]), Plot(figure, evil), Choice(evil, {evil: [Text(evil)]})]
    values = {"title": evil, "subtitle": evil, "version": "1", "made_at": "", "plotly_place": ""}
    html = render("report.html", sections=[{"name": "a", "title": "A", "parts": parts, "smooths": False}], **values)
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert html.count("</script>") == 2  # of the figure, and the page's own


def test_a_figure_goes_through_json_unchanged():
    plot = Plot(go.Figure(layout={"height": 200}).add_scatter(x=[1.5, 2], y=["<b>", "&"]), "t")
    figure = go.Figure(**json.loads(plot.json()))
    assert figure.data[0].y == ("<b>", "&")
    assert plot.height == 200


def test_explanations_read_tables_again(tmp_path, monkeypatch):
    """A dataset of tables cannot be iterated again; the files can be read again all the same."""
    monkeypatch.chdir(tmp_path)
    make_log(tmp_path)
    pipeline = load_pipeline("x.config")
    data, schema = pipeline.config.data_config, pipeline.schema
    inputs = Input(data, schema, pipeline.config.eval_input_path, "eval_input_path", BadRecords(None, 1.0))
    evaluated = SimpleNamespace(inputs=inputs)
    clicks_of_file = np.concatenate([item.batch.labels["click"] for item in inputs.batches()])
    chosen = np.array([0, 3, len(clicks_of_file) - 1])
    for _ in range(2):
        read = [
            (item.batch.labels["click"].numpy()[rows], numbers)
            for item, rows, numbers in Evaluated.items_of(evaluated, chosen)
        ]
        labels, numbers = (np.concatenate(parts) for parts in zip(*read, strict=True))
        assert numbers.tolist() == chosen.tolist()
        assert labels.tolist() == clicks_of_file[chosen].tolist()
