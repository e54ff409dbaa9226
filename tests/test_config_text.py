"""How the text of a pipeline file is read, and what is said where it cannot be: files, names, syntax."""

import subprocess
import sys
from pathlib import Path

import pytest
from config_helpers import position
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import reference_config, write_config

from easyrec_mm.config import pipeline as pipeline_module
from easyrec_mm.config.pipeline import load_pipeline
from easyrec_mm.errors import ConfigError, UserError

ROOT = Path(__file__).parents[1]


# --- How text is read


def test_control_characters_may_stand_as_they_are(load):
    raw = [('separator: "\\002"', 'separator: "\x02"'), ('separator: "\\001"', 'separator: "\x01"')]
    assert load(*raw).schema == load().schema
    assert load(*raw).config == load().config


def test_the_empty_separator_stays_empty(load):
    assert load(('separator: "\\002"', 'separator: ""')).schema.layout.value_separator == ""
    assert load(('  separator: "\\002"\n', "")).schema.layout.value_separator == ","


@pytest.mark.parametrize("change", [lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t, lambda t: "# ö\n" + t])
def test_line_ends_byte_order_mark_and_comments_change_nothing(load, change):
    assert load(text=change(reference_config())).schema == load().schema


def test_a_written_config_reads_the_same(load, tmp_path):
    pipeline = load()
    pipeline_module.write_config(pipeline.config, str(tmp_path / "written.config"))
    written = load_pipeline(str(tmp_path / "written.config"))
    assert (written.config, written.schema, written.notes) == (pipeline.config, pipeline.schema, pipeline.notes)


def test_loading_imports_no_tensorflow(tmp_path):
    path = write_config(tmp_path, reference_config())
    code = (
        "import sys; from easyrec_mm.config.pipeline import load_pipeline; load_pipeline(sys.argv[1]);"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- Files that cannot be read


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.config: no such file; give the path of a pipeline config"):
        load_pipeline(str(tmp_path / "none.config"))


def test_a_folder(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}: cannot be read: Is a directory"):
        load_pipeline(str(tmp_path))


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "latin.config").write_bytes('model_dir: "Ö"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.config: byte 12 is not UTF-8 text; save the config as UTF-8"):
        load_pipeline(str(tmp_path / "latin.config"))


# --- Names that are unknown


def test_unknown_fields_and_enum_values_are_all_named_at_once(problem_lines):
    edits = [
        ("batch_size: 64", "batchsize: 64"),
        ("input_type: GroupRTPInput", "input_type: GroupRtpInput"),
        ('input_name: "group_size"', 'input_name: "group_size" defalt_val: "1"'),
        ("wide_deep: DEEP", "wide_deep: DEAP"),
        ("loss_type: L2_LOSS", "loss_type: L2LOSS"),
        ("model_config {", "modell_config {"),
    ]
    text = reference_config(*edits)
    task = "model_config.e2e_mm_dbmtl.task_towers[1].loss_type"
    assert problem_lines(*edits[:5]) == [
        f"{position(text, 'batchsize')}: data_config.batchsize: DatasetConfig has no field 'batchsize'; "
        "did you mean 'batch_size'?",
        f"{position(text, 'GroupRtpInput')}: data_config.input_type: InputType has no value 'GroupRtpInput'; "
        "did you mean 'GroupRTPInput'?",
        f"{position(text, 'defalt_val')}: data_config.input_fields[26].defalt_val: Field has no field 'defalt_val'; "
        "did you mean 'default_val'?",
        f"{position(text, 'DEAP')}: model_config.feature_groups[2].wide_deep: WideOrDeep has no value 'DEAP'; "
        "did you mean 'DEEP'?",
        f"{position(text, 'L2LOSS')}: {task}: LossType has no value 'L2LOSS'; did you mean 'L2_LOSS'?",
    ]
    # What an unknown message holds is not looked at.
    assert problem_lines(*edits) == [
        *problem_lines(*edits[:3]),
        f"{position(text, 'modell_config')}: modell_config: EasyRecConfig has no field 'modell_config'; "
        "did you mean 'model_config'?",
    ]


def test_an_unknown_name_without_a_near_one_lists_the_choices(problem_lines):
    (line,) = problem_lines(('channel: 3\n    }\n  }\n  features', 'depth: 3\n    }\n  }\n  features'))  # fmt: skip
    assert line.endswith("img_shape.depth: ImgShape has no field 'depth'; choose one of channel, height, width")


def test_places_in_lists_of_messages_count_their_elements(problem_lines):
    (line,) = problem_lines(
        ("    auc {}\n", "    auc {}\n  }\n  metrics_set: [{auc {}}, {auc {bins: 1}}]\n  metrics_set {\n")
    )
    assert "eval_config.metrics_set[2].auc.bins: AUC has no field 'bins'" in line


def test_unknown_names_are_never_skipped(problem_lines):
    (line,) = problem_lines(("batch_size: 64", "batchsize: 64"), ignore_unsupported=True)
    assert "did you mean 'batch_size'?" in line


def test_a_number_that_is_no_value_of_an_enum(problem_lines):
    (line,) = problem_lines(("wide_deep: DEEP", "wide_deep: 3"))
    assert "WideOrDeep" in line
    assert "no value with number 3" in line


# --- Syntax


@pytest.mark.parametrize(
    ("edit", "piece", "message"),
    [
        (("batch_size: 64", "batch_size 64"), "64\n  input_type", 'Expected ":"'),
        (("batch_size: 64", "batch_size: sixty"), "sixty", "Couldn't parse integer: sixty"),
        (("batch_size: 64", "batch_size: -64"), "-64", "Value out of range: -64"),
        (("batch_size: 64", "batch_size: 64 batch_size: 32"), "32\n  input_type", "should not have multiple"),
        (("batch_size: 64", "batch_size: [64, 32]"), "[64, 32]", "Couldn't parse integer: ["),
        (("batch_size: 64", "[easy.rec]: 64"), "[easy.rec]", "Expected identifier or number, got ["),
        (("batch_size: 64", "batch_size: 64 ]"), "]\n  input_type", "Expected identifier or number, got ]"),
        (("emb_size: 16\n    }", "emb_size: }"), "}\n    bottom_dnn", "Expected a value, got }"),
        (("hidden_units: 512", "hidden_units: [512, }"), "}\n      dropout", "Expected a value, got }"),
        (("hidden_units: 512", "hidden_units: [[512]]"), "[512]", "Expected a value, got ["),
        (("sync_replicas: true", "sync_replicas: yes"), "yes", 'Expected "true" or "false"'),
        (('rtp_separator: "|"', 'rtp_separator: "|'), '"|\n', "String missing ending quote"),
        (('rtp_separator: "|"', "rtp_separator: bar"), "bar", "Expected string but found: 'bar'"),
        (("input_type: GroupRTPInput", 'input_type: "GroupRTPInput"'), '"GroupRTPInput"', "no value named"),
        (("    auc {}\n", "    auc {} ece {}\n"), "ece", 'member of oneof "metric"'),
    ],
)
def test_syntax_errors_give_line_and_column(problem_lines, edit, piece, message):
    (line,) = problem_lines(edit)
    text = reference_config(edit)
    assert line.startswith(f"{position(text, piece)}: ")
    assert message in line


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data_config {\n  batch_size:", "2:14"),
        ('data_config {\n  label_fields: ["a",', "2:22"),
        ("data_config {\n", "2:1"),
        ("data_config", "1:12"),
        ("}", "1:1"),
        ("[", "1:1"),
    ],
)
def test_a_text_that_breaks_off(problem_lines, text, place):
    (line,) = problem_lines(text=text)
    assert line.startswith(f"{place}: ")


def test_every_missing_required_field_is_named(problem_lines):
    lines = problem_lines(
        ('  model_class: "E2E_MM_DBMTL"\n', ""),
        ("  input_type: GroupRTPInput\n", ""),
        ("      emb_size: 16\n", ""),
        ('input_name: "follow_num" ', ""),
    )
    assert sorted(lines) == sorted(
        f"{place}: is required and missing"
        for place in (
            "data_config.input_type",
            "data_config.input_fields[22].input_name",
            "model_config.model_class",
            "model_config.e2e_mm_dbmtl.highway_dnn.emb_size",
        )
    )


def test_an_empty_file_names_what_a_config_needs(problem_lines):
    places = ("model_dir", "data_config", "model_config")
    assert problem_lines(text="") == [f"{place}: is required and missing" for place in places]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, len(reference_config())), length=st.integers(1, 40), inserted=st.text(max_size=3))
def test_a_damaged_text_loads_or_is_refused_in_plain_words(tmp_path, start, length, inserted):
    text = reference_config()
    path = write_config(tmp_path, text[:start] + inserted + text[start + length :])
    try:
        load_pipeline(path)
    except UserError as error:
        assert str(error).startswith(path)  # noqa: PT017
