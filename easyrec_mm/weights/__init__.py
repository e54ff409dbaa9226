"""Pretrained weights of encoders: fetched from the package index into folders that `preset` can name."""
