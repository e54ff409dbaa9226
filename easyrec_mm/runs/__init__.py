"""The folder of a training: what is known of its evaluations, and which of its checkpoints is the best."""
