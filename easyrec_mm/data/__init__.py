"""Turns files into batches: parses and checks groups, transforms features, and decodes pictures."""
