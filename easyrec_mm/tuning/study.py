"""The trials of a search in Optuna's storage: SQLite or PostgreSQL. Imported only where Optuna is installed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from easyrec_mm.errors import UserError
from easyrec_mm.safe_text import hide_secrets, without_secrets
from easyrec_mm.tuning.space import Entry

# Attributes of a trial: why it failed, and how long it took. Of a study: the numbers of trials that do not count.
REASON, SECONDS = "reason", "seconds"
_VOID = "void"
_SCHEMES = ("sqlite", "postgresql")
_DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_study(
    url: str, name: str, is_bigger: bool, pruner: optuna.pruners.BasePruner, seed: int, is_new: bool
) -> optuna.Study:
    """Return the study of a search, which is created if `is_new`.

    Args:
      url: of the storage, see `storage_url`.
      name: of the study.
      is_bigger: whether larger values are better.
      pruner: decides which trials end early.
      seed: of the draws.
      is_new: whether the search begins.

    Raises:
      UserError: if the storage is neither SQLite nor PostgreSQL, or does not have the study.
      sqlalchemy.exc.SQLAlchemyError: if it cannot be used; see storage_used.
    """
    study: optuna.Study
    direction = StudyDirection.MAXIMIZE if is_bigger else StudyDirection.MINIMIZE
    # A server may have closed a connection that was not used while a trial was trained.
    storage = optuna.storages.RDBStorage(storage_url(url), engine_kwargs={"pool_pre_ping": True})
    try:
        if is_new:
            study = optuna.create_study(storage=storage, study_name=name, pruner=pruner, direction=direction)
        else:
            study = optuna.load_study(storage=storage, study_name=name, pruner=pruner)
    except KeyError as error:
        raise UserError(
            f"--storage {without_secrets(url)}: does not have the search of --output_dir ({name}); give the storage "
            "with which it was begun, or another --output_dir"
        ) from error
    number = len(study.get_trials(deepcopy=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Another seed after each start: otherwise it would draw again what it has drawn before.
        study.sampler = optuna.samplers.TPESampler(seed=seed + number, constant_liar=True)
    return study


@contextmanager
def storage_used(url: str) -> Iterator[None]:
    """Use a storage in the context.

    Raises:
      UserError: if it cannot be used, or not any more.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = hide_secrets(" ".join(str(error.__cause__ or error).split("\n(Background")[0].split()), url)
        place, advice = f"--storage {without_secrets(url)}", "check the address, and that the server runs"
        raise UserError(f"{place}: cannot be used: {reason}; {advice}; the same command goes on") from error


def storage_url(url: str) -> str:
    """Return the address of a storage as SQLAlchemy takes it, with the driver of PostgreSQL that is installed.

    Raises:
      UserError: if it is not one of SQLite or PostgreSQL.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in _SCHEMES:
        example = "sqlite:///tune/study.db or postgresql://user@host/database"
        raise UserError(f"--storage {without_secrets(url)}: is neither SQLite nor PostgreSQL; write {example}")
    return f"postgresql+psycopg://{rest}" if scheme == "postgresql" else url


def pruner_of(name: str) -> optuna.pruners.BasePruner:
    """Return the pruner that --pruner names; it counts the evaluations of a trial from 1."""
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1)
    return optuna.pruners.MedianPruner(n_startup_trials=5)


def distributions_of(entries: Sequence[Entry]) -> dict[str, BaseDistribution]:
    """Return Optuna's form of a space."""
    return {entry.name: _distribution(entry) for entry in entries}


def _distribution(entry: Entry) -> BaseDistribution:
    if entry.choices:
        return CategoricalDistribution(entry.choices)
    if entry.is_whole:
        return IntDistribution(int(entry.low), int(entry.high), entry.is_log, int(entry.step or 1))
    return FloatDistribution(entry.low, entry.high, entry.is_log, entry.step)


def interrupted_trials(study: optuna.Study, names: Collection[str]) -> list[optuna.trial.Trial]:
    """Return the trials that a search was doing when it ended; they can go on.

    One for which not all settings (`names`) had been drawn does not count.
    """
    going_on = []
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = optuna.trial.Trial(study, frozen._trial_id)
        if set(frozen.params) == set(names):
            going_on.append(trial)
        else:
            study.set_user_attr(_VOID, [*study.user_attrs.get(_VOID, []), frozen.number])
            study.tell(trial, state=TrialState.FAIL)
    return going_on


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are done and count."""
    void = study.user_attrs.get(_VOID, [])
    return [trial for trial in study.get_trials(deepcopy=False, states=_DONE) if trial.number not in void]


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the best trial; None before one is complete."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    return study.best_trial
