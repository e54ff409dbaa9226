"""Tasks divide the files: their batches are, one behind the other, those of a single task, from every format."""

from __future__ import annotations

import gzip
from functools import cache
from itertools import pairwise

import pytest
from source_helpers import WRITERS, input_of, random_groups, values_of

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.errors import DataError
from easyrec_mm.formats.pieces import TO_END, Piece, divide
from easyrec_mm.tasks import Task

NUM_GROUPS = 203
LIMITS = (0, 90, 91, NUM_GROUPS)
# Records and tables are divided by code of their own; formats of one sort differ in how they are parsed.
ONE_OF_EACH = ("GroupRTPInput", "CSVInput")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each format's files, three of different lengths; groups 40 to 59 are bad."""
    folder = tmp_path_factory.mktemp("tasks")
    groups = random_groups(NUM_GROUPS)
    for group in groups[40:60]:
        group["click"] = [5] * len(group["click"])
    for kind, write in WRITERS.items():
        (folder / kind).mkdir()
        for i, (first, last) in enumerate(pairwise(LIMITS)):
            write(folder / kind / f"part-{i}", groups[first:last])
    return folder


def read(kind, path, task, batch_size=8):
    """The values of each batch, the bad records, and their counts."""
    records = BadRecords(None, 1.0)
    inputs = input_of(kind, path, records=records, task=task, batch_size=batch_size)
    return [values_of([batch]) for batch in inputs.batches()], records


@pytest.fixture(scope="module")
def whole_of(folder):
    """What a single task reads of the files of a format."""
    return cache(lambda kind: read(kind, folder / kind / "*", Task(0, 1)))


@pytest.mark.parametrize(("kind", "num"), [*((kind, 5) for kind in WRITERS), *((kind, 300) for kind in ONE_OF_EACH)])
def test_each_batch_is_read_by_one_task(folder, whole_of, kind, num):
    whole, records = whole_of(kind)
    # More tasks than batches: some are as good as the others.
    tasks = [read(kind, folder / kind / "*", Task(i, num)) for i in (range(num) if num < 100 else (0, 1, 150, 299))]
    if num < 100:
        assert [batch for batches, _ in tasks for batch in batches] == whole
        counts = [own.counts for _, own in tasks]
        assert {name: sum(own[name] for own in counts) for name in records.counts} == records.counts
        shown = [bad for _, own in tasks for bad in own.shown["group"]]
        assert shown[:10] == records.shown["group"]
        sizes = [len(batches) for batches, _ in tasks]
        assert max(sizes) - min(sizes) <= 1
    else:
        assert max(len(batches) for batches, _ in tasks) == 1
        assert min(len(batches) for batches, _ in tasks) == 0


@pytest.mark.parametrize("kind", WRITERS)
def test_a_single_task_reads_what_a_process_without_tasks_reads(folder, whole_of, kind):
    parts, records = whole_of(kind)
    whole, without = read(kind, folder / kind / "*", None)
    together = {name: [value for batch in parts for value in batch[name]] for name in parts[0]}
    assert together == {name: [value for batch in whole for value in batch[name]] for name in whole[0]}
    assert records.counts == without.counts
    assert records.shown == without.shown


def test_batches_end_with_files(folder):
    batches, _ = read("GroupRTPInput", folder / "GroupRTPInput" / "*", Task(0, 1), 50)
    sizes = [len(group["click"]) if not 40 <= i < 60 else 0 for i, group in enumerate(random_groups(NUM_GROUPS))]
    limits = [0, 50, 90, 91, 141, 191, NUM_GROUPS]
    expected = [sum(sizes[first:last]) for first, last in pairwise(limits)]
    assert [len(batch["user"]) for batch in batches] == expected


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_many_files_are_read_by_one_task_each(tmp_path, kind):
    groups = random_groups(200)
    for i in range(50):
        WRITERS[kind](tmp_path / f"part-{i:02d}", groups[4 * i : 4 * i + 4])
    whole, _ = read(kind, tmp_path / "*", Task(0, 1))
    inputs = [input_of(kind, tmp_path / "*", task=Task(i, 3), batch_size=8) for i in range(3)]
    assert [file for own in inputs for file in own.files_read()] == list(range(50))
    assert all(14 <= len(own.files_read()) <= 19 for own in inputs)
    assert [values_of([batch]) for own in inputs for batch in own.batches()] == whole


def test_each_file_is_divided_once():
    """Of all sizes, against a plain list of batches."""
    for counts in ([5], [0, 0, 7], [10, 1, 0, 23, 16], [3] * 40, [1000, *[1] * 30]):
        for num in (1, 2, 3, 8, 50):
            pieces = [divide(counts, lambda files, c=counts: c[files[0]], Task(i, num), 4) for i in range(num)]
            groups = [
                (piece.file, row)
                for own in pieces
                for piece in own
                for row in range(piece.first, counts[piece.file] if piece.end == TO_END else piece.end)
            ]
            assert groups == [(file, row) for file, count in enumerate(counts) for row in range(count)]
            assert all(piece.first % 4 == 0 for own in pieces for piece in own)


def test_many_files_are_not_counted():
    def count(files):
        raise AssertionError

    owners = [divide([10] * 80, count, Task(i, 5), 4) for i in range(5)]
    assert owners == [[Piece(file) for file in range(16 * i, 16 * i + 16)] for i in range(5)]


def test_a_truncated_file_is_found_by_the_task_that_reads_it(tmp_path):
    groups = random_groups(320)
    for i in range(40):
        WRITERS["GroupRTPInput"](tmp_path / "plain", groups[8 * i : 8 * i + 8])
        content = gzip.compress((tmp_path / "plain").read_bytes())
        (tmp_path / f"part-{i:02d}.gz").write_bytes(content[:-8] if i == 30 else content)
    sound, broken = (input_of("GroupRTPInput", tmp_path / "part*", task=Task(i, 2)) for i in range(2))
    assert len(list(sound.batches())) > 10
    with pytest.raises(DataError, match=r"part-30\.gz: cannot be read to its end"):
        list(broken.batches())
