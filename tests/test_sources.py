"""Every input type: the same groups make the same batches, in order or shuffled, with texts as they stand."""

from dataclasses import replace
from itertools import islice, pairwise

import pytest
from feature_helpers import id_feature, id_sequence, raw_sequence
from source_helpers import (
    DEFAULTS,
    FLAT,
    GROUPED,
    SCHEMA,
    WRITERS,
    change,
    expected_values,
    flat_rows,
    input_of,
    random_groups,
    refused,
    users,
    users_of,
    values_of,
    whole,
)

from easyrec_mm.schema import NO_IMAGE, Attention


@pytest.fixture(scope="module")
def groups():
    return random_groups(600)


@pytest.fixture(scope="module")
def folder(groups, tmp_path_factory):
    """Each format's files: three, of different lengths."""
    folder = tmp_path_factory.mktemp("sources")
    for kind, write in WRITERS.items():
        (folder / kind).mkdir()
        for i, (first, last) in enumerate(((0, 90), (90, 91), (91, 600))):
            write(folder / kind / f"part-{i}", groups[first:last])
    return folder


@pytest.mark.parametrize("kind", ["GroupParquetInput", "ParquetInput"])
def test_texts_may_hold_any_character(tmp_path, kind):
    groups = random_groups(30, missing=0)
    strange = ["a\x1fb", "\x1f", "\x1f\x1f", "", "\0", "c\0", "\n", "\x1e\x1f", "  ", "|"]
    for i, group in enumerate(groups):
        group["user"] = [strange[(i + k) % len(strange)] for k in range(len(group["user"]))]
    WRITERS[kind](tmp_path / "data", groups)
    expected = [user or DEFAULTS["user"] for group in groups for user in group["user"]]
    assert users(input_of(kind, tmp_path / "data").batches()) == expected


@pytest.mark.parametrize("kind", WRITERS)
def test_every_input_gives_the_samples_in_order(kind, folder, groups):
    inputs = input_of(kind, folder / kind / "*", batch_size=7)
    next(inputs.batches())  # what is begun and left changes nothing
    batches = list(inputs.batches())
    columns = values_of(batches)
    assert values_of(inputs.batches()) == columns
    for name, values in expected_values(groups).items():
        assert columns[name] == values, name
    in_files = len(groups) if kind in GROUPED else len(columns["user"])
    assert (
        sum(batch.num_groups for batch in batches) == in_files == inputs.source.count(range(len(inputs.source.files)))
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_every_input_goes_without_a_field_of_pictures(kind, folder, groups):
    layout = replace(SCHEMA.layout, image_column=-1)
    blind = replace(SCHEMA, image=NO_IMAGE, layout=layout)
    source = input_of(kind, folder / kind / "*", schema=blind, kept_fields=("user",), batch_size=16)
    columns = values_of(source.batches())
    for name, values in expected_values(groups).items():
        assert name == "img_path" or columns[name] == values, name
    assert {group.image for _, _, group in islice(source.source.texts(), 5)} == {b""}
    trained = input_of(kind, folder / kind / "*", training=True, schema=blind, kept_fields=("user",), batch_size=16)
    assert sorted(users(trained.batches(1))) == sorted(value.decode() for value in expected_values(groups)["user"])


@pytest.mark.parametrize("kind", WRITERS)
def test_texts_are_what_stands_in_the_files(kind, folder, groups):
    entries = list(islice(input_of(kind, folder / kind / "*").source.texts(), 120))
    assert [row for _, row, _ in entries[:90]] == list(range(1, 91)) if kind in GROUPED else True
    texts = [group.values for _, _, group in entries]
    read = {name: [v for group in texts for v in group[name]] for name in ("user", "click", "tags")}
    rows = flat_rows(groups)[: len(read["user"])]
    # A TFRecord cannot say that a value is missing.
    nobody = "nobody" if kind == "GroupTFRecordInput" else ""
    assert read["user"] == [nobody if row["user"] is None else row["user"] for row in rows]
    assert read["tags"] == [row["tags"] for row in rows]
    assert [float(click) for click in read["click"]] == [row["click"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_shuffling_is_a_permutation_and_a_function_of_the_seed(kind, folder, groups):
    def epochs(num_skipped=0, **settings):
        inputs = input_of(kind, folder / kind / "*", training=True, shuffle_buffer_size=50, batch_size=16, **settings)
        return list(inputs.batches(num_epochs=2, num_skipped=num_skipped))

    batches = epochs(seed=1)
    order = users(batches)
    half = len(order) // 2
    in_file_order = [user.decode() for user in expected_values(groups)["user"]]
    assert sorted(order[:half]) == sorted(order[half:]) == sorted(in_file_order)
    assert order[:half] != order[half:] != in_file_order
    assert users(epochs(seed=1)) == order
    assert users(epochs(seed=2)) != order
    begun = len(batches) // 3
    rest = epochs(num_skipped=16 * begun, seed=1)
    assert users(rest) == users(batches[begun:])
    assert [batch.epoch for batch in rest] == [batch.epoch for batch in batches[begun:]]


@pytest.mark.parametrize("kind", FLAT)
def test_samples_of_one_picture_come_side_by_side_when_training(kind, folder):
    def runs(training):
        inputs = input_of(kind, folder / kind / "*", training=training, shuffle_buffer_size=10_000)
        pictures = [path for batch in inputs.batches() for path in batch.kept_fields["img_path"].numpy()]
        return 1 + sum(a != b for a, b in pairwise(pictures)), len(set(pictures))

    num_runs, num_pictures = runs(training=True)
    assert num_runs == num_pictures == 7
    assert runs(training=False)[0] > 100


# Sequences.

SEQUENCES = replace(
    SCHEMA,
    features=(
        id_feature("user", ("user",), 4, "user", "hash", 1000),
        id_sequence("tags", ("tags",), 3, "tags", "hash", 100, separator="|"),
        raw_sequence("scores", ("scores",), 1, separator="|"),
        raw_sequence("pairs", ("scores",), 2, separator="|", dim=2, number_separator="."),
    ),
    attentions=(Attention("din", ("user",), ("tags", "scores"), 4, True),),
)


@pytest.mark.parametrize("kind", WRITERS)
def test_sequences_of_numbers_and_vectors_in_batches_cut_anywhere(kind, folder, groups):
    columns = values_of(input_of(kind, folder / kind / "*", schema=SEQUENCES, batch_size=7).batches())
    texts = [row["scores"].split("|") if row["scores"] else [] for row in flat_rows(groups)]
    assert columns["scores"] == [[[float(text)] for text in sample] for sample in texts]
    assert columns["pairs"] == [[[float(part) for part in text.split(".")] for text in sample] for sample in texts]


@pytest.mark.parametrize("kind", WRITERS)
def test_sequences_that_are_attended_to_together_have_one_length(kind, tmp_path):
    groups = change(random_groups(20, seed=1), 12, **whole({"img_path": "p"}))
    bad_group = change(groups, 12, tags=["a", "a|b|c", "|"], scores=["1.0", "1.0||2.5", ""])
    WRITERS[kind](tmp_path / "a", bad_group)
    ((_, where, problem),), left = refused(kind, tmp_path / "a", schema=SEQUENCES)
    assert "tags" in where + problem
    assert "3" in problem
    assert "scores" in problem
    bad_users = ["a", "b", "c"] if kind in GROUPED else ["b"]
    assert left == [user for user in users_of(groups) if user not in bad_users]
