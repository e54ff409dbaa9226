"""Computes vectors of the pictures of all items, and writes them to a store."""
