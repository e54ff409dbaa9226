"""Output of a run: a bar on a terminal, plain lines elsewhere, lines of metrics.jsonl and TensorBoard summaries."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf
from tensorboard.compat.proto.summary_pb2 import Summary
from tqdm import tqdm

from easyrec_mm import __version__
from easyrec_mm.console import say
from easyrec_mm.files import naming
from easyrec_mm.runs.evaluations import START
from easyrec_mm.safe_text import printable

_SIZE_WHERE_NONE_IS_TOLD = {"ncols": 120, "nrows": 24}
_LINE_EVERY_S = 10.0
# Narrow, so that the speeds after the bar stay readable.
_BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} {bar:5} {elapsed}{postfix}"


class Counts(NamedTuple):
    """Work of some time.

    seconds   the time
    samples   samples in it
    images    distinct images of the batches
    encoded   pictures that were encoded
    waited_s  seconds spent waiting for input
    """

    seconds: float = 0.0
    samples: float = 0
    images: float = 0
    encoded: float = 0
    waited_s: float = 0.0


def rates_of(counts: Counts) -> dict[str, float]:
    """Return the speeds of some work, and the share of the time spent waiting for input."""
    return {
        "samples_per_second": counts.samples / counts.seconds,
        "images_per_second": counts.images / counts.seconds,
        "samples_per_image": counts.samples / counts.images if counts.images else 0.0,
        "encoded_per_second": counts.encoded / counts.seconds,
        "input_wait_share": min(counts.waited_s / counts.seconds, 1.0),
    }


class Progress:
    """Counts and shows the work of a loop.

    Args:
      name: name of the work, such as "train".
      total: number of steps at the end; None if it is unknown.
      is_exact: whether `total` is exact rather than an estimate.
      first: number of steps done before.
      unit: name of a step.
    """

    def __init__(self, name: str, total: int | None, first: int = 0, unit: str = "step", is_exact: bool = True) -> None:
        self._name = name
        self._total = f"{'' if is_exact else '~'}{total}" if total else ""
        self._num_total = total
        self._done = first
        self._unit = unit
        self._bar = _bar(total, first, name, unit)
        self._reset()

    def _reset(self) -> None:
        self._since = time.perf_counter()
        self._counts = Counts()

    def add(self, num_samples: int, num_images: int, num_encoded: int, waited_s: float) -> None:
        """Count a step with its samples, images and encoded pictures, and the seconds that it waited for its input."""
        self._done += 1
        counts = self._counts
        self._counts = Counts(
            0.0,
            counts.samples + num_samples,
            counts.images + num_images,
            counts.encoded + num_encoded,
            counts.waited_s + waited_s,
        )
        if self._bar is not None:
            self._bar.update()

    def take(self) -> Counts:
        """Return what was counted since the last call."""
        counts = self._counts._replace(seconds=max(time.perf_counter() - self._since, 1e-9))
        self._reset()
        return counts

    def show(self, values: dict[str, float], rates: dict[str, float], left: str = "") -> None:
        """Show values, speeds and the time left as a line, or after the bar; a narrow terminal cuts values off."""
        shown = [f"{name} {value:.4g}" for name, value in values.items()]
        speeds = [f"{rates['samples_per_second']:.0f} samples/s"]
        if rates["images_per_second"]:
            speeds += [f"{rates['images_per_second']:.0f} images/s", f"{rates['samples_per_image']:.1f} samples/image"]
        speeds += [f"input wait {rates['input_wait_share']:.0%}"]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join([*filter(None, [left]), *speeds, *shown]))
        else:
            of_total = f"/{self._total}" if self._total else ""
            figures = ", ".join(filter(None, [*shown, *speeds, left]))
            progress = {"work": self._name, self._unit: self._done, "total": self._num_total}
            say(f"{self._name} {self._unit} {self._done}{of_total}: {figures}", **progress, values=values, rates=rates)

    def say(self, message: str, **fields: Any) -> None:
        """Show a message, with its figures for --json_logs, without breaking the bar."""
        if self._bar is not None:
            tqdm.write(printable(message), file=_terminal())
        else:
            say(message, **fields)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class PictureProgress:
    """Shows how many of a known number of pictures, or of what `unit` names, are done, their speed, the time left."""

    def __init__(self, name: str, total: int, unit: str = "image") -> None:
        self._name, self._total, self._unit = name, total, unit
        self._bar = _bar(total, 0, name, unit)
        self._done = 0
        self._started = self._shown = time.monotonic()

    def add(self, num_pictures: int) -> None:
        """Count pictures; outside of a terminal, print a line every ten seconds."""
        self._done += num_pictures
        now = time.monotonic()
        rate = self._done / max(now - self._started, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{left:.0f} s left, {rate:.0f} {self._unit}s/s", refresh=False)
            self._bar.update(num_pictures)
        elif now - self._shown > _LINE_EVERY_S:
            self._shown = now
            progress = {"work": self._name, self._unit: self._done, "total": self._total}
            rates = {f"{self._unit}s_per_second": rate, "seconds_left": left}
            text = f"{self._name} {self._done}/{self._total}: {rate:.0f} {self._unit}s/s, {left:.0f} s left"
            say(text, **progress, **rates)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def _terminal() -> Any:
    """Return stderr as it is: a bar needs characters that commands do not print otherwise."""
    return getattr(sys.stderr, "terminal", sys.stderr)


def _bar(total: int | None, first: int, name: str, unit: str) -> Any:
    """Return a bar on a terminal, None elsewhere."""
    if not sys.stderr.isatty():
        return None
    # tqdm shows nothing on a terminal that reports no size, as in some containers.
    shown: dict[str, Any] = dict(_SIZE_WHERE_NONE_IS_TOLD)
    if all(os.get_terminal_size(sys.stderr.fileno())):
        shown = {"dynamic_ncols": True}
    return tqdm(total=total, initial=first, desc=name, unit=unit, file=_terminal(), bar_format=_BAR_FORMAT, **shown)


class MetricsLog:
    """A file of JSON lines, such as metrics.jsonl, and TensorBoard's event files.

    Args:
      path: path of the file.
      summaries: folder of the event files.
    """

    def __init__(self, path: Path, summaries: Path) -> None:
        self._path = path
        self._writer = tf.summary.create_file_writer(str(summaries))

    def write_start(self, step: int) -> None:
        """Append the line of a start after `step` steps, with the version; TensorBoard drops what it has later."""
        self.write_line(START, step, {"easyrec_mm": __version__})
        session = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        event = tf.compat.v1.Event(wall_time=time.time(), step=step + 1, session_log=session)
        # tf.summary has no function for this event.
        tf.raw_ops.ImportEvent(writer=self._writer._resource, event=event.SerializeToString())
        self._writer.flush()

    def write_line(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append a line {"kind": ..., "step": ..., ...}, in which NaN and infinite values become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **clean})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_summaries(self, kind: str, step: int, values: dict[str, float], at_once: bool = True) -> None:
        """Write scalars for TensorBoard under "<kind>/<name>": at once, or with `flush` at the latest."""
        # All in one message: an operation for each of them would take longer than many a training step.
        summary = tf.compat.v1.Summary()
        for name, number in values.items():
            value = summary.value.add(tag=f"{kind}/{name}")
            value.metadata.plugin_data.plugin_name = "scalars"
            value.tensor.dtype = tf.float32.as_datatype_enum
            value.tensor.float_val.append(number)
        self._write(step, summary.SerializeToString())
        if at_once:
            self.flush()

    def write_shown(self, step: int, shown: Sequence[Summary]) -> None:
        """Write what functions of runs/shown.py return, for TensorBoard."""
        for summary in shown:
            self._write(step, summary.SerializeToString())
        self.flush()

    def write_graph(self, graph: tf.Graph) -> None:
        """Write a graph for TensorBoard."""
        with self._writer.as_default():
            tf.summary.graph(graph)
        self.flush()

    def _write(self, step: int, summary: bytes) -> None:
        with self._writer.as_default(step=step):
            tf.summary.experimental.write_raw_pb(summary)

    def flush(self) -> None:
        """Write what is left of the scalars."""
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
