"""The reference config, an EasyRec file for its E2E_MM_DBMTL model, as text.

`reference_config` returns the text: what EasyRec's documentation shows of it, with the parts filled in that it leaves
out. Nothing in it is easyrec_mm's own, so that it also proves that such a file trains unchanged.
"""

from pathlib import Path

# The values of a sample, in the order of input_fields.
FEATURES = (
    "latitude", "longitude", "city", "province", "os", "os_version", "day_h", "week_day", "is_new_userid", "level",
    "is_member", "familyid", "gender", "constellation", "user_auth_type", "fans_num", "follow_num", "visitor_num",
    "billboard_num",
)  # fmt: skip
LABELS = ("is_valid_play", "play_time", "like", "comment", "share", "follow")
_TEXT = r"""
train_input_path: "{train_input_path}"
eval_input_path: "{eval_input_path}"
model_dir: "{model_dir}"

train_config {
  log_step_count_steps: 200
  optimizer_config: {
    adam_optimizer: {
      learning_rate: {
        exponential_decay_learning_rate {
          initial_learning_rate: 0.0001
          decay_steps: 10000
          decay_factor: 0.5
          min_learning_rate: 1e-07
        }
      }
    }
    use_moving_average: false
  }
  num_steps: 2000
  sync_replicas: true
  save_checkpoints_steps: 500
  keep_checkpoint_max: 2
  train_distribute: NoStrategy
}

eval_config {
  metrics_set: {
    auc {}
  }
}

data_config {
  batch_size: 64
  input_type: GroupRTPInput
  separator: "\002"
  group_sample_separator: "\001"
  rtp_separator: "|"
  selected_cols: "3,4,5,6,7,8,9,11,12"
  label_fields: "is_valid_play"
  label_fields: "play_time"
  label_fields: "like"
  label_fields: "comment"
  label_fields: "share"
  label_fields: "follow"
  num_epochs: 1
  prefetch_size: 32
  input_fields {
    input_name: "is_valid_play"
    input_type: INT32
    default_val: "0"
  }
  input_fields {
    input_name: "play_time"
    input_type: FLOAT
    default_val: "0"
  }
  input_fields { input_name: "like" input_type: INT32 default_val: "0" }
  input_fields { input_name: "comment" input_type: INT32 default_val: "0" }
  input_fields { input_name: "share" input_type: INT32 default_val: "0" }
  input_fields { input_name: "follow" input_type: INT32 default_val: "0" }
  input_fields { input_name: "latitude" input_type: DOUBLE default_val: "0" }
  input_fields { input_name: "longitude" input_type: DOUBLE default_val: "0" }
  input_fields { input_name: "city" input_type: STRING }
  input_fields { input_name: "province" input_type: STRING }
  input_fields { input_name: "os" input_type: STRING }
  input_fields { input_name: "os_version" input_type: STRING }
  input_fields { input_name: "day_h" input_type: INT32 }
  input_fields { input_name: "week_day" input_type: INT32 }
  input_fields { input_name: "is_new_userid" input_type: INT32 }
  input_fields { input_name: "level" input_type: INT32 }
  input_fields { input_name: "is_member" input_type: INT32 }
  input_fields { input_name: "familyid" input_type: STRING }
  input_fields { input_name: "gender" input_type: STRING default_val: "unknown" }
  input_fields { input_name: "constellation" input_type: STRING }
  input_fields { input_name: "user_auth_type" input_type: STRING }
  input_fields { input_name: "fans_num" input_type: INT64 default_val: "0" }
  input_fields { input_name: "follow_num" input_type: INT64 default_val: "0" }
  input_fields { input_name: "visitor_num" input_type: FLOAT default_val: "0" }
  input_fields { input_name: "billboard_num" input_type: FLOAT default_val: "0" }
  input_fields {
    input_name: "img_path"
    input_type: STRING
  }
  input_fields {
    input_name: "group_size"
    input_type: INT32
  }
}

feature_config: {
  features: {
    input_names: "latitude"
    feature_type: RawFeature
    boundaries: [22.0, 26.0, 30.0, 34.0, 38.0]
    embedding_dim: 16
  }
  features: {
    input_names: "longitude"
    feature_type: RawFeature
    boundaries: [100.0, 105.0, 110.0, 115.0, 120.0]
    embedding_dim: 16
  }
  features: { input_names: "city" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 1000 }
  features: { input_names: "province" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 100 }
  features: { input_names: "os" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 10 }
  features: { input_names: "os_version" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 1000 }
  features: { input_names: "day_h" feature_type: IdFeature embedding_dim: 16 num_buckets: 24 }
  features: { input_names: "week_day" feature_type: IdFeature embedding_dim: 16 num_buckets: 7 }
  features: { input_names: "is_new_userid" feature_type: IdFeature embedding_dim: 16 num_buckets: 2 }
  features: { input_names: "level" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 200 }
  features: { input_names: "is_member" feature_type: IdFeature embedding_dim: 16 num_buckets: 2 }
  features: { input_names: "familyid" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 10000 }
  features: { input_names: "gender" feature_type: IdFeature embedding_dim: 16 vocab_list: ["M", "F"] }
  features: { input_names: "constellation" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 50 }
  features: { input_names: "user_auth_type" feature_type: IdFeature embedding_dim: 16 hash_bucket_size: 10 }
  features: { input_names: "fans_num" feature_type: RawFeature min_val: 0.0 max_val: 10000.0 }
  features: { input_names: "follow_num" feature_type: RawFeature min_val: 0.0 max_val: 1000.0 }
  features: {
    input_names: "visitor_num"
    feature_type: RawFeature
    boundaries: [1.0, 10.0, 100.0, 1000.0]
    embedding_dim: 16
  }
  features: { input_names: "billboard_num" feature_type: RawFeature }
  features: {
    input_names: "img_path"
    feature_type: ImgFeature
    img_shape {
      width: {image_size}
      height: {image_size}
      channel: 3
    }
  }
  features: {
    input_names: "group_size"
    feature_type: SampleNumFeature
  }
}

model_config {
  model_class: "E2E_MM_DBMTL"
  feature_groups {
    group_name: "img"
    feature_names: "img_path"
  }
  feature_groups {
    group_name: "sample_num"
    feature_names: "group_size"
  }
  feature_groups {
    group_name: "all"
    feature_names: "latitude"
    feature_names: "longitude"
    feature_names: "city"
    feature_names: "province"
    feature_names: "os"
    feature_names: "os_version"
    feature_names: "day_h"
    feature_names: "week_day"
    feature_names: "is_new_userid"
    feature_names: "level"
    feature_names: "is_member"
    feature_names: "familyid"
    feature_names: "gender"
    feature_names: "constellation"
    feature_names: "user_auth_type"
    feature_names: "fans_num"
    feature_names: "follow_num"
    feature_names: "visitor_num"
    feature_names: "billboard_num"
    wide_deep: DEEP
  }
  embedding_regularization: 1e-05
  e2e_mm_dbmtl {
    highway_dnn {
      input: "img"
      emb_size: 16
    }
    bottom_dnn {
      hidden_units: 1024
      hidden_units: 512
      dropout_ratio: 0.3
      dropout_ratio: 0.3
      use_bn: false
    }
    task_towers {
      tower_name: "is_valid_play"
      label_name: "is_valid_play"
      metrics_set {
        auc {
        }
      }
      loss_type: CLASSIFICATION
      dnn {
        hidden_units: [256, 128, 64, 32]
        dropout_ratio: [0.2, 0.2, 0.1, 0.1]
        use_bn: false
      }
      relation_dnn {
        hidden_units: 16
        use_bn: false
      }
      weight: 1.0
    }
    task_towers {
      tower_name: "play_time"
      label_name: "play_time"
      metrics_set {
        mean_squared_error {
        }
      }
      loss_type: L2_LOSS
      dnn {
        hidden_units: [256, 128, 64, 32]
        dropout_ratio: [0.2, 0.2, 0.1, 0.1]
        use_bn: false
      }
      relation_tower_names: "is_valid_play"
      relation_dnn {
        hidden_units: 16
        use_bn: false
      }
      weight: 1.0
    }
  }
}

export_config {
  multi_placeholder: true
  img_input_name: "img_path"
  img_shape {
    width: {image_size}
    height: {image_size}
    channel: 3
  }
}
"""


# What EasyRec's sample configs also set, and what changes nothing here.
HARMLESS_EDITS = (
    ("  num_steps: 2000", "  num_steps: 2000 inter_op_parallelism_threads: 16 tensor_fuse: false is_profiling: true"),
    ("  sync_replicas: true", "  sync_replicas: false num_gpus_per_worker: 2 protocol: 'grpc++'"),
    ("  batch_size: 64", "  batch_size: 64 shard: true pai_worker_queue: true auto_expand_input_fields: false"),
    ('input_name: "like"', 'input_name: "like" input_dim: 1'),
    ("  multi_placeholder: true", "  multi_placeholder: false exports_to_keep: 3 batch_size: -1 filter_inputs: true"),
    ("eval_config {", "eval_config {\n  max_evals: 0"),
    ('input_names: "city"', 'max_partitions: 4 use_embedding_variable: false input_names: "city"'),
    ("feature_config: {", "feature_config: {\n  embedding_on_cpu: true"),
)


def reference_config(
    *edits: tuple[str, str],
    train_input_path: str = "data/train.txt",
    eval_input_path: str = "data/eval.txt",
    model_dir: str = "model",
    image_size: int = 224,
) -> str:
    """The text of the reference config.

    Args:
      edits: (old, new) pieces of text; each old one must occur exactly once.
      train_input_path: the setting of that name.
      eval_input_path: the setting of that name.
      model_dir: the setting of that name.
      image_size: width and height of the picture, in the ImgFeature and in export_config.
    """
    settings = {
        "{train_input_path}": train_input_path,
        "{eval_input_path}": eval_input_path,
        "{model_dir}": model_dir,
        "{image_size}": str(image_size),
    }
    text = _TEXT.lstrip()
    for name, value in settings.items():
        text = text.replace(name, value)
    for old, new in edits:
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in the reference config; give what occurs once")
        text = text.replace(old, new)
    return text


def write_config(folder: Path, text: str) -> str:
    """Write a config into a folder; its path."""
    path = folder / "pipeline.config"
    path.write_text(text, encoding="utf-8")
    return str(path)
