"""Vectors of pictures and texts by any encoder, without a training: into stores and files."""
