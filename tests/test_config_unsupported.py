"""Names of EasyRec's language that are not supported are all told, and skipped where that is wanted."""

import pytest
from config_helpers import position
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto

from easyrec_mm.config.text import parse_config
from easyrec_mm.errors import ConfigError
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig


def reserved_names(proto, descriptor):
    descriptor.CopyToProto(proto)
    return list(proto.reserved_name)


def unsupported_fields(descriptor=EasyRecConfig.DESCRIPTOR, place="", indent="", seen=None):
    """Lines of a config that sets every unsupported field of every message: (line, config path or None)."""
    seen = {EasyRecConfig.DESCRIPTOR.full_name} if seen is None else seen
    values = ['"text"', "{ a: 1 b { c: [1, 2] } }", "[1, 2]", "NAME", "-1.5e3", '< a: "b" "c" >']
    lines = [
        (f"{indent}{name}: {values[i % len(values)]}", f"{place}{name}")
        for i, name in enumerate(reserved_names(DescriptorProto(), descriptor))
    ]
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
    supported = "\n".join(line for line, place in UNSUPPORTED_FIELDS if place is None)
    assert config == text_format.Parse(supported, EasyRecConfig())


@pytest.mark.parametrize(
    ("text", "place", "value", "choices"), UNSUPPORTED_VALUES, ids=[c[2] for c in UNSUPPORTED_VALUES]
)
@pytest.mark.parametrize("ignore_unsupported", [False, True])
def test_an_unsupported_enum_value_is_never_skipped(text, place, value, choices, ignore_unsupported):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "x.config", ignore_unsupported)
    assert str(caught.value).split("\n") == [
        f"x.config:{position(text, value)}: {place}: {value} is not supported; choose one of {', '.join(choices)}",
        "1 setting(s) of EasyRec's language that easyrec_mm does not support: remove them",
    ]


def test_all_enums_with_unsupported_values_are_met():
    fields = {place.split(".")[-1] for _, place, _, _ in UNSUPPORTED_VALUES}
    assert fields == {"input_type", "feature_type", "loss_type", "train_distribute"}


def test_skipped_fields_leave_a_config_that_loads(load, problem_lines):
    edits = [
        ("  batch_size: 64", "  file_shard: true batch_size: 64"),
        ("  model_class:", '  model_name: "first" model_class:'),
        ("  num_steps: 2000", "  num_gpus_per_worker: 2\n  num_steps: 2000"),
    ]
    assert len(problem_lines(*edits)) == 4
    pipeline = load(*edits, ignore_unsupported=True)
    assert pipeline.config == load().config
    assert [note.split(": ")[2] for note in pipeline.notes[:3]] == [
        "train_config.num_gpus_per_worker",
        "data_config.file_shard",
        "model_config.model_name",
    ]
    assert all(note.startswith("skipped: ") for note in pipeline.notes[:3])


def test_an_unsupported_value_beside_an_unsupported_field_names_what_stays_wrong(problem_lines):
    edits = [("input_type: GroupRTPInput", "input_type: OdpsRTPInput\n  file_shard: true")]
    assert len(problem_lines(*edits)) == 3
    lines = problem_lines(*edits, ignore_unsupported=True)
    assert len(lines) == 2
    assert "OdpsRTPInput is not supported; choose one of GroupRTPInput" in lines[0]
    assert lines[1].endswith("does not support: remove them")
