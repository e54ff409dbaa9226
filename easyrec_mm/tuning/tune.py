"""A search from its options to its results: trials, best.config and tune.html in the output folder.

tune.json there says which search the folder belongs to, so that the same command goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from easyrec_mm import __version__
from easyrec_mm.config.pipeline import Pipeline, changed_pipeline, config_text
from easyrec_mm.console import say, tell_result
from easyrec_mm.errors import UserError
from easyrec_mm.files import put_text
from easyrec_mm.files.lock import LOCK, locked
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.tuning.objective import Objective, objective_of
from easyrec_mm.tuning.page import page
from easyrec_mm.tuning.search import TRIALS, HopelessError, Search
from easyrec_mm.tuning.space import Entry, Value, as_text, overrides_of, own_values
from easyrec_mm.tuning.study import best_trial, counted_trials, open_study, pruner_of, storage_used
from easyrec_mm.tuning.training import MODEL

TUNE, BEST, PAGE, STUDY = "tune.json", "best.config", "tune.html", "study.db"
_IS_OVER = "is_over"


@dataclass(frozen=True)
class TuneOptions:
    """Options of the command line; `storage` and `metric` may be ""; `settings` are --set and --ignore_unsupported."""

    output_dir: str
    trials: int
    jobs: int
    storage: str
    metric: str
    pruner: str
    seed: int
    settings: tuple[str, ...]


class Tune:
    """A search for the settings of a config.

    Args:
      pipeline: the config, with the changes of --set.
      entries: the space.
      options: how to search.
      gpus: the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them.

    Raises:
      UserError: if the config has no metric to compare trials by.
    """

    def __init__(
        self, pipeline: Pipeline, entries: Sequence[Entry], options: TuneOptions, gpus: Sequence[str] = ()
    ) -> None:
        self._pipeline, self._entries, self._options, self._gpus = pipeline, entries, options, gpus
        self._objective: Objective = objective_of(pipeline, options.metric)
        self._folder = Path(options.output_dir)

    def run(self, is_stopped: Callable[[], bool]) -> None:
        """Search, or go on with a search, until all trials are done or `is_stopped`; write the results.

        Raises:
          UserError: if the folder is in use or contains another search, the storage cannot be used, or the first trials
            all fail for the same reason.
        """
        url = self._options.storage or f"sqlite:///{self._folder.absolute() / STUDY}"
        with locked(str(self._folder), "--output_dir"), storage_used(url):
            known = self._known()
            name = known.get("study") or f"tune-{secrets.token_hex(4)}"
            pruner = pruner_of(self._options.pruner)
            study = open_study(url, name, self._objective.is_bigger, pruner, self._options.seed, is_new=not known)
            search = Search(study, self._entries, self._objective, self.command, self._folder, self._gpus)
            if not known:
                self._note(name)
                search.begin_with(own_values(self._entries, self._pipeline))
            self._tell_begin(study)
            try:
                search.run(self._options.trials, self._options.jobs, is_stopped)
            except HopelessError:
                self._note(name, is_over=True)
                raise
            finally:
                self._write(study)
            if not is_stopped():
                self._tell_result(study)

    def _known(self) -> dict[str, Any]:
        """Return what the folder says of its search; {} for an empty folder."""
        path = self._folder / TUNE
        place = f"--output_dir {self._folder}"
        if not path.exists():
            others = [file.name for file in self._folder.iterdir() if file.name not in (LOCK, STUDY)]
            if others:
                raise UserError(
                    f"{place}: contains files that belong to no search ({others[0]}); choose another folder"
                )
            return {}
        try:
            known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: is damaged ({error}); choose another --output_dir, or remove this one") from error
        if known.get(_IS_OVER):
            shutil.rmtree(self._folder / TRIALS, ignore_errors=True)
            return {}
        for key, value in self._identity().items():
            if known.get(key) != value:
                advice = "give what it was begun with, or choose another folder"
                raise UserError(f"{place}: contains a search with another {key.replace('_', ' ')}; {advice}")
        return known

    def _note(self, study: str, is_over: bool = False) -> None:
        """Write which search the folder belongs to, and whether the next start begins another one."""
        content = {"easyrec_mm": __version__, "study": study, _IS_OVER: is_over, **self._identity()}
        put_text(self._folder / TUNE, json.dumps(content, indent=2) + "\n")

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal when a search goes on, so that its trials can be compared."""
        config = EasyRecConfig()
        config.CopyFrom(self._pipeline.config)
        config.model_dir = ""  # not used
        content = hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest()
        # Lines of the space may move.
        space = [{name: v for name, v in asdict(entry).items() if name != "place"} for entry in self._entries]
        return {"config": content, "metric": self._objective.metric, "space": json.loads(json.dumps(space))}

    def command(self, values: Mapping[str, Value], folder: Path) -> list[str]:
        """Return the command that trains with some settings."""
        own = {"model_dir": str(folder / MODEL), "train_config.keep_checkpoint_max": "1"}
        if self._options.pruner != "none":
            own["eval_config.eval_interval_secs"] = "0"  # trials are compared after the same checkpoints
        changes = {**{name: as_text(value) for name, value in values.items()}, **own}
        settings = [f"--set={name}={value}" for name, value in changes.items()]
        python = [sys.executable, "-m", "easyrec_mm", "train", "--pipeline_config", self._pipeline.path]
        return [*python, *self._options.settings, *settings]

    def _tell_begin(self, study: optuna.Study) -> None:
        num_done = len(counted_trials(study))
        better = "larger" if self._objective.is_bigger else "smaller"
        earlier = f", of which {num_done} are done" if num_done else ""
        say(f"search by {self._objective.metric} ({better} is better): {self._options.trials} trials{earlier}")

    def _write(self, study: optuna.Study) -> None:
        """Write the page, and the config of the best trial if there is one."""
        best = best_trial(study)
        if best is not None:
            pipeline = changed_pipeline(self._pipeline, overrides_of(self._entries, best.params))
            pipeline.config.model_dir = str(self._folder / "best")
            search = f"a search by easyrec-mm {__version__}"
            remark = f"# Trial {best.number} of {search}: {self._objective.metric} {best.value:.6g}.\n"
            put_text(self._folder / BEST, remark + config_text(pipeline.config))
        put_text(self._folder / PAGE, page(study, self._entries, self._objective, self._pipeline.path))

    def _tell_result(self, study: optuna.Study) -> None:
        best, page_path = best_trial(study), self._folder / PAGE
        if best is None:
            tell_result(f"no trial is done; see {page_path} and the logs below {self._folder / TRIALS}")
            return
        values = "\n".join(f"  {name}={as_text(value)}" for name, value in best.params.items())
        result = f"best trial: {best.number}, {self._objective.metric} {best.value:.6g}"
        text = f"{result}\n{values}\nwritten: {self._folder / BEST}, {page_path}"
        tell_result(text, trial=best.number, value=best.value, params=best.params)
