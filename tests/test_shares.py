"""Shares: the workers' batches are, one behind the other, those of a single worker with a batch as large."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from unittest import mock

import pytest
from source_helpers import WRITERS, input_of, random_groups, users, values_of

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.formats.table_readers import ParquetReader
from easyrec_mm.runs.checkpoint import Checkpoints
from easyrec_mm.training.position import DataPosition

NUM_GROUPS = 203
# Records and tables are shared by code of their own; formats of one sort differ in how they are parsed.
RECORDS, TABLE = "GroupRTPInput", "CSVInput"
OTHERS = sorted(set(WRITERS) - {RECORDS, TABLE})
PLAIN = (3, 5, {"shuffle": False, "num_skipped": 17})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each format's files, three of different lengths; groups 40 to 59 are bad."""
    folder = tmp_path_factory.mktemp("shares")
    groups = random_groups(NUM_GROUPS)
    for group in groups[40:60]:
        group["click"] = [5] * len(group["click"])
    for kind, write in WRITERS.items():
        (folder / kind).mkdir()
        for i, (first, last) in enumerate(((0, 90), (90, 91), (91, NUM_GROUPS))):
            write(folder / kind / f"part-{i}", groups[first:last])
    return folder


def read(kind, folder, worker, batch_size, num_skipped=0, **settings):
    """The batches of two epochs, and the counts of bad records."""
    records = BadRecords(None, 1.0)
    inputs = input_of(
        kind, folder / kind / "*", training=True, records=records, worker=worker, batch_size=batch_size,
        shuffle_buffer_size=50, **settings,
    )  # fmt: skip
    return list(inputs.batches(num_epochs=2, num_skipped=num_skipped)), records.counts


@pytest.mark.parametrize(
    ("kind", "num_workers", "size", "settings"),
    [
        *((kind, *PLAIN) for kind in OTHERS),
        *(
            (kind, *values)
            for kind in (RECORDS, TABLE)
            for values in (
                PLAIN,
                (2, 8, {"shuffle": True}),
                (4, 100, {"shuffle": True, "num_skipped": 3}),
                (2, 10, {"shuffle": True, "drop_remainder": True}),
            )
        ),
    ],
)
def test_each_group_is_read_by_one_worker_in_its_global_batch(folder, kind, num_workers, size, settings):
    whole, counts = read(kind, folder, (0, 1), num_workers * size, **settings)
    shares = [read(kind, folder, (worker, num_workers), size, **settings) for worker in range(num_workers)]
    for batch, *own in zip(whole, *(batches for batches, _ in shares), strict=True):
        together = values_of(own)
        assert {name: values for name, values in values_of([batch]).items() if values} == {
            name: values for name, values in together.items() if values
        }
        for name in ("num_groups", "epoch", "epochs_before", "epochs_done"):
            assert {getattr(share, name) for share in own} == {getattr(batch, name)}
    assert {name: sum(own[name] for _, own in shares) for name in counts} == counts


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shuffle"), [("GroupRTPInput", True), ("CSVInput", True), ("ParquetInput", False)])
def test_other_numbers_of_workers_read_the_rest_of_an_epoch(folder, tmp_path, kind, shuffle):
    """Each with the same batch size as before, so that the global batches differ; each sample is read once an epoch."""

    def inputs_of(worker, num_workers):
        return input_of(
            kind, folder / kind / "*", training=True, records=BadRecords(None, 1.0), worker=(worker, num_workers),
            batch_size=8, shuffle=shuffle, shuffle_buffer_size=50,
        )  # fmt: skip

    whole = Counter(users(inputs_of(0, 1).batches()))
    counts, path = Counter(), None
    for num_workers, num_batches in ((2, 3), (3, 2), (1, None)):
        checkpoint, path = path, None
        for worker in range(num_workers):
            inputs = inputs_of(worker, num_workers)
            position = DataPosition(inputs)
            assert checkpoint is None or position.restore(checkpoint)
            epoch, num_skipped = position.place
            for batch in islice(inputs.batches(1 - epoch, num_skipped), num_batches):
                counts.update(users([batch]))
                position.add(batch)
            path = path or Checkpoints(str(tmp_path)).save(num_workers, position.variables())
        assert (counts == whole) == (num_batches is None)


def test_every_global_batch_is_a_step_of_all_workers(folder):
    """A worker does not know whether others have samples."""
    for worker in range(2):
        batches, _ = read("GroupRTPInput", folder, (worker, 2), 5, shuffle=False)
        assert [batch.step for batch in batches] == list(range(len(batches)))
        assert min(batch.batch.num_samples for batch in batches) == 0


@pytest.mark.parametrize(("kind", "shuffle"), [*((kind, True) for kind in WRITERS), (RECORDS, False), (TABLE, False)])
def test_earlier_epochs_need_not_be_read(folder, kind, shuffle):
    """Batches of later epochs are the same whether earlier ones are read and left out, or not read."""
    inputs = input_of(
        kind, folder / kind / "*", training=True, records=BadRecords(None, 1.0), batch_size=16, shuffle_buffer_size=50,
        shuffle=shuffle,
    )  # fmt: skip

    def batches(first_epoch, num_skipped, num_epochs=3):
        return list(inputs.batches(num_epochs, num_skipped, first_epoch=first_epoch))

    size = sum(batch.num_groups for batch in batches(0, 0, num_epochs=1))
    for read in (size, size + 40, 3 * size - 5, 3 * size):
        expected, found = batches(0, read), batches(*divmod(read, size))
        assert values_of(found) == values_of(expected)
        for name in ("num_groups", "num_of_first_epoch", "epoch", "epochs_before", "epochs_done", "step"):
            assert [getattr(batch, name) for batch in found] == [getattr(batch, name) for batch in expected], name


@pytest.mark.parametrize("shuffle", [False, True])
def test_files_that_are_skipped_are_not_read(folder, shuffle):
    """If their number of groups is known and their order is that of the groups; the batches are the same."""

    def opened():
        return input_of(
            "GroupParquetInput", folder / "GroupParquetInput" / "*", training=True, records=BadRecords(None, 1.0),
            batch_size=1, shuffle=shuffle, shuffle_buffer_size=50,
        )  # fmt: skip

    whole = list(opened().batches(num_epochs=2))
    for num_skipped, num_files in ((0, 6), (89, 6), (90, 5), (91, 4), (95, 4), (NUM_GROUPS, 3), (NUM_GROUPS + 90, 3)):
        inputs = opened()
        with mock.patch.object(ParquetReader, "read", autospec=True, side_effect=ParquetReader.read) as read:
            rest = list(inputs.batches(2, num_skipped))
        assert values_of(rest) == values_of(whole[num_skipped:])
        assert [batch.epoch for batch in rest] == [batch.epoch for batch in whole[num_skipped:]]
        assert read.call_count == (6 if shuffle else num_files)


def test_the_size_of_an_epoch_is_known_once_one_is_over(folder):
    """Also if a batch is of several epochs."""
    for batch_size in (7, 50, NUM_GROUPS, 150, 500):
        inputs = input_of(
            "GroupRTPInput", folder / "GroupRTPInput" / "*", training=True, records=BadRecords(None, 1.0),
            batch_size=batch_size,
        )  # fmt: skip
        position = DataPosition(inputs)
        for batch in inputs.batches(num_epochs=3):
            position.add(batch)
            epoch, groups = position.place
            assert epoch * NUM_GROUPS + groups == position.groups_read
            assert (epoch == 0) == (position.groups_read < NUM_GROUPS), (batch_size, position.groups_read)
