"""Deltas: the difference between two exported rec models, and the later model made of it and the earlier one."""
