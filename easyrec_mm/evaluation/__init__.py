"""What a model is worth: metrics, their uncertainty, slices of the data, and comparisons of two models."""
