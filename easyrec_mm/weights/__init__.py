"""Pretrained weights of image models, from packages of the package index to folders that `preset` names."""
