"""Items of an input that may hang when the process is to end."""

import threading
import time

import pytest

from easyrec_mm.data import until_stopped
from easyrec_mm.data.until_stopped import UntilStopped


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(until_stopped, "PATIENCE_S", 0.3)


class Items:
    """Gives 0, 1 and 2; the item `hangs_at` only when `goes_on` is set."""

    def __init__(self, hangs_at=None):
        self.goes_on, self.is_closed = threading.Event(), False
        self._hangs_at = hangs_at

    def generate(self):
        try:
            for number in range(3):
                if number == self._hangs_at:
                    assert self.goes_on.wait(60)
                yield number
        finally:
            self.is_closed = True


def test_all_items_in_order_and_then_the_end():
    items = Items()
    with UntilStopped(items.generate(), lambda: False) as taken:
        assert list(taken) == [0, 1, 2]
        assert next(taken, "end") == "end"
        assert not taken.hangs
    assert items.is_closed


def test_a_signal_alone_does_not_end_them():
    with UntilStopped(Items().generate(), lambda: True) as taken:
        assert list(taken) == [0, 1, 2]


def test_errors_of_the_generator_are_raised():
    def generate():
        yield 1
        raise TimeoutError("of a server")

    with UntilStopped(generate(), lambda: True) as taken:
        assert next(taken) == 1
        with pytest.raises(TimeoutError, match="of a server"):
            next(taken)


def test_the_generator_is_closed_when_the_context_ends():
    items = Items()
    with UntilStopped(items.generate(), lambda: False) as taken:
        next(taken)
        assert not items.is_closed
    assert items.is_closed


def test_an_item_that_hangs_is_waited_for_until_a_signal():
    items = Items(hangs_at=1)
    started_s = time.monotonic()
    with UntilStopped(items.generate(), lambda: time.monotonic() - started_s > 1) as taken:
        assert list(taken) == [0]
        assert 1.3 < time.monotonic() - started_s < 30
        assert taken.hangs
    assert not items.is_closed
    items.goes_on.set()


def test_an_item_that_comes_late_is_taken():
    items = Items(hangs_at=2)
    threading.Timer(0.5, items.goes_on.set).start()
    with UntilStopped(items.generate(), lambda: False) as taken:
        assert list(taken) == [0, 1, 2]
