"""Numbers far beyond all others, which batch normalisation turns into a network that tells nothing apart."""

import re

import numpy as np
import pytest
from training_helpers import Training, make_training_data

from easyrec_mm.features.outliers import is_far, usual_size

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")


def test_one_number_in_a_hundred_is_not_usual():
    numbers = np.array([*np.linspace(-3, 3, 99), 1e9])
    assert usual_size(numbers) == 3
    assert is_far(1e9, 3)
    assert not is_far(1e9, 1e4)
    assert not is_far(1e5, 1e-3)  # small numbers count as 1
    assert usual_size(np.zeros(0)) == 0


@pytest.mark.parametrize("far", [False, True])
def test_training_tells_of_a_batch_norm_that_one_number_spoiled(tmp_path, capsys, far):
    path = make_training_data(tmp_path) / "one.txt"
    if far:
        path.write_text(re.sub(r"\x02[-.\d]+\|", "\x021e9|", path.read_text(), count=1))
    Training(tmp_path, tmp_path, train="num_epochs: 2 save_checkpoints_steps: 1").run()
    warning = "warning: numbers that reached rec/features_bn deviate by "
    assert capsys.readouterr().out.count(warning) == far
