"""Mistakes in train_config and export_config, and mistakes of several parts, which are named together."""

import pytest
from config_helpers import (
    DATA,
    EXPORT,
    GROUP,
    NETWORK,
    NO_HIGHWAY,
    NO_IMAGE_GROUP,
    SGD,
    TRAIN,
    assert_only_problem,
    case,
)

OPTIMIZER = "train_config.optimizer_config[0]"


def rate(text):
    return f"{OPTIMIZER}=sgd_optimizer {{ learning_rate {{ {text} }} }}"


RATE = f"{OPTIMIZER}.sgd_optimizer.learning_rate"


TRAIN_CASES = [
    case(
        f"{TRAIN}.num_epochs=2",
        place=f"{TRAIN}.num_epochs",
        says="2, but data_config.num_epochs is 1",
    ),
    case(
        f"{TRAIN}.optimizer_config=[]",
        place=f"{TRAIN}.optimizer_config",
        says="is missing; choose an optimizer and its learning rate",
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}, {SGD}, {SGD}]",
        place=f"{TRAIN}.optimizer_config",
        says="has 4 entries without `variables`; give 1 (all), 2 (embeddings, rest) or 3 (embeddings, dense, image "
        "tower)",
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}]",
        f"{GROUP['all']}.feature_names=fans_num",
        place=f"{TRAIN}.optimizer_config[0]",
        says="is for embedding tables and the model has none; remove it",
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}, {SGD}]",
        NO_IMAGE_GROUP,
        NO_HIGHWAY,
        place=f"{TRAIN}.optimizer_config[2]",
        says="is for the image tower and the model has none; remove it",
    ),
    case(f"{OPTIMIZER}=", place=OPTIMIZER, says="names no optimizer; choose adam_optimizer, adagrad_optimizer, ..."),
    case("model_dir=", place="model_dir", says="is empty; name a folder"),
    case(
        f"{OPTIMIZER}.embedding_learning_rate_multiplier=-0.5",
        place=f"{OPTIMIZER}.embedding_learning_rate_multiplier",
        says="-0.5 is out of range; give 0 or more",
    ),
    *(
        case(
            f"{OPTIMIZER}.use_moving_average=true",
            f"{OPTIMIZER}.moving_average_decay={decay}",
            place=f"{OPTIMIZER}.moving_average_decay",
            says=f"{decay} is not between 0 and 1",
        )
        for decay in (0, 1)
    ),
    case(
        f"{TRAIN}.optimizer_config=[{SGD}, {SGD}]",
        f"{OPTIMIZER}.use_moving_average=true",
        place=f"{TRAIN}.optimizer_config",
        says="use_moving_average or moving_average_decay differs between optimizers; make them equal, because the",
    ),
    case(
        f'{TRAIN}.freeze_gradient=["ok", "image/("]',
        place=f"{TRAIN}.freeze_gradient[1]",
        says="'image/(' is not a valid regular expression: ",
    ),
    *(
        case(f"{TRAIN}.{name}=0", place=f"{TRAIN}.{name}", says="0 is out of range; give 1 or more")
        for name in ("save_checkpoints_steps", "keep_checkpoint_max", "log_step_count_steps", "save_summary_steps")
    ),
    case(
        f"{TRAIN}.gradient_clipping_by_norm=-1",
        place=f"{TRAIN}.gradient_clipping_by_norm",
        says="-1 is out of range; give 0 or more",
    ),
    case(
        f"{TRAIN}.fine_tune_ckpt_var_map=names.txt",
        place=f"{TRAIN}.fine_tune_ckpt_var_map",
        says="has no effect without fine_tune_checkpoint; set it",
    ),
    # Learning rates
    case(rate(""), place=RATE, says="is empty; choose constant_learning_rate, exponential_decay_learning_rate, ..."),
    *(
        case(rate(f"{kind} {{ {text} }}"), place=f"{RATE}.{kind}.{setting}", says=says)
        for kind, text, setting, says in (
            ("constant_learning_rate", "learning_rate: 0", "learning_rate", "0 is out of range; give a number above 0"),
            (
                "exponential_decay_learning_rate",
                "initial_learning_rate: -0.1",
                "initial_learning_rate",
                "-0.1 is out of range; give a number above 0",
            ),
            ("exponential_decay_learning_rate", "decay_steps: 0", "decay_steps", "0 is out of range; give 1 or more"),
            (
                "exponential_decay_learning_rate",
                "burnin_learning_rate: 0.1",
                "burnin_steps",
                "is 0, so burnin_learning_rate has no effect; set both or neither",
            ),
            (
                "manual_step_learning_rate",
                "initial_learning_rate: 0 schedule { step: 1 }",
                "initial_learning_rate",
                "0 is out of range; give a number above 0",
            ),
            ("manual_step_learning_rate", "", "schedule", "steps [] must begin above 0 and ascend"),
            (
                "manual_step_learning_rate",
                "schedule { step: 0 }",
                "schedule",
                "steps [0] must begin above 0 and ascend",
            ),
            (
                "manual_step_learning_rate",
                "schedule { step: 2 } schedule { step: 2 }",
                "schedule",
                "steps [2, 2] must begin above 0 and ascend",
            ),
            (
                "cosine_decay_learning_rate",
                "learning_rate_base: 0",
                "learning_rate_base",
                "0 is out of range; give a number above 0",
            ),
            (
                "cosine_decay_learning_rate",
                "total_steps: 110 warmup_steps: 100 hold_base_rate_steps: 10",
                "total_steps",
                "110 leaves no step after warmup_steps (100) and hold_base_rate_steps (10); raise it or lower them",
            ),
            (
                "poly_decay_learning_rate",
                "learning_rate_base: 1 total_steps: -5 power: 1",
                "total_steps",
                "-5 is out of range; give 0 or more",
            ),
            (
                "poly_decay_learning_rate",
                "learning_rate_base: 1 total_steps: 5 power: 1 warmup_steps: 5",
                "total_steps",
                "5 leaves no step after warmup_steps (5); raise it",
            ),
        )
    ),
    case(
        f"{RATE}=cosine_decay_learning_rate {{}}",
        f"{TRAIN}.num_steps=0",
        "data_config.num_epochs=0",
        place=f"{RATE}.cosine_decay_learning_rate.total_steps",
        says="is not set, and the training has no end; set num_epochs, num_steps or total_steps",
    ),
    # The best checkpoint
    case(
        f"{EXPORT}.early_stop_patience=2",
        place=f"{EXPORT}.early_stop_patience",
        says="has no effect without enable_early_stop: true; set it or remove this",
    ),
    case(
        f"{EXPORT}.best_exporter_threshold=0.5",
        place=f"{EXPORT}.best_exporter_threshold",
        says='has no effect without exporter_type: "best" or enable_early_stop: true',
    ),
    case(
        f"{EXPORT}.enable_early_stop=true",
        "eval_input_path=",
        place=f"{EXPORT}.enable_early_stop",
        says="needs evaluation data; set eval_input_path",
    ),
    case(
        f"{EXPORT}.exporter_type=best",
        "eval_input_path=",
        place=f"{EXPORT}.exporter_type",
        says="needs evaluation data; set eval_input_path",
    ),
    *(
        case(f"{EXPORT}.enable_early_stop=true", f"{EXPORT}.{name}={value}", place=f"{EXPORT}.{name}", says=says)
        for name, value, says in (
            ("max_check_steps", 0, "0 is out of range; give 1 or more"),
            ("early_stop_min_delta", -0.1, "-0.1 is out of range; give 0 or more"),
            ("best_exporter_metric", "auc_is_valid_ply", "did you mean 'auc_is_valid_play'?"),
            ("best_exporter_metric", "accuracy", "no metric of the evaluation named 'accuracy'; choose one of auc, "),
        )
    ),
    *(
        case(
            f"{EXPORT}.exporter_type=best",
            f"{EXPORT}.best_exporter_metric={metric}",
            f"{EXPORT}.metric_bigger={is_bigger}",
            place=f"{EXPORT}.metric_bigger",
            says=f"{is_bigger}, but {better} values of {name} are better; remove it",
        )
        for metric, name, is_bigger, better in (
            ("auc", "auc_is_valid_play", "false", "larger"),
            ("mean_squared_error", "mean_squared_error_play_time", "true", "smaller"),
        )
    ),
    case(
        f"{EXPORT}.exporter_type=best",
        "eval_config.metrics_set=[{ calibration {} }]",
        f"{EXPORT}.best_exporter_metric=calibration",
        place=f"{EXPORT}.best_exporter_metric",
        says="calibration_is_valid_play cannot rank checkpoints, because neither larger nor smaller values of it are "
        "better; choose a metric such as log_loss",
    ),
    # Export
    case(
        f"{EXPORT}.img_input_name=image_path",
        place=f"{EXPORT}.img_input_name",
        says="no image field named 'image_path'; did you mean 'img_path'?",
    ),
    *(
        case(
            f"{EXPORT}.img_shape.{name}={value}",
            place=f"{EXPORT}.img_shape",
            says=f"{shape}, but the ImgFeature has 224 x 224 x 3; make them equal",
        )
        for name, value, shape in (
            ("width", 64, "64 x 224 x 3"),
            ("height", 64, "224 x 64 x 3"),
            ("channel", 1, "224 x 224 x 1"),
        )
    ),
]


@pytest.mark.parametrize(("changes", "place", "says"), TRAIN_CASES)
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)


def test_several_mistakes_of_one_stage_are_named_together(problems):
    mistakes = problems(
        [
            f"{DATA}.batch_size=0",
            f"{NETWORK}.highway_dnn.emb_size=0",
            f"{TRAIN}.optimizer_config=[]",
            f"{EXPORT}.img_input_name=x",
            "eval_config.metrics_set[0].ece.num_bins=0",
        ]
    )
    assert [place for place, _ in mistakes] == [
        f"{DATA}.batch_size",
        f"{NETWORK}.highway_dnn.emb_size",
        "eval_config.metrics_set[0].ece.num_bins",
        f"{TRAIN}.optimizer_config",
        f"{EXPORT}.img_input_name",
    ]
