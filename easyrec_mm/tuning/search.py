"""The search: asks for trials, trains several at a time, ends those that do worse, and goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from easyrec_mm.console import say
from easyrec_mm.distribution.local_workers import parts_of_cores
from easyrec_mm.errors import UserError
from easyrec_mm.tuning.guard import Guard
from easyrec_mm.tuning.objective import Objective, values_in
from easyrec_mm.tuning.space import Entry, Value, short_names, shown
from easyrec_mm.tuning.study import (
    REASON,
    SECONDS,
    best_trial,
    counted_trials,
    distributions_of,
    interrupted_trials,
)
from easyrec_mm.tuning.training import END_S, MODEL, Training, remove_checkpoints

# If so many trials fail first, and all for the same reason, the others would, too.
_MOST_EQUAL_FAILURES = 3
LOOK_EVERY_S = 0.1
TRIALS = "trials"

# Settings of a trial by name, and its folder -> the command that trains it.
CommandOf = Callable[[Mapping[str, Value], Path], Sequence[str]]


class HopelessError(UserError):
    """The first trials have all failed for the same reason, a mistake in the config or the data."""


@dataclass
class _Running:
    """A trial that is trained, and how many of its evaluations are reported."""

    trial: Trial
    training: Training
    num_reported: int
    seconds_before: float


class Search:
    """A search.

    Args:
      study: its trials.
      entries: its space.
      objective: what it improves.
      command_of: the command of a trial.
      folder: takes the folders of the trials.
      gpus: the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them.
    """

    def __init__(
        self,
        study: optuna.Study,
        entries: Sequence[Entry],
        objective: Objective,
        command_of: CommandOf,
        folder: Path,
        gpus: Sequence[str] = (),
    ) -> None:
        self._study, self._objective, self._command_of = study, objective, command_of
        self._distributions = distributions_of(entries)
        self._names = short_names([entry.name for entry in entries])
        self._folder, self._gpus = folder, gpus
        self._running: dict[int, _Running] = {}  # place, from 0 to the number of trials at a time
        self._failures: list[str] = []  # reasons of the trials of this start, until one has trained

    def begin_with(self, values: Mapping[str, Value]) -> None:
        """Let the first trial have these values."""
        if values:
            self._study.enqueue_trial(dict(values))

    def run(self, num_trials: int, num_jobs: int, is_stopped: Callable[[], bool]) -> None:
        """Train until `num_trials` are done, those of earlier starts included, or until `is_stopped`.

        Trials that an earlier start was doing go on from their checkpoints. Those under way when it is stopped save a
        checkpoint; so do they if this process is killed.

        Args:
          num_trials: number of trials in all.
          num_jobs: number of trials at a time.
          is_stopped: is asked again and again whether to stop.

        Raises:
          HopelessError: if the first trials all fail for the same reason.
        """
        with Guard() as self._guard:
            self._run(num_trials, num_jobs, is_stopped)

    def _run(self, num_trials: int, num_jobs: int, is_stopped: Callable[[], bool]) -> None:
        interrupted = interrupted_trials(self._study, self._distributions)
        num_done = len(counted_trials(self._study))
        cores = parts_of_cores(num_jobs)
        try:
            while not is_stopped():
                free = [place for place in range(num_jobs) if place not in self._running]
                while free and num_done + len(self._running) < num_trials:
                    trial = interrupted.pop(0) if interrupted else self._study.ask(self._distributions)
                    place = free.pop(0)
                    self._running[place] = self._start(trial, cores[place], place, num_jobs)
                if not self._running:
                    return
                for place, running in list(self._running.items()):
                    if self._look_after(running):
                        del self._running[place]
                        num_done += 1
                        self._require_hope(min(_MOST_EQUAL_FAILURES, num_trials))
                time.sleep(LOOK_EVERY_S)
        finally:
            self._end_all()

    def _start(self, trial: Trial, cores: Sequence[int], place: int, num_jobs: int) -> _Running:
        folder = trial_folder(self._folder, trial.number)
        command = self._command_of(trial.params, folder)
        values = ", ".join(f"{self._names[name]}={shown(value)}" for name, value in trial.params.items())
        again = ", which goes on" if folder.exists() else ""
        say(f"trial {trial.number}{again}: {values}", trial=trial.number, params=trial.params)
        environment = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if 0 < len(self._gpus) < num_jobs else {}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[place % len(self._gpus)]
        training = Training(command, folder, cores, environment)
        self._guard.begins(training.pid)
        frozen = self._frozen(trial)
        return _Running(trial, training, len(frozen.intermediate_values), frozen.user_attrs.get(SECONDS, 0.0))

    def _look_after(self, running: _Running) -> bool:
        """Report the evaluations of a trial, and end it if it does worse than others; return whether it is done."""
        trial, training = running.trial, running.training
        status = training.poll()  # before the evaluations are read, so that none is missed
        values = values_in(training.folder / MODEL, self._objective.metric)
        for value in values[running.num_reported :]:
            running.num_reported += 1
            trial.report(value, running.num_reported)
            if status is None and trial.should_prune():
                training.kill()
                self._tell(running, TrialState.PRUNED)
                return True
        if status is None:
            return False
        result = self._objective.value(values)
        if status == 0 and result is not None:
            self._tell(running, TrialState.COMPLETE, result)
        else:
            undefined = f"{self._objective.metric} is undefined in all evaluations, or there was none"
            reason = undefined if status == 0 else training.failure()
            trial.set_user_attr(REASON, reason.replace(f"{training.folder}/", ""))
            self._tell(running, TrialState.FAIL)
        return True

    def _tell(self, running: _Running, state: TrialState, value: float | None = None) -> None:
        trial, training = running.trial, running.training
        self._guard.ends(training.pid)
        trial.set_user_attr(SECONDS, running.seconds_before + training.seconds)
        former = best_trial(self._study)
        done = self._study.tell(trial, value, state)
        best = best_trial(self._study)
        say(_told(done, self._objective, best), trial=done.number, state=state.name, value=done.value)
        # A folder may have lost its checkpoints already, as after a kill.
        worse = [former, done] if best is not None and best.number == done.number else [done]
        for trial_done in worse:
            if trial_done is not None and (best is None or trial_done.number != best.number):
                remove_checkpoints(trial_folder(self._folder, trial_done.number))
        if state == TrialState.FAIL and training.poll() != 0 and not training.has_trained():
            self._failures.append(done.user_attrs[REASON])
        else:
            self._failures.clear()

    def _require_hope(self, most: int) -> None:
        """Check that the first trials have not all failed for the same reason.

        Raises:
          HopelessError: if they have.
        """
        counted = counted_trials(self._study)
        if len(self._failures) < most or len(set(self._failures)) > 1:
            return
        if any(trial.state != TrialState.FAIL or trial.intermediate_values for trial in counted):
            return
        raise HopelessError(
            f"{self._failures[-1]}\nall of the first {len(self._failures)} trials failed for this reason; correct it, "
            f"and start the search anew with the same command (logs: {self._folder / TRIALS})"
        )

    def _end_all(self) -> None:
        """Let the trainings under way save checkpoints, and end; the trials stay unfinished."""
        for running in self._running.values():
            running.training.terminate()
        until_s = time.monotonic() + END_S
        for running in self._running.values():
            running.training.wait(until_s)
            self._guard.ends(running.training.pid)
            running.trial.set_user_attr(SECONDS, running.seconds_before + running.training.seconds)
        self._running.clear()

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]


def trial_folder(folder: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return folder / TRIALS / f"{number:04d}"


def _told(trial: FrozenTrial, objective: Objective, best: FrozenTrial | None) -> str:
    """Describe the end of a trial."""
    took = f"after {trial.user_attrs[SECONDS]:.0f} s"
    if trial.state == TrialState.FAIL:
        return f"trial {trial.number} failed {took}: {trial.user_attrs[REASON]}"
    if trial.state == TrialState.PRUNED:
        last = list(trial.intermediate_values.values())[-1]
        return f"trial {trial.number} ended early {took}: {objective.metric} {last:.6g} was worse than that of others"
    is_best = ", the best so far" if best is not None and best.number == trial.number else ""
    return f"trial {trial.number} is done {took}: {objective.metric} {trial.value:.6g}{is_best}"
