"""Leaves out work that tests do not need; together it takes a third of the time of a short training."""

from __future__ import annotations

import gc
import random
from functools import partial

from tensorflow.python.eager import context
from tensorflow.python.framework import ops


def collect_seldom() -> None:
    """Let Python look for unused objects less often, and never among those of the modules that are imported.

    Tests make very many small objects of TensorFlow, most of which live for long.
    """
    gc.set_threshold(50_000, 20, 20)
    gc.freeze()


def collect_no_more() -> None:
    """Let Python leave all objects alone that there are now.

    At the end pytest looks for unused ones. Among those of thousands of tests that takes so long that xdist interrupts
    it.
    """
    gc.freeze()


def keep_kernels() -> None:
    """Let TensorFlow keep its kernels when a seed is set.

    It would make all of them anew, with those of functions that are compiled already, because random operations may
    have a state there. Each model sets a seed, and the random operations of models have no state.
    """
    context.Context._set_global_seed = _set_global_seed


def trace_without_stacks() -> None:
    """Let the operations of graphs not keep the Python stack that made them.

    TensorFlow shows it beneath an error, of which easyrec-mm prints the first line. Below pytest it is deep.
    """
    ops._create_c_op = partial(ops._create_c_op, extract_traceback=False)


def _set_global_seed(self: context.Context, seed: int) -> None:
    self._seed, self._rng = seed, random.Random(seed)
