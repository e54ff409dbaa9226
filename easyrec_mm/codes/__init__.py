"""Semantic IDs: residual k-means over the vectors of a store, whose codes similar items share."""
