"""Everything that went wrong: bad records, skipped steps, undefined metrics, restarts, notes of the config."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from easyrec_mm.config.evaluation import evaluation_metrics
from easyrec_mm.errors import UserError
from easyrec_mm.report.context import Context
from easyrec_mm.report.run import Run
from easyrec_mm.report.section import Cell, Details, Heading, Part, Table, Text, Unavailable
from easyrec_mm.runs.evaluations import END, EVAL, METRICS, START
from easyrec_mm.runs.model_dir import BAD_RECORDS, EVAL_BAD_RECORDS, PREDICT_BAD_RECORDS, REPLAY

# Of each kind of problem, so many records are listed, of at most so many lines of a file.
_NUM_EXAMPLES, _MAX_LINES = 20, 100_000
# What makes records of the same problem different: numbers, and texts in quotes.
_VARYING = re.compile(r"'[^']*'|\d+")


def problems(context: Context) -> Sequence[Part]:
    """Return what went wrong in the training and in the evaluation for this report."""
    parts = [part for run in context.runs for part in _of_run(run, len(context.runs) > 1)]
    evaluation = _of_evaluation(context)
    if evaluation:
        parts += [Heading("The evaluation for this report"), *evaluation]
    return parts or [Text("Nothing: no bad record, no skipped step, no note.")]


def _of_run(run: Run, is_named: bool) -> list[Part]:
    parts: list[Part] = []
    prefix = f"{run.name}: " if is_named else ""
    for title, rows in (("Course of the training", _course(run)), ("Notes of the config", list(run.pipeline.notes))):
        if rows:
            parts += [Heading(f"{prefix}{title}"), *(Text(row) for row in rows)]
    titles = {
        BAD_RECORDS: "Bad records of the training",
        EVAL_BAD_RECORDS: "Bad records of evaluations",
        PREDICT_BAD_RECORDS: "Bad records of predictions",
    }
    for name, title in titles.items():
        records = list(_records(run.folder.local / name))
        if records:
            parts += [Heading(f"{prefix}{title}"), *_of_records(records)]
    return parts


def _course(run: Run) -> list[str]:
    """Return sentences on restarts, skipped steps, and undefined values."""
    texts = []
    starts = [line for line in run.all_lines if line["kind"] == START]
    ends = [line for line in run.lines if line["kind"] == END]
    if len(starts) > 1:
        texts.append(
            f"The training was started {len(starts)} times, at steps {_steps(line['step'] for line in starts)}."
        )
    if run.lines and not ends:
        texts.append(
            f"The training has not ended: {METRICS} has no line of its end. It was stopped, or is still running."
        )
    skipped = max((int(line.get("skipped_steps", 0)) for line in run.lines), default=0)
    if skipped:
        texts.append(f"{skipped:,} steps were skipped, because their numbers were not finite; see easyrec-mm replay.")
    folder = run.folder.local / REPLAY
    replays = sorted(int(path.name[5:]) for path in folder.glob("step-*") if path.name[5:].isdecimal())
    if replays:
        texts.append(f"Steps that easyrec-mm replay can run again: {_steps(iter(replays))}.")
    undefined = _undefined(run)
    texts += [f"{name} was undefined in {count} of its evaluations." for name, count in undefined.items()]
    last: dict[str, Any] = next((line for line in reversed(run.lines) if line["kind"] == "train"), {})
    for name in ("groups", "pictures"):
        if last.get(f"bad_{name}"):
            texts.append(f"{last[f'bad_{name}']:,} of {last[name]:,} {name} that the training read were bad.")
    for name, number in last.items():
        if name.startswith("missing_vectors_") and number:
            feature = name.removeprefix("missing_vectors_")
            texts.append(f"Feature '{feature}': {number:,} of {last[f'vectors_{feature}']:,} keys had no vector.")
    return [*texts, *([run.note] if run.note else [])]


def _undefined(run: Run) -> Counter[str]:
    names = evaluation_metrics(run.pipeline.config, run.pipeline.schema)
    evaluations = [line for line in run.lines if line["kind"] == EVAL]
    return Counter(name for line in evaluations for name in names if name in line and line[name] is None)


def _steps(steps: Iterator[int]) -> str:
    texts = [f"{step:,}" for step in steps]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file that lists bad records, without those that a killed run left incomplete."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file):
            if number >= _MAX_LINES:
                return
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"kind", "file", "row", "where", "problem"} <= record.keys():
                yield record


def _of_records(records: Sequence[dict[str, Any]]) -> list[Part]:
    """Return a table of the kinds of problems, and one of the first records of each."""
    kinds = [(str(r["kind"]), _VARYING.sub("…", str(r["problem"]))) for r in records]
    counts = Counter(kinds)
    rows = [[Cell(kind), Cell(problem), Cell(f"{n:,}", n, "number")] for (kind, problem), n in counts.most_common()]
    shown: Counter[tuple[str, str]] = Counter()
    examples = []
    for record, kind in zip(records, kinds, strict=True):
        shown[kind] += 1
        if shown[kind] <= _NUM_EXAMPLES:
            place = f"{record['file']}:{record['row']}"
            row = [str(record["kind"]), place, str(record["where"]), str(record["problem"])]
            examples.append([Cell(text, text, "code" if text == place else "") for text in row])
    table = Table(["kind", "file and row", "where", "problem"], examples)
    return [Table(["kind", "problem", "records"], rows), Details("the first of each", [table])]


def _of_evaluation(context: Context) -> list[Part]:
    try:
        evaluated = context.evaluated
    except (Unavailable, UserError) as error:
        return [Text(str(error), "warning")]
    texts = [text for text in evaluated.bad_records.summary().split("\n") if text]
    parts: list[Part] = [Text(text) for text in texts]
    records = [record for kind in evaluated.bad_records.shown.values() for record in kind]
    if records:
        rows = [
            [Cell(r.kind), Cell(f"{r.file}:{r.row}", None, "code"), Cell(r.where), Cell(r.problem)] for r in records
        ]
        parts.append(Table(["kind", "file and row", "where", "problem"], rows, "the first bad records"))
    undefined = {name: why for name, why in evaluated.results.undefined.items() if "/" not in name}
    return [*parts, *(Text(f"{name} is undefined: {why}.") for name, why in undefined.items())]
