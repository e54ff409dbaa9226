"""Reports about training steps: mean losses, rates and the time left, on the terminal and in the training's files."""

from __future__ import annotations

import tensorflow as tf

from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.batch import InputBatch
from easyrec_mm.runs.progress import MetricsLog, Progress
from easyrec_mm.schema import Schema
from easyrec_mm.training.facts import RunFacts
from easyrec_mm.training.skipped import Skipped
from easyrec_mm.training.time_left import Forecast

# Losses of a step by name.
Losses = dict[str, float]


class StepLog:
    """Collects the values of steps and reports their means over several steps.

    Args:
      log: file that receives one line per report.
      progress: display on the terminal.
      forecast: estimate of the time left.
      schema: schema with the names of the tasks.
      facts: rates and further facts about the steps.
      bad_records: bad records, whose counts are part of each line.
      skipped: counts of the steps that were skipped, which are part of each line once there are any.
    """

    def __init__(
        self,
        log: MetricsLog,
        progress: Progress,
        forecast: Forecast,
        schema: Schema,
        facts: RunFacts,
        bad_records: BadRecords,
        skipped: Skipped,
    ) -> None:
        self._log, self._progress, self._forecast, self._facts = log, progress, forecast, facts
        self._bad_records, self._skipped = bad_records, skipped
        task_losses = [f"loss_{task.name}" for task in schema.tasks]
        self._shown = ["loss", *(task_losses if len(task_losses) > 1 else [])]
        self._losses: list[dict[str, tf.Tensor | float]] = []  # of the steps since the last line
        self._num_skipped = 0  # as above
        self._phase: int | None = None
        self._epoch = 0

    def add(self, losses: dict[str, tf.Tensor], item: InputBatch, waited_s: float, phase: int) -> None:
        """Add a step.

        Args:
          losses: what TrainSteps.run has returned: losses of the step and other values by name; {} if it was skipped.
          item: batch of the step.
          waited_s: seconds that the step waited for the batch.
          phase: number of the training phase; steps of another phase take a different time.
        """
        losses = self._facts.add(item, phase, losses)
        if losses:
            self._losses.append(losses)
        else:
            self._num_skipped += 1
        self._epoch = item.epoch
        if self._phase not in (None, phase):
            self._forecast.time.restart()
        self._phase = phase
        batch = item.batch
        self._progress.add(batch.num_samples, batch.num_images, batch.num_encoded, waited_s)
        self._forecast.step(item.batch.num_samples, item.batch.num_images)

    def go_on(self, unreported: list[Losses]) -> None:
        """Begin with the losses of steps that an earlier part of the training has not reported."""
        self._losses = list(unreported)

    def unreported(self) -> list[Losses]:
        """Return the losses of the steps since the last report."""
        return [{name: float(value) for name, value in losses.items()} for losses in self._losses]

    def write(self, step: int) -> None:
        """Show and write the means since the last report, if there were steps."""
        if not self._losses and not self._num_skipped:
            return
        names = self._losses[0] if self._losses else []
        means = {name: float(tf.reduce_mean([losses[name] for losses in self._losses])) for name in names}
        self._losses.clear()
        self._num_skipped = 0
        facts = self._facts.report(self._progress.take())
        if announcement := self._forecast.announcement(step):
            self._progress.say(announcement)
        shown = {name: means[name] for name in self._shown if name in means}
        self._progress.show({"epoch": self._epoch, **shown}, facts, self._forecast.left(step))
        skipped = {"skipped_steps": self._skipped.num} if self._skipped.num else {}
        counts = {**self._bad_records.counts, **skipped}
        self._log.write_line("train", step, {"epoch": self._epoch, **means, **facts, **counts})
        self._log.write_summaries("train", step, facts, at_once=False)
