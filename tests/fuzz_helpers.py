"""Settings of tests with random damage, which take seconds as they are; the variable FUZZ makes them longer."""

import os

from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("FUZZ", "1"))


def fuzz(max_examples):
    """Settings with so many examples, times FUZZ."""
    return settings(max_examples=max_examples * FACTOR, deadline=None, suppress_health_check=list(HealthCheck))
