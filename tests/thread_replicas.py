"""Replicas that are threads of one process, for tests of what they exchange; they compute eagerly."""

import threading
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

from easyrec_mm.distribution.replicas import Replicas


class ThreadReplicas(Replicas):
    """One of the replicas, which meet in `meeting`: a barrier, and what each has brought to it."""

    def __init__(self, number, num, meeting):
        super().__init__(number, num)
        self._barrier, self._brought = meeting

    def _of_all(self, values):
        self._brought[self.number] = values
        self._barrier.wait(30)
        of_all = list(self._brought)
        self._barrier.wait(30)
        return of_all

    def _reduced(self, values):
        return tf.add_n(self._of_all(values))

    def _gathered(self, values, is_sparse=False):
        return tf.concat(self._of_all(values), 0)

    def swap(self, values):
        of_all = self._of_all(values)
        assert {other.shape for other in of_all} == {values.shape}, "collective operations need equal shapes"
        return tf.stack([other[self.number] for other in of_all])


def results_of_replicas(num, function):
    """What a function returns for each of the replicas."""
    meeting = threading.Barrier(num), [None] * num

    def call(number):
        try:
            return function(ThreadReplicas(number, num, meeting))
        except BaseException:
            meeting[0].abort()  # the others would wait for it
            raise

    with ThreadPoolExecutor(num) as pool:
        calls = [pool.submit(call, number) for number in range(num)]
        errors = [error for error in (call.exception() for call in calls) if error is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [call.result() for call in calls]
