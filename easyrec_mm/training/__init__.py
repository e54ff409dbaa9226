"""Training: its steps and optimizers, its length, when it saves and evaluates, and when it ends."""
