"""Bad records by themselves: how many are allowed, remembered, shown and written."""

import pytest
from text_input_helpers import read_records, record

from easyrec_mm.data import bad_records as bad_records_module
from easyrec_mm.data.bad_records import MIN_COUNT, NUM_SHOWN, BadRecords
from easyrec_mm.errors import DataError


def test_the_share_counts_from_a_thousand_on():
    records = BadRecords(None, 0.01)
    records.add(MIN_COUNT - 1, 0, [record(row) for row in range(500)])
    with pytest.raises(DataError, match=f"^500 of {MIN_COUNT} groups cannot be used"):
        records.add(1, 0, [])


@pytest.mark.parametrize(
    ("share", "num_bad", "stops"), [(0.01, 10, False), (0.01, 11, True), (0.0, 1, True), (1.0, 1000, False)]
)
def test_the_share_itself_is_allowed(share, num_bad, stops):
    records = BadRecords(None, share)

    def add():
        records.add(1000, 0, [record(row) for row in range(num_bad)])

    if not stops:
        add()
        records.check_all()
        return
    with pytest.raises(DataError, match=rf"{num_bad} of 1000 groups .*max_bad_record_share \({share:g}\)"):
        add()


def test_groups_and_pictures_are_two_counts():
    records = BadRecords(None, 0.1)
    records.add(5000, 50, [record(row, "picture", "is missing") for row in range(20)])
    with pytest.raises(DataError, match=r"^20 of 50 pictures cannot be used"):
        records.check_all()
    assert records.counts == {"groups": 5000, "bad_groups": 0, "pictures": 50, "bad_pictures": 20}


def test_the_message_shows_the_first_ten_and_where_the_others_are(tmp_path):
    path = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(path), 0.1)
    records.add(10, 10, [record(100, "picture")])
    records.add(100, 0, [record(row) for row in range(30, 0, -1)])
    with pytest.raises(DataError) as caught:
        records.check_all()
    head, *shown, end = str(caught.value).split("\n")
    assert head == ("30 of 110 groups cannot be used, more than data_config.max_bad_record_share (0.1). The first:")
    assert shown == [f"  part-0:{row}: column 'click': is bad" for row in range(30, 30 - NUM_SHOWN, -1)]
    assert end == f"All are listed in {path}. Correct the data or raise the share."


def test_records_are_written_once_however_often_they_are_met(tmp_path):
    path = tmp_path / "folder" / "bad_records.jsonl"
    records = BadRecords(str(path), 1.0)
    assert not path.exists()
    for _ in range(3):
        records.add(10, 0, [record(1), record(2), record(1)])
    records.add(10, 0, [record(2, problem="is 'bad' — \"quoted\"\n")])
    written = read_records(path)
    assert [(r["row"], r["problem"]) for r in written] == [(1, "is bad"), (2, "is bad"), (2, "is 'bad' — \"quoted\"\n")]
    assert set(written[0]) == {"kind", "file", "row", "where", "problem", "time"}
    assert records.counts["bad_groups"] == 10


def test_only_so_many_are_remembered_and_all_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(bad_records_module, "MAX_REMEMBERED", 3)
    path = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(path), 1.0)
    records.add(10, 0, [record(row) for row in range(5)])
    assert len(read_records(path)) == 3
    assert records.counts["bad_groups"] == 5


def test_the_summary(tmp_path):
    path = tmp_path / "bad_records.jsonl"
    records = BadRecords(str(path), 1.0)
    assert records.summary() == ""
    records.add(10, 7, [record(1)])
    assert records.summary() == f"bad records: 1 of 10 groups; see {path}"
    records.add(10, 7, [record(1), record(2, "picture")])
    assert records.summary() == f"bad records: 2 of 20 groups and 1 of 14 pictures; see {path}"


def test_nothing_read_is_nothing_bad():
    BadRecords(None, 0.0).check_all()
