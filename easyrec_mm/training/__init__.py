"""The parts of a training: how long it is, when it saves and evaluates, and when it ends."""
