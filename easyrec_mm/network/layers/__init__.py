"""Layers of the network. They take plain arguments and do not depend on the config."""
