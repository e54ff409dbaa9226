"""Places of settings in the reference config, and cases of mistakes in them.

A case is what is done to the reference config (overrides as the command line takes them, or edits of the text), the
config path of the problem and a piece of its message. Unless it says otherwise, the problem must be the only one: a
mistake must not drag along messages about its consequences.
"""

import pytest
from reference import FEATURES, LABELS

DATA = "data_config"
MODEL = "model_config"
NETWORK = "model_config.e2e_mm_dbmtl"
TOWERS = f"{NETWORK}.task_towers"
TRAIN = "train_config"
EXPORT = "export_config"
# The features stand in the order of a sample's values, then the picture and the group size.
FEATURE = {name: f"feature_config.features[{i}]" for i, name in enumerate((*FEATURES, "img_path", "group_size"))}
FIELD = {
    name: f"data_config.input_fields[{i}]" for i, name in enumerate((*LABELS, *FEATURES, "img_path", "group_size"))
}
GROUP = {name: f"model_config.feature_groups[{i}]" for i, name in enumerate(("img", "sample_num", "all"))}


def case(*changes, place, says):
    return pytest.param(changes, place, says, id=f"{place}: {says}"[:100])


def tower(text):
    return f"{TOWERS}=[{{ tower_name: 'a' label_name: 'like' {text} }}]"


def second_feature(text, name="second"):
    """An edit that puts one more feature before that of the group size."""
    last = '  features: {\n    input_names: "group_size"'
    return last, f'  features: {{ feature_name: "{name}" input_names: "city" {text} }}\n{last}'


NO_IMAGE_GROUP = ('  feature_groups {\n    group_name: "img"\n    feature_names: "img_path"\n  }\n', "")
NO_HIGHWAY = ('    highway_dnn {\n      input: "img"\n      emb_size: 16\n    }\n', "")
SGD = "{ sgd_optimizer { learning_rate { constant_learning_rate {} } } }"


def assert_only_problem(problems, place, says):
    """A mistake must not drag along messages about its consequences."""
    ((found_place, message),) = problems
    assert found_place == place, problems
    assert says in message, message


# --- img_model

IMAGE = f"{NETWORK}.img_model"
ALL_GROUP = "model_config.feature_groups[2]"
FAMILY_PER_GROUP = f"{FEATURE['familyid']}.per_group=true"


def size(width, height, channels=3):
    """Overrides that make the pictures of this size."""
    shape = f"width: {width} height: {height} channel: {channels}"
    return f"{FEATURE['img_path']}.img_shape={shape}", f"export_config.img_shape={shape}"


def loss(text, label="label_name: 'like' num_class: 3"):
    return f"{IMAGE}.image_losses=[{{ {label} {text} }}]"


def contrastive(text="", name="familyid"):
    return loss(f"contrastive {{ item_feature: '{name}' {text} }}", label="")


LOSS = f"{IMAGE}.image_losses[0]"
ITEM = f"{LOSS}.contrastive.item_feature"
CATE_LABEL = (f"{FIELD['follow']}.input_name=cate_label", "data_config.label_fields[5]=cate_label")


def position(text, piece):
    """Line and column of the one place where a piece of text stands, as error messages give them."""
    before, _, after = text.partition(piece)
    assert after
    assert piece not in after
    return f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
