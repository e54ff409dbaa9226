"""Workers with files of their own (data_config.file_shard): each group is read once an epoch, in equally many steps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_helpers import WRITERS, input_of, random_groups, users, users_of, values_of
from thread_replicas import results_of_replicas

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.divided_epoch import DividedEpoch
from easyrec_mm.errors import ConfigError, DataError
from easyrec_mm.formats.own_files import own_files
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.training.position import DataPosition

# Number of groups of each file.
SIZES = (90, 1, 60, 30, 22)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each format's files; groups 40 to 44 are bad."""
    folder = tmp_path_factory.mktemp("files")
    groups = random_groups(sum(SIZES), missing=0)
    for group in groups[40:45]:
        group["click"] = [5] * len(group["click"])
    for kind, write in WRITERS.items():
        (folder / kind).mkdir()
        for i, size in enumerate(SIZES):
            first = sum(SIZES[:i])
            write(folder / kind / f"part-{i}", groups[first : first + size])
    return folder


def input_with(kind, path, worker, exchange=None, **own):
    values = {"file_shard": True, "batch_size": 8, "shuffle_buffer_size": 50, **own}
    records = BadRecords(None, 1.0)
    return input_of(kind, path, training=True, records=records, worker=worker, exchange=exchange, **values)


def inputs_of(kind, path, num, **own):
    """The inputs of all workers."""
    return results_of_replicas(
        num, lambda replicas: input_with(kind, path, (replicas.number, replicas.num), replicas.texts, **own)
    )


def facts(batch):
    return batch.num_groups, batch.num_of_first_epoch, batch.epoch, batch.epochs_before, batch.epochs_done, batch.step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "num", "own"),
    [
        *((kind, 2, {"shuffle": True}) for kind in ("GroupRTPInput", "GroupTFRecordInput", "CSVInput")),
        ("GroupRTPInput", 3, {"shuffle": False, "batch_size": 100}),
        ("CSVInput", 2, {"shuffle": False, "drop_remainder": True}),
    ],
)
def test_each_worker_reads_its_files_as_one_process_would(folder, kind, num, own):
    """Its batches of an epoch are those of a process that has only these files; behind them come empty ones."""
    inputs = inputs_of(kind, folder / kind / "*", num, **own)
    read = [file for each in inputs for file in each.files_read()]
    assert sorted(read) == list(range(len(SIZES)))
    of_workers = [list(each.batches(num_epochs=2)) for each in inputs]
    of_processes = []
    for each in inputs:
        single = input_with(kind, ",".join(each.source.files[i] for i in each.files_read()), (0, 1), **own)
        of_processes.append([list(single.batches(epoch + 1, 0, first_epoch=epoch)) for epoch in range(2)])
    num_batches = max(len(epochs[0]) for epochs in of_processes)
    for of_worker, of_process in zip(of_workers, of_processes, strict=True):
        assert [facts(batch) for batch in of_worker] == [facts(batch) for batch in of_workers[0]]
        assert [batch.step for batch in of_worker] == list(range(2 * num_batches))
        for epoch, expected in enumerate(of_process):
            batches = of_worker[epoch * num_batches :][:num_batches]
            for batch, of_one in zip(batches, expected, strict=False):
                assert values_of([batch]) == values_of([of_one])
            assert {batch.batch.num_samples for batch in batches[len(expected) :]} <= {0}
            assert sum(batch.num_groups for batch in batches) == inputs[0].own_files.epoch.total
            assert [batch.epochs_done - batch.epochs_before for batch in batches] == [0] * (num_batches - 1) + [1]
    if "drop_remainder" not in own:
        groups = random_groups(sum(SIZES), missing=0)
        for epoch in range(2):
            read = users([batch for batches in of_workers for batch in batches if batch.epoch == epoch])
            assert Counter(read) == Counter(users_of(groups[:40] + groups[45:]))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "own"), [("GroupRTPInput", {}), ("ParquetInput", {"drop_remainder": True})])
def test_a_training_goes_on_at_each_place(folder, kind, own):
    inputs = inputs_of(kind, folder / kind / "*", 2, **own)
    whole = [list(each.batches(num_epochs=2)) for each in inputs]
    (num_steps,) = {len(batches) for batches in whole}
    position, step = DataPosition(inputs[0]), 0
    # In an epoch, in its end where one worker has nothing left, between two epochs, and in the second one.
    for until in (3, num_steps // 2 - 1, num_steps // 2, num_steps // 2 + 2):
        for batch in whole[0][step:until]:
            position.add(batch)
        step = until
        epoch, num_read = position.place
        for each, batches in zip(inputs, whole, strict=True):
            rest = list(each.batches(2, num_read, step, epoch))
            assert [facts(batch) for batch in rest] == [facts(batch) for batch in batches[step:]]
            assert values_of(rest) == values_of(batches[step:])
        assert inputs[0].num_batches(2 * inputs[0].own_files.epoch.total - position.groups_read) == num_steps - step
    assert min(batches[num_steps // 2 - 1].batch.num_samples for batches in whole) == 0


@pytest.mark.slow
def test_a_training_goes_on_with_another_batch_size(folder):
    """Each sample is read once in the epoch under way, too."""
    path = folder / "GroupRTPInput" / "*"
    first = [list(each.batches())[:4] for each in inputs_of("GroupRTPInput", path, 3, batch_size=8)]
    num_read = sum(batch.num_groups for batch in first[0])
    inputs = inputs_of("GroupRTPInput", path, 3, batch_size=5)
    rest = [list(each.batches(1, num_read, 4)) for each in inputs]
    assert len({len(batches) for batches in rest}) == 1
    assert len(rest[0]) == inputs[0].num_batches(sum(SIZES) - num_read)
    assert num_read + sum(batch.num_groups for batch in rest[0]) == sum(SIZES)
    whole = list(input_with("GroupRTPInput", path, (0, 1)).batches())
    parts = [batch for batches in (*first, *rest) for batch in batches]
    assert Counter(users(parts)) == Counter(users(whole))


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    st.integers(1, 9),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_sizes_of_a_divided_epoch(num_groups, batch_size, drops_remainder):
    """By the groups of each worker themselves."""
    epoch = DividedEpoch(num_groups, batch_size, drops_remainder)
    for place in range(max(num_groups)):
        num_read = sum(len(range(number)[:place]) for number in num_groups)
        assert epoch.num_read(place) == num_read
        assert epoch.place(num_read) == place
        batches = [
            [range(number)[place:][i : i + batch_size] for i in range(0, max(num_groups) - place, batch_size)]
            for number in num_groups
        ]
        if not drops_remainder:
            sizes = [sum(map(len, batch)) for batch in zip(*batches, strict=True)]
            assert list(epoch.sizes_of_batches(place)) == sizes
        elif place or epoch.num_batches():
            fullest = max(sum(len(batch) == batch_size for batch in of_worker) for of_worker in batches)
            assert len(list(epoch.sizes_of_batches(place))) == max(fullest, min(place, 1))
            assert sum(epoch.sizes_of_batches(place)) == epoch.total - num_read
        if num_read:
            left = epoch.num_batches(place) + 2 * epoch.num_batches()
            assert epoch.num_batches_of(3 * epoch.total - num_read) == left


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=40), st.integers(1, 8))
def test_files_are_divided_evenly(sizes, num_workers):
    if sum(size > 0 for size in sizes) < num_workers:
        with pytest.raises(DataError):
            own_files(sizes, 0, num_workers, "train_input_path")
        return
    parts = [own_files(sizes, worker, num_workers, "train_input_path") for worker in range(num_workers)]
    assert sorted(file for part in parts for file in part) == list(range(len(sizes)))
    loads = [sum(sizes[file] for file in part) for part in parts]
    assert min(loads) > 0
    # A worker got its last file when all others had at least as much as it had before.
    for part, load in zip(parts, loads, strict=True):
        assert load - min(filter(None, (sizes[file] for file in part))) <= min(loads)


def test_fewer_files_than_workers(folder, tmp_path):
    path = folder / "CSVInput" / "part-[0-2]"
    with pytest.raises(
        DataError, match=r"^train_input_path: 3 files with data for 4 workers, .+ write at least 4 files"
    ):
        inputs_of("CSVInput", path, 4)
    with pytest.raises(DataError, match=r"drop_remainder: no batch is full: a worker has at most \d+ groups"):
        inputs_of("GroupRTPInput", folder / "GroupRTPInput" / "*", 4, batch_size=100, drop_remainder=True)


def test_one_process_reads_all_files(folder):
    path = folder / "GroupRTPInput" / "*"
    with_it, without = (input_with("GroupRTPInput", path, (0, 1), file_shard=value) for value in (True, False))
    assert values_of(with_it.batches(2)) == values_of(without.batches(2))
    assert with_it.fingerprint() == without.fingerprint()


@pytest.fixture
def checkpoint_of(folder, tmp_path):
    """Writes the position of a training behind some of its steps."""

    def written(kind, steps, inputs):
        position = DataPosition(inputs)
        for batch in list(inputs.batches(num_epochs=2))[:steps]:
            position.add(batch)
        return Checkpoints(str(tmp_path)).save(steps, position.variables())

    return written


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["GroupRTPInput", "ParquetInput"])
def test_another_division_waits_for_the_end_of_an_epoch(folder, checkpoint_of, kind):
    path = folder / kind / "*"
    of_three = inputs_of(kind, path, 3)[0]
    of_two = inputs_of(kind, path, 2)[0]
    shares = input_with(kind, path, (0, 3), file_shard=False)
    num_steps = len(list(of_three.batches()))
    within, at_end = (checkpoint_of(kind, steps, of_three) for steps in (num_steps + 2, num_steps))
    for other, described in ((of_two, "2 workers, each with"), (shares, "workers without")):
        position = DataPosition(other)
        with pytest.raises(ConfigError) as error:
            position.restore(within)
        assert f"is of 3 workers, each with files of its own, within epoch 1, and this training of {described}" in str(
            error.value
        )
        position = DataPosition(other)
        assert position.restore(at_end)
        assert position.place == (1, 0)
        size = other.own_files.epoch.total if other.own_files else of_three.own_files.epoch.total
        assert position.groups_read == size
    with pytest.raises(ConfigError, match=r"is of workers without files of their own, within epoch 0, .* of 3 workers"):
        DataPosition(of_three).restore(checkpoint_of(kind, 2, shares))
