"""Rules beside settings: intervals hold what they say, and one walk over a config finds all settings that break one."""

from __future__ import annotations

import math

import pytest
from google.protobuf import text_format

from easyrec_mm.config.rules import Interval, check_rules
from easyrec_mm.errors import ConfigError, Problems
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


@pytest.mark.parametrize(
    ("text", "inside", "outside", "words"),
    [
        ("[1, inf)", (1, 2, 1e30), (0.999, -1, math.inf), "1 or more"),
        ("(0, inf)", (1e-30, 7), (0, -1, math.inf), "a number above 0"),
        ("[0, 1]", (0, 0.5, 1), (-1e-9, 1.0000001), "a number from 0 to 1"),
        ("(0, 1)", (1e-9, 0.5), (0, 1), "a number between 0 and 1"),
        ("[0, 1)", (0, 0.99), (-0.1, 1), "a number from 0 to below 1"),
        ("(0, 1]", (0.01, 1), (0, 1.1), "a number above 0, at most 1"),
    ],
)
def test_an_interval_holds_what_its_words_say(text, inside, outside, words):
    interval = Interval.of(text)
    assert all(map(interval.holds, inside))
    assert not any(map(interval.holds, (*outside, math.nan)))
    assert str(interval) == words


@pytest.mark.parametrize("text", ["", "1 to 2", "[1]", "[1,2]", "{1, 2}"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(ValueError, match="is not an interval"):
        Interval.of(text)


def problems_of(text):
    """What the walk says of a config, as (place, message)."""
    config = EasyRecConfig()
    text_format.Parse(text, config)
    problems = Problems("x.config")
    check_rules(config, problems)
    try:
        problems.raise_if_any()
    except ConfigError as error:
        return [tuple(line.removeprefix("x.config: ").split(": ", 1)) for line in str(error).split("\n")]
    return []


def test_the_walk_reaches_every_depth_and_every_element():
    text = """
      model_config { model_class: "E2E_MM_DBMTL" e2e_mm_dbmtl {
        bottom_dnn { hidden_units: [8, 0, 4] dropout_ratio: [0.5, 1] }
        task_towers { tower_name: "a" dnn { hidden_units: 8 } }
        task_towers {
          tower_name: "b"
          metrics_set { auc {} }
          metrics_set { gauc { uid_field: "u" reduction: "median" } }
        }
      } }
      data_config { input_type: CSVInput batch_size: 0 }
    """
    assert problems_of(text) == [
        ("data_config.batch_size", "0 is out of range; give 1 or more"),
        ("model_config.e2e_mm_dbmtl.bottom_dnn.hidden_units[1]", "0 is out of range; give 1 or more"),
        (
            "model_config.e2e_mm_dbmtl.bottom_dnn.dropout_ratio[1]",
            "1 is out of range; give a number from 0 to below 1",
        ),
        (
            "model_config.e2e_mm_dbmtl.task_towers[1].metrics_set[1].gauc.reduction",
            "no reduction named 'median'; did you mean 'mean'?",
        ),
    ]


def test_a_number_of_32_bits_is_compared_as_it_was_written():
    augmentation = "model_config { model_class: 'E2E_MM_DBMTL' e2e_mm_dbmtl { img_model { augmentation { %s } } } }"
    assert problems_of(augmentation % "random_resized_crop_min_area: 0.01") == []
    assert len(problems_of(augmentation % "random_resized_crop_min_area: 0.0099")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_config { input_type: CSVInput image_cache_gib: 2 }", "image_cache_dir"),
        ("data_config { input_type: CSVInput image_cache_gib: 2 image_cache_dir: '' }", "image_cache_dir"),
        ("data_config { input_type: CSVInput image_cache_gib: 2 image_cache_dir: 'x' }", ""),
        ("data_config { input_type: ParquetInput packed_images: true }", ""),
        (
            "data_config { input_type: OdpsGroupRTPInput packed_images: true }",
            "input_type: GroupRTPInput or GroupParquetInput or GroupTFRecordInput or CSVInput or ParquetInput",
        ),
        ("export_config { early_stop_patience: 2 }", "enable_early_stop: true"),
        ("export_config { early_stop_patience: 2 enable_early_stop: false }", "enable_early_stop: true"),
        ("export_config { early_stop_patience: 2 enable_early_stop: true }", ""),
        (
            "model_config { model_class: 'E2E_MM_DBMTL' feature_groups { wide_regularization: 1 } }",
            "wide_deep: WIDE or WIDE_AND_DEEP",
        ),
        (
            "model_config { model_class: 'E2E_MM_DBMTL' feature_groups { wide_regularization: 1 wide_deep: WIDE } }",
            "",
        ),
        ("train_config { fine_tune_ckpt_var_map: '' }", ""),
    ],
)
def test_a_setting_without_what_it_needs(text, message):
    assert [problem for _, problem in problems_of(text)] == (
        [f"has no effect without {message}; set it or remove this"] if message else []
    )
