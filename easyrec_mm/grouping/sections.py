"""What each section of a config does, and what to change in it: the comments that stand before the sections."""

PATHS = (
    "The files, and the folder that the training writes to: paths and globs, separated by commas. Change them for "
    "other data; another model_dir starts another training."
)
DATA = (
    "How the files are read: a field for each column that is used. Change batch_size to what fits into memory, and "
    "image_root to the folder in which the paths of pictures start."
)
FEATURES = (
    "What the network makes of each field. Change sizes of tables (hash_bucket_size) and vectors (embedding_dim); to "
    "leave a feature out, remove it here and in the group 'all' below."
)
MODEL = (
    "The network: img_model sees the picture, bottom_dnn joins it with the features, and task_towers predict one label "
    "each. Change preset, a pretrained backbone, first (easyrec-mm weights list); hidden_units if there are many rows."
)
TRAINING = (
    "How the network is trained: an optimizer for all variables, and further ones for those that match `variables`. "
    "Change learning_rate_base and num_epochs first; optimizers with cosine_decay end with the last step."
)
EVALUATION = (
    "Every checkpoint is evaluated, and confidence intervals resample whole items (item_id_field). Change "
    "eval_interval_secs to evaluate less often; metrics stand in the task_towers."
)
EXPORT = "What easyrec-mm export writes for serving. Change exporter_type to choose the checkpoint in another way."
