"""Steps with pictures of replicas that are threads of one process: those of one, whatever of the tower is trained."""

import numpy as np
import pytest
from picture_group_helpers import BATCH, OWN, SHARED, make_picture_groups, picture_training
from thread_replicas import trained_by_replicas

from easyrec_mm.errors import ConfigError
from easyrec_mm.network.model import MultimodalModel

pytestmark = pytest.mark.usefixtures("backbone_of_three_stages")
SYNCHRONIZED, SHARES = "sync_batch_norm: true", "sync_batch_norm: true share_pictures: true"
UNFROZEN = "unfreeze_at_step: 2"


# The second replica has no pictures of the second batch, and no samples of the third.
NUM_GROUPS, WITHOUT_PICTURE = 2 * BATCH + 2, range(12, 16)


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return make_picture_groups(tmp_path_factory.mktemp("groups"), NUM_GROUPS, WITHOUT_PICTURE)


def assert_close(values, expected):
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "train", "img_model"),
    [
        pytest.param(OWN, SYNCHRONIZED, "trainable: HEAD", id="head"),
        pytest.param(SHARED, SHARES, f"trainable: HEAD {UNFROZEN} normalize_features: true", id="shared-head"),
        pytest.param(SHARED, SHARES, f"trainable: NONE {UNFROZEN}", id="shared-frozen"),
        pytest.param(SHARED, SHARES, f"trainable: LAST_N_STAGES last_n_stages: 1 {UNFROZEN}", id="shared-last-stage"),
    ],
)
def test_steps_of_two_replicas_are_those_of_one(groups, tmp_path, file, train, img_model):
    pipeline = picture_training(groups, tmp_path, file, img_model, train).pipeline
    ((losses, values),) = trained_by_replicas(pipeline, 1, BATCH)
    results = trained_by_replicas(pipeline, 2, BATCH)
    for own_losses, own_values in results:
        assert_close(own_values, values)
        for own, expected in zip(own_losses, losses, strict=True):
            assert_close({name: own[name] for name in expected}, expected)
    averages = {name: value for name, value in values.items() if name.endswith("/moving_mean")}
    assert averages["image/img_dnn/bn_0/moving_mean"].any()
    assert averages["image/backbone/bn0/moving_mean"].any() == (UNFROZEN in img_model)


@pytest.mark.slow
def test_replicas_without_common_batch_norm_stay_alike(groups, tmp_path):
    """All have the same weights and moving statistics, those of a head behind a bank of features as well."""
    img_model = f"trainable: HEAD {UNFROZEN} normalize_features: true"
    pipeline = picture_training(groups, tmp_path, SHARED, img_model).pipeline
    (_, first), (_, second) = trained_by_replicas(pipeline, 2, BATCH)
    assert_close(second, first)
    assert np.abs(first["image/img_dnn/bn_0/moving_mean"]).max() > 1e-3


def test_batch_norm_of_all_pictures_is_refused_where_it_sees_a_few_at_a_time(groups, tmp_path):
    """With unequal numbers of pictures, workers would wait for each other for ever."""
    pipeline = picture_training(groups, tmp_path, OWN, "image_micro_batch: 2", SYNCHRONIZED).pipeline
    with pytest.raises(ConfigError, match=r"img_model\.image_micro_batch: 2 lets batch norm of the backbone see 2"):
        trained_by_replicas(pipeline, 2, BATCH)
    MultimodalModel(pipeline.config, pipeline.schema)
