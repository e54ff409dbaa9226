"""Replicas that are threads of one process, for tests of what they exchange; they compute eagerly."""

import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import tensorflow as tf

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.distribution.replicas import Replicas
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.training.steps import TrainSteps


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


def trained_by_replicas(pipeline, num, batch_size):
    """For each of that many replicas, the losses of each step, and what the steps change, at the end."""
    one_at_a_time = threading.Lock()  # Keras draws all initial weights from one seed

    def train(replicas):
        config = EasyRecConfig()
        config.CopyFrom(pipeline.config)
        config.data_config.batch_size = batch_size // num
        with one_at_a_time:
            model = MultimodalModel(config, pipeline.schema, replicas=replicas)
            records, worker = BadRecords(None, 1.0), (replicas.number, num)
            inputs = Input(
                config.data_config, pipeline.schema, config.train_input_path, "train", records, True, worker=worker
            )
            spec = inputs.spec()
            with mock.patch.object(tf, "function", lambda function, **_: function):  # threads compute eagerly
                steps = TrainSteps(config, model, "float32", spec, replicas)
            items = list(inputs.batches(banks_of=steps.banks))
        losses = []
        for item in items:
            steps.enter_phase(item.step)
            losses.append({name: value.numpy() for name, value in steps.run(item).items()})
        return losses, {name: variable.numpy() for name, variable in steps.variables().items()}

    return results_of_replicas(num, train)
