"""What `stats` tells of an input, against pandas and plain Python, for every format."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from flow_helpers import ROOT, demo_flags, make_data
from hypothesis import given
from hypothesis import strategies as st
from input_helpers import KINDS, LABELS, OF_SAMPLES, WRITERS, config_of, lines_of, read_groups, rows_of, table_of
from odps_server import OdpsServer, StubTable, use
from PIL import Image, ImageDraw, ImageFilter

from easyrec_mm.cli.main import main
from easyrec_mm.data.picture_reader import PictureReader
from easyrec_mm.data.whole_pictures import ANY_PICTURE
from easyrec_mm.formats import csv_blocks
from easyrec_mm.grouping import flat_files
from easyrec_mm.stats.correlation import correlate
from easyrec_mm.stats.fields import TopValues
from easyrec_mm.stats.pictures import PathStats, groups_alike, open_pictures

FORMATS = ("GroupRTPInput", *WRITERS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, data, groups): demo data as text, and in every other format."""
    folder = tmp_path_factory.mktemp("stats")
    data = make_data(folder / "data")
    groups = [group for path in sorted((data / "train").iterdir()) for group in read_groups(path)]
    for kind, write in WRITERS.items():
        write(folder / kind, groups)
        (folder / f"{kind}.config").write_text(config_of(kind), encoding="utf-8")
    return folder, data, groups


def run(*arguments, capsys=None):
    assert main(["stats", *map(str, arguments)]) == 0
    return capsys.readouterr().out if capsys else ""


def config_flags(demo, kind):
    folder, data, _ = demo
    flags = demo_flags(data, folder / "model")
    if kind != "GroupRTPInput":
        flags[1] = str(folder / f"{kind}.config")
        flags += [f"--input={folder / kind}"]
    return flags


def figures(folder, *arguments):
    path = folder / "figures.json"
    run(*arguments, "--output", folder / "page.html", "--json", path)
    # Sums depend on the portions in which an input is read.
    return json.loads(path.read_text(encoding="utf-8"), parse_float=lambda text: float(f"{float(text):.9g}"))


@pytest.mark.parametrize("kind", FORMATS)
def test_figures_are_those_of_pandas(demo, kind):
    folder, _, groups = demo
    report = figures(folder, *config_flags(demo, kind))
    rows = pd.DataFrame(rows_of(groups))
    assert report["samples"] == report["sampled_rows"] == len(rows)
    assert report["refused"] == 0
    sizes = pd.Series([group["group_size"] for group in groups]).value_counts()
    if kind.startswith("Group"):
        assert report["groups"] == len(groups)
        assert report["group_sizes"] == {str(size): int(count) for size, count in sorted(sizes.items())}
    assert list(report["fields"]) == [name for name in KINDS if name not in ("img_path", "group_size")]
    for name, field in report["fields"].items():
        column = rows[name].replace("", None)
        known = column.dropna()
        is_number = KINDS[name] != "STRING"
        if kind == "GroupTFRecordInput" and is_number:
            known = column.fillna(0)  # what this test writes where a number is missing
        assert field["missing"] == pytest.approx(1 - len(known) / len(rows)), name
        assert field["distinct"] == known.nunique()
        assert field["is_exact"]
        assert field["is_label"] == (name in LABELS)
        counts = known.value_counts()
        assert [count for _, count in field["top"]] == counts.tolist()[: len(field["top"])]
        assert len(field["top"]) == min(len(counts), 15)
        if not is_number:
            assert {value: counts[value] for value, _ in field["top"]} == dict(field["top"])
            continue
        values = known.to_numpy(float)
        assert field["numbers"]["mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert field["numbers"]["deviation"] == pytest.approx(values.std(), rel=1e-5)
        assert [field["numbers"][end] for end in ("least", "greatest")] == pytest.approx([values.min(), values.max()])
        assert field["numbers"]["zeros"] == pytest.approx(float((values == 0).mean()))
        for share, value in field["numbers"]["quantiles"].items():
            assert value == pytest.approx(np.quantile(values, float(share)), rel=1e-5)
    tags = rows["item_tags"].dropna().str.split(",").explode()
    parts = report["fields"]["item_tags"]["parts"]
    assert parts["distinct"] == tags.nunique()
    assert [count for _, count in parts["top"]] == tags.value_counts().tolist()[:15]
    assert report["fields"]["item_tags"]["per_sample"] == pytest.approx(len(tags) / len(rows))
    of_click = report["fields"]["price"]["correlation"]["click"]
    assert of_click["strength"] == pytest.approx(np.corrcoef(rows["price"], rows["click"])[0, 1], rel=1e-4)
    rates = rows.groupby("category")["click"].agg(["size", "mean"])
    pairs = {rate["name"]: (rate["count"], rate["means"]["click"]) for rate in report["fields"]["category"]["rates"]}
    assert pairs == {name: (row["size"], pytest.approx(row["mean"])) for name, row in rates.iterrows()}
    paths = {group["img_path"] for group in groups}
    assert report["pictures"]["distinct"] == report["pictures"]["opened"] == len(paths)
    assert report["pictures"]["bad"] == {}
    assert report["pictures"]["format"] == {"JPEG": len(paths)}


def test_tables_of_maxcompute_are_read(demo, monkeypatch, tmp_path):
    _, data, _ = demo
    server = OdpsServer({"samples": StubTable({"": table_of(data / "train")})})
    use(server, monkeypatch)
    config = (ROOT / "configs/demo.config").read_text(encoding="utf-8")
    config = re.sub(r"  rtp_separator: .*\n", "", config.replace("GroupRTPInput", "OdpsGroupRTPInput"))
    columns = '"click,play_time,features,img_path,group_size"'
    (tmp_path / "odps.config").write_text(
        re.sub(r'selected_cols: "[^"]*"', f"selected_cols: {columns}", config), encoding="utf-8"
    )
    flags = demo_flags(data, tmp_path / "model")
    expected = figures(tmp_path, *flags)
    flags[1] = str(tmp_path / "odps.config")
    report = figures(tmp_path, *flags, "--input", "odps://shop/tables/samples")
    server.close()
    for document in (report, expected):
        del document["input"], document["files"]
    assert report == expected


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_log_needs_no_config(demo, ending, tmp_path, capsys):
    _, data, groups = demo
    rows = pd.DataFrame(rows_of(groups))
    path = tmp_path / f"log.{ending}"
    rows.to_csv(path, index=False) if ending == "csv" else rows.to_parquet(path)
    flags = ["--input", path, "--image_field", "img_path", "--label_fields", "click,play_time", "--image_root", data]
    report = figures(tmp_path, *flags)
    assert report["groups"] is None
    assert report["samples"] == len(rows)
    assert report["fields"]["position"]["numbers"]["mean"] == pytest.approx(rows["position"].mean())
    assert report["fields"]["click"]["is_label"]
    assert report["pictures"]["opened"] == rows["img_path"].nunique()
    text = run(*flags, "--output", tmp_path / "page.html", capsys=capsys)
    for name in OF_SAMPLES:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    boundaries = re.search(r"price: boundaries: \[(.*)\]", text)
    limits = [float(limit) for limit in boundaries[1].split(", ")]
    shares = np.histogram(rows["price"], [-np.inf, *limits, np.inf])[0] / len(rows)
    assert np.abs(shares - 1 / 16).max() < 0.02


def test_bad_groups_are_counted_and_told_with_their_row(demo, tmp_path, capsys):
    _, data, groups = demo
    lines = [line for path in sorted((data / "train").iterdir()) for line in lines_of(path)]
    columns = lines[4].split("|")
    lines[4] = "|".join([*columns[:6], "99", *columns[7:]])
    lines[9] = "nothing"
    path = tmp_path / "bad.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    flags = [*demo_flags(data, tmp_path / "model"), "--input", path, "--output", tmp_path / "page.html"]
    text = run(*flags, capsys=capsys)
    assert f"{len(groups) - 2:,} groups, " in text
    assert "2 groups refused (4.17%)" in text
    assert f"{path}:5: " in text
    assert "group size 99" in text
    assert f"{path}:10: line: 1 columns, not 8" in text
    assert f"{path}:10: line: 1 columns, not 8" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("num_bytes", [1 << 20, 100])
def test_rows_of_a_log_that_are_malformed_are_told(tmp_path, capsys, monkeypatch, num_bytes):
    monkeypatch.setattr(csv_blocks, "BLOCK_BYTES", num_bytes)
    monkeypatch.setattr(flat_files, "SPLIT_BYTES", 3 * num_bytes)
    rows = [f"u{i},{i % 2},{i}" for i in range(200)]
    rows[50], rows[70] = "u,1", "u,0,x"
    (tmp_path / "log.csv").write_text("\n".join(["user,click,age", *rows]), encoding="utf-8")
    flags = ["--input", tmp_path / "log.csv", "--label_fields", "click", "--output", tmp_path / "page.html"]
    text = run(*flags, capsys=capsys)
    assert "198 samples; 2 rows refused (1.00%)" in text
    assert re.search(r"log.csv:52: row: .*2", text)
    assert "log.csv:72: column 'age': 'x' is not a whole number" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--input: is missing; give a log, or a config with --pipeline_config"),
        (["--input", "{log}", "--image_field", "pictures"], "--image_field: {log} has no column 'pictures'"),
        (
            ["--input", "{log}", "--label_fields", "clik"],
            "--label_fields: {log} has no column 'clik'; did you mean 'click'?",
        ),
        (
            ["--input", "{log}", "--label_fields", "user"],
            "--label_fields: column 'user' is text, and a label must be a number",
        ),
        (["--input", "{log}.none"], "--input: '{log}.none' matches no file; check the path"),
        (
            ["--pipeline_config", "{config}", "--label_fields", "click"],
            "--label_fields: has no effect with --pipeline_config",
        ),
    ],
)
def test_mistakes_are_told(tmp_path, capsys, flags, message):
    log = tmp_path / "log.csv"
    log.write_text("user,click\na,1\nb,0\n", encoding="utf-8")
    config = ROOT / "configs/demo.config"
    assert main(["stats", *(flag.format(log=log, config=config) for flag in flags)]) == 1
    assert message.format(log=log) in capsys.readouterr().err


# --- Parts


@given(st.lists(st.lists(st.integers(0, 60), max_size=60), max_size=20), st.integers(1, 8))
def test_counts_of_frequent_values_are_too_low_by_the_error_at_most(portions, capacity):
    top = TopValues(capacity)
    for portion in portions:
        top.add(pa.array(portion, pa.int64()))
    true = pd.Series([value for portion in portions for value in portion]).value_counts()
    assert len(top.counts) <= 2 * capacity
    assert top.error <= sum(map(len, portions)) / capacity
    for value, count in true.items():
        assert count - top.error <= top.counts.get(value, 0) <= count


def test_correlation_is_that_of_the_formulas():
    random = np.random.default_rng(0)
    number = random.normal(size=4000).round(1)
    label = (number + random.normal(size=4000) > 0).astype(float)
    correlation = correlate(pd.Series(number), pd.Series(label), is_number=True)
    assert correlation.strength == pytest.approx(np.corrcoef(number, label)[0, 1])
    ones, others = number[label == 1], number[label == 0]
    pairs = (ones[:, None] > others).mean() + 0.5 * (ones[:, None] == others).mean()
    assert correlation.auc == pytest.approx(pairs)
    # What a category explains: of the deviation sqrt(1.5^2 + 1), the 1.5 that are the category's.
    category = random.integers(0, 20, 4000)
    value = 1.5 * (category - 9.5) / np.std(np.arange(20)) + random.normal(size=4000)
    correlation = correlate(pd.Series(category.astype(str)), pd.Series(value), is_number=False)
    assert correlation.strength == pytest.approx(1.5 / np.sqrt(1.5**2 + 1), abs=0.01)
    assert correlation.auc is None
    # Many values explain nothing by being many.
    many = pd.Series(random.integers(0, 2000, 4000).astype(str))
    assert correlate(many, pd.Series(random.normal(size=4000)), is_number=False).strength == 0
    alone = pd.Series([str(i) for i in range(4000)])
    assert correlate(alone, pd.Series(label), is_number=False).strength == 0
    assert correlate(pd.Series(number), pd.Series(np.ones(4000)), is_number=True) is None
    # 64 bits tell these apart, a float does not.
    huge = pd.Series(np.arange(4000) % 100 + np.iinfo(np.int64).min + 1)
    assert correlate(huge, pd.Series(label), is_number=True) is None
    assert correlate(pd.Series(number[:20]), pd.Series(label[:20]), is_number=True) is None


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 63)), max_size=40),
    st.lists(st.sampled_from([0, 30, 62, 63, 255]), min_size=60, max_size=60),
)
def test_groups_alike_are_those_of_all_pairs(hashes, flips, colours):
    for row, bit in flips:
        if row < len(hashes):
            hashes.append(hashes[row] ^ (1 << bit))
    pictures = list(zip(hashes, colours, strict=False))
    near = [[bin(a ^ b).count("1") <= 4 and abs(x - y) <= 32 for b, y in pictures] for a, x in pictures]
    group = list(range(len(hashes)))
    for _ in hashes:
        group = [min(group[j] for j in range(len(hashes)) if near[i][j]) for i in range(len(hashes))]
    clusters = {tuple(i for i, of in enumerate(group) if of == first) for first in group}
    alike = groups_alike(np.array(hashes, np.uint64), np.array([colours[: len(hashes)]], np.uint8).T)
    assert {tuple(sorted(members)) for members in alike} == {members for members in clusters if len(members) > 1}


def drawing(seed, size=128):
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", (size, size), tuple(random.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = random.integers(0, size, 2).tolist()
        radius = int(random.integers(5, 40))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=tuple(random.integers(0, 255, 3).tolist()))
    return picture.filter(ImageFilter.GaussianBlur(1))


def test_pictures_are_opened_and_those_that_look_alike_found(tmp_path):
    for seed in range(30):
        drawing(seed).save(tmp_path / f"{seed}.png")
    drawing(3).resize((77, 77)).save(tmp_path / "small.png")
    drawing(3).save(tmp_path / "packed.jpg", quality=40)
    drawing(7).convert("L").save(tmp_path / "grey.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "packed.jpg").read_bytes()[:400])
    (tmp_path / "text.jpg").write_text("no picture", encoding="utf-8")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (1000, 1000)).save(tmp_path / "large.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    paths = [name.encode() for name in [*names, "none.jpg"]]
    stats = open_pictures(paths, PictureReader(str(tmp_path)), replace(ANY_PICTURE, max_pixels=500_000))
    assert {path for path, _ in stats.problems} == {"half.jpg", "text.jpg", "empty.jpg", "large.png", "none.jpg"}
    problems = dict(stats.problems)
    assert problems["empty.jpg"] == "is empty (0 bytes)"
    assert problems["none.jpg"] == "cannot be read: No such file or directory"
    assert problems["large.png"] == "has more than 500000 pixels (data_config.max_image_pixels)"
    assert stats.counts("format") == {"PNG": 31, "JPEG": 2}
    assert stats.counts("size") == {"128 x 128": 32, "77 x 77": 1}
    assert stats.counts("mode") == {"RGB": 32, "L": 1}
    # A picture without its colours is another one: so are two dresses of one shape.
    assert [sorted(picture.path for picture in group) for group in stats.alike] == [
        ["3.png", "packed.jpg", "small.png"]
    ]
    thumbnail = Image.open(io.BytesIO(stats.pictures[0].thumbnail))
    assert max(thumbnail.size) == 96


def test_paths_are_counted_and_some_of_them_taken_by_chance():
    names = [f"{i}.jpg" for i in range(1000)]
    paths = PathStats(num_wanted=100)
    for start in range(0, 1000, 50):
        paths.add(pa.array(names[start : start + 50]), "a")
        paths.add(pa.array([*names[: start + 50], "", None]), "b")
    assert paths.num_distinct == 1000
    assert paths.num_without == 40
    taken = [path for path, _ in paths.sample]
    assert len(set(taken)) == 100
    numbers = np.array([int(path.split(".")[0]) for path in taken])
    assert 400 < numbers.mean() < 600
    # Whatever the order in which they come.
    again = PathStats(num_wanted=100)
    again.add(pa.array(names[::-1]), "a")
    assert [path for path, _ in again.sample] == taken
    several = PathStats(num_wanted=9, separator="|")
    several.add(pa.array(["a|b", "b|c|", ""]), "a")
    assert (several.num_distinct, several.num_without) == (3, 1)


class _Page(HTMLParser):
    """Checks that tags are closed in order, and collects text and what is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_whole_and_loads_nothing(demo, tmp_path):
    _, data, groups = demo
    rows = pd.DataFrame(rows_of(groups)).rename(columns={"price": "<price>"})
    rows["user_city"] = "<script>alert(1)</script>"
    rows.to_parquet(tmp_path / "log.parquet")
    flags = ["--image_field", "img_path", "--label_fields", "click", "--image_root", data]
    run("--input", tmp_path / "log.parquet", *flags, "--output", tmp_path / "page.html", "--num_pictures", 10)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert "<script" not in text
    assert any("<script>alert(1)</script>" in part for part in page.texts)
    assert {"<price>", "category", "click"} <= set(page.texts)
    icon, *pictures = page.loaded
    assert icon == "data:,"  # an empty one, so that a browser asks for none
    assert len(pictures) == 10
    for picture in pictures:
        kind, _, content = picture.partition(",")
        assert kind == "data:image/jpeg;base64"
        Image.open(io.BytesIO(base64.b64decode(content))).load()
