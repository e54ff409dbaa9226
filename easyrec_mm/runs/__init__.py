"""The folder of a training: its checkpoints, its logs and evaluations, and which checkpoint is the best."""
