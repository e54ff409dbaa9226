"""Names of EasyRec's language that are not supported are all told, and skipped where that is wanted."""

import pytest
from config_helpers import position
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto
from reference import HARMLESS_EDITS

from easyrec_mm.config.text import parse_config
from easyrec_mm.errors import ConfigError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig

# What changes nothing here whatever its value is: it is left out with a note in any case.
HARMLESS = {
    "shard", "selected_col_types", "pai_worker_queue", "pai_worker_slice_num", "chief_redundant",
    "max_partitions", "embedding_on_cpu", "tf_summary", "loss_name", "max_evals", "save_graph", "exports_to_keep",
    "placeholder_named_by_input", "filter_inputs", "sparse_accumulator_type", "startup_delay_steps", "is_profiling",
    "protocol", "inter_op_parallelism_threads", "separate_save",
    "intra_op_parallelism_threads", "tensor_fuse", "model_name",
}  # fmt: skip


ADVICE = {
    "PSStrategy": "train_config.shard_tables_from_rows divides tables among workers that train in step, with "
    "MultiWorkerMirroredStrategy; ",
}


def reserved_names(proto, descriptor):
    descriptor.CopyToProto(proto)
    return list(proto.reserved_name)


def unsupported_fields(descriptor=EasyRecConfig.DESCRIPTOR, place="", indent="", seen=None):
    """Lines of a config that sets every unsupported field of every message: (line, config path or None)."""
    seen = {EasyRecConfig.DESCRIPTOR.full_name} if seen is None else seen
    values = ['"text"', "{ a: 1 b { c: [1, 2] } }", "[1, 2]", "NAME", "-1.5e3", '< a: "b" "c" >']
    names = [name for name in reserved_names(DescriptorProto(), descriptor) if name not in HARMLESS]
    lines = [(f"{indent}{name}: {values[i % len(values)]}", f"{place}{name}") for i, name in enumerate(names)]
    for field in descriptor.fields:
        if field.message_type and field.message_type.full_name not in seen:
            seen.add(field.message_type.full_name)
            inner_place = f"{place}{field.name}{'[0]' * field.is_repeated}."
            inner = unsupported_fields(field.message_type, inner_place, indent + "  ", seen)
            if inner:
                lines += [(f"{indent}{field.name} {{", None), *inner, (f"{indent}}}", None)]
    return lines


def unsupported_enum_values(descriptor=EasyRecConfig.DESCRIPTOR, parents=(), seen=None):
    """(text of a config, config path, value, the values that are supported) for each of them."""
    seen = {EasyRecConfig.DESCRIPTOR.full_name} if seen is None else seen
    for field in descriptor.fields:
        part = field.message_type or field.enum_type
        if part is None or part.full_name in seen:
            continue
        seen.add(part.full_name)
        path = (*parents, field)
        if field.message_type:
            yield from unsupported_enum_values(field.message_type, path, seen)
            continue
        place = ".".join(f"{f.name}{'[0]' * f.is_repeated}" for f in path)
        opening, closing = "".join(f"{parent.name} {{ " for parent in parents), " }" * len(parents)
        for value in reserved_names(EnumDescriptorProto(), field.enum_type):
            yield f"{opening}{field.name}: {value}{closing}", place, value, list(field.enum_type.values_by_name)


UNSUPPORTED_FIELDS = unsupported_fields()
UNSUPPORTED_VALUES = list(unsupported_enum_values())


def test_every_unsupported_field_is_named_all_in_one_error():
    text = "\n".join(line for line, _ in UNSUPPORTED_FIELDS)
    expected = [
        f"x.config:{number}:{len(line) - len(line.lstrip()) + 1}: {place}: not supported"
        for number, (line, place) in enumerate(UNSUPPORTED_FIELDS, start=1)
        if place
    ]
    places = [place for _, place in UNSUPPORTED_FIELDS]
    assert {
        "fg_json_path",
        "data_config.input_fields[0].input_dim",
        "feature_config.features[0].shared_names",
        "model_config.e2e_mm_dbmtl.task_towers[0].losses[0].binary_focal_loss.label_smoothing",
        "model_config.e2e_mm_dbmtl.task_towers[0].metrics_set[0].max_f1",
        "train_config.optimizer_config[0].rms_prop_optimizer.learning_rate.transformer_learning_rate",
        "eval_config.eval_online",
    } < set(places)
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.config")
    *lines, summary = str(caught.value).split("\n")
    assert lines == expected
    assert summary == (
        f"{len(expected)} setting(s) of EasyRec's language that easyrec_mm does not support: remove them, or skip the "
        "fields with --ignore_unsupported"
    )
    config, notes = parse_config(text, "x.config", ignore_unsupported=True)
    assert notes == [f"skipped: {line}" for line in expected]
    # Blocks in which nothing else was set are gone, too.
    left = "feature_config {} train_config { optimizer_config { rms_prop_optimizer {} } }"
    assert config == text_format.Parse(left, EasyRecConfig())


@pytest.mark.parametrize(
    ("text", "place", "value", "choices"), UNSUPPORTED_VALUES, ids=[c[2] for c in UNSUPPORTED_VALUES]
)
@pytest.mark.parametrize("ignore_unsupported", [False, True])
def test_an_unsupported_enum_value_is_never_skipped(text, place, value, choices, ignore_unsupported):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.config", ignore_unsupported)
    assert str(caught.value).split("\n") == [
        f"x.config:{position(text, value)}: {place}: {value} is not supported; {ADVICE.get(value, '')}choose one of "
        + ", ".join(choices),
        "1 setting(s) of EasyRec's language that easyrec_mm does not support: remove them",
    ]


def test_all_enums_with_unsupported_values_are_met():
    fields = {place.split(".")[-1] for _, place, _, _ in UNSUPPORTED_VALUES}
    assert fields == {"input_type", "feature_type", "loss_type", "train_distribute"}


def test_skipped_fields_leave_a_config_that_loads(load, problem_lines):
    edits = [
        ("  batch_size: 64", "  ignore_error: true batch_size: 64"),
        ("  model_class:", '  restore_filters: "first" model_class:'),
        ("  num_steps: 2000", '  dead_line: "20260101 00:00:00"\n  num_steps: 2000'),
    ]
    assert len(problem_lines(*edits)) == 4
    pipeline = load(*edits, ignore_unsupported=True)
    assert pipeline.config == load().config
    assert [note.split(": ")[2] for note in pipeline.notes[:3]] == [
        "train_config.dead_line",
        "data_config.ignore_error",
        "model_config.restore_filters",
    ]
    assert all(note.startswith("skipped: ") for note in pipeline.notes[:3])


def test_settings_that_change_nothing_are_notes(load):
    pipeline = load(*HARMLESS_EDITS)
    known = ["train_config.sync_replicas", "export_config.multi_placeholder"]
    without = load(overrides=[*(f"{name}=false" for name in known), "train_config.num_gpus_per_worker=2"])
    assert pipeline.config == without.config
    assert pipeline.schema == load().schema
    left_out = [note for note in pipeline.notes if note not in load().notes]
    assert len(left_out) == 18
    assert all("has no effect here" in note for note in left_out)
    assert "train_config.sync_replicas: false has no effect here, because workers always train in step" in left_out


@pytest.mark.parametrize(
    "edit",
    [
        ("  batch_size: 64", "  batch_size: 64 auto_expand_input_fields: true"),
        ('input_name: "like"', 'input_name: "like" input_dim: 2'),
        ('input_names: "city"', 'input_names: "city" use_embedding_variable: true'),
        ("export_config {", "export_config { batch_size: 16"),
        ('input_names: "city"', 'input_names: "city" width: 224'),
        ("  model_class:", "  use_embedding_variable: true model_class:"),
    ],
)
def test_another_value_of_such_a_setting_is_not_supported(problem_lines, edit):
    first, summary = problem_lines(edit)
    assert first.endswith(": not supported")
    assert "--ignore_unsupported" in summary


def test_a_metric_that_is_skipped_takes_its_block_away(load):
    with_metrics = load(
        ("    auc {}\n  }", "    auc {}\n  }\n  metrics_set { max_f1 {} }\n  metrics_set { recall {} }"),
        ignore_unsupported=True,
    )
    assert with_metrics.config == load().config
    assert [note.split(": ")[2] for note in with_metrics.notes[:2]] == [
        "eval_config.metrics_set[1].max_f1",
        "eval_config.metrics_set[2].recall",
    ]


def test_settings_of_the_command_line_are_skipped_and_noted_as_those_of_the_file(load, problem_lines):
    settings = ["train_config.dead_line=20260101 00:00:00", "train_config.tensor_fuse=false"]
    first, summary = problem_lines(overrides=settings)
    assert first == "--set train_config.dead_line=20260101 00:00:00: dead_line is not supported"
    assert summary.endswith("or skip the fields with --ignore_unsupported")
    pipeline = load(overrides=settings, ignore_unsupported=True)
    assert pipeline.config == load().config
    assert [note for note in pipeline.notes if "--set" in note] == [
        f"skipped: --set {settings[0]}: dead_line is not supported",
        f"--set {settings[1]}: tensor_fuse has no effect here",
    ]


def test_an_unsupported_value_beside_an_unsupported_field_names_what_stays_wrong(problem_lines):
    edits = [("input_type: GroupRTPInput", "input_type: OdpsRTPInput\n  ignore_error: true")]
    assert len(problem_lines(*edits)) == 3
    lines = problem_lines(*edits, ignore_unsupported=True)
    assert len(lines) == 2
    assert "OdpsRTPInput is not supported; choose one of GroupRTPInput" in lines[0]
    assert lines[1].endswith("does not support: remove them")
