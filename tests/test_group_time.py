"""The time of the impression in `group`: its hour and weekday as features, as training reads them."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from test_group_config import NUM_ROWS, infer
from test_group_leaks import CLICK, left_out

from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input

TIME = "is a time: later rows have values that do not occur in training"
START, DAY = 1_700_000_000, 86400
TIMES = START + np.random.default_rng(3).integers(0, 30 * DAY, NUM_ROWS)
MOMENTS = [datetime.fromtimestamp(int(time), timezone.utc) for time in TIMES]
USERS = np.arange(NUM_ROWS) % 1999
EAST = timezone(timedelta(hours=8))


def parts_in(config):
    return [f.feature_name for f in config.feature_config.features if f.feature_name.endswith(("_hour", "_weekday"))]


@pytest.mark.parametrize(
    ("column", "expression", "zone"),
    [
        (pa.array(TIMES), "hour(shown)", timezone.utc),
        (pa.array(TIMES * 1000 + 999), "hour(from_millis(shown))", timezone.utc),
        (pa.array(TIMES * 1_000_000, pa.timestamp("us")), "hour(from_text(shown))", timezone.utc),
        ([f"{time.astimezone(EAST):%Y-%m-%d %H:%M:%S}" for time in MOMENTS], "hour(from_text(shown))", EAST),
        ([time.astimezone(EAST).isoformat() for time in MOMENTS], "hour(from_text(shown))", timezone.utc),
    ],
    ids=["seconds", "milliseconds", "timestamps", "local time", "offsets"],
)  # fmt: skip
def test_hour_and_weekday_of_the_time_are_features(tmp_path, column, expression, zone):
    _, text, config = infer(tmp_path, {"shown": column, "user": USERS}, label_fields="click", time_field="shown")
    assert parts_in(config) == ["shown_hour", "shown_weekday"]
    assert f'"{expression}"' in text
    assert left_out(text)["shown"] == f"{TIME}; features of it: shown_hour, shown_weekday"
    pipeline = load_pipeline(str(tmp_path / "x.config"))
    paths = pipeline.config.train_input_path
    inputs = Input(pipeline.config.data_config, pipeline.schema, paths, "train_input_path", BadRecords(None, 1.0))
    batches = [item.batch.features for item in inputs.batches()]
    for part, expected in (
        ("hour", [moment.astimezone(zone).hour for moment in MOMENTS]),
        ("weekday", [moment.astimezone(zone).weekday() for moment in MOMENTS]),
    ):
        read = np.concatenate([batch[f"shown_{part}"] for batch in batches])
        assert np.bincount(read).tolist() == np.bincount(expected).tolist()


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        (START + np.arange(NUM_ROWS) * 3 * DAY // NUM_ROWS, ["shown_hour"]),
        (START + np.arange(NUM_ROWS) * DAY // NUM_ROWS, []),
        (pa.array([None, *TIMES[1:].tolist()]), []),
        ([f"{moment:%d.%m.%Y %H:%M}" for moment in MOMENTS], []),
        (["unknown" if i == 5 else f"{moment:%Y-%m-%d %H:%M}" for i, moment in enumerate(MOMENTS)], []),
        (np.sort(TIMES)[np.argsort(np.argsort(CLICK, kind="stable"), kind="stable")], []),
    ],
    ids=["3 days", "1 day", "missing", "another form", "not all are times", "tells the label"],
)
def test_parts_that_do_not_recur_or_cannot_be_read(tmp_path, column, parts):
    _, _, config = infer(
        tmp_path, {"shown": column, "click": CLICK, "user": USERS}, label_fields="click", time_field="shown"
    )
    assert parts_in(config) == parts


def test_names_that_are_taken_or_that_no_expression_has(tmp_path):
    columns = {"shown": TIMES, "shown_hour": TIMES // 7200 % 12, "user": USERS}
    features, _, config = infer(tmp_path, columns, label_fields="click", time_field="shown")
    assert parts_in(config) == ["shown_weekday"]
    assert "shown_hour" in features
    _, _, config = infer(tmp_path, {"from": TIMES, "user": USERS}, label_fields="click", time_field="from")
    assert parts_in(config) == []


def test_other_times_do_not_become_features(tmp_path):
    columns = {"shown": TIMES, "paid": TIMES + 60}
    _, text, config = infer(tmp_path, columns, label_fields="click", time_field="shown")
    assert parts_in(config) == ["shown_hour", "shown_weekday"]
    assert left_out(text)["paid"] == TIME
