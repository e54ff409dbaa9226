"""The click probabilities of the demo's impressions, given all that decides them, or only what a model may know."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from demo_pictures import STYLES
from demo_titles import BENEFITS

Floats = npt.NDArray[np.float64]

BIAS, APPEAL_WEIGHT, TASTE_WEIGHT = -2.0, 1.55, 1.75  # an oracle AUC of 0.82, 0.68 without pictures
BENEFIT_WEIGHT = 1.2

# What a model may not know: (probability, part of the logit) of each value. The mean over a uniform appeal is that of
# Gauss and Legendre, exact to rounding.
_NODES = np.polynomial.legendre.leggauss(24)
UNKNOWN_APPEAL = [(weight / 2, APPEAL_WEIGHT * node) for node, weight in zip(*_NODES, strict=True)]
UNKNOWN_STYLE = [(1 / len(STYLES), TASTE_WEIGHT), (1 - 1 / len(STYLES), 0.0)]
UNKNOWN_BENEFIT = [(1 / len(BENEFITS), BENEFIT_WEIGHT * benefit) for benefit in BENEFITS]


def sigmoid(logit: Floats) -> Floats:
    """Logistic function, elementwise."""
    probability: Floats = 1.0 / (1.0 + np.exp(-logit))
    return probability


def expected_p(logit: Floats, *unknown: Sequence[tuple[float, float]]) -> Floats:
    """The mean of p over everything that is unknown, each with its distribution, given the rest of the logit."""
    mean = np.zeros_like(logit)
    for values in itertools.product(*unknown):
        probability = math.prod(share for share, _ in values)
        mean += probability * sigmoid(logit + sum(part for _, part in values))
    return mean


def click_probabilities(
    feature_logit: Floats, appeal: Floats, match: Floats, benefit: Floats, names_style: npt.NDArray[np.bool_] | None
) -> dict[str, Floats]:
    """The click probability of each sample: p_true, and p_no_image given everything but the picture.

    With titles also p_no_title, given everything but the title, and p_no_content, given neither.
    """
    of_picture, of_title = APPEAL_WEIGHT * appeal + TASTE_WEIGHT * match, BENEFIT_WEIGHT * benefit
    p = {"p_true": sigmoid(feature_logit + of_picture + of_title)}
    p["p_no_image"] = expected_p(feature_logit + of_title, UNKNOWN_STYLE, UNKNOWN_APPEAL)
    if names_style is not None:
        with_style = expected_p(feature_logit + of_title + TASTE_WEIGHT * match, UNKNOWN_APPEAL)
        p["p_no_image"] = np.where(names_style, with_style, p["p_no_image"])
        p["p_no_title"] = expected_p(feature_logit + of_picture, UNKNOWN_BENEFIT)
        p["p_no_content"] = expected_p(feature_logit, UNKNOWN_BENEFIT, UNKNOWN_STYLE, UNKNOWN_APPEAL)
    return p
