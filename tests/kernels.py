"""Chooses the kernels of TensorFlow for the tests, which must happen before it is imported.

oneDNN compiles kernels for the shapes that it meets. That takes a quarter of the time of a training of a few steps, so
most tests do without it. Processes that tests start have it, as those of users have, and so have the tests that
continuous integration runs with TF_ENABLE_ONEDNN_OPTS=1.
"""

import os

_SETTING = "TF_ENABLE_ONEDNN_OPTS"

if _SETTING not in os.environ:
    os.environ[_SETTING] = "0"
    import tensorflow  # noqa: F401 - it reads the setting once

    del os.environ[_SETTING]
