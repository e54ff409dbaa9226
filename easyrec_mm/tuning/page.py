"""The result of a search as one HTML page with Optuna's plots, which needs no network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from markupsafe import Markup
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from easyrec_mm.pages.render import render
from easyrec_mm.tuning.objective import Objective
from easyrec_mm.tuning.space import Entry, as_text, short_names, shown
from easyrec_mm.tuning.study import REASON, SECONDS, best_trial

_STATES = {
    TrialState.COMPLETE: "done", TrialState.PRUNED: "ended early", TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished", TrialState.WAITING: "waiting",
}  # fmt: skip
# With fewer complete trials, importances are chance.
_LEAST_OF_MANY = 4


def page(study: optuna.Study, entries: Sequence[Entry], objective: Objective, path: str) -> str:
    """Render the trials of a search.

    Args:
      study: the trials.
      entries: the space.
      objective: what it improves.
      path: the config, for the title.
    """
    best = best_trial(study)
    names = short_names([entry.name for entry in entries])
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: _rank(trial, objective))
    return render(
        "tune.html",
        title="Search for settings of",
        path=path,
        objective=objective,
        best=best,
        best_values=[] if best is None else [(name, as_text(value)) for name, value in best.params.items()],
        settings=list(names.values()),
        long_names=list(names.items()),
        rows=[_row(trial, entries, best) for trial in trials],
        plots=_plots(study, names, objective),
        script=Markup(get_plotlyjs()),
    )


def _plots(study: optuna.Study, names: dict[str, str], objective: Objective) -> list[tuple[str, str, Markup | None]]:
    """Return title, explanation and HTML of each plot; None for one that these trials do not give."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    study, draw, metric = _renamed(study, names), optuna.visualization, objective.metric
    plots: list[tuple[str, str, int, Callable[[], Any]]] = [
        ("History", f"{metric} of each trial, and the best one so far.", 1,
         lambda: draw.plot_optimization_history(study, target_name=metric)),
        ("Importances", f"Share of the differences in {metric} that a setting explains (fANOVA).", _LEAST_OF_MANY,
         lambda: draw.plot_param_importances(study, target_name=metric)),
        ("Parallel coordinates", "Each line is a trial: its settings and its result.", 2,
         lambda: draw.plot_parallel_coordinate(study, target_name=metric)),
        ("Slices", "The result by each setting alone.", 2, lambda: draw.plot_slice(study, target_name=metric)),
        ("Evaluations", "The evaluations of each trial, from which it is decided which ones end early.", 1,
         lambda: draw.plot_intermediate_values(study)),
    ]  # fmt: skip
    drawn = []
    for title, text, least, plot in plots:
        figure = _figure(plot) if len(complete) >= least else None
        missing = f"Needs {least} trials that are done and differ."
        drawn.append((title, text if figure is not None else missing, figure))
    return drawn


def _figure(plot: Callable[[], Any]) -> Markup | None:
    """Return a plot as HTML; None if Optuna cannot make it of these trials."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental functions of Optuna
            figure = plot()
    except (ValueError, RuntimeError):
        return None  # as for importances where all trials have the same value
    figure.update_layout(title=None, margin={"t": 20}, template="plotly_white")
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False))


def _renamed(study: optuna.Study, names: dict[str, str]) -> optuna.Study:
    """Return a copy in memory whose settings have short names, for which the plots have room."""
    copy = optuna.create_study(direction=study.direction)
    for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
        copy.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                value=trial.value,
                params={names[name]: value for name, value in trial.params.items()},
                distributions={names[name]: kind for name, kind in trial.distributions.items()},
                intermediate_values=trial.intermediate_values,
            )
        )
    return copy


def _rank(trial: FrozenTrial, objective: Objective) -> tuple[bool, float, int]:
    """Return what sorts the complete trials by their values, the best first, and puts the others behind them."""
    is_complete = trial.state == TrialState.COMPLETE
    value = (trial.value or 0.0) if is_complete else 0.0
    return not is_complete, -value if objective.is_bigger else value, trial.number


def _row(trial: FrozenTrial, entries: Sequence[Entry], best: FrozenTrial | None) -> dict[str, Any]:
    values = list(trial.intermediate_values.values())
    last = values[-1] if values else None
    return {
        "number": trial.number,
        "state": _STATES[trial.state],
        "is_best": best is not None and trial.number == best.number,
        "value": "" if trial.state != TrialState.COMPLETE else f"{trial.value:.6g}",
        "last": "" if last is None else f"{last:.6g}",
        "num_evaluations": len(values),
        "seconds": f"{trial.user_attrs[SECONDS]:.0f}" if SECONDS in trial.user_attrs else "",
        "values": [shown(trial.params[entry.name]) if entry.name in trial.params else "" for entry in entries],
        "reason": trial.user_attrs.get(REASON, ""),
    }
