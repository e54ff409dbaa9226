"""`easyrec-mm report` of trained models: its figures, its page in a browser, and bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from flow_helpers import copy_checkpoint, use_small_backbone, use_small_backbone_alone
from forked import Command
from report_helpers import CONTRASTS, PHONE, numbers_of, opened
from training_helpers import Training

from easyrec_mm.cli.main import main

pytestmark = pytest.mark.slow

# The name of a training that is compared with, which plots show, too.
OTHER = "hä<b>lf &amp; 'more\" <script>alert(1)<"
SLICES = 'eval_config { slices { field: "category" } slices { has_picture {} } }'


@pytest.fixture(scope="module", autouse=True)
def _small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        yield


@pytest.fixture(scope="module")
def model_dirs(exported, tmp_path_factory):
    """Copies of the training at its end and half-way; a picture to evaluate is the copy of a trained one."""
    root = tmp_path_factory.mktemp("report")
    folders = []
    for name, step in (("end", 6), (OTHER, 3)):
        folder = root / name
        copy_checkpoint(exported.model_dir, step, folder)
        config = (exported.model_dir / "pipeline.config").read_text().replace(str(exported.data), str(root / "data"))
        (folder / "pipeline.config").write_text(config + SLICES)
        shutil.copy(exported.model_dir / "metrics.jsonl", folder)
        folders.append(folder)
    shutil.copytree(exported.data, root / "data")
    shown, known = (sorted((root / "data" / "images" / split).iterdir())[0] for split in ("test", "train"))
    shown.write_bytes(known.read_bytes())
    record = {"kind": "picture", "file": "a.txt", "row": 3, "where": "x.jpg", "problem": "is empty (0 bytes)"}
    (folders[0] / "bad_records.jsonl").write_text(json.dumps(record) + '\n{"kind": "pic')
    return folders


@pytest.fixture(scope="module")
def eval_path(model_dirs):
    return f"{model_dirs[0].parent}/data/test/*"


@pytest.fixture(scope="module")
def page(model_dirs, eval_path):
    """The report of both, with one to compare with."""
    path = model_dirs[0].parent / "report.html"
    flags = ["--eval_input_path", eval_path, "--output", str(path)]
    assert main(["report", "--model_dir", str(model_dirs[0]), "--compare", str(model_dirs[1]), *flags]) == 0
    return path


# --- Figures


def test_metrics_and_differences_are_those_of_eval(page, model_dirs, eval_path, chromium):
    flags = ["--pipeline_config", f"{model_dirs[0]}/pipeline.config", "--set", f"model_dir={model_dirs[0]}"]
    assert main(["eval", *flags, "--eval_input_path", eval_path, "--compare", str(model_dirs[1])]) == 0
    result = json.loads((model_dirs[0] / "eval_result.json").read_text())
    with opened(chromium, page) as shown:
        shown.show("metrics")
        names, values, intervals, others, differences = (shown.column("metrics", i) for i in range(5))
        limits = shown.column("metrics", 5)
        for i, name in enumerate(names):
            if result[name] is None:
                assert values[i] == "undefined"
                continue
            assert values[i] == f"{result[name]:.6g}"
            low, high = result["confidence"]["intervals"][name]
            assert intervals[i] == f"[{low:.4g}, {high:.4g}]"
            compared = result["comparison"]["differences"][name]
            assert others[i] == f"{compared['other']:.6g}"
            assert differences[i] == f"{compared['difference']:+.4g}"
            assert limits[i] == "[{:+.4g}, {:+.4g}]".format(*compared["interval"])
        assert "auc_click" in names
        shown.show("curves")
        legend = shown.page.locator("#panel-curves .legendtext").all_text_contents()
        assert f"end: AUC {result['auc_click']:.4f}" in " ".join(legend)
        assert any(text.startswith(f"{OTHER}: AUC") for text in legend)


def test_pictures_of_both_kinds_of_data_and_problems_are_named(page):
    text = page.read_text()
    leakage = text[text.index('id="panel-leakage"') : text.index('id="panel-data"')]
    tile = re.search(r"same content, another path</div><div class=\"value\">(\d+)</div>", leakage)
    assert tile[1] == "1"
    assert re.search(r"<div>evaluation</div><div>images/test/\S+</div>", leakage)
    problems = text[text.index('id="panel-problems"') :]
    assert "is empty (… bytes)" in problems
    assert "The first 6 of 9 metrics" in text
    assert "category=" in text[text.index('id="panel-slices"') : text.index('id="panel-curves"')]


# --- In a browser


def test_a_page_without_network_errors_or_waiting(page, chromium):
    with opened(chromium, page) as shown:
        assert shown.mark("interactive") < 2
        shown.page.wait_for_function("window.Plotly")
        for name in shown.names:
            shown.show(name)
        assert shown.messages == []
        assert shown.requests == []
    assert page.stat().st_size < 15e6


def test_tabs_by_keyboard_and_address(page, chromium):
    with opened(chromium, page) as shown:
        tabs = shown.page.locator("[role=tab]")
        tabs.first.focus()
        shown.page.keyboard.press("ArrowDown")
        assert tabs.nth(1).evaluate("e => e === document.activeElement")
        assert shown.page.url.endswith(f"#{shown.names[1]}")
        shown.page.keyboard.press("End")
        assert shown.page.locator(f"#panel-{shown.names[-1]}").is_visible()
        assert shown.page.locator("[role=tabpanel]:visible").count() == 1
        assert tabs.evaluate_all("tabs => tabs.filter(t => t.getAttribute('aria-selected') === 'true').length") == 1
    with opened(chromium, Path(f"{page}")) as shown:
        shown.page.goto(f"{page.as_uri()}#metrics")
        assert shown.page.locator("#panel-metrics").is_visible()


def test_a_click_sorts_a_table(page, chromium):
    with opened(chromium, page) as shown:
        shown.show("slices")
        for column in (2, 4):
            button = shown.page.locator("#panel-slices table:visible").first.locator("th button").nth(column)
            for direction in ("ascending", "descending"):
                button.click()
                assert button.locator("xpath=..").get_attribute("aria-sort") == direction
                numbers = numbers_of(shown.column("slices", column))
                assert len(set(numbers)) > 2
                assert numbers == sorted(numbers, reverse=direction == "descending")


def test_a_choice_changes_all_with_its_label_and_smoothing_changes_lines(page, chromium):
    with opened(chromium, page) as shown:
        shown.show("metrics")
        shown.page.locator("#panel-metrics select").select_option(label="play_time")
        assert all("play_time" in name for name in shown.column("metrics", 0))
        shown.show("curves")
        assert shown.page.locator("#panel-curves select").input_value() == "1"
        assert "no probability of a click" in shown.page.locator("#panel-curves").inner_text()
        shown.show("learning")
        line = shown.page.locator("#panel-learning figure.plot").first.locator(".scatterlayer .trace").last
        before = line.locator("path.js-line").get_attribute("d")
        slider = shown.page.locator("#panel-learning .smoothing input")
        slider.fill("0.9")
        assert shown.page.locator("#panel-learning output").inner_text() == "0.90"
        assert line.locator("path.js-line").get_attribute("d") != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_and_all_can_be_read(page, chromium, scheme):
    with opened(chromium, page, viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True) as shown:
        for name in shown.names:
            shown.show(name)
            assert shown.width() == PHONE["width"], name
            ratio, text = shown.page.evaluate(CONTRASTS)[0]
            assert ratio >= 4.5, (name, text)
            for canvas in shown.page.locator(f"#panel-{name} .canvas:visible").all():
                # Long names leave room for what is drawn, and no buttons lie on it.
                assert canvas.locator(".nsewdrag").first.bounding_box()["width"] > 0.4 * canvas.bounding_box()["width"]
                assert canvas.locator(".modebar").count() == 0


def test_plots_follow_a_change_to_dark(page, chromium):
    with opened(chromium, page) as shown:
        shown.show("curves")
        title = shown.page.locator("#panel-curves .xtitle").first
        light = title.evaluate("e => getComputedStyle(e).fill")
        shown.page.emulate_media(color_scheme="dark")
        shown.page.wait_for_function(
            "light => getComputedStyle(document.querySelector('#panel-curves .xtitle')).fill !== light", arg=light
        )


def test_on_paper_all_sections_stand_in_dark_letters(page, chromium):
    with opened(chromium, page, viewport={"width": 760, "height": 1100}, color_scheme="dark") as shown:
        shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        shown.page.emulate_media(media="print", color_scheme="dark")
        assert shown.page.locator("[role=tabpanel]:visible").count() == len(shown.names)
        assert shown.page.locator("figure.plot:not([data-drawn])").count() == 0
        assert shown.page.evaluate(CONTRASTS)[0][0] >= 4.5
        assert shown.width() <= 760


# --- Bad input


def error_of(capsys, *arguments):
    assert main(["report", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_folders_that_are_no_trainings(model_dirs, tmp_path, capsys):
    assert "is not a folder" in error_of(capsys, "--model_dir", tmp_path / "none")
    assert "has no pipeline.config" in error_of(capsys, "--model_dir", tmp_path)
    shutil.copy(model_dirs[0] / "pipeline.config", tmp_path)
    assert f"--model_dir {tmp_path}: " in error_of(capsys, "--model_dir", tmp_path)
    assert f"--compare {tmp_path}: " in error_of(capsys, "--model_dir", model_dirs[0], "--compare", tmp_path)


def test_places_that_cannot_be_written_are_told_at_once(model_dirs, s3, tmp_path, capsys):
    flags = ["--model_dir", model_dirs[0], "--output"]
    assert "does not exist; create it" in error_of(capsys, *flags, tmp_path / "no" / "r.html")
    assert "is a folder" in error_of(capsys, *flags, tmp_path)
    assert main(["report", *map(str, flags), "s3://no-such-bucket/r.html"]) == 1
    output = capsys.readouterr()
    assert "there is no such bucket" in output.err
    assert "evaluating" not in output.out + output.err


def test_without_evaluation_data_and_pictures_that_have_vanished(model_dirs, eval_path, tmp_path, capsys):
    """The page has all that does not need them, and says what is missing."""
    page, root = tmp_path / "r.html", f"data_config.image_root={tmp_path}"
    assert main(["report", "--model_dir", str(model_dirs[0]), "--output", str(page)]) == 0
    assert "the config has no eval_input_path" in page.read_text().lower()
    assert 'id="panel-learning"' in page.read_text()
    flags = ["--model_dir", str(model_dirs[0]), "--output", str(page), "--eval_input_path"]
    assert main(["report", *flags, f"{tmp_path}/*.gone"]) == 0
    assert "matches no file" in page.read_text()
    assert main(["report", *flags, eval_path, "--set", root]) == 0
    text = page.read_text()
    assert "pictures of the evaluation data cannot be used" in text
    assert "No such file or directory" in text
    assert "auc_click" in text


def test_a_page_without_pictures_of_a_task_of_classes(data, tmp_path):
    changes = {
        'feature_groups { group_name: "img" feature_names: "path" }': "",
        "img_model { num_classes: 4  }": "",
        'label_name: "click" dnn': 'label_name: "kind" loss_type: CLASSIFICATION num_class: 3 dnn',
        'train_input_path: "': f'eval_input_path: "{data}/one.txt"\ntrain_input_path: "',
    }
    training = Training(data, tmp_path, head="", changes=changes).run()
    page = tmp_path / "r.html"
    assert main(["report", "--model_dir", str(training.model_dir), "--output", str(page)]) == 0
    text = page.read_text()
    assert "The model takes no pictures" in text
    assert "this needs one score per sample" in text
    assert "the label&#39;s class has the lowest probability" in text
    assert "<img" not in text


def test_other_data_are_told_and_what_fits_is_compared(model_dirs, eval_path, tmp_path):
    others = {
        "other": (r'train_input_path: "[^"]*"', f'train_input_path: "{tmp_path}/else/*"'),
        "unlike": (r'label_name: "play_time"', 'label_name: "click"'),
    }
    for name, change in others.items():
        shutil.copytree(model_dirs[1], tmp_path / name)
        config = tmp_path / name / "pipeline.config"
        config.write_text(re.sub(*change, config.read_text()))
    page = tmp_path / "r.html"
    flags = ["--eval_input_path", eval_path, "--output", str(page)]
    compare = ["--compare", *(str(tmp_path / name) for name in others)]
    assert main(["report", "--model_dir", str(model_dirs[0]), *compare, *flags]) == 0
    text = page.read_text()
    assert "The trainings have read different data" in text
    metrics = text.partition('id="panel-metrics"')[2].partition('id="panel-slices"')[0]
    assert "unlike is not evaluated" in metrics
    assert "label_name: was play_time, is click" in metrics
    rows = {row[0]: row for row in map(re.compile(r"<td[^>]*>([^<]*)</td>").findall, metrics.split("</tr>")) if row}
    assert rows["auc_click"][4].startswith(("+", "-"))
    assert rows["auc_click"][7:] == ["", "", "", ""]


def test_a_report_that_is_killed_leaves_nothing_and_starts_again(model_dirs, eval_path, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "r.html.tmp-999999999").write_text("<html>")  # of one that was killed while it wrote
    flags = ["report", "--model_dir", model_dirs[0], "--eval_input_path", eval_path, "--output", folder / "r.html"]
    process = Command(tmp_path, flags, tmp_path / "output", prepare=use_small_backbone_alone)
    process.wait_for(tmp_path / "output", "evaluating")
    process.kill()
    process.end()
    assert list(folder.iterdir()) == []
    assert Command(tmp_path, flags, tmp_path / "output", prepare=use_small_backbone_alone).end()[0] == 0
    assert [path.name for path in folder.iterdir()] == ["r.html"]
