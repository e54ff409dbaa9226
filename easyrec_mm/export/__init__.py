"""Exports a trained network as an image, a rec and a total model, and verifies that they agree."""
