"""Mistakes in metrics of towers and in eval_config."""

import pytest
from config_helpers import TOWERS, assert_only_problem, case, tower

# --- metrics_set of towers and of eval_config

METRIC_CASES = [
    case(
        f"{TOWERS}[1].metrics_set[0].auc=",
        place=f"{TOWERS}[1].metrics_set[0]",
        says="auc does not apply to tower 'play_time' (value); choose from calibration, mean_absolute_error, ",
    ),
    case(
        tower("num_class: 3 metrics_set { auc {} }"),
        place=f"{TOWERS}[0].metrics_set[0]",
        says="auc does not apply to tower 'a' (multiclass); choose from accuracy, log_loss",
    ),
    *(
        case(f"{metrics}[0]{change}", place=f"{metrics}[0]{place}", says=says)
        for metrics in (f"{TOWERS}[0].metrics_set", "eval_config.metrics_set")
        for change, place, says in (
            ("=", "", "is empty; choose one of auc, gauc, log_loss, "),
            (".gauc.uid_field=familyd", ".gauc.uid_field", "no input field named 'familyd'; did you mean 'familyid'?"),
            (
                "=gauc { uid_field: 'familyid' reduction: 'men' }",
                ".gauc.reduction",
                "no reduction named 'men'; did you mean 'mean'?",
            ),
            (".ece.num_bins=0", ".ece.num_bins", "0 is out of range; give 1 or more"),
            (".calibration_curve.num_bins=0", ".calibration_curve.num_bins", "0 is out of range; give 1 or more"),
            (
                ".calibration_curve.strategy=quantil",
                ".calibration_curve.strategy",
                "no strategy named 'quantil'; did you mean 'quantile'?",
            ),
            (
                "=recall_at_topk { session_id_field: 'familyid' topk: 0 }",
                ".recall_at_topk.topk",
                "0 is out of range; give 1 or more",
            ),
            (
                "=session_auc { session_id_field: 'familyid' reduction: 'men' }",
                ".session_auc.reduction",
                "no reduction named 'men'; did you mean 'mean'?",
            ),
            *(
                (
                    f".{kind}.session_id_field=famlyid",
                    f".{kind}.session_id_field",
                    "no input field named 'famlyid'; did",
                )
                for kind in ("session_auc", "ndcg", "recall_at_topk", "hit_rate")
            ),
        )
    ),
    case(
        f"{TOWERS}[0].metrics_set=[{{gauc {{uid_field: 'familyid'}}}}, {{gauc {{uid_field: 'city'}}}}]",
        place=f"{TOWERS}[0].metrics_set[1]",
        says="a second metric that would be called gauc_is_valid_play; remove one of the two",
    ),
]


# --- eval_config

EVALUATION = "eval_config"


def evaluation_case(setting, place, says, *changes):
    return case(*changes, f"{EVALUATION}.{setting}", place=f"{EVALUATION}.{place}", says=says)


EVALUATION_CASES = [
    evaluation_case(
        "item_id_field=famlyid", "item_id_field", "no input field named 'famlyid'; did you mean 'familyid'"
    ),
    evaluation_case("max_memory_mib=0", "max_memory_mib", "0 is out of range; give 1 or more"),
    evaluation_case(
        "bootstrap.cluster_field=famlyid", "bootstrap.cluster_field", "no input field named 'famlyid'; did"
    ),
    evaluation_case("bootstrap.level=1", "bootstrap.level", "1 is out of range; give a number between 0 and 1"),
    evaluation_case(
        "bootstrap.num_replicates=30",
        "bootstrap.num_replicates",
        "30 are too few for intervals of level 0.95; give 40 or more, or 0 for no intervals",
    ),
    *(
        evaluation_case(f"slices=[{{{text}}}]", f"slices[0]{place}", says)
        for text, place, says in (
            ("", "", "does not say what to slice by; set one of field, item_frequency, group_size, has_picture"),
            ("field: 'famlyid'", ".field", "no input field named 'famlyid'; did you mean 'familyid'?"),
            ("field: 'city' max_values: 0", ".max_values", "0 is out of range; give 1 or more"),
            ("field: 'city' num_quantiles: 3", ".num_quantiles", "'city' is text and has no quantiles; remove it"),
            (
                "field: 'level' num_quantiles: 3 max_values: 2",
                ".max_values",
                "applies only to a field without num_quantiles",
            ),
            ("has_picture {} num_quantiles: 3", ".num_quantiles", "has no effect on has_picture; remove it"),
            ("item_frequency {frequent_from: 1}", ".item_frequency.frequent_from", "1 is out of range; give 2 or more"),
        )
    ),
    evaluation_case("slices=[{field: 'city'}, {field: 'city'}]", "slices[1]", "a second slice by city; remove one"),
    evaluation_case(
        "slices=[{item_frequency {}}]",
        "slices[0].item_frequency",
        "needs the training data to count items in; set train_input_path",
        "train_input_path=",
    ),
]


@pytest.mark.parametrize(("changes", "place", "says"), [*METRIC_CASES, *EVALUATION_CASES])
def test_a_mistake_is_named_with_its_place_and_value_and_nothing_else_is(problems, changes, place, says):
    assert_only_problem(problems(changes), place, says)
