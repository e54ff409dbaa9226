"""From files to batches: the order of groups, the position in it, and the files that are found."""

import os
from itertools import islice

import pytest
from text_input_helpers import flat, input_of, line, users, write

from easyrec_mm.errors import DataError
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.typed_groups import TextGroup

# Order. The user of a group of one sample says file and row.

LENGTHS = {"a": 5, "b": 0, "c": 1, "d": 7, "e": 2, "f": 4}
IN_ORDER = [f"{name}{row}" for name, length in LENGTHS.items() for row in range(1, length + 1)]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Files of different lengths, one empty, one compressed and not named so."""
    folder = tmp_path_factory.mktemp("several")
    for name, length in LENGTHS.items():
        write(folder / name, [line([f"{name}{row}"]) for row in range(1, length + 1)], compress=name == "d")
    return folder


@pytest.mark.parametrize("training", [False, True])
def test_without_shuffling_the_order_is_that_of_the_files(several, training):
    inputs = input_of(several / "*", training=training, shuffle=not training, batch_size=4)
    batches = list(inputs.batches(num_epochs=2))
    expected = IN_ORDER * 2
    assert users(batches) == [expected[i : i + 4] for i in range(0, len(expected), 4)]
    assert [batch.num_groups for batch in batches] == [4] * 9 + [2]
    # The epoch of a batch is that of its last group.
    assert [batch.epoch for batch in batches] == [0] * 4 + [1] * 6


def test_texts_are_given_with_their_file_and_row(several):
    texts = list(input_of(several / "*").source.texts())
    assert [f"{os.path.basename(file)}{row}" for file, row, _ in texts] == IN_ORDER
    for name, (_, _, group) in zip(IN_ORDER, texts, strict=True):
        values = {"click": ["0"], "seconds": ["0.5"], "user": [name], "age": ["0"], "weight": ["0.25"]}
        assert group == TextGroup(1, b"", values)


@pytest.fixture(scope="module")
def shuffled(several):
    return input_of(several / "*", training=True, shuffle=True, shuffle_buffer_size=6, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def three_epochs(shuffled):
    """Their 15 batches, of which the last is smaller."""
    return list(shuffled.batches(num_epochs=3))


def test_shuffling_is_a_permutation_in_each_epoch_and_differs_between_epochs(three_epochs):
    order = flat(users(three_epochs))
    epochs = [order[i : i + len(IN_ORDER)] for i in range(0, len(order), len(IN_ORDER))]
    assert [sorted(epoch) for epoch in epochs] == [IN_ORDER] * 3
    assert len({tuple(epoch) for epoch in [IN_ORDER, *epochs]}) == 4
    # Files are shuffled as well, not only the lines within the buffer.
    assert len({epoch[0][0] for epoch in epochs}) > 1


def test_shuffling_is_a_function_of_the_seed(several, shuffled, three_epochs):
    order = users(three_epochs)
    assert users(shuffled.batches(num_epochs=3)) == order

    def with_seed(seed):
        settings = {"shuffle_buffer_size": 6, "batch_size": 4, "seed": seed}
        return users(input_of(several / "*", training=True, shuffle=True, **settings).batches(num_epochs=3))

    assert with_seed(3) == order
    assert with_seed(4) != order


def test_one_epoch_and_no_end_begin_like_several(shuffled, three_epochs):
    order = users(three_epochs)
    first = users(shuffled.batches(num_epochs=1))
    assert flat(first) == flat(order)[: len(IN_ORDER)]
    assert users(islice(shuffled.batches(num_epochs=0), 14)) == order[:14]


@pytest.mark.parametrize(("num_epochs", "skips"), [(3, (1, 5, 14)), (0, (9,))])
def test_skipping_goes_on_as_if_it_had_never_stopped(shuffled, three_epochs, num_epochs, skips):
    whole = three_epochs if num_epochs else three_epochs[:14]  # without end the last one is no smaller
    for num_skipped in skips:
        rest = list(islice(shuffled.batches(num_epochs, 4 * num_skipped), len(whole) - num_skipped))
        assert users(rest) == users(whole[num_skipped:])
        assert [batch.epoch for batch in rest] == [batch.epoch for batch in whole[num_skipped:]]
    if num_epochs:
        assert list(shuffled.batches(num_epochs, 3 * len(IN_ORDER))) == []


def test_skipping_groups_that_do_not_fill_a_batch(shuffled, three_epochs):
    """As after a training of one epoch, the last batch of which was smaller."""
    rest = flat(users(shuffled.batches(3, len(IN_ORDER))))
    assert rest == flat(users(three_epochs))[len(IN_ORDER) :]


def test_drop_remainder_drops_the_last_smaller_batch_of_all_epochs(several):
    settings = {"drop_remainder": True, "shuffle": True, "batch_size": 4}
    training = input_of(several / "*", training=True, **settings)
    # 2 x 19 groups: the remainder is of both epochs together, and only it is dropped.
    batches = users(training.batches(num_epochs=2))
    assert [len(batch) for batch in batches] == [4] * 9
    assert users(training.batches(num_epochs=2, num_skipped=12)) == batches[3:]
    evaluation = input_of(several / "*", training=False, **settings)
    assert flat(users(evaluation.batches())) == IN_ORDER


def test_evaluation_has_its_own_batch_size(several):
    settings = {"batch_size": 4, "eval_batch_size": 7}
    assert input_of(several / "*", training=True, **settings).batch_size == 4
    evaluation = input_of(several / "*", **settings)
    assert evaluation.batch_size == 7
    assert [batch.num_groups for batch in evaluation.batches()] == [7, 7, 5]


def test_nothing_is_read_ahead_where_prefetch_size_is_0(several):
    assert flat(users(input_of(several / "*", prefetch_size=0, batch_size=2).batches())) == IN_ORDER


def test_the_fingerprint_changes_with_files_and_settings(tmp_path):
    first, second = (write(tmp_path / name, [line(["x"])]) for name in "ab")
    settings = {"batch_size": 4, "shuffle": True, "shuffle_buffer_size": 8, "seed": 1}

    def fingerprint(path, **changes):
        return input_of(path, training=True, **{**settings, **changes}).fingerprint()

    start = fingerprint(first)
    assert fingerprint(first) == start
    # These do not change the order of the groups.
    assert fingerprint(first, prefetch_size=9, num_parallel_calls=1, batch_size=5) == start
    changed = [
        fingerprint(second),
        fingerprint(f"{first},{second}"),
        fingerprint(f"{second},{first}"),
        *(
            fingerprint(first, **{name: value + 1})
            for name, value in settings.items()
            if name in ("seed", "shuffle_buffer_size")
        ),
        fingerprint(first, shuffle=False),
    ]
    write(first, [line(["xy"])])
    changed.append(fingerprint(first))
    assert len({start, *changed}) == len(changed) + 1


# Finding and reading files.


def test_globs_and_lists(several, tmp_path):
    def names(path):
        return [os.path.basename(file) for file in DataFiles(path, "train_input_path").names]

    assert names(f"{several}/*") == list("abcdef")
    assert names(f"{several}/[bd]") == ["b", "d"]
    # In the order given, each file once.
    assert names(f" {several}/e , {several}/[ac],,{several}/*") == list("eacbdf")


@pytest.mark.parametrize("path", ["", " ", ",", " , "])
def test_no_path(path):
    with pytest.raises(DataError, match=r"^eval_input_path: is not set; give the files to read$"):
        DataFiles(path, "eval_input_path")


@pytest.mark.parametrize("missing", ["missing", "none*", "no/folder/*"])
def test_a_path_that_matches_nothing(several, missing):
    path = f"{several}/{missing}"
    with pytest.raises(DataError) as caught:
        DataFiles(f"{several}/a,{path}", "train_input_path")
    assert str(caught.value) == f"train_input_path: '{path}' matches no file; check the path"


def test_a_folder(several):
    with pytest.raises(DataError) as caught:
        DataFiles(f"{several}/", "train_input_path")
    assert str(caught.value).endswith(f"is a folder; name its files, as in '{several}/*'")
    assert str(caught.value).startswith(f"train_input_path: '{several}")


def test_a_folder_among_the_files_of_a_glob(tmp_path):
    write(tmp_path / "a", [line(["x"])])
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match=r"train_input_path: '.*/inner' is a folder; name its files"):
        DataFiles(f"{tmp_path}/*", "train_input_path")


def test_a_storage_that_nobody_knows():
    with pytest.raises(DataError, match="train_input_path: 'storage://bucket/part' "):
        DataFiles("storage://bucket/part", "train_input_path")
