"""Evaluation of models: metrics, their uncertainty, slices of the data, and comparisons of two models."""
