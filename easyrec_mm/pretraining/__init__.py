"""Data sets of pre-training -> the tables that a training reads."""
