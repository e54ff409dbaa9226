"""Names of files in a model_dir, for those who do not need TensorFlow for more."""

# Of a checkpoint, before its step.
PREFIX = "model.ckpt"
# The list of checkpoints.
STATE = "checkpoint"
