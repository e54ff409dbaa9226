"""What `group` leaves out of the features: what tells a label, and row numbers; and what it must not leave out."""

from __future__ import annotations

import json
import re
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from group_helpers import run, write_csv
from test_group_config import NUM_ROWS, infer

from easyrec_mm.grouping.leaks import LeakFinder, held_out_auc, roc_auc

RANDOM = np.random.default_rng(7)
CLICK = (RANDOM.random(NUM_ROWS) < 0.2).astype(int)
BASKET = CLICK * (RANDOM.random(NUM_ROWS) < 0.3)


def left_out(text):
    """Column -> reason, as the head of a config has them."""
    head = re.sub(r"\n#   +", " ", text.partition("\ntrain_input_path")[0])
    return dict(re.findall(r"^# No feature: (\w+): (.*)\.$", head, re.MULTILINE))


def with_click(column, **more):
    """A log of a column, the click of each row and its item."""
    random = np.random.default_rng(1)
    click = more.pop("click", CLICK)
    items = more.pop("items", random.integers(0, 500, len(click)))
    return pa.table({"x": column, "click": click, "item": items, **more})


def reason(column, describes_item=False, **more):
    user = "user" if "user" in more else ""
    return LeakFinder(with_click(column, **more), ["click"], "item", user).reason("x", describes_item)


# --- Leaks


def test_what_is_set_only_after_a_click_is_left_out_and_told(tmp_path, capsys):
    features, text, _ = infer(tmp_path, {"click": CLICK, "basket": BASKET}, label_fields="click")
    assert "basket" not in features
    why = left_out(text)["basket"]
    assert why.startswith(f"is never set where 'click' is 0 (0 of {BASKET.sum()} sampled rows that have it)")
    assert "use --label_fields click,basket" in why
    output = capsys.readouterr().out
    assert f"no feature: basket: {why}" in output
    assert "--columns +NAME" in output
    assert json.loads((tmp_path / "out/stats.json").read_text())["left_out"]["basket"] == why


def test_a_guess_of_labels_takes_click_and_reports_basket(tmp_path):
    features, text, config = infer(tmp_path, {"click": CLICK, "basket": BASKET})
    assert [tower.label_name for tower in config.model_config.e2e_mm_dbmtl.task_towers] == ["click"]
    assert "basket" not in features
    assert "probably it is another label: to predict it, use --label_fields click,basket" in left_out(text)["basket"]


def test_named_as_a_label_it_is_one(tmp_path):
    _, text, config = infer(tmp_path, {"click": CLICK, "basket": BASKET}, label_fields="click,basket")
    towers = config.model_config.e2e_mm_dbmtl.task_towers
    assert [tower.label_name for tower in towers] == ["click", "basket"]
    assert "basket" not in left_out(text)


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (np.where(CLICK, RANDOM.exponential(5, NUM_ROWS), 0.0), "predicts the label 'click' too well (AUC 1.000)"),
        (
            pa.array([float(i) if c else None for i, c in enumerate(CLICK)]),
            "predicts the label 'click' too well (AUC 1.000)",
        ),
        # Visible to some, and of those who click always longer.
        (CLICK * 3 + RANDOM.exponential(1, NUM_ROWS), "predicts the label 'click' too well (AUC 0.9"),
        # Far from 0 on either side.
        (
            RANDOM.normal(0, 1, NUM_ROWS) + CLICK * RANDOM.choice([-8, 8], NUM_ROWS),
            "predicts the label 'click' too well (AUC 0.9",
        ),
        (np.where(BASKET, RANDOM.lognormal(3, 1, NUM_ROWS), 0), "is never set where 'click' is 0"),
        (pa.array([f"order-{i}" if b else None for i, b in enumerate(BASKET)]), "is never set where 'click' is 0"),
        (pa.array([f"order-{i}" if b else "None" for i, b in enumerate(BASKET)]), "is never set where 'click' is 0"),
        (np.where(BASKET, RANDOM.integers(1, 99, NUM_ROWS), -1), "is never other than -1 where 'click' is 0"),
        (BASKET.astype(bool), "is never set where 'click' is 0"),
        (pa.array(["click" if c else "view" for c in CLICK]), "predicts the label 'click' too well (AUC 1.000)"),
        (
            pa.array(["bought" if b else ["new", "old"][i % 2] for i, b in enumerate(BASKET)]),
            "is never 'bought' where 'click' is 0",
        ),
        # A basket without a click, by a mistake of the log.
        (BASKET + (np.arange(NUM_ROWS) == np.flatnonzero(CLICK == 0)[7]), "is hardly ever set where 'click' is 0"),
    ],
)
def test_leaks(column, why):
    assert reason(column).startswith(why)


def test_tags_that_tell():
    random = np.random.default_rng(0)
    tag_lists = [[f"t{t}" for t in random.permutation(40)[:3]] for _ in range(NUM_ROWS)]

    def why(tags, separator="|", kv=""):
        finder = LeakFinder(with_click(["|".join(t) for t in tags]), ["click"], "item")
        assert finder.reason("x") == ""  # each text stands in some rows only
        return finder.reason_of_tags("x", separator, kv)

    assert why(tag_lists) == ""
    clicked = why([[*t, "clicked"] if c else t for t, c in zip(tag_lists, CLICK, strict=True)])
    assert clicked.startswith("predicts the label 'click' too well by its value 'clicked' (AUC 1.000)")
    bought = [[*t, "bought"] if b else t for t, b in zip(tag_lists, BASKET, strict=True)]
    assert why(bought).startswith("never holds 'bought' where 'click' is 0")
    weighted = [[f"{name}:{i}.5" for i, name in enumerate(t)] for t in bought]
    assert why(weighted, kv=":").startswith("never holds 'bought' where 'click' is 0")


def honest():
    """Columns that must stay, by what could be taken for a leak in them; and more of the log."""
    random = np.random.default_rng(3)
    n = NUM_ROWS
    taste = random.normal(0, 3.0, n)
    strong = (random.random(n) < 1 / (1 + np.exp(-(taste - 3)))).astype(int)
    ones = np.flatnonzero(CLICK)
    one_item = random.integers(1, 500, n)
    one_item[ones[:40]] = 0
    one_user = random.integers(1, 3000, n)
    one_user[ones[:60]] = 0
    rare = (random.random(n) < 0.002).astype(int)
    return {
        "three rows, all clicks": (np.isin(np.arange(n), ones[:3]).astype(int), {}),
        "three rows, clicks are rare": (np.isin(np.arange(n), np.flatnonzero(rare)[:3]).astype(int), {"click": rare}),
        "a strong feature": (taste, {"click": strong}),
        "a strong feature in bins": (np.digitize(taste, [-2, 0, 1, 2, 3, 4]), {"click": strong}),
        "a value a row": ([f"u{i}" for i in range(n)], {}),
        "two rows a value": ([f"u{i // 2}" for i in range(n)], {}),
        "users of few rows": (random.integers(0, 2000, n), {}),
        "of one item, always clicked": ((one_item == 0).astype(int), {"items": one_item}),
        "of one user, who clicks always": ((one_user == 0).astype(int), {"user": one_user}),
        "that user": (one_user, {"user": one_user}),
        "one class": (BASKET, {"click": np.ones(n, int)}),
        "noise": (random.normal(size=n), {}),
        "missing": (pa.nulls(n, pa.float64()), {}),
        "always the same": (np.ones(n), {}),
        "ten times the odds": (np.where(random.random(n) < 0.5, CLICK * (random.random(n) < 0.7), 1 - CLICK), {}),
    }


@pytest.mark.parametrize("case", honest())
def test_what_is_no_leak(case):
    column, more = honest()[case]
    assert reason(column, **more) == ""


def test_a_log_of_few_rows_is_no_evidence():
    for num_rows in (4, 12, 30):
        click = (np.arange(num_rows) % 6 == 0).astype(int)
        assert reason(click, click=click, items=np.arange(num_rows)) == ""


def test_what_describes_an_item_is_judged_by_items_not_by_rows():
    """Four items, of which two are always clicked: any of their columns tells that, and none is a leak."""
    items = np.arange(NUM_ROWS) % 4
    click = (items < 2).astype(int)
    assert reason(items * 10, describes_item=True, click=click, items=items) == ""
    many = np.arange(NUM_ROWS) % 1000
    clicks = (many < 300).astype(int)
    assert "AUC 1.000" in reason(many, describes_item=True, click=clicks, items=many)


def test_honest_features_of_any_strength_are_rarely_taken_for_leaks():
    """Random features, each a number of which the label depends by chance and at most as strongly as is honest."""
    random = np.random.default_rng(11)
    wrong = 0
    for _ in range(150):
        num_rows = int(random.choice([200, 1000, 5000]))
        set_share, rate, odds = (
            random.choice([0.003, 0.02, 0.2]),
            random.choice([0.01, 0.1, 0.5]),
            random.uniform(1, 10),
        )
        is_set = random.random(num_rows) < set_share
        strong = rate * odds / (1 - rate + rate * odds)
        click = (random.random(num_rows) < np.where(is_set, strong, rate)).astype(int)
        leak_reason = reason(is_set.astype(int), click=click, items=random.integers(0, 100, num_rows))
        wrong += leak_reason != ""
    assert wrong <= 1


def test_a_number_as_label_is_told_by_what_stands_only_where_it_is_not_0():
    random = np.random.default_rng(0)
    play = CLICK * random.exponential(3, NUM_ROWS)
    table = pa.table({"play": play, "x": CLICK, "y": random.normal(size=NUM_ROWS), "item": np.arange(NUM_ROWS) % 300})
    finder = LeakFinder(table, ["play"], "item")
    assert finder.reason("x").startswith("predicts the label 'play'")
    assert finder.reason("y") == ""


def test_auc_equals_the_share_of_pairs_in_order():
    random = np.random.default_rng(0)
    is_one, score = random.random(300) < 0.3, random.integers(0, 20, 300).astype(float)
    ones, zeros = score[is_one], score[~is_one]
    expected = np.mean((ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros))
    assert roc_auc(is_one, score) == pytest.approx(expected, abs=1e-12)
    assert roc_auc(np.ones(5, bool), np.arange(5.0)) == 0.5


def test_rates_of_values_are_measured_on_rows_that_did_not_make_them():
    random = np.random.default_rng(0)
    is_one = random.random(20_000) < 0.3
    for num_values in (2, 300, 20_000):
        codes = random.integers(0, num_values, 20_000)
        assert held_out_auc(codes, is_one) == pytest.approx(0.5, abs=0.02)
    assert held_out_auc(np.arange(20_000), is_one) == 0.5
    assert held_out_auc(is_one.astype(np.int64), is_one) == 1


# --- Row numbers


def test_columns_with_a_value_a_row_are_left_out(tmp_path):
    random = np.random.default_rng(0)
    at = 1_700_000_000_000 + np.arange(NUM_ROWS) * 977
    columns = {
        "impression_id": 500_000_000 + np.arange(NUM_ROWS),
        "request_id": random.integers(0, 10**15, NUM_ROWS),
        "trace": random.integers(2**62, 2**63, NUM_ROWS),
        "uuid": [str(uuid.UUID(int=int(i), version=4)) for i in random.integers(0, 2**60, NUM_ROWS)],
        "shuffled": random.permutation(NUM_ROWS) + 17,
        "counter": np.cumsum(random.integers(1, 10**6, NUM_ROWS)),
        "row_id": pa.array([None if i % 50 == 0 else float(i) for i in range(NUM_ROWS)]),
        "ms": random.permutation(at),
        "shown": [
            f"2026-10-{1 + i % 28:02d} {i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}.{i}" for i in range(NUM_ROWS)
        ],
        "price_in_cents": (random.lognormal(15, 2, NUM_ROWS)).astype(int) * 7,
        "score": random.normal(size=NUM_ROWS),
        "session_id": random.integers(0, NUM_ROWS // 4, NUM_ROWS),
        "position": random.integers(1, 24, NUM_ROWS),
        "user": [f"user-{i}" for i in random.permutation(NUM_ROWS)],
    }
    features, text, _ = infer(tmp_path, columns, label_fields="click", user_field="user")
    why = left_out(text)
    assert set(why) == {"impression_id", "request_id", "trace", "uuid", "shuffled", "counter", "row_id", "ms", "shown"}
    for name in ("ms", "shown"):
        assert why[name] == "is a time: later rows have values that do not occur in training"
    assert re.match(r"has a different value in every row \(about [56],\d{3} in 6,000\), like a row number", why["uuid"])
    assert {"price_in_cents", "score", "session_id", "position", "user"} <= set(features)


def test_few_rows_do_not_make_row_numbers(tmp_path):
    rows = [(f"i{i % 5}", f"{i % 5}.jpg", f"u{i}", i % 2, i / 4) for i in range(60)]
    write_csv(tmp_path / "log.csv", rows)
    run(tmp_path, pipeline_config_template=tmp_path / "x.config")
    assert "user" not in left_out((tmp_path / "x.config").read_text())


# --- --columns


def test_named_columns_are_features_whatever_they_look_like(tmp_path):
    columns = {
        "click": CLICK,
        "basket": BASKET,
        "buy": BASKET,
        "impression_id": np.arange(NUM_ROWS),
        "time": 1_700_000_000 + np.arange(NUM_ROWS),
        "age": RANDOM.integers(18, 80, NUM_ROWS),
        "same": np.full(NUM_ROWS, 3),
        "none": pa.nulls(NUM_ROWS, pa.string()),
    }
    flags = {"label_fields": "click", "split_by": "item"}
    features, text, _ = infer(tmp_path, columns, columns="+basket,+impression_id, +buy,+same,+none", **flags)
    group_features = {"img_path", "group_size"}
    assert set(features) == {"basket", "impression_id", "buy", "same", "age", *group_features}
    assert set(left_out(text)) == {"time", "item_id", "none"}
    assert left_out(text)["none"] == "has no values"
    # Without +, these alone.
    (tmp_path / "alone").mkdir()
    features, text, config = infer(tmp_path / "alone", columns, columns="basket,time", **flags)
    assert set(features) == {"basket", "time", *group_features}
    fields = {field.input_name for field in config.data_config.input_fields}
    assert fields == {"item_id", "img_path", "click", "basket", "time", "group_size"}


def test_a_named_column_that_the_log_lacks(tmp_path, capsys):
    write_csv(tmp_path / "log.csv", [("i", "p.jpg", "u", 0, 1.0)] * 9)
    run(tmp_path, columns="+prise", expect=1)
    assert "--columns: " in (message := capsys.readouterr().err)
    assert "log.csv has no column 'prise'; did you mean 'price'?" in message


# --- Logs of which nothing can be learnt


def failed(folder, columns, capsys, **flags):
    """The message of a log that makes no config; nothing is written."""
    capsys.readouterr()
    num_rows = len(next(iter(columns.values())))
    log = pa.table({"item_id": ["a"] * num_rows, "img_path": ["a.jpg"] * num_rows, **columns})
    pq.write_table(log, folder / "log.parquet")
    run(folder, log="log.parquet", expect=1, pipeline_config_template=folder / "x.config", **flags)
    assert not (folder / "out").exists()
    assert not (folder / "x.config").exists()
    return capsys.readouterr().err


def test_labels_of_one_class(tmp_path, capsys):
    columns = {"age": np.arange(60) % 9, "buy": np.arange(60) % 2}
    message = failed(tmp_path, {"click": np.zeros(60, int), **columns}, capsys, label_fields="click,buy")
    assert "--label_fields: column 'click' is 0 in all 60 training rows" in message
    assert "give a log with both values, or leave the label out" in message
    message = failed(tmp_path, {"click": np.ones(60, int), "age": columns["age"]}, capsys)
    assert "no column looks like a label of 0 and 1 ('click' is 1 in all rows)" in message
    message = failed(tmp_path, {"basket": columns["buy"], "age": columns["age"]}, capsys)
    assert "no column looks like a label of 0 and 1; name the columns that are labels" in message
    assert "'basket' holds 0 and 1" in message


def test_one_class_among_the_rows_that_evaluate_is_noted(tmp_path, capsys):
    """Its metrics have no meaning there."""
    time = np.arange(NUM_ROWS)
    click = np.where(time < NUM_ROWS * 0.9, CLICK, 0)
    columns = {"click": click, "time": time + 1_700_000_000, "age": time % 50}
    infer(tmp_path, columns, label_fields="click", split_by="time:time")
    note = "label 'click' is 0 in all 600 evaluation rows, so its AUC is undefined there"
    assert f"note: {note}" in capsys.readouterr().out
    assert note in re.sub(r"\n#  +", " ", (tmp_path / "x.config").read_text())


def test_no_column_that_is_left(tmp_path, capsys):
    columns = {"click": CLICK[:600], "basket": CLICK[:600], "time": np.arange(600) + 1_700_000_000}
    message = failed(tmp_path, columns, capsys, label_fields="click", split_by="item", eval_share=0.001)
    assert "no column can become a feature" in message
    assert "  basket: predicts the label 'click'" in message
    assert "  item_id: no item of the evaluation data" in message
    assert "--columns +NAME" in message


def test_a_log_without_rows_or_the_column_of_pictures(tmp_path, capsys):
    pq.write_table(pa.table({"item_id": pa.array([], pa.string())}), tmp_path / "log.parquet")
    run(tmp_path, log="log.parquet", expect=1)
    assert "log.parquet has no column 'img_path'; choose one of item_id" in capsys.readouterr().err
    write_csv(tmp_path / "log.csv", [])
    run(tmp_path, expect=1)
    assert "log.csv: no row of data; give files that hold rows" in capsys.readouterr().err
