"""Fixtures that take seconds to make and serve several files."""

from __future__ import annotations

import pytest
from flow_helpers import Exported, use_small_backbone


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A trained and exported model with a small backbone; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        use_small_backbone(patch)
        return Exported(tmp_path_factory.mktemp("exported"))
