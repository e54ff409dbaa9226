"""The test: decides which runs are done, in which order and in how much time; continues a test that was stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from easyrec_mm import __version__
from easyrec_mm.config.evaluation import cluster_field
from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.console import tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.files import is_remote, put_text
from easyrec_mm.training.time_left import duration, time_of_day
from easyrec_mm.worth.arms import Arm, arms_of
from easyrec_mm.worth.costs import Cost, Sizes, seconds_of, sizes_of, steps_within, try_arms
from easyrec_mm.worth.names import ARMS, SHUFFLED
from easyrec_mm.worth.page import page
from easyrec_mm.worth.report import Plan, Report, aligned, main_metric, text
from easyrec_mm.worth.runs import Run, RunResult, item_counts
from easyrec_mm.worth.shuffle import shuffle_pictures

_PLAN, _SHUFFLED_PICTURES = "plan.json", "shuffled_pictures.parquet"
# Share of a budget for which trainings are planned, because times are estimates.
_PLANNED_SHARE = 0.9


@dataclass(frozen=True)
class WorthOptions:
    """Options of the command line; `arms` is () for all arms, `budget_minutes` is None for no budget."""

    output: str
    num_seeds: int
    arms: tuple[str, ...] = ()
    budget_minutes: float | None = None


class Worth:
    """Tests whether the pictures of a config pay.

    Args:
      pipeline: the config.
      options: how to test.
      say: shows a message of the work under way.

    Raises:
      UserError: if the config leaves nothing to test, or the output is not a folder of this machine.
    """

    def __init__(self, pipeline: Pipeline, options: WorthOptions, say: Callable[[str], None]) -> None:
        self._started_s = time.monotonic()
        self._pipeline, self._options, self._say = pipeline, options, say
        self._folder = Path(options.output)
        if is_remote(options.output):
            raise UserError(f"--output {options.output}: give a folder of this machine")
        if not pipeline.config.eval_input_path:
            raise UserError(
                f"{pipeline.path}: eval_input_path: is missing; give evaluation data, on which the arms are compared"
            )
        self._arms, self._left_out = arms_of(pipeline, options.arms, (self._folder / _SHUFFLED_PICTURES).absolute())
        if len(self._arms) < 2:
            raise UserError(
                f"--arms: '{self._arms[0].name}' alone leaves nothing to compare with; add one of {_other_arms()}"
            )
        if main_metric(self._arms[0]) is None:
            raise UserError(
                f"{pipeline.path}: no metric can decide which arm is better; add one to a metrics_set, such as auc"
            )

    def run(self) -> None:
        """Do the runs that are left, and write the report.

        Raises:
          Stopped: if a signal stopped a training; another call continues the test.
          UserError: if training or evaluation fails, or the folder contains another test.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        sizes = sizes_of(self._pipeline)
        known_plan = self._known_plan(sizes)
        if not known_plan:
            self._keep_plan(sizes, {}, 0)
        file = self._folder / _SHUFFLED_PICTURES
        if any(arm.name == SHUFFLED for arm in self._arms) and not file.exists():
            self._say(
                f"{shuffle_pictures(self._pipeline, file):,} pictures are shuffled among the items for '{SHUFFLED}'"
            )
        costs = {name: Cost(**cost) for name, cost in known_plan.get("costs", {}).items()}
        untried = [arm for arm in self._arms if arm.name not in costs]
        costs |= try_arms(untried, self._folder / "trials", self._say) if untried else {}
        num_steps = known_plan.get("num_steps") or self._num_steps(costs, sizes)
        self._keep_plan(sizes, costs, num_steps)
        self._tell_costs(costs, sizes, num_steps)
        counts = item_counts(self._pipeline, self._folder)
        results: dict[str, list[RunResult]] = {arm.name: [] for arm in self._arms}
        num_seeds = 0
        for seed in range(self._options.num_seeds):
            if self._is_spent(results, num_seeds):
                self._say(f"seed {seed} and later seeds are skipped, because they would exceed --budget_minutes")
                break
            for arm in self._arms:
                run = self._run_of(arm, seed, num_steps)
                result = run.result()
                if result is None:
                    self._say(f"\n{run.name}: {ARMS[arm.name]}")
                    result = run.execute(counts)
                results[arm.name].append(result)
                self._require_same_rows(result, results)
            num_seeds += 1
        self._write(results, Plan(num_seeds, num_steps, sizes.num_steps, self._options.budget_minutes, self._left_out))

    def _num_steps(self, costs: dict[str, Cost], sizes: Sizes) -> int:
        budget = self._options.budget_minutes
        if budget is None:
            return sizes.num_steps
        left_s = 60 * budget * _PLANNED_SHARE - (time.monotonic() - self._started_s)
        runs = {arm.name: self._options.num_seeds for arm in self._arms}
        return steps_within(left_s, runs, costs, sizes, self._arms)

    def _tell_costs(self, costs: dict[str, Cost], sizes: Sizes, num_steps: int) -> None:
        seeds = range(self._options.num_seeds)
        left = {a.name: sum(self._run_of(a, seed, num_steps).result() is None for seed in seeds) for a in self._arms}
        seconds = seconds_of(num_steps, left, costs, sizes, self._arms)
        rows = [("arm", "runs left", "about", "")]
        rows += [
            (a.name, str(left[a.name]), duration(seconds[a.name]), ARMS[a.name]) for a in self._arms if left[a.name]
        ]
        total_s = sum(seconds.values())
        for name, reason in self._left_out.items():
            self._say(f"not tested: {name}, {ARMS[name]}: {reason}")
        if total_s:
            self._say("\n".join(aligned(rows)))
            self._say(
                f"{sum(left.values())} runs of {num_steps:,} steps: about {duration(total_s)}, until "
                f"{time_of_day(total_s)}"
            )
        if num_steps < sizes.num_steps:
            fewer = f"{num_steps:,} steps instead of {sizes.num_steps:,}"
            self._say(f"all arms train {fewer}, to stay within --budget_minutes")

    def _run_of(self, arm: Arm, seed: int, num_steps: int) -> Run:
        return Run(arm, seed, num_steps, self._folder / "runs" / arm.name / f"seed-{seed}")

    def _is_spent(self, results: dict[str, list[RunResult]], num_seeds: int) -> bool:
        """Return whether another seed of all arms would exceed the budget, judging by the earlier seeds."""
        budget = self._options.budget_minutes
        if budget is None or not num_seeds:
            return False
        if all(self._run_of(arm, num_seeds, 0).result() is not None for arm in self._arms):
            return False
        runs_s = sum(result.seconds for of_arm in results.values() for result in of_arm)
        # If an earlier start did a part of the test, the time since this start is not all of it.
        spent_s = max(runs_s, time.monotonic() - self._started_s)
        return spent_s + runs_s / num_seeds > 60 * budget

    def _require_same_rows(self, result: RunResult, results: dict[str, list[RunResult]]) -> None:
        first = next(iter(results.values()))[0]
        if result.fingerprint != first.fingerprint:
            raise UserError(
                f"{self._pipeline.config.eval_input_path}: the arms were not evaluated on the same rows: the "
                f"evaluation data have changed, or one arm refuses more rows; remove {self._folder} to start again"
            )

    def _known_plan(self, sizes: Sizes) -> dict[str, Any]:
        path = self._folder / _PLAN
        if not path.exists():
            if any(self._folder.iterdir()):
                raise UserError(
                    f"--output {self._folder}: contains files that do not belong to a test of pictures; choose another "
                    "folder"
                )
            return {}
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if plan["test"] != self._identity(sizes):
            raise UserError(
                f"--output {self._folder}: contains the test of another config or of other data; choose another "
                "folder, or remove it"
            )
        if plan["budget_minutes"] != self._options.budget_minutes:
            was = (
                "no --budget_minutes"
                if plan["budget_minutes"] is None
                else f"--budget_minutes {plan['budget_minutes']:g}"
            )
            raise UserError(
                f"--output {self._folder}: contains a test that was started with {was}, with trainings of "
                f"{plan['num_steps']:,} steps; use the same value, or choose another folder"
            )
        return plan

    def _keep_plan(self, sizes: Sizes, costs: dict[str, Cost], num_steps: int) -> None:
        plan = {
            "test": self._identity(sizes),
            "budget_minutes": self._options.budget_minutes,
            "num_steps": num_steps,
            "costs": {name: asdict(cost) for name, cost in costs.items()},
        }
        put_text(self._folder / _PLAN, json.dumps(plan, indent=2) + "\n")

    def _identity(self, sizes: Sizes) -> str:
        """Return a hash of config and data, so that results of different tests are not mixed."""
        config = type(self._pipeline.config)()
        config.CopyFrom(self._pipeline.config)
        config.model_dir = ""  # not used
        content = config.SerializeToString(deterministic=True) + repr(sizes.fingerprints).encode()
        return hashlib.sha256(content).hexdigest()

    def _write(self, results: dict[str, list[RunResult]], plan: Plan) -> None:
        config = self._pipeline.config
        clusters = cluster_field(config, self._pipeline.schema)
        level = config.eval_config.bootstrap.level
        report = Report(self._pipeline.path, self._arms, results, plan, level, clusters)
        report_text = text(report)
        values = {"easyrec_mm": __version__, **report.to_json()}
        put_text(self._folder / "worth.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
        put_text(self._folder / "worth.html", page(report))
        put_text(self._folder / "worth.txt", report_text + "\n")
        written = f"written: {self._folder}/worth.txt, worth.json and worth.html"
        tell_result(f"\n{report_text}\n\n{written}", results=report.to_json())


def _other_arms() -> str:
    return ", ".join(list(ARMS)[1:])
