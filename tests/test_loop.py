"""The loop of a training: all workers do the same after a signal to one of them, whenever it arrives."""

from types import SimpleNamespace

import pytest
from thread_replicas import results_of_replicas

from easyrec_mm.protos.train_pb2 import TrainConfig
from easyrec_mm.training.loop import Loop, NoBatchError
from easyrec_mm.training.save_times import SaveTimes
from easyrec_mm.training.signals import STOPPING, Caught

NUM_STEPS = 4


class Log:
    """What a worker has done, and the signal that it gets before or after that."""

    def __init__(self, replicas, place, is_after):
        self.replicas, self.done, self.caught = replicas, [], Caught()
        self._place, self._is_after = place, is_after

    def do(self, what):
        is_here = self.replicas.number == 1 and what == self._place
        if is_here and not self._is_after:
            self.caught.number = STOPPING[-1]
        self.done.append(what)
        if is_here and self._is_after:
            self.caught.number = STOPPING[-1]


def run(replicas, place, is_after, hangs=False):
    """What a worker has done, the path of the last checkpoint, why it ended, and the signal on which all agreed."""
    log, steps = Log(replicas, place, is_after), SimpleNamespace(number=0, phase=lambda step: 0)

    def run_step(item):
        if replicas.agree(item is None)[0]:
            raise NoBatchError
        steps.number += 1
        log.do(f"step {steps.number}")
        with replicas.scope("step"):
            replicas.sum(1.0 * steps.number)
        return {"loss": 0.0}

    def evaluate(checkpoint, step, _log, _progress, is_stopped):
        for batch in range(2):
            log.do(f"evaluate {batch}")
            if replicas.agree(is_stopped())[0]:
                return 0.0
        log.do("evaluated")
        return 0.0

    def save(step, unreported, to_evaluate):
        log.do(f"save {step} {to_evaluate}")
        return f"model.ckpt-{step}"

    def batches():
        for _ in range(NUM_STEPS):
            yield SimpleNamespace(step=steps.number, epochs_before=0, epochs_done=0)
            if hangs and log.caught.is_caught():
                return  # as UntilStopped does
        log.do("no more batches")

    config = TrainConfig(save_checkpoints_steps=3, log_step_count_steps=100, save_summary_steps=100)
    nothing = SimpleNamespace(
        flush=lambda: None, add=lambda *_: None, write=lambda _: log.do("report"), unreported=list,
        check_all=lambda: None, evaluated=lambda _: None,
    )  # fmt: skip
    evaluations = SimpleNamespace(is_due=False, run=evaluate, stop_reason=lambda: None, has_run=lambda _: True)
    loop = Loop(
        config=config, length=SimpleNamespace(num_epochs=1), replicas=replicas, steps=steps, run_step=run_step,
        save=save, finish_saving=lambda: None, evaluations=evaluations, log=nothing, progress=nothing,
        forecast=SimpleNamespace(time=nothing), step_log=nothing, summaries=nothing, save_times=SaveTimes(config),
        bad_records=nothing, put_logs=lambda: None, caught=log.caught,
    )  # fmt: skip
    saved, reason = loop.run(batches(), None, False)
    return log.done, saved, reason, loop.stopped_by


UNDISTURBED = [
    "step 1", "step 2", "step 3", "save 3 False", "step 4", "no more batches", "report", "save 4 True", "evaluate 0",
    "evaluate 1", "evaluated",
]  # fmt: skip


def test_undisturbed():
    for done, *ends in results_of_replicas(2, lambda replicas: run(replicas, "", False)):
        assert done == UNDISTURBED
        assert ends == ["model.ckpt-4", "num_epochs 1 are done", None]


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", UNDISTURBED)
def test_a_signal_to_one_worker_at_any_time(place, is_after):
    (first, *ends), (second, *ends_of_second) = results_of_replicas(2, lambda replicas: run(replicas, place, is_after))
    assert first == second
    assert ends == ends_of_second
    saved, reason, stopped_by = ends
    assert (reason, stopped_by) == (None, STOPPING[-1])
    assert saved == f"model.ckpt-{sum(name.startswith('step') for name in first)}"


@pytest.mark.parametrize("place", [f"step {number}" for number in range(1, NUM_STEPS + 1)])
def test_the_input_of_a_worker_hangs_after_a_signal(place):
    results = results_of_replicas(2, lambda replicas: run(replicas, place, True, hangs=replicas.number == 1))
    done = UNDISTURBED[: UNDISTURBED.index(place) + 1]
    for of_worker, saved, reason, stopped_by in results:
        assert [name for name in of_worker if name.startswith("step")] == [n for n in done if n.startswith("step")]
        assert (saved, reason, stopped_by) == (f"model.ckpt-{place[-1]}", None, STOPPING[-1])
