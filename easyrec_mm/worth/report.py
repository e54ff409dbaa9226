"""The report: the results of all runs, as values, as text, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from easyrec_mm.config.best import BIGGER_IS_BETTER, find_metric
from easyrec_mm.config.evaluation import NamedMetric, evaluation_metrics, named_metrics
from easyrec_mm.evaluation.estimates import Estimate
from easyrec_mm.evaluation.summary import finite
from easyrec_mm.training.time_left import duration
from easyrec_mm.worth.arms import Arm
from easyrec_mm.worth.names import ARMS, END_TO_END, FROZEN, NO_CONTENT, NO_TEXT, NONE, OWN, SHUFFLED
from easyrec_mm.worth.runs import RunResult, common_estimates
from easyrec_mm.worth.verdict import DOES_NOT, HARMS, PAYS, Gain, gains

# Pairs of arms, the first compared with the second, and what the comparison shows.
_COMPARED = (
    (OWN, NONE, "what the pictures add"),
    (OWN, SHUFFLED, "what is due to what they show"),
    (END_TO_END, FROZEN, "what training the backbone adds"),
    (OWN, NO_TEXT, "what the texts add"),
    (OWN, NO_CONTENT, "what pictures and texts add together"),
)


@dataclass(frozen=True)
class Comparison:
    """The gains of the first arm over the second, by metric and slice; `tells` says what they mean."""

    first: str
    second: str
    tells: str
    gains: dict[str, Gain]


@dataclass(frozen=True)
class Verdict:
    """Whether pictures, or texts of items, pay, by one metric on one slice.

    metric       the metric, named as for all rows
    slice        name of the slice, such as "item_frequency=unseen"; "" for all rows
    num_samples  number of rows
    verdict      PAYS, DOES_NOT or HARMS; "" if nothing can be said
    reason       why there is no verdict, or why a gain does not count; else ""
    gain         gain over the model without pictures, or without texts; if that without pictures was not tested, over
                 that with other items' pictures
    """

    metric: NamedMetric
    slice: str
    num_samples: int
    verdict: str
    reason: str
    gain: Gain

    @property
    def name(self) -> str:
        """Name of the result, including the slice."""
        return f"{self.metric.name}/{self.slice}" if self.slice else self.metric.name


@dataclass(frozen=True)
class Plan:
    """How the test was done.

    num_seeds       runs of each arm
    num_steps       steps of each training
    whole_steps     steps of a training with the config as it is
    budget_minutes  None without a budget
    left_out        arm -> why it was not tested
    """

    num_seeds: int
    num_steps: int
    whole_steps: int
    budget_minutes: float | None
    left_out: dict[str, str]


class Report:
    """The results of all runs.

    Args:
      path: path of the config.
      arms: the tested arms; the first is the config as it is.
      results: arm -> results of its seeds, the same number for each arm.
      plan: how the test was done.
      level: confidence level of the intervals.
      clusters: name of the unit that bootstrap replicates draw.
    """

    def __init__(
        self,
        path: str,
        arms: Sequence[Arm],
        results: Mapping[str, Sequence[RunResult]],
        plan: Plan,
        level: float,
        clusters: str,
    ) -> None:
        self.path, self.arms, self.results, self.plan = path, list(arms), results, plan
        self.level, self.clusters = level, clusters
        own = arms[0].pipeline
        self._metrics = {metric.name: metric for metric in named_metrics(own.config, own.schema)}
        self.estimates = {arm.name: common_estimates(results[arm.name]) for arm in arms}
        self.num_samples = results[OWN][0].num_samples
        self._main = main_metric(arms[0]) or ""
        self.comparisons = self._comparisons()
        self.verdicts = self._verdicts()
        self.verdict = self._by_main(self.verdicts)
        self.text_verdicts = self._text_verdicts()
        self.text_verdict = self._by_main(self.text_verdicts)

    def _comparisons(self) -> list[Comparison]:
        bigger = {m.name: BIGGER_IS_BETTER[m.kind] for m in self._metrics.values()}
        directed = {name: value for name, value in bigger.items() if value is not None}
        # If the config is frozen, or trains all of the tower, the arm of this kind is the config's own.
        stands = {END_TO_END: OWN, FROZEN: OWN} | {arm.name: arm.name for arm in self.arms}
        comparisons = []
        for first, second, tells in _COMPARED:
            first_arm, second_arm = stands.get(first, first), stands.get(second, second)
            if first_arm != second_arm and first_arm in self.estimates and second_arm in self.estimates:
                result = gains(self.estimates[first_arm], self.estimates[second_arm], directed, self._main, self.level)
                comparisons.append(Comparison(first_arm, second_arm, tells, result))
        return comparisons

    def _verdicts(self) -> list[Verdict]:
        by_second = {c.second: c.gains for c in self.comparisons if c.first == OWN and c.second in (NONE, SHUFFLED)}
        over = by_second.get(NONE, by_second.get(SHUFFLED, {}))
        verdicts = []
        for name, gain in over.items():
            metric, _, part = name.partition("/")
            verdict, reason = gain.verdict, gain.reason
            of_content = by_second.get(SHUFFLED, {}).get(name)
            if verdict == PAYS and of_content is not None and of_content.verdict != PAYS:
                verdict = DOES_NOT
                reason = "no better than with the pictures of other items: the gain is not due to what they show"
            num_samples = self.num_samples[f"/{part}" if part else ""]
            verdicts.append(Verdict(self._metrics[metric], part, num_samples, verdict, reason, gain))
        return verdicts

    def _text_verdicts(self) -> list[Verdict]:
        gains = next((c.gains for c in self.comparisons if (c.first, c.second) == (OWN, NO_TEXT)), {})
        verdicts = []
        for name, gain in gains.items():
            metric, _, part = name.partition("/")
            num_samples = self.num_samples[f"/{part}" if part else ""]
            verdicts.append(Verdict(self._metrics[metric], part, num_samples, gain.verdict, gain.reason, gain))
        return verdicts

    def _by_main(self, verdicts: Sequence[Verdict]) -> Verdict | None:
        return next((verdict for verdict in verdicts if verdict.name == self._main), None)

    def conclusion(self) -> str:
        """Return the verdicts by the main metric as sentences: of pictures and of texts, as far as there are any."""
        return "; ".join(filter(None, (self._conclusion_of_pictures(), self.conclusion_of_texts())))

    def _conclusion_of_pictures(self) -> str:
        if not self.arms[0].pipeline.schema.uses_image:
            return ""
        if self.verdict is None:
            return "no conclusion: no arm without the items' own pictures was tested"
        return conclusion_of(self.verdict, self._against(), self.plan)

    def conclusion_of_texts(self) -> str:
        """Return the verdict of texts as a sentence; "" for a config without texts."""
        if self.arms[0].pipeline.schema.text is None:
            return ""
        if self.text_verdict is None:
            return "no conclusion on texts: no arm without them was tested"
        return conclusion_of(self.text_verdict, f"the model {ARMS[NO_TEXT]}", self.plan, "texts")

    def _against(self) -> str:
        return "the model " + (ARMS[NONE] if NONE in self.estimates else ARMS[SHUFFLED])

    def notes(self) -> list[str]:
        """Return what a reader must know about the test."""
        plan = self.plan
        notes = []
        if plan.num_steps < plan.whole_steps:
            notes.append(
                f"all trainings have {plan.num_steps:,} steps instead of {plan.whole_steps:,}, because of "
                f"--budget_minutes {plan.budget_minutes:g}: more steps may change the result"
            )
        if plan.num_seeds == 1:
            notes.append("one seed: intervals do not include the differences between seeds")
        notes.append(
            f"{self.level:.0%} intervals, for other draws of '{self.clusters}'"
            + (" and other seeds" if plan.num_seeds > 1 else "")
            + f": of {self._main} for itself, of all other metrics together, and of all slices together"
        )
        return notes

    def to_json(self) -> dict[str, Any]:
        """Convert the report to values that JSON can represent."""
        plan = self.plan
        return {
            "config": self.path,
            "verdict": None if self.verdict is None else self._verdict_json(self.verdict),
            "conclusion": self.conclusion(),
            "verdicts": [self._verdict_json(verdict) for verdict in self.verdicts],
            "comparisons": [
                {
                    "first": comparison.first,
                    "second": comparison.second,
                    "tells": comparison.tells,
                    "gains": {name: _gain_json(gain) for name, gain in comparison.gains.items()},
                }
                for comparison in self.comparisons
            ],
            "arms": {arm.name: self._arm_json(arm.name) for arm in self.arms},
            "left_out": plan.left_out,
            "num_seeds": plan.num_seeds,
            "num_steps": plan.num_steps,
            "whole_steps": plan.whole_steps,
            "budget_minutes": plan.budget_minutes,
            "level": self.level,
            "clusters": self.clusters,
            "num_samples": {suffix.removeprefix("/"): number for suffix, number in self.num_samples.items()},
            "notes": self.notes(),
            **(self._texts_json() if self.arms[0].pipeline.schema.text is not None else {}),
        }

    def _texts_json(self) -> dict[str, Any]:
        verdict = None if self.text_verdict is None else self._verdict_json(self.text_verdict)
        verdicts = [self._verdict_json(verdict) for verdict in self.text_verdicts]
        return {"texts": {"verdict": verdict, "conclusion": self.conclusion_of_texts(), "verdicts": verdicts}}

    def _verdict_json(self, verdict: Verdict) -> dict[str, Any]:
        return {
            "metric": verdict.metric.name,
            "task": verdict.metric.task,
            "slice": verdict.slice,
            "num_samples": verdict.num_samples,
            "verdict": verdict.verdict or None,
            "reason": verdict.reason,
            **_gain_json(verdict.gain),
        }

    def _arm_json(self, name: str) -> dict[str, Any]:
        results = self.results[name]
        return {
            "what": ARMS[name],
            "seconds": [result.seconds for result in results],
            "steps": [result.step for result in results],
            "metrics": {
                metric: {
                    "mean": finite(mean_value(estimates)),
                    "seeds": [finite(estimate.value) for estimate in estimates],
                    **({"reason": reason} if (reason := _reason(estimates)) else {}),
                }
                for metric, estimates in self.estimates[name].items()
            },
        }


def conclusion_of(verdict: Verdict, against: str, plan: Plan, what: str = "pictures") -> str:
    """Return a verdict as a sentence; without a gain in a shortened training, it says that more steps may show one."""
    gain = verdict.gain
    if not verdict.verdict:
        return f"no conclusion from {verdict.metric.name}: {verdict.reason}"
    conclusions = {PAYS: f"the {what} pay", DOES_NOT: f"the {what} do not pay", HARMS: f"the {what} harm"}
    text = f"{conclusions[verdict.verdict]}: {verdict.metric.name} {shown_gain(gain)} against {against}"
    if verdict.reason:
        return f"{text}, but {verdict.reason}"
    if verdict.verdict == DOES_NOT:
        text += f"; a gain above {gain.high:.4f} is ruled out" if gain.high > 0 else ""
        if plan.num_steps < plan.whole_steps:
            text += (
                f"; {plan.num_steps:,} of {plan.whole_steps:,} steps were trained, and more may show a gain: raise "
                "--budget_minutes"
            )
    return text


def main_metric(arm: Arm) -> str | None:
    """Return the deciding metric: export_config.best_exporter_metric, or the first for which a direction is better."""
    config = arm.pipeline.config
    metrics = evaluation_metrics(config, arm.pipeline.schema)
    named = find_metric(config.export_config.best_exporter_metric, metrics)
    directed = [name for name, kind in metrics.items() if BIGGER_IS_BETTER[kind] is not None]
    return named if named in directed else next(iter(directed), None)


def text(report: Report) -> str:
    """Format the report as lines of text."""
    plan = report.plan
    seeds = f"{plan.num_seeds} seeds" if plan.num_seeds > 1 else "one seed"
    lines = [f"{report.path}: {seeds}, {plan.num_steps:,} steps each", "", report.conclusion(), ""]
    names = [arm.name for arm in report.arms]
    shown = [metric for metric in report.estimates[OWN] if "/" not in metric]
    rows = [("mean over seeds", *names)]
    rows += [
        (metric, *(number(mean_value(report.estimates[name].get(metric, ()))) for name in names)) for metric in shown
    ]
    rows.append(("time of a run", *(duration(float(np.mean([r.seconds for r in report.results[n]]))) for n in names)))
    lines += aligned(rows)
    for comparison in report.comparisons:
        lines += ["", f"{comparison.first} against {comparison.second}, {comparison.tells}:"]
        lines += aligned(
            [("", "samples", comparison.first, comparison.second, "better by", "interval", "")]
            + [
                (
                    name.replace("/", ", "),
                    f"{report.num_samples[suffix_of(name)]:,}",
                    number(gain.first),
                    number(gain.second),
                    number(gain.value, "+.4f"),
                    interval_text(gain),
                    gain.verdict,
                )
                for name, gain in comparison.gains.items()
                if report.num_samples[suffix_of(name)]
            ]
        )
    lines.append("")
    empty = [suffix.removeprefix("/") for suffix, num in report.num_samples.items() if not num]
    lines += [f"no samples: {', '.join(empty)}"] if empty else []
    lines += [f"not tested: {name}, {ARMS[name]}: {reason}" for name, reason in plan.left_out.items()]
    lines += [f"note: {note}" for note in report.notes()]
    return "\n".join(lines)


def suffix_of(name: str) -> str:
    """Return the slice in a result's name, in the form of the keys of RunResult.num_samples."""
    _, slash, part = name.partition("/")
    return slash + part


def shown_gain(gain: Gain) -> str:
    """Format a gain with its interval."""
    return f"{gain.value:+.4f} {interval_text(gain)}"


def interval_text(gain: Gain) -> str:
    """Format the interval of a gain, or return the reason why it has none."""
    return gain.reason if gain.reason else f"[{gain.low:+.4f}, {gain.high:+.4f}]"


def number(value: float, form: str = ".4f") -> str:
    """Format a number; a number that is not finite becomes "undefined"."""
    return format(value, form) if math.isfinite(value) else "undefined"


def mean_value(estimates: Sequence[Estimate]) -> float:
    """Return the mean over seeds; NaN without estimates."""
    return float(np.mean([estimate.value for estimate in estimates])) if estimates else math.nan


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows of cells as lines; the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _reason(estimates: Sequence[Estimate]) -> str:
    return next((estimate.reason for estimate in estimates if estimate.reason), "")


def _gain_json(gain: Gain) -> dict[str, Any]:
    return {
        "first": finite(gain.first),
        "second": finite(gain.second),
        "gain": finite(gain.value),
        "interval": None if gain.reason else [gain.low, gain.high],
        "standard_error_rows": finite(gain.rows_error),
        "standard_error_seeds": finite(gain.seeds_error),
        **({"no_interval": gain.reason} if gain.reason else {}),
    }
