"""Tests of samples/make_demo_data.py: the files' format, their reproducibility and the statistics that they promise."""

import csv
import gzip
import os
import subprocess
import sys
from pathlib import Path

import demo_clicks
import demo_pictures
import demo_titles
import make_demo_data as demo
import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "samples" / "make_demo_data.py"

SMALL = {
    "num_train_groups": 44,
    "num_eval_groups": 6,
    "num_test_groups": 10,
    "group_size": 5,
    "image_size": 24,
    "num_files": 3,
}


def small_arguments(output, **changes):
    options = {**SMALL, **changes}
    return ["--output", str(output), *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def read_lines(folder):
    lines = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        assert content.endswith(b"\n")
        lines += content.decode().removesuffix("\n").split("\n")
    return lines


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    splits = demo.write_demo_data(folder, demo.DemoOptions(**SMALL))
    return folder, splits


@pytest.fixture(scope="module")
def simulated():
    """A large split with its features per sample, without pictures."""
    world, splits = demo.simulate(demo.DemoOptions(num_train_groups=10, num_test_groups=6000, seed=5))
    split = splits["test"]
    return world, split, np.repeat(split.group_item, split.group_size)


def test_every_line_agrees_with_its_group_size_and_the_features(written):
    folder, splits = written
    for name in demo.SPLITS:
        lines = read_lines(folder / name)
        assert len(lines) == SMALL[f"num_{name}_groups"]
        for line, group_id, size in zip(lines, splits[name].group_ids, splits[name].group_size, strict=True):
            columns = line.split("|")
            assert len(columns) == 8
            assert columns[0] == group_id
            assert int(columns[6]) == size
            clicks, play_times, samples = (column.split("\x01") for column in columns[2:5])
            assert len(clicks) == len(play_times) == len(samples) == size
            assert set(clicks) <= {"0", "1"}
            assert all((float(t) > 0) == (c == "1") for c, t in zip(clicks, play_times, strict=True))
            assert columns[5] == f"images/{name}/{columns[1]}.jpg"
            for sample in samples:
                check_features(sample.split("\x02"))


def check_features(values):
    assert len(values) == len(demo.FEATURES) == 11
    value = dict(zip(demo.FEATURES, values, strict=True))
    assert 1 <= int(value["user_age_level"]) <= 6
    assert value["user_gender"] in ("M", "F", "")
    assert value["user_taste"] in demo.STYLES
    assert 0 <= int(value["hour"]) <= 23
    assert 1 <= int(value["position"]) <= 20
    assert value["category"] in demo.CATEGORIES
    assert float(value["price"]) > 0
    assert set(value["item_tags"].split(",")) <= {*demo.TAGS, ""}


def test_files_have_the_promised_names_and_the_last_train_file_is_compressed(written):
    folder, _ = written
    assert {path.name for path in folder.iterdir()} == demo.OWN_NAMES
    train = [path.name for path in sorted((folder / "train").iterdir())]
    assert train == ["part-0000.txt", "part-0001.txt", "part-0002.txt.gz"]
    assert [path.name for path in (folder / "test").iterdir()] == ["part-0000.txt"]
    assert (folder / "train" / train[-1]).read_bytes()[4:8] == bytes(4)  # no time in it
    readme = (folder / "README.txt").read_text()
    assert 'selected_cols "2,3,4,5,6"' in readme
    assert ", ".join(demo.FEATURES) in readme


def test_each_item_has_one_picture_of_the_asked_size_in_one_split(written):
    folder, _ = written
    items = {name: {line.split("|")[1] for line in read_lines(folder / name)} for name in demo.SPLITS}
    assert sum(map(len, items.values())) == len(set.union(*items.values()))
    assert len(items["train"]) == 40  # of 44 groups: a tenth of the items has two
    for name, item_ids in items.items():
        assert {path.stem for path in (folder / "images" / name).iterdir()} == item_ids
        for item_id in item_ids:
            with Image.open(folder / "images" / name / f"{item_id}.jpg") as image:
                image.load()
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (24, 24))


@pytest.mark.parametrize("name", ["eval", "test"])
def test_truth_is_in_the_order_of_the_samples(written, name):
    folder, splits = written
    with (folder / f"truth_{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = []
    for line in read_lines(folder / name):
        columns = line.split("|")
        expected += [(columns[0], str(i), click) for i, click in enumerate(columns[2].split("\x01"))]
    assert [(row["group_id"], row["sample"], row["click"]) for row in rows] == expected
    for column in ("p_true", "p_no_image"):
        np.testing.assert_allclose([float(row[column]) for row in rows], getattr(splits[name], column), atol=1e-8)


def test_same_seed_gives_the_same_bytes_whatever_the_hash_seed(written, tmp_path):
    folder, _ = written
    command = [sys.executable, str(SCRIPT), *small_arguments(tmp_path / "again")]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "77"}, capture_output=True, text=True, check=True
    )
    assert "56 pictures" in result.stdout
    assert "oracle AUC" in result.stdout
    assert contents(folder) == contents(tmp_path / "again")


def test_another_seed_gives_other_data(written, tmp_path):
    folder, _ = written
    demo.main(small_arguments(tmp_path / "other", seed=1))
    first, second = contents(folder), contents(tmp_path / "other")
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_more_training_data_leaves_the_test_impressions_as_they_are():
    _, few = demo.simulate(demo.DemoOptions(**SMALL))
    _, many = demo.simulate(demo.DemoOptions(**{**SMALL, "num_train_groups": 90}))
    for column in ("click", "p_true", "user", "appeal"):
        np.testing.assert_array_equal(getattr(few["test"], column), getattr(many["test"], column))


def test_group_sizes_vary_around_the_mean(simulated):
    _, split, _ = simulated
    assert (split.group_size.min(), split.group_size.max()) == (8, 24)
    assert split.group_size.mean() == pytest.approx(16, abs=0.3)


def test_clicks_follow_p_true(simulated):
    _, split, _ = simulated
    for part in np.array_split(np.argsort(split.p_true), 10):
        p = split.p_true[part]
        assert abs((split.click[part] - p).sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_p_without_picture_is_the_mean_over_pictures():
    logit = np.linspace(-6, 4, 21)
    appeal = (np.arange(4000) + 0.5) / 2000 - 1
    reference = np.zeros_like(logit)
    for match in (1, 0, 0, 0):  # one of four styles is the user's
        every = logit[:, None] + demo_clicks.APPEAL_WEIGHT * appeal + demo_clicks.TASTE_WEIGHT * match
        reference += (1 / (1 + np.exp(-every))).mean(axis=1) / 4
    np.testing.assert_allclose(
        demo_clicks.expected_p(logit, demo_clicks.UNKNOWN_STYLE, demo_clicks.UNKNOWN_APPEAL), reference, atol=1e-7
    )


def test_p_no_image_is_calibrated(simulated):
    _, split, _ = simulated
    for part in np.array_split(np.argsort(split.p_no_image), 8):
        assert split.p_true[part].mean() == pytest.approx(split.p_no_image[part].mean(), abs=0.015)


def test_ceiling_and_oracle_leave_room_for_the_picture(simulated):
    _, split, _ = simulated
    assert 0.62 < demo.auc(split.click, split.p_no_image) < 0.72
    assert 0.78 < demo.auc(split.click, split.p_true) < 0.85


def test_taste_matters_beside_appeal(simulated):
    """An embedding that knows only how a picture pleases everybody must fall short of the oracle."""
    world, split, item = simulated
    match = split.style[item] == world.user_taste[split.user]
    assert split.click[match].mean() > 1.5 * split.click[~match].mean()
    logit = np.log(split.p_true / (1 - split.p_true)) - demo_clicks.TASTE_WEIGHT * match
    blind = 0.25 * demo_clicks.sigmoid(logit + demo_clicks.TASTE_WEIGHT) + 0.75 * demo_clicks.sigmoid(logit)
    assert demo.auc(split.click, split.p_no_image) + 0.05 < demo.auc(split.click, blind)
    assert demo.auc(split.click, blind) + 0.02 < demo.auc(split.click, split.p_true)


def test_picture_is_independent_of_the_features(simulated):
    world, split, item = simulated
    of_items = [np.log(split.price), *(split.category == c for c in range(len(demo.CATEGORIES))), *split.tags.T]
    of_items += [world.shop_effect[split.shop], np.bincount(split.group_item, split.group_size)]
    of_samples = [split.hour, split.position, world.user_age[split.user], world.user_gender[split.user] == 2]
    of_samples += [world.user_taste[split.user] == style for style in range(len(demo.STYLES))]
    features = [*of_items, *(np.bincount(item, feature) / np.bincount(item) for feature in of_samples)]
    pictures = [split.appeal, *(split.style == style for style in range(len(demo.STYLES)))]
    correlations = np.corrcoef(np.array([*pictures, *features], np.float64))[: len(pictures), len(pictures) :]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(len(split.appeal))
    styles = [split.appeal[split.style == style].mean() for style in range(len(demo.STYLES))]
    np.testing.assert_allclose(styles, 0, atol=4 * 0.58 / np.sqrt(len(split.appeal) / 4))


def test_play_time_is_zero_without_a_click_and_longer_where_the_picture_appeals(simulated):
    _, split, item = simulated
    clicked = split.click == 1
    assert (split.play_time[~clicked] == 0).all()
    assert 0 < split.play_time[clicked].min() < split.play_time[clicked].max() <= 10
    assert np.corrcoef(split.play_time[clicked], split.appeal[item][clicked])[0, 1] > 0.3


def test_appeal_shows_in_the_pixels():
    rng = np.random.default_rng(0)
    appeal, saturation = rng.uniform(-1, 1, 200), []
    for value in appeal:
        category, style = int(rng.integers(len(demo.CATEGORIES))), int(rng.integers(len(demo.STYLES)))
        image = demo.render(category, style, float(value), 32, rng)
        saturation.append(np.asarray(image.convert("HSV"))[:, :, 1].mean())
    assert np.corrcoef(appeal, saturation)[0, 1] > 0.5


def test_style_shows_in_the_pixels_even_without_colour():
    """With the same shape, place and light, the grey values of the product differ between any two styles."""
    plate = demo.CATEGORIES.index("plate")
    grey = [
        np.asarray(demo.render(plate, s, -0.5, 64, np.random.default_rng(3)).convert("L"), np.float64) for s in range(4)
    ]
    for style in range(4):
        for other in range(style):
            assert np.abs(grey[style] - grey[other]).mean() > 3


def test_every_category_is_drawn_with_its_own_silhouette():
    masks = [np.asarray(demo_pictures.draw_mask(c, 64, np.zeros(2), 0.6, 0.0)) > 0 for c in range(len(demo.CATEGORIES))]
    for category, mask in enumerate(masks):
        assert 0.08 < mask.mean() < 0.45
        assert all((mask ^ other).mean() > 0.015 for other in masks[:category])


def test_auc_equals_counting_pairs():
    rng = np.random.default_rng(1)
    label, score = rng.integers(2, size=60), rng.integers(8, size=60) / 8  # with ties
    difference = score[label == 1][:, None] - score[label == 0][None, :]
    assert demo.auc(label, score) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    assert np.isnan(demo.auc([1, 1], [0.2, 0.3]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("group_size", 0, "--group_size: 0 is not between 1 and 10000"),
        ("image_size", 8, "--image_size: 8 is not between 16 and 1024"),
        ("num_test_groups", -1, "--num_test_groups: -1 is not between 1"),
        ("seed", -1, "--seed: -1 is not between 0"),
        ("num_files", 45, "--num_files: 45 is more than --num_train_groups (44)"),
        ("group_size", "many", "invalid int value: 'many'"),
    ],
)
def test_a_wrong_size_is_a_clean_usage_error(tmp_path, capsys, name, value, message):
    with pytest.raises(SystemExit, match="2"):
        demo.main(small_arguments(tmp_path / "data", **{name: value}))
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_only_its_own_folder_is_replaced_unasked(tmp_path, capsys):
    output = tmp_path / "data"
    output.mkdir()  # an empty one is fine
    demo.main(small_arguments(output))
    demo.main(small_arguments(output, seed=1))
    (output / "model_dir").mkdir()
    with pytest.raises(SystemExit, match="2"):
        demo.main(small_arguments(output))
    assert "holds other files" in capsys.readouterr().err
    assert (output / "model_dir").is_dir()
    demo.main([*small_arguments(output), "--overwrite"])
    assert {path.name for path in output.iterdir()} == demo.OWN_NAMES
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_output_that_is_a_file_or_holds_the_current_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="is not a folder"):
        demo.write_demo_data(tmp_path / "file", demo.DemoOptions(**SMALL), overwrite=True)
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(ValueError, match="contains the current folder"):
        demo.write_demo_data(Path(".."), demo.DemoOptions(**SMALL), overwrite=True)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_run_leaves_everything_as_it_was(tmp_path, monkeypatch, existing):
    output = tmp_path / "data"
    if existing:
        demo.main(small_arguments(output))
    before = contents(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "render_item", interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.main(small_arguments(output, seed=1))
    assert contents(tmp_path) == before
    assert output.exists() == existing


@pytest.fixture(scope="module")
def titled():
    """A large split with titles, without pictures."""
    options = demo.DemoOptions(num_train_groups=10, num_test_groups=6000, seed=5, titles=True)
    split = demo.simulate(options)[1]["test"]
    return split, np.repeat(split.group_item, split.group_size)


def test_titles_leave_everything_but_clicks_as_it_is(simulated, titled):
    _, plain, _ = simulated
    split, _ = titled
    for column in ("item_ids", "price", "appeal", "style", "user", "hour", "position", "group_item"):
        np.testing.assert_array_equal(getattr(split, column), getattr(plain, column))
    assert len(split.titles) == len(split.item_ids)
    assert not plain.titles


def test_a_title_tells_the_category_and_of_every_second_item_the_style(titled):
    split, _ = titled
    words = [set(title.lower().replace(",", "").split()) for title in split.titles]
    assert all(demo_pictures.CATEGORIES[c] in of_title for c, of_title in zip(split.category, words, strict=True))
    named = [
        bool({*demo_titles.STYLE_WORDS[demo_pictures.STYLES[s]]} & w) for s, w in zip(split.style, words, strict=True)
    ]
    others = [any({*demo_titles.STYLE_WORDS[x]} & w for x in demo_pictures.STYLES) for w in words]
    assert named == others
    assert 0.45 < np.mean(named) < 0.55


@pytest.mark.parametrize("name", ["p_no_image", "p_no_title", "p_no_content"])
def test_what_is_known_without_a_part_is_calibrated(titled, name):
    split, _ = titled
    for part in np.array_split(np.argsort(split.p[name]), 8):
        assert split.p_true[part].mean() == pytest.approx(split.p[name][part].mean(), abs=0.02)


def test_picture_and_title_both_pay(titled):
    split, _ = titled
    aucs = {name: demo.auc(split.click, p) for name, p in split.p.items()}
    assert aucs["p_no_content"] + 0.05 < min(aucs["p_no_image"], aucs["p_no_title"])
    assert max(aucs["p_no_image"], aucs["p_no_title"]) + 0.03 < aucs["p_true"]


def test_lines_with_titles(tmp_path):
    demo.main([*small_arguments(tmp_path / "d"), "--titles"])
    line = read_lines(tmp_path / "d" / "test")[0].split("|")
    titles = {sample.split("\x02")[-1] for sample in line[4].split("\x01")}
    assert len(titles) == 1
    assert " " in titles.pop()
    assert (
        (tmp_path / "d" / "truth_test.csv")
        .read_text()
        .startswith("group_id,sample,click,p_true,p_no_image,p_no_title,p_no_content\n")
    )
    assert "--titles" in (tmp_path / "d" / "README.txt").read_text()
