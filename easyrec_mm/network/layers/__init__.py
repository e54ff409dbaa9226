"""Layers of the network. They take plain arguments and know no config."""
