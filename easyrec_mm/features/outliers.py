"""Numbers so far from the others that the network sees no difference between these."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# How many times larger than the usual ones a number may be.
_FAR = 1e6
OUTLIER_ADVICE = "leave it empty, or give its feature boundaries or numeric_transform: LOG1P"


def usual_size(numbers: NDArray[Any]) -> float:
    """Return within what size 99 % of numbers of any shape are; 0 for none."""
    return float(np.quantile(np.abs(numbers), 0.99, method="lower")) if numbers.size else 0.0


def is_far(size: float, usual: float) -> bool:
    """Return whether a size is so far from the usual one that a batch norm of both makes the usual ones equal."""
    return size > _FAR * max(usual, 1.0)
