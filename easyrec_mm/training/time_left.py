"""Estimate of the time that a run still takes, based on the time of its last steps and its last evaluation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from easyrec_mm.training.length import Length
from easyrec_mm.training.save_times import SaveTimes

# Number of steps whose time is measured: enough to average out waiting times, few enough to follow changes.
_WINDOW = 300
# The first steps are not measured: they include compilation, and later ones use batches read ahead during it.
_STEPS_LEFT_OUT = 3
_MIN_STEPS, _MIN_SECONDS = 5, 2.0


class TimeLeft:
    """Estimate of the seconds that a run still takes.

    Args:
      clock: function that returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused_s = 0.0
        self.evaluation_s: float | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the measured steps, because from now on steps take a different time and the first one is compiled."""
        self._num_left_out = 0
        self._ends: deque[float] = deque(maxlen=_WINDOW + 1)

    def step(self) -> None:
        """Count a finished step."""
        if self._num_left_out < _STEPS_LEFT_OUT:
            self._num_left_out += 1
        else:
            self._ends.append(self._clock() - self._paused_s)

    def evaluated(self, seconds: float) -> None:
        """Count a finished evaluation, whose time is not part of the time of the steps."""
        self._paused_s += seconds
        self.evaluation_s = seconds

    def step_s(self) -> float | None:
        """Return the seconds per step; None until enough steps were measured."""
        if len(self._ends) <= _MIN_STEPS or self._ends[-1] - self._ends[0] < _MIN_SECONDS:
            return None
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    def seconds(self, num_steps: int, num_evaluations: int) -> float | None:
        """Return the seconds that these steps and evaluations take; None while there is no estimate."""
        step_s = self.step_s()
        return None if step_s is None else num_steps * step_s + num_evaluations * (self.evaluation_s or 0.0)


class Forecast:
    """Estimate of the end of a training, based on its steps and evaluations.

    Args:
      length: length of the training.
      save_times: times at which it writes checkpoints.
      eval_interval_s: least number of seconds between two evaluations; None if it does not evaluate.
      clock: function that returns the time in seconds.
    """

    def __init__(
        self,
        length: Length,
        save_times: SaveTimes,
        eval_interval_s: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.time = TimeLeft(clock)
        self._length, self._save_times, self._eval_interval_s = length, save_times, eval_interval_s
        self._clock = clock
        self._started_s = clock()
        self._is_announced = False
        self._num_steps = self._num_samples = self._num_images = 0

    def step(self, num_samples: int, num_images: int) -> None:
        """Count a finished step with its samples and images."""
        self.time.step()
        self._num_steps += 1
        self._num_samples += num_samples
        self._num_images += num_images

    def seconds(self, step: int) -> float | None:
        """Return the seconds that are left after a step; None while there is no estimate."""
        end = self._length.num_steps
        steps_s = None if end is None else self.time.seconds(max(0, end - step), 0)
        if steps_s is None or end is None:
            return None
        num_evaluations = 0
        if self._eval_interval_s is not None:
            num_evaluations = self._save_times.num_left(step, end, self._length.steps_per_epoch, steps_s)
            if self._eval_interval_s:
                num_evaluations = min(num_evaluations, 1 + int(steps_s / self._eval_interval_s))
        return self.time.seconds(max(0, end - step), num_evaluations)

    def left(self, step: int) -> str:
        """Return the time left as text, such as "7 min left"; "" while there is no estimate."""
        seconds = self.seconds(step)
        return "" if seconds is None else f"{duration(seconds)} left"

    def announcement(self, step: int) -> str:
        """Return the total time and the size of an epoch as text, once, as soon as there is an estimate; else ""."""
        seconds = self.seconds(step)
        if seconds is None or self._is_announced:
            return ""
        self._is_announced = True
        whole_s = self._clock() - self._started_s + seconds
        text = f"about {duration(whole_s)} in all, until {time_of_day(seconds)}"
        if self._eval_interval_s is not None and self.time.evaluation_s is None:
            text += ", and the time of evaluations"
        if self._length.steps_per_epoch:
            share = self._length.steps_per_epoch / self._num_steps
            text += f"; an epoch has about {_rounded(self._num_samples * share)} samples"
            if self._num_images:
                text += f" and encodes {_rounded(self._num_images * share)} pictures"
        return text


def _rounded(number: float) -> str:
    """Return a number with three significant digits as text, such as 143,000."""
    return f"{float(f'{number:.3g}'):,.0f}"


def duration(seconds: float) -> str:
    """Return seconds as text, such as "40 s", "7 min", "3 h 20 min" or "2 days 5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days {hours % 24} h"


def time_of_day(seconds: float, now: datetime | None = None) -> str:
    """Return the time of day in `seconds` from now, such as "14:32", with the date if it is another day."""
    now = now or datetime.now()
    then = now + timedelta(seconds=seconds)
    return then.strftime("%H:%M" if then.date() == now.date() else "%a %d %b %H:%M")
