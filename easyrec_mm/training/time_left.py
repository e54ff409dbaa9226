"""How long a run still takes, by the time that its last steps and its last evaluation took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta

from easyrec_mm.training.length import Length
from easyrec_mm.training.save_times import SaveTimes

# Steps whose time is measured: enough to even out what a step waits for, few enough to follow what changes.
_WINDOW = 300
# The first steps are compiled, and take what was read ahead meanwhile.
_STEPS_LEFT_OUT = 3
_MIN_STEPS, _MIN_SECONDS = 5, 2.0


class TimeLeft:
    """Seconds that a run still takes.

    Args:
      clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused_s = 0.0
        self.evaluation_s: float | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the steps: from now on they take another time, and the first is compiled."""
        self._num_left_out = 0
        self._ends: deque[float] = deque(maxlen=_WINDOW + 1)

    def step(self) -> None:
        """Count a step that is done."""
        if self._num_left_out < _STEPS_LEFT_OUT:
            self._num_left_out += 1
        else:
            self._ends.append(self._clock() - self._paused_s)

    def evaluated(self, seconds: float) -> None:
        """Count an evaluation that is done; its time is none of the steps'."""
        self._paused_s += seconds
        self.evaluation_s = seconds

    def step_s(self) -> float | None:
        """Seconds a step; None until enough were measured."""
        if len(self._ends) <= _MIN_STEPS or self._ends[-1] - self._ends[0] < _MIN_SECONDS:
            return None
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    def seconds(self, num_steps: int, num_evaluations: int) -> float | None:
        """Seconds that so many steps and evaluations take; None until it can be told."""
        step_s = self.step_s()
        return None if step_s is None else num_steps * step_s + num_evaluations * (self.evaluation_s or 0.0)


class Forecast:
    """When a training ends, as far as its steps and evaluations tell.

    Args:
      length: of the training.
      save_times: when it writes checkpoints.
      eval_interval_s: seconds from one evaluation to the next at least; None if it does not evaluate.
      clock: seconds.
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
        """Count a step that is done, and what it saw."""
        self.time.step()
        self._num_steps += 1
        self._num_samples += num_samples
        self._num_images += num_images

    def seconds(self, step: int) -> float | None:
        """Seconds that are left after a step; None until it can be told."""
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
        """As "7 min left"; "" until it can be told."""
        seconds = self.seconds(step)
        return "" if seconds is None else f"{duration(seconds)} left"

    def announcement(self, step: int) -> str:
        """Once, when it can be told: how long the whole takes, and what an epoch holds."""
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
    """Three digits that count: 143,000."""
    return f"{float(f'{number:.3g}'):,.0f}"


def duration(seconds: float) -> str:
    """As "40 s", "7 min", "3 h 20 min" or "2 days 5 h"."""
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
    """When so many seconds are over, as "14:32", with the day where that is another."""
    now = now or datetime.now()
    then = now + timedelta(seconds=seconds)
    return then.strftime("%H:%M" if then.date() == now.date() else "%a %d %b %H:%M")
